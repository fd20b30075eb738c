// SPDX-FileCopyrightText: The image classification package authors
// SPDX-License-Identifier: Apache-2.0
// Eight numbers of 16 bits in a NEON register (aarch64); simd_plain.h says what each operation does.
#pragma once

#include <arm_neon.h>

#include <cstdint>

namespace fast_loader {
namespace {

struct I16 {
    static constexpr int kLanes = 8;
    static constexpr int kParts = 1;
    int16x8_t v;

    static I16 load(const int16_t* p) { return {vld1q_s16(p)}; }
    static I16 load_parts(const int16_t* p, int) { return load(p); }
    static I16 repeat_part(const int16_t* p) { return load(p); }
    static I16 set(int value) { return {vdupq_n_s16(static_cast<int16_t>(value))}; }

    void store_part(int16_t* p, int) const { vst1q_s16(p, v); }

    friend I16 operator+(I16 a, I16 b) { return {vaddq_s16(a.v, b.v)}; }
    friend I16 operator-(I16 a, I16 b) { return {vsubq_s16(a.v, b.v)}; }
    friend I16 operator*(I16 a, I16 b) { return {vmulq_s16(a.v, b.v)}; }
    static I16 add_saturated(I16 a, I16 b) { return {vqaddq_s16(a.v, b.v)}; }
    // Differs from the other sets for -32768 * -32768 alone; no factor here is -32768.
    static I16 multiply_high(I16 a, I16 b) { return {vqrdmulhq_s16(a.v, b.v)}; }
    static I16 clamp(I16 a, I16 low, I16 high) {
        return {vminq_s16(vmaxq_s16(a.v, low.v), high.v)};
    }
    template <int kBits>
    I16 shift_left() const {
        return {vshlq_n_s16(v, kBits)};
    }
    template <int kBits>
    I16 shift_right() const {
        return {vshrq_n_s16(v, kBits)};
    }

    static void transpose(I16 (&r)[8]) {
        int16x8_t a[8], b[8];
        for (int i = 0; i < 8; i += 2) {
            a[i] = vtrn1q_s16(r[i].v, r[i + 1].v);
            a[i + 1] = vtrn2q_s16(r[i].v, r[i + 1].v);
        }
        for (int i = 0; i < 8; i += 4) {
            for (int j = i; j < i + 2; ++j) {
                const int32x4_t low = vreinterpretq_s32_s16(a[j]);
                const int32x4_t high = vreinterpretq_s32_s16(a[j + 2]);
                b[j] = vreinterpretq_s16_s32(vtrn1q_s32(low, high));
                b[j + 2] = vreinterpretq_s16_s32(vtrn2q_s32(low, high));
            }
        }
        for (int i = 0; i < 4; ++i) {
            const int64x2_t low = vreinterpretq_s64_s16(b[i]);
            const int64x2_t high = vreinterpretq_s64_s16(b[i + 4]);
            r[i].v = vreinterpretq_s16_s64(vtrn1q_s64(low, high));
            r[i + 4].v = vreinterpretq_s16_s64(vtrn2q_s64(low, high));
        }
    }

    static void store_rgb(uint8_t* p, I16 red, I16 green, I16 blue) {
        vst3_u8(p, {{byte_of(red), byte_of(green), byte_of(blue)}});
    }

private:
    static uint8x8_t byte_of(I16 x) {
        return veor_u8(vreinterpret_u8_s8(vqmovn_s16(x.v)), vdup_n_u8(0x80));
    }
};

}  // namespace
}  // namespace fast_loader
