#include "pytorch/host.h"

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <exception>
#include <iterator>
#include <memory>
#include <string>

#include "pytorch/stable.h"
#include "pytorch/tensors.h"

#if defined(LENI_STD_THREADS)
#include <thread>
#include <vector>
#endif
#if defined(__x86_64__)
#include <cpuid.h>
#endif
#if defined(__linux__) && defined(__x86_64__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace leni_kernels {
namespace {

constexpr const char* kIsaNames[kIsas] = {"generic", "avx2", "avx512", "avx512_bf16", "amx"};  // in the order of Isa

const char* isa_name(Isa isa) { return kIsaNames[static_cast<int>(isa)]; }

struct Free {
  void operator()(void* memory) const { std::free(memory); }
};

constexpr int64_t kKeptBytes = 32 * 1024 * 1024;  // of scratch memory that a thread keeps between calls

// The scratch memory of one thread.
class Scratch {
 public:
  void enter() { ++calls_; }
  void leave() {
    if (--calls_ == 0) give_back();
  }

  void* get(int slot, int64_t bytes) {
    Buffer& buffer = buffers_[slot];
    if (buffer.bytes < bytes) {
      buffer = Buffer();  // before there is another, and nothing is left of it where there will be none
      const int64_t rounded = (bytes + 63) / 64 * 64;
      buffer.memory.reset(std::aligned_alloc(64, rounded));
      STD_TORCH_CHECK(buffer.memory != nullptr, "leni_kernels: out of memory for ", rounded, " bytes of scratch");
      buffer.bytes = rounded;
    }
    return buffer.memory.get();
  }

 private:
  struct Buffer {
    std::unique_ptr<void, Free> memory;
    int64_t bytes = 0;
  };

  // The largest go first.
  void give_back() {
    int64_t total = 0;
    for (const Buffer& buffer : buffers_) total += buffer.bytes;
    while (total > kKeptBytes) {
      Buffer& largest = *std::max_element(std::begin(buffers_), std::end(buffers_),
                                          [](const Buffer& a, const Buffer& b) { return a.bytes < b.bytes; });
      total -= largest.bytes;
      largest = Buffer();
    }
  }

  Buffer buffers_[kScratchSlots];
  int calls_ = 0;  // that the thread is in: its own, and parts of another thread's
};

thread_local Scratch thread_scratch;

void* scratch(int slot, int64_t bytes) { return thread_scratch.get(slot, bytes); }

// A thread's part of a call.
struct Part {
  Part() { thread_scratch.enter(); }
  ~Part() { thread_scratch.leave(); }
};

#if defined(LENI_STD_THREADS)
// As PyTorch's does it, for ThreadSanitizer, which does not see how an OpenMP runtime synchronises.
template <class Body>
void in_threads(int64_t count, const Body& body) {
  static thread_local bool inside = false;
  if (inside) return body(0, count);
  const int64_t threads = torch::stable::get_num_threads(), chunk = (count + threads - 1) / threads;
  const auto run = [&](int64_t begin) {
    inside = true;
    body(begin, std::min(begin + chunk, count));
    inside = false;
  };
  std::vector<std::thread> others;
  for (int64_t begin = chunk; begin < count; begin += chunk) others.emplace_back(run, begin);
  if (count > 0) run(0);
  for (std::thread& other : others) other.join();
}
#else
template <class Body>
void in_threads(int64_t count, const Body& body) {
  torch::stable::parallel_for(0, count, 1, body);
}
#endif

// An exception is carried to the caller here: on its way through PyTorch's C interface it would lose its message.
void parallel_for(int64_t count, const void* context, void (*body)(const void*, int64_t, int64_t)) {
  std::exception_ptr failure;
  std::atomic_flag failed;  // not std::once_flag, whose pthread_once would need glibc 2.34 where it is built on that
  in_threads(count, [&](int64_t begin, int64_t end) {
    const Part part;
    try {
      body(context, begin, end);
    } catch (...) {
      if (!failed.test_and_set()) failure = std::current_exception();
    }
  });
  if (failure) std::rethrow_exception(failure);
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

// Which __builtin_cpu_supports() does not know of every compiler.
bool has_f16c() {
  unsigned a, b, c, d;
  return __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C);
}

bool has_avx512_bf16() {
  unsigned a, b, c, d;
  return __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a & (1u << 5));
}

Isa best_isa() {
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma") || !has_f16c()) return Isa::Generic;
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
  for (int i = 0; i < kIsas; ++i) {
    if (std::string(kIsaNames[i]) == name) {
      STD_TORCH_CHECK(i <= static_cast<int>(best), "LENI_KERNELS_ISA=", name, ": this CPU has only ", isa_name(best));
      return static_cast<Isa>(i);
    }
  }
  STD_TORCH_CHECK(false, "LENI_KERNELS_ISA=", name, ": the names are generic, avx2, avx512, avx512_bf16, amx");
}

}  // namespace

Call::Call()
    : Host{&leni_kernels::parallel_for, &leni_kernels::scratch,
           static_cast<int64_t>(torch::stable::get_num_threads())} {
  thread_scratch.enter();
}

Call::~Call() { thread_scratch.leave(); }

Isa current_isa() {
  static const Isa isa = chosen_isa();
  return isa;
}

std::atomic<bool> fills_empty = false;

void fill_empty(bool fill) { fills_empty = fill; }

std::string cpu_isa() { return isa_name(current_isa()); }

}  // namespace leni_kernels

STABLE_TORCH_LIBRARY_FRAGMENT(leni_kernels, m) {
  m.def("cpu_isa() -> str");
  m.def("fill_empty(bool fill) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(leni_kernels, CompositeExplicitAutograd, m) {
  m.impl("cpu_isa", TORCH_BOX(&leni_kernels::cpu_isa));
  m.impl("fill_empty", TORCH_BOX(&leni_kernels::fill_empty));
}
