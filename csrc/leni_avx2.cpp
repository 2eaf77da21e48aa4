// LENI for avx2.
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

#pragma GCC target("avx2,fma")
#define LENI_ISA_AVX2

namespace leni::avx2 {
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
}  // namespace leni::avx2

namespace leni {
const Kernels avx2_kernels{
    &avx2::folded,          &avx2::statistics, &avx2::weight_gradient, &avx2::input_gradient,
    &avx2::branch_gradient, &avx2::deconvolve, &avx2::deconv_gradient, &avx2::few_deconvolve,
    &avx2::few_deconv_gradient};
}  // namespace leni

#endif
