// The instruction set that kernels are compiled for.
//
// One source has the kernels of a mechanism, <mechanism>/kernels.cpp. The build compiles it once for each instruction
// set, into objects of their own, and names the set by LENI_KERNELS_ISA; an editor, or whoever compiles a header alone,
// need not. What is between LENI_KERNELS_BEGIN and LENI_KERNELS_END may use the set's instructions. Nothing is included
// there: an inline function of the standard library, compiled for AVX-512, could be the copy that the linker keeps for
// all. For the same reason what is there is in a namespace of the set's, LENI_KERNELS_TARGET.
#pragma once

// Each has what those before it have.
#define LENI_KERNELS_GENERIC 0
#define LENI_KERNELS_AVX2 1
#define LENI_KERNELS_AVX512 2
#define LENI_KERNELS_AVX512_BF16 3
#define LENI_KERNELS_AMX 4

#if !defined(LENI_KERNELS_ISA)
#define LENI_KERNELS_ISA LENI_KERNELS_GENERIC
#endif

// LENI_KERNELS_TABLE is the name of a mechanism's kernels for the set.
#if LENI_KERNELS_ISA == LENI_KERNELS_GENERIC
#define LENI_KERNELS_TARGET generic
#define LENI_KERNELS_TABLE generic_kernels
#elif LENI_KERNELS_ISA == LENI_KERNELS_AVX2
#define LENI_KERNELS_TARGET avx2
#define LENI_KERNELS_TABLE avx2_kernels
#define LENI_KERNELS_FEATURES "avx2,fma,f16c"
#elif LENI_KERNELS_ISA == LENI_KERNELS_AVX512
#define LENI_KERNELS_TARGET avx512
#define LENI_KERNELS_TABLE avx512_kernels
#define LENI_KERNELS_FEATURES "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c"
#elif LENI_KERNELS_ISA == LENI_KERNELS_AVX512_BF16
#define LENI_KERNELS_TARGET avx512_bf16
#define LENI_KERNELS_TABLE avx512_bf16_kernels
#define LENI_KERNELS_FEATURES "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx2,fma,f16c"
#elif LENI_KERNELS_ISA == LENI_KERNELS_AMX
#define LENI_KERNELS_TARGET amx
#define LENI_KERNELS_TABLE amx_kernels
#define LENI_KERNELS_FEATURES "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx2,fma,f16c,amx-tile,amx-bf16"
#else
#error "LENI_KERNELS_ISA is none of the instruction sets"
#endif

// Other machines than x86-64 have generic kernels only: for them the other sets' tables are empty.
#if !defined(__x86_64__) && LENI_KERNELS_ISA != LENI_KERNELS_GENERIC
#undef LENI_KERNELS_ISA
#undef LENI_KERNELS_FEATURES
#define LENI_KERNELS_ISA LENI_KERNELS_GENERIC
#define LENI_KERNELS_ABSENT
#endif

// What a mechanism may have for the set: every kernel; or, beyond AVX-512, those that gain by products of bfloat16, for
// that type alone; or nothing.
#if !defined(LENI_KERNELS_ABSENT) && LENI_KERNELS_ISA <= LENI_KERNELS_AVX512
#define LENI_KERNELS_ALL
#elif !defined(LENI_KERNELS_ABSENT)
#define LENI_KERNELS_BFLOAT16
#endif

#define LENI_KERNELS_PRAGMA(...) _Pragma(#__VA_ARGS__)
#if !defined(LENI_KERNELS_FEATURES)
#define LENI_KERNELS_BEGIN
#define LENI_KERNELS_END
#elif defined(__clang__)
#define LENI_KERNELS_BEGIN_WITH(features) \
  LENI_KERNELS_PRAGMA(clang attribute push(__attribute__((target(features))), apply_to = function))
#define LENI_KERNELS_BEGIN LENI_KERNELS_BEGIN_WITH(LENI_KERNELS_FEATURES)
#define LENI_KERNELS_END LENI_KERNELS_PRAGMA(clang attribute pop)
#else
#define LENI_KERNELS_BEGIN_WITH(features) \
  LENI_KERNELS_PRAGMA(GCC push_options) LENI_KERNELS_PRAGMA(GCC target(features))
#define LENI_KERNELS_BEGIN LENI_KERNELS_BEGIN_WITH(LENI_KERNELS_FEATURES)
#define LENI_KERNELS_END LENI_KERNELS_PRAGMA(GCC pop_options)
#endif
