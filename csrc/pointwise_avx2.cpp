// The pointwise activations for avx2.
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "bfloat16.h"
#include "pointwise.h"

#if defined(__x86_64__)
#include <immintrin.h>

#pragma GCC target("avx2,fma")
#define LENI_ISA_AVX2

namespace leni::pointwise::avx2 {
#include "simd.h"
#include "pointwise_kernels.h"
}  // namespace leni::pointwise::avx2

namespace leni::pointwise {
const Kernels avx2_kernels{&avx2::forward, &avx2::backward, &avx2::crelu, &avx2::crelu_backward};
}  // namespace leni::pointwise

#endif
