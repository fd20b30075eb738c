// SPDX-FileCopyrightText: The image classification package authors
// SPDX-License-Identifier: Apache-2.0
// Runs the fuzzer's function on the files of a folder and on damaged copies of them, without
// libFuzzer: for the tests. replay FOLDER COPIES
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <vector>

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

namespace {

uint64_t state = 88172645463325252u;

uint64_t next_random() {  // xorshift64 (Marsaglia 2003)
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return state;
}

void damage(std::vector<uint8_t>& bytes) {
    for (uint64_t i = next_random() % 4 + 1; i > 0; --i)
        bytes[next_random() % bytes.size()] = static_cast<uint8_t>(next_random());
    if (next_random() % 8 == 0) bytes.resize(next_random() % bytes.size() + 1);
}

}  // namespace

int main(int argc, char** argv) {
    if (argc != 3) return 2;
    long runs = 0;
    for (const auto& entry : std::filesystem::directory_iterator(argv[1])) {
        std::ifstream file(entry.path(), std::ios::binary);
        const std::vector<uint8_t> bytes((std::istreambuf_iterator<char>(file)), {});
        LLVMFuzzerTestOneInput(bytes.data(), bytes.size());
        ++runs;
        for (int copy = 0; copy < std::atoi(argv[2]); ++copy, ++runs) {
            std::vector<uint8_t> damaged = bytes;
            damage(damaged);
            LLVMFuzzerTestOneInput(damaged.data(), damaged.size());
        }
    }
    std::printf("%ld inputs\n", runs);
    return 0;
}
