// The elements of AdaReLU's, FullyParametricReLU's and CReLU's activations, as the kernels take them.
//
// A tensor is a sequence of elements in the order of y's memory, taken in blocks that fit in L1; a block of a strided
// tensor is gathered there. Parameters stand either by rows (one to a run of elements, as in NCHW) or by columns (one
// to an element, over and over, as in channels-last). Work is divided by the size of the problem alone and partial sums
// are added in one order: equal bits for any number of threads.
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "kernels/half.h"
#include "kernels/kernel.h"
#include "kernels/simd.h"
#include "kernels/target.h"
#include "pointwise/problem.h"

LENI_KERNELS_BEGIN
namespace leni_kernels::pointwise::inline LENI_KERNELS_TARGET {

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

// ---- rows of halves ----------------------------------------------------------------------------------------------

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

}  // namespace leni_kernels::pointwise::inline LENI_KERNELS_TARGET
LENI_KERNELS_END
