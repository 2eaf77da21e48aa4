// Tiles of x, expanded into the positive part and the deconvolved negative part.
#pragma once

#include <algorithm>
#include <cstdint>

#include "kernels/kernel.h"
#include "kernels/product.h"
#include "kernels/simd.h"
#include "kernels/target.h"
#include "leni/problem.h"
#include "two_branch/expand.h"
#include "two_branch/tiles.h"

LENI_KERNELS_BEGIN
namespace leni_kernels::leni::inline LENI_KERNELS_TARGET {

// ---- NCHW: vectors along columns ---------------------------------------------------------------------------

template <int K, class Product, class T, class Scale, class Sink>
struct PlanarExpander {
  static constexpr int width = Vec<Scale>::width, half = K / 2, group = Product::group;
  // A row adds K products to each of K sums, one after the other: the sums of two vectors hide each other's latency.
  static constexpr int kVectors = K == 3 || kVectorRegisters > 16 ? 2 : 1;
  using V = Vec<Scale>;

  const Activation& x;
  const Expansion<Scale>& expansion;
  Tile tile;
  Sink sink;

  void run() const {
    for (int64_t step = 0; step < ceil_div(x.channels, group); ++step) {
      auto taker = sink.at(step);
      for (int64_t column = 0; column < tile.columns;) {
        if (interior(column, kVectors)) {
          strip<kVectors, false>(taker, step, column);
          column += kVectors * width;
        } else {
          if (interior(column, 1)) {
            strip<1, false>(taker, step, column);
          } else {
            strip<1, true>(taker, step, column);
          }
          column += width;
        }
      }
      taker.close();
    }
  }

  bool interior(int64_t column, int64_t vectors) const {
    const int64_t left = tile.column + column, right = left + vectors * width;
    return left >= half && right + half <= x.width && column + vectors * width <= tile.columns;
  }

  // N vectors of columns, rolled down the rows: each row of x is loaded once per column offset and added to the K
  // output rows that it reaches. kEdge: some lanes are outside the plane or the tile.
  template <int N, bool kEdge>
  void strip(typename Sink::Taker& taker, int64_t step, int64_t column) const {
    const int64_t left = tile.column + column;
    Lanes kept[N], inside[N][K];
    for (int n = 0; kEdge && n < N; ++n) {
      kept[n] = Lanes::range(0, std::min<int64_t>(width, tile.columns - column - n * width));
      for (int j = 0; j < K; ++j) {
        const int64_t start = left + n * width + j - half;
        inside[n][j] =
            Lanes::range(std::clamp<int64_t>(-start, 0, width), std::clamp<int64_t>(x.width - start, 0, width));
      }
    }
    const T* planes[group];
    const Scale* taps[group];
    for (int g = 0; g < group; ++g) {
      const int64_t c = std::min(step * group + g, x.channels - 1);
      planes[g] = static_cast<const T*>(x.data) + tile.image * x.stride_batch + c * x.stride_channel + left - half;
      taps[g] = expansion.taps + c * K * K;
    }

    V acc[N][group][K];
    for (int n = 0; n < N; ++n) {
      for (int g = 0; g < group; ++g) {
        for (int i = 0; i < K; ++i) acc[n][g][i] = V::zero();
      }
    }
    const int64_t first = tile.row - half, last = tile.row + tile.rows + half;
    for (int64_t row = first; row < last; ++row) {
      if (row >= 0 && row < x.height) {
        V center[N][group];
#pragma GCC unroll 2
        for (int g = 0; g < group; ++g) {
          const T* pixel = planes[g] + row * x.stride_row;
          // The next channels' row: strips go down the rows, too short a way for the CPU's own prefetching.
          __builtin_prefetch(pixel + group * x.stride_channel + half);
          V values[N][K];
#pragma GCC unroll 2
          for (int n = 0; n < N; ++n) {
#pragma GCC unroll 8
            for (int j = 0; j < K; ++j) {
              const T* from = pixel + n * width + j;
              const V loaded = kEdge ? V::load(from, inside[n][j]) : V::load(from);
              if (Sink::kPositive && j == half) center[n][g] = loaded.positive();
              values[n][j] = loaded.negative();
            }
          }
#pragma GCC unroll 8
          for (int i = 0; i < K; ++i) {
#pragma GCC unroll 8
            for (int j = 0; j < K; ++j) {
              const V tap = V::broadcast(taps[g][i * K + j]);
#pragma GCC unroll 2
              for (int n = 0; n < N; ++n) acc[n][g][i] = V::fma(tap, values[n][j], acc[n][g][i]);
            }
          }
        }
        if (Sink::kPositive && row >= tile.row && row < tile.row + tile.rows) {
          for (int n = 0; n < N; ++n) {
            taker.template take_positive<kEdge>(center[n], row - tile.row, column + n * width, kept[n]);
          }
        }
      }
      const int64_t complete = row - half - tile.row;
#pragma GCC unroll 2
      for (int n = 0; n < N; ++n) {
        V done[group];
#pragma GCC unroll 2
        for (int g = 0; g < group; ++g) {
          done[g] = acc[n][g][K - 1];
#pragma GCC unroll 8
          for (int i = K - 1; i > 0; --i) acc[n][g][i] = acc[n][g][i - 1];
          acc[n][g][0] = V::zero();
        }
        if (complete >= 0) taker.template take_negative<kEdge>(done, complete, column + n * width, kept[n]);
      }
    }
  }
};

// ---- channels-last: vectors along channels -----------------------------------------------------------------

template <int K, class Product, class T, class Scale, class Sink>
struct InterleavedExpander {
  static constexpr int width = Vec<Scale>::width, half = K / 2, kRows = 2;
  using V = Vec<Scale>;

  const Activation& x;
  const Expansion<Scale>& expansion;
  Tile tile;
  Sink sink;

  void run() const {
    for (int64_t channel = 0; channel < x.channels; channel += width) {
      auto taker = sink.at(channel, Lanes::range(0, std::min<int64_t>(width, x.channels - channel)));
      int64_t row = 0;
      for (; row + kRows <= tile.rows; row += kRows) rows<kRows>(taker, channel, row);
      for (; row < tile.rows; ++row) rows<1>(taker, channel, row);
      taker.close();
    }
  }

  template <int R>
  void rows(typename Sink::Taker& taker, int64_t channel, int64_t row) const {
    const bool interior = tile.row + row >= half && tile.row + row + R + half <= x.height;
    const bool whole = channel + width <= x.channels;
    if (interior && whole) {
      rows<R, false>(taker, channel, row);
    } else {
      rows<R, true>(taker, channel, row);
    }
  }

  // R output rows of one vector of channels, rolled along the columns: each column of x is loaded once per input row
  // and added to the K output columns that it reaches. kEdge: some input rows or channel lanes do not exist.
  template <int R, bool kEdge>
  void rows(typename Sink::Taker& taker, int64_t channel, int64_t row) const {
    constexpr int inputs = R + K - 1;
    const Lanes kept = Lanes::range(0, std::min<int64_t>(width, x.channels - channel));
    const T* pixels[inputs];
    bool exists[inputs];
    for (int i = 0; i < inputs; ++i) {
      const int64_t input = tile.row + row + i - half;
      exists[i] = input >= 0 && input < x.height;
      pixels[i] = static_cast<const T*>(x.data) + tile.image * x.stride_batch + (exists[i] ? input : 0) * x.stride_row +
                  channel;
    }
    V taps[K * K];
#pragma GCC unroll 49
    for (int t = 0; t < K * K; ++t) taps[t] = V::load(expansion.taps + t * expansion.padded_channels + channel);
    V acc[R][K];
    for (int r = 0; r < R; ++r) {
      for (int j = 0; j < K; ++j) acc[r][j] = V::zero();
    }

    const int64_t first = tile.column - half, last = tile.column + tile.columns + half;
    for (int64_t column = first; column < last; ++column) {
      const int64_t at = column - tile.column;
      if (column >= 0 && column < x.width) {
        const int64_t offset = column * x.stride_column;
        const bool inside = at >= 0 && at < tile.columns;
#pragma GCC unroll 8
        for (int i = 0; i < inputs; ++i) {
          if (kEdge && !exists[i]) continue;
          const V loaded = kEdge ? V::load(pixels[i] + offset, kept) : V::load(pixels[i] + offset);
          if (Sink::kPositive && i >= half && i < half + R && inside) {
            taker.template take_positive<kEdge>(loaded.positive(), row + i - half, at, kept);
          }
          const V value = loaded.negative();
#pragma GCC unroll 2
          for (int r = 0; r < R; ++r) {
            if (i < r || i >= r + K) continue;
#pragma GCC unroll 8
            for (int j = 0; j < K; ++j) acc[r][j] = V::fma(taps[(i - r) * K + j], value, acc[r][j]);
          }
        }
      }
      const int64_t complete = at - half;
#pragma GCC unroll 2
      for (int r = 0; r < R; ++r) {
        if (complete >= 0) taker.template take_negative<kEdge>(acc[r][K - 1], row + r, complete, kept);
#pragma GCC unroll 8
        for (int j = K - 1; j > 0; --j) acc[r][j] = acc[r][j - 1];
        acc[r][0] = V::zero();
      }
    }
  }
};

// ---- the branch --------------------------------------------------------------------------------------------

template <int K>
struct Deconvolved {
  static constexpr int taps = K * K, reach = K / 2;
  static constexpr bool kFromX = true;
  template <class Product, class T, class Scale, class Sink>
  using Planar = PlanarExpander<K, Product, T, Scale, Sink>;
  template <class Product, class T, class Scale, class Sink>
  using Interleaved = InterleavedExpander<K, Product, T, Scale, Sink>;
};

// body(the branch of a kernel size)
template <class Body>
void for_kernel_size(int64_t kernel_size, const Body& body) {
  switch (kernel_size) {
    case 3: return body(Deconvolved<3>());
    case 5: return body(Deconvolved<5>());
    case 7: return body(Deconvolved<7>());
  }
}

}  // namespace leni_kernels::leni::inline LENI_KERNELS_TARGET
LENI_KERNELS_END
