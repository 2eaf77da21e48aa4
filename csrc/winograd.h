// The dense 3×3 convolution of training and its gradients, by Winograd's minimal filtering F(4×4, 3×3) (Lavin and Gray
// 2016).
//
// A 4×4 tile of the output takes 36 products a pair of channels instead of 144, so that it passes the limit that
// arithmetic sets to a direct convolution. The convolution reads x and writes y, 2T where T is the bytes of one
// activation tensor; with the weights' gradient, which shares the transformed x, it reads the gradient too, 3T.
// Overlaps of tiles come from cache, where the transformed tiles stay. Saves nothing.
//
// Included once per ISA object, after reborn_training.h. In float. A block of tiles is transformed to [36][tile][C],
// multiplied by the transformed weights one of the 36 points at a time, and transformed back. The weights' gradient is
// dw = Gᵀ(Σ (A·g·Aᵀ) ∘ (Bᵀ·x·B))G over all tiles. Vectors run along channels, which NCHW is transposed to and from.
//
// The interpolation points 0, ±√½, ±√2 and ∞ leave an eighth of the largest error of the usual 0, ±1, ±2 and ∞. A NaN
// or an infinity reaches the whole of its tiles: only where statistics spread it anyway may this stand for a
// convolution.

constexpr int kPoints = 36, kSide = 4, kReach = 6;  // products a tile, its side, and its side with the taps' reach
constexpr int64_t kBlockBytes = 1024 * 1024;  // of a block's tiles, transformed, in and out
constexpr int64_t kBlockTiles = 48;          // at least, or the weights and their gradient are read too often
constexpr float kA = 0.70710678118654752f, kB = 1.4142135623730950f;

// How the plane is cut, and how many tiles a block has.
struct WinogradTiling {
  int64_t down, across, count, block, blocks;
  int64_t padded, point_size;  // channels, and values of a block's [tile][C] with room to keep the 36 off one cache set

  WinogradTiling(const Activation& x, int64_t threads)
      : down(ceil_div(x.height, kSide)), across(ceil_div(x.width, kSide)), count(x.batch * down * across) {
    padded = round_up(x.channels, Vec<float>::width);
    const int64_t most = std::max<int64_t>(kBlockBytes / (2 * kPoints * padded * sizeof(float)), kBlockTiles);
    block = ceil_div(count, round_up(ceil_div(count, most), threads));
    blocks = ceil_div(count, block);
    point_size = block * padded + Vec<float>::width;
  }
};

// Neighbouring tiles of one row of tiles: the part of a block that is read and written at a time.
struct Segment {
  int64_t image, row, column, tiles, first;  // pixel of the first tile, and its index in the block
};

template <class Body>
void for_segments(const WinogradTiling& tiling, int64_t block, const Body& body) {
  const int64_t end = std::min((block + 1) * tiling.block, tiling.count);
  for (int64_t tile = block * tiling.block; tile < end;) {
    const int64_t across = tile % tiling.across, down = tile / tiling.across % tiling.down;
    const int64_t tiles = std::min(tiling.across - across, end - tile);
    body(Segment{tile / (tiling.across * tiling.down), down * kSide, across * kSide, tiles,
                 tile - block * tiling.block});
    tile += tiles;
  }
}

// ---- the transforms of one line ----------------------------------------------------------------------------

using WinogradVec = Vec<float>;

inline WinogradVec scaled(float scale, WinogradVec a, WinogradVec b) {
  return WinogradVec::fma(WinogradVec::broadcast(scale), a, b);
}

// Bᵀd: six neighbours of the input.
inline void transform_input(const WinogradVec (&d)[6], WinogradVec (&out)[6]) {
  const WinogradVec even_a = scaled(-2, d[2], d[4]), odd_a = scaled(-2, d[1], d[3]);
  const WinogradVec even_b = scaled(-0.5f, d[2], d[4]), odd_b = scaled(-0.5f, d[1], d[3]);
  out[0] = scaled(-2.5f, d[2], WinogradVec::add(d[0], d[4]));
  out[1] = scaled(kA, odd_a, even_a);
  out[2] = scaled(-kA, odd_a, even_a);
  out[3] = scaled(kB, odd_b, even_b);
  out[4] = scaled(-kB, odd_b, even_b);
  out[5] = scaled(-2.5f, d[3], WinogradVec::add(d[1], d[5]));
}

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
inline void transform_gradient(const WinogradVec (&g)[4], WinogradVec (&out)[6]) {
  const WinogradVec even_a = scaled(0.5f, g[2], g[0]), odd_a = scaled(0.5f, g[3], g[1]);
  const WinogradVec even_b = scaled(2, g[2], g[0]), odd_b = scaled(2, g[3], g[1]);
  out[0] = g[0];
  out[1] = scaled(kA, odd_a, even_a);
  out[2] = scaled(-kA, odd_a, even_a);
  out[3] = scaled(kB, odd_b, even_b);
  out[4] = scaled(-kB, odd_b, even_b);
  out[5] = g[3];
}

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
inline void read_patch(const Activation& x, const Segment& segment, int64_t halo, int64_t channel, float* patch) {
  constexpr int64_t width = WinogradVec::width;
  const int64_t rows = kSide + 2 * halo, columns = segment.tiles * kSide + 2 * halo;
  const int64_t row = segment.row - halo, column = segment.column - halo;
  const int64_t top = std::max<int64_t>(row, 0), left = std::max<int64_t>(column, 0);
  const int64_t bottom = std::min(row + rows, x.height), right = std::min(column + columns, x.width);
  if (top > row || left > column || bottom < row + rows || right < column + columns) {
    std::fill(patch, patch + rows * columns * width, 0.0f);
  }
  Activation lanes = x;
  lanes.data = static_cast<const float*>(x.data) + channel * x.stride_channel;
  lanes.channels = std::min(width, x.channels - channel);
  gather_tile<float>(lanes, {segment.image, top, left, bottom - top, right - left, columns}, true, width,
                     patch + ((top - row) * columns + left - column) * width);
}

// Writes one vector of channels of a segment, [row][column][lane], to y, which is contiguous in x's order.
inline void write_patch(const float* patch, const Activation& x, const Segment& segment, int64_t channel, float* y) {
  using V = WinogradVec;
  constexpr int64_t width = V::width;
  const int64_t pitch = segment.tiles * kSide, channels = std::min(width, x.channels - channel);
  const int64_t rows = std::min<int64_t>(kSide, x.height - segment.row);
  const int64_t columns = std::min(pitch, x.width - segment.column);
  for (int64_t row = 0; row < rows; ++row) {
    const float* from = patch + row * pitch * width;
    const int64_t pixel = (segment.row + row) * x.width + segment.column, plane = x.height * x.width;
    if (x.channels_last) {
      float* to = y + (segment.image * plane + pixel) * x.channels + channel;
      for (int64_t i = 0; i < columns; ++i) store_some(V::load(from + i * width), to + i * x.channels, channels);
    } else {
      float* to = y + (segment.image * x.channels + channel) * plane + pixel;
      for (int64_t i = 0; i < columns; i += width) {
        float square[width * width];
        transpose(from + i * width, width, square, width);
        for (int64_t c = 0; c < channels; ++c) store_some(V::load(square + c * width), to + c * plane + i, columns - i);
      }
    }
  }
}

// Transforms one vector of channels of a segment to [36][tile][C]: tiles of kLines × kLines pixels by ``transform``.
template <int kLines, bool kNegative, class Transform>
inline void transform_tiles(const float* patch, const Segment& segment, int64_t point_size, int64_t padded,
                            const Transform& transform, float* to) {
  using V = WinogradVec;
  constexpr int64_t width = V::width;
  const int64_t pitch = segment.tiles * kSide + kLines - kSide;
  for (int64_t tile = 0; tile < segment.tiles; ++tile) {
    V columns[6][kLines];
#pragma GCC unroll 6
    for (int j = 0; j < kLines; ++j) {
      V line[kLines], out[6];
#pragma GCC unroll 6
      for (int i = 0; i < kLines; ++i) {
        line[i] = V::load(patch + (i * pitch + tile * kSide + j) * width);
        if (kNegative) line[i] = line[i].negative();
      }
      transform(line, out);
#pragma GCC unroll 6
      for (int i = 0; i < 6; ++i) columns[i][j] = out[i];
    }
#pragma GCC unroll 6
    for (int i = 0; i < 6; ++i) {
      V out[6];
      transform(columns[i], out);
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

// GwGᵀ of weight [C][C][3][3], as 36 panels of packed weights, ``point_size`` apart.
struct WinogradPacking {
  using V = WinogradVec;
  const float* weight;
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
    for (int64_t o = 0; o < std::min<int64_t>(V::width, channels - first); ++o) {
      for (int t = 0; t < 9; ++t) taps[t][o] = weight[((first + o) * channels + c) * 9 + t];
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

// Gᵀ·U·G of the chunks' sums U.
struct WinogradUnpacking {
  using V = WinogradVec;
  const float* partial;
  int64_t chunks, channels, padded, weight_size;
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
      for (int i = 0; i < 6; ++i) {
        const float* from = partial + (i * 6 + j) * weight_size + o * padded + first;
        column[i] = V::load(from);
        for (int64_t k = 1; k < chunks; ++k) column[i] = V::add(column[i], V::load(from + k * kPoints * weight_size));
      }
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

// ---- blocks of tiles ---------------------------------------------------------------------------------------

struct WinogradJob {
  using Product = ScalarProduct<float>;
  using V = WinogradVec;

  const ConvolutionProblem& problem;
  const Host& host;
  WinogradTiling tiling;
  const float* weight;  // packed, and each point's ``weight_size`` apart
  const float* zeros;
  float* partial;  // [chunk][36][C][C padded] of the weights' gradient, each point's ``weight_size`` apart
  int64_t weight_size;

  void run(int64_t chunk, int64_t begin, int64_t end) const {
    const int64_t values = kPoints * tiling.point_size + tiling.padded;
    auto* inputs = static_cast<float*>(host.scratch(kExpanded, values * sizeof(float)));
    auto* others = static_cast<float*>(host.scratch(kGradient, values * sizeof(float)));
    // Transposing reaches a vector of pixels further.
    const int64_t columns = std::min(tiling.across, tiling.block) * kSide + 2 + V::width;
    auto* patch = static_cast<float*>(host.scratch(kPadded, kReach * columns * V::width * sizeof(float)));
    for (int64_t block = begin; block < end; ++block) {
      if (problem.negative) {
        transform<kReach, true>(problem.x, block, transform_input, patch, inputs);
      } else {
        transform<kReach, false>(problem.x, block, transform_input, patch, inputs);
      }
      const int64_t tiles = std::min(tiling.block, tiling.count - block * tiling.block);
      if (problem.y != nullptr) multiply_back(block, tiles, inputs, others, patch);
      if (problem.dweight != nullptr) {
        transform<kSide, true>(problem.grad, block, transform_gradient, patch, others);
        add_gradient(tiles, inputs, others, partial + chunk * kPoints * weight_size);
      }
    }
  }

  // A block of tiles of kLines × kLines pixels to [36][tile][C].
  template <int kLines, bool kNegative, class Transform>
  void transform(const Activation& activation, int64_t block, const Transform& line, float* patch, float* to) const {
    for_segments(tiling, block, [&](const Segment& segment) {
      for (int64_t c = 0; c < activation.channels; c += V::width) {
        read_patch(activation, segment, (kLines - kSide) / 2, c, patch);
        transform_tiles<kLines, kNegative>(patch, segment, tiling.point_size, tiling.padded, line,
                                           to + segment.first * tiling.padded + c);
      }
    });
  }

  void multiply_back(int64_t block, int64_t tiles, const float* inputs, float* products, float* patch) const {
    const int64_t channels = problem.x.channels, padded = tiling.padded, point_size = tiling.point_size;
    for (int point = 0; point < kPoints; ++point) {
      multiply_all<Product, Channels::kVectors, float, float>(
          {channels, inputs + point * point_size, padded, weight + point * weight_size, 0, zeros,
           products + point * point_size, padded, padded},
          tiles);
    }
    for_segments(tiling, block, [&](const Segment& segment) {
      for (int64_t c = 0; c < channels; c += V::width) {
        transform_back(products + segment.first * padded + c, segment, point_size, padded, patch);
        write_patch(patch, problem.x, segment, c, static_cast<float*>(problem.y));
      }
    });
  }

  void add_gradient(int64_t tiles, const float* inputs, const float* gradients, float* sums) const {
    const int64_t padded = tiling.padded;
    for (int point = 0; point < kPoints; ++point) {
      const int64_t first = point * tiling.point_size;
      const Block<Product, float, float> block{tiles,  gradients + first, 1, inputs + first, padded, nullptr,
                                               sums + point * weight_size, padded, padded, padded};
      multiply_all<Product, Channels::kSummed>(block, problem.x.channels);
    }
  }
};

inline void convolve(const ConvolutionProblem& problem, const Host& host) {
  const int64_t channels = problem.x.channels;
  const WinogradTiling tiling(problem.x, host.threads);
  const int64_t weight_size = tiling.padded * channels + WinogradVec::width, size = kPoints * weight_size;
  const int64_t chunks = std::min(tiling.blocks, host.threads), shares = std::min(channels, host.threads);
  WinogradJob job{problem, host, tiling, nullptr, nullptr, nullptr, weight_size};
  if (problem.y != nullptr) {
    auto* weight = static_cast<float*>(host.scratch(kShared, (size + tiling.padded) * sizeof(float)));
    std::fill(weight + size, weight + size + tiling.padded, 0.0f);
    job.weight = weight;
    job.zeros = weight + size;
    run_chunks(WinogradPacking{static_cast<const float*>(problem.weight), channels, weight_size, weight}, channels,
               shares, host);
  }
  if (problem.dweight != nullptr) {
    job.partial = static_cast<float*>(host.scratch(kPartial, chunks * size * sizeof(float)));
    std::fill(job.partial, job.partial + chunks * size, 0.0f);
  }
  run_chunks(job, tiling.blocks, chunks, host);
  if (problem.dweight != nullptr) {
    run_chunks(WinogradUnpacking{job.partial, chunks, channels, tiling.padded, weight_size,
                                 static_cast<float*>(problem.dweight)},
               channels, shares, host);
  }
}
