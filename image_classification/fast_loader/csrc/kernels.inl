// SPDX-FileCopyrightText: The image classification package authors
// SPDX-License-Identifier: Apache-2.0
// Inverse DCT, resize and colour conversion on I16, the registers of one instruction set.
//
// Included once for each instruction set, after its I16. All arithmetic is on integers of 16 bits
// with the same rounding everywhere, so each set gives the same bytes.
#include <cstring>

#include "kernels.h"

namespace fast_loader {
namespace {

// ---- inverse DCT ------------------------------------------------------------------------------
//
// The fast transform of Arai, Agui and Nakajima (1988; Pennebaker and Mitchell 1993, section 4.3).
// Its scale factors are part of ScaledQuant. Values have 5 fractional bits: samples reach +-128,
// sums on the way a few times as much.
constexpr int kDctBits = 5;

// x * (whole + fraction), |fraction| < 1 in units of 2^-15.
constexpr int kFraction_0_414 = 13573;  // sqrt(2) - 1
constexpr int kFraction_0_848 = 27779;  // 2 cos(pi/8) - 1
constexpr int kFraction_0_082 = 2701;   // 2 (cos(pi/8) - cos(3 pi/8)) - 1
constexpr int kFraction_0_613 = 20091;  // 2 (cos(pi/8) + cos(3 pi/8)) - 2

inline I16 times_fraction(I16 x, int fraction) {
    return I16::multiply_high(x, I16::set(fraction));
}

// Eight frequencies to eight samples, in each lane.
inline void dct_8(I16 (&r)[8]) {
    const I16 sum_04 = r[0] + r[4], difference_04 = r[0] - r[4];
    const I16 sum_26 = r[2] + r[6], difference_26 = r[2] - r[6];
    const I16 rotated_26 = difference_26 + times_fraction(difference_26, kFraction_0_414) - sum_26;
    const I16 even_0 = sum_04 + sum_26, even_3 = sum_04 - sum_26;
    const I16 even_1 = difference_04 + rotated_26, even_2 = difference_04 - rotated_26;

    const I16 sum_53 = r[5] + r[3], difference_53 = r[5] - r[3];
    const I16 sum_17 = r[1] + r[7], difference_17 = r[1] - r[7];
    const I16 odd_7 = sum_17 + sum_53;
    const I16 inner = sum_17 - sum_53;
    const I16 rotated = inner + times_fraction(inner, kFraction_0_414);
    const I16 both = difference_53 + difference_17;
    const I16 z5 = both + times_fraction(both, kFraction_0_848);
    const I16 low = z5 - difference_17 - times_fraction(difference_17, kFraction_0_082);
    const I16 high = z5 - difference_53 - difference_53 -
                     times_fraction(difference_53, kFraction_0_613);
    const I16 odd_6 = high - odd_7;
    const I16 odd_5 = rotated - odd_6;
    const I16 odd_4 = low - odd_5;

    r[0] = even_0 + odd_7;
    r[7] = even_0 - odd_7;
    r[1] = even_1 + odd_6;
    r[6] = even_1 - odd_6;
    r[2] = even_2 + odd_5;
    r[5] = even_2 - odd_5;
    r[3] = even_3 + odd_4;
    r[4] = even_3 - odd_4;
}

// Whole samples, as decoders deliver them: what was rounded there must be rounded here.
inline I16 finish_sample(I16 x) {
    const I16 whole = (x + I16::set(1 << (kDctBits - 1))).template shift_right<kDctBits>();
    return I16::clamp(whole, I16::set(-128), I16::set(127)).template shift_left<kSampleBits>();
}

// Four samples, each the mean of two that dct_8 would give; two, each the mean of four; and the mean
// of all. The scale factors cancel what averaging takes from a frequency, so that frequency u adds
// r[u] cos((2 i + 1) u pi / 8), and 8 - u is the mirror image of u.
constexpr int kCos_1_8 = 30274;     // cos(pi / 8)
constexpr int kCos_2_8 = 23170;     // cos(2 pi / 8)
constexpr int kCos_3_8 = 12540;     // cos(3 pi / 8)
constexpr int kMeanOfFour_1 = 21407;  // cos(pi / 4) cos(pi / 8)
constexpr int kMeanOfFour_3 = 8867;   // cos(pi / 4) cos(3 pi / 8)

inline void dct_4(I16 (&r)[8]) {
    const I16 first = r[1] - r[7], second = r[2] - r[6], third = r[3] - r[5];
    const I16 even = times_fraction(second, kCos_2_8);
    const I16 outer = times_fraction(first, kCos_1_8) + times_fraction(third, kCos_3_8);
    const I16 inner = times_fraction(first, kCos_3_8) - times_fraction(third, kCos_1_8);
    const I16 mean = r[0];
    r[0] = mean + even + outer;
    r[1] = mean - even + inner;
    r[2] = mean - even - inner;
    r[3] = mean + even - outer;
}

inline void dct_2(I16 (&r)[8]) {
    const I16 half = times_fraction(r[1] - r[7], kMeanOfFour_1) -
                     times_fraction(r[3] - r[5], kMeanOfFour_3);
    const I16 mean = r[0];
    r[0] = mean + half;
    r[1] = mean - half;
}

template <int kSize>
inline void dct(I16 (&r)[8]) {
    if (kSize == 8) dct_8(r);
    if (kSize == 4) dct_4(r);
    if (kSize == 2) dct_2(r);
}

// Stores the first kSize lanes of a part.
template <int kSize>
inline void store_samples(I16 x, int part, int16_t* to) {
    if (kSize == 8) {
        x.store_part(to, part);
        return;
    }
    int16_t lanes[8];
    x.store_part(lanes, part);
    std::memcpy(to, lanes, kSize * sizeof(int16_t));
}

template <int kSize>
void inverse_dct_sized(const int16_t* blocks, int count, const ScaledQuant& quant, Strip strip) {
    for (int block = 0; block < count; block += I16::kParts) {
        const int16_t* coefficients = blocks + block * kBlockSize;
        I16 r[8];
        for (int row = 0; row < 8; ++row) {
            const I16 raw = I16::load_parts(coefficients + row * 8, kBlockSize);
            const I16 dequantised = raw * I16::repeat_part(&quant.steps[row * 8]);
            r[row] = I16::multiply_high(dequantised, I16::repeat_part(&quant.scales[row * 8]));
        }
        dct<kSize>(r);
        I16::transpose(r);
        dct<kSize>(r);
        int16_t* to = strip.samples + block * kSize * I16::kLanes + strip.lane;
        for (int x = 0; x < kSize; ++x) {
            const I16 sample = finish_sample(r[x]);
            for (int part = 0; part < I16::kParts; ++part)
                store_samples<kSize>(sample, part, to + (part * kSize + x) * I16::kLanes);
        }
    }
}

void inverse_dct(const int16_t* blocks, int count, int size, const ScaledQuant& quant,
                 Strip strip) {
    if (size == 8) inverse_dct_sized<8>(blocks, count, quant, strip);
    if (size == 4) inverse_dct_sized<4>(blocks, count, quant, strip);
    if (size == 2) inverse_dct_sized<2>(blocks, count, quant, strip);
    if (size == 1) inverse_dct_sized<1>(blocks, count, quant, strip);
}

// ---- resize -----------------------------------------------------------------------------------

void resize_columns(const int16_t* strip, int origin, const TapsView& taps, int y,
                    const LineRing& ring) {
    for (int group = 0; group < taps.outputs; group += kTapsGroup) {
        I16 r[8];
        for (int i = 0; i < kTapsGroup; ++i) {
            const int output = group + i;
            const int16_t* sample = strip + (taps.first[output] - origin) * I16::kLanes;
            const int16_t* weight = &taps.weights[output * taps.stride];
            I16 sum = I16::set(0);
            for (int j = 0; j < taps.count[output]; ++j, sample += I16::kLanes)
                sum = I16::add_saturated(
                    sum, I16::multiply_high(I16::load(sample), I16::set(weight[j])));
            r[i] = taps.halved ? I16::add_saturated(sum, sum) : sum;
        }
        I16::transpose(r);
        for (int part = 0; part < I16::kParts; ++part) {
            for (int i = 0; i < 8; ++i) r[i].store_part(ring.line(y + part * 8 + i) + group, part);
        }
    }
}

inline I16 weigh_lines(const LineInputs& inputs, int x) {
    I16 sum = I16::set(0);
    for (int j = 0; j < inputs.count; ++j)
        sum = I16::add_saturated(sum, I16::multiply_high(I16::load(inputs.lines[j] + x),
                                                         I16::set(inputs.weights[j])));
    return inputs.halved ? I16::add_saturated(sum, sum) : sum;
}

// ---- colours ----------------------------------------------------------------------------------

// ITU-R BT.601 as JFIF 1.02 uses it: what exceeds whole multiples, in units of 2^-15.
constexpr int kRedCr = 13173;     // 1.402 - 1
constexpr int kGreenCb = -11277;  // -0.344136
constexpr int kGreenCr = -23401;  // -0.714136
constexpr int kBlueCb = 25297;    // 1.772 - 1

inline I16 round_sample(I16 x) {
    return I16::add_saturated(x, I16::set(1 << (kSampleBits - 1)))
        .template shift_right<kSampleBits>();
}

inline void write_pixels(const LineInputs* planes, int num_planes, int x, uint8_t* rgb) {
    const I16 luma = weigh_lines(planes[0], x);
    if (num_planes == 1) {
        const I16 gray = round_sample(luma);
        I16::store_rgb(rgb, gray, gray, gray);
        return;
    }
    const I16 cb = weigh_lines(planes[1], x), cr = weigh_lines(planes[2], x);
    const I16 red = I16::add_saturated(
        luma, I16::add_saturated(cr, times_fraction(cr, kRedCr)));
    const I16 green = I16::add_saturated(
        luma, times_fraction(cb, kGreenCb) + times_fraction(cr, kGreenCr));
    const I16 blue = I16::add_saturated(
        luma, I16::add_saturated(cb, times_fraction(cb, kBlueCb)));
    I16::store_rgb(rgb, round_sample(red), round_sample(green), round_sample(blue));
}

void write_line(const LineInputs* planes, int num_planes, int width, uint8_t* rgb) {
    int x = 0;
    for (; x + I16::kLanes <= width; x += I16::kLanes)
        write_pixels(planes, num_planes, x, rgb + x * 3);
    if (x == width) return;
    uint8_t rest[I16::kLanes * 3];
    write_pixels(planes, num_planes, x, rest);
    std::memcpy(rgb + x * 3, rest, static_cast<size_t>(width - x) * 3);
}

}  // namespace
}  // namespace fast_loader
