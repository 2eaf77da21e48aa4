// What the kernels of every mechanism are given.
#pragma once

#include <cstdint>

namespace leni {

// An output of so many bytes, which no cache would keep, is not written through the caches: that would read it first.
constexpr int64_t kStreamedBytes = 8 * 1024 * 1024;
constexpr int64_t kLineBytes = 64;

enum class Scalar { Float32, Float64, BFloat16 };

// Slots of scratch memory. Every pass names its own, from 0 on, and sum_in_parts() has the last.
constexpr int kTotalSlot = 8;
// Those of who calls the kernels.
constexpr int kCallerSlot = kTotalSlot + 1, kScratchSlots = kCallerSlot + 4;

// What a kernel needs of its host. The objects that are compiled for one instruction set include no PyTorch
// header: an inline function of one, compiled for AVX-512, could be the copy that the linker keeps for all.
struct Host {
  // Runs body(context, begin, end) over [0, count), split among PyTorch's threads.
  void (*parallel_for)(int64_t count, const void* context, void (*body)(const void*, int64_t, int64_t));
  // A 64-byte aligned buffer of the calling thread's, valid until it asks for the same slot again.
  void* (*scratch)(int slot, int64_t bytes);
  int64_t threads;
};

}  // namespace leni
