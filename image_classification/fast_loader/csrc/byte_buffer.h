// SPDX-FileCopyrightText: The image classification package authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

namespace fast_loader {

// Memory that is kept from file to file and not cleared: both would cost as much as reading the file.
class ByteBuffer {
public:
    // Makes room for `size` bytes; what was there is lost where it has to grow.
    void reserve(size_t size) {
        if (size <= capacity_) return;
        bytes_.reset();
        capacity_ = 0;
        const size_t capacity = size + size / 4;
        bytes_.reset(new uint8_t[capacity]);
        capacity_ = capacity;
    }

    // Gives the memory back where a large file has made it larger than nearly all need.
    void shrink() {
        if (capacity_ <= kUsual) return;
        bytes_.reset();
        capacity_ = 0;
    }

    uint8_t* data() { return bytes_.get(); }
    const uint8_t* data() const { return bytes_.get(); }
    size_t capacity() const { return capacity_; }

private:
    static constexpr size_t kUsual = size_t{4} << 20;

    std::unique_ptr<uint8_t[]> bytes_;
    size_t capacity_ = 0;
};

}  // namespace fast_loader
