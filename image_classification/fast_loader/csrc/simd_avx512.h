// SPDX-FileCopyrightText: The image classification package authors
// SPDX-License-Identifier: Apache-2.0
// 32 numbers of 16 bits in an AVX-512 register (F, BW, VL, VBMI); simd_plain.h says what each
// operation does.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace fast_loader {
namespace {

// Red and green, 32 bytes each, are 0-63 of a pair of registers, blue is 64-95: where the bytes of
// 32 pixels come from.
struct PixelOrder {
    alignas(64) uint8_t index[128] = {};
    constexpr PixelOrder() {
        for (int i = 0; i < 96; ++i) index[i] = static_cast<uint8_t>(i % 3 * 32 + i / 3);
    }
};
constexpr PixelOrder kPixelOrder;

struct I16 {
    static constexpr int kLanes = 32;
    static constexpr int kParts = 4;
    __m512i v;

    static I16 load(const int16_t* p) { return {_mm512_loadu_si512(p)}; }
    static I16 load_parts(const int16_t* p, int distance) {
        const __m256i low = _mm256_inserti128_si256(_mm256_castsi128_si256(part_at(p)),
                                                    part_at(p + distance), 1);
        const __m256i high = _mm256_inserti128_si256(
            _mm256_castsi128_si256(part_at(p + 2 * distance)), part_at(p + 3 * distance), 1);
        return {_mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1)};
    }
    static I16 repeat_part(const int16_t* p) { return {_mm512_broadcast_i32x4(part_at(p))}; }
    static I16 set(int value) { return {_mm512_set1_epi16(static_cast<int16_t>(value))}; }

    void store_part(int16_t* p, int part) const {
        auto* to = reinterpret_cast<__m128i*>(p);
        if (part == 0) _mm_storeu_si128(to, _mm512_castsi512_si128(v));
        if (part == 1) _mm_storeu_si128(to, _mm512_extracti32x4_epi32(v, 1));
        if (part == 2) _mm_storeu_si128(to, _mm512_extracti32x4_epi32(v, 2));
        if (part == 3) _mm_storeu_si128(to, _mm512_extracti32x4_epi32(v, 3));
    }

    friend I16 operator+(I16 a, I16 b) { return {_mm512_add_epi16(a.v, b.v)}; }
    friend I16 operator-(I16 a, I16 b) { return {_mm512_sub_epi16(a.v, b.v)}; }
    friend I16 operator*(I16 a, I16 b) { return {_mm512_mullo_epi16(a.v, b.v)}; }
    static I16 add_saturated(I16 a, I16 b) { return {_mm512_adds_epi16(a.v, b.v)}; }
    static I16 multiply_high(I16 a, I16 b) { return {_mm512_mulhrs_epi16(a.v, b.v)}; }
    static I16 clamp(I16 a, I16 low, I16 high) {
        return {_mm512_min_epi16(_mm512_max_epi16(a.v, low.v), high.v)};
    }
    template <int kBits>
    I16 shift_left() const {
        return {_mm512_slli_epi16(v, kBits)};
    }
    template <int kBits>
    I16 shift_right() const {
        return {_mm512_srai_epi16(v, kBits)};
    }

    static void transpose(I16 (&r)[8]) {
        __m512i a[8], b[8];
        for (int i = 0; i < 4; ++i) {
            a[2 * i] = _mm512_unpacklo_epi16(r[2 * i].v, r[2 * i + 1].v);
            a[2 * i + 1] = _mm512_unpackhi_epi16(r[2 * i].v, r[2 * i + 1].v);
        }
        for (int i = 0; i < 2; ++i) {
            for (int j = 0; j < 2; ++j) {
                b[4 * i + 2 * j] = _mm512_unpacklo_epi32(a[4 * i + j], a[4 * i + 2 + j]);
                b[4 * i + 2 * j + 1] = _mm512_unpackhi_epi32(a[4 * i + j], a[4 * i + 2 + j]);
            }
        }
        for (int i = 0; i < 4; ++i) {
            r[2 * i].v = _mm512_unpacklo_epi64(b[i], b[i + 4]);
            r[2 * i + 1].v = _mm512_unpackhi_epi64(b[i], b[i + 4]);
        }
    }

    static void store_rgb(uint8_t* p, I16 red, I16 green, I16 blue) {
        const __m256i offset = _mm256_set1_epi8(static_cast<char>(0x80));
        const __m512i rg = _mm512_inserti64x4(_mm512_castsi256_si512(bytes_of(red, offset)),
                                              bytes_of(green, offset), 1);
        const __m512i b = _mm512_castsi256_si512(bytes_of(blue, offset));
        const __m512i first =
            _mm512_permutex2var_epi8(rg, _mm512_load_si512(kPixelOrder.index), b);
        const __m512i second =
            _mm512_permutex2var_epi8(rg, _mm512_load_si512(kPixelOrder.index + 64), b);
        _mm512_storeu_si512(p, first);
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(p + 64), _mm512_castsi512_si256(second));
    }

private:
    static __m128i part_at(const int16_t* p) {
        return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    }

    static __m256i bytes_of(I16 x, __m256i offset) {
        return _mm256_xor_si256(_mm512_cvtsepi16_epi8(x.v), offset);
    }
};

}  // namespace
}  // namespace fast_loader
