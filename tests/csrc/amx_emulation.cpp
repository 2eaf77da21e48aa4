// Runs the AMX kernel with its tile registers emulated, against the generic kernel, on inputs whose products and sums
// are exact in bfloat16 and float: the results must be equal to the bit. Prints the number of cases, or the first that
// differs. Built by test_isa.py from this file, leni_amx.cpp (with LENI_AMX_EMULATION) and leni_generic.cpp.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <vector>

#include "bfloat16.h"
#include "leni.h"

namespace {

void serial_for(int64_t count, const void* context, void (*body)(const void*, int64_t, int64_t)) {
  body(context, 0, count);
}

// Each call gets new memory full of NaN, so that what the kernel reads without having written it shows.
void* poisoned_scratch(int slot, int64_t bytes) {
  static std::vector<char> buffers[leni::kScratchSlots];
  buffers[slot].assign(bytes + 64, static_cast<char>(0xff));
  const auto address = reinterpret_cast<uintptr_t>(buffers[slot].data());
  return reinterpret_cast<void*>((address + 63) / 64 * 64);
}

std::mt19937 generator(0);

int integer(int low, int high) { return std::uniform_int_distribution<int>(low, high)(generator); }

std::vector<float> integers(int64_t count, int low, int high) {
  std::vector<float> values(count);
  for (float& value : values) value = static_cast<float>(integer(low, high));
  return values;
}

bool same(int64_t n, int64_t c, int64_t h, int64_t w, int64_t k, bool channels_last, bool has_mean) {
  const leni::Host host{&serial_for, &poisoned_scratch, 2};
  std::vector<leni::BFloat16> x(n * c * h * w), y(x.size(), {0xffff}), expected(x.size(), {0xffff});
  for (auto& value : x) value = leni::to_bfloat16(static_cast<float>(integer(-2, 2)));
  const auto taps = integers(c * k * k, -1, 1), weight = integers(2 * c * c, -1, 1), bias = integers(c, -4, 4);
  const auto mean = integers(2 * c, -2, 2);
  const leni::Activation activation{
      x.data(),     n, c, h, w, c * h * w, channels_last ? 1 : h * w, channels_last ? w * c : w, channels_last ? c : 1,
      channels_last};
  leni::FoldedProblem problem{leni::Scalar::BFloat16, activation, y.data(), taps.data(), weight.data(), bias.data(), k};
  if (has_mean) {
    problem.positive_mean = mean.data();
    problem.negative_mean = mean.data() + c;
  }
  leni::folded_amx(problem, host);
  problem.y = expected.data();
  leni::generic_kernels.folded(problem, host);
  for (size_t i = 0; i < y.size(); ++i) {
    if (y[i].bits != expected[i].bits) {
      std::printf("differs at %zu: N=%ld C=%ld H=%ld W=%ld k=%ld channels_last=%d\n", i, (long)n, (long)c, (long)h,
                  (long)w, (long)k, channels_last);
      return false;
    }
  }
  return true;
}

}  // namespace

int main() {
  int cases = 0;
  for (const bool channels_last : {false, true}) {
    for (const int64_t c : {1, 2, 7, 15, 16, 17, 31, 32, 33, 48, 64, 100}) {
      for (const int64_t k : {3, 5, 7}) {
        for (const auto& [h, w] : {std::pair<int64_t, int64_t>{1, 1}, {5, 7}, {3, 40}, {17, 16}, {9, 225}}) {
          if (c > 48 && w > 40) continue;
          for (const bool has_mean : {false, true}) {
            if (!same(2, c, h, w, k, channels_last, has_mean)) return EXIT_FAILURE;
            ++cases;
          }
        }
      }
    }
  }
  std::printf("%d cases equal\n", cases);
  return EXIT_SUCCESS;
}
