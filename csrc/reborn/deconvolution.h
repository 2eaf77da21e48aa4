// Reborn's dense 3×3 deconvolution in training, z = D ⋆ᵀ min(x, 0), and z's statistics.
//
// Reads x and writes z, 2T where T is the bytes of one activation tensor, the least: the statistics of z are summed
// where its tiles are transformed back. Overlaps of tiles come from cache, where the transformed tiles stay. Saves
// nothing. In float, of x and z in T: float, or float16, whose z has the statistics of what is written.
#pragma once

#include <algorithm>
#include <cstdint>

#include "kernels/chunks.h"
#include "kernels/kernel.h"
#include "kernels/product.h"
#include "kernels/target.h"
#include "reborn/problem.h"
#include "reborn/winograd.h"
#include "two_branch/statistics.h"
#include "two_branch/tiles.h"
#include "two_branch/training.h"

LENI_KERNELS_BEGIN
namespace leni_kernels::reborn::inline LENI_KERNELS_TARGET {

// What this pass and the last of the backward do with a block of tiles, from ``begin`` to ``end``.
struct WinogradPass {
  using Product = ScalarProduct<float>;
  using V = WinogradVec;
  static constexpr int64_t width = V::width;

  const Host& host;
  WinogradTiling tiling;
  int64_t channels, weight_size;  // of the transformed weights: from one of the 36 points to the next
  const float* weight = nullptr;  // transformed and packed
  const float* zeros = nullptr;

  WinogradPass(const Activation& x, const Host& host)
      : host(host), tiling(x, host.threads), channels(x.channels), weight_size(tiling.padded * x.channels + width) {}

  int64_t chunks() const { return std::min(tiling.count, host.threads); }

  void transform_weight(const void* raw, bool transposed) {
    auto* packed = static_cast<float*>(host.scratch(kShared, (kPoints * weight_size + tiling.padded) * sizeof(float)));
    std::fill(packed + kPoints * weight_size, packed + kPoints * weight_size + tiling.padded, 0.0f);
    run_chunks(WinogradPacking{static_cast<const float*>(raw), transposed, channels, weight_size, packed}, channels,
               std::min(channels, host.threads), host);
    weight = packed;
    zeros = packed + kPoints * weight_size;
  }

  // Room for a block's tiles and one point more, which forward needs, and for one vector of channels of a segment,
  // where transposing reaches a vector further.
  float* tiles(int slot) const {
    return static_cast<float*>(host.scratch(slot, (kPoints + 1) * tiling.point_size * sizeof(float)));
  }
  float* patch(int slot) const {
    const int64_t columns = std::min(tiling.across, tiling.block) * kSide + 2 + width;
    return static_cast<float*>(host.scratch(slot, kReach * columns * width * sizeof(float)));
  }

  template <class Body>
  void for_blocks(int64_t begin, int64_t end, const Body& body) const {
    for (; begin < end; begin += tiling.block) body(begin, std::min(begin + tiling.block, end));
  }

  template <class T, bool kNegative>
  void transform(const Activation& x, int64_t begin, int64_t end, float* patch, float* to) const {
    for_segments(tiling, begin, end, [&](const Segment& segment) {
      for (int64_t c = 0; c < channels; c += width) {
        read_patch<T>(x, segment, 1, c, patch);
        transform_tiles<InputTransform, kNegative>(patch, segment, tiling.point_size, tiling.padded,
                                                   to + segment.first * tiling.padded + c);
      }
    });
  }

  void multiply(int64_t tiles, const float* inputs, float* products) const {
    const int64_t padded = tiling.padded, point_size = tiling.point_size;
    for (int point = 0; point < kPoints; ++point) {
      multiply_all<Product, Channels::kVectors, float, float>(
          {channels, inputs + point * point_size, padded, weight + point * weight_size, 0, zeros,
           products + point * point_size, padded, padded},
          tiles);
    }
  }
};

// ---- forward -----------------------------------------------------------------------------------------------

template <class T>
struct DeconvolutionJob {
  using V = WinogradVec;

  const DeconvolutionProblem& problem;
  const WinogradPass& pass;
  Moments* moments;  // [chunk][C]

  // A chunk's buffers: tiles of x and of products, one vector of a segment's channels, and, of each channel, the
  // negative shift of its values and a block's sums of their distances from it and of the squares of these.
  struct Buffers {
    float *inputs, *products, *patch, *minus_shift, *distances, *squares;
  };

  void run(int64_t chunk, int64_t begin, int64_t end) const {
    const WinogradTiling& tiling = pass.tiling;
    auto* sums = static_cast<float*>(pass.host.scratch(kNegativeRaw, 3 * tiling.padded * sizeof(float)));
    std::fill(sums, sums + tiling.padded, 0.0f);
    // A point's products take the place of what was multiplied for the point before, which the cache still has.
    float* products = pass.tiles(kExpanded);
    const Buffers at{products + tiling.point_size, products, pass.patch(kPadded), sums, sums + tiling.padded,
                     sums + 2 * tiling.padded};
    pass.for_blocks(begin, end, [&](int64_t first, int64_t last) {
      pass.transform<T, true>(problem.x, first, last, at.patch, at.inputs);
      pass.multiply(last - first, at.inputs, at.products);
      // The first block's distances are from its own mean, the others' from the mean of the block before.
      if (first == begin) finish<false>(first, last, at, chunk);
      finish<true>(first, last, at, chunk);
    });
  }

  // Writes a block and adds it to the moments, or only takes its mean for the next shift.
  template <bool kKept>
  void finish(int64_t begin, int64_t end, const Buffers& at, int64_t chunk) const {
    const WinogradTiling& tiling = pass.tiling;
    int64_t count = 0;
    std::fill(at.distances, at.distances + 2 * tiling.padded, 0.0f);
    for_segments(tiling, begin, end, [&](const Segment& segment) {
      const Tile pixels = segment.pixels(problem.x, segment.tiles * kSide);
      count += pixels.rows * pixels.columns;
      for (int64_t c = 0; c < pass.channels; c += V::width) {
        transform_back(at.products + segment.first * tiling.padded + c, segment, tiling.point_size, tiling.padded,
                       at.patch);
        add(pixels, c, at);
        if (kKept) write_patch(at.patch, problem.x, segment, c, static_cast<T*>(problem.z));
      }
    });
    for (int64_t c = 0; c < pass.channels; ++c) {
      merge_part(static_cast<double>(count), at.distances[c], at.squares[c], kKept, at.minus_shift[c],
                 moments[chunk * pass.channels + c]);
    }
  }

  void add(const Tile& pixels, int64_t channel, const Buffers& at) const {
    BranchSums<float> sums{V::load(at.minus_shift + channel), V::load(at.distances + channel),
                           V::load(at.squares + channel)};
    for (int64_t row = 0; row < pixels.rows; ++row) {
      for (int64_t i = 0; i < pixels.columns; ++i) {
        sums.add(kept_as<T>(V::load(at.patch + (row * pixels.pitch + i) * V::width)));
      }
    }
    sums.distances.store(at.distances + channel);
    sums.squares.store(at.squares + channel);
  }
};

inline void deconvolve(const DeconvolutionProblem& problem, const Host& host) {
  WinogradPass pass(problem.x, host);
  pass.transform_weight(problem.deconv_weight, true);
  const int64_t chunks = pass.chunks();
  auto* moments = static_cast<Moments*>(host.scratch(kPartial, chunks * pass.channels * sizeof(Moments)));
  std::fill(moments, moments + chunks * pass.channels, Moments{});
  for_winograd(problem.scalar, [&](auto x) {
    run_chunks(DeconvolutionJob<decltype(x)>{problem, pass, moments}, pass.tiling.count, chunks, host);
  });
  merge_chunks<float>(moments, chunks, pass.channels, problem.mean, problem.variance);
}

}  // namespace leni_kernels::reborn::inline LENI_KERNELS_TARGET
LENI_KERNELS_END
