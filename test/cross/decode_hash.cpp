// SPDX-FileCopyrightText: The image classification package authors
// SPDX-License-Identifier: Apache-2.0
// Decodes files with every set of kernels and prints one hash per set: to compare processors.
#include <cstdint>
#include <cstdio>
#include <fstream>
#include <iterator>
#include <vector>

#include "crop_decoder.h"
#include "jpeg_header.h"
#include "kernels.h"

using namespace fast_loader;

namespace {

struct Hash {  // FNV-1a
    uint64_t value = 14695981039346656037u;
    void add(uint8_t byte) { value = (value ^ byte) * 1099511628211u; }
};

// Adds the pixels of one crop to the hash. Returns whether it could be decoded.
bool add_crop(const Kernels& kernels, const std::vector<uint8_t>& file, int side, bool flip,
              Hash& hash) {
    int width = 0, height = 0;
    if (read_size(file.data(), file.size(), width, height) != Status::kOk) return false;
    std::vector<uint8_t> output(static_cast<size_t>(side) * static_cast<size_t>(side) * 3);
    CropRequest request;
    request.left = width * 0.1;
    request.top = height * 0.05;
    request.right = width * 0.9;
    request.bottom = height * 0.95;
    request.bound_right = width;
    request.bound_bottom = height;
    request.width = request.height = side;
    request.flip = flip;
    request.filter = flip ? Filter::kBicubic : Filter::kBilinear;
    request.output = output.data();
    CropDecoder decoder(kernels);
    if (decoder.start(file.data(), file.size(), request) != Status::kOk) return false;
    do {
        kernels.decode_one(decoder.lane());
    } while (decoder.advance());
    for (const uint8_t byte : output) hash.add(byte);
    return decoder.status() == Status::kOk;
}

}  // namespace

int main(int argc, char** argv) {
    for (const Kernels* const* kernels = available_kernels(); *kernels != nullptr; ++kernels) {
        Hash hash;
        int decoded = 0;
        for (int i = 1; i < argc; ++i) {
            std::ifstream stream(argv[i], std::ios::binary);
            const std::vector<uint8_t> file((std::istreambuf_iterator<char>(stream)), {});
            for (const int side : {8, 61, 224})
                decoded += add_crop(**kernels, file, side, i % 2 == 0, hash) ? 1 : 0;
        }
        std::printf("%s %016llx %d\n", (*kernels)->name,
                    static_cast<unsigned long long>(hash.value), decoded);
    }
    return 0;
}
