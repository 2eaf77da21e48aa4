// ConvReLU for avx512_bf16.
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <numeric>
#include <type_traits>

#include "bfloat16.h"
#include "conv_relu.h"

#if defined(__x86_64__)
#include <immintrin.h>

#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx2,fma")
#define LENI_ISA_AVX512
#define LENI_ISA_AVX512_BF16

namespace leni::avx512_bf16 {
#include "simd.h"
#include "product.h"
namespace conv_relu {
#include "conv_relu_expand.h"
#include "conv_relu_depthwise.h"
#include "conv_relu_forward.h"
}  // namespace conv_relu
}  // namespace leni::avx512_bf16

namespace leni {
void conv_relu_avx512_bf16(const ConvReluProblem& problem, const Host& host) {
  avx512_bf16::conv_relu::forward(problem, host);
}
}  // namespace leni

#endif
