// The host on which the emulations run kernels: one thread, and new memory full of NaN for each call, so that what a
// kernel reads without having written it shows.
#pragma once

#include <cstdint>
#include <random>
#include <vector>

#include "kernels/kernel.h"

inline void serial_for(int64_t count, const void* context, void (*body)(const void*, int64_t, int64_t)) {
  body(context, 0, count);
}

inline void* poisoned_scratch(int slot, int64_t bytes) {
  static std::vector<char> buffers[leni_kernels::kScratchSlots];
  buffers[slot].assign(bytes + 64, static_cast<char>(0xff));
  const auto address = reinterpret_cast<uintptr_t>(buffers[slot].data());
  return reinterpret_cast<void*>((address + 63) / 64 * 64);
}

constexpr leni_kernels::Host kEmulationHost{&serial_for, &poisoned_scratch, 2};

inline int integer(int low, int high) {
  static std::mt19937 generator(0);
  return std::uniform_int_distribution<int>(low, high)(generator);
}

inline std::vector<float> integers(int64_t count, int low, int high) {
  std::vector<float> values(count);
  for (float& value : values) value = static_cast<float>(integer(low, high));
  return values;
}
