// SPDX-FileCopyrightText: The image classification package authors
// SPDX-License-Identifier: Apache-2.0
#include "taps.h"

#include <algorithm>
#include <cmath>
#include <cstdint>

namespace fast_loader {

namespace {

double filter_support(Filter filter) { return filter == Filter::kBilinear ? 1.0 : 2.0; }

double filter_value(Filter filter, double x) {
    x = std::fabs(x);
    if (filter == Filter::kBilinear) return x < 1.0 ? 1.0 - x : 0.0;
    // Keys 1981, "Cubic convolution interpolation for digital image processing", a = -0.5.
    constexpr double a = -0.5;
    if (x < 1.0) return ((a + 2.0) * x - (a + 3.0)) * x * x + 1.0;
    if (x < 2.0) return (((x - 5.0) * x + 8.0) * x - 4.0) * a;
    return 0.0;
}

// The weights of one output over the pixels first .. first + values.size() - 1.
struct PixelWeights {
    int first = 0;
    std::vector<double> values;
};

void weigh_pixels(Filter filter, const Stretch& stretch, int output, PixelWeights& weights) {
    const double step = (stretch.end - stretch.begin) / stretch.outputs;
    const double filter_scale = std::max(step, 1.0);  // below 1 the image is enlarged
    const double support = filter_support(filter) * filter_scale;
    const double center = stretch.begin + (output + 0.5) * step;
    const int first = std::max(static_cast<int>(std::floor(center - support + 0.5)),
                               stretch.bound_begin);
    const int end = std::min(static_cast<int>(std::floor(center + support + 0.5)),
                             stretch.bound_end);
    weights.first = first;
    weights.values.clear();
    double sum = 0.0;
    const double inverse = 1.0 / filter_scale;
    for (int pixel = first; pixel < end; ++pixel) {
        const double weight = filter_value(filter, (pixel - center + 0.5) * inverse);
        weights.values.push_back(weight);
        sum += weight;
    }
    if (sum == 0.0) {  // no pixel within reach: the nearest one
        weights.first = std::clamp(static_cast<int>(center), stretch.bound_begin,
                                   stretch.bound_end - 1);
        weights.values.assign(1, 1.0);
        return;
    }
    for (double& weight : weights.values) weight /= sum;
}

// Pixel 2s lies between samples s - 1 and s, pixel 2s + 1 between s and s + 1: a quarter comes from
// the neighbour ("fancy upsampling" of libjpeg). The edge repeats.
void gather_samples(const PlaneAxis& plane, PixelWeights& weights, std::vector<double>& samples) {
    const int last_pixel = weights.first + static_cast<int>(weights.values.size()) - 1;
    const int last_sample = plane.size - 1;
    const int first = std::max((weights.first - 1) >> 1, 0);
    const int end = std::min((last_pixel + 1) >> 1, last_sample) + 1;
    samples.assign(static_cast<size_t>(end - first), 0.0);
    for (int pixel = weights.first; pixel <= last_pixel; ++pixel) {
        const double weight = weights.values[static_cast<size_t>(pixel - weights.first)];
        const int sample = std::min(pixel >> 1, last_sample);
        const int neighbour = std::clamp(sample + ((pixel & 1) != 0 ? 1 : -1), 0, last_sample);
        samples[static_cast<size_t>(sample - first)] += 0.75 * weight;
        samples[static_cast<size_t>(neighbour - first)] += 0.25 * weight;
    }
    weights.first = first;
    weights.values.swap(samples);
}

// Rounds to multiples of 1 / one whose sum is exactly 1: the largest one takes the rest. Returns
// whether all of them fit into 16 bits; a single weight of 1 may be too small by one unit.
bool quantise(const std::vector<double>& weights, int one, int16_t* quantised) {
    constexpr int limit = INT16_MAX;
    int rest = one;
    size_t largest = 0;
    for (size_t i = 0; i < weights.size(); ++i) {
        const int value = std::min(static_cast<int>(std::lrint(weights[i] * one)), limit);
        quantised[i] = static_cast<int16_t>(value);
        rest -= value;
        if (weights[i] > weights[largest]) largest = i;
    }
    const int value = quantised[largest] + rest;
    quantised[largest] = static_cast<int16_t>(std::min(value, limit));
    return value <= limit + 1;
}

}  // namespace

void Taps::build(Filter filter, const Stretch& stretch, const PlaneAxis& plane) {
    halved = false;
    if (fill(filter, stretch, plane)) return;
    halved = true;
    fill(filter, stretch, plane);
}

bool Taps::fill(Filter filter, const Stretch& stretch, const PlaneAxis& plane) {
    const int one = 1 << (kWeightBits - (halved ? 1 : 0));
    bool fits = true;
    outputs = stretch.outputs;
    const double step = std::max((stretch.end - stretch.begin) / outputs, 1.0);
    stride = static_cast<int>(std::ceil(filter_support(filter) * step)) * 2 + 3;
    const auto padded = static_cast<size_t>((outputs + kTapsGroup - 1) / kTapsGroup * kTapsGroup);
    first.assign(padded, 0);
    count.assign(padded, 0);
    weights.assign(padded * static_cast<size_t>(stride), 0);
    begin = plane.size;
    end = 0;
    PixelWeights pixels;
    std::vector<double> samples;
    for (int i = 0; i < outputs; ++i) {
        weigh_pixels(filter, stretch, i, pixels);
        if (plane.subsampling == 2) gather_samples(plane, pixels, samples);
        const auto at = static_cast<size_t>(stretch.mirrored ? outputs - 1 - i : i);
        first[at] = pixels.first;
        count[at] = static_cast<int32_t>(pixels.values.size());
        fits &= quantise(pixels.values, one, &weights[at * static_cast<size_t>(stride)]);
        begin = std::min(begin, pixels.first);
        end = std::max(end, pixels.first + count[at]);
    }
    // Where nothing is needed the place must still lie within the samples.
    std::fill(first.begin() + outputs, first.end(), begin);
    return fits;
}

}  // namespace fast_loader
