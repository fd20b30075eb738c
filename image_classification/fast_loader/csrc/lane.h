// SPDX-FileCopyrightText: The image classification package authors
// SPDX-License-Identifier: Apache-2.0
// What the entropy decoder works on: one image's place in its bit stream and in its blocks.
#pragma once

#include <cstdint>

#include "huffman.h"

namespace fast_loader {

// Coefficients of a block, and one place more for whatever comes behind its end.
constexpr int kBlockSize = 64;

// What the blocks of one component share within a scan.
struct ScanComponent {
    const HuffmanTable* dc = nullptr;
    const HuffmanTable* ac = nullptr;
    uint32_t prediction = 0;  // the last DC coefficient (T.81, F.1.1.5.1), modulo 2^32
};

// Stands for the place of a block outside the crop.
constexpr uint32_t kSkipped = UINT32_MAX;

// Where the coefficients of a block go.
struct BlockTarget {
    uint32_t offset;     // from Lane::coefficients, or kSkipped
    uint32_t component;  // index in Lane::components
};

// Decodes blocks in the order of the scan up to `end`.
struct Lane {
    uint64_t position = 0;  // of the next bit, counted from address 0
    uint64_t limit = 0;     // where the data of this interval end
    const HuffmanTable* ac = nullptr;
    int16_t* block = nullptr;
    int64_t k = 0;  // of the last coefficient, in zigzag order
    const BlockTarget* target = nullptr;
    const BlockTarget* end = nullptr;  // the lane stops here
    int16_t* coefficients = nullptr;
    ScanComponent* components = nullptr;
    bool damaged = false;  // the lane has stopped early

    bool stopped() const { return damaged || target == end; }
};

}  // namespace fast_loader
