// LENI's training passes: the statistics of both branches, and the gradients of the folded form.
//
// T is the bytes of one activation tensor. statistics() reads x (1T); weight_gradient() reads x and dy (2T);
// input_gradient() reads x and dy and writes dx (3T). With the folded kernel's 2T that is 3T forward and 5T backward.
// Less would need a kept activation or a second look at what has left the cache: the norms' statistics depend on
// all of x, and their gradients on all of dy. Both branches are recomputed from x, tile by tile; only x is kept.
//
// Included once per ISA object, after leni_expand.h, reborn_expand.h and gather.h. Everything is computed in Scale:
// float, or double for double. Sums over pixels are kept per thread and added in the order of the threads, so equal
// thread counts give equal bits.

constexpr int64_t kGradientTileBytes = 512 * 1024;  // of everything a tile of input_gradient() keeps

enum Slot {
  kShared,
  kExpanded,
  kGradient,
  kNegativeRaw,
  kPositiveRaw,
  kPadded,
  kPartial,
  kPartialBias
};  // of scratch memory

// A tile of an activation as [pixel][channels padded] (channels-last) or [channel][pixels] (NCHW), rows ``pitch``
// apart.
template <class T, class Scale>
void gather_tile(const Activation& activation, const Tile& tile, bool channels_last, int64_t step, Scale* to) {
  for (int64_t row = 0; row < tile.rows; ++row) {
    const T* from = static_cast<const T*>(activation.data) + tile.image * activation.stride_batch +
                    (tile.row + row) * activation.stride_row + tile.column * activation.stride_column;
    if (channels_last) {
      gather(from, tile.columns, activation.stride_column, activation.channels, activation.stride_channel,
             to + row * tile.pitch * step, step);
    } else {
      gather(from, activation.channels, activation.stride_channel, tile.columns, activation.stride_column,
             to + row * tile.pitch, step);
    }
  }
}

// ---- expanding, as all three passes do ---------------------------------------------------------------------

template <int K, class T, class Scale>
struct Expanded {
  using Product = ScalarProduct<Scale>;
  static constexpr int64_t width = Vec<Scale>::width;

  const Activation& x;
  Expansion<Scale> expansion;

  // ``memory`` holds padded·k² values.
  Expanded(const Activation& activation, const void* taps, Scale* memory, const Activation* z = nullptr)
      : x(activation), expansion{memory, round_up(activation.channels, width), activation.channels, z} {
    pack_taps(static_cast<const Scale*>(taps), x, K * K, expansion.padded_channels, memory);
  }

  void expand(const Tile& tile, int64_t pixels, Scale* to) const {
    if (x.channels_last) {
      InterleavedExpander<Product, K, T, Scale>{x, expansion, tile, to}.run();
    } else {
      PlanarExpander<Product, K, T, Scale>{x, expansion, tile, pixels, to}.run();
    }
  }
};

// The room for a tile's pixels, and for the vectors that reach past its last.
template <class Scale>
inline int64_t room(int64_t pixels) {
  return round_up(pixels, Vec<Scale>::width) + Vec<Scale>::width;
}

// ---- statistics --------------------------------------------------------------------------------------------

// Count, mean and sum of squared deviations, merged as by Chan, Golub and LeVeque.
struct Moments {
  double count = 0, mean = 0, squares = 0;
  void merge(double other_count, double other_mean, double other_squares) {
    const double total = count + other_count, delta = other_mean - mean;
    if (total == 0) return;
    mean += delta * other_count / total;
    squares += other_squares + delta * delta * count * other_count / total;
    count = total;
  }
};

template <int K, class T, class Scale>
struct StatisticsJob {
  const StatisticsProblem& problem;
  const Host& host;
  Expanded<K, T, Scale> expanded;
  Tiling tiling;
  int64_t features;
  Moments* moments;  // [chunk][features]

  void run(int64_t chunk, int64_t begin, int64_t end) const {
    const int64_t pixels = room<Scale>(tiling.rows * tiling.pitch);
    auto* values =
        static_cast<Scale*>(host.scratch(kExpanded, (features * pixels + Vec<Scale>::width) * sizeof(Scale)));
    auto* sums = static_cast<Scale*>(host.scratch(kGradient, 3 * features * sizeof(Scale)));
    for (int64_t index = begin; index < end; ++index) {
      const Tile tile = tiling.tile(index, problem.x);
      if constexpr (K == 0) {
        gather_tile<T>(problem.x, tile, problem.x.channels_last, problem.x.channels_last ? features : pixels, values);
      } else {
        expanded.expand(tile, pixels, values);
      }
      Scale *means = sums + features, *squares = means + features;
      const double count = static_cast<double>(tile.rows * tile.columns);
      std::fill(means, means + features, Scale(0));
      total<false>(tile, values, pixels, means, sums, nullptr);
      for (int64_t f = 0; f < features; ++f) means[f] = sums[f] / static_cast<Scale>(count);
      // The mean of the distances from a rounded mean, which is what is missing from it.
      total<true>(tile, values, pixels, means, sums, squares);
      for (int64_t f = 0; f < features; ++f) {
        const double missing = sums[f] / count;
        moments[chunk * features + f].merge(count, means[f] + missing, squares[f] - missing * missing * count);
      }
    }
  }

  // The sums of each feature's distances from ``means`` and, with kSquares, of their squares.
  template <bool kSquares>
  void total(const Tile& tile, const Scale* values, int64_t pixels, const Scale* means, Scale* sums,
             Scale* squares) const {
    std::fill(sums, sums + features, Scale(0));
    if (kSquares) std::fill(squares, squares + features, Scale(0));
    const Runs runs(problem.x, tile);
    for (int64_t run = 0; run < runs.count; ++run) {
      if (problem.x.channels_last) {
        for (int64_t pixel = 0; pixel < runs.length; ++pixel) {
          const Scale* row = values + (run * tile.pitch + pixel) * features;
          for (int64_t f = 0; f < features; ++f) {
            const Scale distance = row[f] - means[f];
            sums[f] += distance;
            if (kSquares) squares[f] += distance * distance;
          }
        }
      } else {
        for (int64_t f = 0; f < features; ++f) {
          const Scale* row = values + f * pixels + run * tile.pitch;
          row_total<kSquares>(row, runs.length, means[f], sums[f], kSquares ? &squares[f] : nullptr);
        }
      }
    }
  }

  template <bool kSquares>
  static void row_total(const Scale* row, int64_t length, Scale mean, Scale& total, Scale* squares) {
    using V = Vec<Scale>;
    const V shift = V::broadcast(-mean);
    V acc = V::zero(), acc_squares = V::zero();
    int64_t i = 0;
    for (; i + V::width <= length; i += V::width) {
      const V distance = V::add(V::load(row + i), shift);
      acc = V::add(acc, distance);
      if (kSquares) acc_squares = V::fma(distance, distance, acc_squares);
    }
    total += sum(acc);
    if (kSquares) *squares += sum(acc_squares);
    for (; i < length; ++i) {
      const Scale distance = row[i] - mean;
      total += distance;
      if (kSquares) *squares += distance * distance;
    }
  }
};

template <int K, class T, class Scale>
void statistics(const StatisticsProblem& problem, const Host& host) {
  constexpr int64_t width = Vec<Scale>::width;
  const Activation& x = problem.x;
  const int64_t features = (K == 0 ? 1 : 2) * x.channels;
  const Tiling tiling = choose_tiling(x, features * sizeof(Scale), width, host.threads, kTileBytes);
  const int64_t tiles = tiling.tiles(x), chunks = std::min(tiles, host.threads);
  auto* taps = static_cast<Scale*>(host.scratch(kShared, round_up(x.channels, width) * K * K * sizeof(Scale)));
  auto* moments = static_cast<Moments*>(host.scratch(kPartial, chunks * features * sizeof(Moments)));
  std::fill(moments, moments + chunks * features, Moments{});
  const StatisticsJob<K, T, Scale> job{problem, host, {x, problem.taps, taps}, tiling, features, moments};
  run_chunks(job, tiles, chunks, host);
  for (int64_t f = 0; f < features; ++f) {
    Moments all;
    for (int64_t chunk = 0; chunk < chunks; ++chunk) {
      const Moments& part = moments[chunk * features + f];
      all.merge(part.count, part.mean, part.squares);
    }
    static_cast<Scale*>(problem.mean)[f] = static_cast<Scale>(all.mean);
    static_cast<Scale*>(problem.variance)[f] = static_cast<Scale>(all.squares / all.count);
  }
}

// ---- the gradient of weight and bias -----------------------------------------------------------------------
// dweight[o][f] = Σ dy[o]·(a[f] − mean[f]) and dbias[o] = Σ dy[o] over all pixels, for a = [max(x, 0); taps ⋆ᵀ min(x,
// 0)] and a mean of 0 where none is given. Batch norm's gradients are of a less its mean, which the sums, once taken,
// could give only as a difference that cancels.

template <int K, class T, class Scale>
struct WeightGradientJob {
  using Product = ScalarProduct<Scale>;
  const GradientProblem& problem;
  const Host& host;
  Expanded<K, T, Scale> expanded;
  Tiling tiling;
  Scale* partial;  // [chunk][2C][channels padded]: dweight transposed
  double* bias;    // [chunk][channels padded]: dbias

  void run(int64_t chunk, int64_t begin, int64_t end) const {
    const Activation& x = problem.x;
    const int64_t padded = expanded.expansion.padded_channels, features = 2 * x.channels;
    const int64_t pixels = room<Scale>(tiling.rows * tiling.pitch);
    auto* values = static_cast<Scale*>(host.scratch(kExpanded, (features * pixels + padded) * sizeof(Scale)));
    auto* grad = static_cast<Scale*>(host.scratch(kGradient, pixels * padded * sizeof(Scale)));
    Scale* weight = partial + chunk * features * padded;
    for (int64_t index = begin; index < end; ++index) {
      const Tile tile = tiling.tile(index, x);
      expanded.expand(tile, pixels, values);
      if (problem.mean != nullptr) center(tile, pixels, values);
      gather_tile<T>(problem.grad, tile, true, padded, grad);
      const Runs runs(x, tile);
      for (int64_t run = 0; run < runs.count; ++run) {
        const int64_t first = run * tile.pitch;
        Block<Product, Scale, Scale> block{runs.length, nullptr, 0,     grad + first * padded, padded, nullptr,
                                           weight,      padded,  padded};
        block.a = values + (x.channels_last ? first * features : first);
        block.a_row = x.channels_last ? 1 : pixels;
        block.a_step = x.channels_last ? features : 1;
        multiply_all<Product, Channels::kSummed>(block, features);
        add_pixels(grad + first * padded, runs.length, padded, bias + chunk * padded);
      }
    }
  }

  void center(const Tile& tile, int64_t pixels, Scale* values) const {
    const auto* mean = static_cast<const Scale*>(problem.mean);
    const int64_t features = 2 * problem.x.channels, count = tile.rows * tile.pitch;
    if (problem.x.channels_last) {
      for (int64_t pixel = 0; pixel < count; ++pixel) {
        for (int64_t f = 0; f < features; ++f) values[pixel * features + f] -= mean[f];
      }
    } else {
      for (int64_t f = 0; f < features; ++f) {
        for (int64_t pixel = 0; pixel < count; ++pixel) values[f * pixels + pixel] -= mean[f];
      }
    }
  }

  // In double past a few pixels: gradients of opposite signs all but cancel in this sum.
  static void add_pixels(const Scale* grad, int64_t count, int64_t padded, double* bias) {
    using V = Vec<Scale>;
    constexpr int64_t few = 32;
    for (int64_t c = 0; c < padded; c += V::width) {
      for (int64_t first = 0; first < count; first += few) {
        V acc = V::zero();
        for (int64_t pixel = first; pixel < std::min(first + few, count); ++pixel) {
          acc = V::add(acc, V::load(grad + pixel * padded + c));
        }
        Scale lanes[V::width];
        acc.store(lanes);
        for (int i = 0; i < V::width; ++i) bias[c + i] += lanes[i];
      }
    }
  }
};

template <int K, class T, class Scale>
void weight_gradient(const GradientProblem& problem, const Host& host) {
  constexpr int64_t width = Vec<Scale>::width;
  const Activation& x = problem.x;
  const int64_t features = 2 * x.channels, padded = round_up(x.channels, width);
  const Tiling tiling = choose_tiling(x, (features + padded) * sizeof(Scale), width, host.threads, kTileBytes);
  const int64_t tiles = tiling.tiles(x), chunks = std::min(tiles, host.threads);
  auto* taps = static_cast<Scale*>(host.scratch(kShared, padded * K * K * sizeof(Scale)));
  auto* partial = static_cast<Scale*>(host.scratch(kPartial, chunks * features * padded * sizeof(Scale)));
  std::fill(partial, partial + chunks * features * padded, Scale(0));
  auto* bias = static_cast<double*>(host.scratch(kPartialBias, chunks * padded * sizeof(double)));
  std::fill(bias, bias + chunks * padded, 0.0);
  const WeightGradientJob<K, T, Scale> job{problem, host, {x, problem.taps, taps, problem.z}, tiling, partial, bias};
  run_chunks(job, tiles, chunks, host);
  for (int64_t chunk = 1; chunk < chunks; ++chunk) {
    for (int64_t i = 0; i < features * padded; ++i) partial[i] += partial[chunk * features * padded + i];
  }
  for (int64_t o = 0; o < x.channels; ++o) {
    for (int64_t f = 0; f < features; ++f) {
      static_cast<Scale*>(problem.dweight)[o * features + f] = partial[f * padded + o];
    }
    double total = 0;
    for (int64_t chunk = 0; chunk < chunks; ++chunk) total += bias[chunk * padded + o];
    static_cast<Scale*>(problem.dbias)[o] = static_cast<Scale>(total);
  }
}

// ---- the gradient of x and taps ----------------------------------------------------------------------------
// g = weightᵀ·dy + constant + slope·a, of which g_p and g_z are the halves; dx = [x>0]·g_p + [x<0]·(taps ⋆ g_z) and
// dtaps = Σ min(x, 0)·shift(g_z). g_z is needed on a halo around the tile: its product is computed there again.

template <int K, class T, class Scale>
struct InputGradientJob {
  using Product = ScalarProduct<Scale>;
  using V = Vec<Scale>;
  static constexpr int64_t width = V::width, half = K / 2;

  const GradientProblem& problem;
  const Host& host;
  Expanded<K, T, Scale> expanded;
  Tiling tiling;
  const Scale* positive_weight;  // packed, for 1×1 products from dy to g_p and to g_z
  const Scale* negative_weight;
  const Scale* zeros;
  const Scale* taps;  // unflipped; [C][k²] for NCHW, [k²][C padded] else
  Scale* partial;     // [chunk] of dtaps, laid out as taps
  bool past_caches;   // how dx is written

  // What a tile reads and where its intermediate results are. ``halo`` is the tile grown by the taps' reach and cut at
  // the image; on its pixels lie dy, z and the raw g_z. The padded g_z has zeros where the image ends.
  struct Tiles {
    Tile tile, halo;
    int64_t pixels, padded_pitch;
    Scale *expanded, *grad, *negative_raw, *positive_raw, *padded;
  };

  void run(int64_t chunk, int64_t begin, int64_t end) const {
    const Activation& x = problem.x;
    const int64_t padded = expanded.expansion.padded_channels;
    const int64_t most = (tiling.rows + 2 * half) * (tiling.columns + 2 * half), pixels = room<Scale>(most);
    const auto memory = [&](Slot slot, int64_t channels) {
      return static_cast<Scale*>(host.scratch(slot, (pixels * channels + padded) * sizeof(Scale)));
    };
    Tiles t{{},
            {},
            pixels,
            tiling.columns + 2 * half,
            nullptr,
            memory(kGradient, padded),
            memory(kNegativeRaw, padded),
            memory(kPositiveRaw, padded),
            memory(kPadded, padded)};
    if (problem.slope != nullptr) t.expanded = memory(kExpanded, 2 * x.channels);
    for (int64_t index = begin; index < end; ++index) {
      t.tile = tiling.tile(index, x);
      t.halo = grown(t.tile);
      if (problem.slope != nullptr) expanded.expand(t.halo, pixels, t.expanded);
      gather_tile<T>(problem.grad, t.halo, x.channels_last, x.channels_last ? padded : pixels, t.grad);
      multiply_rows_of(t, 0, t.halo.rows, negative_weight, t.negative_raw);
      multiply_rows_of(t, t.tile.row - t.halo.row, t.tile.rows, positive_weight, t.positive_raw);
      std::memset(t.padded, 0, (pixels * padded + padded) * sizeof(Scale));
      Scale* dtaps = partial + chunk * padded * K * K;
      if (x.channels_last) {
        pad_interleaved(t);
        finish_interleaved(t, dtaps);
      } else {
        pad_planar(t);
        finish_planar(t, dtaps);
      }
    }
    streamed();
  }

  Tile grown(const Tile& tile) const {
    const int64_t row = std::max<int64_t>(tile.row - half, 0), column = std::max<int64_t>(tile.column - half, 0);
    const int64_t columns = std::min(tile.column + tile.columns + half, problem.x.width) - column;
    return {tile.image, row, column, std::min(tile.row + tile.rows + half, problem.x.height) - row, columns, columns};
  }

  // One half of weightᵀ·dy on ``rows`` rows of the halo tile.
  void multiply_rows_of(const Tiles& t, int64_t row, int64_t rows, const Scale* weight, Scale* out) const {
    const int64_t channels = problem.x.channels, padded = expanded.expansion.padded_channels;
    const int64_t first = row * t.halo.pitch, count = rows * t.halo.pitch;
    if (problem.x.channels_last) {
      multiply_all<Product, Channels::kVectors, Scale, Scale>(
          {channels, t.grad + first * padded, padded, weight, 0, zeros, out + first * padded, padded, channels}, count);
    } else {
      multiply_all<Product, Channels::kRows, Scale, Scale>(
          {channels, weight, channels, t.grad + first, t.pixels, zeros, out + first, t.pixels, count}, channels);
    }
  }

  const Scale* constant(int64_t branch) const {
    return problem.slope == nullptr ? nullptr
                                    : static_cast<const Scale*>(problem.constant) + branch * problem.x.channels;
  }
  const Scale* slope(int64_t branch) const {
    return problem.slope == nullptr ? nullptr : static_cast<const Scale*>(problem.slope) + branch * problem.x.channels;
  }

  // Where row 0 and column 0 of the halo tile lie in the padded one.
  static int64_t padded_start(const Tiles& t) {
    return (t.halo.row - t.tile.row + half) * t.padded_pitch + t.halo.column - t.tile.column + half;
  }

  void pad_planar(const Tiles& t) const {
    for (int64_t c = 0; c < problem.x.channels; ++c) {
      const V offset = V::broadcast(problem.slope ? constant(1)[c] : Scale(0));
      const V factor = V::broadcast(problem.slope ? slope(1)[c] : Scale(0));
      for (int64_t row = 0; row < t.halo.rows; ++row) {
        const Scale* raw = t.negative_raw + c * t.pixels + row * t.halo.pitch;
        const Scale* z = t.expanded + (problem.x.channels + c) * t.pixels + row * t.halo.pitch;
        Scale* to = t.padded + c * t.pixels + padded_start(t) + row * t.padded_pitch;
        for (int64_t i = 0; i < t.halo.columns; i += width) {
          V value = V::load(raw + i);
          if (problem.slope) value = V::add(value, V::fma(V::load(z + i), factor, offset));
          value.store(to + i, Lanes::range(0, std::min(width, t.halo.columns - i)));
        }
      }
    }
  }

  void pad_interleaved(const Tiles& t) const {
    const int64_t channels = problem.x.channels, padded = expanded.expansion.padded_channels;
    for (int64_t row = 0; row < t.halo.rows; ++row) {
      for (int64_t column = 0; column < t.halo.columns; ++column) {
        const int64_t pixel = row * t.halo.pitch + column;
        const Scale* raw = t.negative_raw + pixel * padded;
        const Scale* z = t.expanded + pixel * 2 * channels + channels;
        Scale* to = t.padded + (padded_start(t) + row * t.padded_pitch + column) * padded;
        for (int64_t c = 0; c < channels; c += width) {
          const Lanes lanes = Lanes::range(0, std::min(width, channels - c));
          V value = V::load(raw + c, lanes);
          if (problem.slope) {
            value = V::add(
                value, V::fma(V::load(z + c, lanes), V::load(slope(1) + c, lanes), V::load(constant(1) + c, lanes)));
          }
          value.store(to + c);
        }
      }
    }
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

  void finish_planar(const Tiles& t, Scale* dtaps) const {
    const Activation& x = problem.x;
    const int64_t inner = (t.tile.row - t.halo.row) * t.halo.pitch + t.tile.column - t.halo.column;
    for (int64_t c = 0; c < x.channels; ++c) {
      V sums[K * K];
      for (V& acc : sums) acc = V::zero();
      const Scale* weights = taps + c * K * K;
      const V offset = V::broadcast(problem.slope ? constant(0)[c] : Scale(0));
      const V factor = V::broadcast(problem.slope ? slope(0)[c] : Scale(0));
      for (int64_t row = 0; row < t.tile.rows; ++row) {
        const T* pixel = static_cast<const T*>(x.data) + t.tile.image * x.stride_batch + c * x.stride_channel +
                         (t.tile.row + row) * x.stride_row + t.tile.column * x.stride_column;
        T* dx = static_cast<T*>(problem.dx) +
                ((t.tile.image * x.channels + c) * x.height + t.tile.row + row) * x.width + t.tile.column;
        const Scale* positive = t.positive_raw + c * t.pixels + inner + row * t.halo.pitch;
        const Scale* padded = t.padded + c * t.pixels + row * t.padded_pitch;
        for (int64_t i = 0; i < t.tile.columns; i += width) {
          const Lanes lanes = Lanes::range(0, std::min(width, t.tile.columns - i));
          const V value = V::load(pixel + i, lanes), negative = value.negative();
          V correlated = V::zero();
#pragma GCC unroll 49
          for (int tap = 0; tap < K * K; ++tap) {
            const V shifted = V::load(padded + tap / K * t.padded_pitch + tap % K + i);
            correlated = V::fma(V::broadcast(weights[tap]), shifted, correlated);
            sums[tap] = V::fma(negative, shifted, sums[tap]);
          }
          V passed = V::load(positive + i);
          if (problem.slope) passed = V::add(passed, V::fma(value.positive(), factor, offset));
          put(V::by_sign(value, passed, correlated), dx + i, lanes, i + width <= t.tile.columns);
        }
      }
      for (int tap = 0; tap < K * K; ++tap) dtaps[c * K * K + tap] += sum(sums[tap]);
    }
  }

  void finish_interleaved(const Tiles& t, Scale* dtaps) const {
    const Activation& x = problem.x;
    const int64_t padded_channels = expanded.expansion.padded_channels;
    for (int64_t c = 0; c < x.channels; c += width) {
      const Lanes lanes = Lanes::range(0, std::min(width, x.channels - c));
      V sums[K * K], weights[K * K];
#pragma GCC unroll 49
      for (int tap = 0; tap < K * K; ++tap) {
        sums[tap] = V::zero();
        weights[tap] = V::load(taps + tap * padded_channels + c);
      }
      const V offset = problem.slope ? V::load(constant(0) + c, lanes) : V::zero();
      const V factor = problem.slope ? V::load(slope(0) + c, lanes) : V::zero();
      for (int64_t row = 0; row < t.tile.rows; ++row) {
        for (int64_t column = 0; column < t.tile.columns; ++column) {
          const T* pixel = static_cast<const T*>(x.data) + t.tile.image * x.stride_batch +
                           (t.tile.row + row) * x.stride_row + (t.tile.column + column) * x.stride_column + c;
          const V value = V::load(pixel, lanes), negative = value.negative();
          const Scale* padded = t.padded + (row * t.padded_pitch + column) * padded_channels + c;
          V correlated = V::zero();
#pragma GCC unroll 49
          for (int tap = 0; tap < K * K; ++tap) {
            const V shifted = V::load(padded + (tap / K * t.padded_pitch + tap % K) * padded_channels);
            correlated = V::fma(weights[tap], shifted, correlated);
            sums[tap] = V::fma(negative, shifted, sums[tap]);
          }
          const int64_t inner = (t.tile.row - t.halo.row + row) * t.halo.pitch + t.tile.column - t.halo.column + column;
          V passed = V::load(t.positive_raw + inner * padded_channels + c, lanes);
          passed = V::add(passed, V::fma(value.positive(), factor, offset));
          T* dx = static_cast<T*>(problem.dx) +
                  ((t.tile.image * x.height + t.tile.row + row) * x.width + t.tile.column + column) * x.channels + c;
          put(V::by_sign(value, passed, correlated), dx, lanes, c + width <= x.channels);
        }
      }
#pragma GCC unroll 49
      for (int tap = 0; tap < K * K; ++tap) {
        Scale* total = dtaps + tap * padded_channels + c;
        V::add(V::load(total), sums[tap]).store(total);
      }
    }
  }
};

// Packs one branch's half of weight [C, 2C] for the product weightᵀ·dy; ``transposed`` is room for C².
template <class Scale>
void pack_transposed(const Scale* weight, int64_t branch, const Activation& x, Scale* transposed, Scale* packed) {
  const int64_t channels = x.channels;
  for (int64_t o = 0; o < channels; ++o) {
    for (int64_t f = 0; f < channels; ++f) {
      transposed[f * channels + o] = weight[(o * 2 + branch) * channels + f];
    }
  }
  const Channels side = x.channels_last ? Channels::kVectors : Channels::kRows;
  pack_weight<ScalarProduct<Scale>>(side, transposed, channels, 1, channels, packed);
}

template <int K, class T, class Scale>
void input_gradient(const GradientProblem& problem, const Host& host) {
  constexpr int64_t width = Vec<Scale>::width;
  const Activation& x = problem.x;
  const int64_t channels = x.channels, padded = round_up(channels, width), taps = padded * K * K;
  const int64_t square = channels * channels, packed = padded * channels;
  const Tiling tiling = choose_tiling(x, 6 * padded * sizeof(Scale), width, host.threads, kGradientTileBytes);
  const int64_t tiles = tiling.tiles(x), chunks = std::min(tiles, host.threads);
  auto* memory = static_cast<Scale*>(host.scratch(kShared, (2 * taps + square + 2 * packed + padded) * sizeof(Scale)));
  Scale *flipped = memory, *straight = memory + taps, *positive = straight + taps, *negative = positive + packed;
  Scale *zeros = negative + packed, *transposed = zeros + padded;
  const auto* raw_taps = static_cast<const Scale*>(problem.taps);
  std::fill(straight, straight + taps, Scale(0));
  for (int64_t c = 0; c < channels; ++c) {
    for (int64_t t = 0; t < K * K; ++t)
      straight[x.channels_last ? t * padded + c : c * K * K + t] = raw_taps[c * K * K + t];
  }
  const auto* weight = static_cast<const Scale*>(problem.weight);
  pack_transposed(weight, 0, x, transposed, positive);
  pack_transposed(weight, 1, x, transposed, negative);
  std::fill(zeros, zeros + padded, Scale(0));
  auto* partial = static_cast<Scale*>(host.scratch(kPartial, chunks * taps * sizeof(Scale)));
  std::fill(partial, partial + chunks * taps, Scale(0));
  const InputGradientJob<K, T, Scale> job{
      problem, host, {x, problem.taps, flipped}, tiling, positive, negative, zeros, straight, partial,
      streams<T>(x)};
  run_chunks(job, tiles, chunks, host);
  for (int64_t c = 0; c < channels; ++c) {
    for (int64_t t = 0; t < K * K; ++t) {
      Scale total(0);
      for (int64_t chunk = 0; chunk < chunks; ++chunk) {
        total += partial[chunk * taps + (x.channels_last ? t * padded + c : c * K * K + t)];
      }
      static_cast<Scale*>(problem.dtaps)[c * K * K + t] = total;
    }
  }
}

// ---- the choice of types -----------------------------------------------------------------------------------

// Calls pass.run<K, T, Scale>() for the problem's kernel size and scalar.
template <int K, class Pass>
void choose_scalar(const Pass& pass) {
  switch (pass.problem.scalar) {
    case Scalar::Float32: return pass.template run<K, float, float>();
    case Scalar::Float64: return pass.template run<K, double, double>();
    case Scalar::BFloat16: return pass.template run<K, BFloat16, float>();
  }
}

template <class Pass>
void choose(const Pass& pass) {
  switch (pass.problem.kernel_size) {
    case 0: return choose_scalar<0>(pass);
    case 3: return choose_scalar<3>(pass);
    case 5: return choose_scalar<5>(pass);
    case 7: return choose_scalar<7>(pass);
  }
}

template <class Problem>
struct Pass {
  const Problem& problem;
  const Host& host;
};

struct StatisticsPass : Pass<StatisticsProblem> {
  template <int K, class T, class Scale>
  void run() const {
    statistics<K, T, Scale>(problem, host);
  }
};

struct WeightGradientPass : Pass<GradientProblem> {
  template <int K, class T, class Scale>
  void run() const {
    weight_gradient<K, T, Scale>(problem, host);
  }
};

struct InputGradientPass : Pass<GradientProblem> {
  template <int K, class T, class Scale>
  void run() const {
    if constexpr (K > 0) input_gradient<K, T, Scale>(problem, host);
  }
};

inline void statistics(const StatisticsProblem& problem, const Host& host) { choose(StatisticsPass{{problem, host}}); }
inline void weight_gradient(const GradientProblem& problem, const Host& host) {
  choose(WeightGradientPass{{problem, host}});
}
inline void input_gradient(const GradientProblem& problem, const Host& host) {
  choose(InputGradientPass{{problem, host}});
}
