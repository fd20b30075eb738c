// SPDX-FileCopyrightText: The image classification package authors
// SPDX-License-Identifier: Apache-2.0
#include "scan_data.h"

#include <cstring>

namespace fast_loader {

Status ScanData::extract(const uint8_t* data, size_t size) {
    bytes_.shrink();
    bytes_.reserve(size + kScanPadding);
    ends_.clear();
    uint8_t* to = bytes_.data();
    const uint8_t* const end = data + size;
    Status status = Status::kTruncated;
    while (data < end) {
        const auto* marker =
            static_cast<const uint8_t*>(std::memchr(data, 0xFF, static_cast<size_t>(end - data)));
        if (marker == nullptr) marker = end;
        const auto plain = static_cast<size_t>(marker - data);
        std::memcpy(to, data, plain);
        to += plain;
        data = marker;
        while (data < end && *data == 0xFF) ++data;  // fill bytes may precede a marker (B.1.1.2)
        if (data == end) break;
        const uint8_t code = *data++;
        if (code == 0x00) {
            *to++ = 0xFF;
        } else if (code >= 0xD0 && code <= 0xD7) {  // RST0 .. RST7
            ends_.push_back(static_cast<size_t>(to - bytes_.data()));
        } else {
            status = Status::kOk;
            break;
        }
    }
    ends_.push_back(static_cast<size_t>(to - bytes_.data()));
    std::memset(to, 0, kScanPadding);
    return status;
}

}  // namespace fast_loader
