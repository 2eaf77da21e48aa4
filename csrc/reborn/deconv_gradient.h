// The last pass of Reborn's backward, where its deconvolution is dense and 3×3: the gradients of x and of D.
//
// Reads the gradients of z and of y and x, and writes x's gradient, 4T where T is the bytes of one activation tensor:
// what goes through the deconvolution is written to no memory, since it meets the positive branch's gradient where its
// tiles are transformed back, and D's gradient shares the transformed gradient of z. Overlaps of tiles come from cache,
// where the transformed tiles stay. Saves nothing. In float, of activations in T: float, or float16.
//
// D's gradient is that of a convolution with x and z's gradient in each other's places: the tiles of z's gradient are
// transformed as an input's, those of min(x, 0) as a gradient's.
#pragma once

#include <algorithm>
#include <cstdint>

#include "kernels/chunks.h"
#include "kernels/kernel.h"
#include "kernels/product.h"
#include "kernels/target.h"
#include "reborn/deconvolution.h"
#include "reborn/problem.h"
#include "reborn/winograd.h"
#include "two_branch/tiles.h"
#include "two_branch/training.h"

LENI_KERNELS_BEGIN
namespace leni_kernels::reborn::inline LENI_KERNELS_TARGET {

template <class T>
struct DeconvGradientJob {
  using Product = ScalarProduct<float>;
  using V = WinogradVec;
  static constexpr int64_t width = V::width;

  const DeconvGradientProblem& problem;
  const WinogradPass& pass;
  const float* weight;  // of the positive branch, packed for the product from dy
  float* partial;       // [chunk][36][C][C padded]: D's gradient, transformed, or null

  // A chunk's buffers: tiles of z's gradient; tiles of products, in whose places x's come; one vector of a segment's
  // channels of a gradient and of x; all of a segment's channels of dy and of the positive branch's gradient.
  struct Buffers {
    float *grad_z_tiles, *tiles, *patch, *x, *grad, *positive;
  };

  void run(int64_t chunk, int64_t begin, int64_t end) const {
    const WinogradTiling& tiling = pass.tiling;
    const int64_t pixels = kSide * kSide * std::min(tiling.across, tiling.block) * tiling.padded;
    auto* grad = static_cast<float*>(pass.host.scratch(kPositiveRaw, 2 * pixels * sizeof(float)));
    const Buffers at{pass.tiles(kExpanded), pass.tiles(kGradient), pass.patch(kPadded), pass.patch(kNegativeRaw), grad,
                     grad + pixels};
    float* sums = partial == nullptr ? nullptr : partial + chunk * kPoints * pass.weight_size;
    pass.for_blocks(begin, end, [&](int64_t first, int64_t last) {
      pass.transform<T, false>(problem.grad_z, first, last, at.patch, at.grad_z_tiles);
      if (problem.dx != nullptr) pass.multiply(last - first, at.grad_z_tiles, at.tiles);
      for_segments(tiling, first, last, [&](const Segment& segment) { take(segment, at); });
      if (sums != nullptr) add_gradient(last - first, at, sums);
    });
  }

  // Writes dx of a segment, and puts the transformed x where the products were.
  void take(const Segment& segment, const Buffers& at) const {
    const int64_t padded = pass.tiling.padded, point_size = pass.tiling.point_size;
    if (problem.dx != nullptr) multiply_positive(segment, at);
    for (int64_t c = 0; c < pass.channels; c += width) {
      float* tiles = at.tiles + segment.first * padded + c;
      read_patch<T>(problem.x, segment, 0, c, at.x);
      if (problem.dx != nullptr) {
        transform_back(tiles, segment, point_size, padded, at.patch);
        join(segment, c, at);
        write_patch(at.patch, problem.x, segment, c, static_cast<T*>(problem.dx));
      }
      if (partial != nullptr) transform_tiles<GradientTransform, true>(at.x, segment, point_size, padded, tiles);
    }
  }

  void multiply_positive(const Segment& segment, const Buffers& at) const {
    Tile pixels = segment.pixels(problem.x, 0);
    pixels.pitch = pixels.columns;
    const int64_t padded = pass.tiling.padded;
    gather_tile<T>(problem.grad, pixels, true, padded, at.grad);
    multiply_all<Product, Channels::kVectors, float, float>(
        {pass.channels, at.grad, padded, weight, 0, pass.zeros, at.positive, padded, padded},
        pixels.rows * pixels.columns);
  }

  // Each branch's gradient where it is x's.
  void join(const Segment& segment, int64_t channel, const Buffers& at) const {
    const Tile pixels = segment.pixels(problem.x, segment.tiles * kSide);
    for (int64_t row = 0; row < pixels.rows; ++row) {
      float* negative = at.patch + row * pixels.pitch * width;
      const float *x = at.x + row * pixels.pitch * width,
                  *positive = at.positive + row * pixels.columns * pass.tiling.padded + channel;
      for (int64_t i = 0; i < pixels.columns; ++i) {
        V::by_sign(V::load(x + i * width), V::load(positive + i * pass.tiling.padded), V::load(negative + i * width))
            .store(negative + i * width);
      }
    }
  }

  void add_gradient(int64_t tiles, const Buffers& at, float* sums) const {
    const int64_t padded = pass.tiling.padded;
    for (int point = 0; point < kPoints; ++point) {
      const int64_t first = point * pass.tiling.point_size;
      multiply_all<Product, Channels::kSummed, float, float>(
          {tiles, at.tiles + first, 1, at.grad_z_tiles + first, padded, nullptr, sums + point * pass.weight_size,
           padded, padded, padded},
          pass.channels);
    }
  }
};

inline void deconv_gradient(const DeconvGradientProblem& problem, const Host& host) {
  WinogradPass pass(problem.x, host);
  const int64_t channels = pass.channels, padded = pass.tiling.padded, size = kPoints * pass.weight_size;
  const int64_t chunks = pass.chunks();
  float *positive = nullptr, *partial = nullptr;
  if (problem.dx != nullptr) {
    pass.transform_weight(problem.deconv_weight, false);
    positive =
        static_cast<float*>(host.scratch(kPartialBias, (channels * padded + channels * channels) * sizeof(float)));
    pack_transposed(Channels::kVectors, static_cast<const float*>(problem.weight), 0, channels,
                    positive + channels * padded, positive);
  }
  if (problem.ddeconv_weight != nullptr) {
    partial = static_cast<float*>(host.scratch(kPartial, chunks * size * sizeof(float)));
  }
  const auto add = [&](int64_t begin, int64_t end) {
    for_winograd(problem.scalar, [&](auto x) {
      run_chunks(DeconvGradientJob<decltype(x)>{problem, pass, positive, partial}, end - begin, chunks, host, begin);
    });
  };
  if (partial == nullptr) return add(0, pass.tiling.count);
  sum_in_parts(pass.tiling.count, pass.tiling.block, partial, size, chunks, host, add);
  run_chunks(
      WinogradUnpacking{partial, channels, padded, pass.weight_size, static_cast<float*>(problem.ddeconv_weight)},
      channels, std::min(channels, host.threads), host);
}

}  // namespace leni_kernels::reborn::inline LENI_KERNELS_TARGET
LENI_KERNELS_END
