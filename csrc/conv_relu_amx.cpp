// ConvReLU for AMX (bfloat16; the other types are AVX-512's).
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <numeric>
#include <type_traits>

#include "bfloat16.h"
#include "conv_relu.h"

#if defined(__x86_64__)
#include <immintrin.h>

#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx2,fma,amx-tile,amx-bf16")
#define LENI_ISA_AVX512
#define LENI_ISA_AVX512_BF16
#define LENI_ISA_AMX

namespace leni::amx {
#include "simd.h"
#include "product.h"
#include "amx.h"
namespace conv_relu {
#include "conv_relu_expand.h"
#include "conv_relu_depthwise.h"
#include "conv_relu_forward.h"
}  // namespace conv_relu
}  // namespace leni::amx

namespace leni {
void conv_relu_amx(const ConvReluProblem& problem, const Host& host) { amx::conv_relu::forward(problem, host); }
}  // namespace leni

#endif
