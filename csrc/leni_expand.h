// Tiles of x, expanded into the positive part and the deconvolved negative part.
//
// Included once per ISA object, after simd.h and product.h.

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

constexpr int64_t kTileBytes = 192 * 1024;  // of the expanded tile: a part of the smallest L2 in wide use
constexpr int64_t kPageBytes = 4096;
constexpr int64_t kTileRows = 8;  // of a tile narrower than its plane: two halo rows on eight

inline int64_t even_share(int64_t total, int64_t most) { return ceil_div(total, ceil_div(total, most)); }

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

// The first ``count`` lanes, or all.
template <class V, class T>
inline V load_some(const T* from, int64_t count) {
  return count >= V::width ? V::load(from) : V::load(from, Lanes::range(0, count));
}
template <class V, class T>
inline void store_some(V value, T* to, int64_t count) {
  if (count >= V::width) {
    value.store(to);
  } else {
    value.store(to, Lanes::range(0, count));
  }
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

// ---- the parameters of an expansion ------------------------------------------------------------------------

template <class Scale>
struct Expansion {
  const Scale* taps;  // flipped, so that the deconvolution is a correlation; [C][k²] for NCHW, [k²][C padded] else
  int64_t padded_channels;  // whole vectors
  int64_t branch_steps;
  const Activation* z = nullptr;  // what to read in place of the deconvolution, with a kernel size of 0
};

// The steps of one branch. Two branches make whole matrix tiles of steps where the product needs them.
template <class Product>
inline int64_t branch_steps(int64_t channels) {
  const int64_t steps = ceil_div(channels, Product::group);
  return Product::tile_rows > 0 ? round_up(steps, 8) : steps;
}

// Packs taps [C, k, k], of which there are ``taps`` a channel, for the expanders.
template <class Scale>
void pack_taps(const Scale* raw, const Activation& x, int64_t taps, int64_t padded_channels, Scale* packed) {
  std::memset(packed, 0, padded_channels * taps * sizeof(Scale));
  for (int64_t c = 0; c < x.channels; ++c) {
    for (int64_t t = 0; t < taps; ++t) {
      packed[x.channels_last ? t * padded_channels + c : c * taps + t] = raw[c * taps + taps - 1 - t];
    }
  }
}

// ---- what becomes of the branches --------------------------------------------------------------------------
// An expander hands its values to a sink: one that keeps them (below), or one that only sums (leni_statistics.h). For
// one step of channels (NCHW) or one vector of them (channels-last), ``at`` gives what takes the values, pixel by
// pixel. A sink without kPositive is not given the positive branch.

// A store adds an offset to values that are rounded as they are for the statistics: less their mean, equal values are
// then 0.

// Keeps planar branches as [step][row][column]: ``step`` and ``row`` are strides.
template <class Product, class Scale, bool kBoth = true, bool kOffset = false>
struct PlanarStore {
  static constexpr bool kPositive = kBoth;
  static constexpr int group = Product::group;
  using V = Vec<Scale>;
  using Element = typename Product::Element;

  Element *positive, *negative;
  int64_t step, row, channels;
  const Scale *positive_offset = nullptr, *negative_offset = nullptr;  // [C], to add

  struct Taker {
    Element *positive, *negative;
    int64_t row;
    bool whole;  // every channel of the step exists
    V positive_offset[group], negative_offset[group];

    template <bool kEdge>
    void take_positive(V (&values)[group], int64_t at, int64_t column, Lanes kept) {
      if (kOffset) {
        for (int g = 0; g < group; ++g) values[g] = V::add(values[g], positive_offset[g]);
      }
      put<kEdge>(values, positive + at * row + column, kept);
    }
    template <bool kEdge>
    void take_negative(V (&values)[group], int64_t at, int64_t column, Lanes kept) {
      if (kOffset) {
        for (int g = 0; g < group; ++g) values[g] = V::add(values[g], negative_offset[g]);
      }
      put<kEdge>(values, negative + at * row + column, kept);
    }

    template <bool kEdge>
    void put(V (&values)[group], Element* to, Lanes kept) const {
      if constexpr (group == 1) {
        if (kEdge) {
          values[0].store(to, kept);
        } else {
          values[0].store(to);
        }
      } else {
        if (!whole) values[1] = V::zero();
        if (kEdge) {
          store_pairs(values[0], values[1], to, kept);
        } else {
          store_pairs(values[0], values[1], to);
        }
      }
    }
    void close() {}
  };

  Taker at(int64_t index) const {
    Taker taker{positive + index * step, negative + index * step, row, (index + 1) * group <= channels, {}, {}};
    for (int g = 0; kOffset && g < group; ++g) {
      const int64_t c = std::min(index * group + g, channels - 1);
      if (kBoth) taker.positive_offset[g] = V::broadcast(positive_offset[c]);
      taker.negative_offset[g] = V::broadcast(negative_offset[c]);
    }
    return taker;
  }
};

// Keeps interleaved branches: ``vector``, ``pixel`` and ``row`` are the strides of a vector of channels, a pixel and a
// row.
template <class Product, class Scale, bool kBoth = true, bool kOffset = false>
struct InterleavedStore {
  static constexpr bool kPositive = kBoth;
  using V = Vec<Scale>;
  using Value = std::conditional_t<Product::group == 1, Scale, BFloat16>;

  Value *positive, *negative;
  int64_t vector, pixel, row;
  const Scale *positive_offset = nullptr, *negative_offset = nullptr;  // [C], to add

  struct Taker {
    Value *positive, *negative;
    int64_t pixel, row;
    V positive_offset, negative_offset;

    template <bool kEdge>
    void take_positive(V value, int64_t at, int64_t column, Lanes kept) {
      put<kEdge>(kOffset ? V::add(value, positive_offset) : value, positive + at * row + column * pixel, kept);
    }
    template <bool kEdge>
    void take_negative(V value, int64_t at, int64_t column, Lanes kept) {
      put<kEdge>(kOffset ? V::add(value, negative_offset) : value, negative + at * row + column * pixel, kept);
    }
    template <bool kEdge>
    static void put(V value, Value* to, Lanes kept) {
      if (kEdge) {
        value.store(to, kept);
      } else {
        value.store(to);
      }
    }
    void close() {}
  };

  // ``kept``: the channels of the vector that exist.
  Taker at(int64_t channel, Lanes kept) const {
    const int64_t first = channel / V::width * vector;
    Taker taker{positive + first, negative + first, pixel, row, V::zero(), V::zero()};
    if (kOffset && kBoth) taker.positive_offset = V::load(positive_offset + channel, kept);
    if (kOffset) taker.negative_offset = V::load(negative_offset + channel, kept);
    return taker;
  }
};

// ---- NCHW: vectors along columns ---------------------------------------------------------------------------

template <class Product, int K, class T, class Scale, class Sink>
struct PlanarExpander {
  static constexpr int width = Vec<Scale>::width, half = K / 2, group = Product::group;
  // A row adds K products to each of K sums, one after the other: the sums of two vectors hide each other's latency.
  static constexpr int kVectors = K == 3 || kVectorRegisters > 16 ? 2 : 1;
  using V = Vec<Scale>;

  const Activation& x;
  const Expansion<Scale>& expansion;
  Tile tile;
  Sink sink;

  void run() const {
    for (int64_t step = 0; step < ceil_div(x.channels, group); ++step) {
      auto taker = sink.at(step);
      for (int64_t column = 0; column < tile.columns;) {
        if (interior(column, kVectors)) {
          strip<kVectors, false>(taker, step, column);
          column += kVectors * width;
        } else {
          if (interior(column, 1)) {
            strip<1, false>(taker, step, column);
          } else {
            strip<1, true>(taker, step, column);
          }
          column += width;
        }
      }
      taker.close();
    }
  }

  bool interior(int64_t column, int64_t vectors) const {
    const int64_t left = tile.column + column, right = left + vectors * width;
    return left >= half && right + half <= x.width && column + vectors * width <= tile.columns;
  }

  // N vectors of columns, rolled down the rows: each row of x is loaded once per column offset and added to the K
  // output rows that it reaches. kEdge: some lanes are outside the plane or the tile.
  template <int N, bool kEdge>
  void strip(typename Sink::Taker& taker, int64_t step, int64_t column) const {
    const int64_t left = tile.column + column;
    Lanes kept[N], inside[N][K];
    for (int n = 0; kEdge && n < N; ++n) {
      kept[n] = Lanes::range(0, std::min<int64_t>(width, tile.columns - column - n * width));
      for (int j = 0; j < K; ++j) {
        const int64_t start = left + n * width + j - half;
        inside[n][j] =
            Lanes::range(std::clamp<int64_t>(-start, 0, width), std::clamp<int64_t>(x.width - start, 0, width));
      }
    }
    const T* planes[group];
    const Scale* taps[group];
    for (int g = 0; g < group; ++g) {
      const int64_t c = std::min(step * group + g, x.channels - 1);
      planes[g] = static_cast<const T*>(x.data) + tile.image * x.stride_batch + c * x.stride_channel + left - half;
      taps[g] = expansion.taps + c * K * K;
    }

    V acc[N][group][K];
    for (int n = 0; n < N; ++n) {
      for (int g = 0; g < group; ++g) {
        for (int i = 0; i < K; ++i) acc[n][g][i] = V::zero();
      }
    }
    const int64_t first = tile.row - half, last = tile.row + tile.rows + half;
    for (int64_t row = first; row < last; ++row) {
      if (row >= 0 && row < x.height) {
        V center[N][group];
#pragma GCC unroll 2
        for (int g = 0; g < group; ++g) {
          const T* pixel = planes[g] + row * x.stride_row;
          // The next channels' row: strips go down the rows, too short a way for the CPU's own prefetching.
          __builtin_prefetch(pixel + group * x.stride_channel + half);
          V values[N][K];
#pragma GCC unroll 2
          for (int n = 0; n < N; ++n) {
#pragma GCC unroll 8
            for (int j = 0; j < K; ++j) {
              const T* from = pixel + n * width + j;
              const V loaded = kEdge ? V::load(from, inside[n][j]) : V::load(from);
              if (Sink::kPositive && j == half) center[n][g] = loaded.positive();
              values[n][j] = loaded.negative();
            }
          }
#pragma GCC unroll 8
          for (int i = 0; i < K; ++i) {
#pragma GCC unroll 8
            for (int j = 0; j < K; ++j) {
              const V tap = V::broadcast(taps[g][i * K + j]);
#pragma GCC unroll 2
              for (int n = 0; n < N; ++n) acc[n][g][i] = V::fma(tap, values[n][j], acc[n][g][i]);
            }
          }
        }
        if (Sink::kPositive && row >= tile.row && row < tile.row + tile.rows) {
          for (int n = 0; n < N; ++n) {
            taker.template take_positive<kEdge>(center[n], row - tile.row, column + n * width, kept[n]);
          }
        }
      }
      const int64_t complete = row - half - tile.row;
#pragma GCC unroll 2
      for (int n = 0; n < N; ++n) {
        V done[group];
#pragma GCC unroll 2
        for (int g = 0; g < group; ++g) {
          done[g] = acc[n][g][K - 1];
#pragma GCC unroll 8
          for (int i = K - 1; i > 0; --i) acc[n][g][i] = acc[n][g][i - 1];
          acc[n][g][0] = V::zero();
        }
        if (complete >= 0) taker.template take_negative<kEdge>(done, complete, column + n * width, kept[n]);
      }
    }
  }
};

// ---- channels-last: vectors along channels -----------------------------------------------------------------

template <class Product, int K, class T, class Scale, class Sink>
struct InterleavedExpander {
  static constexpr int width = Vec<Scale>::width, half = K / 2, kRows = 2;
  using V = Vec<Scale>;

  const Activation& x;
  const Expansion<Scale>& expansion;
  Tile tile;
  Sink sink;

  void run() const {
    for (int64_t channel = 0; channel < x.channels; channel += width) {
      auto taker = sink.at(channel, Lanes::range(0, std::min<int64_t>(width, x.channels - channel)));
      int64_t row = 0;
      for (; row + kRows <= tile.rows; row += kRows) rows<kRows>(taker, channel, row);
      for (; row < tile.rows; ++row) rows<1>(taker, channel, row);
      taker.close();
    }
  }

  template <int R>
  void rows(typename Sink::Taker& taker, int64_t channel, int64_t row) const {
    const bool interior = tile.row + row >= half && tile.row + row + R + half <= x.height;
    const bool whole = channel + width <= x.channels;
    if (interior && whole) {
      rows<R, false>(taker, channel, row);
    } else {
      rows<R, true>(taker, channel, row);
    }
  }

  // R output rows of one vector of channels, rolled along the columns: each column of x is loaded once per input row
  // and added to the K output columns that it reaches. kEdge: some input rows or channel lanes do not exist.
  template <int R, bool kEdge>
  void rows(typename Sink::Taker& taker, int64_t channel, int64_t row) const {
    constexpr int inputs = R + K - 1;
    const Lanes kept = Lanes::range(0, std::min<int64_t>(width, x.channels - channel));
    const T* pixels[inputs];
    bool exists[inputs];
    for (int i = 0; i < inputs; ++i) {
      const int64_t input = tile.row + row + i - half;
      exists[i] = input >= 0 && input < x.height;
      pixels[i] = static_cast<const T*>(x.data) + tile.image * x.stride_batch + (exists[i] ? input : 0) * x.stride_row +
                  channel;
    }
    V taps[K * K];
#pragma GCC unroll 49
    for (int t = 0; t < K * K; ++t) taps[t] = V::load(expansion.taps + t * expansion.padded_channels + channel);
    V acc[R][K];
    for (int r = 0; r < R; ++r) {
      for (int j = 0; j < K; ++j) acc[r][j] = V::zero();
    }

    const int64_t first = tile.column - half, last = tile.column + tile.columns + half;
    for (int64_t column = first; column < last; ++column) {
      const int64_t at = column - tile.column;
      if (column >= 0 && column < x.width) {
        const int64_t offset = column * x.stride_column;
        const bool inside = at >= 0 && at < tile.columns;
#pragma GCC unroll 8
        for (int i = 0; i < inputs; ++i) {
          if (kEdge && !exists[i]) continue;
          const V loaded = kEdge ? V::load(pixels[i] + offset, kept) : V::load(pixels[i] + offset);
          if (Sink::kPositive && i >= half && i < half + R && inside) {
            taker.template take_positive<kEdge>(loaded.positive(), row + i - half, at, kept);
          }
          const V value = loaded.negative();
#pragma GCC unroll 2
          for (int r = 0; r < R; ++r) {
            if (i < r || i >= r + K) continue;
#pragma GCC unroll 8
            for (int j = 0; j < K; ++j) acc[r][j] = V::fma(taps[(i - r) * K + j], value, acc[r][j]);
          }
        }
      }
      const int64_t complete = at - half;
#pragma GCC unroll 2
      for (int r = 0; r < R; ++r) {
        if (complete >= 0) taker.template take_negative<kEdge>(acc[r][K - 1], row + r, complete, kept);
#pragma GCC unroll 8
        for (int j = K - 1; j > 0; --j) acc[r][j] = acc[r][j - 1];
        acc[r][0] = V::zero();
      }
    }
  }
};
