// SPDX-FileCopyrightText: The image classification package authors
// SPDX-License-Identifier: Apache-2.0
// The headers of a JPEG file (ITU-T T.81, Annex B): sizes, tables, where the coded data start.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

#include "status.h"

namespace fast_loader {

constexpr int kMaxComponents = 3;
constexpr int kTables = 4;

// The order in which the 64 coefficients of a block are coded (T.81, Figure A.6): natural position,
// row by row, of the k-th coefficient.
extern const std::array<uint8_t, 64> kZigzag;

// A Huffman table as the file gives it (T.81, B.2.4.2).
struct HuffmanSpec {
    bool defined = false;
    std::array<uint8_t, 16> counts{};   // number of codes of length 1 .. 16
    std::array<uint8_t, 256> values{};  // symbols in the order of their codes
};

// A table of quantisation steps, in natural order (T.81, B.2.4.1).
struct QuantTable {
    bool defined = false;
    std::array<uint16_t, 64> steps{};
};

struct Component {
    uint8_t id = 0;
    uint8_t h = 1, v = 1;  // sampling factors, 1 or 2
    uint8_t quant = 0;     // number of its quantisation table
    uint8_t dc_table = 0, ac_table = 0;
};

struct JpegHeader {
    int width = 0, height = 0;
    int num_components = 0;  // 1: gray, 3: Y, Cb, Cr
    std::array<Component, kMaxComponents> components{};
    std::array<QuantTable, kTables> quant{};
    std::array<HuffmanSpec, kTables> dc{}, ac{};
    int restart_interval = 0;  // MCUs between restart markers, 0: none
    size_t scan_offset = 0;    // first byte of the entropy-coded data
};

// Reads the headers up to the first scan.
//
// Returns kUnsupported for valid files beyond the scope (progressive, arithmetic, 12 bits, CMYK,
// RGB, several scans, odd sampling, other formats), kTruncated or kCorrupt for damaged ones.
Status read_header(const uint8_t* data, size_t size, JpegHeader& header);

// Reads the size only: stops at the frame header. Returns kUnsupported where that alone shows that
// the file is beyond the scope.
Status read_size(const uint8_t* data, size_t size, int& width, int& height);

}  // namespace fast_loader
