// The statistics that the norms need of a batch: LENI's of max(x, 0) and of z = taps ⋆ᵀ min(x, 0), Reborn's of z alone.
//
// Reads x, 1T where T is the bytes of one activation tensor, and writes vectors of channels: the least, since every
// element counts. Both branches are summed where they are made and kept nowhere. Reborn's z stands for x.
#pragma once

#include <algorithm>
#include <cstdint>

#include "kernels/chunks.h"
#include "kernels/kernel.h"
#include "kernels/product.h"
#include "kernels/scalar.h"
#include "kernels/simd.h"
#include "kernels/target.h"
#include "two_branch/expand.h"
#include "two_branch/problem.h"
#include "two_branch/tiles.h"
#include "two_branch/training.h"

LENI_KERNELS_BEGIN
namespace leni_kernels::two_branch::inline LENI_KERNELS_TARGET {

// Count, mean and sum of squared deviations, merged as by Chan, Golub and LeVeque.
struct Moments {
  double count = 0, mean = 0, squares = 0;
  void merge(double other_count, double other_mean, double other_squares) {
    const double total = count + other_count, delta = other_mean - mean;
    if (total == 0) return;
    const double share = other_count / total;  // 1 of the first part, whose mean is then taken as it is
    mean += delta * share;
    squares += other_squares + delta * delta * count * share;
    count = total;
  }
};

// Squares are summed times a power of two: of the largest variances that float has, else a sum would be beyond it.
template <class Scale>
constexpr Scale kSquareScale = sizeof(Scale) == 4 ? Scale(0x1p-32) : Scale(1);

// Adds a part of the batch, a tile or several, to the moments of one feature, if it is to be kept: its sums of
// ``count`` distances from ``minus_shift``'s negative and of their scaled squares. Its mean becomes the shift for the
// next part: what that is off by there is part of the variance itself.
template <class Scale>
inline void merge_part(double count, double distances, double squares, bool kept, Scale& minus_shift,
                       Moments& moments) {
  const double mean = distances / count, unscaled = squares / kSquareScale<Scale>;
  if (kept) moments.merge(count, mean - minus_shift, std::max(unscaled - mean * distances, 0.0));
  minus_shift = static_cast<Scale>(minus_shift - mean);
}

// The chunks' moments [chunk][features], in their order.
template <class Scale>
inline void merge_chunks(const Moments* moments, int64_t chunks, int64_t features, void* mean, void* variance) {
  for (int64_t f = 0; f < features; ++f) {
    Moments all;
    for (int64_t chunk = 0; chunk < chunks; ++chunk) {
      const Moments& part = moments[chunk * features + f];
      all.merge(part.count, part.mean, part.squares);
    }
    static_cast<Scale*>(mean)[f] = static_cast<Scale>(all.mean);
    static_cast<Scale*>(variance)[f] = static_cast<Scale>(all.squares / all.count);
  }
}

// The sums over a tile of a branch's distances from ``minus_shift``'s negative, and of their scaled squares.
template <class Scale>
struct BranchSums {
  using V = Vec<Scale>;
  V minus_shift, distances, squares;

  void add(V value) { add_distance(V::add(value, minus_shift)); }
  void add(V value, Lanes kept) { add_distance(V::add(value, minus_shift).keep(kept)); }

  void add_distance(V distance) {
    distances = V::add(distances, distance);
    const V scaled = V::fma(V::broadcast(kSquareScale<Scale>), distance, V::zero());
    squares = V::fma(scaled, distance, squares);
  }
};

// A sink that sums: of each feature, what BranchSums has. Vectors are [features], where z's begin ``branch`` further
// than those of the positive branch.
template <class Scale, bool kBoth, bool kPlanar>
struct SumsSink {
  static constexpr bool kPositive = kBoth;
  using V = Vec<Scale>;

  const Scale* minus_shift;
  Scale *distances, *squares;
  int64_t branch;

  struct Taker {
    BranchSums<Scale> positive, negative;
    const SumsSink& sink;
    int64_t channel;

    template <bool kEdge>
    void take_positive(V value, int64_t, int64_t, Lanes kept) {
      add<kEdge>(positive, value, kept);
    }
    template <bool kEdge>
    void take_negative(V value, int64_t, int64_t, Lanes kept) {
      add<kEdge>(negative, value, kept);
    }
    template <bool kEdge>
    void take_positive(V (&values)[1], int64_t, int64_t, Lanes kept) {
      add<kEdge>(positive, values[0], kept);
    }
    template <bool kEdge>
    void take_negative(V (&values)[1], int64_t, int64_t, Lanes kept) {
      add<kEdge>(negative, values[0], kept);
    }
    template <bool kEdge>
    static void add(BranchSums<Scale>& sums, V value, Lanes kept) {
      if (kEdge) {
        sums.add(value, kept);
      } else {
        sums.add(value);
      }
    }

    void close() {
      if (kBoth) put(positive, channel);
      put(negative, channel + sink.branch);
    }
    void put(const BranchSums<Scale>& sums, int64_t feature) {
      if (kPlanar) {
        sink.distances[feature] = sum(sums.distances);
        sink.squares[feature] = sum(sums.squares);
      } else {
        sums.distances.store(sink.distances + feature);
        sums.squares.store(sink.squares + feature);
      }
    }
  };

  Taker at(int64_t channel, Lanes = {}) const { return {begin(channel), begin(channel + branch), *this, channel}; }
  BranchSums<Scale> begin(int64_t feature) const {
    const V shift = kPlanar ? V::broadcast(minus_shift[feature]) : V::load(minus_shift + feature);
    return {shift, V::zero(), V::zero()};
  }
};

template <class Branch, class T, class Scale>
struct StatisticsJob {
  static constexpr bool kBoth = Branch::kFromX;

  const StatisticsProblem& problem;
  const Host& host;
  Expanded<Branch, T, Scale> expanded;
  Tiling tiling;
  int64_t features;
  Moments* moments;  // [chunk][features]

  void run(int64_t chunk, int64_t begin, int64_t end) const {
    const int64_t padded = expanded.expansion.padded_channels, vectors = 2 * padded;
    auto* minus_shift = static_cast<Scale*>(host.scratch(kGradient, 3 * vectors * sizeof(Scale)));
    Scale *distances = minus_shift + vectors, *squares = distances + vectors;
    std::fill(minus_shift, minus_shift + vectors, Scale(0));
    for (int64_t index = begin; index < end; ++index) {
      const Tile tile = tiling.tile(index, problem.x);
      const double count = static_cast<double>(tile.rows * tile.columns);
      // Distances are taken from the mean of the tile before, or for the first from its own.
      for (int pass = index == begin ? 0 : 1; pass < 2; ++pass) {
        take(tile, minus_shift, distances, squares);
        for (int64_t f = 0; f < features; ++f) {
          const int64_t at = f < problem.x.channels ? f : f - problem.x.channels + padded;
          merge_part(count, distances[at], squares[at], pass == 1, minus_shift[at], moments[chunk * features + f]);
        }
      }
    }
  }

  void take(const Tile& tile, const Scale* minus_shift, Scale* distances, Scale* squares) const {
    const int64_t branch = kBoth ? expanded.expansion.padded_channels : 0;
    if (problem.x.channels_last) {
      expanded.interleaved(tile, SumsSink<Scale, kBoth, false>{minus_shift, distances, squares, branch});
    } else {
      expanded.planar(tile, SumsSink<Scale, kBoth, true>{minus_shift, distances, squares, branch});
    }
  }
};

template <class Branch, class T, class Scale>
void statistics(const StatisticsProblem& problem, const Host& host) {
  constexpr int64_t width = Vec<Scale>::width;
  const Activation& x = problem.x;
  const int64_t features = (Branch::kFromX ? 2 : 1) * x.channels;
  const Tiling tiling = choose_tiling(x, x.channels * sizeof(T), width, host.threads, kTileBytes);
  const int64_t tiles = tiling.tiles(x), chunks = std::min(tiles, host.threads);
  auto* taps = static_cast<Scale*>(host.scratch(kShared, round_up(x.channels, width) * Branch::taps * sizeof(Scale)));
  auto* moments = static_cast<Moments*>(host.scratch(kPartial, chunks * features * sizeof(Moments)));
  std::fill(moments, moments + chunks * features, Moments{});
  const StatisticsJob<Branch, T, Scale> job{problem, host, {x, problem.taps, taps, &x}, tiling, features, moments};
  run_chunks(job, tiles, chunks, host);
  merge_chunks<Scale>(moments, chunks, features, problem.mean, problem.variance);
}

template <class Branch>
void statistics(const StatisticsProblem& problem, const Host& host) {
  for_scalar(problem.scalar,
             [&](auto x, auto scale) { statistics<Branch, decltype(x), decltype(scale)>(problem, host); });
}

}  // namespace leni_kernels::two_branch::inline LENI_KERNELS_TARGET
LENI_KERNELS_END
