// Tiles of x and z, expanded into max(x, 0) and z: Reborn's tail reads its negative branch instead of deconvolving it.
//
// With these expanders the passes of two_branch/ are Reborn's.
#pragma once

#include <algorithm>
#include <cstdint>

#include "kernels/kernel.h"
#include "kernels/simd.h"
#include "kernels/target.h"
#include "reborn/problem.h"
#include "two_branch/expand.h"
#include "two_branch/tiles.h"

LENI_KERNELS_BEGIN
namespace leni_kernels::reborn::inline LENI_KERNELS_TARGET {

template <class Product, class T, class Scale, class Sink>
struct PlanarExpander {
  static constexpr int group = Product::group;
  using V = Vec<Scale>;

  const Activation& x;
  const Expansion<Scale>& expansion;
  Tile tile;
  Sink sink;

  void run() const {
    const Tile read = rows_follow(x, tile) && rows_follow(*expansion.z, tile) ? joined(tile) : tile;
    for (int64_t step = 0; step < ceil_div(x.channels, group); ++step) {
      auto taker = sink.at(step);
      for (int64_t row = 0; row < read.rows; ++row) {
        for (int64_t column = 0; column < read.columns; column += V::width) {
          if (column + V::width <= read.columns) {
            take<false>(taker, read, step, row, column);
          } else {
            take<true>(taker, read, step, row, column);
          }
        }
      }
      taker.close();
    }
  }

  template <bool kEdge>
  void take(typename Sink::Taker& taker, const Tile& read, int64_t step, int64_t row, int64_t column) const {
    const int64_t left = read.columns - column;
    const Lanes kept = Lanes::range(0, std::min<int64_t>(V::width, left));
    V values[group];
    if constexpr (Sink::kPositive) {
      load(x, pixel_of<T>(x, read, row) + column, step, left, values);
      for (V& value : values) value = value.positive();
      taker.template take_positive<kEdge>(values, row, column, kept);
    }
    load(*expansion.z, pixel_of<T>(*expansion.z, read, row) + column, step, left, values);
    taker.template take_negative<kEdge>(values, row, column, kept);
  }

  void load(const Activation& source, const T* from, int64_t step, int64_t left, V (&values)[group]) const {
    for (int g = 0; g < group; ++g) {
      const int64_t c = std::min(step * group + g, x.channels - 1);
      values[g] = load_some<V>(from + c * source.stride_channel, left);
    }
  }
};

template <class Product, class T, class Scale, class Sink>
struct InterleavedExpander {
  using V = Vec<Scale>;

  const Activation& x;
  const Expansion<Scale>& expansion;
  Tile tile;
  Sink sink;

  void run() const {
    for (int64_t channel = 0; channel < x.channels; channel += V::width) {
      auto taker = sink.at(channel, Lanes::range(0, std::min<int64_t>(V::width, x.channels - channel)));
      for (int64_t row = 0; row < tile.rows; ++row) {
        if (channel + V::width <= x.channels) {
          take<false>(taker, channel, row);
        } else {
          take<true>(taker, channel, row);
        }
      }
      taker.close();
    }
  }

  template <bool kEdge>
  void take(typename Sink::Taker& taker, int64_t channel, int64_t row) const {
    const int64_t left = x.channels - channel;
    const Lanes kept = Lanes::range(0, std::min<int64_t>(V::width, left));
    const T* positive = pixel_of<T>(x, tile, row) + channel;
    const T* negative = pixel_of<T>(*expansion.z, tile, row) + channel;
    for (int64_t column = 0; column < tile.columns; ++column) {
      if constexpr (Sink::kPositive) {
        const V value = load_some<V>(positive + column * x.stride_column, left).positive();
        taker.template take_positive<kEdge>(value, row, column, kept);
      }
      const V value = load_some<V>(negative + column * expansion.z->stride_column, left);
      taker.template take_negative<kEdge>(value, row, column, kept);
    }
  }
};

struct Given {
  static constexpr int taps = 0, reach = 0;
  static constexpr bool kFromX = false;
  template <class Product, class T, class Scale, class Sink>
  using Planar = PlanarExpander<Product, T, Scale, Sink>;
  template <class Product, class T, class Scale, class Sink>
  using Interleaved = InterleavedExpander<Product, T, Scale, Sink>;
};

}  // namespace leni_kernels::reborn::inline LENI_KERNELS_TARGET
LENI_KERNELS_END
