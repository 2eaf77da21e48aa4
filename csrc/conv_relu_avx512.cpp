// ConvReLU for avx512.
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <limits>
#include <numeric>
#include <type_traits>

#include "bfloat16.h"
#include "conv_relu.h"

#if defined(__x86_64__)
#include <immintrin.h>

#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx2,fma")
#define LENI_ISA_AVX512

namespace leni::avx512 {
#include "simd.h"
#include "product.h"
#include "gather.h"
namespace conv_relu {
#include "conv_relu_expand.h"
#include "conv_relu_depthwise.h"
#include "conv_relu_forward.h"
#include "conv_relu_backward.h"
}  // namespace conv_relu
}  // namespace leni::avx512

namespace leni {
const ConvReluKernels avx512_conv_relu_kernels{&avx512::conv_relu::forward,
                                               &avx512::conv_relu::input_gradient,
                                               &avx512::conv_relu::weight_gradient};
}  // namespace leni

#endif
