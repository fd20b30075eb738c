// SPDX-FileCopyrightText: The image classification package authors
// SPDX-License-Identifier: Apache-2.0
#include "batch_decoder.h"

#include <cerrno>
#include <chrono>
#include <memory>
#include <new>

#include "image_file.h"
#include "jpeg_header.h"

namespace fast_loader {

// Enough for the size in nearly all files.
constexpr size_t kHeadBytes = 1 << 14;

BatchDecoder::BatchDecoder(int threads, const Kernels& kernels) : kernels_(kernels) {
    try {
        for (int i = 0; i < threads; ++i) threads_.emplace_back([this] { work(); });
    } catch (...) {  // the system gives no more threads: end those that run
        end_threads();
        throw;
    }
}

BatchDecoder::~BatchDecoder() { end_threads(); }

void BatchDecoder::end_threads() {
    {
        const std::lock_guard<std::mutex> lock(mutex_);
        closing_ = true;
    }
    work_.notify_all();
    for (std::thread& thread : threads_) thread.join();
}

void BatchDecoder::submit(Batch& batch) {
    {
        const std::lock_guard<std::mutex> lock(mutex_);
        batch.next = batch.finished = 0;
        if (!batch.images.empty()) queue_.push_back(&batch);
    }
    work_.notify_all();
}

bool BatchDecoder::wait(Batch& batch, int milliseconds) {
    std::unique_lock<std::mutex> lock(mutex_);
    return done_.wait_for(lock, std::chrono::milliseconds(milliseconds),
                          [&] { return batch.finished == batch.images.size() || closing_; });
}

// Reads as much of the file as tells the size.
void BatchDecoder::load(Image& image, ByteBuffer& file) {
    if (image.in_memory) {
        image.status = read_size(image.content.data(), image.size, image.width, image.height);
        return;
    }
    for (size_t limit = kHeadBytes;; limit *= 8) {
        size_t size = 0;
        image.status = read_file(image.path, limit, file, size);
        image.error = image.status == Status::kCannotRead ? errno : 0;
        if (image.status == Status::kOk)
            image.status = read_size(file.data(), size, image.width, image.height);
        if (image.status != Status::kTruncated || size < limit) return;
    }
}

Status BatchDecoder::start(Image& image, CropDecoder& decoder, ByteBuffer& file) {
    try {
        if (image.in_memory) return decoder.start(image.content.data(), image.size, image.request);
        size_t size = 0;
        const Status status = read_file(image.path, kMaxFileBytes, file, size);
        image.error = status == Status::kCannotRead ? errno : 0;
        if (status != Status::kOk) return status;
        const Status started = decoder.start(file.data(), size, image.request);
        file.shrink();
        return started;
    } catch (const std::bad_alloc&) {
        return Status::kOutOfMemory;
    }
}

void BatchDecoder::work() {
    // On the heap: the tables are larger than a small thread's stack should bear.
    const auto place = std::make_unique<Workplace>(kernels_);
    for (;;) {
        Task task;
        if (!take(task, false, true)) return;
        if (task.batch->decoding) {
            decode_queue(task, *place);
        } else {
            load(*task.image, place->file);
            finish(task);
        }
    }
}

// Takes the first image of the queue. Without may_wait only one that is to be decoded, if there is
// one at the front. Returns whether there is a task.
bool BatchDecoder::take(Task& task, bool decoding, bool may_wait) {
    std::unique_lock<std::mutex> lock(mutex_);
    if (may_wait) work_.wait(lock, [&] { return !queue_.empty() || closing_; });
    if (closing_ || queue_.empty()) return false;
    Batch* batch = queue_.front();
    if (decoding && !batch->decoding) return false;
    task = {batch, &batch->images[batch->next]};
    if (++batch->next == batch->images.size()) queue_.pop_front();
    return true;
}

void BatchDecoder::finish(const Task& task) {
    bool last;
    {
        const std::lock_guard<std::mutex> lock(mutex_);
        last = ++task.batch->finished == task.batch->images.size();
    }
    if (last) done_.notify_all();
}

// Prepares `task`, or the next one that can be prepared. Returns false when there is none.
bool BatchDecoder::start_next(Task& task, CropDecoder& decoder, ByteBuffer& file) {
    while (task.image != nullptr) {
        Image& image = *task.image;
        if (image.status == Status::kOk && !image.skipped)
            image.status = start(image, decoder, file);
        if (image.status == Status::kOk && !image.skipped) return true;
        finish(task);
        task = {};
        if (!take(task, true, false)) return false;
    }
    return false;
}

// Decodes as long as decoding is at the front of the queue, two images in turns.
void BatchDecoder::decode_queue(Task first, Workplace& place) {
    struct Seat {
        CropDecoder& decoder;
        Task task;
        bool runs;
    };
    Seat seats[2] = {{place.a, first, false}, {place.b, {}, false}};
    seats[0].runs = start_next(seats[0].task, place.a, place.file);
    for (;;) {
        for (Seat& seat : seats) {
            if (seat.runs) continue;
            seat.task = {};
            seat.runs = take(seat.task, true, false) &&
                        start_next(seat.task, seat.decoder, place.file);
        }
        if (seats[0].runs && seats[1].runs) {
            kernels_.decode_two(place.a.lane(), place.b.lane());
        } else if (seats[0].runs) {
            kernels_.decode_one(place.a.lane());
        } else if (seats[1].runs) {
            kernels_.decode_one(place.b.lane());
        } else {
            return;
        }
        for (Seat& seat : seats) {
            if (!seat.runs || !seat.decoder.lane().stopped()) continue;
            seat.runs = seat.decoder.advance();
            if (seat.runs) continue;
            seat.task.image->status = seat.decoder.status();
            finish(seat.task);
        }
    }
}

}  // namespace fast_loader
