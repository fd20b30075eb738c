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
    ByteBuffer content;      // of a file in memory
    size_t size = 0;         // of the content
    bool in_memory = false;  // path means nothing
    bool skipped = false;    // not to be decoded
    int error = 0;    // errno where the file could not be read
    int width = 0, height = 0;
    CropRequest request;
    Status status = Status::kOk;
};

// Files on their way to pixels, in two stages: loading reads their heads, which tell the sizes, from
// which the caller chooses the crops; then they are read as a whole and decoded. In between nothing
// of a file is kept but by the system, which is told early what will be read: memory stays small,
// and a slow disk has many files to fetch at a time.
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

    // Waits for the end of the submitted stage. Returns whether it has come in time.
    bool wait(Batch& batch, int milliseconds);

private:
    struct Task {
        Batch* batch = nullptr;
        Image* image = nullptr;
    };

    // What a thread keeps from image to image.
    struct Workplace {
        explicit Workplace(const Kernels& kernels) : a(kernels), b(kernels) {}
        ByteBuffer file;
        CropDecoder a, b;
    };

    void end_threads();
    void work();
    void load(Image& image, ByteBuffer& file);
    Status start(Image& image, CropDecoder& decoder, ByteBuffer& file);
    bool take(Task& task, bool decoding, bool may_wait);
    void finish(const Task& task);
    void decode_queue(Task first, Workplace& place);
    bool start_next(Task& task, CropDecoder& decoder, ByteBuffer& file);

    const Kernels& kernels_;
    std::mutex mutex_;
    std::condition_variable work_, done_;
    std::deque<Batch*> queue_;
    bool closing_ = false;
    std::vector<std::thread> threads_;
};

}  // namespace fast_loader
