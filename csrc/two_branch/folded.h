// The folded form in one pass: y = weight · ([max(x, 0); z] − mean) + bias.
//
// LENI's reads x once and writes y once, 2T where T is the bytes of one activation tensor: no pass can do with less,
// since every output needs an input and every input may matter. A tile of x is expanded into its positive part and its
// deconvolved negative part, 2C values a pixel that stay in the L2 cache, and multiplied there by the packed weights.
// Halo rows are read again from cache. Reborn's reads z beside x. Saves nothing.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "kernels/amx.h"
#include "kernels/half.h"
#include "kernels/kernel.h"
#include "kernels/product.h"
#include "kernels/scalar.h"
#include "kernels/simd.h"
#include "kernels/target.h"
#include "two_branch/expand.h"
#include "two_branch/problem.h"
#include "two_branch/tiles.h"

LENI_KERNELS_BEGIN
namespace leni_kernels::two_branch::inline LENI_KERNELS_TARGET {

// ---- the problem with its parameters packed ----------------------------------------------------------------

template <class Product, class Scale>
struct Packed {
  const typename Product::Element* weight;
  const Scale* bias;        // padded to whole vectors
  const Scale* minus_mean;  // [2C]
  Expansion<Scale> expansion;
};

template <class Product, class Scale>
Packed<Product, Scale> pack(const FoldedProblem& problem, int64_t taps, const Host& host) {
  constexpr int width = Product::Acc::width;
  const int64_t channels = problem.x.channels;
  const int64_t padded = round_up(channels, width), steps = branch_steps<Product>(channels);
  const int64_t weight_bytes = round_up(padded * 2 * steps * sizeof(typename Product::Element), 64);
  const int64_t taps_bytes = padded * taps * sizeof(Scale);
  const int64_t vector_bytes = (padded + 2 * channels) * sizeof(Scale);
  char* memory = static_cast<char*>(host.scratch(0, weight_bytes + taps_bytes + vector_bytes));
  auto* packed_weight = reinterpret_cast<typename Product::Element*>(memory);
  auto* packed_taps = reinterpret_cast<Scale*>(memory + weight_bytes);
  Scale *bias = packed_taps + padded * taps, *minus_mean = bias + padded;

  pack_taps(static_cast<const Scale*>(problem.taps), problem.x, taps, padded, packed_taps);
  std::memset(bias, 0, vector_bytes);
  std::memcpy(bias, problem.bias, channels * sizeof(Scale));
  const auto* weight = static_cast<const Scale*>(problem.weight);
  for (int branch = 0; branch < 2; ++branch) {
    const auto* mean = static_cast<const Scale*>(branch == 0 ? problem.positive_mean : problem.negative_mean);
    for (int64_t c = 0; mean != nullptr && c < channels; ++c) {
      minus_mean[branch * channels + c] = -mean[c];
    }
  }
  pack_weight<Product>(output_channels(problem.x), weight, channels, 2, steps, packed_weight);
  return {packed_weight, bias, minus_mean, {packed_taps, padded, steps, problem.z}};
}

// ---- one tile ----------------------------------------------------------------------------------------------

// A branch's steps past its channels are zero: branch_steps() made them whole matrix tiles, or whole pairs.
template <class Product, class Scale>
void zero_planar_steps(const Expansion<Scale>& expansion, int64_t channels, int64_t pixels,
                       typename Product::Element* expanded) {
  const int64_t steps = ceil_div(channels, Product::group);
  for (int64_t branch = 0; branch < 2; ++branch) {
    std::memset(expanded + (branch * expansion.branch_steps + steps) * pixels, 0,
                (expansion.branch_steps - steps) * pixels * sizeof(typename Product::Element));
  }
}

template <class Value>
void zero_interleaved_steps(int64_t branch, int64_t channels, int64_t pixels, Value* expanded) {
  for (int64_t row = 0; branch > channels && row < 2 * pixels; ++row) {
    std::fill(expanded + row * branch + channels, expanded + (row + 1) * branch, Value{});
  }
}

// The last vector of a run of pixels may reach past them, where it meets numbers that go nowhere; but those that memory
// happens to hold may be denormal, which are a hundred times slower to multiply.
template <class Product>
void zero_past_runs(const Runs& runs, const Tile& tile, int64_t steps, int64_t pixels,
                    typename Product::Element* expanded) {
  const int64_t length = round_up(runs.length, Product::Acc::width);
  for (int64_t step = 0; length > runs.length && step < steps; ++step) {
    for (int64_t run = 0; run < runs.count; ++run) {
      typename Product::Element* begin = expanded + step * pixels + run * tile.pitch;
      std::fill(begin + runs.length, begin + (run + 1 < runs.count ? std::min(length, tile.pitch) : length),
                typename Product::Element{});
    }
  }
}

template <class Product, class Branch, bool kOffset, class T, class Scale>
void planar_tile(const FoldedProblem& problem, const Packed<Product, Scale>& packed, const Tile& tile,
                 typename Product::Element* expanded, int64_t pixels) {
  using Store = PlanarStore<Product, Scale, true, kOffset>;
  const Activation& x = problem.x;
  const int64_t plane = x.height * x.width, branch = packed.expansion.branch_steps;
  zero_planar_steps<Product>(packed.expansion, x.channels, pixels, expanded);
  const Store store{expanded,          expanded + branch * pixels,    pixels, tile.pitch, x.channels,
                    packed.minus_mean, packed.minus_mean + x.channels};
  using Expander = typename Branch::template Planar<Product, T, Scale, Store>;
  Expander{x, packed.expansion, tile, store}.run();
  const Runs runs(x, tile);
  zero_past_runs<Product>(runs, tile, 2 * branch, pixels, expanded);
  for (int64_t run = 0; run < runs.count; ++run) {
    T* out = static_cast<T*>(problem.y) + tile.image * x.channels * plane + (tile.row + run) * x.width + tile.column;
    multiply_all<Product, Channels::kRows, T, Scale>(
        {2 * branch, packed.weight, 2 * branch, expanded + run * tile.pitch, pixels, packed.bias, out, plane,
         runs.length, 0, streams<T>(x)},
        x.channels);
  }
}

template <class Product, class Branch, bool kOffset, class T, class Scale>
void interleaved_tile(const FoldedProblem& problem, const Packed<Product, Scale>& packed, const Tile& tile,
                      typename Product::Element* expanded, Ahead* ahead) {
  using Store = InterleavedStore<Product, Scale, true, kOffset>;
  const Activation& x = problem.x;
  const int64_t steps = 2 * packed.expansion.branch_steps, branch = packed.expansion.branch_steps * Product::group;
  auto* values = reinterpret_cast<typename Store::Value*>(expanded);
  zero_interleaved_steps(branch, x.channels, tile.rows * tile.pitch, values);
  const Store store{values,
                    values + branch,
                    Vec<Scale>::width,
                    2 * branch,
                    tile.pitch * 2 * branch,
                    packed.minus_mean,
                    packed.minus_mean + x.channels};
  using Expander = typename Branch::template Interleaved<Product, T, Scale, Store>;
  Expander{x, packed.expansion, tile, store}.run();
  const Runs runs(x, tile);
  for (int64_t run = 0; run < runs.count; ++run) {
    T* out =
        static_cast<T*>(problem.y) + ((tile.image * x.height + tile.row + run) * x.width + tile.column) * x.channels;
    multiply_all<Product, Channels::kVectors, T, Scale>(
        {steps, expanded + run * tile.pitch * steps, steps, packed.weight, 0, packed.bias, out, x.channels, x.channels,
         0, streams<T>(x), ahead},
        runs.length);
  }
}

// ---- the whole problem -------------------------------------------------------------------------------------

template <class Product, class Branch, bool kOffset, class T, class Scale>
struct FoldedJob {
  const FoldedProblem& problem;
  const Host& host;
  Packed<Product, Scale> packed;
  Tiling tiling;

  // What tile ``index`` fetches for the next one: the rows that it has not read itself, unless most of them is not x's.
  // (In NCHW the expander walks down many planes at once, and fetches for itself.)
  Ahead next(int64_t index) const {
    const Activation& x = problem.x;
    if (x.stride_column > 2 * x.channels) return {};
    const Tile tile = tiling.tile(index, x), next = tiling.tile(index + 1, x);
    const Runs runs(x, tile);
    const int64_t first = next.row + (next.row > 0 ? Branch::reach : 0);
    Ahead ahead;
    ahead.at = reinterpret_cast<const char*>(static_cast<const T*>(x.data) + next.image * x.stride_batch +
                                             first * x.stride_row + next.column * x.stride_column);
    ahead.bytes = next.columns * x.stride_column * sizeof(T);
    ahead.stride = x.stride_row * sizeof(T);
    ahead.rows = std::min(next.row + next.rows + Branch::reach, x.height) - first;
    const int64_t vectors = ceil_div(x.channels, kChannelVectors * Product::Acc::width);
    const int64_t blocks = runs.count * std::max<int64_t>(runs.length / kPixelRows, 1) * vectors;
    ahead.lines = ceil_div(ceil_div(ahead.bytes, kLineBytes) * ahead.rows, blocks);
    return ahead;
  }

  static void tiles(const void* context, int64_t begin, int64_t end) {
    const FoldedJob& job = *static_cast<const FoldedJob*>(context);
    // A block's last vectors or rows may reach past the tile's pixels.
    const int64_t pixels = round_up(job.tiling.rows * job.tiling.pitch, Product::Acc::width) + kBeyond<Product>;
    const int64_t steps = 2 * job.packed.expansion.branch_steps;
    [[maybe_unused]] const typename Product::Session session;
    auto* expanded = static_cast<typename Product::Element*>(
        job.host.scratch(1, pixels * steps * sizeof(typename Product::Element)));
    for (int64_t index = begin; index < end; ++index) {
      const Tile tile = job.tiling.tile(index, job.problem.x);
      if (job.problem.x.channels_last) {
        Ahead ahead = index + 1 < end ? job.next(index) : Ahead{};
        interleaved_tile<Product, Branch, kOffset, T, Scale>(job.problem, job.packed, tile, expanded, &ahead);
      } else {
        planar_tile<Product, Branch, kOffset, T, Scale>(job.problem, job.packed, tile, expanded, pixels);
      }
    }
    streamed();
  }
};

template <class Product, class Branch, bool kOffset, class T, class Scale>
void run_tiles(const FoldedProblem& problem, const Host& host) {
  using Job = FoldedJob<Product, Branch, kOffset, T, Scale>;
  const int64_t pixel_bytes = 2 * branch_steps<Product>(problem.x.channels) * sizeof(typename Product::Element);
  const Tiling tiling = choose_tiling(problem.x, pixel_bytes, Product::Acc::width, host.threads, kTileBytes);
  const Job job{problem, host, pack<Product, Scale>(problem, Branch::taps, host), tiling};
  host.parallel_for(tiling.tiles(problem.x), &job, &Job::tiles);
}

template <class Product, class Branch, class T, class Scale>
void folded(const FoldedProblem& problem, const Host& host) {
  if (problem.negative_mean == nullptr) {
    run_tiles<Product, Branch, false, T, Scale>(problem, host);
  } else {
    run_tiles<Product, Branch, true, T, Scale>(problem, host);
  }
}

template <class Branch>
void folded(const FoldedProblem& problem, const Host& host) {
#if LENI_KERNELS_ISA == LENI_KERNELS_AMX
  folded<TileProduct, Branch, BFloat16, float>(problem, host);
#elif LENI_KERNELS_ISA == LENI_KERNELS_AVX512_BF16
  folded<PairProduct, Branch, BFloat16, float>(problem, host);
#else
  for_scalar(problem.scalar, [&](auto x, auto scale) {
    folded<ScalarProduct<decltype(scale)>, Branch, decltype(x), decltype(scale)>(problem, host);
  });
#endif
}

}  // namespace leni_kernels::two_branch::inline LENI_KERNELS_TARGET
LENI_KERNELS_END
