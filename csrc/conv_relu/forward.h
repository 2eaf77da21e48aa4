// ConvReLU in one pass: y[n, o, q] = bias[o] + Σ weight[o, c, t] · max(x[n, c, q·stride + offset_t], threshold[c, t]).
//
// T is the bytes of x, U of y. Reads x once and writes y once, T + U, and no pass can do with less; each tap's further
// look at x comes from cache. A tile of sites is expanded to [depth × sites], a block of the depth (channels × taps)
// at a time, so that it stays in the L2 cache, and multiplied there by the weights; nothing of the size of taps · x is
// ever in memory. Saves nothing.
// Where every group has one channel, depthwise.h has the pass.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "conv_relu/depthwise.h"
#include "conv_relu/expand.h"
#include "conv_relu/problem.h"
#include "kernels/amx.h"
#include "kernels/half.h"
#include "kernels/kernel.h"
#include "kernels/product.h"
#include "kernels/scalar.h"
#include "kernels/simd.h"
#include "kernels/target.h"

LENI_KERNELS_BEGIN
namespace leni_kernels::conv_relu::inline LENI_KERNELS_TARGET {

constexpr int64_t kDepthBytes = 2304;  // of one site's share of the expanded tile, so that a tile has enough sites

// How the product is cut. A share is what one thread does at least: the outputs of one chunk for one tile.
template <class Product>
struct Plan {
  Channels side;
  int64_t groups, channels, outputs, depth;  // the last three of a group
  int64_t steps, block_steps;                // of the depth
  int64_t plane, span;                       // sites of an image; sites over which tiles follow each other
  int64_t tile_sites, tiles_per_span, tiles;
  int64_t chunk, chunks;  // output channels that are multiplied at once, and how many such chunks a group has

  Plan(const ConvRelu& problem, int64_t threads) {
    constexpr int64_t width = Product::Acc::width, element = sizeof(typename Product::Element);
    side = problem.x.channels_last ? Channels::kVectors : Channels::kRows;
    groups = problem.groups;
    channels = problem.x.channels / groups;
    outputs = problem.out_channels / groups;
    depth = channels * problem.tap_count;
    const bool vectors = side == Channels::kVectors;
    chunk = vectors ? kChannelVectors * width : std::max<int64_t>(Product::tile_rows, kChannelRows);
    chunks = ceil_div(outputs, chunk);

    constexpr int64_t whole = std::max(Product::tile_rows, 1);
    steps = round_up(ceil_div(depth, Product::group), whole);
    block_steps = round_up(even_share(steps, kDepthBytes / element), whole);

    plane = problem.out_size[0] * problem.out_size[1] * problem.out_size[2];
    const int64_t sites = problem.x.batch * plane;
    const int64_t unit = vectors ? kPixelRows : kPixelVectors * width;
    // Where tiles go across images, sums in y are not contiguous; but a small plane wastes lanes of its last vectors.
    const bool own_tiles = !vectors && plane >= 2 * unit && round_up(plane, width) - plane <= plane / 8;
    span = own_tiles ? plane : sites;
    const int64_t most = round_up(ceil_div(kTileBytes, block_steps * element), unit);
    const int64_t enough = ceil_div(threads, ceil_div(sites, span) * groups * chunks);
    tile_sites = std::min(span, round_up(ceil_div(span, std::max(ceil_div(span, most), enough)), unit));
    tiles_per_span = ceil_div(span, tile_sites);
    tiles = sites / span * tiles_per_span;
  }

  Tile tile(int64_t index) const {
    const int64_t first = index % tiles_per_span * tile_sites;
    return {index / tiles_per_span * span + first, std::min(tile_sites, span - first)};
  }

  int64_t padded_outputs() const { return round_up(outputs, chunk); }
  // Where the packed weights of steps step … step + count − 1 are, for the group's outputs from ``first`` on.
  int64_t packed(int64_t step, int64_t count, int64_t group, int64_t first) const {
    return step * groups * padded_outputs() + (group * padded_outputs() + first) * count;
  }
};

// ---- packing -----------------------------------------------------------------------------------------------

template <class Scale, class T>
inline void copy_row(const Scale* from, int64_t count, T* to) {
  constexpr int64_t width = Vec<Scale>::width;
  int64_t i = 0;
  for (; i + width <= count; i += width) Vec<Scale>::load(from + i).store(to + i);
  if (i < count) {
    const Lanes lanes = Lanes::range(0, count - i);
    Vec<Scale>::load(from + i, lanes).store(to + i, lanes);
  }
}

// Where channels are rows, weights in the order of the depth and of the product's own type are read in place; others
// are packed [group][output][step]. Where they are vectors the order is [block of steps][group][panel][step][output].
template <class Product, class Scale>
struct PackJob {
  using Element = typename Product::Element;
  static constexpr int64_t width = Product::Acc::width;
  static constexpr int group = Product::group;

  const ConvRelu& problem;
  const Host& host;
  const Plan<Product>& plan;
  Element* packed;

  // Whether an output's weights are contiguous [channel][tap].
  static bool dense(const ConvRelu& problem) {
    return problem.weight_stride[2] == 1 && problem.weight_stride[1] == problem.tap_count;
  }

  // Rows that are one and the same, as those of an expanded weight, are packed.
  static bool in_place(const ConvRelu& problem, const Plan<Product>& plan) {
    return plan.side == Channels::kRows && std::is_same_v<Element, Scale> && dense(problem) &&
           problem.weight_stride[0] >= plan.depth;
  }

  // Chunks begin … end − 1 of all groups' output channels.
  static void chunks(const void* context, int64_t begin, int64_t end) {
    const PackJob& job = *static_cast<const PackJob*>(context);
    const Plan<Product>& plan = job.plan;
    const int64_t depths = plan.steps * group;
    auto* rows = static_cast<Scale*>(job.host.scratch(kExpanded, depths * std::max(plan.chunk, width) * sizeof(Scale)));
    for (int64_t index = begin; index < end; ++index) {
      const int64_t g = index / plan.chunks, first = index % plan.chunks * plan.chunk;
      if (plan.side == Channels::kRows) {
        for (int64_t o = first; o < first + plan.chunk; ++o) job.row(g, o, rows);
      } else {
        const int64_t lanes = std::min(plan.chunk, round_up(plan.outputs - first, width));
        std::fill(rows, rows + depths * lanes, Scale(0));
        for (int64_t lane = 0; lane < lanes; lane += width) job.collect(g, first + lane, rows + lane, lanes);
        job.panel(g, first, lanes, rows);
      }
    }
  }

  const Scale* weight(int64_t g, int64_t o) const {
    return static_cast<const Scale*>(problem.weight) + (g * plan.outputs + o) * problem.weight_stride[0];
  }

  void row(int64_t g, int64_t o, Scale* values) const {
    std::fill(values, values + plan.steps * group, Scale(0));
    if (o < plan.outputs && dense(problem)) {
      copy_row(weight(g, o), plan.depth, values);
      return put_row(g, o, values);
    }
    for (int64_t c = 0; o < plan.outputs && c < plan.channels; ++c) {
      const Scale* from = weight(g, o) + c * problem.weight_stride[1];
      Scale* to = values + c * problem.tap_count;
      for (int64_t t = 0; t < problem.tap_count; ++t) to[t] = from[t * problem.weight_stride[2]];
    }
    put_row(g, o, values);
  }

  void put_row(int64_t g, int64_t o, const Scale* values) const {
    auto* to = reinterpret_cast<typename Product::Value*>(packed + (g * plan.padded_outputs() + o) * plan.steps);
    copy_row(values, plan.steps * group, to);
  }

  // A vector of output channels from ``first`` on, for every depth k, into rows[k·lanes].
  void collect(int64_t g, int64_t first, Scale* rows, int64_t lanes) const {
    const int64_t row = problem.weight_stride[0], *stride = problem.weight_stride, taps = problem.tap_count;
    const Scale* from = weight(g, first);
    const int64_t outputs = std::min(width, plan.outputs - first);
    const auto rest = [&](int64_t c, int64_t t) {
      Scale* to = rows + (t * plan.channels + c) * lanes;
      for (int64_t o = 0; o < outputs; ++o) to[o] = from[o * row + c * stride[1] + t * stride[2]];
    };
    const bool whole = outputs == width;
    if (stride[1] == 1) {
      const int64_t squares = whole ? plan.channels / width * width : 0;
      for (int64_t t = 0; t < taps; ++t) {
        for (int64_t c = 0; c < squares; c += width) {
          transpose(from + t * stride[2] + c, row, rows + (t * plan.channels + c) * lanes, lanes);
        }
        for (int64_t c = squares; c < plan.channels; ++c) rest(c, t);
      }
      return;
    }
    const int64_t squares = whole && dense(problem) ? plan.depth / width * width : 0;
    for (int64_t j = 0; j < squares; j += width) {
      Scale square[width][width];
      transpose(from + j, row, &square[0][0], width);
      for (int64_t i = 0; i < width; ++i) {
        const int64_t c = (j + i) / taps, t = (j + i) % taps;
        Vec<Scale>::load(square[i]).store(rows + (t * plan.channels + c) * lanes);
      }
    }
    for (int64_t j = squares; j < plan.depth; ++j) rest(j / taps, j % taps);
  }

  void panel(int64_t g, int64_t first, int64_t lanes, const Scale* rows) const {
    for (int64_t step = 0; step < plan.steps; step += plan.block_steps) {
      const int64_t steps = std::min(plan.block_steps, plan.steps - step);
      Element* to = packed + plan.packed(step, steps, g, first);
      for (int64_t s = step; s < step + steps; ++s, to += lanes) {
        for (int64_t o = 0; o < lanes; o += width) {
          const Scale* from = rows + s * group * lanes + o;
          if constexpr (group == 1) {
            Vec<Scale>::load(from).store(to + o);
          } else {
            store_pairs(Vec<float>::load(from), Vec<float>::load(from + lanes), to + o);
          }
        }
      }
    }
  }
};

// ---- tiles -------------------------------------------------------------------------------------------------

constexpr int64_t kOverrun = 64;  // elements that an expander may write past its last

template <class Product, class T, class Scale>
struct ForwardJob {
  using Element = typename Product::Element;

  const ConvReluProblem& problem;
  const Host& host;
  const Plan<Product>& plan;
  const Element* weight;
  int64_t weight_row, weight_group;          // where channels are rows
  const Scale* bias;                         // [groups][padded outputs]
  const typename Product::Value* threshold;  // packed, for channels-last

  // What a thread works in.
  struct Room {
    Windows windows;
    Pieces pieces;  // where vectors are of sites
    Element* expanded;
    int64_t pitch;  // of a step (NCHW)
    Scale* sums;
  };

  // Shares begin … end − 1, numbered [tile][group][chunk]; neighbouring chunks share an expanded tile.
  static void shares(const void* context, int64_t begin, int64_t end) {
    const ForwardJob& job = *static_cast<const ForwardJob*>(context);
    [[maybe_unused]] const typename Product::Session session;
    const Plan<Product>& plan = job.plan;
    constexpr int64_t lanes = Vec<typename Product::Value>::width;
    const int64_t pitch = round_up(plan.tile_sites, Product::Acc::width) + kBeyond<Product>;
    const int64_t sums = (plan.padded_outputs() + kBeyond<Product>)*pitch;
    const int64_t expanded = plan.block_steps * pitch + kOverrun;
    Room room{{job.problem, plan.tile_sites, job.host.scratch(kWindows, Windows::bytes(job.problem, plan.tile_sites))},
              {0, static_cast<Piece*>(job.host.scratch(kPieces, Pieces::bytes(job.problem, plan.tile_sites, lanes)))},
              static_cast<Element*>(job.host.scratch(kExpanded, expanded * sizeof(Element))),
              pitch,
              static_cast<Scale*>(job.host.scratch(kSums, sums * sizeof(Scale)))};
    for (int64_t share = begin, found = -1; share < end;) {
      const int64_t chunk = share % plan.chunks, count = std::min(plan.chunks - chunk, end - share);
      const int64_t group = share / plan.chunks % job.problem.groups;
      const int64_t index = share / plan.chunks / job.problem.groups;
      const Tile tile = plan.tile(index);
      if (index != found) {
        room.windows.find(job.problem, tile);
        if (plan.side == Channels::kRows) {
          room.pieces.find(job.problem, room.windows, lanes);
          job.clear_tail(room, tile);
        }
        found = index;
      }
      job.multiply_tile(room, tile, group, chunk * plan.chunk, std::min((chunk + count) * plan.chunk, plan.outputs));
      share += count;
    }
  }

  // Zeros where the last vector of the tile's sites ends behind all pieces: it is multiplied whole, and a denormal that
  // was left there would take a hundred times as long as a number.
  void clear_tail(const Room& room, const Tile& tile) const {
    const int64_t written = room.pieces.end(Vec<typename Product::Value>::width);
    const int64_t end = round_up(tile.count, Product::Acc::width);
    for (int64_t s = 0; written < end && s < plan.block_steps; ++s) {
      Element* row = room.expanded + s * room.pitch;
      std::fill(row + written, row + end, Element{});
    }
  }

  // The group's outputs first … last − 1.
  void multiply_tile(const Room& room, const Tile& tile, int64_t group, int64_t first, int64_t last) const {
    const bool vectors = plan.side == Channels::kVectors;
    const int64_t image = tile.begin / plan.plane, channel = group * plan.outputs + first;
    const bool one_image = vectors || (tile.begin + tile.count - 1) / plan.plane == image;
    const bool exact = std::is_same_v<T, Scale> || plan.block_steps == plan.steps;  // sums in y lose nothing
    if (one_image && exact) {
      T* out = static_cast<T*>(problem.y);
      out += vectors ? tile.begin * problem.out_channels + channel
                     : (image * problem.out_channels + channel) * plan.plane + tile.begin % plan.plane;
      multiply_blocks(room, tile, group, first, last, out, vectors ? problem.out_channels : plan.plane);
    } else {
      const int64_t row = vectors ? last - first : room.pitch;
      multiply_blocks(room, tile, group, first, last, room.sums, row);
      put_sums(room.sums, row, tile, channel, last - first);
    }
  }

  template <class Out>
  void multiply_blocks(const Room& room, const Tile& tile, int64_t group, int64_t first, int64_t last, Out* out,
                       int64_t out_row) const {
    for (int64_t step = 0; step < plan.steps; step += plan.block_steps) {
      const int64_t steps = std::min(plan.block_steps, plan.steps - step);
      const Depth depth{step * Product::group, std::min((step + steps) * Product::group, plan.depth)};
      const Scale* start = step == 0 ? bias + group * plan.padded_outputs() + first : nullptr;
      if (plan.side == Channels::kVectors) {
        using Expander = InterleavedExpander<Product, T, Scale>;
        Expander{problem, room.windows, threshold}.run(group * plan.channels, depth, steps * Product::group,
                                                       reinterpret_cast<typename Expander::Value*>(room.expanded));
        multiply_all<Product, Channels::kVectors, Out, Scale>(
            {steps, room.expanded, steps, weight + plan.packed(step, steps, group, first), 0, start, out, out_row,
             last - first},
            tile.count);
      } else {
        PlanarExpander<Product, T, Scale>{problem, room.pieces}.run(group * plan.channels, depth, steps, room.pitch,
                                                                    room.expanded);
        multiply_all<Product, Channels::kRows, Out, Scale>(
            {steps, weight + group * weight_group + first * weight_row + step, weight_row, room.expanded, room.pitch,
             start, out, out_row, tile.count},
            last - first);
      }
    }
  }

  void put_sums(const Scale* sums, int64_t row, const Tile& tile, int64_t channel, int64_t outputs) const {
    T* y = static_cast<T*>(problem.y);
    if (plan.side == Channels::kVectors) {
      for (int64_t i = 0; i < tile.count; ++i) {
        copy_row(sums + i * row, outputs, y + (tile.begin + i) * problem.out_channels + channel);
      }
      return;
    }
    for (int64_t at = 0; at < tile.count;) {
      const int64_t image = (tile.begin + at) / plan.plane, site = (tile.begin + at) % plan.plane;
      const int64_t count = std::min(plan.plane - site, tile.count - at);
      for (int64_t o = 0; o < outputs; ++o) {
        copy_row(sums + o * row + at, count, y + (image * problem.out_channels + channel + o) * plan.plane + site);
      }
      at += count;
    }
  }
};

// ---- the whole problem -------------------------------------------------------------------------------------

template <class Product, class T, class Scale>
void convolve(const ConvReluProblem& problem, const Host& host) {
  using Element = typename Product::Element;
  using Value = typename Product::Value;
  using Pack = PackJob<Product, Scale>;
  const Plan<Product> plan(problem, host.threads);
  const bool in_place = Pack::in_place(problem, plan);
  const int64_t outputs = plan.groups * plan.padded_outputs();
  const int64_t weights = in_place ? 0 : round_up(outputs * plan.steps * sizeof(Element), 64);
  const int64_t biases = round_up((outputs + Product::Acc::width) * sizeof(Scale), 64);
  const int64_t thresholds = problem.x.channels_last ? problem.x.channels * problem.tap_count + Vec<Value>::width : 0;
  char* memory = static_cast<char*>(host.scratch(kWeight, weights + biases + thresholds * sizeof(Value)));
  auto* packed = reinterpret_cast<Element*>(memory);
  auto* bias = reinterpret_cast<Scale*>(memory + weights);
  auto* threshold = reinterpret_cast<Value*>(memory + weights + biases);

  if (!in_place) {
    const Pack pack{problem, host, plan, packed};
    host.parallel_for(plan.groups * plan.chunks, &pack, &Pack::chunks);
  }
  std::memset(bias, 0, biases);
  for (int64_t g = 0; g < plan.groups && problem.bias != nullptr; ++g) {
    std::memcpy(bias + g * plan.padded_outputs(), static_cast<const Scale*>(problem.bias) + g * plan.outputs,
                plan.outputs * sizeof(Scale));
  }
  if (problem.x.channels_last) pack_threshold<Value, Scale>(problem, threshold);

  const int64_t row = in_place ? problem.weight_stride[0] : plan.steps;
  const ForwardJob<Product, T, Scale> job{problem, host,
                                          plan,    in_place ? static_cast<const Element*>(problem.weight) : packed,
                                          row,     row * (in_place ? plan.outputs : plan.padded_outputs()),
                                          bias,    threshold};
  host.parallel_for(plan.tiles * plan.groups * plan.chunks, &job, &ForwardJob<Product, T, Scale>::shares);
}

template <class Product, class T, class Scale>
void forward(const ConvReluProblem& problem, const Host& host) {
  if (is_depthwise(problem)) return depthwise<T, Scale>(problem, host);
  convolve<Product, T, Scale>(problem, host);
}

inline void forward(const ConvReluProblem& problem, const Host& host) {
#if LENI_KERNELS_ISA == LENI_KERNELS_AMX
  forward<TileProduct, BFloat16, float>(problem, host);
#elif LENI_KERNELS_ISA == LENI_KERNELS_AVX512_BF16
  forward<PairProduct, BFloat16, float>(problem, host);
#else
  for_scalar(problem.scalar, [&](auto x, auto scale) {
    forward<ScalarProduct<decltype(scale)>, decltype(x), decltype(scale)>(problem, host);
  });
#endif
}

}  // namespace leni_kernels::conv_relu::inline LENI_KERNELS_TARGET
LENI_KERNELS_END
