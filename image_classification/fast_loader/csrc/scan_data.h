// SPDX-FileCopyrightText: The image classification package authors
// SPDX-License-Identifier: Apache-2.0
// The entropy-coded data of a scan as plain bits (ITU-T T.81, B.1.1.5 and F.1.2.3).
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "byte_buffer.h"
#include "status.h"

namespace fast_loader {

// A block has at most 64 symbols of at most 31 bits. So many bytes behind the data let the decoder
// check once per block instead of at each symbol.
constexpr size_t kScanPadding = 64 * 31 / 8 + 16;

class ScanData {
public:
    // Copies the data without the zero bytes stuffed behind 0xFF, and notes where restart markers
    // end an interval. Returns kTruncated if the file ends before another marker does the scan.
    Status extract(const uint8_t* data, size_t size);

    size_t intervals() const { return ends_.size(); }

    // First bit of an interval, and the bit behind its last one, counted from address 0.
    uint64_t first_bit(size_t interval) const {
        return bit_address(interval == 0 ? 0 : ends_[interval - 1]);
    }
    uint64_t last_bit(size_t interval) const { return bit_address(ends_[interval]); }

private:
    uint64_t bit_address(size_t byte) const {
        return static_cast<uint64_t>(reinterpret_cast<uintptr_t>(bytes_.data() + byte)) * 8;
    }

    ByteBuffer bytes_;
    std::vector<size_t> ends_;
};

}  // namespace fast_loader
