#include "host.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <cstdlib>
#include <memory>
#include <string>

#if defined(__x86_64__)
#include <cpuid.h>
#endif
#if defined(__linux__) && defined(__x86_64__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace leni {
namespace {

constexpr const char* kIsaNames[] = {"generic", "avx2", "avx512", "avx512_bf16", "amx"};  // in the order of Isa

const char* isa_name(Isa isa) { return kIsaNames[static_cast<int>(isa)]; }

struct Free {
  void operator()(void* memory) const { std::free(memory); }
};

void parallel_for(int64_t count, const void* context, void (*body)(const void*, int64_t, int64_t)) {
  torch::stable::parallel_for(0, count, 1, [&](int64_t begin, int64_t end) { body(context, begin, end); });
}

void* scratch(int slot, int64_t bytes) {
  struct Buffer {
    std::unique_ptr<void, Free> memory;
    int64_t bytes = 0;
  };
  static thread_local Buffer buffers[8];
  Buffer& buffer = buffers[slot];
  if (buffer.bytes < bytes) {
    const int64_t rounded = (bytes + 63) / 64 * 64;
    buffer.memory.reset(std::aligned_alloc(64, rounded));
    STD_TORCH_CHECK(buffer.memory != nullptr, "leni_kernels: out of memory for ", rounded, " bytes of scratch");
    buffer.bytes = rounded;
  }
  return buffer.memory.get();
}

#if defined(__x86_64__)
// The kernel grants a process the AMX tile registers on request.
bool request_amx() {
#if defined(__linux__)
  constexpr long request_permission = 0x1023, tile_data = 18;
  return syscall(SYS_arch_prctl, request_permission, tile_data) == 0;
#else
  return false;
#endif
}

bool has_amx_bf16() {
  unsigned a, b, c, d;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return false;
  const bool tile = d & (1u << 24), bf16 = d & (1u << 22);
  return tile && bf16 && request_amx();
}

bool has_avx512_bf16() {
  unsigned a, b, c, d;
  return __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a & (1u << 5));
}

Isa best_isa() {
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return Isa::Generic;
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  if (!avx512) return Isa::Avx2;
  if (!has_avx512_bf16()) return Isa::Avx512;
  return has_amx_bf16() ? Isa::Amx : Isa::Avx512Bf16;
}
#else
Isa best_isa() { return Isa::Generic; }
#endif

Isa chosen_isa() {
  const Isa best = best_isa();
  const char* name = std::getenv("LENI_KERNELS_ISA");
  if (name == nullptr || *name == '\0') return best;
  for (int i = 0; i < 5; ++i) {
    if (std::string(kIsaNames[i]) == name) {
      STD_TORCH_CHECK(i <= static_cast<int>(best), "LENI_KERNELS_ISA=", name, ": this CPU has only ", isa_name(best));
      return static_cast<Isa>(i);
    }
  }
  STD_TORCH_CHECK(false, "LENI_KERNELS_ISA=", name, ": the names are generic, avx2, avx512, avx512_bf16, amx");
}

}  // namespace

Host current_host() { return {&parallel_for, &scratch, static_cast<int64_t>(torch::stable::get_num_threads())}; }

Isa current_isa() {
  static const Isa isa = chosen_isa();
  return isa;
}

std::string cpu_isa() { return isa_name(current_isa()); }

}  // namespace leni

STABLE_TORCH_LIBRARY_FRAGMENT(leni_kernels, m) { m.def("cpu_isa() -> str"); }

STABLE_TORCH_LIBRARY_IMPL(leni_kernels, CompositeExplicitAutograd, m) { m.impl("cpu_isa", TORCH_BOX(&leni::cpu_isa)); }
