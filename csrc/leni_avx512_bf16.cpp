// LENI for avx512_bf16.
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <numeric>
#include <type_traits>

#include "bfloat16.h"
#include "leni.h"

#if defined(__x86_64__)
#include <immintrin.h>

#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx2,fma")
#define LENI_ISA_AVX512
#define LENI_ISA_AVX512_BF16

namespace leni::avx512_bf16 {
#include "simd.h"
#include "product.h"
#include "leni_expand.h"
#include "reborn_expand.h"
#include "leni_folded.h"
}  // namespace leni::avx512_bf16

namespace leni {
void folded_avx512_bf16(const FoldedProblem& problem, const Host& host) { avx512_bf16::folded(problem, host); }
}  // namespace leni

#endif
