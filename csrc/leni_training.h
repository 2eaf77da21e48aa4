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

enum Slot { kShared, kExpanded, kGradient, kNegativeRaw, kPositiveRaw, kPadded, kPartial, kPartialBias };  // of scratch

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

  template <class Sink>
  void planar(const Tile& tile, const Sink& sink) const {
    PlanarExpander<Product, K, T, Scale, Sink>{x, expansion, tile, sink}.run();
  }
  template <class Sink>
  void interleaved(const Tile& tile, const Sink& sink) const {
    InterleavedExpander<Product, K, T, Scale, Sink>{x, expansion, tile, sink}.run();
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

// The sums over a tile of a branch's distances from ``minus_shift``'s negative, and of their squares.
template <class Scale>
struct BranchSums {
  using V = Vec<Scale>;
  V minus_shift, distances, squares;

  void add(V value) {
    const V distance = V::add(value, minus_shift);
    distances = V::add(distances, distance);
    squares = V::fma(distance, distance, squares);
  }
  void add(V value, Lanes kept) {
    const V distance = V::add(value, minus_shift).keep(kept);
    distances = V::add(distances, distance);
    squares = V::fma(distance, distance, squares);
  }
};

// A sink that sums: of each feature, what BranchSums has. Vectors are [features], where z's begin ``branch`` further
// than those of the positive branch.
template <class Scale, bool kBoth, bool kPlanar>
struct SumsSink {
  static constexpr bool kPositive = kBoth;
  using V = Vec<Scale>;

  const Scale* minus_shift;
  Scale *distances, *squares;
  int64_t branch;

  struct Taker {
    BranchSums<Scale> positive, negative;
    const SumsSink& sink;
    int64_t channel;

    V start(int = 0) const { return V::zero(); }
    template <bool kEdge>
    void take_positive(V value, int64_t, int64_t, Lanes kept) {
      add<kEdge>(positive, value, kept);
    }
    template <bool kEdge>
    void take_negative(V value, int64_t, int64_t, Lanes kept) {
      add<kEdge>(negative, value, kept);
    }
    template <bool kEdge>
    void take_positive(V (&values)[1], int64_t, int64_t, Lanes kept) {
      add<kEdge>(positive, values[0], kept);
    }
    template <bool kEdge>
    void take_negative(V (&values)[1], int64_t, int64_t, Lanes kept) {
      add<kEdge>(negative, values[0], kept);
    }
    template <bool kEdge>
    static void add(BranchSums<Scale>& sums, V value, Lanes kept) {
      if (kEdge) {
        sums.add(value, kept);
      } else {
        sums.add(value);
      }
    }

    void close() {
      if (kBoth) put(positive, channel);
      put(negative, channel + sink.branch);
    }
    void put(const BranchSums<Scale>& sums, int64_t feature) {
      if (kPlanar) {
        sink.distances[feature] = sum(sums.distances);
        sink.squares[feature] = sum(sums.squares);
      } else {
        sums.distances.store(sink.distances + feature);
        sums.squares.store(sink.squares + feature);
      }
    }
  };

  Taker at(int64_t channel, Lanes = {}) const { return {begin(channel), begin(channel + branch), *this, channel}; }
  BranchSums<Scale> begin(int64_t feature) const {
    const V shift = kPlanar ? V::broadcast(minus_shift[feature]) : V::load(minus_shift + feature);
    return {shift, V::zero(), V::zero()};
  }
};

template <int K, class T, class Scale>
struct StatisticsJob {
  static constexpr bool kBoth = K > 0;

  const StatisticsProblem& problem;
  const Host& host;
  Expanded<K, T, Scale> expanded;
  Tiling tiling;
  int64_t features;
  Moments* moments;  // [chunk][features]

  void run(int64_t chunk, int64_t begin, int64_t end) const {
    const int64_t padded = expanded.expansion.padded_channels, vectors = 2 * padded;
    auto* minus_shift = static_cast<Scale*>(host.scratch(kGradient, 3 * vectors * sizeof(Scale)));
    Scale *distances = minus_shift + vectors, *squares = distances + vectors;
    std::fill(minus_shift, minus_shift + vectors, Scale(0));
    for (int64_t index = begin; index < end; ++index) {
      const Tile tile = tiling.tile(index, problem.x);
      const double count = static_cast<double>(tile.rows * tile.columns);
      // Distances are taken from the mean of the tile before: what that is off by is part of the variance itself.
      for (int pass = index == begin ? 0 : 1; pass < 2; ++pass) {
        take(tile, minus_shift, distances, squares);
        for (int64_t f = 0; f < features; ++f) {
          const int64_t at = f < problem.x.channels ? f : f - problem.x.channels + padded;
          const double mean = distances[at] / count, squared = squares[at] - mean * distances[at];
          if (pass == 1) moments[chunk * features + f].merge(count, mean - minus_shift[at], std::max(squared, 0.0));
          minus_shift[at] = static_cast<Scale>(minus_shift[at] - mean);
        }
      }
    }
  }

  void take(const Tile& tile, const Scale* minus_shift, Scale* distances, Scale* squares) const {
    const int64_t branch = kBoth ? expanded.expansion.padded_channels : 0;
    if (problem.x.channels_last) {
      expanded.interleaved(tile, SumsSink<Scale, kBoth, false>{minus_shift, distances, squares, branch});
    } else {
      expanded.planar(tile, SumsSink<Scale, kBoth, true>{minus_shift, distances, squares, branch});
    }
  }
};

template <int K, class T, class Scale>
void statistics(const StatisticsProblem& problem, const Host& host) {
  constexpr int64_t width = Vec<Scale>::width;
  const Activation& x = problem.x;
  const int64_t features = (K == 0 ? 1 : 2) * x.channels;
  const Tiling tiling = choose_tiling(x, x.channels * sizeof(T), width, host.threads, kTileBytes);
  const int64_t tiles = tiling.tiles(x), chunks = std::min(tiles, host.threads);
  auto* taps = static_cast<Scale*>(host.scratch(kShared, round_up(x.channels, width) * K * K * sizeof(Scale)));
  auto* moments = static_cast<Moments*>(host.scratch(kPartial, chunks * features * sizeof(Moments)));
  std::fill(moments, moments + chunks * features, Moments{});
  const StatisticsJob<K, T, Scale> job{problem, host, {x, problem.taps, taps, &x}, tiling, features, moments};
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
  using V = Vec<Scale>;
  static constexpr int64_t width = V::width;

  const GradientProblem& problem;
  const Host& host;
  Expanded<K, T, Scale> expanded;
  Tiling tiling;
  const Scale* minus_mean;  // [2C]
  Scale* partial;           // [chunk][2C][channels padded]: dweight transposed
  double* bias;             // [chunk][channels padded]: dbias

  void run(int64_t chunk, int64_t begin, int64_t end) const {
    const Activation& x = problem.x;
    const int64_t padded = expanded.expansion.padded_channels, features = 2 * x.channels;
    const int64_t pixels = room<Scale>(tiling.rows * tiling.pitch);
    auto* values = static_cast<Scale*>(host.scratch(kExpanded, (features * pixels + padded) * sizeof(Scale)));
    auto* grad = static_cast<Scale*>(host.scratch(kGradient, pixels * padded * sizeof(Scale)));
    Scale* weight = partial + chunk * features * padded;
    for (int64_t index = begin; index < end; ++index) {
      Tile tile = tiling.tile(index, x);
      tile.pitch = tile.columns;  // its pixels follow each other
      gather_panels(tile, pixels, grad);
      if (!x.channels_last) {
        using Store = PlanarStore<Product, Scale, true, true>;
        expanded.planar(tile, Store{values, values + x.channels * pixels, pixels, tile.pitch, x.channels, minus_mean,
                                    minus_mean + x.channels});
        multiply(tile, {values, pixels, 1}, features, grad, pixels, weight);
      } else if (x.channels % width == 0) {
        keep_interleaved(tile, values, pixels * width, width, x.channels * pixels);
        for (int64_t f = 0; f < features; f += width) {
          multiply(tile, {values + f * pixels, 1, width}, width, grad, pixels, weight + f * padded);
        }
      } else {
        keep_interleaved(tile, values, width, features, x.channels);
        multiply(tile, {values, 1, features}, features, grad, pixels, weight);
      }
      add_pixels(grad, tile.rows * tile.columns, pixels, bias + chunk * padded);
    }
  }

  // dy as [vector of channels][pixel][lane]: what a block of the product reads lies together.
  void gather_panels(const Tile& tile, int64_t pixels, Scale* grad) const {
    Activation lanes = problem.grad;
    for (int64_t c = 0; c < problem.x.channels; c += width) {
      lanes.data = static_cast<const T*>(problem.grad.data) + c * problem.grad.stride_channel;
      lanes.channels = std::min(width, problem.x.channels - c);
      gather_tile<T>(lanes, tile, true, width, grad + c * pixels);
    }
  }

  void keep_interleaved(const Tile& tile, Scale* values, int64_t vector, int64_t pixel, int64_t branch) const {
    using Store = InterleavedStore<Product, Scale, true, true>;
    expanded.interleaved(tile, Store{values, values + branch, vector, pixel, tile.pitch * pixel, minus_mean,
                                     minus_mean + problem.x.channels});
  }

  struct Features {
    const Scale* at;
    int64_t feature, pixel;  // strides
  };

  void multiply(const Tile& tile, const Features& values, int64_t features, const Scale* grad, int64_t pixels,
                Scale* weight) const {
    const int64_t padded = expanded.expansion.padded_channels;
    Block<Product, Scale, Scale> block{
        tile.rows * tile.columns, values.at, values.feature, grad, width, nullptr, weight, padded, padded};
    block.a_step = values.pixel;
    block.b_vector = pixels * width;
    multiply_all<Product, Channels::kSummed>(block, features);
  }

  // In double past a few pixels: gradients of opposite signs all but cancel in this sum.
  void add_pixels(const Scale* grad, int64_t count, int64_t pixels, double* bias) const {
    constexpr int64_t few = 32;
    for (int64_t c = 0; c < expanded.expansion.padded_channels; c += width) {
      for (int64_t first = 0; first < count; first += few) {
        V acc = V::zero();
        for (int64_t pixel = first; pixel < std::min(first + few, count); ++pixel) {
          acc = V::add(acc, V::load(grad + c * pixels + pixel * width));
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
  const int64_t features = 2 * x.channels, padded = round_up(x.channels, width), taps = padded * K * K;
  const Tiling tiling = choose_tiling(x, (features + padded) * sizeof(Scale), width, host.threads, kTileBytes);
  const int64_t tiles = tiling.tiles(x), chunks = std::min(tiles, host.threads);
  auto* memory = static_cast<Scale*>(host.scratch(kShared, (taps + features) * sizeof(Scale)));
  Scale* minus_mean = memory + taps;
  for (int64_t f = 0; f < features; ++f) {
    minus_mean[f] = problem.mean == nullptr ? Scale(0) : -static_cast<const Scale*>(problem.mean)[f];
  }
  auto* partial = static_cast<Scale*>(host.scratch(kPartial, chunks * features * padded * sizeof(Scale)));
  std::fill(partial, partial + chunks * features * padded, Scale(0));
  auto* bias = static_cast<double*>(host.scratch(kPartialBias, chunks * padded * sizeof(double)));
  std::fill(bias, bias + chunks * padded, 0.0);
  const WeightGradientJob<K, T, Scale> job{problem, host, {x, problem.taps, memory, problem.z}, tiling, minus_mean,
                                           partial, bias};
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
// dtaps = Σ min(x, 0)·shift(g_z). g_z is needed on a halo: a sweep down the rows of a strip of columns keeps the last
// rows of g_z, so that a product is computed again only beside a strip and where a sweep begins.

// How planes are cut into sweeps, and how many rows a step of one takes.
struct Sweeping {
  Tiling tiling;
  int64_t rows, pitch, kept_rows, pixels;

  template <class Scale>
  static Sweeping choose(const Activation& x, int64_t half, int64_t threads) {
    constexpr int64_t width = Vec<Scale>::width, kept = 3;  // dy, g_z and g_p
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
    s.kept_rows = 2 * half + s.rows;
    s.pixels = room<Scale>(s.kept_rows * s.pitch + 2 * half);
    return s;
  }
  static constexpr int64_t kSweepBytes = 256 * 1024, kStripVectors = 2, kStepPixels = 48;
};

template <int K, class T, class Scale>
struct InputGradientJob {
  using Product = ScalarProduct<Scale>;
  using V = Vec<Scale>;
  static constexpr int64_t width = V::width, half = K / 2;

  const GradientProblem& problem;
  const Host& host;
  Expanded<K, T, Scale> expanded;  // of slope·z, where there is a slope
  Sweeping sweeping;
  const Scale* positive_weight;  // packed, for 1×1 products from dy to g_p and to g_z
  const Scale* negative_weight;
  const Scale* zeros;
  const Scale* taps;  // unflipped; [C][k²] for NCHW, [k²][C padded] else
  Scale* partial;     // [chunk] of dtaps: [C padded][k²] vectors whose lanes are summed last, or laid out as taps
  bool past_caches;   // how dx is written

  // What a sweep keeps, as [pixel][C padded] or [C][pixel]. In a buffer, row 0 is the strip's row ``row − half``.
  struct Sweep {
    Tile strip;
    int64_t left, columns;  // of the strip with its halo, cut at the image
    int64_t row;
    Scale *grad, *negative, *positive;
  };

  void run(int64_t chunk, int64_t begin, int64_t end) const {
    const int64_t padded = expanded.expansion.padded_channels, size = sweeping.pixels * padded + padded;
    const auto memory = [&](Slot slot) { return static_cast<Scale*>(host.scratch(slot, size * sizeof(Scale))); };
    Sweep s{{}, 0, 0, 0, memory(kGradient), memory(kNegativeRaw), memory(kPositiveRaw)};
    for (int64_t index = begin; index < end; ++index) {
      s.strip = sweeping.tiling.tile(index, problem.x);
      s.left = std::max<int64_t>(s.strip.column - half, 0);
      s.columns = std::min(s.strip.column + s.strip.columns + half, problem.x.width) - s.left;
      std::fill(s.grad, s.grad + size, Scale(0));
      std::fill(s.negative, s.negative + size, Scale(0));
      sweep(s, partial + chunk * partial_size());
    }
    streamed();
  }

  int64_t partial_size() const {
    return expanded.expansion.padded_channels * K * K * (problem.x.channels_last ? 1 : width);
  }

  void sweep(Sweep& s, Scale* dtaps) const {
    const int64_t last = s.strip.row + s.strip.rows;
    s.row = s.strip.row;
    load(s, 0, 2 * half);
    for (; s.row < last; s.row += sweeping.rows) {
      const int64_t rows = std::min(sweeping.rows, last - s.row);
      load(s, 2 * half, rows);
      multiply(at(s, half, 0), (rows - 1) * sweeping.pitch + s.strip.columns, s.grad, positive_weight, zeros,
               s.positive);
      if (problem.x.channels_last) {
        finish_interleaved(s, rows, dtaps);
      } else {
        finish_planar(s, rows, dtaps);
      }
      slide(s.grad, rows);
      slide(s.negative, rows);
    }
  }

  // The index of a pixel: its row in a buffer, its column from the strip's first.
  int64_t at(const Sweep&, int64_t row, int64_t column) const { return half + row * sweeping.pitch + column; }

  // Reads dy and computes g_z on ``rows`` rows of the buffers, from ``first``.
  void load(const Sweep& s, int64_t first, int64_t rows) const {
    const Activation& x = problem.x;
    const int64_t padded = expanded.expansion.padded_channels, image_row = s.row - half;
    const int64_t begin = std::clamp<int64_t>(first, -image_row, first + rows);
    const int64_t end = std::clamp<int64_t>(x.height - image_row, begin, first + rows);
    clear(s.negative, at(s, first, -half), (begin - first) * sweeping.pitch);
    clear(s.negative, at(s, end, -half), (first + rows - end) * sweeping.pitch);
    if (begin == end) return;
    const Tile tile{s.strip.image, image_row + begin, s.left, end - begin, s.columns, sweeping.pitch};
    const int64_t start = at(s, begin, s.left - s.strip.column);
    if (x.channels_last) {
      gather_tile<T>(problem.grad, tile, true, padded, s.grad + start * padded);
    } else {
      gather_tile<T>(problem.grad, tile, false, sweeping.pixels, s.grad + start);
    }
    const int64_t count = (end - begin - 1) * sweeping.pitch + s.columns;
    if (problem.slope == nullptr) return multiply(start, count, s.grad, negative_weight, zeros, s.negative);
    const auto* constant = static_cast<const Scale*>(problem.constant) + x.channels;
    if (x.channels_last) {
      Scale* to = s.negative + start * padded;
      expanded.interleaved(tile, InterleavedStore<Product, Scale, false, true>{
                                     nullptr, to, width, padded, sweeping.pitch * padded, nullptr, constant});
    } else {
      Scale* to = s.negative + start;
      expanded.planar(tile, PlanarStore<Product, Scale, false, true>{nullptr, to, sweeping.pixels, sweeping.pitch,
                                                                     x.channels, nullptr, constant});
    }
    multiply(start, count, s.grad, negative_weight, nullptr, s.negative);
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

  void put(V value, T* dx, Lanes lanes, bool whole) const {
    if (!whole) {
      value.store(dx, lanes);
    } else if (past_caches && aligned<width>(dx, 0)) {
      value.stream(dx);
    } else {
      value.store(dx);
    }
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
        const T* pixel = static_cast<const T*>(x.data) + s.strip.image * x.stride_batch + c * x.stride_channel +
                         (s.row + row) * x.stride_row + s.strip.column * x.stride_column;
        T* dx = static_cast<T*>(problem.dx) + ((s.strip.image * x.channels + c) * x.height + s.row + row) * x.width +
                s.strip.column;
        const Scale* positive = s.positive + c * sweeping.pixels + at(s, row + half, 0);
        const Scale* corner = s.negative + c * sweeping.pixels + at(s, row, -half);
        for (int64_t i = 0; i < s.strip.columns; i += width) {
          const Lanes lanes = Lanes::range(0, std::min(width, s.strip.columns - i));
          const V value = V::load(pixel + i, lanes), negative = value.negative();
          V correlated = V::zero();
#pragma GCC unroll 49
          for (int tap = 0; tap < K * K; ++tap) {
            const V shifted = V::load(corner + tap / K * sweeping.pitch + tap % K + i);
            correlated = V::fma(V::broadcast(weights[tap]), shifted, correlated);
            sums[tap] = V::fma(negative, shifted, sums[tap]);
          }
          const V passed = V::add(V::load(positive + i), V::fma(value.positive(), factor, offset));
          put(V::by_sign(value, passed, correlated), dx + i, lanes, i + width <= s.strip.columns);
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
    const Scale* negative = s.negative + at(s, row, 0) * padded + c;
    const Scale* positive = s.positive + at(s, row + half, 0) * padded + c;
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
#pragma GCC unroll 8
      for (int i = 0; i < K; ++i) {
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
      const V passed = V::add(V::load(positive + complete * padded), V::fma(value.positive(), factor, offset));
      put(V::by_sign(value, passed, acc[K - 1]), dx + complete * x.channels, lanes, !kEdge);
    }
#pragma GCC unroll 8
    for (int i = 0; i < K; ++i) {
#pragma GCC unroll 8
      for (int j = 0; j < K; ++j) sums[i][j].store(dtaps + (i * K + j) * padded + c);
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
  constexpr int64_t width = Vec<Scale>::width, taps = K * K;
  const Activation& x = problem.x;
  const int64_t channels = x.channels, padded = round_up(channels, width), taps_size = padded * taps;
  const int64_t square = channels * channels, packed = padded * channels;
  const Sweeping sweeping = Sweeping::choose<Scale>(x, K / 2, host.threads);
  const int64_t sweeps = sweeping.tiling.tiles(x), chunks = std::min(sweeps, host.threads);
  auto* memory =
      static_cast<Scale*>(host.scratch(kShared, (3 * taps_size + square + 2 * packed + padded) * sizeof(Scale)));
  Scale *flipped = memory, *straight = memory + taps_size, *sloped = straight + taps_size;
  Scale *positive = sloped + taps_size, *negative = positive + packed, *zeros = negative + packed;
  Scale* transposed = zeros + padded;
  const auto* raw_taps = static_cast<const Scale*>(problem.taps);
  const auto* slope = static_cast<const Scale*>(problem.slope);
  const auto place = [&](int64_t c, int64_t t) { return x.channels_last ? t * padded + c : c * taps + t; };
  std::fill(straight, straight + taps_size, Scale(0));
  for (int64_t c = 0; c < channels; ++c) {
    for (int64_t t = 0; t < taps; ++t) {
      straight[place(c, t)] = raw_taps[c * taps + t];
      sloped[c * taps + t] = slope == nullptr ? Scale(0) : slope[channels + c] * raw_taps[c * taps + t];
    }
  }
  const auto* weight = static_cast<const Scale*>(problem.weight);
  pack_transposed(weight, 0, x, transposed, positive);
  pack_transposed(weight, 1, x, transposed, negative);
  std::fill(zeros, zeros + padded, Scale(0));
  InputGradientJob<K, T, Scale> job{problem,  host,    {x, sloped, flipped}, sweeping, positive, negative, zeros,
                                    straight, nullptr, streams<T>(x)};
  const int64_t partial_size = job.partial_size(), lanes = partial_size / taps_size;
  job.partial = static_cast<Scale*>(host.scratch(kPartial, chunks * partial_size * sizeof(Scale)));
  std::fill(job.partial, job.partial + chunks * partial_size, Scale(0));
  run_chunks(job, sweeps, chunks, host);
  for (int64_t c = 0; c < channels; ++c) {
    for (int64_t t = 0; t < taps; ++t) {
      Scale total(0);
      for (int64_t chunk = 0; chunk < chunks; ++chunk) {
        for (int64_t lane = 0; lane < lanes; ++lane) {
          total += job.partial[chunk * partial_size + place(c, t) * lanes + lane];
        }
      }
      static_cast<Scale*>(problem.dtaps)[c * taps + t] = total;
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
