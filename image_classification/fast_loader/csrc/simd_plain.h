// SPDX-FileCopyrightText: The image classification package authors
// SPDX-License-Identifier: Apache-2.0
// Eight numbers of 16 bits without any instruction set: the meaning of each operation. The other
// simd_*.h give the same results, bit for bit, with more numbers at a time.
#pragma once

#include <cstdint>

namespace fast_loader {
namespace {

struct I16 {
    static constexpr int kLanes = 8;
    static constexpr int kParts = 1;  // a part: eight lanes
    int16_t v[8];

    static I16 load(const int16_t* p) { return repeat_part(p); }
    // Part i comes from p + i * distance.
    static I16 load_parts(const int16_t* p, int) { return repeat_part(p); }
    static I16 repeat_part(const int16_t* p) {
        return each([&](int i) { return p[i]; });
    }
    static I16 set(int value) {
        return each([&](int) { return value; });
    }

    void store_part(int16_t* p, int) const {
        for (int i = 0; i < 8; ++i) p[i] = v[i];
    }

    // Modulo 2^16.
    friend I16 operator+(I16 a, I16 b) {
        return each([&](int i) { return a.v[i] + b.v[i]; });
    }
    friend I16 operator-(I16 a, I16 b) {
        return each([&](int i) { return a.v[i] - b.v[i]; });
    }
    friend I16 operator*(I16 a, I16 b) {
        return each([&](int i) { return a.v[i] * b.v[i]; });
    }
    static I16 add_saturated(I16 a, I16 b) {
        return each([&](int i) { return limited(a.v[i] + b.v[i], -32768, 32767); });
    }
    // a * b / 2^15, rounded.
    static I16 multiply_high(I16 a, I16 b) {
        return each([&](int i) { return (a.v[i] * b.v[i] + (1 << 14)) >> 15; });
    }
    static I16 clamp(I16 a, I16 low, I16 high) {
        return each([&](int i) { return limited(a.v[i], low.v[i], high.v[i]); });
    }
    template <int kBits>
    I16 shift_left() const {
        return each([&](int i) { return static_cast<int>(static_cast<unsigned>(v[i]) << kBits); });
    }
    template <int kBits>
    I16 shift_right() const {
        return each([&](int i) { return v[i] >> kBits; });
    }

    // Within each part: lane i of number j becomes lane j of number i.
    static void transpose(I16 (&r)[8]) {
        for (int i = 0; i < 8; ++i) {
            for (int j = 0; j < i; ++j) {
                const int16_t kept = r[i].v[j];
                r[i].v[j] = r[j].v[i];
                r[j].v[i] = kept;
            }
        }
    }

    // Values -128 .. 127, saturated, become bytes 0 .. 255 of interleaved pixels.
    static void store_rgb(uint8_t* p, I16 red, I16 green, I16 blue) {
        for (int i = 0; i < 8; ++i) {
            *p++ = byte_of(red.v[i]);
            *p++ = byte_of(green.v[i]);
            *p++ = byte_of(blue.v[i]);
        }
    }

private:
    template <class Function>
    static I16 each(Function function) {
        I16 result;
        for (int i = 0; i < 8; ++i) result.v[i] = static_cast<int16_t>(function(i));
        return result;
    }

    static int limited(int value, int low, int high) {
        return value < low ? low : value > high ? high : value;
    }

    static uint8_t byte_of(int value) {
        return static_cast<uint8_t>(limited(value, -128, 127) + 128);
    }
};

}  // namespace
}  // namespace fast_loader
