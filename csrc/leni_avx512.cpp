// LENI for avx512.
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <limits>
#include <numeric>
#include <type_traits>

#include "bfloat16.h"
#include "leni.h"

#if defined(__x86_64__)
#include <immintrin.h>

#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx2,fma")
#define LENI_ISA_AVX512

namespace leni::avx512 {
#include "simd.h"
#include "product.h"
#include "leni_expand.h"
#include "reborn_expand.h"
#include "leni_folded.h"
#include "gather.h"
#include "leni_training.h"
#include "leni_statistics.h"
#include "leni_weight_gradient.h"
#include "leni_input_gradient.h"
#include "reborn_training.h"
#include "winograd.h"
#include "reborn_convolution.h"
#include "reborn_few.h"
}  // namespace leni::avx512

namespace leni {
const Kernels avx512_kernels{
    &avx512::folded,          &avx512::statistics, &avx512::weight_gradient, &avx512::input_gradient,
    &avx512::branch_gradient, &avx512::deconvolve, &avx512::deconv_gradient, &avx512::few_deconvolve,
    &avx512::few_deconv_gradient};
}  // namespace leni

#endif
