// AdaReLU, FullyParametricReLU and CReLU backward.
//
// T is the bytes of one activation. Reads x and dy and writes dx (3T; CReLU 4T), and sums the gradients of the
// parameters meanwhile. That is the least, since each element is new. Saved for it: x.
#pragma once

#include <algorithm>
#include <cstdint>

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

template <class F, class T, bool kInput, bool kSums>
void backward_by_rows(const GradientProblem& p, const Host& host) {
  using S = Scale<T>;
  using V = Vec<S>;
  const Parts parts(p);
  S* partial = kSums ? static_cast<S*>(host.scratch(kPartialSums, F::parameters * parts.count * sizeof(S))) : nullptr;
  T* dx = static_cast<T*>(p.dx);
  const bool past_caches = streams<T>(p.count, p.run);
  in_threads(parts.count, p.count, host, [&](int64_t begin, int64_t end) {
    for_parts(p, parts, begin, end, [&](int64_t part, int64_t start, int64_t length, int64_t number) {
      const T* x = block<T>(p.x, start, length, kBlockOfX, host);
      const T* grad = block<T>(p.grad, start, length, kBlockOfGrad, host);
      V parameters[F::parameters], sums[F::parameters];
      broadcast_parameters<F, S>(p, number, parameters);
      for (V& vector : sums) vector = V::zero();
      for_vectors<V>(length, [&](int64_t i, auto lanes) {
        const V result = F::backward(read<V>(grad + i, lanes), read<V>(x + i, lanes), parameters, sums);
        if constexpr (kInput) store(result, dx + start + i, lanes, past_caches);
      });
      if constexpr (kSums) {
        for (int j = 0; j < F::parameters; ++j) partial[j * parts.count + part] = sum(sums[j]);
      }
    });
  });
  if constexpr (kSums) {
    for (int j = 0; j < F::parameters; ++j) {
      const S* next = partial + j * parts.count;
      std::fill_n(p.sums[j], p.period, 0.0);
      for (int64_t group = 0; group < parts.count; group += p.period * parts.per_row) {
        for (int64_t number = 0; number < p.period; ++number) {
          for (int64_t part = 0; part < parts.per_row; ++part) p.sums[j][number] += *next++;
        }
      }
    }
  }
}

// ---- parameters by columns --------------------------------------------------------------------------------

template <class F, class T, bool kInput, bool kSums>
void backward_by_columns(const GradientProblem& p, const Host& host) {
  using S = Scale<T>;
  using V = Vec<S>;
  const Tiles tiles(p, kChunk);
  // [chunks, parameters, period]; each tile has its columns of its chunk's to itself.
  const int64_t size = tiles.chunks * F::parameters * p.period;
  S* partial = kSums ? static_cast<S*>(host.scratch(kPartialSums, size * sizeof(S))) : nullptr;
  if constexpr (kSums) std::fill_n(partial, size, S(0));
  T* dx = static_cast<T*>(p.dx);
  const bool past_caches = streams<T>(p.count, p.period);
  in_threads(tiles.chunks * tiles.blocks, p.count, host, [&](int64_t begin, int64_t end) {
    for_rows_of_tiles(p, tiles, begin, end, [&](int64_t chunk, int64_t column, int64_t length, int64_t start) {
      const T* x = block<T>(p.x, start, length, kBlockOfX, host);
      const T* grad = block<T>(p.grad, start, length, kBlockOfGrad, host);
      S* chunk_sums = partial + chunk * F::parameters * p.period + column;
      for_vectors<V>(length, [&](int64_t i, auto lanes) {
        V parameters[F::parameters], sums[F::parameters];
        load_parameters<F, S>(p, column + i, lanes, parameters);
        for (int j = 0; j < F::parameters; ++j) {
          sums[j] = kSums ? load<V>(chunk_sums + j * p.period + i, lanes) : V::zero();
        }
        const V result = F::backward(read<V>(grad + i, lanes), read<V>(x + i, lanes), parameters, sums);
        if constexpr (kInput) store(result, dx + start + i, lanes, past_caches);
        if constexpr (kSums) {
          for (int j = 0; j < F::parameters; ++j) store(sums[j], chunk_sums + j * p.period + i, lanes);
        }
      });
    });
  });
  if constexpr (kSums) {
    for (int j = 0; j < F::parameters; ++j) {
      std::fill_n(p.sums[j], p.period, 0.0);
      for (int64_t chunk = 0; chunk < tiles.chunks; ++chunk) {
        const S* from = partial + (chunk * F::parameters + j) * p.period;
        for (int64_t column = 0; column < p.period; ++column) p.sums[j][column] += from[column];
      }
    }
  }
}

// ---- CReLU ------------------------------------------------------------------------------------------------

template <class T>
void crelu_backward_of(const CReluGradientProblem& p, const Host& host) {
  using V = Vec<Scale<T>>;
  const RowBlocks blocks(p.outer, p.inner);
  const bool past_caches = streams<T>(p.outer * p.inner, p.inner);
  in_threads(blocks.count, p.outer * p.inner, host, [&](int64_t begin, int64_t end) {
    blocks.run(begin, end, [&](int64_t row, int64_t column, int64_t rows, int64_t columns) {
      const int64_t start = row * p.inner + column, grad_start = row * 2 * p.inner + column;
      const T* x = block<T>(p.x, start, rows * columns, kBlockOfX, host);
      T* dx = static_cast<T*>(p.dx) + start;
      // Whole rows have both halves in one block, a part of a row in two.
      const bool whole = blocks.parts == 1;
      const T* first = block<T>(p.grad, grad_start, whole ? 2 * rows * columns : columns, kBlockOfGrad, host);
      const T* second =
          whole ? first + columns : block<T>(p.grad, grad_start + p.inner, columns, kSecondBlockOfGrad, host);
      for (int64_t r = 0; r < rows; ++r, x += columns, dx += columns, first += 2 * columns, second += 2 * columns) {
        for_vectors<V>(columns, [&](int64_t i, auto lanes) {
          const V value = read<V>(x + i, lanes);
          const V positive = read<V>(first + i, lanes), negative = read<V>(second + i, lanes);
          // A NaN passes both gradients, as torch.relu's does.
          const V result{(value.v <= V::zero().v ? V::zero().v : positive.v) -
                         (value.v >= V::zero().v ? V::zero().v : negative.v)};
          store(result, dx + i, lanes, past_caches);
        });
      }
    });
  });
}

// ---- the choice of types and functions --------------------------------------------------------------------

template <bool kInput, bool kSums>
void backward_of(const GradientProblem& p, const Host& host) {
  for_function(p, [&](auto function, auto zero) {
    using F = decltype(function);
    using T = decltype(zero);
    if (p.run > 1) return backward_by_rows<F, T, kInput, kSums>(p, host);
    backward_by_columns<F, T, kInput, kSums>(p, host);
  });
}

inline void backward(const GradientProblem& p, const Host& host) {
  if (p.sums[0] == nullptr) return backward_of<true, false>(p, host);
  if (p.dx == nullptr) return backward_of<false, true>(p, host);
  backward_of<true, true>(p, host);
}

inline void crelu_backward(const CReluGradientProblem& p, const Host& host) {
  for_scalar(p.scalar, [&](auto zero, auto) { crelu_backward_of<decltype(zero)>(p, host); });
}

}  // namespace leni_kernels::pointwise::inline LENI_KERNELS_TARGET
LENI_KERNELS_END
