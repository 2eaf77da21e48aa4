// Runs ConvReLU's AMX kernel with its tile registers emulated, against the generic kernel, on inputs whose products and
// sums are exact in bfloat16 and float: the results must be equal to the bit. Prints the number of cases, or the first
// that differs. Built by test_amx_emulation.py from this file and csrc/conv_relu/kernels.cpp for both instruction sets.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "conv_relu/problem.h"
#include "emulation_host.h"
#include "kernels/half.h"

using namespace leni_kernels;
using namespace leni_kernels::conv_relu;

namespace {

struct Case {
  int64_t batch, channels, outputs, groups, height, width, kernel, stride;
};

bool same(const Case& c, bool channels_last) {
  const int64_t h = c.height, w = c.width, padding = c.kernel / 2, taps = c.kernel * c.kernel;
  const int64_t out_h = (h - 1) / c.stride + 1, out_w = (w - 1) / c.stride + 1, inputs = c.channels / c.groups;
  std::vector<BFloat16> x, y(c.batch * c.outputs * out_h * out_w, {0xffff}), expected = y;
  for (const float value : integers(c.batch * c.channels * h * w, -2, 2)) x.push_back(to_bfloat16(value));
  const auto weight = integers(c.outputs * inputs * taps, -1, 1), bias = integers(c.outputs, -4, 4);
  const auto threshold = integers(c.channels * taps, -1, 1);
  std::vector<Tap> list;
  for (int64_t i = 0; i < c.kernel; ++i) {
    for (int64_t j = 0; j < c.kernel; ++j) list.push_back({{0, i - padding, j - padding}, j == 1});
  }
  ConvReluProblem problem{};
  problem.scalar = Scalar::BFloat16;
  problem.x = {x.data(),
               c.batch,
               c.channels,
               {1, h, w},
               c.channels * h * w,
               channels_last ? 1 : h * w,
               {0, channels_last ? w * c.channels : w, channels_last ? c.channels : 1},
               channels_last};
  problem.taps = list.data();
  problem.tap_count = taps;
  for (int d = 0; d < 3; ++d) problem.stride[d] = d == 0 ? 1 : c.stride;
  problem.groups = c.groups;
  problem.out_channels = c.outputs;
  const int64_t out_size[3] = {1, out_h, out_w}, weight_stride[3] = {inputs * taps, taps, 1};
  for (int d = 0; d < 3; ++d) problem.out_size[d] = out_size[d], problem.weight_stride[d] = weight_stride[d];
  problem.weight = weight.data();
  problem.threshold = threshold.data();
  problem.bias = bias.data();
  problem.y = y.data();
  amx_kernels.forward(problem, kEmulationHost);
  problem.y = expected.data();
  generic_kernels.forward(problem, kEmulationHost);
  for (size_t i = 0; i < y.size(); ++i) {
    if (y[i].bits != expected[i].bits) {
      std::printf("differs at %zu: C=%ld O=%ld groups=%ld H=%ld W=%ld k=%ld stride=%ld channels_last=%d\n", i,
                  (long)c.channels, (long)c.outputs, (long)c.groups, (long)h, (long)w, (long)c.kernel, (long)c.stride,
                  channels_last);
      return false;
    }
  }
  return true;
}

}  // namespace

int main() {
  const Case cases[] = {{2, 1, 1, 1, 1, 1, 1, 1},      {2, 3, 5, 1, 5, 7, 3, 1},     {1, 16, 16, 1, 3, 40, 3, 1},
                        {2, 33, 31, 1, 9, 8, 3, 2},    {3, 40, 65, 1, 7, 7, 3, 1},   {2, 200, 48, 1, 6, 5, 3, 1},
                        {1, 64, 100, 1, 17, 16, 1, 1}, {2, 34, 36, 2, 5, 9, 3, 1},   {2, 12, 12, 12, 9, 33, 3, 1},
                        {1, 5, 17, 1, 9, 225, 5, 1},   {2, 1300, 20, 1, 4, 4, 1, 1}, {1, 24, 48, 24, 8, 8, 3, 2}};
  int count = 0;
  for (const Case& c : cases) {
    for (const bool channels_last : {false, true}) {
      if (!same(c, channels_last)) return EXIT_FAILURE;
      ++count;
    }
  }
  std::printf("%d cases equal\n", count);
  return EXIT_SUCCESS;
}
