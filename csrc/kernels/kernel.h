// What the kernels of every mechanism are given, and how their tables are named.
#pragma once

#include <cstdint>

namespace leni_kernels {

// An output of so many bytes, which no cache would keep, is not written through the caches: that would read it first.
constexpr int64_t kStreamedBytes = 8 * 1024 * 1024;
constexpr int64_t kLineBytes = 64;

enum class Scalar { Float32, Float64, BFloat16, Float16 };

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

// The instruction sets, each with what those before it have.
enum class Isa { Generic, Avx2, Avx512, Avx512Bf16, Amx };
constexpr int kIsas = 5;

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
inline int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }
// Of the fewest shares of ``total`` that have at most ``most``, all alike but the last: how much one has.
inline int64_t even_share(int64_t total, int64_t most) { return ceil_div(total, ceil_div(total, most)); }

}  // namespace leni_kernels

// In the namespace of a mechanism, after its struct Kernels: the tables of its kernels, which <mechanism>/kernels.cpp
// defines, one for each instruction set. What a set has no kernel of its own for is null there, and that of a lesser
// set serves.
#define LENI_KERNELS_TABLES                                                                                            \
  extern const Kernels generic_kernels, avx2_kernels, avx512_kernels, avx512_bf16_kernels, amx_kernels;                \
  inline const Kernels* const tables[kIsas] = {&generic_kernels, &avx2_kernels, &avx512_kernels, &avx512_bf16_kernels, \
                                               &amx_kernels};
