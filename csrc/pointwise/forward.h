// AdaReLU, FullyParametricReLU and CReLU forward.
//
// T is the bytes of one activation. Reads x and writes y (2T; CReLU, whose y is 2T, 3T). That is the least, since each
// element is new: a ReLU moves as much.
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "kernels/kernel.h"
#include "kernels/scalar.h"
#include "kernels/simd.h"
#include "kernels/target.h"
#include "pointwise/elements.h"
#include "pointwise/functions.h"
#include "pointwise/problem.h"

LENI_KERNELS_BEGIN
namespace leni_kernels::pointwise::inline LENI_KERNELS_TARGET {

// ---- parameters by rows -----------------------------------------------------------------------------------

// The first ``count`` lanes of one vector and the others of another.
template <class V>
inline V joined(V one, V other, int64_t count) {
  using Mask = decltype(one.v <= other.v);
  using Lane = std::remove_cvref_t<decltype(Mask{}[0])>;
  Mask lane{};
  for (int i = 0; i < V::width; ++i) lane[i] = static_cast<Lane>(i);
  return {lane < static_cast<Lane>(count) ? one.v : other.v};
}

// Rows of a few vectors and a part of one, taken together: the vector in which one row ends and the next begins has the
// parameters of both, so that all but the last vector of a group of rows is whole, and begins at a cache line as groups
// do.
template <class F, class T>
struct ShortRows {
  using S = Scale<T>;
  using V = Vec<S>;
  static constexpr int64_t line = kLineBytes / sizeof(T);

  const Problem& p;
  T* y;
  const Host& host;
  bool past_caches = p.count * int64_t(sizeof(T)) >= kStreamedBytes;

  static bool fit(const Problem& p) { return p.run > V::width && p.run % line != 0 && p.run * line <= 4 * kBlock; }

  void run() const {
    const int64_t rows = p.count / p.run, most = line * std::max<int64_t>(kBlock / p.run / line, 1);
    in_threads(ceil_div(rows, most), p.count, host, [&](int64_t begin, int64_t end) {
      for (int64_t group = begin; group < end; ++group) some(group * most, std::min(most, rows - group * most));
    });
  }

  void some(int64_t first, int64_t rows) const {
    const int64_t start = p.first + first * p.run, last = rows * p.run;
    const T* x = block<T>(p.x, start, last, kBlockOfX, host);
    const auto take = [&](int64_t i, const V* parameters, auto lanes) {
      store(F::forward(read<V>(x + i, lanes), parameters), y + start + i, lanes, past_caches);
    };
    V parameters[F::parameters], next[F::parameters], both[F::parameters];
    int64_t i = 0, number = first % p.period;
    broadcast_parameters<F, S>(p, number, parameters);
    for (int64_t row = 1; row <= rows; ++row) {
      const int64_t end = row * p.run;
      for (; i + V::width <= end; i += V::width) take(i, parameters, AllLanes{});
      if (end == last) break;
      if (++number == p.period) number = 0;
      broadcast_parameters<F, S>(p, number, next);
      if (i < end) {
        for (int j = 0; j < F::parameters; ++j) both[j] = joined(parameters[j], next[j], end - i);
        take(i, both, AllLanes{});
        i += V::width;
      }
      std::copy_n(next, F::parameters, parameters);
    }
    if (i < last) take(i, parameters, Lanes::range(0, last - i));
  }
};

template <class F, class T>
void forward_by_rows(const Problem& p, T* y, const Host& host) {
  using V = Vec<Scale<T>>;
  if (ShortRows<F, T>::fit(p)) return ShortRows<F, T>{p, y, host}.run();
  const Parts parts(p);
  const bool past_caches = streams<T>(p.count, p.run);
  in_threads(parts.count, p.count, host, [&](int64_t begin, int64_t end) {
    for_parts(p, parts, begin, end, [&](int64_t, int64_t start, int64_t length, int64_t number) {
      const T* x = block<T>(p.x, start, length, kBlockOfX, host);
      V parameters[F::parameters];
      broadcast_parameters<F, Scale<T>>(p, number, parameters);
      for_vectors<V>(length, [&](int64_t i, auto lanes) {
        store(F::forward(read<V>(x + i, lanes), parameters), y + start + i, lanes, past_caches);
      });
    });
  });
}

// ---- parameters by columns --------------------------------------------------------------------------------

template <class F, class T>
void forward_by_columns(const Problem& p, T* y, const Host& host) {
  using V = Vec<Scale<T>>;
  const Tiles tiles(p, 4 * kBlock);  // few rows: x is read nearly in the order of memory
  const bool past_caches = streams<T>(p.count, p.period);
  in_threads(tiles.chunks * tiles.blocks, p.count, host, [&](int64_t begin, int64_t end) {
    for_rows_of_tiles(p, tiles, begin, end, [&](int64_t, int64_t column, int64_t length, int64_t start) {
      const T* x = block<T>(p.x, start, length, kBlockOfX, host);
      for_vectors<V>(length, [&](int64_t i, auto lanes) {
        V parameters[F::parameters];
        load_parameters<F, Scale<T>>(p, column + i, lanes, parameters);
        store(F::forward(read<V>(x + i, lanes), parameters), y + start + i, lanes, past_caches);
      });
    });
  });
}

// ---- CReLU ------------------------------------------------------------------------------------------------

template <class T>
void crelu_of(const CReluProblem& p, const Host& host) {
  using V = Vec<Scale<T>>;
  const RowBlocks blocks(p.outer, p.inner);
  const bool past_caches = streams<T>(p.outer * p.inner, p.inner);
  in_threads(blocks.count, p.outer * p.inner, host, [&](int64_t begin, int64_t end) {
    blocks.run(begin, end, [&](int64_t row, int64_t column, int64_t rows, int64_t columns) {
      const T* x = block<T>(p.x, row * p.inner + column, rows * columns, kBlockOfX, host);
      T* y = static_cast<T*>(p.y) + row * 2 * p.inner + column;
      for (int64_t r = 0; r < rows; ++r, x += columns, y += 2 * p.inner) {
        for_vectors<V>(columns, [&](int64_t i, auto lanes) {
          const V value = read<V>(x + i, lanes), negated{-value.v};
          store(value.positive(), y + i, lanes, past_caches);
          store(negated.positive(), y + p.inner + i, lanes, past_caches);
        });
      }
    });
  });
}

// ---- the choice of types and functions --------------------------------------------------------------------

inline void forward(const Problem& p, void* y, const Host& host) {
  for_function(p, [&](auto function, auto zero) {
    using F = decltype(function);
    using T = decltype(zero);
    if (p.run > 1) return forward_by_rows<F>(p, static_cast<T*>(y), host);
    forward_by_columns<F>(p, static_cast<T*>(y), host);
  });
}

inline void crelu(const CReluProblem& p, const Host& host) {
  for_scalar(p.scalar, [&](auto zero, auto) { crelu_of<decltype(zero)>(p, host); });
}

}  // namespace leni_kernels::pointwise::inline LENI_KERNELS_TARGET
LENI_KERNELS_END
