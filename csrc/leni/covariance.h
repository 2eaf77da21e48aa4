// The covariance of z = taps ⋆ᵀ min(x, 0), which the norms of a separable deconvolution need: the mean of
// (z − centre)·(z − centre)ᵀ over all pixels. The centre is z's mean: products that are not of distances from it would
// give the covariance only as a difference that cancels.
//
// Reads x, 1T where T is the bytes of one activation tensor, and writes a matrix of channels. It comes after the
// statistics' pass, whose mean it needs, so that a separable block's forward pass moves 4T, not 3T.
#pragma once

#include <algorithm>
#include <cstdint>

#include "kernels/chunks.h"
#include "kernels/gather.h"
#include "kernels/kernel.h"
#include "kernels/product.h"
#include "kernels/scalar.h"
#include "kernels/simd.h"
#include "kernels/target.h"
#include "leni/expand.h"
#include "leni/problem.h"
#include "two_branch/expand.h"
#include "two_branch/tiles.h"
#include "two_branch/training.h"

LENI_KERNELS_BEGIN
namespace leni_kernels::leni::inline LENI_KERNELS_TARGET {

template <int K, class T, class Scale>
struct CovarianceJob {
  using Product = ScalarProduct<Scale>;
  static constexpr int64_t width = Vec<Scale>::width;

  const CovarianceProblem& problem;
  const Host& host;
  Expanded<Deconvolved<K>, T, Scale> expanded;
  Tiling tiling;
  const Scale* minus_centre;  // [C]
  Scale* partial;             // [chunk][C][channels padded]: what is right of the diagonal, and above it

  void run(int64_t chunk, int64_t begin, int64_t end) const {
    const int64_t padded = expanded.expansion.padded_channels, pixels = room<Scale>(tiling.rows * tiling.pitch);
    auto* distances = static_cast<Scale*>(host.scratch(kExpanded, pixels * padded * sizeof(Scale)));
    std::fill(distances, distances + pixels * padded, Scale(0));  // of channels that do not exist, too
    for (int64_t index = begin; index < end; ++index) {
      Tile tile = tiling.tile(index, problem.x);
      tile.pitch = tile.columns;  // its pixels follow each other
      take(tile, pixels, distances);
      multiply(tile.rows * tile.columns, pixels, distances, partial + chunk * problem.x.channels * padded);
    }
  }

  // z − centre as [vector of channels][pixel][lane]: what a block of the product reads lies together.
  void take(const Tile& tile, int64_t pixels, Scale* distances) const {
    const int64_t channels = problem.x.channels, count = tile.rows * tile.columns;
    if (problem.x.channels_last) {
      using Store = InterleavedStore<Product, Scale, false, true>;
      return expanded.interleaved(
          tile, Store{nullptr, distances, pixels * width, width, tile.pitch * width, nullptr, minus_centre});
    }
    using Store = PlanarStore<Product, Scale, false, true>;
    auto* planes = static_cast<Scale*>(host.scratch(kGradient, channels * pixels * sizeof(Scale)));
    expanded.planar(tile, Store{nullptr, planes, pixels, tile.pitch, channels, nullptr, minus_centre});
    for (int64_t c = 0; c < channels; c += width) {
      gather(planes + c * pixels, count, 1, std::min(width, channels - c), pixels, distances + c * pixels, width);
    }
  }

  void multiply(int64_t count, int64_t pixels, const Scale* distances, Scale* sums) const {
    const int64_t padded = expanded.expansion.padded_channels;
    for (int64_t c = 0; c < problem.x.channels; c += width) {
      const Scale* panel = distances + c * pixels;
      Block<Product, Scale, Scale> block{count,  panel,     1, panel, width, nullptr, sums + c * padded + c,
                                         padded, padded - c};
      block.a_step = width;
      block.b_vector = pixels * width;
      multiply_all<Product, Channels::kSummed>(block, std::min(width, problem.x.channels - c));
    }
  }
};

template <int K, class T, class Scale>
void covariance(const CovarianceProblem& problem, const Host& host) {
  constexpr int64_t width = Vec<Scale>::width;
  const Activation& x = problem.x;
  const int64_t channels = x.channels, padded = round_up(channels, width), taps = padded * K * K;
  const Tiling tiling = choose_tiling(x, 2 * padded * sizeof(Scale), width, host.threads, kTileBytes);
  const int64_t tiles = tiling.tiles(x), chunks = std::min(tiles, host.threads);
  auto* memory = static_cast<Scale*>(host.scratch(kShared, (taps + channels) * sizeof(Scale)));
  Scale* minus_centre = memory + taps;
  for (int64_t c = 0; c < channels; ++c) minus_centre[c] = -static_cast<const Scale*>(problem.centre)[c];
  auto* sums = static_cast<Scale*>(host.scratch(kPartial, chunks * channels * padded * sizeof(Scale)));
  const CovarianceJob<K, T, Scale> job{problem, host, {x, problem.taps, memory}, tiling, minus_centre, sums};
  sum_in_parts(tiles, 1, sums, channels * padded, chunks, host,
               [&](int64_t begin, int64_t end) { run_chunks(job, end - begin, chunks, host, begin); });
  const auto count = static_cast<Scale>(x.batch * x.height * x.width);
  auto* result = static_cast<Scale*>(problem.covariance);
  for (int64_t i = 0; i < channels; ++i) {
    for (int64_t j = i; j < channels; ++j) {
      result[i * channels + j] = result[j * channels + i] = sums[i * padded + j] / count;
    }
  }
}

inline void covariance(const CovarianceProblem& problem, const Host& host) {
  for_kernel_size(problem.kernel_size, [&]<int K>(Deconvolved<K>) {
    for_scalar(problem.scalar, [&](auto x, auto scale) { covariance<K, decltype(x), decltype(scale)>(problem, host); });
  });
}

}  // namespace leni_kernels::leni::inline LENI_KERNELS_TARGET
LENI_KERNELS_END
