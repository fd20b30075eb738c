// SPDX-FileCopyrightText: The image classification package authors
// SPDX-License-Identifier: Apache-2.0
#include "kernels.h"

namespace fast_loader {

extern const Kernels kPlainKernels;
#if defined(__x86_64__)
extern const Kernels kAvx2Kernels, kAvx512Kernels;
#endif
#if defined(__aarch64__)
extern const Kernels kNeonKernels;
#endif

const Kernels* const* available_kernels() {
    static const Kernels* const* const available = [] {
        static const Kernels* found[5] = {};
        int count = 0;
#if defined(__x86_64__)
        if (__builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
            __builtin_cpu_supports("avx512vbmi") && __builtin_cpu_supports("bmi2"))
            found[count++] = &kAvx512Kernels;
        if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("bmi2"))
            found[count++] = &kAvx2Kernels;
#endif
#if defined(__aarch64__)
        found[count++] = &kNeonKernels;
#endif
        found[count++] = &kPlainKernels;
        return found;
    }();
    return available;
}

}  // namespace fast_loader
