// SPDX-FileCopyrightText: The image classification package authors
// SPDX-License-Identifier: Apache-2.0
// Weights of the antialiased resize along one axis: those of Pillow, applied to one plane.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels.h"

namespace fast_loader {

enum class Filter : int32_t { kBilinear = 0, kBicubic = 1 };

// Weights are fractions of 2^15.
constexpr int kWeightBits = 15;

// Along one axis: which stretch of the image becomes how many pixels.
struct Stretch {
    double begin = 0, end = 0;            // of the box, in pixels
    int bound_begin = 0, bound_end = 0;   // pixels that may contribute
    int outputs = 0;
    bool mirrored = false;
};

// A plane of samples along the same axis.
struct PlaneAxis {
    int subsampling = 1;  // pixels per sample, 1 or 2
    int size = 0;         // samples
};

// For each output the samples it is made of: output i is the sum of
// weights[i * stride + j] * sample[first[i] + j], j < count[i].
struct Taps {
    int outputs = 0;
    int stride = 0;
    int begin = 0, end = 0;  // samples that any output needs
    std::vector<int32_t> first, count;
    std::vector<int16_t> weights;
    // The weights are in units of 2^-14 instead of 2^-15: beside an edge a bicubic one can exceed 1.
    bool halved = false;

    TapsView view() const {
        return {outputs, stride, first.data(), count.data(), weights.data(), halved};
    }

    // Computes the weights. Pixels between two samples are interpolated as libjpeg does, so that
    // the sum over samples equals the sum over pixels.
    void build(Filter filter, const Stretch& stretch, const PlaneAxis& plane);

private:
    // Returns whether all weights fit into their 16 bits.
    bool fill(Filter filter, const Stretch& stretch, const PlaneAxis& plane);
};

}  // namespace fast_loader
