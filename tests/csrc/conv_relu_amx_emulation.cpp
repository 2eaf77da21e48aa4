// Runs ConvReLU's AMX kernel with its tile registers emulated, against the generic kernel, on inputs whose products and
// sums are exact in bfloat16 and float: the results must be equal to the bit. Prints the number of cases, or the first
// that differs. Built by test_kernel_forward.py from this file, conv_relu_amx.cpp (with LENI_AMX_EMULATION) and
// conv_relu_generic.cpp.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <vector>

#include "bfloat16.h"
#include "conv_relu.h"

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

std::vector<float> integers(int64_t count, int low, int high) {
  static std::mt19937 generator(0);
  std::vector<float> values(count);
  for (float& value : values) value = static_cast<float>(std::uniform_int_distribution<int>(low, high)(generator));
  return values;
}

struct Case {
  int64_t batch, channels, outputs, groups, height, width, kernel, stride;
};

bool same(const Case& c, bool channels_last) {
  const leni::Host host{&serial_for, &poisoned_scratch, 2};
  const int64_t h = c.height, w = c.width, padding = c.kernel / 2, taps = c.kernel * c.kernel;
  const int64_t out_h = (h - 1) / c.stride + 1, out_w = (w - 1) / c.stride + 1, inputs = c.channels / c.groups;
  std::vector<leni::BFloat16> x, y(c.batch * c.outputs * out_h * out_w, {0xffff}), expected = y;
  for (const float value : integers(c.batch * c.channels * h * w, -2, 2)) x.push_back(leni::to_bfloat16(value));
  const auto weight = integers(c.outputs * inputs * taps, -1, 1), bias = integers(c.outputs, -4, 4);
  const auto threshold = integers(c.channels * taps, -1, 1);
  std::vector<leni::Tap> list;
  for (int64_t i = 0; i < c.kernel; ++i) {
    for (int64_t j = 0; j < c.kernel; ++j) list.push_back({{0, i - padding, j - padding}, j == 1});
  }
  leni::ConvReluProblem problem{};
  problem.scalar = leni::Scalar::BFloat16;
  problem.x = {x.data(), c.batch, c.channels, {1, h, w}, c.channels * h * w, channels_last ? 1 : h * w,
               {0, channels_last ? w * c.channels : w, channels_last ? c.channels : 1}, channels_last};
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
  leni::conv_relu_amx(problem, host);
  problem.y = expected.data();
  leni::generic_conv_relu_kernels.forward(problem, host);
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
