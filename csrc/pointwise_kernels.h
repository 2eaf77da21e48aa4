// AdaReLU, FullyParametricReLU and CReLU, forward and backward.
//
// T is the bytes of one activation. The forward passes read x and write y (2T; CReLU, whose y is 2T, 3T). The backward
// passes read x and dy and write dx (3T; CReLU 4T), and sum the gradients of the parameters meanwhile. Saved for
// backward: x. That is the least, since each element is new: a ReLU moves as much.
//
// Included once per ISA object, after simd.h. A tensor is a sequence of elements in the order of y's memory, taken in
// blocks that fit in L1; a block of a strided tensor is gathered there. Parameters stand either by rows (one to a run
// of elements, as in NCHW) or by columns (one to an element, over and over, as in channels-last). Work is divided by
// the size of the problem alone and partial sums are added in one order: equal bits for any number of threads.

constexpr int64_t kBlock = 2048;          // elements of a block, at most
constexpr int64_t kChunk = 32768;         // elements that share a partial sum by columns, about
constexpr int64_t kWorthThreads = 32768;  // elements; waking threads for less takes longer than the work
constexpr int64_t kAheadBytes = 2048;     // how far ahead of what is read memory is fetched

enum Slot { kBlockOfX, kBlockOfGrad, kSecondBlockOfGrad, kPartialSums };  // of scratch memory

template <class T>
using Scale = std::conditional_t<std::is_same_v<T, double>, double, float>;

// ---- blocks of a sequence ---------------------------------------------------------------------------------

// Elements [begin, begin + count): where they lie if that is side by side, else gathered into scratch memory.
template <class T>
const T* block(const Sequence& sequence, int64_t begin, int64_t count, Slot slot, const Host& host) {
  const T* data = static_cast<const T*>(sequence.data);
  if (sequence.dense) return data + begin;
  const int last = sequence.dimensions - 1;
  const int64_t length = sequence.sizes[last], stride = sequence.strides[last];
  const auto row = [&](int64_t index) {
    const T* pointer = data;
    for (int d = last - 1; d >= 0; --d) {
      pointer += index % sequence.sizes[d] * sequence.strides[d];
      index /= sequence.sizes[d];
    }
    return pointer;
  };
  int64_t index = begin / length, column = begin % length;
  if (stride == 1 && column + count <= length) return row(index) + column;
  T* gathered = static_cast<T*>(host.scratch(slot, count * sizeof(T)));
  for (int64_t done = 0; done < count; ++index, column = 0) {
    const T* from = row(index) + column * stride;
    const int64_t end = std::min(count, done + length - column);
    for (; done < end; ++done, from += stride) gathered[done] = *from;
  }
  return gathered;
}

// body(i, lanes) for each vector of [0, count).
struct AllLanes {};

template <class V, class Body>
inline void for_vectors(int64_t count, const Body& body) {
  int64_t i = 0;
  for (; i + V::width <= count; i += V::width) body(i, AllLanes{});
  if (i < count) body(i, Lanes::range(0, count - i));
}

template <class V, class T>
inline V load(const T* pointer, AllLanes) {
  return V::load(pointer);
}
template <class V, class T>
inline V load(const T* pointer, Lanes lanes) {
  return V::load(pointer, lanes);
}

// Loads what is read once, and fetches what will be read soon: left to itself the CPU fetches less far ahead, and
// nothing beyond a page.
template <class V, class T, class L>
inline V read(const T* pointer, L lanes) {
  __builtin_prefetch(reinterpret_cast<const char*>(pointer) + kAheadBytes);
  return load<V>(pointer, lanes);
}

template <class V, class T>
inline void store(V vector, T* pointer, AllLanes, bool past_caches = false) {
  if (past_caches && reinterpret_cast<uintptr_t>(pointer) % (V::width * sizeof(T)) == 0) {
    vector.stream(pointer);
  } else {
    vector.store(pointer);
  }
}
template <class V, class T>
inline void store(V vector, T* pointer, Lanes lanes, bool = false) {
  vector.store(pointer, lanes);
}

// Whether an output of so many elements is written past the caches. Not where its rows share cache lines: a line that
// is written in both ways costs more than either.
template <class T>
inline bool streams(int64_t elements, int64_t row) {
  return elements * int64_t(sizeof(T)) >= kStreamedBytes && row * int64_t(sizeof(T)) % kLineBytes == 0;
}

// body(begin, end) over [0, count), in threads if they are worth it for so many elements.
template <class Body>
void in_threads(int64_t count, int64_t elements, const Host& host, const Body& body) {
  if (elements < kWorthThreads) return body(0, count);
  host.parallel_for(count, &body, [](const void* context, int64_t begin, int64_t end) {
    (*static_cast<const Body*>(context))(begin, end);
    streamed();
  });
}

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// ---- the functions ----------------------------------------------------------------------------------------

// x if x > θ, else θ: the gradient goes where the value came from. A NaN is not below θ.
struct AdaReluVectors {
  static constexpr int parameters = 1;

  template <class V>
  static V forward(V x, const V* threshold) {
    return {x.v <= threshold->v ? threshold->v : x.v};
  }

  template <class V>
  static V backward(V grad, V x, const V* threshold, V* sums) {
    const auto below = x.v <= threshold->v;
    sums[0] = V::add(sums[0], {below ? grad.v : V::zero().v});
    return {below ? V::zero().v : grad.v};
  }
};

// α·x if x > 0, else β·x.
struct FullyParametricReluVectors {
  static constexpr int parameters = 2;

  template <class V>
  static V forward(V x, const V* slopes) {
    return {x.v * (x.v > V::zero().v ? slopes[0].v : slopes[1].v)};
  }

  template <class V>
  static V backward(V grad, V x, const V* slopes, V* sums) {
    const auto above = x.v > V::zero().v;
    const auto product = grad.v * x.v;
    sums[0] = V::add(sums[0], {above ? product : V::zero().v});
    sums[1] = V::add(sums[1], {above ? V::zero().v : product});
    return {grad.v * (above ? slopes[0].v : slopes[1].v)};
  }
};

// ---- parameters by rows -----------------------------------------------------------------------------------

// The rows of a problem, each cut into parts of at most a block.
struct Parts {
  int64_t run, per_row, count;

  explicit Parts(const Problem& p) : run(p.run), per_row(ceil_div(p.run, kBlock)), count(p.count / p.run * per_row) {}
};

// body(part, its first element, its length, the number of its parameters) for parts [begin, end).
template <class Body>
inline void for_parts(const Problem& p, const Parts& parts, int64_t begin, int64_t end, const Body& body) {
  const int64_t first_row = begin / parts.per_row;
  int64_t start = begin % parts.per_row * kBlock, row_start = p.first + first_row * p.run;
  int64_t parameter = first_row % p.period;
  for (int64_t part = begin; part < end; ++part) {
    const int64_t length = std::min(kBlock, p.run - start);
    body(part, row_start + start, length, parameter);
    start += kBlock;
    if (start < p.run) continue;
    start = 0;
    row_start += p.run;
    if (++parameter == p.period) parameter = 0;
  }
}

template <class F, class S>
inline void broadcast_parameters(const Problem& p, int64_t number, Vec<S>* to) {
  for (int j = 0; j < F::parameters; ++j) to[j] = Vec<S>::broadcast(static_cast<const S*>(p.parameters[j])[number]);
}

// The first ``count`` lanes of one vector and the others of another.
template <class V>
inline V joined(V one, V other, int64_t count) {
  using Mask = decltype(one.v <= other.v);
  using Lane = std::remove_cvref_t<decltype(Mask{}[0])>;
  Mask lane{};
  for (int i = 0; i < V::width; ++i) lane[i] = static_cast<Lane>(i);
  return {lane < static_cast<Lane>(count) ? one.v : other.v};
}

// Rows of a few vectors and a part of one, taken together: the vector in which one row ends and the next begins has the
// parameters of both, so that all but the last vector of a group of rows is whole, and begins at a cache line as groups
// do.
template <class F, class T>
struct ShortRows {
  using S = Scale<T>;
  using V = Vec<S>;
  static constexpr int64_t line = kLineBytes / sizeof(T);

  const Problem& p;
  T* y;
  const Host& host;
  bool past_caches = p.count * int64_t(sizeof(T)) >= kStreamedBytes;

  static bool fit(const Problem& p) { return p.run > V::width && p.run % line != 0 && p.run * line <= 4 * kBlock; }

  void run() const {
    const int64_t rows = p.count / p.run, most = line * std::max<int64_t>(kBlock / p.run / line, 1);
    in_threads(ceil_div(rows, most), p.count, host, [&](int64_t begin, int64_t end) {
      for (int64_t group = begin; group < end; ++group) some(group * most, std::min(most, rows - group * most));
    });
  }

  void some(int64_t first, int64_t rows) const {
    const int64_t start = p.first + first * p.run, last = rows * p.run;
    const T* x = block<T>(p.x, start, last, kBlockOfX, host);
    const auto take = [&](int64_t i, const V* parameters, auto lanes) {
      store(F::forward(read<V>(x + i, lanes), parameters), y + start + i, lanes, past_caches);
    };
    V parameters[F::parameters], next[F::parameters], both[F::parameters];
    int64_t i = 0, number = first % p.period;
    broadcast_parameters<F, S>(p, number, parameters);
    for (int64_t row = 1; row <= rows; ++row) {
      const int64_t end = row * p.run;
      for (; i + V::width <= end; i += V::width) take(i, parameters, AllLanes{});
      if (end == last) break;
      if (++number == p.period) number = 0;
      broadcast_parameters<F, S>(p, number, next);
      if (i < end) {
        for (int j = 0; j < F::parameters; ++j) both[j] = joined(parameters[j], next[j], end - i);
        take(i, both, AllLanes{});
        i += V::width;
      }
      std::copy_n(next, F::parameters, parameters);
    }
    if (i < last) take(i, parameters, Lanes::range(0, last - i));
  }
};

template <class F, class T>
void forward_by_rows(const Problem& p, T* y, const Host& host) {
  using V = Vec<Scale<T>>;
  if (ShortRows<F, T>::fit(p)) return ShortRows<F, T>{p, y, host}.run();
  const Parts parts(p);
  const bool past_caches = streams<T>(p.count, p.run);
  in_threads(parts.count, p.count, host, [&](int64_t begin, int64_t end) {
    for_parts(p, parts, begin, end, [&](int64_t, int64_t start, int64_t length, int64_t number) {
      const T* x = block<T>(p.x, start, length, kBlockOfX, host);
      V parameters[F::parameters];
      broadcast_parameters<F, Scale<T>>(p, number, parameters);
      for_vectors<V>(length, [&](int64_t i, auto lanes) {
        store(F::forward(read<V>(x + i, lanes), parameters), y + start + i, lanes, past_caches);
      });
    });
  });
}

template <class F, class T, bool kInput, bool kSums>
void backward_by_rows(const GradientProblem& p, const Host& host) {
  using S = Scale<T>;
  using V = Vec<S>;
  const Parts parts(p);
  S* partial = kSums ? static_cast<S*>(host.scratch(kPartialSums, F::parameters * parts.count * sizeof(S))) : nullptr;
  T* dx = static_cast<T*>(p.dx);
  const bool past_caches = streams<T>(p.count, p.run);
  in_threads(parts.count, p.count, host, [&](int64_t begin, int64_t end) {
    for_parts(p, parts, begin, end, [&](int64_t part, int64_t start, int64_t length, int64_t number) {
      const T* x = block<T>(p.x, start, length, kBlockOfX, host);
      const T* grad = block<T>(p.grad, start, length, kBlockOfGrad, host);
      V parameters[F::parameters], sums[F::parameters];
      broadcast_parameters<F, S>(p, number, parameters);
      for (V& vector : sums) vector = V::zero();
      for_vectors<V>(length, [&](int64_t i, auto lanes) {
        const V result = F::backward(read<V>(grad + i, lanes), read<V>(x + i, lanes), parameters, sums);
        if constexpr (kInput) store(result, dx + start + i, lanes, past_caches);
      });
      if constexpr (kSums) {
        for (int j = 0; j < F::parameters; ++j) partial[j * parts.count + part] = sum(sums[j]);
      }
    });
  });
  if constexpr (kSums) {
    for (int j = 0; j < F::parameters; ++j) {
      const S* next = partial + j * parts.count;
      std::fill_n(p.sums[j], p.period, 0.0);
      for (int64_t group = 0; group < parts.count; group += p.period * parts.per_row) {
        for (int64_t number = 0; number < p.period; ++number) {
          for (int64_t part = 0; part < parts.per_row; ++part) p.sums[j][number] += *next++;
        }
      }
    }
  }
}

// ---- parameters by columns --------------------------------------------------------------------------------

// [rows, period] in tiles: rows in chunks of about so many ``elements``, columns in blocks. The last row may be
// shorter.
struct Tiles {
  int64_t rows, chunk_rows, chunks, blocks;

  Tiles(const Problem& p, int64_t elements)
      : rows(ceil_div(p.count, p.period)),
        chunk_rows(std::max<int64_t>(1, elements / std::min(p.period, kBlock))),
        chunks(ceil_div(rows, chunk_rows)),
        blocks(ceil_div(p.period, kBlock)) {}
};

// body(chunk, first column, columns, first element) for each row of tiles [begin, end).
template <class Body>
inline void for_rows_of_tiles(const Problem& p, const Tiles& tiles, int64_t begin, int64_t end, const Body& body) {
  for (int64_t tile = begin; tile < end; ++tile) {
    const int64_t chunk = tile / tiles.blocks, column = tile % tiles.blocks * kBlock;
    const int64_t columns = std::min(kBlock, p.period - column);
    const int64_t last = std::min(tiles.rows, (chunk + 1) * tiles.chunk_rows);
    for (int64_t row = chunk * tiles.chunk_rows; row < last; ++row) {
      const int64_t start = row * p.period + column;
      body(chunk, column, std::min(columns, p.count - start), p.first + start);
    }
  }
}

template <class F, class S, class L>
inline void load_parameters(const Problem& p, int64_t column, L lanes, Vec<S>* to) {
  for (int j = 0; j < F::parameters; ++j) to[j] = load<Vec<S>>(static_cast<const S*>(p.parameters[j]) + column, lanes);
}

template <class F, class T>
void forward_by_columns(const Problem& p, T* y, const Host& host) {
  using V = Vec<Scale<T>>;
  const Tiles tiles(p, 4 * kBlock);  // few rows: x is read nearly in the order of memory
  const bool past_caches = streams<T>(p.count, p.period);
  in_threads(tiles.chunks * tiles.blocks, p.count, host, [&](int64_t begin, int64_t end) {
    for_rows_of_tiles(p, tiles, begin, end, [&](int64_t, int64_t column, int64_t length, int64_t start) {
      const T* x = block<T>(p.x, start, length, kBlockOfX, host);
      for_vectors<V>(length, [&](int64_t i, auto lanes) {
        V parameters[F::parameters];
        load_parameters<F, Scale<T>>(p, column + i, lanes, parameters);
        store(F::forward(read<V>(x + i, lanes), parameters), y + start + i, lanes, past_caches);
      });
    });
  });
}

template <class F, class T, bool kInput, bool kSums>
void backward_by_columns(const GradientProblem& p, const Host& host) {
  using S = Scale<T>;
  using V = Vec<S>;
  const Tiles tiles(p, kChunk);
  // [chunks, parameters, period]; each tile has its columns of its chunk's to itself.
  const int64_t size = tiles.chunks * F::parameters * p.period;
  S* partial = kSums ? static_cast<S*>(host.scratch(kPartialSums, size * sizeof(S))) : nullptr;
  if constexpr (kSums) std::fill_n(partial, size, S(0));
  T* dx = static_cast<T*>(p.dx);
  const bool past_caches = streams<T>(p.count, p.period);
  in_threads(tiles.chunks * tiles.blocks, p.count, host, [&](int64_t begin, int64_t end) {
    for_rows_of_tiles(p, tiles, begin, end, [&](int64_t chunk, int64_t column, int64_t length, int64_t start) {
      const T* x = block<T>(p.x, start, length, kBlockOfX, host);
      const T* grad = block<T>(p.grad, start, length, kBlockOfGrad, host);
      S* chunk_sums = partial + chunk * F::parameters * p.period + column;
      for_vectors<V>(length, [&](int64_t i, auto lanes) {
        V parameters[F::parameters], sums[F::parameters];
        load_parameters<F, S>(p, column + i, lanes, parameters);
        for (int j = 0; j < F::parameters; ++j) {
          sums[j] = kSums ? load<V>(chunk_sums + j * p.period + i, lanes) : V::zero();
        }
        const V result = F::backward(read<V>(grad + i, lanes), read<V>(x + i, lanes), parameters, sums);
        if constexpr (kInput) store(result, dx + start + i, lanes, past_caches);
        if constexpr (kSums) {
          for (int j = 0; j < F::parameters; ++j) store(sums[j], chunk_sums + j * p.period + i, lanes);
        }
      });
    });
  });
  if constexpr (kSums) {
    for (int j = 0; j < F::parameters; ++j) {
      std::fill_n(p.sums[j], p.period, 0.0);
      for (int64_t chunk = 0; chunk < tiles.chunks; ++chunk) {
        const S* from = partial + (chunk * F::parameters + j) * p.period;
        for (int64_t column = 0; column < p.period; ++column) p.sums[j][column] += from[column];
      }
    }
  }
}

// ---- CReLU ------------------------------------------------------------------------------------------------

// [outer, inner] in blocks: some whole rows, or a part of one.
struct RowBlocks {
  int64_t outer, inner, rows, parts, count;

  RowBlocks(int64_t outer, int64_t inner)
      : outer(outer),
        inner(inner),
        rows(std::max<int64_t>(1, kBlock / inner)),
        parts(ceil_div(inner, kBlock)),
        count(ceil_div(outer, rows) * parts) {}

  // body(row, column, rows, columns) for blocks [begin, end).
  template <class Body>
  void run(int64_t begin, int64_t end, const Body& body) const {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t row = i / parts * rows, column = i % parts * kBlock;
      body(row, column, std::min(rows, outer - row), std::min(kBlock, inner - column));
    }
  }
};

template <class T>
void crelu_of(const CReluProblem& p, const Host& host) {
  using V = Vec<Scale<T>>;
  const RowBlocks blocks(p.outer, p.inner);
  const bool past_caches = streams<T>(p.outer * p.inner, p.inner);
  in_threads(blocks.count, p.outer * p.inner, host, [&](int64_t begin, int64_t end) {
    blocks.run(begin, end, [&](int64_t row, int64_t column, int64_t rows, int64_t columns) {
      const T* x = block<T>(p.x, row * p.inner + column, rows * columns, kBlockOfX, host);
      T* y = static_cast<T*>(p.y) + row * 2 * p.inner + column;
      for (int64_t r = 0; r < rows; ++r, x += columns, y += 2 * p.inner) {
        for_vectors<V>(columns, [&](int64_t i, auto lanes) {
          const V value = read<V>(x + i, lanes), negated{-value.v};
          store(value.positive(), y + i, lanes, past_caches);
          store(negated.positive(), y + p.inner + i, lanes, past_caches);
        });
      }
    });
  });
}

template <class T>
void crelu_backward_of(const CReluGradientProblem& p, const Host& host) {
  using V = Vec<Scale<T>>;
  const RowBlocks blocks(p.outer, p.inner);
  const bool past_caches = streams<T>(p.outer * p.inner, p.inner);
  in_threads(blocks.count, p.outer * p.inner, host, [&](int64_t begin, int64_t end) {
    blocks.run(begin, end, [&](int64_t row, int64_t column, int64_t rows, int64_t columns) {
      const int64_t start = row * p.inner + column, grad_start = row * 2 * p.inner + column;
      const T* x = block<T>(p.x, start, rows * columns, kBlockOfX, host);
      T* dx = static_cast<T*>(p.dx) + start;
      // Whole rows have both halves in one block, a part of a row in two.
      const bool whole = blocks.parts == 1;
      const T* first = block<T>(p.grad, grad_start, whole ? 2 * rows * columns : columns, kBlockOfGrad, host);
      const T* second =
          whole ? first + columns : block<T>(p.grad, grad_start + p.inner, columns, kSecondBlockOfGrad, host);
      for (int64_t r = 0; r < rows; ++r, x += columns, dx += columns, first += 2 * columns, second += 2 * columns) {
        for_vectors<V>(columns, [&](int64_t i, auto lanes) {
          const V value = read<V>(x + i, lanes);
          const V positive = read<V>(first + i, lanes), negative = read<V>(second + i, lanes);
          // A NaN passes both gradients, as torch.relu's does.
          const V result{(value.v <= V::zero().v ? V::zero().v : positive.v) -
                         (value.v >= V::zero().v ? V::zero().v : negative.v)};
          store(result, dx + i, lanes, past_caches);
        });
      }
    });
  });
}

// ---- the choice of types and functions --------------------------------------------------------------------

template <class Body>
void for_scalar(Scalar scalar, const Body& body) {
  switch (scalar) {
    case Scalar::Float32: return body(float{});
    case Scalar::Float64: return body(double{});
    case Scalar::BFloat16: return body(BFloat16{});
  }
}

template <class Body>
void for_function(const Problem& p, const Body& body) {
  for_scalar(p.scalar, [&](auto zero) {
    if (p.function == Function::AdaRelu) return body(AdaReluVectors{}, zero);
    body(FullyParametricReluVectors{}, zero);
  });
}

void forward(const Problem& p, void* y, const Host& host) {
  for_function(p, [&](auto function, auto zero) {
    using F = decltype(function);
    using T = decltype(zero);
    if (p.run > 1) return forward_by_rows<F>(p, static_cast<T*>(y), host);
    forward_by_columns<F>(p, static_cast<T*>(y), host);
  });
}

template <bool kInput, bool kSums>
void backward_of(const GradientProblem& p, const Host& host) {
  for_function(p, [&](auto function, auto zero) {
    using F = decltype(function);
    using T = decltype(zero);
    if (p.run > 1) return backward_by_rows<F, T, kInput, kSums>(p, host);
    backward_by_columns<F, T, kInput, kSums>(p, host);
  });
}

void backward(const GradientProblem& p, const Host& host) {
  if (p.sums[0] == nullptr) return backward_of<true, false>(p, host);
  if (p.dx == nullptr) return backward_of<false, true>(p, host);
  backward_of<true, true>(p, host);
}

void crelu(const CReluProblem& p, const Host& host) {
  for_scalar(p.scalar, [&](auto zero) { crelu_of<decltype(zero)>(p, host); });
}

void crelu_backward(const CReluGradientProblem& p, const Host& host) {
  for_scalar(p.scalar, [&](auto zero) { crelu_backward_of<decltype(zero)>(p, host); });
}
