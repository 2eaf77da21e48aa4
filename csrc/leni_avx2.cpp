// LENI for avx2.
#include <algorithm>
#include <cstdint>
#include <cstring>
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
#include "leni_folded.h"
}  // namespace leni::avx2

namespace leni {
void folded_avx2(const FoldedProblem& problem, const Host& host) { avx2::folded(problem, host); }
}  // namespace leni

#endif
