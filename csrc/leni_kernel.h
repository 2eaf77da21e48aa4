// Folded LENI in one pass: y = weight · [max(x, 0); taps ⋆ᵀ min(x, 0)] + bias.
//
// Reads x once and writes y once, 2T where T is the bytes of one activation tensor: no pass can do with less, since
// every output needs an input and every input may matter. A tile of x is expanded into its positive part and its
// deconvolved negative part, 2C values a pixel that stay in the L2 cache, and multiplied there by the packed weights.
// Halo rows are read again from cache. Saves nothing.
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

  Tile tile(int64_t index, const FoldedProblem& problem) const {
    const int64_t across = index % tiles_across;
    const int64_t down = index / tiles_across % tiles_down;
    const int64_t row = down * rows, column = across * columns;
    return {index / (tiles_across * tiles_down), row, column, std::min(rows, problem.x.height - row),
            std::min(columns, problem.x.width - column), pitch};
  }
};

constexpr int64_t kTileBytes = 192 * 1024;  // of the expanded tile: a part of the smallest L2 in wide use
constexpr int64_t kTileRows = 8;            // of a tile narrower than its plane: two halo rows on eight

inline int64_t even_share(int64_t total, int64_t most) { return ceil_div(total, ceil_div(total, most)); }

// Full-width tiles where a few rows fit, since their pixels are contiguous; else vector-aligned columns.
inline Tiling choose_tiling(const FoldedProblem& problem, int64_t bytes_per_pixel, int64_t width, int64_t threads) {
  const int64_t pixels = std::max<int64_t>(kTileBytes / bytes_per_pixel, width);
  Tiling tiling;
  if (pixels >= 4 * problem.x.width || problem.x.width <= 2 * width) {
    tiling.columns = tiling.pitch = problem.x.width;
    tiling.rows = std::min(problem.x.height, std::max<int64_t>(pixels / problem.x.width, 1));
  } else {
    tiling.rows = std::min(problem.x.height, kTileRows);
    const int64_t most = std::max<int64_t>(pixels / tiling.rows / width, 1) * width;
    tiling.columns = tiling.pitch = std::min(round_up(even_share(problem.x.width, most), width), problem.x.width);
  }
  tiling.tiles_across = ceil_div(problem.x.width, tiling.columns);
  const int64_t enough = ceil_div(2 * threads, problem.x.batch * tiling.tiles_across);
  tiling.rows = even_share(problem.x.height, std::max<int64_t>(std::min(tiling.rows, problem.x.height / enough), 1));
  tiling.tiles_down = ceil_div(problem.x.height, tiling.rows);
  return tiling;
}

// ---- the problem with its parameters packed ----------------------------------------------------------------

template <class Product, class Scale>
struct Packed {
  const typename Product::Element* weight;
  const Scale* taps;  // flipped, so that the deconvolution is a correlation; [C][k²] for NCHW, [k²][C padded] else
  const Scale* bias;  // padded to whole vectors
  int64_t branch_steps;
  int64_t padded_channels;
};

// The steps of one branch. Two branches make whole matrix tiles of steps where the product needs them.
template <class Product>
inline int64_t branch_steps(int64_t channels) {
  const int64_t steps = ceil_div(channels, Product::group);
  return Product::tile_rows > 0 ? round_up(steps, 8) : steps;
}

template <class Product, class Scale>
Packed<Product, Scale> pack(const FoldedProblem& problem, const Host& host) {
  constexpr int width = Product::Acc::width;
  const int64_t channels = problem.x.channels, taps = problem.kernel_size * problem.kernel_size;
  const int64_t padded = round_up(channels, width), steps = branch_steps<Product>(channels);
  const int64_t weight_bytes = round_up(padded * 2 * steps * sizeof(typename Product::Element), 64);
  const int64_t taps_bytes = padded * taps * sizeof(Scale);
  char* memory = static_cast<char*>(host.scratch(0, weight_bytes + taps_bytes + padded * sizeof(Scale)));
  auto* weight = reinterpret_cast<typename Product::Element*>(memory);
  auto* packed_taps = reinterpret_cast<Scale*>(memory + weight_bytes);
  auto* packed_bias = reinterpret_cast<Scale*>(memory + weight_bytes + taps_bytes);

  const Scale* raw_taps = static_cast<const Scale*>(problem.taps);
  std::memset(packed_taps, 0, taps_bytes);
  for (int64_t c = 0; c < channels; ++c) {
    for (int64_t t = 0; t < taps; ++t) {
      packed_taps[problem.x.channels_last ? t * padded + c : c * taps + t] = raw_taps[c * taps + taps - 1 - t];
    }
  }
  std::memset(packed_bias, 0, padded * sizeof(Scale));
  std::memcpy(packed_bias, problem.bias, channels * sizeof(Scale));

  pack_weight<Product>(problem.x.channels_last ? Channels::kVectors : Channels::kRows,
                       static_cast<const Scale*>(problem.weight), channels, 2, steps, weight);
  return {weight, packed_taps, packed_bias, steps, padded};
}

// ---- NCHW: vectors along columns ---------------------------------------------------------------------------
// The expanded tile is [step][pixel]: branch_steps rows of positive parts, then as many of deconvolved negatives.

template <class Product, int K, class T, class Scale>
struct PlanarExpander {
  static constexpr int width = Vec<Scale>::width, half = K / 2, group = Product::group;
  using V = Vec<Scale>;
  using Element = typename Product::Element;

  const FoldedProblem& problem;
  const Packed<Product, Scale>& packed;
  Tile tile;
  int64_t pixels;  // from one step to the next
  Element* expanded;

  void run() const {
    const int64_t steps = ceil_div(problem.x.channels, group);
    for (int64_t branch = 0; branch < 2; ++branch) {
      std::memset(expanded + (branch * packed.branch_steps + steps) * pixels, 0,
                  (packed.branch_steps - steps) * pixels * sizeof(Element));
    }
    for (int64_t step = 0; step < steps; ++step) {
      for (int64_t column = 0; column < tile.columns; column += width) {
        const int64_t left = tile.column + column;
        if (left >= half && left + width + half <= problem.x.width && column + width <= tile.columns) {
          strip<false>(step, column);
        } else {
          strip<true>(step, column);
        }
      }
    }
  }

  // One vector of columns, rolled down the rows: each row of x is loaded once per column offset and added to the K
  // output rows that it reaches. kEdge: some lanes are outside the plane or the tile.
  template <bool kEdge>
  void strip(int64_t step, int64_t column) const {
    const int64_t left = tile.column + column;
    const Lanes kept = Lanes::range(0, std::min<int64_t>(width, tile.columns - column));
    Lanes inside[K];
    if (kEdge) {
      for (int j = 0; j < K; ++j) {
        const int64_t start = left + j - half;
        inside[j] = Lanes::range(std::clamp<int64_t>(-start, 0, width), std::clamp<int64_t>(problem.x.width - start, 0, width));
      }
    }
    const T* planes[group];
    const Scale* taps[group];
    const int64_t channel = step * group;
    const bool whole = channel + group <= problem.x.channels;
    for (int g = 0; g < group; ++g) {
      const int64_t c = std::min(channel + g, problem.x.channels - 1);
      planes[g] = static_cast<const T*>(problem.x.data) + tile.image * problem.x.stride_batch + c * problem.x.stride_channel +
                  left - half;
      taps[g] = packed.taps + c * K * K;
    }
    Element* positive = expanded + step * pixels + column;
    Element* negative = positive + packed.branch_steps * pixels;

    V acc[group][K];
    for (int g = 0; g < group; ++g) {
      for (int i = 0; i < K; ++i) acc[g][i] = V::zero();
    }
    const int64_t first = tile.row - half, last = tile.row + tile.rows + half;
    for (int64_t row = first; row < last; ++row) {
      if (row >= 0 && row < problem.x.height) {
        V center[group];
#pragma GCC unroll 2
        for (int g = 0; g < group; ++g) {
          const T* pixel = planes[g] + row * problem.x.stride_row;
          V values[K];
#pragma GCC unroll 8
          for (int j = 0; j < K; ++j) {
            const V loaded = kEdge ? V::load(pixel + j, inside[j]) : V::load(pixel + j);
            if (j == half) center[g] = loaded.positive();
            values[j] = loaded.negative();
          }
#pragma GCC unroll 8
          for (int i = 0; i < K; ++i) {
#pragma GCC unroll 8
            for (int j = 0; j < K; ++j) {
              acc[g][i] = V::fma(V::broadcast(taps[g][i * K + j]), values[j], acc[g][i]);
            }
          }
        }
        if (row >= tile.row && row < tile.row + tile.rows) {
          put<kEdge>(center, whole, positive + (row - tile.row) * tile.pitch, kept);
        }
      }
      const int64_t complete = row - half - tile.row;
      V done[group];
#pragma GCC unroll 2
      for (int g = 0; g < group; ++g) {
        done[g] = acc[g][K - 1];
#pragma GCC unroll 8
        for (int i = K - 1; i > 0; --i) acc[g][i] = acc[g][i - 1];
        acc[g][0] = V::zero();
      }
      if (complete >= 0) put<kEdge>(done, whole, negative + complete * tile.pitch, kept);
    }
  }

  template <bool kEdge>
  static void put(V (&values)[group], bool whole, Element* to, Lanes kept) {
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
};

// ---- channels-last: vectors along channels -----------------------------------------------------------------
// The expanded tile is [pixel][channel]: branch_steps·group positive parts, then as many deconvolved negatives.

template <class Product, int K, class T, class Scale>
struct InterleavedExpander {
  static constexpr int width = Vec<Scale>::width, half = K / 2, kRows = 2;
  using V = Vec<Scale>;
  using Value = std::conditional_t<Product::group == 1, Scale, BFloat16>;

  const FoldedProblem& problem;
  const Packed<Product, Scale>& packed;
  Tile tile;
  Value* expanded;

  int64_t branch() const { return packed.branch_steps * Product::group; }

  void run() const {
    for (int64_t channel = 0; channel < problem.x.channels; channel += width) {
      int64_t row = 0;
      for (; row + kRows <= tile.rows; row += kRows) rows<kRows>(channel, row);
      for (; row < tile.rows; ++row) rows<1>(channel, row);
    }
    if (branch() > problem.x.channels) zero_padding();
  }

  void zero_padding() const {
    for (int64_t pixel = 0; pixel < tile.rows * tile.pitch; ++pixel) {
      for (int64_t c = problem.x.channels; c < branch(); ++c) {
        expanded[pixel * 2 * branch() + c] = expanded[pixel * 2 * branch() + branch() + c] = Value{};
      }
    }
  }

  template <int R>
  void rows(int64_t channel, int64_t row) const {
    const bool interior = tile.row + row >= half && tile.row + row + R + half <= problem.x.height;
    const bool whole = channel + width <= problem.x.channels;
    if (interior && whole) {
      rows<R, false>(channel, row);
    } else {
      rows<R, true>(channel, row);
    }
  }

  // R output rows of one vector of channels, rolled along the columns: each column of x is loaded once per input row
  // and added to the K output columns that it reaches. kEdge: some input rows or channel lanes do not exist.
  template <int R, bool kEdge>
  void rows(int64_t channel, int64_t row) const {
    constexpr int inputs = R + K - 1;
    const Lanes kept = Lanes::range(0, std::min<int64_t>(width, problem.x.channels - channel));
    const T* pixels[inputs];
    bool exists[inputs];
    for (int i = 0; i < inputs; ++i) {
      const int64_t input = tile.row + row + i - half;
      exists[i] = input >= 0 && input < problem.x.height;
      pixels[i] = static_cast<const T*>(problem.x.data) + tile.image * problem.x.stride_batch +
                  (exists[i] ? input : 0) * problem.x.stride_row + channel;
    }
    V taps[K * K];
#pragma GCC unroll 49
    for (int t = 0; t < K * K; ++t) taps[t] = V::load(packed.taps + t * packed.padded_channels + channel);
    V acc[R][K];
    for (int r = 0; r < R; ++r) {
      for (int j = 0; j < K; ++j) acc[r][j] = V::zero();
    }
    const int64_t pixel_size = 2 * branch(), row_size = tile.pitch * pixel_size;
    Value* positive = expanded + row * row_size + channel;
    Value* negative = positive + branch();

    const int64_t first = tile.column - half, last = tile.column + tile.columns + half;
    for (int64_t column = first; column < last; ++column) {
      const int64_t at = column - tile.column;
      if (column >= 0 && column < problem.x.width) {
        const int64_t offset = column * problem.x.stride_column;
        const bool inside = at >= 0 && at < tile.columns;
#pragma GCC unroll 8
        for (int i = 0; i < inputs; ++i) {
          if (kEdge && !exists[i]) continue;
          const V loaded = kEdge ? V::load(pixels[i] + offset, kept) : V::load(pixels[i] + offset);
          if (i >= half && i < half + R && inside) {
            put<kEdge>(loaded.positive(), positive + (i - half) * row_size + at * pixel_size, kept);
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
        if (complete >= 0) put<kEdge>(acc[r][K - 1], negative + r * row_size + complete * pixel_size, kept);
#pragma GCC unroll 8
        for (int j = K - 1; j > 0; --j) acc[r][j] = acc[r][j - 1];
        acc[r][0] = V::zero();
      }
    }
  }

  template <bool kEdge>
  static void put(V value, Value* to, Lanes kept) {
    if (kEdge) {
      value.store(to, kept);
    } else {
      value.store(to);
    }
  }
};

// ---- one tile ----------------------------------------------------------------------------------------------

// The runs of pixels of a tile that are contiguous in y.
struct Runs {
  int64_t count, length;
  Runs(const FoldedProblem& problem, const Tile& tile)
      : count(tile.columns == problem.x.width ? 1 : tile.rows),
        length(tile.columns == problem.x.width ? tile.rows * tile.columns : tile.columns) {}
};

template <class Product, int K, class T, class Scale>
void planar_tile(const FoldedProblem& problem, const Packed<Product, Scale>& packed, const Tile& tile,
                 typename Product::Element* expanded, int64_t pixels) {
  PlanarExpander<Product, K, T, Scale>{problem, packed, tile, pixels, expanded}.run();
  const int64_t plane = problem.x.height * problem.x.width, steps = 2 * packed.branch_steps;
  const Runs runs(problem, tile);
  for (int64_t run = 0; run < runs.count; ++run) {
    T* out = static_cast<T*>(problem.y) + tile.image * problem.x.channels * plane +
             (tile.row + run) * problem.x.width + tile.column;
    multiply_all<Product, Channels::kRows, T, Scale>({steps, packed.weight, steps, expanded + run * tile.pitch, pixels,
                                                      packed.bias, out, plane, runs.length}, problem.x.channels);
  }
}

template <class Product, int K, class T, class Scale>
void interleaved_tile(const FoldedProblem& problem, const Packed<Product, Scale>& packed, const Tile& tile,
                      typename Product::Element* expanded) {
  using Expander = InterleavedExpander<Product, K, T, Scale>;
  Expander{problem, packed, tile, reinterpret_cast<typename Expander::Value*>(expanded)}.run();
  const int64_t channels = problem.x.channels, steps = 2 * packed.branch_steps;
  const Runs runs(problem, tile);
  for (int64_t run = 0; run < runs.count; ++run) {
    T* out = static_cast<T*>(problem.y) +
             ((tile.image * problem.x.height + tile.row + run) * problem.x.width + tile.column) * channels;
    multiply_all<Product, Channels::kVectors, T, Scale>({steps, expanded + run * tile.pitch * steps, steps,
                                                         packed.weight, 0, packed.bias, out, channels, channels},
                                                        runs.length);
  }
}

// ---- the whole problem -------------------------------------------------------------------------------------

template <class Product>
constexpr int64_t kBeyond = Product::tile_rows > 0 ? 2 * Product::tile_rows : Product::Acc::width;

template <class Product, int K, class T, class Scale>
struct Job {
  const FoldedProblem& problem;
  const Host& host;
  Packed<Product, Scale> packed;
  Tiling tiling;

  static void tiles(const void* context, int64_t begin, int64_t end) {
    const Job& job = *static_cast<const Job*>(context);
    // A block's last vectors or rows may reach past the tile's pixels.
    const int64_t pixels = round_up(job.tiling.rows * job.tiling.pitch, Product::Acc::width) + kBeyond<Product>;
    const int64_t steps = 2 * job.packed.branch_steps;
    [[maybe_unused]] const typename Product::Session session;
    auto* expanded = static_cast<typename Product::Element*>(
        job.host.scratch(1, pixels * steps * sizeof(typename Product::Element)));
    for (int64_t index = begin; index < end; ++index) {
      const Tile tile = job.tiling.tile(index, job.problem);
      if (job.problem.x.channels_last) {
        interleaved_tile<Product, K, T, Scale>(job.problem, job.packed, tile, expanded);
      } else {
        planar_tile<Product, K, T, Scale>(job.problem, job.packed, tile, expanded, pixels);
      }
    }
  }
};

template <class Product, int K, class T, class Scale>
void run(const FoldedProblem& problem, const Host& host) {
  const int64_t pixel_bytes = 2 * branch_steps<Product>(problem.x.channels) * sizeof(typename Product::Element);
  const Tiling tiling = choose_tiling(problem, pixel_bytes, Product::Acc::width, host.threads);
  const Job<Product, K, T, Scale> job{problem, host, pack<Product, Scale>(problem, host), tiling};
  host.parallel_for(problem.x.batch * tiling.tiles_down * tiling.tiles_across, &job, &Job<Product, K, T, Scale>::tiles);
}

template <class Product, class T, class Scale>
void run(const FoldedProblem& problem, const Host& host) {
  switch (problem.kernel_size) {
    case 3: return run<Product, 3, T, Scale>(problem, host);
    case 5: return run<Product, 5, T, Scale>(problem, host);
    case 7: return run<Product, 7, T, Scale>(problem, host);
  }
}

#if defined(LENI_ISA_AMX)
// AMX multiplies bfloat16 only.
inline void folded(const FoldedProblem& problem, const Host& host) {
  run<TileProduct, BFloat16, float>(problem, host);
}
#else
inline void folded(const FoldedProblem& problem, const Host& host) {
  switch (problem.scalar) {
    case Scalar::Float32: return run<ScalarProduct<float>, float, float>(problem, host);
    case Scalar::Float64: return run<ScalarProduct<double>, double, double>(problem, host);
#if defined(LENI_ISA_AVX512_BF16)
    case Scalar::BFloat16: return run<PairProduct, BFloat16, float>(problem, host);
#else
    case Scalar::BFloat16: return run<ScalarProduct<float>, BFloat16, float>(problem, host);
#endif
  }
}
#endif
