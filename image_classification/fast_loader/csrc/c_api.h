// SPDX-FileCopyrightText: The image classification package authors
// SPDX-License-Identifier: Apache-2.0
// The interface to Python: plain C, called through ctypes, which releases the interpreter's lock.
#pragma once

#include <cstdint>

#define FAST_LOADER_API extern "C" __attribute__((visibility("default")))

namespace fast_loader {
class BatchDecoder;
struct Batch;
}  // namespace fast_loader

// One crop; see CropRequest. Filter: 0 bilinear, 1 bicubic.
struct FastLoaderCrop {
    double left, top, right, bottom;
    int32_t bound_left, bound_top, bound_right, bound_bottom;
    int32_t filter, flip;
};

// Changes whenever a function or a structure here does.
FAST_LOADER_API int32_t fast_loader_version();

// Names of the instruction sets that can be used here, fastest first, separated by spaces.
FAST_LOADER_API const char* fast_loader_kernels();

// Starts threads. An empty name takes the fastest kernels. Returns null for an unknown name or
// where the threads cannot be started.
FAST_LOADER_API fast_loader::BatchDecoder* fast_loader_open(int32_t threads, const char* kernels);

// Ends the threads; no batch may be under way.
FAST_LOADER_API void fast_loader_close(fast_loader::BatchDecoder* decoder);

// Starts to read the sizes of `count` files. Path i is paths[offsets[i] .. offsets[i + 1]). Returns null when out
// of memory.
FAST_LOADER_API fast_loader::Batch* fast_loader_load(fast_loader::BatchDecoder* decoder,
                                                     int64_t count, const char* paths,
                                                     const int64_t* offsets);

// The same for files in memory; they are copied.
FAST_LOADER_API fast_loader::Batch* fast_loader_load_bytes(fast_loader::BatchDecoder* decoder,
                                                           int64_t count, const uint8_t* bytes,
                                                           const int64_t* offsets);

// Waits for the current stage and tells each image's size (after loading), status and errno.
// Returns 0 if it has not ended after so many milliseconds: nothing is told then.
FAST_LOADER_API int32_t fast_loader_wait(fast_loader::BatchDecoder* decoder,
                                         fast_loader::Batch* batch, int32_t milliseconds,
                                         int32_t* widths, int32_t* heights, int32_t* statuses,
                                         int32_t* errors);

// Starts to decode a loaded batch into output, uint8 [count, height, width, 3]. Images whose skip
// is not 0 are left out. Nothing else may touch output until fast_loader_wait has returned.
FAST_LOADER_API void fast_loader_decode(fast_loader::BatchDecoder* decoder,
                                        fast_loader::Batch* batch, const FastLoaderCrop* crops,
                                        const uint8_t* skip, int32_t width, int32_t height,
                                        uint8_t* output);

// Crops of small images in memory, see small_images.h: `images` of them with table_side each, and
// six numbers of plan for each of `count` crops. Returns 0 where a plan reaches outside.
FAST_LOADER_API int32_t fast_loader_small_crops(
    const uint32_t* pixels, int64_t images, int32_t table_side, const int64_t* plan, int64_t count,
    int32_t side, int32_t cutout, uint32_t mean, const float* scale, const float* shift,
    int32_t channels_last, int32_t threads, float* output);

// Frees a batch whose last stage has been waited for.
FAST_LOADER_API void fast_loader_free(fast_loader::Batch* batch);
