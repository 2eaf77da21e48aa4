// Work on tiles in chunks, one a thread, and sums over them.
#pragma once

#include <algorithm>
#include <cstdint>

#include "kernels/kernel.h"
#include "kernels/target.h"

LENI_KERNELS_BEGIN
namespace leni_kernels::inline LENI_KERNELS_TARGET {

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

}  // namespace leni_kernels::inline LENI_KERNELS_TARGET
LENI_KERNELS_END
