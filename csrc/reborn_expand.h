// Tiles of x and z, expanded into max(x, 0) and z: Reborn's tail reads its negative branch instead of deconvolving it.
//
// The expanders of leni_expand.h for a kernel size of 0, after which every pass of LENI's serves Reborn too. Included
// once per ISA object, after leni_expand.h.

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

template <class Product, class T, class Scale>
struct PlanarExpander<Product, 0, T, Scale> {
  static constexpr int group = Product::group;
  using V = Vec<Scale>;
  using Element = typename Product::Element;

  const Activation& x;
  const Expansion<Scale>& expansion;
  Tile tile;
  int64_t pixels;
  Element* expanded;

  void run() const {
    const int64_t steps = ceil_div(x.channels, group);
    for (int64_t branch = 0; branch < 2; ++branch) {
      Element* to = expanded + branch * expansion.branch_steps * pixels;
      for (int64_t step = 0; step < steps; ++step) {
        for (int64_t row = 0; row < tile.rows; ++row) {
          Element* out = to + step * pixels + row * tile.pitch;
          if (branch == 0) {
            copy<true>(x, step, row, out);
          } else {
            copy<false>(*expansion.z, step, row, out);
          }
        }
      }
      std::memset(to + steps * pixels, 0, (expansion.branch_steps - steps) * pixels * sizeof(Element));
    }
  }

  template <bool kPositive>
  void copy(const Activation& source, int64_t step, int64_t row, Element* to) const {
    const T* from = pixel_of<T>(source, tile, row) + step * group * source.stride_channel;
    for (int64_t column = 0; column < tile.columns; column += V::width) {
      const int64_t left = tile.columns - column;
      V values[group];
      for (int g = 0; g < group; ++g) {
        const bool exists = step * group + g < x.channels;
        values[g] = exists ? load_some<V>(from + g * source.stride_channel + column, left) : V::zero();
        if (kPositive) values[g] = values[g].positive();
      }
      if constexpr (group == 1) {
        store_some(values[0], to + column, left);
      } else {
        store_pairs(values[0], values[1], to + column, Lanes::range(0, std::min<int64_t>(V::width, left)));
      }
    }
  }
};

template <class Product, class T, class Scale>
struct InterleavedExpander<Product, 0, T, Scale> {
  using V = Vec<Scale>;
  using Value = std::conditional_t<Product::group == 1, Scale, BFloat16>;

  const Activation& x;
  const Expansion<Scale>& expansion;
  Tile tile;
  Value* expanded;

  void run() const {
    const int64_t branch = expansion.branch_steps * Product::group;
    for (int64_t row = 0; row < tile.rows; ++row) {
      const T* positive = pixel_of<T>(x, tile, row);
      const T* negative = pixel_of<T>(*expansion.z, tile, row);
      Value* to = expanded + row * tile.pitch * 2 * branch;
      for (int64_t column = 0; column < tile.columns; ++column, to += 2 * branch) {
        for (int64_t c = 0; c < x.channels; c += V::width) {
          const int64_t left = x.channels - c;
          store_some(load_some<V>(positive + column * x.stride_column + c, left).positive(), to + c, left);
          store_some(load_some<V>(negative + column * expansion.z->stride_column + c, left), to + branch + c, left);
        }
        std::fill(to + x.channels, to + branch, Value{});
        std::fill(to + branch + x.channels, to + 2 * branch, Value{});
      }
    }
  }
};
