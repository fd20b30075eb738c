// SPDX-FileCopyrightText: The image classification package authors
// SPDX-License-Identifier: Apache-2.0
// Feeds the JPEG decoder with anything: a libFuzzer target; see run_fuzzer.sh.
//
// The first 16 bytes choose crop, size, filter and instruction set; the rest is the file. Two files
// are decoded in turns, the input and a copy that starts elsewhere, as the loader's threads do.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <vector>

#include "crop_decoder.h"
#include "jpeg_header.h"
#include "kernels.h"

using namespace fast_loader;

namespace {

constexpr int kMaxSide = 64;

// Ends the file exactly where the decoder must stop to read.
std::unique_ptr<uint8_t[]> exact_copy(const uint8_t* data, size_t size) {
    std::unique_ptr<uint8_t[]> copy(new uint8_t[size]);
    for (size_t i = 0; i < size; ++i) copy[i] = data[i];
    return copy;
}

CropRequest request_of(const uint8_t* choice, int width, int height, uint8_t* output) {
    CropRequest request;
    request.bound_right = width;
    request.bound_bottom = height;
    const double x0 = choice[0] / 256.0 * width, y0 = choice[1] / 256.0 * height;
    request.left = x0;
    request.top = y0;
    request.right = x0 + (choice[2] + 1) / 256.0 * (width - x0);
    request.bottom = y0 + (choice[3] + 1) / 256.0 * (height - y0);
    if ((choice[4] & 1) != 0) {  // as in training: whole pixels, nothing from beyond the box
        request.left = request.bound_left = static_cast<int>(x0);
        request.top = request.bound_top = static_cast<int>(y0);
        request.right = request.bound_right = static_cast<int>(request.right) + 1;
        request.bottom = request.bound_bottom = static_cast<int>(request.bottom) + 1;
        if (request.bound_right > width) request.right = request.bound_right = width;
        if (request.bound_bottom > height) request.bottom = request.bound_bottom = height;
    }
    request.width = choice[5] % kMaxSide + 1;
    request.height = choice[6] % kMaxSide + 1;
    request.filter = (choice[4] & 2) != 0 ? Filter::kBicubic : Filter::kBilinear;
    request.flip = (choice[4] & 4) != 0;
    request.output = output;
    return request;
}

const Kernels& kernels_of(uint8_t choice) {
    const Kernels* const* available = available_kernels();
    int count = 0;
    while (available[count] != nullptr) ++count;
    return *available[choice % count];
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    if (size < 16) return 0;
    const uint8_t* choice = data;
    data += 16;
    size -= 16;
    const auto file = exact_copy(data, size);
    int width = 0, height = 0;
    if (read_size(file.get(), size, width, height) != Status::kOk) return 0;
    if (static_cast<int64_t>(width) * height > 1 << 24) return 0;  // the loader's limit, smaller
    const Kernels& kernels = kernels_of(choice[7]);
    CropDecoder first(kernels), second(kernels);
    std::vector<uint8_t> outputs[2];
    CropDecoder* decoders[2] = {&first, &second};
    bool runs[2];
    for (int i = 0; i < 2; ++i) {
        CropRequest request = request_of(choice + i * 8 * (choice[8] & 1), width, height, nullptr);
        outputs[i].resize(static_cast<size_t>(request.width) * request.height * 3);
        request.output = outputs[i].data();
        runs[i] = decoders[i]->start(file.get(), size, request) == Status::kOk;
    }
    while (runs[0] || runs[1]) {
        if (runs[0] && runs[1]) {
            kernels.decode_two(first.lane(), second.lane());
        } else {
            kernels.decode_one(decoders[runs[0] ? 0 : 1]->lane());
        }
        for (int i = 0; i < 2; ++i) {
            if (runs[i] && decoders[i]->lane().stopped()) runs[i] = decoders[i]->advance();
        }
    }
    // The same file and crop must give the same result, whatever runs beside it.
    if ((choice[8] & 1) == 0 && first.status() != second.status()) std::abort();
    if ((choice[8] & 1) == 0 && first.status() == Status::kOk && outputs[0] != outputs[1])
        std::abort();
    return 0;
}
