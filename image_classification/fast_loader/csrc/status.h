// SPDX-FileCopyrightText: The image classification package authors
// SPDX-License-Identifier: Apache-2.0
// What can become of an image. The numbers are part of the C interface.
#pragma once

#include <cstdint>

namespace fast_loader {

enum class Status : int32_t {
    kOk = 0,
    // Not within the scope of the fast decoder: another decoder may read it.
    kUnsupported = 1,
    // Damaged: no decoder gives the whole image.
    kTruncated = 2,
    kCorrupt = 3,
    // Nothing to decode.
    kCannotRead = 4,
    kTooLarge = 5,
    kOutOfMemory = 6,
    // The crop does not lie within the image.
    kBadCrop = 7,
};

}  // namespace fast_loader
