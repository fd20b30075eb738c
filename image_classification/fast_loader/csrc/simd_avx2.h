// SPDX-FileCopyrightText: The image classification package authors
// SPDX-License-Identifier: Apache-2.0
// 16 numbers of 16 bits in an AVX2 register; simd_plain.h says what each operation does.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace fast_loader {
namespace {

struct I16 {
    static constexpr int kLanes = 16;
    static constexpr int kParts = 2;
    __m256i v;

    static I16 load(const int16_t* p) {
        return {_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))};
    }
    static I16 load_parts(const int16_t* p, int distance) {
        return {_mm256_inserti128_si256(_mm256_castsi128_si256(part_at(p)), part_at(p + distance),
                                        1)};
    }
    static I16 repeat_part(const int16_t* p) { return {_mm256_broadcastsi128_si256(part_at(p))}; }
    static I16 set(int value) { return {_mm256_set1_epi16(static_cast<int16_t>(value))}; }

    void store_part(int16_t* p, int part) const {
        const __m128i low = _mm256_castsi256_si128(v), high = _mm256_extracti128_si256(v, 1);
        _mm_storeu_si128(reinterpret_cast<__m128i*>(p), part == 0 ? low : high);
    }

    friend I16 operator+(I16 a, I16 b) { return {_mm256_add_epi16(a.v, b.v)}; }
    friend I16 operator-(I16 a, I16 b) { return {_mm256_sub_epi16(a.v, b.v)}; }
    friend I16 operator*(I16 a, I16 b) { return {_mm256_mullo_epi16(a.v, b.v)}; }
    static I16 add_saturated(I16 a, I16 b) { return {_mm256_adds_epi16(a.v, b.v)}; }
    static I16 multiply_high(I16 a, I16 b) { return {_mm256_mulhrs_epi16(a.v, b.v)}; }
    static I16 clamp(I16 a, I16 low, I16 high) {
        return {_mm256_min_epi16(_mm256_max_epi16(a.v, low.v), high.v)};
    }
    template <int kBits>
    I16 shift_left() const {
        return {_mm256_slli_epi16(v, kBits)};
    }
    template <int kBits>
    I16 shift_right() const {
        return {_mm256_srai_epi16(v, kBits)};
    }

    static void transpose(I16 (&r)[8]) {
        __m256i a[8], b[8];
        for (int i = 0; i < 4; ++i) {
            a[2 * i] = _mm256_unpacklo_epi16(r[2 * i].v, r[2 * i + 1].v);
            a[2 * i + 1] = _mm256_unpackhi_epi16(r[2 * i].v, r[2 * i + 1].v);
        }
        for (int i = 0; i < 2; ++i) {
            for (int j = 0; j < 2; ++j) {
                b[4 * i + 2 * j] = _mm256_unpacklo_epi32(a[4 * i + j], a[4 * i + 2 + j]);
                b[4 * i + 2 * j + 1] = _mm256_unpackhi_epi32(a[4 * i + j], a[4 * i + 2 + j]);
            }
        }
        for (int i = 0; i < 4; ++i) {
            r[2 * i].v = _mm256_unpacklo_epi64(b[i], b[i + 4]);
            r[2 * i + 1].v = _mm256_unpackhi_epi64(b[i], b[i + 4]);
        }
    }

    static void store_rgb(uint8_t* p, I16 red, I16 green, I16 blue) {
        const __m256i offset = _mm256_set1_epi8(static_cast<char>(0x80));
        // [red 0-7, green 0-7 | red 8-15, green 8-15]
        const __m256i rg = _mm256_xor_si256(_mm256_packs_epi16(red.v, green.v), offset);
        const __m256i bb = _mm256_xor_si256(_mm256_packs_epi16(blue.v, blue.v), offset);
        store_rgb8(p, _mm256_castsi256_si128(rg), _mm256_castsi256_si128(bb));
        store_rgb8(p + 24, _mm256_extracti128_si256(rg, 1), _mm256_extracti128_si256(bb, 1));
    }

private:
    static __m128i part_at(const int16_t* p) {
        return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    }

    // Eight pixels, 24 bytes.
    static void store_rgb8(uint8_t* p, __m128i rg, __m128i b) {
        constexpr char o = -1;
        const __m128i low = _mm_or_si128(
            _mm_shuffle_epi8(rg, _mm_setr_epi8(0, 8, o, 1, 9, o, 2, 10, o, 3, 11, o, 4, 12, o, 5)),
            _mm_shuffle_epi8(b, _mm_setr_epi8(o, o, 0, o, o, 1, o, o, 2, o, o, 3, o, o, 4, o)));
        const __m128i high = _mm_or_si128(
            _mm_shuffle_epi8(rg, _mm_setr_epi8(13, o, 6, 14, o, 7, 15, o, o, o, o, o, o, o, o, o)),
            _mm_shuffle_epi8(b, _mm_setr_epi8(o, 5, o, o, 6, o, o, 7, o, o, o, o, o, o, o, o)));
        _mm_storeu_si128(reinterpret_cast<__m128i*>(p), low);
        _mm_storel_epi64(reinterpret_cast<__m128i*>(p + 16), high);
    }
};

}  // namespace
}  // namespace fast_loader
