// SPDX-FileCopyrightText: The image classification package authors
// SPDX-License-Identifier: Apache-2.0
// A file in memory.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "byte_buffer.h"
#include "status.h"

namespace fast_loader {

// Larger files are refused: no photograph comes near.
constexpr int64_t kMaxFileBytes = int64_t{1} << 28;

// Reads a file, or, for a path of the form <shard>.pack@<offset>+<length>, that part of the shard.
// Of more than `limit` bytes only so many are read; the system is told that the rest is wanted soon.
// Returns kCannotRead (errno says why), kTooLarge or kOutOfMemory.
Status read_file(const std::string& path, size_t limit, ByteBuffer& content, size_t& size);

}  // namespace fast_loader
