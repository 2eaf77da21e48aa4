// What passes over tiles of activations of any strides share: chunks of tiles, and tiles packed channel by channel.
//
// Included once per ISA object, after simd.h and product.h.

// [count of chunks] × body(chunk, begin, end): tiles from ``first`` on split evenly, each chunk's partial sums its own.
template <class Job>
void run_chunks(const Job& job, int64_t tiles, int64_t chunks, const Host& host, int64_t first = 0) {
  struct Context {
    const Job& job;
    int64_t tiles, chunks, first;
  };
  const Context context{job, tiles, chunks, first};
  host.parallel_for(chunks, &context, [](const void* pointer, int64_t begin, int64_t end) {
    const Context& c = *static_cast<const Context*>(pointer);
    for (int64_t chunk = begin; chunk < end; ++chunk) {
      c.job.run(chunk, c.first + c.tiles * chunk / c.chunks, c.first + c.tiles * (chunk + 1) / c.chunks);
    }
  });
}

template <class Sum>
struct ChunkZeros {
  Sum* sums;
  int64_t size;

  void run(int64_t chunk, int64_t, int64_t) const { std::fill(sums + chunk * size, sums + (chunk + 1) * size, Sum(0)); }
};

// Adds the sums of chunks [chunk][size] to a total in double, if there is one. What is last is put in the first
// chunk's place.
template <class Sum>
struct ChunkSums {
  Sum* sums;
  int64_t size, chunks;
  double* total;
  bool last;

  void run(int64_t, int64_t begin, int64_t end) const {
    constexpr int64_t most = 256;
    double all[most];
    for (int64_t first = begin; first < end; first += most) {
      const int64_t count = std::min(most, end - first);
      for (int64_t i = 0; i < count; ++i) all[i] = total == nullptr ? 0 : total[first + i];
      for (int64_t chunk = 0; chunk < chunks; ++chunk) {
        for (int64_t i = 0; i < count; ++i) all[i] += sums[chunk * size + first + i];
      }
      for (int64_t i = 0; last && i < count; ++i) sums[first + i] = static_cast<Sum>(all[i]);
      for (int64_t i = 0; !last && i < count; ++i) total[first + i] = all[i];
    }
  }
};

constexpr int64_t kRun = 256;  // sums that are added one after the other without double

// Sums over ``items`` in chunks: add(begin, end) adds those items to ``sums`` [chunk][size], a chunk ``step`` of them
// at a time. After long runs what is added would be lost beside the sums: part by part they go on in double. They end
// in the first chunk's place.
template <class Sum, class Add>
void sum_in_parts(int64_t items, int64_t step, Sum* sums, int64_t size, int64_t chunks, const Host& host,
                  const Add& add) {
  const int64_t part = kRun * step * chunks, threads = std::min(size, host.threads);
  double* total = nullptr;
  if (items > part) {
    total = static_cast<double*>(host.scratch(kTotalSlot, size * sizeof(double)));
    std::fill(total, total + size, 0.0);
  }
  for (int64_t begin = 0; begin < items; begin += part) {
    const int64_t end = std::min(begin + part, items);
    run_chunks(ChunkZeros<Sum>{sums, size}, chunks, chunks, host);
    add(begin, end);
    run_chunks(ChunkSums<Sum>{sums, size, chunks, total, end == items}, size, threads, host);
  }
}

template <class Scale>
inline Scale widened(Scale value) {
  return value;
}
template <class Scale>
inline Scale widened(BFloat16 value) {
  return to_float(value);
}
inline void assign(float& to, float value) { to = value; }
inline void assign(double& to, double value) { to = value; }
inline void assign(BFloat16& to, float value) { to = to_bfloat16(value); }

// One square of gather(), of which ``outer`` × ``inner`` values exist; the others are read as 0 and not written.
template <class T, class Scale>
void gather_square(const T* from, int64_t outer, int64_t outer_stride, int64_t inner, int64_t inner_stride, Scale* to,
                   int64_t to_outer) {
  using V = Vec<Scale>;
  constexpr int64_t width = V::width;
  Scale square[width * width] = {}, turned[width * width];
  for (int64_t i = 0; i < inner; ++i) {
    if (outer_stride == 1) {
      V::load(from + i * inner_stride, Lanes::range(0, outer)).store(square + i * width);
    } else {
      for (int64_t o = 0; o < outer; ++o) {
        square[i * width + o] = widened<Scale>(from[i * inner_stride + o * outer_stride]);
      }
    }
  }
  transpose(square, width, turned, width);
  for (int64_t o = 0; o < outer; ++o) V::load(turned + o * width).store(to + o * to_outer);
}

// to[o·to_outer + i] = from[o·outer_stride + i·inner_stride]. Whole vectors are written along i.
template <class T, class Scale>
void gather(const T* from, int64_t outer, int64_t outer_stride, int64_t inner, int64_t inner_stride, Scale* to,
            int64_t to_outer) {
  using V = Vec<Scale>;
  constexpr int64_t width = V::width;
  if (inner_stride == 1) {
    for (int64_t o = 0; o < outer; ++o) {
      const T* row = from + o * outer_stride;
      int64_t i = 0;
      for (; i + width <= inner; i += width) V::load(row + i).store(to + o * to_outer + i);
      if (i < inner) V::load(row + i, Lanes::range(0, inner - i)).store(to + o * to_outer + i);
    }
    return;
  }
  for (int64_t o = 0; o < outer; o += width) {
    for (int64_t i = 0; i < inner; i += width) {
      const T* corner = from + o * outer_stride + i * inner_stride;
      const int64_t rows = std::min(width, outer - o), columns = std::min(width, inner - i);
      if (outer_stride == 1 && rows == width && columns == width) {
        transpose(corner, inner_stride, to + o * to_outer + i, to_outer);
      } else {
        gather_square(corner, rows, outer_stride, columns, inner_stride, to + o * to_outer + i, to_outer);
      }
    }
  }
}

// The way back: to[o·outer_stride + i·inner_stride] = from[o·from_outer + i]. Whole squares are read.
template <class T, class Scale>
void scatter(const Scale* from, int64_t from_outer, T* to, int64_t outer, int64_t outer_stride, int64_t inner,
             int64_t inner_stride) {
  using V = Vec<Scale>;
  constexpr int64_t width = V::width;
  for (int64_t o = 0; inner_stride == 1 && o < outer; ++o) {
    T* row = to + o * outer_stride;
    int64_t i = 0;
    for (; i + width <= inner; i += width) V::load(from + o * from_outer + i).store(row + i);
    if (i < inner) V::load(from + o * from_outer + i).store(row + i, Lanes::range(0, inner - i));
  }
  if (inner_stride == 1) return;
  Scale square[width * width];
  for (int64_t o = 0; o < outer; o += width) {
    for (int64_t i = 0; i < inner; i += width) {
      transpose(from + o * from_outer + i, from_outer, square, width);
      const int64_t rows = std::min(width, outer - o), columns = std::min(width, inner - i);
      T* corner = to + o * outer_stride + i * inner_stride;
      for (int64_t c = 0; c < columns; ++c) {
        if (outer_stride == 1) {
          V::load(square + c * width).store(corner + c * inner_stride, Lanes::range(0, rows));
        } else {
          for (int64_t r = 0; r < rows; ++r) {
            assign(corner[c * inner_stride + r * outer_stride], square[c * width + r]);
          }
        }
      }
    }
  }
}
