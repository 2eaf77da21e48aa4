// How activations are cut into tiles, and what their layouts ask of those who read and write them.
#pragma once

#include <algorithm>
#include <cstdint>

#include "kernels/gather.h"
#include "kernels/kernel.h"
#include "kernels/product.h"
#include "kernels/target.h"
#include "two_branch/problem.h"

LENI_KERNELS_BEGIN
namespace leni_kernels::two_branch::inline LENI_KERNELS_TARGET {

// The tile of one task: ``rows`` × ``columns`` pixels from (row, column) of one image. In the expanded tile, and in y
// for a tile of full width, its rows follow each other with ``pitch`` pixels.
struct Tile {
  int64_t image, row, column, rows, columns, pitch;
};

// How planes are cut into tiles.
struct Tiling {
  int64_t rows, columns, pitch, tiles_down, tiles_across;

  int64_t tiles(const Activation& x) const { return x.batch * tiles_down * tiles_across; }

  Tile tile(int64_t index, const Activation& x) const {
    const int64_t across = index % tiles_across;
    const int64_t down = index / tiles_across % tiles_down;
    const int64_t row = down * rows, column = across * columns;
    return {index / (tiles_across * tiles_down), row,  column, std::min(rows, x.height - row),
            std::min(columns, x.width - column), pitch};
  }
};

constexpr int64_t kPageBytes = 4096;
constexpr int64_t kTileRows = 8;  // of a tile narrower than its plane: two halo rows on eight

// Full-width tiles where a few rows fit, since their pixels are contiguous; else vector-aligned columns.
inline Tiling choose_tiling(const Activation& x, int64_t bytes_per_pixel, int64_t width, int64_t threads,
                            int64_t tile_bytes) {
  const int64_t pixels = std::max<int64_t>(tile_bytes / bytes_per_pixel, width);
  Tiling tiling;
  if (pixels >= 4 * x.width || x.width <= 2 * width) {
    tiling.columns = tiling.pitch = x.width;
    tiling.rows = std::min(x.height, std::max<int64_t>(pixels / x.width, 1));
  } else {
    tiling.rows = std::min(x.height, kTileRows);
    const int64_t most = std::max<int64_t>(pixels / tiling.rows / width, 1) * width;
    tiling.columns = tiling.pitch = std::min(round_up(even_share(x.width, most), width), x.width);
  }
  tiling.tiles_across = ceil_div(x.width, tiling.columns);
  const int64_t enough = ceil_div(2 * threads, x.batch * tiling.tiles_across);
  tiling.rows = even_share(x.height, std::max<int64_t>(std::min(tiling.rows, x.height / enough), 1));
  tiling.tiles_down = ceil_div(x.height, tiling.rows);
  return tiling;
}

template <class T>
inline const T* pixel_of(const Activation& activation, const Tile& tile, int64_t row) {
  return static_cast<const T*>(activation.data) + tile.image * activation.stride_batch +
         (tile.row + row) * activation.stride_row + tile.column * activation.stride_column;
}

// Whether the rows of a tile follow each other, in the activation as in the tile, so that it is as good as one row.
inline bool rows_follow(const Activation& activation, const Tile& tile) {
  return tile.columns == activation.width && tile.columns == tile.pitch &&
         activation.stride_row == tile.columns * activation.stride_column;
}
inline Tile joined(const Tile& tile) {
  return {tile.image, tile.row, tile.column, 1, tile.rows * tile.columns, tile.rows * tile.columns};
}

// Where the product has its output channels, in x's layout.
inline Channels output_channels(const Activation& x) { return x.channels_last ? Channels::kVectors : Channels::kRows; }

// Whether an output as large as x is written past the caches, in whole lines. Not where planes are whole pages: what is
// written to many of them in turn then goes to few places in memory, faster by way of the caches.
template <class T>
bool streams(const Activation& x) {
  const int64_t plane_bytes = x.height * x.width * sizeof(T);
  if (x.batch * x.channels * plane_bytes < kStreamedBytes) return false;
  return x.channels_last || (plane_bytes % kLineBytes == 0 && plane_bytes % kPageBytes != 0);
}

// The runs of pixels of a tile that are contiguous in y.
struct Runs {
  int64_t count, length;
  Runs(const Activation& x, const Tile& tile)
      : count(tile.columns == x.width ? 1 : tile.rows),
        length(tile.columns == x.width ? tile.rows * tile.columns : tile.columns) {}
};

// A tile of an activation as [pixel][channels padded] (channels-last) or [channel][pixels] (NCHW), rows ``pitch``
// apart.
template <class T, class Scale>
void gather_tile(const Activation& activation, const Tile& whole, bool channels_last, int64_t step, Scale* to) {
  const Tile tile = rows_follow(activation, whole) ? joined(whole) : whole;
  for (int64_t row = 0; row < tile.rows; ++row) {
    const T* from = pixel_of<T>(activation, tile, row);
    if (channels_last) {
      gather(from, tile.columns, activation.stride_column, activation.channels, activation.stride_channel,
             to + row * tile.pitch * step, step);
    } else {
      gather(from, activation.channels, activation.stride_channel, tile.columns, activation.stride_column,
             to + row * tile.pitch, step);
    }
  }
}

}  // namespace leni_kernels::two_branch::inline LENI_KERNELS_TARGET
LENI_KERNELS_END
