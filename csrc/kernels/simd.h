// Vectors of float and double, one definition per instruction set: Vec<T>::load, store, fma, positive, negative.
//
// Loads and stores take unaligned pointers. Vec<float> also loads and stores the types of half its bits.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "kernels/half.h"
#include "kernels/target.h"

#if LENI_KERNELS_ISA > LENI_KERNELS_GENERIC
// GCC 12's intrinsics read variables that they leave undefined on purpose.
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"
#if !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <immintrin.h>
#pragma GCC diagnostic pop
#endif

LENI_KERNELS_BEGIN
namespace leni_kernels::inline LENI_KERNELS_TARGET {

template <class T>
struct Vec;

#if LENI_KERNELS_ISA >= LENI_KERNELS_AVX512
constexpr int kVectorRegisters = 32;
#else
constexpr int kVectorRegisters = 16;
#endif

// stream() stores a whole, aligned vector past the caches; streamed() then makes it visible to other threads.
//
// keep() makes the lanes outside a range 0. above() says whether all are above a bound, which a NaN is not. max(x, 0)
// and min(x, 0) are named positive() and negative(), max(x, bound) and min(x, bound) at_least() and at_most(): x is the
// operand that a NaN is taken from. by_sign() is ``positive`` where x > 0, ``negative`` where x < 0, and 0 where x is 0
// or NaN. add_by_bound() adds a value to ``within`` where x ≤ bound, and else, as where x is NaN, to ``above``.

#if LENI_KERNELS_ISA >= LENI_KERNELS_AVX512

// The lanes that a partial load or store touches.
struct Lanes {
  uint32_t mask;
  __mmask16 low() const { return static_cast<__mmask16>(mask); }
  static Lanes range(int64_t first, int64_t last) {
    return {static_cast<uint32_t>(((uint64_t{1} << last) - 1) & ~((uint64_t{1} << first) - 1))};
  }
};

template <>
struct Vec<float> {
  static constexpr int width = 16;
  __m512 v;

  static Vec zero() { return {_mm512_setzero_ps()}; }
  static Vec broadcast(float x) { return {_mm512_set1_ps(x)}; }
  static Vec load(const float* p) { return {_mm512_loadu_ps(p)}; }
  static Vec load(const float* p, Lanes lanes) { return {_mm512_maskz_loadu_ps(lanes.low(), p)}; }
  template <Half T>
  static Vec load(const T* p) {
    return widen<T>(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }
  template <Half T>
  static Vec load(const T* p, Lanes lanes) {
    return widen<T>(_mm256_maskz_loadu_epi16(lanes.low(), p));
  }
  void store(float* p) const { _mm512_storeu_ps(p, v); }
  void store(float* p, Lanes lanes) const { _mm512_mask_storeu_ps(p, lanes.low(), v); }
  template <Half T>
  void store(T* p) const {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), narrow<T>());
  }
  template <Half T>
  void store(T* p, Lanes lanes) const {
    _mm256_mask_storeu_epi16(p, lanes.low(), narrow<T>());
  }
  void stream(float* p) const { _mm512_stream_ps(p, v); }
  template <Half T>
  void stream(T* p) const {
    _mm256_stream_si256(reinterpret_cast<__m256i*>(p), narrow<T>());
  }
  Vec keep(Lanes lanes) const { return {_mm512_maskz_mov_ps(lanes.low(), v)}; }
  bool above(Vec bound) const { return _mm512_cmp_ps_mask(v, bound.v, _CMP_GT_OQ) == 0xffff; }
  static Vec add(Vec a, Vec b) { return {_mm512_add_ps(a.v, b.v)}; }
  static Vec fma(Vec a, Vec b, Vec c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
  Vec positive() const { return {_mm512_max_ps(_mm512_setzero_ps(), v)}; }
  Vec negative() const { return {_mm512_min_ps(_mm512_setzero_ps(), v)}; }
  Vec at_least(Vec bound) const { return {_mm512_max_ps(bound.v, v)}; }
  Vec at_most(Vec bound) const { return {_mm512_min_ps(bound.v, v)}; }
  static void add_by_bound(Vec x, Vec bound, Vec value, Vec& above, Vec& within) {
    const __mmask16 to_within = _mm512_cmp_ps_mask(x.v, bound.v, _CMP_LE_OQ), to_above = _knot_mask16(to_within);
    above.v = _mm512_mask_add_ps(above.v, to_above, above.v, value.v);
    within.v = _mm512_mask_add_ps(within.v, to_within, within.v, value.v);
  }
  static Vec by_sign(Vec x, Vec positive, Vec negative) {
    const __mmask16 above = _mm512_cmp_ps_mask(x.v, _mm512_setzero_ps(), _CMP_GT_OQ),
                    below = _mm512_cmp_ps_mask(x.v, _mm512_setzero_ps(), _CMP_LT_OQ);
    return {_mm512_mask_mov_ps(_mm512_maskz_mov_ps(above, positive.v), below, negative.v)};
  }

  template <Half T>
  static Vec widen(__m256i bits) {
    if constexpr (std::is_same_v<T, Float16>) return {_mm512_cvtph_ps(bits)};
    return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16))};
  }
  template <Half T>
  __m256i narrow() const {
    if constexpr (std::is_same_v<T, Float16>) return _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT);
#if LENI_KERNELS_ISA >= LENI_KERNELS_AVX512_BF16
    return reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(v));
#else
    const __m512i bits = _mm512_castps_si512(v);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    const __mmask16 nan = _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q);
    const __m512i quiet = _mm512_or_si512(bits, _mm512_set1_epi32(0x400000));
    return _mm512_cvtepi32_epi16(_mm512_srli_epi32(_mm512_mask_mov_epi32(rounded, nan, quiet), 16));
#endif
  }
};

template <>
struct Vec<double> {
  static constexpr int width = 8;
  __m512d v;

  static Vec zero() { return {_mm512_setzero_pd()}; }
  static Vec broadcast(double x) { return {_mm512_set1_pd(x)}; }
  static Vec load(const double* p) { return {_mm512_loadu_pd(p)}; }
  static Vec load(const double* p, Lanes lanes) {
    return {_mm512_maskz_loadu_pd(static_cast<__mmask8>(lanes.mask), p)};
  }
  void store(double* p) const { _mm512_storeu_pd(p, v); }
  void store(double* p, Lanes lanes) const { _mm512_mask_storeu_pd(p, static_cast<__mmask8>(lanes.mask), v); }
  void stream(double* p) const { _mm512_stream_pd(p, v); }
  Vec keep(Lanes lanes) const { return {_mm512_maskz_mov_pd(static_cast<__mmask8>(lanes.mask), v)}; }
  bool above(Vec bound) const { return _mm512_cmp_pd_mask(v, bound.v, _CMP_GT_OQ) == 0xff; }
  static Vec add(Vec a, Vec b) { return {_mm512_add_pd(a.v, b.v)}; }
  static Vec fma(Vec a, Vec b, Vec c) { return {_mm512_fmadd_pd(a.v, b.v, c.v)}; }
  Vec positive() const { return {_mm512_max_pd(_mm512_setzero_pd(), v)}; }
  Vec negative() const { return {_mm512_min_pd(_mm512_setzero_pd(), v)}; }
  Vec at_least(Vec bound) const { return {_mm512_max_pd(bound.v, v)}; }
  Vec at_most(Vec bound) const { return {_mm512_min_pd(bound.v, v)}; }
  static void add_by_bound(Vec x, Vec bound, Vec value, Vec& above, Vec& within) {
    const __mmask8 to_within = _mm512_cmp_pd_mask(x.v, bound.v, _CMP_LE_OQ), to_above = _knot_mask8(to_within);
    above.v = _mm512_mask_add_pd(above.v, to_above, above.v, value.v);
    within.v = _mm512_mask_add_pd(within.v, to_within, within.v, value.v);
  }
  static Vec by_sign(Vec x, Vec positive, Vec negative) {
    const __mmask8 above = _mm512_cmp_pd_mask(x.v, _mm512_setzero_pd(), _CMP_GT_OQ),
                   below = _mm512_cmp_pd_mask(x.v, _mm512_setzero_pd(), _CMP_LT_OQ);
    return {_mm512_mask_mov_pd(_mm512_maskz_mov_pd(above, positive.v), below, negative.v)};
  }
};

#if LENI_KERNELS_ISA >= LENI_KERNELS_AVX512_BF16
// bfloat16 as it is stored, to be bounded without widening: the order of two numbers of one sign is that of their bits.
template <>
struct Vec<BFloat16> {
  static constexpr int width = 32;
  __m512i v;

  static Vec zero() { return {_mm512_setzero_si512()}; }
  static Vec broadcast(BFloat16 x) { return {_mm512_set1_epi16(static_cast<short>(x.bits))}; }
  static Vec load(const BFloat16* p) { return {_mm512_loadu_si512(p)}; }
  static Vec load(const BFloat16* p, Lanes lanes) { return {_mm512_maskz_loadu_epi16(lanes.mask, p)}; }
  void store(BFloat16* p) const { _mm512_storeu_si512(p, v); }
  void store(BFloat16* p, Lanes lanes) const { _mm512_mask_storeu_epi16(p, lanes.mask, v); }
  // Signed integers order what is not negative, and everything against it; unsigned ones, backwards, the negative.
  Vec at_least(Vec bound) const {
    const __mmask32 negative = _mm512_movepi16_mask(bound.v);
    const __mmask32 negative_nan = _mm512_cmpgt_epu16_mask(v, _mm512_set1_epi16(static_cast<short>(0xff80)));
    const __m512i above = _mm512_max_epi16(v, bound.v);
    return {_mm512_mask_mov_epi16(_mm512_mask_min_epu16(above, negative, v, bound.v), negative_nan, v)};
  }
  Vec at_most(Vec bound) const {
    const __mmask32 negative = _mm512_movepi16_mask(bound.v);
    const __mmask32 positive_nan = _mm512_cmpgt_epi16_mask(v, _mm512_set1_epi16(0x7f80));
    const __m512i below = _mm512_min_epi16(v, bound.v);
    return {_mm512_mask_mov_epi16(_mm512_mask_max_epu16(below, negative, v, bound.v), positive_nan, v)};
  }
};
#endif

#elif LENI_KERNELS_ISA >= LENI_KERNELS_AVX2

struct Lanes {
  int first, last;
  static Lanes range(int64_t first, int64_t last) { return {static_cast<int>(first), static_cast<int>(last)}; }
  __m256i mask32() const {
    const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    return _mm256_and_si256(_mm256_cmpgt_epi32(_mm256_set1_epi32(last), lane),
                            _mm256_cmpgt_epi32(lane, _mm256_set1_epi32(first - 1)));
  }
  __m256i mask64() const {
    const __m256i lane = _mm256_setr_epi64x(0, 1, 2, 3);
    return _mm256_and_si256(_mm256_cmpgt_epi64(_mm256_set1_epi64x(last), lane),
                            _mm256_cmpgt_epi64(lane, _mm256_set1_epi64x(first - 1)));
  }
};

template <>
struct Vec<float> {
  static constexpr int width = 8;
  __m256 v;

  static Vec zero() { return {_mm256_setzero_ps()}; }
  static Vec broadcast(float x) { return {_mm256_set1_ps(x)}; }
  static Vec load(const float* p) { return {_mm256_loadu_ps(p)}; }
  static Vec load(const float* p, Lanes lanes) { return {_mm256_maskload_ps(p, lanes.mask32())}; }
  template <Half T>
  static Vec load(const T* p) {
    const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    if constexpr (std::is_same_v<T, Float16>) return {_mm256_cvtph_ps(bits)};
    return {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16))};
  }
  template <Half T>
  static Vec load(const T* p, Lanes lanes) {
    T copy[width] = {};
    for (int i = lanes.first; i < lanes.last; ++i) copy[i] = p[i];
    return load(copy);
  }
  void store(float* p) const { _mm256_storeu_ps(p, v); }
  // In powers of two where the first lanes are stored: a masked store takes AMD's CPUs tens of cycles.
  void store(float* p, Lanes lanes) const {
    if (lanes.first > 0) return _mm256_maskstore_ps(p, lanes.mask32(), v);
    if (lanes.last >= width) return store(p);
    __m128 rest = _mm256_castps256_ps128(v);
    if (lanes.last & 4) {
      _mm_storeu_ps(p, rest);
      rest = _mm256_extractf128_ps(v, 1);
      p += 4;
    }
    if (lanes.last & 2) {
      _mm_storel_pi(reinterpret_cast<__m64*>(p), rest);
      rest = _mm_movehl_ps(rest, rest);
      p += 2;
    }
    if (lanes.last & 1) _mm_store_ss(p, rest);
  }
  void stream(float* p) const { _mm256_stream_ps(p, v); }
  template <Half T>
  void stream(T* p) const {
    _mm_stream_si128(reinterpret_cast<__m128i*>(p), narrow<T>());
  }
  template <Half T>
  void store(T* p) const {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), narrow<T>());
  }
  template <Half T>
  __m128i narrow() const {
    if constexpr (std::is_same_v<T, Float16>) return _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT);
    const __m256i bits = _mm256_castps_si256(v);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    const __m256i rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
    const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(v, v, _CMP_UNORD_Q));
    const __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
    const __m256i high = _mm256_srli_epi32(_mm256_blendv_epi8(rounded, quiet, nan), 16);
    return _mm_packus_epi32(_mm256_castsi256_si128(high), _mm256_extracti128_si256(high, 1));
  }
  template <Half T>
  void store(T* p, Lanes lanes) const {
    T copy[width];
    store(copy);
    for (int i = lanes.first; i < lanes.last; ++i) p[i] = copy[i];
  }
  Vec keep(Lanes lanes) const { return {_mm256_and_ps(v, _mm256_castsi256_ps(lanes.mask32()))}; }
  bool above(Vec bound) const { return _mm256_movemask_ps(_mm256_cmp_ps(v, bound.v, _CMP_GT_OQ)) == 0xff; }
  static Vec add(Vec a, Vec b) { return {_mm256_add_ps(a.v, b.v)}; }
  static Vec fma(Vec a, Vec b, Vec c) { return {_mm256_fmadd_ps(a.v, b.v, c.v)}; }
  Vec positive() const { return {_mm256_max_ps(_mm256_setzero_ps(), v)}; }
  Vec negative() const { return {_mm256_min_ps(_mm256_setzero_ps(), v)}; }
  Vec at_least(Vec bound) const { return {_mm256_max_ps(bound.v, v)}; }
  Vec at_most(Vec bound) const { return {_mm256_min_ps(bound.v, v)}; }
  static void add_by_bound(Vec x, Vec bound, Vec value, Vec& above, Vec& within) {
    const auto to_within = _mm256_cmp_ps(x.v, bound.v, _CMP_LE_OQ);
    above.v = _mm256_add_ps(above.v, _mm256_andnot_ps(to_within, value.v));
    within.v = _mm256_add_ps(within.v, _mm256_and_ps(to_within, value.v));
  }
  static Vec by_sign(Vec x, Vec positive, Vec negative) {
    return {_mm256_or_ps(_mm256_and_ps(_mm256_cmp_ps(x.v, _mm256_setzero_ps(), _CMP_GT_OQ), positive.v),
                         _mm256_and_ps(_mm256_cmp_ps(x.v, _mm256_setzero_ps(), _CMP_LT_OQ), negative.v))};
  }
};

template <>
struct Vec<double> {
  static constexpr int width = 4;
  __m256d v;

  static Vec zero() { return {_mm256_setzero_pd()}; }
  static Vec broadcast(double x) { return {_mm256_set1_pd(x)}; }
  static Vec load(const double* p) { return {_mm256_loadu_pd(p)}; }
  static Vec load(const double* p, Lanes lanes) { return {_mm256_maskload_pd(p, lanes.mask64())}; }
  void store(double* p) const { _mm256_storeu_pd(p, v); }
  void store(double* p, Lanes lanes) const { _mm256_maskstore_pd(p, lanes.mask64(), v); }
  void stream(double* p) const { _mm256_stream_pd(p, v); }
  Vec keep(Lanes lanes) const { return {_mm256_and_pd(v, _mm256_castsi256_pd(lanes.mask64()))}; }
  bool above(Vec bound) const { return _mm256_movemask_pd(_mm256_cmp_pd(v, bound.v, _CMP_GT_OQ)) == 0xf; }
  static Vec add(Vec a, Vec b) { return {_mm256_add_pd(a.v, b.v)}; }
  static Vec fma(Vec a, Vec b, Vec c) { return {_mm256_fmadd_pd(a.v, b.v, c.v)}; }
  Vec positive() const { return {_mm256_max_pd(_mm256_setzero_pd(), v)}; }
  Vec negative() const { return {_mm256_min_pd(_mm256_setzero_pd(), v)}; }
  Vec at_least(Vec bound) const { return {_mm256_max_pd(bound.v, v)}; }
  Vec at_most(Vec bound) const { return {_mm256_min_pd(bound.v, v)}; }
  static void add_by_bound(Vec x, Vec bound, Vec value, Vec& above, Vec& within) {
    const auto to_within = _mm256_cmp_pd(x.v, bound.v, _CMP_LE_OQ);
    above.v = _mm256_add_pd(above.v, _mm256_andnot_pd(to_within, value.v));
    within.v = _mm256_add_pd(within.v, _mm256_and_pd(to_within, value.v));
  }
  static Vec by_sign(Vec x, Vec positive, Vec negative) {
    return {_mm256_or_pd(_mm256_and_pd(_mm256_cmp_pd(x.v, _mm256_setzero_pd(), _CMP_GT_OQ), positive.v),
                         _mm256_and_pd(_mm256_cmp_pd(x.v, _mm256_setzero_pd(), _CMP_LT_OQ), negative.v))};
  }
};

#else  // any other CPU: the compiler's own 128-bit vectors

struct Lanes {
  int first, last;
  static Lanes range(int64_t first, int64_t last) { return {static_cast<int>(first), static_cast<int>(last)}; }
};

template <class T>
struct Vec {
  static constexpr int width = 16 / sizeof(T);
  typedef T Native __attribute__((vector_size(16)));
  Native v;

  static Vec zero() { return {Native{}}; }
  static Vec broadcast(T x) { return {Native{} + x}; }
  static Vec load(const T* p) {
    Vec result;
    std::memcpy(&result.v, p, sizeof(result.v));
    return result;
  }
  static Vec load(const T* p, Lanes lanes) { return gather(p, lanes.first, lanes.last); }
  template <Half S>
  static Vec load(const S* p) {
    return gather(p, 0, width);
  }
  template <Half S>
  static Vec load(const S* p, Lanes lanes) {
    return gather(p, lanes.first, lanes.last);
  }
  void store(T* p) const { std::memcpy(p, &v, sizeof(v)); }
  void store(T* p, Lanes lanes) const { scatter(p, lanes.first, lanes.last); }
  template <Half S>
  void store(S* p) const {
    scatter(p, 0, width);
  }
  template <Half S>
  void store(S* p, Lanes lanes) const {
    scatter(p, lanes.first, lanes.last);
  }
  template <class S>
  void stream(S* p) const {
    store(p);
  }
  bool above(Vec bound) const {
    bool all = true;
    for (int i = 0; i < width; ++i) all = all && v[i] > bound.v[i];
    return all;
  }
  Vec keep(Lanes lanes) const {
    Vec result = zero();
    for (int i = lanes.first; i < lanes.last; ++i) result.v[i] = v[i];
    return result;
  }
  static Vec add(Vec a, Vec b) { return {a.v + b.v}; }
  static Vec fma(Vec a, Vec b, Vec c) { return {a.v * b.v + c.v}; }
  Vec positive() const { return {v < Native{} ? Native{} : v}; }
  Vec negative() const { return {v > Native{} ? Native{} : v}; }
  Vec at_least(Vec bound) const { return {v < bound.v ? bound.v : v}; }
  Vec at_most(Vec bound) const { return {v > bound.v ? bound.v : v}; }
  static void add_by_bound(Vec x, Vec bound, Vec value, Vec& above, Vec& within) {
    above.v += x.v <= bound.v ? Native{} : value.v;
    within.v += x.v <= bound.v ? value.v : Native{};
  }
  static Vec by_sign(Vec x, Vec positive, Vec negative) {
    return {x.v > Native{} ? positive.v : x.v < Native{} ? negative.v : Native{}};
  }

 private:
  static T value(T x) { return x; }
  static T value(Half auto x) { return to_float(x); }
  static void assign(T& to, T x) { to = x; }
  template <Half S>
  static void assign(S& to, T x) {
    to = to_half<S>(static_cast<float>(x));
  }

  template <class S>
  static Vec gather(const S* p, int first, int last) {
    Vec result = zero();
    for (int i = first; i < last; ++i) result.v[i] = value(p[i]);
    return result;
  }
  template <class S>
  void scatter(S* p, int first, int last) const {
    for (int i = first; i < last; ++i) assign(p[i], v[i]);
  }
};

#endif

inline void streamed() {
#if LENI_KERNELS_ISA >= LENI_KERNELS_AVX2
  _mm_sfence();
#endif
}

// The sum of the lanes, always in the same order.
template <class T>
inline T sum(Vec<T> vector) {
#if LENI_KERNELS_ISA >= LENI_KERNELS_AVX512
  if constexpr (sizeof(T) == 4) return _mm512_reduce_add_ps(vector.v);
  if constexpr (sizeof(T) == 8) return _mm512_reduce_add_pd(vector.v);
#endif
  T lanes[Vec<T>::width];
  vector.store(lanes);
  for (int stride = Vec<T>::width / 2; stride > 0; stride /= 2) {
    for (int i = 0; i < stride; ++i) lanes[i] += lanes[i + stride];
  }
  return lanes[0];
}

// to[j][i] = from[i][j] for a square of one vector's width a side; rows are from_row and to_row elements apart.
template <class T, class Scale>
inline void transpose(const T* from, int64_t from_row, Scale* to, int64_t to_row) {
  constexpr int width = Vec<Scale>::width;
#if LENI_KERNELS_ISA >= LENI_KERNELS_AVX512
  if constexpr (sizeof(Scale) == 4) {
    __m512 rows[16], pairs[16], quads[16];
#pragma GCC unroll 16
    for (int i = 0; i < 16; ++i) rows[i] = Vec<float>::load(from + i * from_row).v;
#pragma GCC unroll 8
    for (int i = 0; i < 16; i += 2) {
      pairs[i] = _mm512_unpacklo_ps(rows[i], rows[i + 1]);
      pairs[i + 1] = _mm512_unpackhi_ps(rows[i], rows[i + 1]);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 16; i += 4) {
      quads[i] = _mm512_shuffle_ps(pairs[i], pairs[i + 2], 0x44);
      quads[i + 1] = _mm512_shuffle_ps(pairs[i], pairs[i + 2], 0xee);
      quads[i + 2] = _mm512_shuffle_ps(pairs[i + 1], pairs[i + 3], 0x44);
      quads[i + 3] = _mm512_shuffle_ps(pairs[i + 1], pairs[i + 3], 0xee);
    }
    // quads[4q + j] holds columns j, 4+j, 8+j and 12+j of rows 4q … 4q+3, one to a 128-bit lane.
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
      const __m512 low = _mm512_shuffle_f32x4(quads[j], quads[4 + j], 0x88);
      const __m512 high = _mm512_shuffle_f32x4(quads[8 + j], quads[12 + j], 0x88);
      const __m512 low_odd = _mm512_shuffle_f32x4(quads[j], quads[4 + j], 0xdd);
      const __m512 high_odd = _mm512_shuffle_f32x4(quads[8 + j], quads[12 + j], 0xdd);
      _mm512_storeu_ps(to + j * to_row, _mm512_shuffle_f32x4(low, high, 0x88));
      _mm512_storeu_ps(to + (8 + j) * to_row, _mm512_shuffle_f32x4(low, high, 0xdd));
      _mm512_storeu_ps(to + (4 + j) * to_row, _mm512_shuffle_f32x4(low_odd, high_odd, 0x88));
      _mm512_storeu_ps(to + (12 + j) * to_row, _mm512_shuffle_f32x4(low_odd, high_odd, 0xdd));
    }
    return;
  }
#elif LENI_KERNELS_ISA >= LENI_KERNELS_AVX2
  if constexpr (sizeof(Scale) == 4) {
    __m256 rows[8], pairs[8], quads[8];
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) rows[i] = Vec<float>::load(from + i * from_row).v;
#pragma GCC unroll 4
    for (int i = 0; i < 8; i += 2) {
      pairs[i] = _mm256_unpacklo_ps(rows[i], rows[i + 1]);
      pairs[i + 1] = _mm256_unpackhi_ps(rows[i], rows[i + 1]);
    }
#pragma GCC unroll 2
    for (int i = 0; i < 8; i += 4) {
      quads[i] = _mm256_shuffle_ps(pairs[i], pairs[i + 2], 0x44);
      quads[i + 1] = _mm256_shuffle_ps(pairs[i], pairs[i + 2], 0xee);
      quads[i + 2] = _mm256_shuffle_ps(pairs[i + 1], pairs[i + 3], 0x44);
      quads[i + 3] = _mm256_shuffle_ps(pairs[i + 1], pairs[i + 3], 0xee);
    }
    // quads[4q + j] holds columns j and 4+j of rows 4q … 4q+3, one to a 128-bit lane.
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
      _mm256_storeu_ps(to + j * to_row, _mm256_permute2f128_ps(quads[j], quads[4 + j], 0x20));
      _mm256_storeu_ps(to + (4 + j) * to_row, _mm256_permute2f128_ps(quads[j], quads[4 + j], 0x31));
    }
    return;
  }
#endif
  Scale block[width][width];
  for (int i = 0; i < width; ++i) Vec<Scale>::load(from + i * from_row).store(block[i]);
  for (int j = 0; j < width; ++j) {
    for (int i = 0; i < width; ++i) to[j * to_row + i] = block[i][j];
  }
}

// The first ``count`` lanes, or all.
template <class V, class T>
inline V load_some(const T* from, int64_t count) {
  return count >= V::width ? V::load(from) : V::load(from, Lanes::range(0, count));
}
template <class V, class T>
inline void store_some(V value, T* to, int64_t count) {
  if (count >= V::width) {
    value.store(to);
  } else {
    value.store(to, Lanes::range(0, count));
  }
}

// The vector of p[0], p[step], …, of which only lanes first … last − 1 exist and are read; the others are 0.
template <class V, class T>
inline V load_strided(const T* p, int64_t step, int64_t first, int64_t last) {
  constexpr int64_t width = V::width;
  if (step == 1) return first == 0 && last == width ? V::load(p) : V::load(p, Lanes::range(first, last));
#if LENI_KERNELS_ISA >= LENI_KERNELS_AVX512
  if (step == 2 && first < last && sizeof(T) * width == 64) {
    const int64_t begin = 2 * first, end = 2 * last - 1;
    const auto part = [&](int64_t from) {
      return Lanes::range(std::clamp<int64_t>(begin - from, 0, width), std::clamp<int64_t>(end - from, 0, width));
    };
    const V low = V::load(p, part(0)), high = V::load(p + width, part(width));
    if constexpr (sizeof(T) == 4) {
      const __m512i even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
      return {_mm512_permutex2var_ps(low.v, even, high.v)};
    } else if constexpr (sizeof(T) == 8) {
      return {_mm512_permutex2var_pd(low.v, _mm512_setr_epi64(0, 2, 4, 6, 8, 10, 12, 14), high.v)};
    } else if constexpr (width == 32) {
      alignas(64) static constexpr uint16_t even[32] = {0,  2,  4,  6,  8,  10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30,
                                                        32, 34, 36, 38, 40, 42, 44, 46, 48, 50, 52, 54, 56, 58, 60, 62};
      return {_mm512_permutex2var_epi16(low.v, _mm512_load_si512(even), high.v)};
    }
  }
#endif
  T lanes[width] = {};
  for (int64_t lane = first; lane < last; ++lane) lanes[lane] = p[lane * step];
  return V::load(lanes);
}

}  // namespace leni_kernels::inline LENI_KERNELS_TARGET
LENI_KERNELS_END
