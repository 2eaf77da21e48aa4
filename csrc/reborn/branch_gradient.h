// The gradient of either branch of Reborn's tail, y = weight · [max(x, 0); z] + bias.
//
// The negative branch's, dz, is a product with dy plus what reaches z through its norm's statistics: reads dy and z,
// writes dz, 3T where T is the bytes of one activation tensor (2T with running statistics, which need no z). The
// positive branch's pass comes after the deconvolution of dz, where deconv_gradient.h does not do both, and joins
// the two into dx: reads dy, x and the deconvolved dz, writes dx, 4T. Nothing between is written; nothing is saved.
#pragma once

#include <algorithm>
#include <cstdint>

#include "kernels/chunks.h"
#include "kernels/kernel.h"
#include "kernels/product.h"
#include "kernels/scalar.h"
#include "kernels/simd.h"
#include "kernels/target.h"
#include "reborn/problem.h"
#include "two_branch/tiles.h"
#include "two_branch/training.h"

LENI_KERNELS_BEGIN
namespace leni_kernels::reborn::inline LENI_KERNELS_TARGET {

template <class T, class Scale>
struct BranchGradientJob {
  using Product = ScalarProduct<Scale>;
  using V = Vec<Scale>;

  const BranchGradientProblem& problem;
  const Host& host;
  Tiling tiling;
  const Scale* weight;  // packed, for the product from dy
  const Scale* zeros;

  void run(int64_t, int64_t begin, int64_t end) const {
    const Activation& x = problem.x;
    const int64_t padded = round_up(x.channels, V::width), pixels = room<Scale>(tiling.rows * tiling.pitch);
    const int64_t bytes = (pixels + 1) * padded * sizeof(Scale), step = x.channels_last ? padded : pixels;
    auto* grad = static_cast<Scale*>(host.scratch(kGradient, bytes));
    auto* product = static_cast<Scale*>(host.scratch(kNegativeRaw, bytes));
    for (int64_t index = begin; index < end; ++index) {
      const Tile tile = tiling.tile(index, x);
      gather_tile<T>(problem.grad, tile, x.channels_last, step, grad);
      multiply(tile.rows * tile.pitch, grad, step, product);
      const Tile finished = rows_follow(x, tile) && rows_follow(other(), tile) ? joined(tile) : tile;
      for (int64_t row = 0; row < finished.rows; ++row) {
        if (x.channels_last) {
          finish_interleaved(finished, row, product, step);
        } else {
          finish_planar(finished, row, product, step);
        }
      }
    }
  }

  void multiply(int64_t pixels, const Scale* grad, int64_t step, Scale* product) const {
    const int64_t channels = problem.x.channels;
    if (problem.x.channels_last) {
      multiply_all<Product, Channels::kVectors, Scale, Scale>(
          {channels, grad, step, weight, 0, zeros, product, step, channels}, pixels);
    } else {
      multiply_all<Product, Channels::kRows, Scale, Scale>(
          {channels, weight, channels, grad, step, zeros, product, step, pixels}, channels);
    }
  }

  // ``count`` neighbours of the output.
  void finish(const Scale* product, const T* x, const T* other, V constant, V slope, T* out, int64_t count) const {
    V value = load_some<V>(product, count);
    if (problem.negative != nullptr) {
      value = V::by_sign(load_some<V>(x, count), value, load_some<V>(other, count));
    } else if (problem.slope != nullptr) {
      value = V::add(value, V::fma(load_some<V>(x, count), slope, constant));
    }
    store_some(value, out, count);
  }

  const Activation& other() const { return problem.negative == nullptr ? problem.x : *problem.negative; }

  void finish_interleaved(const Tile& tile, int64_t row, const Scale* product, int64_t step) const {
    const Activation& x = problem.x;
    const T *from = pixel_of<T>(x, tile, row), *joined = pixel_of<T>(other(), tile, row);
    T* out =
        static_cast<T*>(problem.out) + ((tile.image * x.height + tile.row + row) * x.width + tile.column) * x.channels;
    for (int64_t c = 0; c < x.channels; c += V::width) {
      const int64_t count = x.channels - c;
      const auto lanes = [&](const void* vector) {
        return vector == nullptr ? V::zero() : load_some<V>(static_cast<const Scale*>(vector) + c, count);
      };
      const V constant = lanes(problem.constant), slope = lanes(problem.slope);
      for (int64_t column = 0; column < tile.columns; ++column) {
        finish(product + (row * tile.pitch + column) * step + c, from + column * x.stride_column + c,
               joined + column * other().stride_column + c, constant, slope, out + column * x.channels + c, count);
      }
    }
  }

  void finish_planar(const Tile& tile, int64_t row, const Scale* product, int64_t step) const {
    const Activation& x = problem.x;
    for (int64_t c = 0; c < x.channels; ++c) {
      const auto lanes = [&](const void* vector) {
        return vector == nullptr ? V::zero() : V::broadcast(static_cast<const Scale*>(vector)[c]);
      };
      const V constant = lanes(problem.constant), slope = lanes(problem.slope);
      const T* from = pixel_of<T>(x, tile, row) + c * x.stride_channel;
      const T* joined = pixel_of<T>(other(), tile, row) + c * other().stride_channel;
      T* out = static_cast<T*>(problem.out) + ((tile.image * x.channels + c) * x.height + tile.row + row) * x.width +
               tile.column;
      for (int64_t i = 0; i < tile.columns; i += V::width) {
        finish(product + c * step + row * tile.pitch + i, from + i, joined + i, constant, slope, out + i,
               tile.columns - i);
      }
    }
  }
};

template <class T, class Scale>
void branch_gradient(const BranchGradientProblem& problem, const Host& host) {
  const Activation& x = problem.x;
  const int64_t padded = round_up(x.channels, Vec<Scale>::width), square = x.channels * padded;
  auto* weight = static_cast<Scale*>(host.scratch(kShared, (2 * square + padded) * sizeof(Scale)));
  Scale *transposed = weight + square, *zeros = transposed + square;
  std::fill(zeros, zeros + padded, Scale(0));
  const int64_t branch = problem.negative == nullptr;
  pack_transposed(output_channels(x), static_cast<const Scale*>(problem.weight), branch, x.channels, transposed,
                  weight);
  const Tiling tiling = choose_tiling(x, 2 * padded * sizeof(Scale), Vec<Scale>::width, host.threads, kTileBytes);
  const int64_t tiles = tiling.tiles(x);
  run_chunks(BranchGradientJob<T, Scale>{problem, host, tiling, weight, zeros}, tiles, std::min(tiles, host.threads),
             host);
}

inline void branch_gradient(const BranchGradientProblem& problem, const Host& host) {
  for_scalar(problem.scalar, [&](auto x, auto scale) { branch_gradient<decltype(x), decltype(scale)>(problem, host); });
}

}  // namespace leni_kernels::reborn::inline LENI_KERNELS_TARGET
LENI_KERNELS_END
