// SPDX-FileCopyrightText: The image classification package authors
// SPDX-License-Identifier: Apache-2.0
// The kernels for AVX2. build.py compiles this file for it.
#if defined(__x86_64__)
// clang-format off: I16 comes first
#include "simd_avx2.h"
#include "entropy.inl"
#include "kernels.inl"
// clang-format on

namespace fast_loader {

extern const Kernels kAvx2Kernels = {
    "avx2",     I16::kLanes, begin_lane,     decode_one,
    decode_two, inverse_dct, resize_columns, write_line,
};

}  // namespace fast_loader

#endif  // __x86_64__
