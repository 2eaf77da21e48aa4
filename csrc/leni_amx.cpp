// LENI for AMX (bfloat16; the other types are AVX-512's).
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <numeric>
#include <type_traits>

#include "bfloat16.h"
#include "leni.h"

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
#include "leni_expand.h"
#include "reborn_expand.h"
#include "leni_folded.h"
}  // namespace leni::amx

namespace leni {
void folded_amx(const FoldedProblem& problem, const Host& host) { amx::folded(problem, host); }
}  // namespace leni

#endif
