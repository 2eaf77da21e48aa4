// Winograd's minimal filtering F(4×4, 3×3) (Lavin and Gray 2016), for the dense 3×3 convolutions of training: how a
// plane is cut into tiles, and the transforms of tiles, of weights and of their gradient.
//
// A 4×4 tile of the output takes 36 products a pair of channels instead of 144, so that it passes the limit that
// arithmetic sets to a direct convolution. A block of tiles is transformed to [36][tile][C], multiplied by the
// transformed weights one of the 36 points at a time, and transformed back. The weights' gradient is
// dw = Gᵀ(Σ (A·g·Aᵀ) ∘ (Bᵀ·x·B))G over all tiles. Vectors run along channels, which NCHW is transposed to and from.
//
// In float, of activations in T: float, or float16.
//
// The interpolation points 0, ±√½, ±√2 and ∞ leave an eighth of the largest error of the usual 0, ±1, ±2 and ∞. A NaN
// or an infinity reaches the whole of its tiles: only where statistics spread it anyway may this stand for a
// convolution.
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "kernels/half.h"
#include "kernels/kernel.h"
#include "kernels/product.h"
#include "kernels/simd.h"
#include "kernels/target.h"
#include "reborn/problem.h"
#include "two_branch/tiles.h"

LENI_KERNELS_BEGIN
namespace leni_kernels::reborn::inline LENI_KERNELS_TARGET {

constexpr int kPoints = 36, kSide = 4, kReach = 6;  // products a tile, its side, and its side with the taps' reach
constexpr int64_t kBlockBytes = 1024 * 1024;        // of a block's tiles, transformed, twice
constexpr int64_t kBlockTiles = 48;                 // at least, or the weights and their gradient are read too often
constexpr float kA = 0.70710678118654752f, kB = 1.4142135623730950f;

// How the plane is cut, and how many tiles a block has: whole blocks of the product's rows.
struct WinogradTiling {
  int64_t down, across, count, block;
  int64_t padded, point_size;  // channels, and values of a block's [tile][C] with room to keep the 36 off one cache set

  WinogradTiling(const Activation& x, int64_t threads)
      : down(ceil_div(x.height, kSide)), across(ceil_div(x.width, kSide)), count(x.batch * down * across) {
    padded = round_up(x.channels, Vec<float>::width);
    const int64_t most = std::max<int64_t>(kBlockBytes / (2 * kPoints * padded * sizeof(float)), kBlockTiles);
    block = round_up(even_share(ceil_div(count, threads), most), kPixelRows);
    point_size = block * padded + Vec<float>::width;
  }
};

// Neighbouring tiles of one row of tiles: the part of a block that is read and written at a time.
struct Segment {
  int64_t image, row, column, tiles, first;  // pixel of the first tile, and its index in the block

  // The pixels of it that x has, ``pitch`` apart from row to row.
  Tile pixels(const Activation& x, int64_t pitch) const {
    return {image, row, column, std::min<int64_t>(kSide, x.height - row), std::min(tiles * kSide, x.width - column),
            pitch};
  }
};

// The segments of the tiles from ``begin`` to ``end``, which are one block.
template <class Body>
void for_segments(const WinogradTiling& tiling, int64_t begin, int64_t end, const Body& body) {
  for (int64_t tile = begin; tile < end;) {
    const int64_t across = tile % tiling.across, down = tile / tiling.across % tiling.down;
    const int64_t tiles = std::min(tiling.across - across, end - tile);
    body(Segment{tile / (tiling.across * tiling.down), down * kSide, across * kSide, tiles, tile - begin});
    tile += tiles;
  }
}

// ---- the transforms of one line ----------------------------------------------------------------------------

using WinogradVec = Vec<float>;

inline WinogradVec scaled(float scale, WinogradVec a, WinogradVec b) {
  return WinogradVec::fma(WinogradVec::broadcast(scale), a, b);
}

// Bᵀd: six neighbours of the input.
struct InputTransform {
  static constexpr int lines = 6;
  static void line(const WinogradVec (&d)[6], WinogradVec (&out)[6]) {
    const WinogradVec even_a = scaled(-2, d[2], d[4]), odd_a = scaled(-2, d[1], d[3]);
    const WinogradVec even_b = scaled(-0.5f, d[2], d[4]), odd_b = scaled(-0.5f, d[1], d[3]);
    out[0] = scaled(-2.5f, d[2], WinogradVec::add(d[0], d[4]));
    out[1] = scaled(kA, odd_a, even_a);
    out[2] = scaled(-kA, odd_a, even_a);
    out[3] = scaled(kB, odd_b, even_b);
    out[4] = scaled(-kB, odd_b, even_b);
    out[5] = scaled(-2.5f, d[3], WinogradVec::add(d[1], d[5]));
  }
};

// Aᵀm: four neighbours of the output.
inline void transform_output(const WinogradVec (&m)[6], WinogradVec (&out)[4]) {
  const WinogradVec zero = WinogradVec::zero();
  const WinogradVec even_a = WinogradVec::add(m[1], m[2]), odd_a = scaled(-1, m[2], m[1]);
  const WinogradVec even_b = WinogradVec::add(m[3], m[4]), odd_b = scaled(-1, m[4], m[3]);
  out[0] = WinogradVec::add(m[0], WinogradVec::add(even_a, even_b));
  out[1] = scaled(kA, odd_a, scaled(kB, odd_b, zero));
  out[2] = scaled(0.5f, even_a, scaled(2, even_b, zero));
  out[3] = scaled(0.5f * kA, odd_a, scaled(2 * kB, odd_b, m[5]));
}

// A·g, the transpose of the output's: what a gradient of the output is to the products.
struct GradientTransform {
  static constexpr int lines = 4;
  static void line(const WinogradVec (&g)[4], WinogradVec (&out)[6]) {
    const WinogradVec even_a = scaled(0.5f, g[2], g[0]), odd_a = scaled(0.5f, g[3], g[1]);
    const WinogradVec even_b = scaled(2, g[2], g[0]), odd_b = scaled(2, g[3], g[1]);
    out[0] = g[0];
    out[1] = scaled(kA, odd_a, even_a);
    out[2] = scaled(-kA, odd_a, even_a);
    out[3] = scaled(kB, odd_b, even_b);
    out[4] = scaled(-kB, odd_b, even_b);
    out[5] = g[3];
  }
};

// G, of the taps. Both norms of the points' differences are in it.
constexpr float kTaps[6][3] = {{1, 0, 0},
                               {-2.0f / 3, -2.0f / 3 * kA, -1.0f / 3},
                               {-2.0f / 3, 2.0f / 3 * kA, -1.0f / 3},
                               {1.0f / 6, 1.0f / 6 * kB, 1.0f / 3},
                               {1.0f / 6, -1.0f / 6 * kB, 1.0f / 3},
                               {0, 0, 1}};

// ---- reading and writing -----------------------------------------------------------------------------------

// One vector of channels of a segment, as [row][column][lane], from ``halo`` pixels outside its tiles; zero where there
// is no pixel.
template <class T>
void read_patch(const Activation& x, const Segment& segment, int64_t halo, int64_t channel, float* patch) {
  constexpr int64_t width = WinogradVec::width;
  const int64_t rows = kSide + 2 * halo, columns = segment.tiles * kSide + 2 * halo;
  const int64_t row = segment.row - halo, column = segment.column - halo;
  const int64_t top = std::max<int64_t>(row, 0), left = std::max<int64_t>(column, 0);
  const int64_t bottom = std::min(row + rows, x.height), right = std::min(column + columns, x.width);
  if (top > row || left > column || bottom < row + rows || right < column + columns) {
    std::fill(patch, patch + rows * columns * width, 0.0f);
  }
  Activation lanes = x;
  lanes.data = static_cast<const T*>(x.data) + channel * x.stride_channel;
  lanes.channels = std::min(width, x.channels - channel);
  gather_tile<T>(lanes, {segment.image, top, left, bottom - top, right - left, columns}, true, width,
                     patch + ((top - row) * columns + left - column) * width);
}

// Writes one vector of channels of a segment, [row][column][lane], to y, which is contiguous in x's order.
template <class T>
void write_patch(const float* patch, const Activation& x, const Segment& segment, int64_t channel, T* y) {
  using V = WinogradVec;
  constexpr int64_t width = V::width;
  const Tile pixels = segment.pixels(x, segment.tiles * kSide);
  const int64_t channels = std::min(width, x.channels - channel), plane = x.height * x.width;
  for (int64_t row = 0; row < pixels.rows; ++row) {
    const float* from = patch + row * pixels.pitch * width;
    const int64_t pixel = (pixels.row + row) * x.width + pixels.column;
    if (x.channels_last) {
      T* to = y + (pixels.image * plane + pixel) * x.channels + channel;
      for (int64_t i = 0; i < pixels.columns; ++i) {
        store_some(V::load(from + i * width), to + i * x.channels, channels);
      }
    } else {
      T* to = y + (pixels.image * x.channels + channel) * plane + pixel;
      for (int64_t i = 0; i < pixels.columns; i += width) {
        float square[width * width];
        transpose(from + i * width, width, square, width);
        for (int64_t c = 0; c < channels; ++c) {
          store_some(V::load(square + c * width), to + c * plane + i, pixels.columns - i);
        }
      }
    }
  }
}

// A vector of values as T keeps them.
template <class T>
inline WinogradVec kept_as(WinogradVec value) {
  if constexpr (std::is_same_v<T, float>) return value;
  T kept[WinogradVec::width];
  value.store(kept);
  return WinogradVec::load(kept);
}

// body(a value of the activation's type)
template <class Body>
void for_winograd(Scalar scalar, const Body& body) {
  if (scalar == Scalar::Float16) return body(Float16());
  body(float());
}

// Transforms one vector of channels of a segment to [36][tile][C].
template <class Transform, bool kNegative>
inline void transform_tiles(const float* patch, const Segment& segment, int64_t point_size, int64_t padded, float* to) {
  using V = WinogradVec;
  constexpr int64_t width = V::width;
  constexpr int lines = Transform::lines;
  const int64_t pitch = segment.tiles * kSide + lines - kSide;
  for (int64_t tile = 0; tile < segment.tiles; ++tile) {
    V columns[6][lines];
#pragma GCC unroll 6
    for (int j = 0; j < lines; ++j) {
      V line[lines], out[6];
#pragma GCC unroll 6
      for (int i = 0; i < lines; ++i) {
        line[i] = V::load(patch + (i * pitch + tile * kSide + j) * width);
        if (kNegative) line[i] = line[i].negative();
      }
      Transform::line(line, out);
#pragma GCC unroll 6
      for (int i = 0; i < 6; ++i) columns[i][j] = out[i];
    }
#pragma GCC unroll 6
    for (int i = 0; i < 6; ++i) {
      V out[6];
      Transform::line(columns[i], out);
#pragma GCC unroll 6
      for (int j = 0; j < 6; ++j) out[j].store(to + (i * 6 + j) * point_size + tile * padded);
    }
  }
}

// Transforms a segment's products [36][tile][C] to pixels, one vector of channels at a time.
inline void transform_back(const float* products, const Segment& segment, int64_t point_size, int64_t padded,
                           float* patch) {
  using V = WinogradVec;
  const int64_t pitch = segment.tiles * kSide;
  for (int64_t tile = 0; tile < segment.tiles; ++tile) {
    V rows[kSide][6];
#pragma GCC unroll 6
    for (int j = 0; j < 6; ++j) {
      V line[6], out[kSide];
#pragma GCC unroll 6
      for (int i = 0; i < 6; ++i) line[i] = V::load(products + (i * 6 + j) * point_size + tile * padded);
      transform_output(line, out);
#pragma GCC unroll 4
      for (int i = 0; i < kSide; ++i) rows[i][j] = out[i];
    }
#pragma GCC unroll 4
    for (int i = 0; i < kSide; ++i) {
      V out[kSide];
      transform_output(rows[i], out);
#pragma GCC unroll 4
      for (int j = 0; j < kSide; ++j) out[j].store(patch + (i * pitch + tile * kSide + j) * V::width);
    }
  }
}

// ---- the transforms of the weight and of its gradient ------------------------------------------------------

// GwGᵀ of weight [C][C][3][3], or of the weight of a transposed convolution as that of the convolution it equals, as 36
// panels of packed weights, ``point_size`` apart.
struct WinogradPacking {
  using V = WinogradVec;
  const float* weight;
  bool transposed;
  int64_t channels, point_size;
  float* packed;

  // The input channels from ``begin`` to ``end``.
  void run(int64_t, int64_t begin, int64_t end) const {
    for (int64_t first = 0; first < channels;) {
      const int64_t count = panel_channels<ScalarProduct<float>>(Channels::kVectors, first, channels);
      for (int64_t c = begin; c < end; ++c) {
        for (int64_t o = 0; o < count; o += V::width) {
          vector(first + o, c, packed + first * channels + c * count + o);
        }
      }
      first += count;
    }
  }

  void vector(int64_t first, int64_t c, float* to) const {
    float taps[9][V::width] = {};
    const int64_t output = transposed ? 1 : channels, input = transposed ? channels : 1;
    for (int64_t o = 0; o < std::min<int64_t>(V::width, channels - first); ++o) {
      const float* from = weight + ((first + o) * output + c * input) * 9;
      for (int t = 0; t < 9; ++t) taps[transposed ? 8 - t : t][o] = from[t];
    }
    for (int i = 0; i < 6; ++i) {
      V line[3];
      for (int j = 0; j < 3; ++j) line[j] = filtered(i, V::load(taps[j]), V::load(taps[3 + j]), V::load(taps[6 + j]));
      for (int j = 0; j < 6; ++j) filtered(j, line[0], line[1], line[2]).store(to + (i * 6 + j) * point_size);
    }
  }

  static V filtered(int i, V a, V b, V c) {
    return scaled(kTaps[i][0], a, scaled(kTaps[i][1], b, scaled(kTaps[i][2], c, V::zero())));
  }
};

// Gᵀ·U·G of the sums U.
struct WinogradUnpacking {
  using V = WinogradVec;
  const float* sums;
  int64_t channels, padded, weight_size;
  float* weight;

  // The output channels from ``begin`` to ``end``.
  void run(int64_t, int64_t begin, int64_t end) const {
    for (int64_t o = begin; o < end; ++o) {
      for (int64_t c = 0; c < channels; c += V::width) vector(o, c);
    }
  }

  void vector(int64_t o, int64_t first) const {
    V lines[3][6];
    for (int j = 0; j < 6; ++j) {
      V column[6];
      for (int i = 0; i < 6; ++i) column[i] = V::load(sums + (i * 6 + j) * weight_size + o * padded + first);
      for (int tap = 0; tap < 3; ++tap) lines[tap][j] = filtered(tap, column);
    }
    float taps[9][V::width];
    for (int t = 0; t < 9; ++t) filtered(t % 3, lines[t / 3]).store(taps[t]);
    for (int64_t c = 0; c < std::min<int64_t>(V::width, channels - first); ++c) {
      for (int t = 0; t < 9; ++t) weight[(o * channels + first + c) * 9 + t] = taps[t][c];
    }
  }

  static V filtered(int tap, const V (&values)[6]) {
    V total = V::zero();
    for (int i = 0; i < 6; ++i) total = scaled(kTaps[i][tap], values[i], total);
    return total;
  }
};

}  // namespace leni_kernels::reborn::inline LENI_KERNELS_TARGET
LENI_KERNELS_END
