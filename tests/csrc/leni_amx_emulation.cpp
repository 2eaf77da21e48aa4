// Runs LENI's AMX kernel with its tile registers emulated, against the generic kernel, on inputs whose products and
// sums are exact in bfloat16 and float: the results must be equal to the bit. Prints the number of cases, or the first
// that differs. Built by test_amx_emulation.py from this file and csrc/leni/kernels.cpp for both instruction sets.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <utility>
#include <vector>

#include "emulation_host.h"
#include "kernels/half.h"
#include "leni/problem.h"

using namespace leni_kernels;
using namespace leni_kernels::leni;

namespace {

bool same(int64_t n, int64_t c, int64_t h, int64_t w, int64_t k, bool channels_last, bool has_mean) {
  std::vector<BFloat16> x(n * c * h * w), y(x.size(), {0xffff}), expected(x.size(), {0xffff});
  for (auto& value : x) value = to_bfloat16(static_cast<float>(integer(-2, 2)));
  const auto taps = integers(c * k * k, -1, 1), weight = integers(2 * c * c, -1, 1), bias = integers(c, -4, 4);
  const auto mean = integers(2 * c, -2, 2);
  const Activation activation{
      x.data(),     n, c, h, w, c * h * w, channels_last ? 1 : h * w, channels_last ? w * c : w, channels_last ? c : 1,
      channels_last};
  FoldedProblem problem{Scalar::BFloat16, activation, y.data(), weight.data(), bias.data(), taps.data(), k};
  if (has_mean) {
    problem.positive_mean = mean.data();
    problem.negative_mean = mean.data() + c;
  }
  amx_kernels.folded(problem, kEmulationHost);
  problem.y = expected.data();
  generic_kernels.folded(problem, kEmulationHost);
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
