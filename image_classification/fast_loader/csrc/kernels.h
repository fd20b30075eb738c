// SPDX-FileCopyrightText: The image classification package authors
// SPDX-License-Identifier: Apache-2.0
// The inner loops, compiled once for each instruction set and chosen at run time.
#pragma once

#include <cstdint>

#include "lane.h"

namespace fast_loader {

// Samples between the stages are 16-bit numbers: the value minus 128, times 2^7.
constexpr int kSampleBits = 7;

constexpr int kMaxLanes = 32;

// Quantisation steps in the form that the inverse DCT takes: dequantised = coefficient * steps,
// then scaled by a fraction of 2^15.
struct ScaledQuant {
    alignas(64) int16_t steps[64];
    alignas(64) int16_t scales[64];
};

// Where the inverse DCT writes: sample (x, y) of the strip lies at samples[x * lanes + y], so that
// the resize along x has one line per lane.
struct Strip {
    int16_t* samples;
    int lane;  // of the first line of the blocks, a multiple of the block's size
};

// For each output of a resize the samples it is made of; see taps.h.
struct TapsView {
    int outputs;
    int stride;
    const int32_t* first;
    const int32_t* count;
    const int16_t* weights;
    bool halved;  // the sum is half of what it should be
};

// Outputs come in groups of so many; the last one is filled up with outputs of no samples.
constexpr int kTapsGroup = 8;

// The lines that the resize along x has made, in a ring.
struct LineRing {
    int16_t* lines;
    int width;  // of a line
    int mask;   // capacity - 1; line y lies at (y & mask) * width

    int16_t* line(int y) const { return lines + static_cast<int64_t>(y & mask) * width; }
};

// What one output line is made of, for each plane: `count` lines and their weights.
struct LineInputs {
    const int16_t* const* lines;
    const int16_t* weights;
    int count;
    bool halved;  // as in TapsView
};

struct Kernels {
    const char* name;
    int lanes;  // lines of a strip

    // Entropy decoding; see entropy.inl.
    void (*begin_lane)(Lane&);
    void (*decode_one)(Lane&);
    void (*decode_two)(Lane&, Lane&);

    // Inverse DCT of `count` blocks side by side. Each gives size x size samples: 8, or means of 2 x 2
    // (4), 4 x 4 (2) or all (1).
    void (*inverse_dct)(const int16_t* blocks, int count, int size, const ScaledQuant&, Strip);

    // Resize along x: strip column 0 is sample `origin` of the plane; its lines become the lines
    // y .. y + lanes - 1 of the ring.
    void (*resize_columns)(const int16_t* strip, int origin, const TapsView&, int y, const LineRing&);

    // Resize along y of one line and conversion to RGB (3 planes) or gray as RGB (1 plane).
    void (*write_line)(const LineInputs* planes, int num_planes, int width, uint8_t* rgb);
};

// The sets that this program and this processor have, the fastest one first; ends with nullptr.
const Kernels* const* available_kernels();

}  // namespace fast_loader
