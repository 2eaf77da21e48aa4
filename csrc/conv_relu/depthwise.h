// ConvReLU forward where every group has one channel: no product of matrices, but one of vectors for each tap.
//
// Reads x once and writes y once, as forward.h; nothing is expanded. Vectors run along columns (NCHW) or
// along channels (channels-last), and a few of them are summed in registers through all taps.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "conv_relu/expand.h"
#include "conv_relu/problem.h"
#include "kernels/kernel.h"
#include "kernels/simd.h"
#include "kernels/target.h"

LENI_KERNELS_BEGIN
namespace leni_kernels::conv_relu::inline LENI_KERNELS_TARGET {

constexpr int64_t kDepthwiseSites = 1024;  // of a tile: its pieces, or its rows of x, stay in the L1 cache

template <class T, class Scale>
struct Depthwise {
  using V = Vec<Scale>;
  static constexpr int64_t width = V::width;
  static constexpr int kSums = 4;

  const ConvReluProblem& problem;
  const Host& host;
  int64_t plane, tile_sites, tiles;
  const Scale *weight, *threshold, *bias;  // channels-last: [T][C], [T][C], [C], and a vector more

  static V along(V value, V threshold, bool below) {
    return below ? value.at_most(threshold) : value.at_least(threshold);
  }

  // ---- NCHW: a share is one output plane of one tile ----

  // Shares begin … end − 1, numbered [tile][image][output channel]; planes of one tile share its pieces.
  static void planes(const void* context, int64_t begin, int64_t end) {
    const Depthwise& job = *static_cast<const Depthwise*>(context);
    const int64_t outputs = job.problem.out_channels, planes = job.problem.x.batch * outputs;
    void* memory = job.host.scratch(kWindows, Windows::bytes(job.problem, job.tile_sites));
    Windows windows(job.problem, job.tile_sites, memory);
    const int64_t bytes = Pieces::bytes(job.problem, job.tile_sites, width);
    Pieces pieces{0, static_cast<Piece*>(job.host.scratch(kPieces, bytes))};
    const bool dense = job.problem.stride[2] * job.problem.x.stride[2] == 1;
    for (int64_t share = begin, found = -1; share < end; ++share) {
      const int64_t first = share / planes * job.tile_sites;
      const Tile tile{first, std::min(job.tile_sites, job.plane - first)};
      if (first != found) {
        windows.find(job.problem, tile);  // of the first image
        pieces.find(job.problem, windows, width);
        found = first;
      }
      const int64_t image = share % planes / outputs, o = share % outputs;
      dense ? job.row<true>(pieces, tile, image, o) : job.row<false>(pieces, tile, image, o);
    }
  }

  template <bool kDense>
  void row(const Pieces& pieces, const Tile& tile, int64_t image, int64_t o) const {
    const int64_t c = o / (problem.out_channels / problem.groups);
    const Volume& x = problem.x;
    const T* from = static_cast<const T*>(x.data) + image * x.stride_batch + c * x.stride_channel;
    T* to = static_cast<T*>(problem.y) + (image * problem.out_channels + o) * plane + tile.begin;
    const int64_t count = pieces.count;
    int64_t p = 0;
    for (; p + kSums <= count; p += kSums) sum_pieces<kDense, kSums>(from, c, o, pieces.pieces + p, count, to);
    for (; p < count; ++p) sum_pieces<kDense, 1>(from, c, o, pieces.pieces + p, count, to);
  }

  // ``kCount`` pieces through all taps; of one tap the next ``step`` are another's.
  template <bool kDense, int kCount>
  void sum_pieces(const T* plane_of_x, int64_t c, int64_t o, const Piece* piece, int64_t step, T* to) const {
    const auto* w = static_cast<const Scale*>(problem.weight) + o * problem.weight_stride[0];
    const auto* bounds = static_cast<const Scale*>(problem.threshold) + c * problem.tap_count;
    const int64_t stride = problem.stride[2] * problem.x.stride[2];
    V sums[kCount];
    const V start = problem.bias == nullptr ? V::zero() : V::broadcast(static_cast<const Scale*>(problem.bias)[o]);
    for (int v = 0; v < kCount; ++v) sums[v] = start;
    for (int64_t t = 0; t < problem.tap_count; ++t) {
      const V factor = V::broadcast(w[t * problem.weight_stride[2]]), bound = V::broadcast(bounds[t]);
      const bool below = problem.taps[t].below;
#pragma GCC unroll 4
      for (int v = 0; v < kCount; ++v) {
        const Piece& read = piece[t * step + v];
        const T* from = plane_of_x + read.offset;
        const V value = kDense ? V::load(from, read.lanes) : load_strided<V>(from, stride, read.first, read.last);
        sums[v] = V::fma(factor, along(value, bound, below), sums[v]);
      }
    }
    for (int v = 0; v < kCount; ++v) sums[v].store(to + piece[v].at, Lanes::range(0, piece[v].sites));
  }

  // ---- channels-last: a share is a tile ----

  static void tiles_of_sites(const void* context, int64_t begin, int64_t end) {
    const Depthwise& job = *static_cast<const Depthwise*>(context);
    void* memory = job.host.scratch(kWindows, Windows::bytes(job.problem, job.tile_sites));
    Windows windows(job.problem, job.tile_sites, memory);
    for (int64_t index = begin; index < end; ++index) {
      const int64_t first = index * job.tile_sites;
      const Tile tile{first, std::min(job.tile_sites, job.problem.x.batch * job.plane - first)};
      windows.find(job.problem, tile);
      for (int64_t r = 0; r < windows.count; ++r) {
        int64_t i = 0;
        for (; i + kSums <= windows.runs[r].length; i += kSums) job.sites<kSums>(windows, tile, r, i);
        for (; i < windows.runs[r].length; ++i) job.sites<1>(windows, tile, r, i);
      }
    }
  }

  // All channels of ``kCount`` sites of run r, from site i on.
  template <int kCount>
  void sites(const Windows& windows, const Tile& tile, int64_t r, int64_t i) const {
    const int64_t channels = problem.x.channels;
    T* to = static_cast<T*>(problem.y) + (tile.begin + windows.runs[r].at + i) * channels;
    int64_t c = 0;
    for (; c + width <= channels; c += width) channels_of<kCount, false>(windows, r, i, c, width, to + c);
    if (c < channels) channels_of<kCount, true>(windows, r, i, c, channels - c, to + c);
  }

  template <int kCount, bool kTail>
  void channels_of(const Windows& windows, int64_t r, int64_t i, int64_t c, int64_t lanes, T* to) const {
    const Lanes kept = Lanes::range(0, lanes);
    const int64_t step = problem.stride[2] * problem.x.stride[2], channels = problem.x.channels;
    V sums[kCount];
    for (int v = 0; v < kCount; ++v) sums[v] = V::load(bias + c);
    for (int64_t t = 0; t < problem.tap_count; ++t) {
      const Window& inside = windows.windows[t * windows.count + r];
      const T* from = static_cast<const T*>(problem.x.data) + inside.offset + i * step + c;
      const V factor = V::load(weight + t * channels + c), bound = V::load(threshold + t * channels + c);
      const bool below = problem.taps[t].below, whole = inside.first <= i && i + kCount <= inside.last;
#pragma GCC unroll 4
      for (int v = 0; v < kCount; ++v) {
        const bool exists = whole || (inside.first <= i + v && i + v < inside.last);
        const V value = !exists ? V::zero() : kTail ? V::load(from + v * step, kept) : V::load(from + v * step);
        sums[v] = V::fma(factor, along(value, bound, below), sums[v]);
      }
    }
    for (int v = 0; v < kCount; ++v) sums[v].store(to + v * channels, kept);
  }
};

// Whether vectors along one stride of x give vectors of y: channels-last, several outputs a channel do not.
inline bool is_depthwise(const ConvReluProblem& problem) {
  return problem.groups == problem.x.channels && (!problem.x.channels_last || problem.out_channels == problem.groups);
}

template <class T, class Scale>
void depthwise(const ConvReluProblem& problem, const Host& host) {
  using Job = Depthwise<T, Scale>;
  const int64_t channels = problem.x.channels, taps = problem.tap_count;
  const int64_t plane = problem.out_size[0] * problem.out_size[1] * problem.out_size[2];
  const int64_t sites = problem.x.channels_last ? problem.x.batch * plane : plane;
  const int64_t least = problem.x.channels_last ? ceil_div(sites, kDepthwiseSites / 16) : 1;
  const int64_t count = std::max(ceil_div(sites, kDepthwiseSites), std::min(least, 4 * host.threads));
  Job job{problem, host, plane, ceil_div(sites, count), 0, nullptr, nullptr, nullptr};
  job.tiles = ceil_div(sites, job.tile_sites);
  if (!problem.x.channels_last) {
    return host.parallel_for(job.tiles * problem.x.batch * problem.out_channels, &job, &Job::planes);
  }
  const int64_t packed = taps * channels + Job::width;
  auto* memory = static_cast<Scale*>(host.scratch(kWeight, (2 * packed + channels + Job::width) * sizeof(Scale)));
  Scale *weight = memory, *threshold = weight + packed, *bias = threshold + packed;
  std::fill(memory, bias + channels + Job::width, Scale(0));
  for (int64_t t = 0; t < taps; ++t) {
    for (int64_t c = 0; c < channels; ++c) {
      const auto* w = static_cast<const Scale*>(problem.weight);
      weight[t * channels + c] = w[c * problem.weight_stride[0] + t * problem.weight_stride[2]];
    }
  }
  pack_threshold<Scale, Scale>(problem, threshold);
  if (problem.bias != nullptr) std::memcpy(bias, problem.bias, channels * sizeof(Scale));
  job.weight = weight;
  job.threshold = threshold;
  job.bias = bias;
  host.parallel_for(job.tiles, &job, &Job::tiles_of_sites);
}

}  // namespace leni_kernels::conv_relu::inline LENI_KERNELS_TARGET
LENI_KERNELS_END
