// SPDX-FileCopyrightText: The image classification package authors
// SPDX-License-Identifier: Apache-2.0
// One JPEG file to the pixels of one resized crop.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "jpeg_header.h"
#include "kernels.h"
#include "lane.h"
#include "scan_data.h"
#include "status.h"
#include "taps.h"

namespace fast_loader {

// What is wanted of an image. Coordinates are pixels, right and bottom ends exclusive.
struct CropRequest {
    double left = 0, top = 0, right = 0, bottom = 0;   // becomes the whole output
    int bound_left = 0, bound_top = 0;                 // pixels that the resize may look at:
    int bound_right = 0, bound_bottom = 0;             // the box itself, or the whole image
    int width = 0, height = 0;                         // of the output
    Filter filter = Filter::kBilinear;
    bool flip = false;
    uint8_t* output = nullptr;  // height x width x 3
};

// Decodes row by row: bits to coefficients (the lane), coefficients to a strip of lines, lines
// resized along x, then along y, then to RGB. No plane is ever held as a whole. The object keeps
// its buffers from image to image.
//
// Use: start(); then decode lane() until it stops and call advance(), as long as that returns true.
class CropDecoder {
public:
    explicit CropDecoder(const Kernels& kernels) : kernels_(kernels) {}
    CropDecoder(const CropDecoder&) = delete;
    CropDecoder& operator=(const CropDecoder&) = delete;

    // Prepares an image; the data must stay where they are until start returns.
    Status start(const uint8_t* data, size_t size, const CropRequest& request);

    Lane& lane() { return lane_; }

    // Uses what the stopped lane has decoded. Returns whether the lane is to go on.
    bool advance();

    // Of the finished image.
    Status status() const { return status_; }

private:
    // One component of the image.
    struct Plane {
        const Taps* columns = nullptr;
        const Taps* lines = nullptr;
        int h = 1, v = 1;                     // blocks of an MCU
        int size = 8;                         // samples that a block gives, each way
        int first_column = 0, columns_end = 0;  // of the blocks within the crop
        int first_row = 0, rows_end = 0;
        int slots = 0;                        // places for the blocks of one row
        uint32_t offset = 0;                  // of the first one in coefficients_
        ScaledQuant quant;
        std::vector<int16_t> strip;
        std::vector<int16_t> ring_lines;
        LineRing ring{};
        int lines_done = 0;                   // lines of the plane that are in the ring
    };

    Status plan(const CropRequest& request);
    Status prepare_tables();
    void build_taps(const CropRequest& request);
    void prepare_plane(Plane& plane, const Component& component);
    void prepare_targets();
    void begin_stretch();
    bool fail();
    void transform_row(Plane& plane, int block_row, const int16_t* blocks);
    void write_lines();

    const Kernels& kernels_;
    JpegHeader header_;
    CropRequest request_;
    ScanData scan_;
    Lane lane_;
    Status status_ = Status::kOk;

    std::array<HuffmanTable, kTables> dc_tables_, ac_tables_;
    std::array<ScanComponent, kMaxComponents> scan_components_;
    std::array<Plane, kMaxComponents> planes_;
    Taps taps_x_[2], taps_y_[2];  // [subsampling - 1]

    int h_max_ = 1, v_max_ = 1;
    int reduction_ = 1;  // the image is decoded at 1 / 1, 2, 4 or 8 of its size
    int mcus_per_row_ = 0, blocks_per_mcu_ = 0;
    int first_row_ = 0, rows_end_ = 0;  // MCU rows that the crop touches
    std::vector<BlockTarget> targets_, skipped_;
    std::vector<int16_t> coefficients_;
    std::vector<const int16_t*> inputs_;

    int row_ = 0, mcu_ = 0;  // where the lane goes on
    size_t interval_ = 0;
    int interval_left_ = 0;  // MCUs
    int next_output_ = 0;
};

}  // namespace fast_loader
