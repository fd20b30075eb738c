// SPDX-FileCopyrightText: The image classification package authors
// SPDX-License-Identifier: Apache-2.0
#include "c_api.h"

#include <cstring>
#include <exception>
#include <memory>
#include <string>

#include "batch_decoder.h"
#include "kernels.h"
#include "small_images.h"

using fast_loader::Batch;
using fast_loader::BatchDecoder;
using fast_loader::CropRequest;
using fast_loader::Image;
using fast_loader::Kernels;
using fast_loader::Status;

namespace {

constexpr int32_t kMaxThreads = 4096;

const Kernels* find_kernels(const char* name) {
    for (const Kernels* const* kernels = fast_loader::available_kernels(); *kernels; ++kernels) {
        if (*name == '\0' || std::strcmp((*kernels)->name, name) == 0) return *kernels;
    }
    return nullptr;
}

// Runs `fill` on each image of a new batch; null when out of memory.
template <class Fill>
Batch* make_batch(int64_t count, const int64_t* offsets, Fill fill) {
    try {
        auto batch = std::make_unique<Batch>();
        batch->images.resize(static_cast<size_t>(count));
        for (int64_t i = 0; i < count; ++i)
            fill(batch->images[static_cast<size_t>(i)], offsets[i],
                 static_cast<size_t>(offsets[i + 1] - offsets[i]));
        return batch.release();
    } catch (const std::exception&) {
        return nullptr;
    }
}

}  // namespace

int32_t fast_loader_version() { return 4; }

const char* fast_loader_kernels() {
    static const std::string names = [] {
        std::string joined;
        for (const Kernels* const* kernels = fast_loader::available_kernels(); *kernels; ++kernels)
            joined += (joined.empty() ? "" : " ") + std::string((*kernels)->name);
        return joined;
    }();
    return names.c_str();
}

BatchDecoder* fast_loader_open(int32_t threads, const char* kernels) {
    const Kernels* found = find_kernels(kernels);
    if (found == nullptr || threads < 1 || threads > kMaxThreads) return nullptr;
    try {
        return new BatchDecoder(threads, *found);
    } catch (const std::exception&) {
        return nullptr;
    }
}

void fast_loader_close(BatchDecoder* decoder) { delete decoder; }

Batch* fast_loader_load(BatchDecoder* decoder, int64_t count, const char* paths,
                        const int64_t* offsets) {
    Batch* batch = make_batch(count, offsets, [&](Image& image, int64_t start, size_t length) {
        image.path.assign(paths + start, length);
    });
    if (batch != nullptr) decoder->submit(*batch);
    return batch;
}

Batch* fast_loader_load_bytes(BatchDecoder* decoder, int64_t count, const uint8_t* bytes,
                              const int64_t* offsets) {
    Batch* batch = make_batch(count, offsets, [&](Image& image, int64_t start, size_t length) {
        image.content.reserve(length);
        std::memcpy(image.content.data(), bytes + start, length);
        image.size = length;
        image.in_memory = true;
    });
    if (batch != nullptr) decoder->submit(*batch);
    return batch;
}

int32_t fast_loader_wait(BatchDecoder* decoder, Batch* batch, int32_t milliseconds,
                         int32_t* widths, int32_t* heights, int32_t* statuses, int32_t* errors) {
    if (!decoder->wait(*batch, milliseconds)) return 0;
    for (const Image& image : batch->images) {
        *widths++ = image.width;
        *heights++ = image.height;
        *statuses++ = static_cast<int32_t>(image.status);
        *errors++ = image.error;
    }
    return 1;
}

void fast_loader_decode(BatchDecoder* decoder, Batch* batch, const FastLoaderCrop* crops,
                        const uint8_t* skip, int32_t width, int32_t height, uint8_t* output) {
    const int64_t bytes = int64_t{3} * width * height;
    for (Image& image : batch->images) {
        image.skipped = *skip++ != 0;
        CropRequest& request = image.request;
        request.left = crops->left;
        request.top = crops->top;
        request.right = crops->right;
        request.bottom = crops->bottom;
        request.bound_left = crops->bound_left;
        request.bound_top = crops->bound_top;
        request.bound_right = crops->bound_right;
        request.bound_bottom = crops->bound_bottom;
        request.filter = static_cast<fast_loader::Filter>(crops->filter);
        request.flip = crops->flip != 0;
        request.width = width;
        request.height = height;
        request.output = output;
        ++crops;
        output += bytes;
    }
    batch->decoding = true;
    decoder->submit(*batch);
}

int32_t fast_loader_small_crops(const uint32_t* pixels, int64_t images, int32_t table_side,
                                const int64_t* plan, int64_t count, int32_t side, int32_t cutout,
                                uint32_t mean, const float* scale, const float* shift,
                                int32_t channels_last, int32_t threads, float* output) {
    fast_loader::CropFormat format;
    format.side = side;
    format.cutout = cutout;
    format.mean = mean;
    for (int i = 0; i < 3; ++i) {
        format.scale[i] = scale[i];
        format.shift[i] = shift[i];
    }
    format.channels_last = channels_last != 0;
    static_assert(sizeof(fast_loader::CropPlan) == 6 * sizeof(int64_t));
    return fast_loader::small_crops({pixels, images, table_side},
                                    reinterpret_cast<const fast_loader::CropPlan*>(plan), count,
                                    format, threads, output)
               ? 1
               : 0;
}

void fast_loader_free(Batch* batch) { delete batch; }
