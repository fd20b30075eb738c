// SPDX-FileCopyrightText: The image classification package authors
// SPDX-License-Identifier: Apache-2.0
#include "image_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <new>

namespace fast_loader {

namespace {

// Closes on every way out.
class File {
public:
    explicit File(const char* path) : descriptor_(open(path, O_RDONLY | O_CLOEXEC)) {}
    ~File() {
        if (descriptor_ >= 0) close(descriptor_);
    }
    File(const File&) = delete;
    File& operator=(const File&) = delete;
    int descriptor() const { return descriptor_; }

private:
    int descriptor_;
};

Status read_all(int descriptor, uint8_t* to, size_t& size) {
    size_t done = 0;
    while (done < size) {
        const ssize_t got = read(descriptor, to + done, size - done);
        if (got < 0 && errno == EINTR) continue;
        if (got < 0) return Status::kCannotRead;
        if (got == 0) break;  // shorter than a moment ago
        done += static_cast<size_t>(got);
    }
    size = done;
    return Status::kOk;
}

}  // namespace

Status read_file(const char* path, ByteBuffer& content, size_t& size) {
    size = 0;
    const File file(path);
    if (file.descriptor() < 0) return Status::kCannotRead;
    struct stat info {};
    if (fstat(file.descriptor(), &info) != 0) return Status::kCannotRead;
    if (!S_ISREG(info.st_mode)) {  // a pipe could keep a thread waiting for ever
        errno = S_ISDIR(info.st_mode) ? EISDIR : EINVAL;
        return Status::kCannotRead;
    }
    if (info.st_size > kMaxFileBytes) return Status::kTooLarge;
    try {
        const auto bytes = static_cast<size_t>(info.st_size);
        content.reserve(bytes);
        size = bytes;
    } catch (const std::bad_alloc&) {
        return Status::kOutOfMemory;
    }
    return read_all(file.descriptor(), content.data(), size);
}

}  // namespace fast_loader
