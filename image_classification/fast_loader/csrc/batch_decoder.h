// SPDX-FileCopyrightText: The image classification package authors
// SPDX-License-Identifier: Apache-2.0
// Threads that read and decode batches of files.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "byte_buffer.h"
#include "crop_decoder.h"
#include "kernels.h"
#include "status.h"

namespace fast_loader {

struct Image {
    std::string path;
    ByteBuffer content;
    size_t size = 0;  // of the content
    bool in_memory = false;  // the content is there already
    bool skipped = false;    // not to be decoded
    int error = 0;    // errno where the file could not be read
    int width = 0, height = 0;
    CropRequest request;
    Status status = Status::kOk;
};

// Files on their way to pixels, in two stages: loading tells the sizes, which the caller needs to
// choose the crops; then they are decoded.
struct Batch {
    std::vector<Image> images;
    bool decoding = false;  // which stage
    size_t next = 0;        // image to be taken
    size_t finished = 0;
};

class BatchDecoder {
public:
    BatchDecoder(int threads, const Kernels& kernels);
    ~BatchDecoder();
    BatchDecoder(const BatchDecoder&) = delete;
    BatchDecoder& operator=(const BatchDecoder&) = delete;

    // Queues the current stage of a batch; stages are worked on in the order of their submission.
    void submit(Batch& batch);

    // Waits for the end of the submitted stage.
    void wait(Batch& batch);

private:
    struct Task {
        Batch* batch = nullptr;
        Image* image = nullptr;
    };

    void work();
    void load(Image& image);
    void recycle(ByteBuffer& buffer);
    bool take(Task& task, bool decoding, bool may_wait);
    void finish(const Task& task);
    void decode_queue(Task first, CropDecoder& a, CropDecoder& b);
    bool start_next(Task& task, CropDecoder& decoder);

    const Kernels& kernels_;
    std::mutex mutex_;
    std::condition_variable work_, done_;
    std::deque<Batch*> queue_;
    std::vector<ByteBuffer> spare_;  // of files that have been decoded
    bool closing_ = false;
    std::vector<std::thread> threads_;
};

}  // namespace fast_loader
