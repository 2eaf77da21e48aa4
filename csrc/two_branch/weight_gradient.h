// The gradients of weight and bias: dweight[o][f] = Σ dy[o]·(a[f] − mean[f]) and dbias[o] = Σ dy[o] over all pixels,
// for a = [max(x, 0); z] and a mean of 0 where none is given. Batch norm's gradients are of a less its
// mean, which the sums, once taken, could give only as a difference that cancels.
//
// Reads x and dy, 2T where T is the bytes of one activation tensor: the least without a kept a. Reborn's reads z too.
// Writes 2C² weights.
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

template <class Branch, class T, class Scale>
struct WeightGradientJob {
  using Product = ScalarProduct<Scale>;
  using V = Vec<Scale>;
  static constexpr int64_t width = V::width;

  const GradientProblem& problem;
  const Host& host;
  Expanded<Branch, T, Scale> expanded;
  Tiling tiling;
  const Scale* minus_mean;  // [2C]
  Scale* partial;           // [chunk][2C][channels padded]: dweight transposed
  double* bias;             // [chunk][channels padded]: dbias

  void run(int64_t chunk, int64_t begin, int64_t end) const {
    const Activation& x = problem.x;
    const int64_t padded = expanded.expansion.padded_channels, features = 2 * x.channels;
    const int64_t pixels = room<Scale>(tiling.rows * tiling.pitch);
    auto* values = static_cast<Scale*>(host.scratch(kExpanded, (features * pixels + padded) * sizeof(Scale)));
    auto* grad = static_cast<Scale*>(host.scratch(kGradient, pixels * padded * sizeof(Scale)));
    Scale* weight = partial + chunk * features * padded;
    for (int64_t index = begin; index < end; ++index) {
      Tile tile = tiling.tile(index, x);
      tile.pitch = tile.columns;  // its pixels follow each other
      gather_panels(tile, pixels, grad);
      if (!x.channels_last) {
        using Store = PlanarStore<Product, Scale, true, true>;
        expanded.planar(tile, Store{values, values + x.channels * pixels, pixels, tile.pitch, x.channels, minus_mean,
                                    minus_mean + x.channels});
        multiply(tile, {values, pixels, 1}, features, grad, pixels, weight);
      } else if (x.channels % width == 0) {
        keep_interleaved(tile, values, pixels * width, width, x.channels * pixels);
        for (int64_t f = 0; f < features; f += width) {
          multiply(tile, {values + f * pixels, 1, width}, width, grad, pixels, weight + f * padded);
        }
      } else {
        keep_interleaved(tile, values, width, features, x.channels);
        multiply(tile, {values, 1, features}, features, grad, pixels, weight);
      }
      add_pixels(grad, tile.rows * tile.columns, pixels, bias + chunk * padded);
    }
  }

  // dy as [vector of channels][pixel][lane]: what a block of the product reads lies together.
  void gather_panels(const Tile& tile, int64_t pixels, Scale* grad) const {
    Activation lanes = problem.grad;
    for (int64_t c = 0; c < problem.x.channels; c += width) {
      lanes.data = static_cast<const T*>(problem.grad.data) + c * problem.grad.stride_channel;
      lanes.channels = std::min(width, problem.x.channels - c);
      gather_tile<T>(lanes, tile, true, width, grad + c * pixels);
    }
  }

  void keep_interleaved(const Tile& tile, Scale* values, int64_t vector, int64_t pixel, int64_t branch) const {
    using Store = InterleavedStore<Product, Scale, true, true>;
    expanded.interleaved(tile, Store{values, values + branch, vector, pixel, tile.pitch * pixel, minus_mean,
                                     minus_mean + problem.x.channels});
  }

  struct Features {
    const Scale* at;
    int64_t feature, pixel;  // strides
  };

  void multiply(const Tile& tile, const Features& values, int64_t features, const Scale* grad, int64_t pixels,
                Scale* weight) const {
    const int64_t padded = expanded.expansion.padded_channels;
    Block<Product, Scale, Scale> block{
        tile.rows * tile.columns, values.at, values.feature, grad, width, nullptr, weight, padded, padded};
    block.a_step = values.pixel;
    block.b_vector = pixels * width;
    multiply_all<Product, Channels::kSummed>(block, features);
  }

  // In double past a few pixels: gradients of opposite signs all but cancel in this sum.
  void add_pixels(const Scale* grad, int64_t count, int64_t pixels, double* bias) const {
    constexpr int64_t few = 32;
    for (int64_t c = 0; c < expanded.expansion.padded_channels; c += width) {
      for (int64_t first = 0; first < count; first += few) {
        V acc = V::zero();
        for (int64_t pixel = first; pixel < std::min(first + few, count); ++pixel) {
          acc = V::add(acc, V::load(grad + c * pixels + pixel * width));
        }
        Scale lanes[V::width];
        acc.store(lanes);
        for (int i = 0; i < V::width; ++i) bias[c + i] += lanes[i];
      }
    }
  }
};

template <class Branch, class T, class Scale>
void weight_gradient(const GradientProblem& problem, const Host& host) {
  constexpr int64_t width = Vec<Scale>::width;
  const Activation& x = problem.x;
  const int64_t features = 2 * x.channels, padded = round_up(x.channels, width), taps = padded * Branch::taps;
  const Tiling tiling = choose_tiling(x, (features + padded) * sizeof(Scale), width, host.threads, kTileBytes);
  const int64_t tiles = tiling.tiles(x), chunks = std::min(tiles, host.threads);
  auto* memory = static_cast<Scale*>(host.scratch(kShared, (taps + features) * sizeof(Scale)));
  Scale* minus_mean = memory + taps;
  for (int64_t f = 0; f < features; ++f) {
    minus_mean[f] = problem.mean == nullptr ? Scale(0) : -static_cast<const Scale*>(problem.mean)[f];
  }
  auto* partial = static_cast<Scale*>(host.scratch(kPartial, chunks * features * padded * sizeof(Scale)));
  auto* bias = static_cast<double*>(host.scratch(kPartialBias, chunks * padded * sizeof(double)));
  std::fill(bias, bias + chunks * padded, 0.0);
  const WeightGradientJob<Branch, T, Scale> job{problem, host, {x, problem.taps, memory, problem.z}, tiling, minus_mean,
                                                partial, bias};
  sum_in_parts(tiles, 1, partial, features * padded, chunks, host,
               [&](int64_t begin, int64_t end) { run_chunks(job, end - begin, chunks, host, begin); });
  for (int64_t o = 0; o < x.channels; ++o) {
    for (int64_t f = 0; f < features; ++f) {
      static_cast<Scale*>(problem.dweight)[o * features + f] = partial[f * padded + o];
    }
    double total = 0;
    for (int64_t chunk = 0; chunk < chunks; ++chunk) total += bias[chunk * padded + o];
    static_cast<Scale*>(problem.dbias)[o] = static_cast<Scale>(total);
  }
}

template <class Branch>
void weight_gradient(const GradientProblem& problem, const Host& host) {
  for_scalar(problem.scalar,
             [&](auto x, auto scale) { weight_gradient<Branch, decltype(x), decltype(scale)>(problem, host); });
}

}  // namespace leni_kernels::two_branch::inline LENI_KERNELS_TARGET
LENI_KERNELS_END
