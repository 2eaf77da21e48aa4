// What LENI's training passes share: leni_statistics.h, and the gradients of the folded form, leni_weight_gradient.h
// and leni_input_gradient.h.
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
