// Tiles of x, expanded into the positive part and the negative branch's values: what becomes of them.
//
// How the negative branch comes about is what sets LENI and Reborn apart, and the passes take it as a type, ``Branch``:
// leni::Deconvolved of a kernel size (leni/expand.h) makes it of x, reborn::Given (reborn/expand.h) reads it. Of a
// Branch there are
//   taps         of D, a channel
//   reach        how many rows above and below a tile are read
//   kFromX       whether it is made of x
//   Planar, Interleaved   the expanders of NCHW and of channels-last, by Product, T, Scale and Sink
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "kernels/half.h"
#include "kernels/kernel.h"
#include "kernels/product.h"
#include "kernels/simd.h"
#include "kernels/target.h"
#include "two_branch/problem.h"
#include "two_branch/tiles.h"

LENI_KERNELS_BEGIN
namespace leni_kernels::two_branch::inline LENI_KERNELS_TARGET {

// ---- the parameters of an expansion ------------------------------------------------------------------------

template <class Scale>
struct Expansion {
  const Scale* taps;  // flipped, so that the deconvolution is a correlation; [C][k²] for NCHW, [k²][C padded] else
  int64_t padded_channels;  // whole vectors
  int64_t branch_steps;
  const Activation* z = nullptr;  // what reborn::Given reads
};

// The steps of one branch. Two branches make whole matrix tiles of steps where the product needs them.
template <class Product>
inline int64_t branch_steps(int64_t channels) {
  const int64_t steps = ceil_div(channels, Product::group);
  return Product::tile_rows > 0 ? round_up(steps, 8) : steps;
}

// Packs taps [C, k, k], of which there are ``taps`` a channel, for the expanders.
template <class Scale>
void pack_taps(const Scale* raw, const Activation& x, int64_t taps, int64_t padded_channels, Scale* packed) {
  std::memset(packed, 0, padded_channels * taps * sizeof(Scale));
  for (int64_t c = 0; c < x.channels; ++c) {
    for (int64_t t = 0; t < taps; ++t) {
      packed[x.channels_last ? t * padded_channels + c : c * taps + t] = raw[c * taps + taps - 1 - t];
    }
  }
}

// ---- what becomes of the branches --------------------------------------------------------------------------
// An expander hands its values to a sink: one that keeps them (below), or one that only sums (statistics.h). For
// one step of channels (NCHW) or one vector of them (channels-last), ``at`` gives what takes the values, pixel by
// pixel. A sink without kPositive is not given the positive branch.

// A store adds an offset to values that are rounded as they are for the statistics: less their mean, equal values are
// then 0.

// Keeps planar branches as [step][row][column]: ``step`` and ``row`` are strides.
template <class Product, class Scale, bool kBoth = true, bool kOffset = false>
struct PlanarStore {
  static constexpr bool kPositive = kBoth;
  static constexpr int group = Product::group;
  using V = Vec<Scale>;
  using Element = typename Product::Element;

  Element *positive, *negative;
  int64_t step, row, channels;
  const Scale *positive_offset = nullptr, *negative_offset = nullptr;  // [C], to add

  struct Taker {
    Element *positive, *negative;
    int64_t row;
    bool whole;  // every channel of the step exists
    V positive_offset[group], negative_offset[group];

    template <bool kEdge>
    void take_positive(V (&values)[group], int64_t at, int64_t column, Lanes kept) {
      if (kOffset) {
        for (int g = 0; g < group; ++g) values[g] = V::add(values[g], positive_offset[g]);
      }
      put<kEdge>(values, positive + at * row + column, kept);
    }
    template <bool kEdge>
    void take_negative(V (&values)[group], int64_t at, int64_t column, Lanes kept) {
      if (kOffset) {
        for (int g = 0; g < group; ++g) values[g] = V::add(values[g], negative_offset[g]);
      }
      put<kEdge>(values, negative + at * row + column, kept);
    }

    template <bool kEdge>
    void put(V (&values)[group], Element* to, Lanes kept) const {
      if constexpr (group == 1) {
        if (kEdge) {
          values[0].store(to, kept);
        } else {
          values[0].store(to);
        }
      } else {
        if (!whole) values[1] = V::zero();
        if (kEdge) {
          store_pairs(values[0], values[1], to, kept);
        } else {
          store_pairs(values[0], values[1], to);
        }
      }
    }
    void close() {}
  };

  Taker at(int64_t index) const {
    Taker taker{positive + index * step, negative + index * step, row, (index + 1) * group <= channels, {}, {}};
    for (int g = 0; kOffset && g < group; ++g) {
      const int64_t c = std::min(index * group + g, channels - 1);
      if (kBoth) taker.positive_offset[g] = V::broadcast(positive_offset[c]);
      taker.negative_offset[g] = V::broadcast(negative_offset[c]);
    }
    return taker;
  }
};

// Keeps interleaved branches: ``vector``, ``pixel`` and ``row`` are the strides of a vector of channels, a pixel and a
// row.
template <class Product, class Scale, bool kBoth = true, bool kOffset = false>
struct InterleavedStore {
  static constexpr bool kPositive = kBoth;
  using V = Vec<Scale>;
  using Value = std::conditional_t<Product::group == 1, Scale, BFloat16>;

  Value *positive, *negative;
  int64_t vector, pixel, row;
  const Scale *positive_offset = nullptr, *negative_offset = nullptr;  // [C], to add

  struct Taker {
    Value *positive, *negative;
    int64_t pixel, row;
    V positive_offset, negative_offset;

    template <bool kEdge>
    void take_positive(V value, int64_t at, int64_t column, Lanes kept) {
      put<kEdge>(kOffset ? V::add(value, positive_offset) : value, positive + at * row + column * pixel, kept);
    }
    template <bool kEdge>
    void take_negative(V value, int64_t at, int64_t column, Lanes kept) {
      put<kEdge>(kOffset ? V::add(value, negative_offset) : value, negative + at * row + column * pixel, kept);
    }
    template <bool kEdge>
    static void put(V value, Value* to, Lanes kept) {
      if (kEdge) {
        value.store(to, kept);
      } else {
        value.store(to);
      }
    }
    void close() {}
  };

  // ``kept``: the channels of the vector that exist.
  Taker at(int64_t channel, Lanes kept) const {
    const int64_t first = channel / V::width * vector;
    Taker taker{positive + first, negative + first, pixel, row, V::zero(), V::zero()};
    if (kOffset && kBoth) taker.positive_offset = V::load(positive_offset + channel, kept);
    if (kOffset) taker.negative_offset = V::load(negative_offset + channel, kept);
    return taker;
  }
};

// ---- expanding, as the passes of training do ---------------------------------------------------------------------

template <class Branch, class T, class Scale>
struct Expanded {
  using Product = ScalarProduct<Scale>;
  static constexpr int64_t width = Vec<Scale>::width;

  const Activation& x;
  Expansion<Scale> expansion;

  // ``memory`` holds the taps, packed.
  Expanded(const Activation& activation, const void* taps, Scale* memory, const Activation* z = nullptr)
      : x(activation), expansion{memory, round_up(activation.channels, width), activation.channels, z} {
    pack_taps(static_cast<const Scale*>(taps), x, Branch::taps, expansion.padded_channels, memory);
  }

  template <class Sink>
  void planar(const Tile& tile, const Sink& sink) const {
    using Expander = typename Branch::template Planar<Product, T, Scale, Sink>;
    Expander{x, expansion, tile, sink}.run();
  }
  template <class Sink>
  void interleaved(const Tile& tile, const Sink& sink) const {
    using Expander = typename Branch::template Interleaved<Product, T, Scale, Sink>;
    Expander{x, expansion, tile, sink}.run();
  }
};

}  // namespace leni_kernels::two_branch::inline LENI_KERNELS_TARGET
LENI_KERNELS_END
