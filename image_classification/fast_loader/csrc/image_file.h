// SPDX-FileCopyrightText: The image classification package authors
// SPDX-License-Identifier: Apache-2.0
// A file in memory.
#pragma once

#include <cstddef>
#include <cstdint>

#include "byte_buffer.h"
#include "status.h"

namespace fast_loader {

// Larger files are refused: no photograph comes near.
constexpr int64_t kMaxFileBytes = int64_t{1} << 30;

// Reads a whole file. Returns kCannotRead (errno says why), kTooLarge or kOutOfMemory.
Status read_file(const char* path, ByteBuffer& content, size_t& size);

}  // namespace fast_loader
