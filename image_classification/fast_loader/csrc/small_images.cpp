// SPDX-FileCopyrightText: The image classification package authors
// SPDX-License-Identifier: Apache-2.0
#include "small_images.h"

#include <algorithm>
#include <system_error>
#include <thread>
#include <vector>

namespace fast_loader {

namespace {

constexpr int kMaxSide = 256;
// Fewer crops than this are not worth a thread.
constexpr int64_t kCropsPerThread = 32;

bool is_valid(const PixelTable& table, const CropPlan& plan, int side) {
    const int64_t room = table.side - side;
    return plan.image >= 0 && plan.image < table.images && plan.top >= 0 && plan.top <= room &&
           plan.left >= 0 && plan.left <= room;
}

// One line of the crop as pixels: from the table, flipped, with its part of the cutout.
void gather_line(const uint32_t* from, const CropPlan& plan, const CropFormat& format, int y,
                 uint32_t* line) {
    const int side = format.side;
    if (plan.flip != 0) {
        std::reverse_copy(from, from + side, line);
    } else {
        std::copy(from, from + side, line);
    }
    if (format.cutout == 0) return;
    const auto first = [&](int64_t centre) { return centre - format.cutout / 2; };
    if (y < first(plan.row) || y >= first(plan.row) + format.cutout) return;
    const int64_t begin = std::max<int64_t>(first(plan.column), 0);
    const int64_t end = std::min<int64_t>(first(plan.column) + format.cutout, side);
    for (int64_t x = begin; x < end; ++x) line[x] = format.mean;
}

template <int kChannel>
void write_channel(const uint32_t* line, int side, int step, float scale, float shift,
                   float* output) {
    for (int x = 0; x < side; ++x) {
        const auto value = static_cast<int32_t>((line[x] >> (8 * kChannel)) & 0xFF);
        output[x * step] = static_cast<float>(value) * scale + shift;
    }
}

void write_crop(const PixelTable& table, const CropPlan& plan, const CropFormat& format,
                float* output) {
    const int side = format.side;
    const int step = format.channels_last ? 3 : 1;                   // between neighbours
    const int plane = format.channels_last ? 1 : side * side;        // between channels
    const int row = format.channels_last ? 3 * side : side;          // between lines
    const uint32_t* from = table.pixels + (plan.image * table.side + plan.top) * table.side;
    uint32_t line[kMaxSide];
    for (int y = 0; y < side; ++y, from += table.side) {
        gather_line(from + plan.left, plan, format, y, line);
        float* to = output + y * row;
        const float *scale = format.scale, *shift = format.shift;
        write_channel<0>(line, side, step, scale[0], shift[0], to);
        write_channel<1>(line, side, step, scale[1], shift[1], to + plane);
        write_channel<2>(line, side, step, scale[2], shift[2], to + 2 * plane);
    }
}

}  // namespace

bool small_crops(const PixelTable& table, const CropPlan* plans, int64_t count,
                 const CropFormat& format, int threads, float* output) {
    const int side = format.side;
    if (side < 1 || side > kMaxSide || side > table.side || format.cutout < 0) return false;
    for (int64_t i = 0; i < count; ++i)
        if (!is_valid(table, plans[i], side)) return false;
    const auto write = [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i)
            write_crop(table, plans[i], format, output + i * 3 * side * side);
    };
    const int64_t parts = std::clamp<int64_t>(count / kCropsPerThread, 1, std::max(threads, 1));
    std::vector<std::thread> others;
    int64_t done = 0;
    try {
        for (int64_t part = 0; part + 1 < parts; ++part) {
            const int64_t end = count * (part + 1) / parts;
            others.emplace_back(write, done, end);
            done = end;
        }
    } catch (const std::system_error&) {  // no more threads: this one does the rest
    }
    write(done, count);
    for (std::thread& other : others) other.join();
    return true;
}

}  // namespace fast_loader
