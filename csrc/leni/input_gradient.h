// The gradients of x and taps. g = weightᵀ·dy + constant + slope·a, of which g_p and g_z are the halves; dx = [x>0]·g_p
// + [x<0]·(taps ⋆ g_z) and dtaps = Σ min(x, 0)·shift(g_z). Of a separable deconvolution a's second half is
// matrix·(z − centre) there, one more product of each pixel.
//
// Reads x and dy and writes dx, 3T where T is the bytes of one activation tensor: the least. g_z is needed on a halo. A
// sweep goes down the rows of a strip of columns and keeps the last rows of dy and g_z in the L2 cache, so that a
// product is computed again only beside a strip that is narrower than its plane, and where a sweep begins.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>

#include "kernels/chunks.h"
#include "kernels/kernel.h"
#include "kernels/product.h"
#include "kernels/simd.h"
#include "kernels/target.h"
#include "leni/expand.h"
#include "leni/problem.h"
#include "two_branch/expand.h"
#include "two_branch/tiles.h"
#include "two_branch/training.h"

LENI_KERNELS_BEGIN
namespace leni_kernels::leni::inline LENI_KERNELS_TARGET {

constexpr int64_t kSweepBytes = 256 * 1024;  // of what a sweep keeps: a part of the smallest L2 in wide use
constexpr int64_t kStripVectors = 2;         // of a strip, at least
constexpr int64_t kStepPixels = 48;          // of a step, at least: fewer leave the product's last blocks half empty
constexpr int64_t kSummedPixels = 512;       // a lane, from which on a sum of dtaps goes on in double

// How planes are cut into sweeps, and how many rows a step of one takes. With more channels a step takes more pixels,
// since it reads all weights.
struct Sweeping {
  Tiling tiling;
  int64_t rows, pitch, pixels;

  template <class Scale>
  static Sweeping choose(const Activation& x, int64_t half, bool has_matrix, int64_t threads) {
    constexpr int64_t width = Vec<Scale>::width;
    const int64_t kept = has_matrix ? 4 : 3;  // dy, g_z and g_p, and what the matrix multiplies
    const int64_t bytes = kept * round_up(x.channels, width) * sizeof(Scale), least = 2 * half + 2;
    const auto fitting = [&](int64_t columns) { return kSweepBytes / (bytes * columns); };
    Sweeping s;
    s.tiling.columns = x.width;
    if (fitting(x.width) < least) {
      const int64_t most = std::max(kSweepBytes / (bytes * least) / width, kStripVectors) * width;
      s.tiling.columns = std::min(round_up(even_share(x.width, most), width), x.width);
    }
    s.tiling.pitch = s.tiling.columns;
    s.tiling.tiles_across = ceil_div(x.width, s.tiling.columns);
    const int64_t enough = ceil_div(2 * threads, x.batch * s.tiling.tiles_across);
    s.tiling.rows = even_share(x.height, std::max<int64_t>(x.height / enough, 1));
    s.tiling.tiles_down = ceil_div(x.height, s.tiling.rows);
    const int64_t enough_pixels = ceil_div(std::max(kStepPixels, x.channels), s.tiling.columns);
    s.rows = std::max(fitting(s.tiling.columns) - 2 * half, enough_pixels);
    s.rows = std::min(s.rows, s.tiling.rows);
    // What is left of a row's first pixel is right of the last row's last, and 0 in both.
    s.pitch = s.tiling.columns + (s.tiling.tiles_across == 1 ? half : 2 * half);
    s.pixels = room<Scale>((2 * half + s.rows) * s.pitch + 2 * half);
    return s;
  }
};

template <int K, class T, class Scale>
struct InputGradientJob {
  using Product = ScalarProduct<Scale>;
  using V = Vec<Scale>;
  static constexpr int64_t width = V::width, half = K / 2;

  const InputGradientProblem& problem;
  const Host& host;
  Expanded<Deconvolved<K>, T, Scale> expanded;  // of slope·z, where there is a slope, or with a matrix of z
  Sweeping sweeping;
  const Scale* positive_weight;  // packed, for 1×1 products from dy to g_p and to g_z
  const Scale* negative_weight;
  const Scale* matrix;        // packed, times slope, for a 1×1 product; or null
  const Scale* minus_centre;  // [C]
  const Scale* zeros;
  const Scale* taps;  // unflipped; [C][k²] for NCHW, [k²][C padded] else
  Scale* partial;     // [chunk]: a sum of few pixels of dtaps, [C padded][k²] vectors, or laid out as taps
  double* total;      // [chunk]: all of dtaps, laid out as taps
  bool past_caches;   // how dx is written

  // What a sweep keeps, as [pixel][C padded] or [C][pixel]. In a buffer, row 0 is the strip's row ``row − half``.
  struct Sweep {
    Tile strip;
    int64_t left, columns;  // of the strip with its halo, cut at the image
    int64_t row;
    Scale *grad, *negative, *positive;
    Scale* deconvolved;  // z − centre, for the matrix
  };

  void run(int64_t chunk, int64_t begin, int64_t end) const {
    const int64_t padded = expanded.expansion.padded_channels, size = sweeping.pixels * padded + padded;
    const auto memory = [&](Slot slot) { return static_cast<Scale*>(host.scratch(slot, size * sizeof(Scale))); };
    Sweep s{{}, 0, 0, 0, memory(kGradient), memory(kNegativeRaw), memory(kPositiveRaw), nullptr};
    if (matrix != nullptr) s.deconvolved = memory(kExpanded);
    TapSums sums{partial + chunk * partial_size(), total + chunk * padded * K * K};
    for (int64_t index = begin; index < end; ++index) {
      s.strip = sweeping.tiling.tile(index, problem.x);
      s.left = std::max<int64_t>(s.strip.column - half, 0);
      s.columns = std::min(s.strip.column + s.strip.columns + half, problem.x.width) - s.left;
      std::fill(s.grad, s.grad + size, Scale(0));
      std::fill(s.negative, s.negative + size, Scale(0));
      if (matrix != nullptr) std::fill(s.deconvolved, s.deconvolved + size, Scale(0));
      sweep(s, sums);
    }
    flush(sums);
    streamed();
  }

  int64_t tap_lanes() const { return problem.x.channels_last ? 1 : width; }
  int64_t partial_size() const { return expanded.expansion.padded_channels * K * K * tap_lanes(); }

  // A chunk's sums of dtaps: in Scale over some pixels, in double over all.
  struct TapSums {
    Scale* partial;
    double* total;
    int64_t pixels = 0;  // in ``partial``
  };

  void flush(TapSums& sums) const {
    const int64_t count = expanded.expansion.padded_channels * K * K;
    for (int64_t i = 0; i < count; ++i) {
      sums.total[i] += problem.x.channels_last ? sums.partial[i] : sum(V::load(sums.partial + i * width));
    }
    std::fill(sums.partial, sums.partial + partial_size(), Scale(0));
    sums.pixels = 0;
  }

  void sweep(Sweep& s, TapSums& sums) const {
    const int64_t last = s.strip.row + s.strip.rows;
    s.row = s.strip.row;
    load(s, 0, 2 * half);
    for (; s.row < last; s.row += sweeping.rows) {
      const int64_t rows = std::min(sweeping.rows, last - s.row);
      load(s, 2 * half, rows);
      multiply(at(half, 0), (rows - 1) * sweeping.pitch + s.strip.columns, s.grad, positive_weight, zeros, s.positive);
      if (problem.x.channels_last) {
        finish_interleaved(s, rows, sums.partial);
      } else {
        finish_planar(s, rows, sums.partial);
      }
      sums.pixels += rows * s.strip.columns;
      if (sums.pixels >= kSummedPixels * tap_lanes()) flush(sums);
      slide(s.grad, rows);
      slide(s.negative, rows);
    }
  }

  // The index of a pixel: its row in a buffer, its column from the strip's first.
  int64_t at(int64_t row, int64_t column) const { return half + row * sweeping.pitch + column; }

  // Reads dy and computes g_z on ``rows`` rows of the buffers, from ``first``.
  void load(const Sweep& s, int64_t first, int64_t rows) const {
    const Activation& x = problem.x;
    const int64_t padded = expanded.expansion.padded_channels, image_row = s.row - half;
    const int64_t begin = std::clamp<int64_t>(first, -image_row, first + rows);
    const int64_t end = std::clamp<int64_t>(x.height - image_row, begin, first + rows);
    clear(s.negative, at(first, -half), (begin - first) * sweeping.pitch);
    clear(s.negative, at(end, -half), (first + rows - end) * sweeping.pitch);
    if (begin == end) return;
    const Tile tile{s.strip.image, image_row + begin, s.left, end - begin, s.columns, sweeping.pitch};
    const int64_t start = at(begin, s.left - s.strip.column);
    if (x.channels_last) {
      gather_tile<T>(problem.grad, tile, true, padded, s.grad + start * padded);
    } else {
      gather_tile<T>(problem.grad, tile, false, sweeping.pixels, s.grad + start);
    }
    const int64_t count = (end - begin - 1) * sweeping.pitch + s.columns;
    if (problem.slope == nullptr) return multiply(start, count, s.grad, negative_weight, zeros, s.negative);
    const auto* constant = static_cast<const Scale*>(problem.constant) + x.channels;
    if (matrix == nullptr) {
      deconvolve(tile, start, constant, s.negative);
    } else {
      deconvolve(tile, start, minus_centre, s.deconvolved);
      fill(tile, start, constant, s.negative);
      multiply(start, count, s.deconvolved, matrix, nullptr, s.negative);
    }
    multiply(start, count, s.grad, negative_weight, nullptr, s.negative);
  }

  // z of a tile, or slope·z, and an offset.
  void deconvolve(const Tile& tile, int64_t start, const Scale* offset, Scale* buffer) const {
    const int64_t padded = expanded.expansion.padded_channels;
    if (problem.x.channels_last) {
      using Store = InterleavedStore<Product, Scale, false, true>;
      expanded.interleaved(
          tile, Store{nullptr, buffer + start * padded, width, padded, sweeping.pitch * padded, nullptr, offset});
    } else {
      using Store = PlanarStore<Product, Scale, false, true>;
      expanded.planar(
          tile, Store{nullptr, buffer + start, sweeping.pixels, sweeping.pitch, problem.x.channels, nullptr, offset});
    }
  }

  // A vector of channels, on a tile's pixels alone.
  void fill(const Tile& tile, int64_t start, const Scale* vector, Scale* buffer) const {
    const int64_t channels = problem.x.channels, padded = expanded.expansion.padded_channels;
    for (int64_t row = 0; row < tile.rows; ++row) {
      const int64_t first = start + row * tile.pitch;
      if (problem.x.channels_last) {
        for (int64_t i = 0; i < tile.columns; ++i) std::copy_n(vector, channels, buffer + (first + i) * padded);
      } else {
        for (int64_t c = 0; c < channels; ++c) {
          std::fill_n(buffer + c * sweeping.pixels + first, tile.columns, vector[c]);
        }
      }
    }
  }

  void clear(Scale* buffer, int64_t first, int64_t pixels) const {
    const int64_t padded = expanded.expansion.padded_channels;
    if (problem.x.channels_last) {
      std::fill(buffer + first * padded, buffer + (first + pixels) * padded, Scale(0));
    } else {
      for (int64_t c = 0; c < problem.x.channels; ++c) {
        Scale* row = buffer + c * sweeping.pixels + first;
        std::fill(row, row + pixels, Scale(0));
      }
    }
  }

  // Moves the last 2·half rows before those of the next step.
  void slide(Scale* buffer, int64_t rows) const {
    const int64_t padded = expanded.expansion.padded_channels, from = rows * sweeping.pitch;
    const int64_t count = 2 * half * sweeping.pitch + 2 * half;
    if (problem.x.channels_last) {
      std::memmove(buffer, buffer + from * padded, count * padded * sizeof(Scale));
    } else {
      for (int64_t c = 0; c < problem.x.channels; ++c) {
        Scale* plane = buffer + c * sweeping.pixels;
        std::memmove(plane, plane + from, count * sizeof(Scale));
      }
    }
  }

  // One half of weightᵀ·dy on ``count`` pixels, which follow each other in the buffers.
  void multiply(int64_t first, int64_t count, const Scale* grad, const Scale* weight, const Scale* bias,
                Scale* out) const {
    const int64_t channels = problem.x.channels, padded = expanded.expansion.padded_channels;
    if (problem.x.channels_last) {
      multiply_all<Product, Channels::kVectors, Scale, Scale>(
          {channels, grad + first * padded, padded, weight, 0, bias, out + first * padded, padded, channels}, count);
    } else {
      multiply_all<Product, Channels::kRows, Scale, Scale>(
          {channels, weight, channels, grad + first, sweeping.pixels, bias, out + first, sweeping.pixels, count},
          channels);
    }
  }

  // constant or slope of the positive branch.
  const Scale* of_positive(const void* vector) const {
    return problem.slope == nullptr ? nullptr : static_cast<const Scale*>(vector);
  }

  // g_p. Without a slope it is not a product with 0, which an infinite x would make a NaN.
  static V pass(V product, V x, V slope, V constant, bool sloped) {
    return sloped ? V::add(product, V::fma(x.positive(), slope, constant)) : product;
  }

  void put(V value, T* dx, Lanes lanes, bool whole) const {
    if (!whole) {
      value.store(dx, lanes);
    } else if (past_caches && aligned<width>(dx, 0)) {
      value.stream(dx);
    } else {
      value.store(dx);
    }
  }

  // Where g_z has no row or column, its buffer has zeros, and min(x, 0) may be −∞ or NaN: their products are left out.
  struct Reached {
    bool row[K];
    Reached(const Activation& x, int64_t first) {
      for (int i = 0; i < K; ++i) row[i] = first + i - half >= 0 && first + i - half < x.height;
    }
  };

  // Whether a vector at ``column`` has values, −∞ or NaN, that make a NaN of what g_z has where its columns end.
  static bool spoils_ends(const Activation& x, int64_t column, V negative) {
    const bool interior = column >= half && column + width + half <= x.width;
    return !interior && !negative.above(V::broadcast(-std::numeric_limits<Scale>::infinity()));
  }

  // The lanes of a vector at ``column`` whose column, j − half further, g_z has.
  static Lanes reached(const Activation& x, int64_t column, int j) {
    const int64_t start = column + j - half;
    return Lanes::range(std::clamp<int64_t>(-start, 0, width), std::clamp<int64_t>(x.width - start, 0, width));
  }

  void finish_planar(const Sweep& s, int64_t rows, Scale* dtaps) const {
    const Activation& x = problem.x;
    const Scale *constant = of_positive(problem.constant), *slope = of_positive(problem.slope);
    for (int64_t c = 0; c < x.channels; ++c) {
      V sums[K * K];
      for (int tap = 0; tap < K * K; ++tap) sums[tap] = V::load(dtaps + (c * K * K + tap) * width);
      const Scale* weights = taps + c * K * K;
      const V offset = V::broadcast(slope ? constant[c] : Scale(0)), factor = V::broadcast(slope ? slope[c] : Scale(0));
      for (int64_t row = 0; row < rows; ++row) {
        const Reached exists(x, s.row + row);
        const T* pixel = static_cast<const T*>(x.data) + s.strip.image * x.stride_batch + c * x.stride_channel +
                         (s.row + row) * x.stride_row + s.strip.column * x.stride_column;
        T* dx = static_cast<T*>(problem.dx) + ((s.strip.image * x.channels + c) * x.height + s.row + row) * x.width +
                s.strip.column;
        const Scale* positive = s.positive + c * sweeping.pixels + at(row + half, 0);
        const Scale* corner = s.negative + c * sweeping.pixels + at(row, -half);
        for (int64_t i = 0; i < s.strip.columns; i += width) {
          const int64_t left = s.strip.columns - i;
          const V value = load_some<V>(pixel + i, left), negative = value.negative();
          V correlated = V::zero();
          const auto add = [&](auto ends) __attribute__((always_inline)) {
#pragma GCC unroll 8
            for (int r = 0; r < K; ++r) {
              if (!exists.row[r]) continue;
#pragma GCC unroll 8
              for (int j = 0; j < K; ++j) {
                const V shifted = V::load(corner + r * sweeping.pitch + j + i);
                correlated = V::fma(V::broadcast(weights[r * K + j]), shifted, correlated);
                const V kept = ends ? negative.keep(reached(x, s.strip.column + i, j)) : negative;
                sums[r * K + j] = V::fma(kept, shifted, sums[r * K + j]);
              }
            }
          };
          if (spoils_ends(x, s.strip.column + i, negative)) [[unlikely]] {
            add(std::true_type());
          } else {
            add(std::false_type());
          }
          const V passed = pass(V::load(positive + i), value, factor, offset, slope != nullptr);
          put(V::by_sign(value, passed, correlated), dx + i, Lanes::range(0, std::min(width, left)), left >= width);
        }
      }
      for (int tap = 0; tap < K * K; ++tap) sums[tap].store(dtaps + (c * K * K + tap) * width);
    }
  }

  void finish_interleaved(const Sweep& s, int64_t rows, Scale* dtaps) const {
    for (int64_t c = 0; c < problem.x.channels; c += width) {
      for (int64_t row = 0; row < rows; ++row) {
        if (c + width <= problem.x.channels) {
          finish_row<false>(s, row, c, dtaps);
        } else {
          finish_row<true>(s, row, c, dtaps);
        }
      }
    }
  }

  // One row of one vector of channels, rolled along the columns of g_z: each is loaded once and added to the K columns
  // of dx that it reaches. kEdge: some lanes do not exist.
  template <bool kEdge>
  void finish_row(const Sweep& s, int64_t row, int64_t c, Scale* dtaps) const {
    const Activation& x = problem.x;
    const int64_t padded = expanded.expansion.padded_channels;
    const Scale *constant = of_positive(problem.constant), *slope = of_positive(problem.slope);
    const Lanes lanes = Lanes::range(0, std::min(width, x.channels - c));
    const auto some = [&](const auto* from) { return kEdge ? V::load(from, lanes) : V::load(from); };
    const V offset = slope ? some(constant + c) : V::zero(), factor = slope ? some(slope + c) : V::zero();
    const T* pixel = static_cast<const T*>(x.data) + s.strip.image * x.stride_batch + (s.row + row) * x.stride_row +
                     s.strip.column * x.stride_column + c;
    T* dx = static_cast<T*>(problem.dx) +
            ((s.strip.image * x.height + s.row + row) * x.width + s.strip.column) * x.channels + c;
    const Scale* negative = s.negative + at(row, 0) * padded + c;
    const Scale* positive = s.positive + at(row + half, 0) * padded + c;
    const Reached exists(x, s.row + row);
    V sums[K][K], acc[K], values[K];
#pragma GCC unroll 8
    for (int i = 0; i < K; ++i) {
      acc[i] = values[i] = V::zero();
#pragma GCC unroll 8
      for (int j = 0; j < K; ++j) sums[i][j] = V::load(dtaps + (i * K + j) * padded + c);
    }
    // values[j] and acc[j] are of the column j − half before that of g_z.
    for (int64_t column = -half; column < s.strip.columns + half; ++column) {
#pragma GCC unroll 8
      for (int j = K - 1; j > 0; --j) {
        values[j] = values[j - 1];
        acc[j] = acc[j - 1];
      }
      const bool reached = column + half < s.strip.columns;
      values[0] = reached ? some(pixel + (column + half) * x.stride_column).negative() : V::zero();
      acc[0] = V::zero();
      const bool inside = s.strip.column + column >= 0 && s.strip.column + column < x.width;
#pragma GCC unroll 8
      for (int i = 0; i < K; ++i) {
        if (!inside || !exists.row[i]) continue;
        const V shifted = V::load(negative + (i * sweeping.pitch + column) * padded);
#pragma GCC unroll 8
        for (int j = 0; j < K; ++j) {
          acc[j] = V::fma(V::load(taps + (i * K + j) * padded + c), shifted, acc[j]);
          sums[i][j] = V::fma(values[j], shifted, sums[i][j]);
        }
      }
      const int64_t complete = column - half;
      if (complete < 0) continue;
      const V value = some(pixel + complete * x.stride_column);
      const V passed = pass(V::load(positive + complete * padded), value, factor, offset, slope != nullptr);
      put(V::by_sign(value, passed, acc[K - 1]), dx + complete * x.channels, lanes, !kEdge);
    }
#pragma GCC unroll 8
    for (int i = 0; i < K; ++i) {
#pragma GCC unroll 8
      for (int j = 0; j < K; ++j) sums[i][j].store(dtaps + (i * K + j) * padded + c);
    }
  }
};

template <int K, class T, class Scale>
void input_gradient(const InputGradientProblem& problem, const Host& host) {
  constexpr int64_t width = Vec<Scale>::width, taps = K * K;
  const Activation& x = problem.x;
  const int64_t channels = x.channels, padded = round_up(channels, width), taps_size = padded * taps;
  const int64_t square = channels * channels, packed = padded * channels;
  const bool has_matrix = problem.matrix != nullptr;
  const Sweeping sweeping = Sweeping::choose<Scale>(x, K / 2, has_matrix, host.threads);
  const int64_t sweeps = sweeping.tiling.tiles(x), chunks = std::min(sweeps, host.threads);
  const int64_t vectors = padded + channels, size = 3 * taps_size + square + 3 * packed + vectors;
  auto* memory = static_cast<Scale*>(host.scratch(kShared, size * sizeof(Scale)));
  Scale *flipped = memory, *straight = memory + taps_size, *sloped = straight + taps_size;
  Scale *positive = sloped + taps_size, *negative = positive + packed, *zeros = negative + packed;
  Scale *transposed = zeros + padded, *matrix = transposed + square, *minus_centre = matrix + packed;
  const auto* raw_taps = static_cast<const Scale*>(problem.taps);
  const auto* slope = static_cast<const Scale*>(problem.slope);
  const auto place = [&](int64_t c, int64_t t) { return x.channels_last ? t * padded + c : c * taps + t; };
  std::fill(straight, straight + taps_size, Scale(0));
  for (int64_t c = 0; c < channels; ++c) {
    for (int64_t t = 0; t < taps; ++t) {
      straight[place(c, t)] = raw_taps[c * taps + t];
      const Scale factor = slope == nullptr ? Scale(0) : has_matrix ? Scale(1) : slope[channels + c];
      sloped[c * taps + t] = factor * raw_taps[c * taps + t];
    }
  }
  const auto* weight = static_cast<const Scale*>(problem.weight);
  const Channels side = output_channels(x);
  pack_transposed(side, weight, 0, channels, transposed, positive);
  pack_transposed(side, weight, 1, channels, transposed, negative);
  if (has_matrix) {
    const auto *raw = static_cast<const Scale*>(problem.matrix), *centre = static_cast<const Scale*>(problem.centre);
    for (int64_t c = 0; c < channels; ++c) {
      for (int64_t i = 0; i < channels; ++i) transposed[c * channels + i] = slope[channels + c] * raw[c * channels + i];
      minus_centre[c] = -centre[c];
    }
    pack_weight<ScalarProduct<Scale>>(side, transposed, channels, 1, channels, matrix);
  }
  std::fill(zeros, zeros + padded, Scale(0));
  InputGradientJob<K, T, Scale> job{problem,
                                    host,
                                    {x, sloped, flipped},
                                    sweeping,
                                    positive,
                                    negative,
                                    has_matrix ? matrix : nullptr,
                                    minus_centre,
                                    zeros,
                                    straight,
                                    nullptr,
                                    nullptr,
                                    streams<T>(x)};
  const int64_t partial_size = job.partial_size();
  job.partial = static_cast<Scale*>(host.scratch(kPartial, chunks * partial_size * sizeof(Scale)));
  std::fill(job.partial, job.partial + chunks * partial_size, Scale(0));
  job.total = static_cast<double*>(host.scratch(kPartialBias, chunks * taps_size * sizeof(double)));
  std::fill(job.total, job.total + chunks * taps_size, 0.0);
  run_chunks(job, sweeps, chunks, host);
  for (int64_t c = 0; c < channels; ++c) {
    for (int64_t t = 0; t < taps; ++t) {
      double total = 0;
      for (int64_t chunk = 0; chunk < chunks; ++chunk) total += job.total[chunk * taps_size + place(c, t)];
      static_cast<Scale*>(problem.dtaps)[c * taps + t] = static_cast<Scale>(total);
    }
  }
}

}  // namespace leni_kernels::leni::inline LENI_KERNELS_TARGET
LENI_KERNELS_END
