// Reborn's dense 3×3 deconvolution in training, z = D ⋆ᵀ min(x, 0), and the last pass of its backward.
//
// T is the bytes of one activation tensor. Forward reads x and writes z, 2T, the least: the statistics of z are summed
// where its tiles are transformed back. The last pass reads the gradients of z and of y and x, and writes x's gradient,
// 4T: what goes through the deconvolution is written to no memory, since it meets the positive branch's gradient where
// its tiles are transformed back, and D's gradient shares the transformed gradient of z. Overlaps of tiles come from
// cache, where the transformed tiles stay. Saves nothing.
//
// D's gradient is that of a convolution with x and z's gradient in each other's places: the tiles of z's gradient are
// transformed as an input's, those of min(x, 0) as a gradient's.
//
// Included once per ISA object, after winograd.h, leni_statistics.h and leni_input_gradient.h. In float.

// What both passes do with a block of tiles, from ``begin`` to ``end``.
struct WinogradPass {
  using Product = ScalarProduct<float>;
  using V = WinogradVec;
  static constexpr int64_t width = V::width;

  const Host& host;
  WinogradTiling tiling;
  int64_t channels, weight_size;  // of the transformed weights: from one of the 36 points to the next
  const float* weight = nullptr;  // transformed and packed
  const float* zeros = nullptr;

  WinogradPass(const Activation& x, const Host& host)
      : host(host), tiling(x, host.threads), channels(x.channels), weight_size(tiling.padded * x.channels + width) {}

  int64_t chunks() const { return std::min(tiling.count, host.threads); }

  void transform_weight(const void* raw, bool transposed) {
    auto* packed = static_cast<float*>(host.scratch(kShared, (kPoints * weight_size + tiling.padded) * sizeof(float)));
    std::fill(packed + kPoints * weight_size, packed + kPoints * weight_size + tiling.padded, 0.0f);
    run_chunks(WinogradPacking{static_cast<const float*>(raw), transposed, channels, weight_size, packed}, channels,
               std::min(channels, host.threads), host);
    weight = packed;
    zeros = packed + kPoints * weight_size;
  }

  // Room for a block's tiles and one point more, which forward needs, and for one vector of channels of a segment,
  // where transposing reaches a vector further.
  float* tiles(int slot) const {
    return static_cast<float*>(host.scratch(slot, (kPoints + 1) * tiling.point_size * sizeof(float)));
  }
  float* patch(int slot) const {
    const int64_t columns = std::min(tiling.across, tiling.block) * kSide + 2 + width;
    return static_cast<float*>(host.scratch(slot, kReach * columns * width * sizeof(float)));
  }

  template <class Body>
  void for_blocks(int64_t begin, int64_t end, const Body& body) const {
    for (; begin < end; begin += tiling.block) body(begin, std::min(begin + tiling.block, end));
  }

  template <bool kNegative>
  void transform(const Activation& x, int64_t begin, int64_t end, float* patch, float* to) const {
    for_segments(tiling, begin, end, [&](const Segment& segment) {
      for (int64_t c = 0; c < channels; c += width) {
        read_patch(x, segment, 1, c, patch);
        transform_tiles<InputTransform, kNegative>(patch, segment, tiling.point_size, tiling.padded,
                                                   to + segment.first * tiling.padded + c);
      }
    });
  }

  void multiply(int64_t tiles, const float* inputs, float* products) const {
    const int64_t padded = tiling.padded, point_size = tiling.point_size;
    for (int point = 0; point < kPoints; ++point) {
      multiply_all<Product, Channels::kVectors, float, float>(
          {channels, inputs + point * point_size, padded, weight + point * weight_size, 0, zeros,
           products + point * point_size, padded, padded},
          tiles);
    }
  }
};

// ---- forward -----------------------------------------------------------------------------------------------

struct DeconvolutionJob {
  using V = WinogradVec;

  const DeconvolutionProblem& problem;
  const WinogradPass& pass;
  Moments* moments;  // [chunk][C]

  // A chunk's buffers: tiles of x and of products, one vector of a segment's channels, and, of each channel, the
  // negative shift of its values and a block's sums of their distances from it and of the squares of these.
  struct Buffers {
    float *inputs, *products, *patch, *minus_shift, *distances, *squares;
  };

  void run(int64_t chunk, int64_t begin, int64_t end) const {
    const WinogradTiling& tiling = pass.tiling;
    auto* sums = static_cast<float*>(pass.host.scratch(kNegativeRaw, 3 * tiling.padded * sizeof(float)));
    std::fill(sums, sums + tiling.padded, 0.0f);
    // A point's products take the place of what was multiplied for the point before, which the cache still has.
    float* products = pass.tiles(kExpanded);
    const Buffers at{products + tiling.point_size, products, pass.patch(kPadded), sums, sums + tiling.padded,
                     sums + 2 * tiling.padded};
    pass.for_blocks(begin, end, [&](int64_t first, int64_t last) {
      pass.transform<true>(problem.x, first, last, at.patch, at.inputs);
      pass.multiply(last - first, at.inputs, at.products);
      // The first block's distances are from its own mean, the others' from the mean of the block before.
      if (first == begin) finish<false>(first, last, at, chunk);
      finish<true>(first, last, at, chunk);
    });
  }

  // Writes a block and adds it to the moments, or only takes its mean for the next shift.
  template <bool kKept>
  void finish(int64_t begin, int64_t end, const Buffers& at, int64_t chunk) const {
    const WinogradTiling& tiling = pass.tiling;
    int64_t count = 0;
    std::fill(at.distances, at.distances + 2 * tiling.padded, 0.0f);
    for_segments(tiling, begin, end, [&](const Segment& segment) {
      const Tile pixels = segment.pixels(problem.x, segment.tiles * kSide);
      count += pixels.rows * pixels.columns;
      for (int64_t c = 0; c < pass.channels; c += V::width) {
        transform_back(at.products + segment.first * tiling.padded + c, segment, tiling.point_size, tiling.padded,
                       at.patch);
        add(pixels, c, at);
        if (kKept) write_patch(at.patch, problem.x, segment, c, static_cast<float*>(problem.z));
      }
    });
    for (int64_t c = 0; c < pass.channels; ++c) {
      merge_part(static_cast<double>(count), at.distances[c], at.squares[c], kKept, at.minus_shift[c],
                 moments[chunk * pass.channels + c]);
    }
  }

  void add(const Tile& pixels, int64_t channel, const Buffers& at) const {
    BranchSums<float> sums{V::load(at.minus_shift + channel), V::load(at.distances + channel),
                           V::load(at.squares + channel)};
    for (int64_t row = 0; row < pixels.rows; ++row) {
      for (int64_t i = 0; i < pixels.columns; ++i) sums.add(V::load(at.patch + (row * pixels.pitch + i) * V::width));
    }
    sums.distances.store(at.distances + channel);
    sums.squares.store(at.squares + channel);
  }
};

inline void deconvolve(const DeconvolutionProblem& problem, const Host& host) {
  WinogradPass pass(problem.x, host);
  pass.transform_weight(problem.deconv_weight, true);
  const int64_t chunks = pass.chunks();
  auto* moments = static_cast<Moments*>(host.scratch(kPartial, chunks * pass.channels * sizeof(Moments)));
  std::fill(moments, moments + chunks * pass.channels, Moments{});
  run_chunks(DeconvolutionJob{problem, pass, moments}, pass.tiling.count, chunks, host);
  merge_chunks<float>(moments, chunks, pass.channels, problem.mean, problem.variance);
}

// ---- the last pass of the backward -------------------------------------------------------------------------

struct DeconvGradientJob {
  using Product = ScalarProduct<float>;
  using V = WinogradVec;
  static constexpr int64_t width = V::width;

  const DeconvGradientProblem& problem;
  const WinogradPass& pass;
  const float* weight;  // of the positive branch, packed for the product from dy
  float* partial;       // [chunk][36][C][C padded]: D's gradient, transformed, or null

  // A chunk's buffers: tiles of z's gradient; tiles of products, in whose places x's come; one vector of a segment's
  // channels of a gradient and of x; all of a segment's channels of dy and of the positive branch's gradient.
  struct Buffers {
    float *grad_z_tiles, *tiles, *patch, *x, *grad, *positive;
  };

  void run(int64_t chunk, int64_t begin, int64_t end) const {
    const WinogradTiling& tiling = pass.tiling;
    const int64_t pixels = kSide * kSide * std::min(tiling.across, tiling.block) * tiling.padded;
    auto* grad = static_cast<float*>(pass.host.scratch(kPositiveRaw, 2 * pixels * sizeof(float)));
    const Buffers at{pass.tiles(kExpanded), pass.tiles(kGradient), pass.patch(kPadded), pass.patch(kNegativeRaw), grad,
                     grad + pixels};
    float* sums = partial == nullptr ? nullptr : partial + chunk * kPoints * pass.weight_size;
    pass.for_blocks(begin, end, [&](int64_t first, int64_t last) {
      pass.transform<false>(problem.grad_z, first, last, at.patch, at.grad_z_tiles);
      if (problem.dx != nullptr) pass.multiply(last - first, at.grad_z_tiles, at.tiles);
      for_segments(tiling, first, last, [&](const Segment& segment) { take(segment, at); });
      if (sums != nullptr) add_gradient(last - first, at, sums);
    });
  }

  // Writes dx of a segment, and puts the transformed x where the products were.
  void take(const Segment& segment, const Buffers& at) const {
    const int64_t padded = pass.tiling.padded, point_size = pass.tiling.point_size;
    if (problem.dx != nullptr) multiply_positive(segment, at);
    for (int64_t c = 0; c < pass.channels; c += width) {
      float* tiles = at.tiles + segment.first * padded + c;
      read_patch(problem.x, segment, 0, c, at.x);
      if (problem.dx != nullptr) {
        transform_back(tiles, segment, point_size, padded, at.patch);
        join(segment, c, at);
        write_patch(at.patch, problem.x, segment, c, static_cast<float*>(problem.dx));
      }
      if (partial != nullptr) transform_tiles<GradientTransform, true>(at.x, segment, point_size, padded, tiles);
    }
  }

  void multiply_positive(const Segment& segment, const Buffers& at) const {
    Tile pixels = segment.pixels(problem.x, 0);
    pixels.pitch = pixels.columns;
    const int64_t padded = pass.tiling.padded;
    gather_tile<float>(problem.grad, pixels, true, padded, at.grad);
    multiply_all<Product, Channels::kVectors, float, float>(
        {pass.channels, at.grad, padded, weight, 0, pass.zeros, at.positive, padded, padded},
        pixels.rows * pixels.columns);
  }

  // Each branch's gradient where it is x's.
  void join(const Segment& segment, int64_t channel, const Buffers& at) const {
    const Tile pixels = segment.pixels(problem.x, segment.tiles * kSide);
    for (int64_t row = 0; row < pixels.rows; ++row) {
      float* negative = at.patch + row * pixels.pitch * width;
      const float *x = at.x + row * pixels.pitch * width,
                  *positive = at.positive + row * pixels.columns * pass.tiling.padded + channel;
      for (int64_t i = 0; i < pixels.columns; ++i) {
        V::by_sign(V::load(x + i * width), V::load(positive + i * pass.tiling.padded), V::load(negative + i * width))
            .store(negative + i * width);
      }
    }
  }

  void add_gradient(int64_t tiles, const Buffers& at, float* sums) const {
    const int64_t padded = pass.tiling.padded;
    for (int point = 0; point < kPoints; ++point) {
      const int64_t first = point * pass.tiling.point_size;
      multiply_all<Product, Channels::kSummed, float, float>(
          {tiles, at.tiles + first, 1, at.grad_z_tiles + first, padded, nullptr, sums + point * pass.weight_size,
           padded, padded, padded},
          pass.channels);
    }
  }
};

inline void deconv_gradient(const DeconvGradientProblem& problem, const Host& host) {
  WinogradPass pass(problem.x, host);
  const int64_t channels = pass.channels, padded = pass.tiling.padded, size = kPoints * pass.weight_size;
  const int64_t chunks = pass.chunks();
  float *positive = nullptr, *partial = nullptr;
  if (problem.dx != nullptr) {
    pass.transform_weight(problem.deconv_weight, false);
    positive =
        static_cast<float*>(host.scratch(kPartialBias, (channels * padded + channels * channels) * sizeof(float)));
    pack_transposed(Channels::kVectors, static_cast<const float*>(problem.weight), 0, channels,
                    positive + channels * padded, positive);
  }
  if (problem.ddeconv_weight != nullptr) {
    partial = static_cast<float*>(host.scratch(kPartial, chunks * size * sizeof(float)));
  }
  const DeconvGradientJob job{problem, pass, positive, partial};
  const auto add = [&](int64_t begin, int64_t end) { run_chunks(job, end - begin, chunks, host, begin); };
  if (partial == nullptr) return add(0, pass.tiling.count);
  sum_in_parts(pass.tiling.count, pass.tiling.block, partial, size, chunks, host, add);
  run_chunks(WinogradUnpacking{partial, channels, padded, pass.weight_size,
                               static_cast<float*>(problem.ddeconv_weight)},
             channels, std::min(channels, host.threads), host);
}
