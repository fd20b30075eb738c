// SPDX-FileCopyrightText: The image classification package authors
// SPDX-License-Identifier: Apache-2.0
#include "image_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <new>
#include <string>

namespace fast_loader {

namespace {

// Closes on every way out.
class File {
public:
    // Without O_NONBLOCK the opening of a pipe waits for somebody who writes to it.
    explicit File(const char* path) : descriptor_(open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK)) {}
    ~File() {
        if (descriptor_ >= 0) close(descriptor_);
    }
    File(const File&) = delete;
    File& operator=(const File&) = delete;
    int descriptor() const { return descriptor_; }

private:
    int descriptor_;
};

// A part of a file; the whole of it where length is negative.
struct Part {
    std::string file;
    int64_t offset = 0, length = -1;
};

// Reads digits up to `end`; -1 where there are none, too many or something else.
int64_t number_of(const char* text, const char* end) {
    if (text == end || end - text > 18) return -1;
    int64_t number = 0;
    for (; text < end; ++text) {
        if (*text < '0' || *text > '9') return -1;
        number = number * 10 + (*text - '0');
    }
    return number;
}

Part part_of(const std::string& path) {
    static const std::string mark = ".pack@";
    const size_t at = path.rfind(mark), plus = path.rfind('+');
    if (at == std::string::npos || plus == std::string::npos || plus < at) return {path, 0, -1};
    const char* text = path.data();
    const int64_t offset = number_of(text + at + mark.size(), text + plus);
    const int64_t length = number_of(text + plus + 1, text + path.size());
    if (offset < 0 || length < 0) return {path, 0, -1};
    return {path.substr(0, at + mark.size() - 1), offset, length};
}

Status read_all(int descriptor, int64_t offset, uint8_t* to, size_t& size) {
    size_t done = 0;
    while (done < size) {
        const ssize_t got = pread(descriptor, to + done, size - done,
                                  static_cast<off_t>(offset + static_cast<int64_t>(done)));
        if (got < 0 && errno == EINTR) continue;
        if (got < 0) return Status::kCannotRead;
        if (got == 0) break;  // shorter than a moment ago
        done += static_cast<size_t>(got);
    }
    size = done;
    return Status::kOk;
}

}  // namespace

Status read_file(const std::string& path, size_t limit, ByteBuffer& content, size_t& size) {
    size = 0;
    const Part part = part_of(path);
    const File file(part.file.c_str());
    if (file.descriptor() < 0) return Status::kCannotRead;
    struct stat info {};
    if (fstat(file.descriptor(), &info) != 0) return Status::kCannotRead;
    if (!S_ISREG(info.st_mode)) {
        errno = S_ISDIR(info.st_mode) ? EISDIR : EINVAL;
        return Status::kCannotRead;
    }
    const int64_t length = part.length < 0 ? info.st_size : part.length;
    if (length > kMaxFileBytes) return Status::kTooLarge;
    const size_t bytes = std::min(static_cast<size_t>(length), limit);
    try {
        content.reserve(bytes);
        size = bytes;
    } catch (const std::bad_alloc&) {
        return Status::kOutOfMemory;
    }
    const auto rest = part.offset + static_cast<int64_t>(bytes);
    if (static_cast<int64_t>(bytes) < length)
        posix_fadvise(file.descriptor(), rest, length - static_cast<int64_t>(bytes),
                      POSIX_FADV_WILLNEED);
    return read_all(file.descriptor(), part.offset, content.data(), size);
}

}  // namespace fast_loader
