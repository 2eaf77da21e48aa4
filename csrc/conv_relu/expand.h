// Tiles of what a convolution's product reads: each tap's window of x, thresholded.
//
// The depth of the product runs over the
// channels of a group and the taps: c·T + t for NCHW, where a vector is a row of sites, and t·(C/groups) + c for
// channels-last, where a vector is a row of channels.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "conv_relu/problem.h"
#include "kernels/half.h"
#include "kernels/kernel.h"
#include "kernels/product.h"
#include "kernels/simd.h"
#include "kernels/target.h"

LENI_KERNELS_BEGIN
namespace leni_kernels::conv_relu::inline LENI_KERNELS_TARGET {

enum Slot { kWeight, kExpanded, kWindows, kPieces, kSums };  // of scratch memory

// Sites of y, numbered [image][d][h][w].
struct Tile {
  int64_t begin, count;
};

// The sites of a tile that are neighbours in one row of y.
struct Run {
  int64_t at, length;  // in the tile
  int64_t image, site[3];
};

// What one tap reads for one run: site i at offset + i·stride, where first ≤ i < last is inside x.
struct Window {
  int64_t offset, first, last;
};

inline Window window(const ConvRelu& problem, const Run& run, const Tap& tap) {
  const Volume& x = problem.x;
  int64_t read[3];
  for (int d = 0; d < 3; ++d) read[d] = run.site[d] * problem.stride[d] + tap.offset[d];
  const bool inside = read[0] >= 0 && read[0] < x.size[0] && read[1] >= 0 && read[1] < x.size[1];
  if (!inside) return {0, 0, 0};
  const int64_t first = std::clamp<int64_t>(ceil_div(-read[2], problem.stride[2]), 0, run.length);
  const int64_t last = std::clamp<int64_t>(ceil_div(x.size[2] - read[2], problem.stride[2]), first, run.length);
  const int64_t row = run.image * x.stride_batch + read[0] * x.stride[0] + read[1] * x.stride[1];
  return {row + read[2] * x.stride[2], first, last};
}

// The runs of a tile, and the windows [tap][run].
struct Windows {
  int64_t count = 0;
  Run* runs;
  Window* windows;

  static int64_t most(const ConvRelu& problem, int64_t sites) { return sites / problem.out_size[2] + 2; }
  static int64_t bytes(const ConvRelu& problem, int64_t sites) {
    return most(problem, sites) * (sizeof(Run) + problem.tap_count * sizeof(Window));
  }

  Windows(const ConvRelu& problem, int64_t sites, void* memory)
      : runs(static_cast<Run*>(memory)), windows(reinterpret_cast<Window*>(runs + most(problem, sites))) {}

  void find(const ConvRelu& problem, const Tile& tile) {
    count = 0;
    for (int64_t at = 0; at < tile.count;) {
      Run run{at, 0, tile.begin + at, {}};
      for (int d = 2; d >= 0; --d) {
        run.site[d] = run.image % problem.out_size[d];
        run.image /= problem.out_size[d];
      }
      run.length = std::min(problem.out_size[2] - run.site[2], tile.count - at);
      at += run.length;
      runs[count++] = run;
    }
    for (int64_t t = 0; t < problem.tap_count; ++t) {
      for (int64_t r = 0; r < count; ++r) windows[t * count + r] = window(problem, runs[r], problem.taps[t]);
    }
  }
};

// A range of the product's depth.
struct Depth {
  int64_t begin, end;
};

template <bool kBelow, class V>
inline V bounded(V value, V threshold) {
  return kBelow ? value.at_most(threshold) : value.at_least(threshold);
}

// A threshold as vectors of ``Value`` take it: rounding it first rounds the maximum alike. A NaN bounds nothing.
template <class Value, class Scale>
inline Value bound(Scale threshold, bool below) {
  if constexpr (std::is_same_v<Value, BFloat16>) {
    if (threshold != threshold) return {static_cast<uint16_t>(below ? 0x7f80 : 0xff80)};
    return to_bfloat16(threshold);
  } else {
    return threshold;
  }
}

// ---- NCHW: vectors along columns ---------------------------------------------------------------------------
// The expanded tile is [step][site].

// A vector of a run's sites as one tap reads them: ``lanes`` of it are inside x.
struct Piece {
  int64_t offset, at, sites;  // in x's plane; in the tile; of the vector that are the tile's
  int64_t first, last;
  Lanes lanes;
};

// The pieces of a tile [tap][piece], in vectors of ``width`` sites.
struct Pieces {
  int64_t count = 0;
  Piece* pieces;

  static int64_t most(const ConvRelu& problem, int64_t sites, int64_t width) {
    return sites / width + Windows::most(problem, sites);
  }
  static int64_t bytes(const ConvRelu& problem, int64_t sites, int64_t width) {
    return most(problem, sites, width) * problem.tap_count * sizeof(Piece);
  }

  void find(const ConvRelu& problem, const Windows& windows, int64_t width) {
    Piece* to = pieces;
    for (int64_t t = 0; t < problem.tap_count; ++t) {
      for (int64_t r = 0; r < windows.count; ++r) {
        const Window& inside = windows.windows[t * windows.count + r];
        for (int64_t i = 0; i < windows.runs[r].length; i += width) {
          const int64_t first = std::clamp<int64_t>(inside.first - i, 0, width);
          const int64_t last = std::clamp<int64_t>(inside.last - i, first, width);
          const int64_t offset = inside.offset + i * problem.stride[2] * problem.x.stride[2];
          const int64_t sites = std::min(width, windows.runs[r].length - i);
          *to++ = {offset, windows.runs[r].at + i, sites, first, last, Lanes::range(first, last)};
        }
      }
    }
    count = (to - pieces) / problem.tap_count;
  }

  // Behind the last site that an expander writes.
  int64_t end(int64_t width) const { return pieces[count - 1].at + width; }
};

template <class Product, class T, class Scale>
struct PlanarExpander {
  using Value = typename Product::Value;
  using V = Vec<Value>;
  using Element = typename Product::Element;
  static constexpr int64_t width = V::width;
  static constexpr int group = Product::group;

  const ConvRelu& problem;
  const Pieces& pieces;

  // ``channel`` is the group's first; a step has ``pitch`` elements. A vector may be written past the last.
  void run(int64_t channel, Depth depth, int64_t steps, int64_t pitch, Element* to) const {
    const int64_t step = problem.stride[2] * problem.x.stride[2];
    for (int64_t s = 0; s < steps; ++s, to += pitch) {
      const int64_t k = depth.begin + s * group;
      if (k + group <= depth.end) {
        step == 1 ? row<group, true>(channel, k, to) : row<group, false>(channel, k, to);
      } else if (k < depth.end) {
        step == 1 ? row<1, true>(channel, k, to) : row<1, false>(channel, k, to);
      } else {
        std::memset(to, 0, pitch * sizeof(Element));
      }
    }
  }

  // Depths k … k + kCount − 1, which share a step. kDense: neighbours in y read neighbours in x.
  template <int kCount, bool kDense>
  void row(int64_t channel, int64_t k, Element* to) const {
    const int64_t step = problem.stride[2] * problem.x.stride[2];
    const T* planes[kCount];
    const Piece* of_tap[kCount];
    V threshold[kCount];
    bool below[kCount];
    for (int g = 0; g < kCount; ++g) {
      const int64_t c = channel + (k + g) / problem.tap_count, t = (k + g) % problem.tap_count;
      planes[g] = static_cast<const T*>(problem.x.data) + c * problem.x.stride_channel;
      of_tap[g] = pieces.pieces + t * pieces.count;
      below[g] = problem.taps[t].below;
      threshold[g] =
          V::broadcast(bound<Value>(static_cast<const Scale*>(problem.threshold)[c * problem.tap_count + t], below[g]));
    }
    for (int64_t p = 0; p < pieces.count; ++p) {
      V values[group];
#pragma GCC unroll 2
      for (int g = 0; g < group; ++g) {
        if (g < kCount) {
          const Piece& piece = of_tap[g][p];
          const T* from = planes[g] + piece.offset;
          const V loaded = kDense ? V::load(from, piece.lanes) : load_strided<V>(from, step, piece.first, piece.last);
          values[g] = below[g] ? loaded.at_most(threshold[g]) : loaded.at_least(threshold[g]);
        } else {
          values[g] = V::zero();
        }
      }
      if constexpr (group == 1) {
        values[0].store(to + of_tap[0][p].at);
      } else {
        store_pairs(values[0], values[1], to + of_tap[0][p].at);
      }
    }
  }
};

// ---- channels-last: vectors along channels -----------------------------------------------------------------
// The expanded tile is [site][depth], padded with zeros to whole steps.

template <class Product, class T, class Scale>
struct InterleavedExpander {
  using Value = typename Product::Value;
  using V = Vec<Value>;
  static constexpr int64_t width = V::width;

  const ConvRelu& problem;
  const Windows& windows;
  const Value* threshold;  // [T][C], and a vector more

  // ``channel`` is the group's first; a site has ``pitch`` values.
  void run(int64_t channel, Depth depth, int64_t pitch, Value* to) const {
    const int64_t channels = problem.x.channels / problem.groups;
    for (int64_t k = depth.begin; k < depth.end;) {
      const int64_t t = k / channels, c = k % channels, count = std::min(channels - c, depth.end - k);
      if (problem.taps[t].below) {
        tap<true>(t, channel + c, count, pitch, to + k - depth.begin);
      } else {
        tap<false>(t, channel + c, count, pitch, to + k - depth.begin);
      }
      k += count;
    }
    const int64_t depths = depth.end - depth.begin;
    if (depths == pitch) return;
    for (int64_t r = 0; r < windows.count; ++r) {
      for (int64_t i = 0; i < windows.runs[r].length; ++i) {
        Value* site = to + (windows.runs[r].at + i) * pitch;
        std::fill(site + depths, site + pitch, Value{});
      }
    }
  }

  template <bool kBelow>
  void tap(int64_t t, int64_t channel, int64_t count, int64_t pitch, Value* to) const {
    int64_t c = 0;
    for (; c + 4 * width <= count; c += 4 * width) vectors<kBelow, 4, false>(t, channel + c, 0, pitch, to + c);
    for (; c + 2 * width <= count; c += 2 * width) vectors<kBelow, 2, false>(t, channel + c, 0, pitch, to + c);
    for (; c + width <= count; c += width) vectors<kBelow, 1, false>(t, channel + c, 0, pitch, to + c);
    if (c < count) vectors<kBelow, 1, true>(t, channel + c, count - c, pitch, to + c);
  }

  // ``kVectors`` vectors of channels for all the tile's sites; kTail: only ``lanes`` of the vector exist.
  template <bool kBelow, int kVectors, bool kTail>
  void vectors(int64_t t, int64_t channel, int64_t lanes, int64_t pitch, Value* to) const {
    const int64_t step = problem.stride[2] * problem.x.stride[2];
    const Lanes kept = Lanes::range(0, kTail ? lanes : width);
    V bounds[kVectors], outside[kVectors];
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      bounds[v] = V::load(threshold + t * problem.x.channels + channel + v * width);
      outside[v] = bounded<kBelow>(V::zero(), bounds[v]);
    }
    for (int64_t r = 0; r < windows.count; ++r) {
      const Run& run = windows.runs[r];
      const Window& inside = windows.windows[t * windows.count + r];
      Value* site = to + run.at * pitch;
      const T* from = static_cast<const T*>(problem.x.data) + inside.offset + channel;
      for (int64_t i = 0; i < inside.first; ++i) put<kVectors, kTail>(outside, site + i * pitch, kept);
      for (int64_t i = inside.first; i < inside.last; ++i) {
        V values[kVectors];
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v) {
          const T* p = from + i * step + v * width;
          values[v] = bounded<kBelow>(kTail ? V::load(p, kept) : V::load(p), bounds[v]);
        }
        put<kVectors, kTail>(values, site + i * pitch, kept);
      }
      for (int64_t i = inside.last; i < run.length; ++i) put<kVectors, kTail>(outside, site + i * pitch, kept);
    }
  }

  template <int kVectors, bool kTail>
  static void put(const V (&values)[kVectors], Value* to, Lanes kept) {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      if (kTail) {
        values[v].store(to + v * width, kept);
      } else {
        values[v].store(to + v * width);
      }
    }
  }
};

// threshold [C, T] as the interleaved expander reads it: [T][C] and a vector more.
template <class Value, class Scale>
void pack_threshold(const ConvRelu& problem, Value* packed) {
  const auto* raw = static_cast<const Scale*>(problem.threshold);
  for (int64_t t = 0; t < problem.tap_count; ++t) {
    for (int64_t c = 0; c < problem.x.channels; ++c) {
      *packed++ = bound<Value>(raw[c * problem.tap_count + t], problem.taps[t].below);
    }
  }
  std::fill(packed, packed + Vec<Value>::width, Value{});
}

}  // namespace leni_kernels::conv_relu::inline LENI_KERNELS_TARGET
LENI_KERNELS_END
