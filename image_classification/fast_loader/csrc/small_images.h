// SPDX-FileCopyrightText: The image classification package authors
// SPDX-License-Identifier: Apache-2.0
// Batches of images that lie in memory: cut out, flipped and normalised in one pass.
#pragma once

#include <cstdint>

namespace fast_loader {

// Square images end to end, each with a black border; a pixel is red, green, blue and an unused
// byte, that is a little-endian number with red in its lowest byte.
struct PixelTable {
    const uint32_t* pixels = nullptr;
    int64_t images = 0;
    int side = 0;  // with the border
};

// What a batch shows of an image, as six numbers of 64 bits each: its number, top and left of the
// crop, whether it is flipped, row and column of the cutout's centre.
struct CropPlan {
    int64_t image, top, left, flip, row, column;
};

struct CropFormat {
    int side = 0;          // of the crops
    int cutout = 0;        // side of a square of the mean colour, 0: none
    uint32_t mean = 0;     // colour of the cutout, as a pixel
    float scale[3] = {}, shift[3] = {};  // value = byte * scale + shift, rounded after each
    bool channels_last = false;          // [side, side, 3] instead of [3, side, side]
};

// Writes `count` crops, floats, on up to `threads` threads. Returns false, with nothing written,
// where a plan reaches outside the table.
bool small_crops(const PixelTable& table, const CropPlan* plans, int64_t count,
                 const CropFormat& format, int threads, float* output);

}  // namespace fast_loader
