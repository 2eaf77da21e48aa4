// The pointwise activations for avx512.
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "bfloat16.h"
#include "pointwise.h"

#if defined(__x86_64__)
#include <immintrin.h>

#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx2,fma")
#define LENI_ISA_AVX512

namespace leni::pointwise::avx512 {
#include "simd.h"
#include "pointwise_kernels.h"
}  // namespace leni::pointwise::avx512

namespace leni::pointwise {
const Kernels avx512_kernels{&avx512::forward, &avx512::backward, &avx512::crelu, &avx512::crelu_backward};
}  // namespace leni::pointwise

#endif
