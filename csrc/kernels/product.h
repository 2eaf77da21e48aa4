// The register-blocked matrix product that every mechanism shares, and the packing of its weights.
//
// One product serves both layouts: out[m][n] = Σ_s a(m, s)·b(s, n), where
// a is broadcast one element at a time and b is read a vector at a time. Channels-last broadcasts activations
// (m: pixels) against vectors of weights (n: output channels); NCHW broadcasts weights (m: output channels) against
// vectors of activations (n: pixels). A step is a channel, or with bfloat16 products a pair of channels.
#pragma once

#include <algorithm>
#include <cstdint>
#include <numeric>

#include "kernels/half.h"
#include "kernels/kernel.h"
#include "kernels/simd.h"
#include "kernels/target.h"

LENI_KERNELS_BEGIN
namespace leni_kernels::inline LENI_KERNELS_TARGET {

// Multiply-add in T: one channel a step.
template <class T>
struct ScalarProduct {
  using Element = T;
  using Acc = Vec<T>;
  using Operand = Vec<T>;
  static constexpr int group = 1;
  static constexpr int tile_rows = 0;  // not a product of matrix tiles
  struct Session {};                   // what a thread holds while it multiplies

  using Value = T;  // what an element is made of
  static Element pack(const T (&values)[1]) { return values[0]; }
  static Operand load(const Element* p) { return Vec<T>::load(p); }
  static Operand broadcast(const Element* p) { return Vec<T>::broadcast(*p); }
  static Acc step(Acc acc, Operand a, Operand b) { return Vec<T>::fma(a, b, acc); }
};

#if LENI_KERNELS_ISA >= LENI_KERNELS_AVX512_BF16
// Dot products of bfloat16 pairs into float: two channels a step.
struct PairProduct {
  using Element = uint32_t;
  using Acc = Vec<float>;
  using Operand = __m512i;
  static constexpr int group = 2;
  static constexpr int tile_rows = 0;
  struct Session {};

  using Value = BFloat16;
  static Element pack(const float (&values)[2]) {
    return to_bfloat16(values[0]).bits | static_cast<uint32_t>(to_bfloat16(values[1]).bits) << 16;
  }
  static Operand load(const Element* p) { return _mm512_loadu_si512(p); }
  static Operand broadcast(const Element* p) { return _mm512_set1_epi32(static_cast<int>(*p)); }
  static Acc step(Acc acc, Operand a, Operand b) {
    return {_mm512_dpbf16_ps(acc.v, reinterpret_cast<__m512bh>(a), reinterpret_cast<__m512bh>(b))};
  }
};

// Interleaves two channels, so that each 32-bit element holds a pixel's pair.
inline __m512i interleave(Vec<float> even, Vec<float> odd) {
  const __m512i both = reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(odd.v, even.v));
  alignas(64) static constexpr uint16_t order[32] = {0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
                                                     8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
  return _mm512_permutexvar_epi16(_mm512_load_si512(order), both);
}
inline void store_pairs(Vec<float> even, Vec<float> odd, uint32_t* p) { _mm512_storeu_si512(p, interleave(even, odd)); }
inline void store_pairs(Vec<float> even, Vec<float> odd, uint32_t* p, Lanes lanes) {
  _mm512_mask_storeu_epi32(p, lanes.low(), interleave(even, odd));
}
inline void store_pairs(Vec<BFloat16> even, Vec<BFloat16> odd, uint32_t* p) {
  alignas(64) static constexpr uint16_t low[32] = {0, 32, 1, 33, 2,  34, 3,  35, 4,  36, 5,  37, 6,  38, 7,  39,
                                                   8, 40, 9, 41, 10, 42, 11, 43, 12, 44, 13, 45, 14, 46, 15, 47};
  const __m512i order = _mm512_load_si512(low), further = _mm512_add_epi16(order, _mm512_set1_epi16(16));
  _mm512_storeu_si512(p, _mm512_permutex2var_epi16(even.v, order, odd.v));
  _mm512_storeu_si512(p + 16, _mm512_permutex2var_epi16(even.v, further, odd.v));
}
#endif

// Accumulators held in registers: rows (broadcast side) × vectors, for each layout.
#if LENI_KERNELS_ISA >= LENI_KERNELS_AVX512
constexpr int kPixelRows = 12, kChannelVectors = 2;  // channels-last
constexpr int kChannelRows = 8, kPixelVectors = 3;   // NCHW
constexpr int kSummedRows = 8, kSummedVectors = 2;   // the gradient of the weights: whole parts of a vector
#else
constexpr int kPixelRows = 6, kChannelVectors = 2;
constexpr int kChannelRows = 4, kPixelVectors = 3;
constexpr int kSummedRows = 4, kSummedVectors = 3;
#endif

constexpr int64_t kTileBytes = 192 * 1024;   // of a tile that is multiplied: a part of the smallest L2 in wide use
constexpr int64_t kWeightBytes = 64 * 1024;  // of the rows of weights that are multiplied at a time
constexpr int64_t kPanelBytes = 24 * 1024;   // of the columns that they are multiplied with: a part of the smallest L1

// What is fetched into the L2 cache for the next tile while this one is multiplied, a few lines before each block, so
// that expanding the next one does not wait for memory: ``rows`` runs of ``bytes``.
struct Ahead {
  const char* at = nullptr;
  int64_t bytes = 0, stride = 0, rows = 0;
  int64_t lines = 0;  // to fetch before each block
  int64_t done = 0;

  void fetch() {
    for (int64_t line = 0; line < lines; ++line) {
      __builtin_prefetch(at + done, 0, 2);
      done += kLineBytes;
      if (done < bytes) continue;
      done = 0;
      at += stride;
      if (--rows == 0) lines = 0;
    }
  }
};

// Where the output channels are: the rows of the product (NCHW), its vectors (channels-last), or its vectors while the
// pixels are summed over (the gradient of the weights).
enum class Channels { kRows, kVectors, kSummed };

// Where a block of the product reads and writes. Offsets are in elements.
//   kRows:    a has a_row weights an output channel; b has b_step elements a step; bias by row.
//   kVectors: a has a_row elements a pixel; b is a packed panel of weights, N vectors a step; bias by lane.
//   kSummed:  a step is a pixel, a_step elements of a and b_step of b further; the product is added to out, in which
//             whole vectors exist.
// Without a bias the sum goes on from what is in out.
template <class Product, class T, class Scale>
struct Block {
  int64_t steps;
  const typename Product::Element* a;
  int64_t a_row;  // from one row of a to the next
  const typename Product::Element* b;
  int64_t b_step;
  const Scale* bias;
  T* out;  // out(m, n) at out[m·out_row + n]
  int64_t out_row;
  int64_t columns;  // how many of the block's lanes exist
  int64_t a_step = 0;
  bool stream = false;  // past the caches, where out allows it
  Ahead* ahead = nullptr;
  int64_t b_vector = Product::Acc::width;  // kSummed: from one vector of b to the next
};

// A part of a block: where it begins, and how many of the block's columns it has. It is what loops over a block keep in
// registers.
template <class Product, class T, class Scale>
struct Part {
  const typename Product::Element *a, *b;
  const Scale* bias;
  T* out;
  int64_t columns;

  explicit Part(const Block<Product, T, Scale>& block)
      : a(block.a), b(block.b), bias(block.bias), out(block.out), columns(block.columns) {}

  void advance_rows(const Block<Product, T, Scale>& block, Channels channels, int64_t rows) {
    a += rows * block.a_row;
    out += rows * block.out_row;
    if (channels == Channels::kRows && bias != nullptr) bias += rows;
  }
  void advance_columns(const Block<Product, T, Scale>& block, Channels channels, int64_t count) {
    constexpr int64_t width = Product::Acc::width;
    b += count * (channels == Channels::kVectors  ? block.steps
                  : channels == Channels::kSummed ? block.b_vector / width
                                                  : 1);
    out += count;
    if (channels == Channels::kVectors && bias != nullptr) bias += count;
  }
};

// Whether the rows of out begin at whole vectors.
template <int width, class T>
inline bool aligned(const T* out, int64_t out_row) {
  return reinterpret_cast<uintptr_t>(out) % (width * sizeof(T)) == 0 && out_row % width == 0;
}

// Adds the product of M rows from a and N vectors from b to ``acc``, which stays in registers.
template <class Product, Channels kChannels, int M, int N, class T, class Scale>
[[gnu::always_inline]] inline void accumulate(const Block<Product, T, Scale>& block, const typename Product::Element* a,
                                              const typename Product::Element* b, typename Product::Acc (&acc)[M][N]) {
  constexpr int width = Product::Acc::width;
  constexpr bool rows = kChannels == Channels::kRows, summed = kChannels == Channels::kSummed;
  const int64_t a_step = summed ? block.a_step : 1;
  const int64_t b_step = rows || summed ? block.b_step : N * width;
  const int64_t b_vector = summed ? block.b_vector : width;
  for (int64_t s = block.steps; s > 0; --s, a += a_step, b += b_step) {
    typename Product::Operand vectors[N];
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n) vectors[n] = Product::load(b + n * b_vector);
#pragma GCC unroll 16
    for (int m = 0; m < M; ++m) {
      const auto value = Product::broadcast(a + m * block.a_row);
#pragma GCC unroll 4
      for (int n = 0; n < N; ++n) acc[m][n] = Product::step(acc[m][n], value, vectors[n]);
    }
  }
}

// Not inlined, so that its loop has all registers to itself.
template <class Product, Channels kChannels, int M, int N, class T, class Scale>
[[gnu::noinline]] void multiply(const Block<Product, T, Scale>& block, const typename Product::Element* a,
                                const typename Product::Element* b, const Scale* bias, T* to, int64_t columns) {
  using Acc = typename Product::Acc;
  constexpr int width = Acc::width;
  constexpr bool rows = kChannels == Channels::kRows, summed = kChannels == Channels::kSummed;
  const int64_t last = columns - (N - 1) * width;
  Acc acc[M][N];
#pragma GCC unroll 16
  for (int m = 0; m < M; ++m) {
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n) {
      if constexpr (summed) {
        acc[m][n] = Acc::zero();
      } else if (bias == nullptr) {
        const T* out = to + m * block.out_row + n * width;
        acc[m][n] = n + 1 < N || last == width ? Acc::load(out) : Acc::load(out, Lanes::range(0, last));
      } else if constexpr (rows) {
        acc[m][n] = Acc::broadcast(bias[m]);
      } else {
        acc[m][n] = Acc::load(bias + n * width);
      }
    }
  }
  accumulate<Product, kChannels>(block, a, b, acc);
  if constexpr (summed) {  // a block's sum first, then the total: rounding errors grow with both, not their product
#pragma GCC unroll 16
    for (int m = 0; m < M; ++m) {
#pragma GCC unroll 4
      for (int n = 0; n < N; ++n) {
        acc[m][n] = Acc::add(Acc::load(to + m * block.out_row + n * width), acc[m][n]);
      }
    }
  }
  if (block.stream && last == width && aligned<width>(to, block.out_row)) {
#pragma GCC unroll 16
    for (int m = 0; m < M; ++m) {
#pragma GCC unroll 4
      for (int n = 0; n < N; ++n) acc[m][n].stream(to + m * block.out_row + n * width);
    }
    return;
  }
#pragma GCC unroll 16
  for (int m = 0; m < M; ++m) {
    T* out = to + m * block.out_row;
#pragma GCC unroll 4
    for (int n = 0; n + 1 < N; ++n) acc[m][n].store(out + n * width);
    if (last == width) {
      acc[m][N - 1].store(out + (N - 1) * width);
    } else {
      acc[m][N - 1].store(out + (N - 1) * width, Lanes::range(0, last));
    }
  }
}

// How many of ``left`` columns a block takes that holds N vectors: not so many that a lone vector is left, whose few
// accumulators would wait for each other.
template <class Product, int N>
inline int64_t block_columns(int64_t left) {
  constexpr int64_t width = Product::Acc::width;
  return (N > 2 && ceil_div(left, width) == N + 1 ? N - 1 : N) * width;
}

// A part's columns, N vectors at a time, then fewer.
template <class Product, Channels kChannels, int M, int N, class T, class Scale>
[[gnu::always_inline]] inline void multiply_vectors(const Block<Product, T, Scale>& block,
                                                    Part<Product, T, Scale> part) {
  constexpr int64_t width = Product::Acc::width, most = N * width;
  for (; part.columns > most - width && block_columns<Product, N>(part.columns) == most; part.columns -= most) {
    multiply<Product, kChannels, M, N>(block, part.a, part.b, part.bias, part.out, std::min(part.columns, most));
    part.advance_columns(block, kChannels, most);
  }
  if constexpr (N > 1) {
    if (part.columns > 0) multiply_vectors<Product, kChannels, M, N - 1>(block, part);
  }
}

// All the rows, in blocks of M, then of M/2, … 1.
template <class Product, Channels kChannels, int M, int N, class T, class Scale>
[[gnu::always_inline]] inline void multiply_rows(const Block<Product, T, Scale>& block, Part<Product, T, Scale> part,
                                                 int64_t rows) {
  for (; rows >= M; rows -= M) {
    if (block.ahead != nullptr) block.ahead->fetch();
    multiply_vectors<Product, kChannels, M, N>(block, part);
    part.advance_rows(block, kChannels, M);
  }
  if constexpr (M > 1) {
    if (rows > 0) multiply_rows<Product, kChannels, M / 2, N>(block, part, rows);
  }
}

// How many columns meet all rows before the next do: as many as a block takes, or, where rows are rows of weights, so
// many times these as a part of the L1 cache holds, and whole lines of out where it is written past the caches.
template <class Product, Channels kChannels, int N, class T, class Scale>
inline int64_t panel_columns(const Block<Product, T, Scale>& block, int64_t left) {
  static_assert(kChannels != Channels::kVectors || N <= 2, "weights are packed N vectors at a time, then what is left");
  if (kChannels != Channels::kRows) return block_columns<Product, N>(left);
  constexpr int64_t columns = N * Product::Acc::width;
  const int64_t least = block.stream ? std::lcm<int64_t>(columns * sizeof(T), kLineBytes) / sizeof(T) : columns;
  return std::max<int64_t>(kPanelBytes / (block.steps * sizeof(*block.b)) / least, 1) * least;
}

template <class Product, Channels kChannels, class T, class Scale>
inline void multiply_columns(const Block<Product, T, Scale>& block, Part<Product, T, Scale> part, int64_t rows) {
  constexpr bool packed_rows = kChannels == Channels::kRows, summed = kChannels == Channels::kSummed;
  constexpr int M = packed_rows ? kChannelRows : summed ? kSummedRows : kPixelRows;
  constexpr int N = packed_rows ? kPixelVectors : summed ? kSummedVectors : kChannelVectors;
  for (int64_t left = part.columns; left > 0; left -= part.columns) {
    part.columns = std::min(left, panel_columns<Product, kChannels, N>(block, left));
    multiply_rows<Product, kChannels, M, N>(block, part, rows);
    part.advance_columns(block, kChannels, part.columns);
  }
}

// All rows against all of block.columns. Where rows are rows of weights, so many at a time as a part of the L2 cache
// holds: each is read once for every panel of columns.
template <class Product, Channels kChannels, class T, class Scale>
inline void multiply_all(const Block<Product, T, Scale>& block, int64_t rows) {
  Part<Product, T, Scale> part(block);
  if constexpr (kChannels == Channels::kRows) {
    const int64_t row_bytes = block.a_row * sizeof(typename Product::Element);
    const int64_t most = std::max<int64_t>(kWeightBytes / row_bytes / kChannelRows, 1) * kChannelRows;
    for (; rows > most; rows -= most) {
      multiply_columns<Product, kChannels>(block, part, most);
      part.advance_rows(block, kChannels, most);
    }
  }
  multiply_columns<Product, kChannels>(block, part, rows);
}

// How many pixels past a tile's last the last block may reach: as many as a vector has, or two matrix tiles.
template <class Product>
constexpr int64_t kBeyond = Product::tile_rows > 0 ? 2 * Product::tile_rows : Product::Acc::width;

// ---- packing -----------------------------------------------------------------------------------------------

// How many output channels the packed panel that starts at ``first`` holds: rows are panels of one, or of a tile.
template <class Product>
inline int64_t panel_channels(Channels side, int64_t first, int64_t channels) {
  constexpr int64_t width = Product::Acc::width;
  if (side == Channels::kVectors) return width * std::min<int64_t>(kChannelVectors, ceil_div(channels - first, width));
  return std::max(Product::tile_rows, 1);
}

// Packs weight [channels][branches·channels] into panels of output channels, each [step][channel of the panel], or
// [channel][step] where channels are rows. Every branch has ``branch_steps`` steps, those past its channels zero, as
// are channels that do not exist.
template <class Product, class Scale>
void pack_weight(Channels side, const Scale* weight, int64_t channels, int64_t branches, int64_t branch_steps,
                 typename Product::Element* packed) {
  constexpr int64_t group = Product::group;
  const int64_t steps = branches * branch_steps;
  const bool by_row = side == Channels::kRows;
  for (int64_t first = 0; first < channels;) {
    const int64_t count = panel_channels<Product>(side, first, channels);
    typename Product::Element* panel = packed + first * steps;
    const int64_t step_stride = by_row ? 1 : count, channel_stride = by_row ? steps : 1;
    for (int64_t o = 0; o < count; ++o) {
      for (int64_t branch = 0; branch < branches; ++branch) {
        const int64_t inputs = first + o < channels ? channels : 0;
        const Scale* row = weight + (std::min(first + o, channels - 1) * branches + branch) * channels;
        auto* to = panel + o * channel_stride + branch * branch_steps * step_stride;
        for (int64_t s = 0; s < branch_steps; ++s, to += step_stride) {
          Scale values[group] = {};
          for (int64_t g = 0; g < group; ++g) {
            if (s * group + g < inputs) values[g] = row[s * group + g];
          }
          *to = Product::pack(values);
        }
      }
    }
    first += count;
  }
}

}  // namespace leni_kernels::inline LENI_KERNELS_TARGET
LENI_KERNELS_END
