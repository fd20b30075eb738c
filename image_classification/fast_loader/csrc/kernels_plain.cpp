// SPDX-FileCopyrightText: The image classification package authors
// SPDX-License-Identifier: Apache-2.0
// The kernels for any processor.
// clang-format off: I16 comes first
#include "simd_plain.h"
#include "entropy.inl"
#include "kernels.inl"
// clang-format on

namespace fast_loader {

extern const Kernels kPlainKernels = {
    "plain",    I16::kLanes, begin_lane,     decode_one,
    decode_two, inverse_dct, resize_columns, write_line,
};

}  // namespace fast_loader
