// The matrix product on AMX tiles: 16×16 floats accumulate 16×32 by 32×16 bfloat16 at a time.
//
// Reads what PairProduct reads, padded to whole tiles of steps.
// LENI_AMX_EMULATION replaces the tile registers by memory, so that the blocking can be checked on any AVX-512-BF16
// CPU.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "kernels/half.h"
#include "kernels/product.h"
#include "kernels/simd.h"
#include "kernels/target.h"

#if LENI_KERNELS_ISA == LENI_KERNELS_AMX

LENI_KERNELS_BEGIN
namespace leni_kernels::inline LENI_KERNELS_TARGET {

#if defined(LENI_AMX_EMULATION)
struct EmulatedTiles {
  alignas(64) uint32_t tile[8][16][16];
};
inline EmulatedTiles& emulated() {
  static thread_local EmulatedTiles tiles;
  return tiles;
}
template <int kTile>
inline void tile_zero() {
  std::memset(emulated().tile[kTile], 0, sizeof(emulated().tile[kTile]));
}
template <int kTile>
inline void tile_load(const void* from, int64_t stride) {
  for (int i = 0; i < 16; ++i) std::memcpy(emulated().tile[kTile][i], static_cast<const char*>(from) + i * stride, 64);
}
template <int kTile>
inline void tile_store(void* to, int64_t stride) {
  for (int i = 0; i < 16; ++i) std::memcpy(static_cast<char*>(to) + i * stride, emulated().tile[kTile][i], 64);
}
template <int kAcc, int kA, int kB>
inline void tile_product() {
  EmulatedTiles& t = emulated();
  for (int m = 0; m < 16; ++m) {
    for (int n = 0; n < 16; ++n) {
      float acc;
      std::memcpy(&acc, &t.tile[kAcc][m][n], sizeof(acc));
      for (int s = 0; s < 16; ++s) {
        for (int g = 0; g < 2; ++g) {
          const BFloat16 a{static_cast<uint16_t>(t.tile[kA][m][s] >> (16 * g))};
          const BFloat16 b{static_cast<uint16_t>(t.tile[kB][s][n] >> (16 * g))};
          acc += to_float(a) * to_float(b);
        }
      }
      std::memcpy(&t.tile[kAcc][m][n], &acc, sizeof(acc));
    }
  }
}
inline void configure_tiles(const void*) {}
inline void release_tiles() {}
#define TILE_ZERO(tile) tile_zero<tile>()
#define TILE_LOAD(tile, from, stride) tile_load<tile>(from, stride)
#define TILE_STORE(tile, to, stride) tile_store<tile>(to, stride)
#define TILE_PRODUCT(acc, a, b) tile_product<acc, a, b>()
#else
// Macros, since compilers paste the number of the tile into the instruction.
#define TILE_ZERO(tile) _tile_zero(tile)
#define TILE_LOAD(tile, from, stride) _tile_loadd(tile, from, stride)
#define TILE_STORE(tile, to, stride) _tile_stored(tile, to, stride)
#define TILE_PRODUCT(acc, a, b) _tile_dpbf16ps(acc, a, b)
inline void configure_tiles(const void* configuration) { _tile_loadconfig(configuration); }
inline void release_tiles() { _tile_release(); }
#endif

// What LDTILECFG reads. In constant memory: GCC before 12.4 and 13.3 takes it to read eight bytes alone, and leaves out
// what is written behind them (GCC bug 114098).
struct TileConfiguration {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t bytes_per_row[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};
alignas(64) inline constexpr TileConfiguration kTiles;

struct TileProduct : PairProduct {
  static constexpr int tile_rows = 16;

  struct Session {
    Session() { configure_tiles(&kTiles); }
    ~Session() { release_tiles(); }
    Session(const Session&) = delete;
    Session& operator=(const Session&) = delete;
  };
};

// 32 rows × 32 columns: tiles 0–3 accumulate, 4–5 hold rows of a, 6–7 columns of b. The second row and the second
// column are left out where they do not exist.
template <Channels kChannels, bool kTwoRows, bool kTwoColumns, class T>
inline void multiply_tiles(const Block<TileProduct, T, float>& block, int64_t rows) {
  constexpr bool packed_rows = kChannels == Channels::kRows;
  constexpr int64_t element = sizeof(uint32_t);
  const int64_t a_stride = block.a_row * element;
  const int64_t b_step = packed_rows ? block.b_step : (kTwoColumns ? 32 : 16);
  // Nor do these compilers know that TILE_LOAD reads memory: what was written has to be there.
  std::atomic_signal_fence(std::memory_order_seq_cst);
  TILE_ZERO(0);
  TILE_ZERO(1);
  TILE_ZERO(2);
  TILE_ZERO(3);
  for (int64_t s = 0; s < block.steps; s += 16) {
    const uint32_t* a = block.a + s;
    const uint32_t* b = block.b + s * b_step;
    TILE_LOAD(4, a, a_stride);
    TILE_LOAD(6, b, b_step * element);
    TILE_PRODUCT(0, 4, 6);
    if (kTwoColumns) {
      TILE_LOAD(7, b + 16, b_step * element);
      TILE_PRODUCT(1, 4, 7);
    }
    if (kTwoRows) {
      TILE_LOAD(5, a + 16 * block.a_row, a_stride);
      TILE_PRODUCT(2, 5, 6);
      if (kTwoColumns) TILE_PRODUCT(3, 5, 7);
    }
  }
  alignas(64) float acc[32][32];
  constexpr int64_t stride = sizeof(acc[0]);
  TILE_STORE(0, &acc[0][0], stride);
  if (kTwoColumns) TILE_STORE(1, &acc[0][16], stride);
  if (kTwoRows) TILE_STORE(2, &acc[16][0], stride);
  if (kTwoRows && kTwoColumns) TILE_STORE(3, &acc[16][16], stride);
  for (int64_t m = 0; m < rows; ++m) {
    for (int64_t n = 0; n < block.columns; n += 16) {
      T* out = block.out + m * block.out_row + n;
      const Lanes lanes = Lanes::range(0, std::min<int64_t>(block.columns - n, 16));
      const Vec<float> before = block.bias == nullptr ? Vec<float>::load(out, lanes)
                                : packed_rows         ? Vec<float>::broadcast(block.bias[m])
                                                      : Vec<float>::load(block.bias + n);
      Vec<float>::add(Vec<float>::load(&acc[m][n]), before).store(out, lanes);
    }
  }
}

template <Channels kChannels, bool kTwoColumns, class T>
inline void multiply_tile_rows(Block<TileProduct, T, float> block, int64_t rows) {
  for (; rows > 0; rows -= 32) {
    if (rows > 16) {
      multiply_tiles<kChannels, true, kTwoColumns>(block, std::min<int64_t>(rows, 32));
    } else {
      multiply_tiles<kChannels, false, kTwoColumns>(block, rows);
    }
    block.a += 32 * block.a_row;
    block.out += 32 * block.out_row;
    if (kChannels == Channels::kRows && block.bias != nullptr) block.bias += 32;
  }
}

// The overload of multiply_all() for tiles.
template <class Product, Channels kChannels, class T, class Scale>
  requires std::is_same_v<Product, TileProduct>
inline void multiply_all(const Block<Product, T, Scale>& whole, int64_t rows) {
  constexpr bool packed_rows = kChannels == Channels::kRows;
  Block<Product, T, Scale> block = whole;
  for (int64_t left = block.columns; left > 0; left -= 32) {
    block.columns = std::min<int64_t>(left, 32);
    if (left > 16) {
      multiply_tile_rows<kChannels, true>(block, rows);
    } else {
      multiply_tile_rows<kChannels, false>(block, rows);
    }
    block.b += packed_rows ? 32 : 32 * block.steps;
    if (!packed_rows && block.bias != nullptr) block.bias += 32;
    block.out += 32;
  }
}

}  // namespace leni_kernels::inline LENI_KERNELS_TARGET
LENI_KERNELS_END

#endif
