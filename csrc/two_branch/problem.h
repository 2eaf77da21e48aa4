// What the operators of LENI and Reborn ask of the kernels that both have: y = weight · ([max(x, 0); z] − mean) + bias.
#pragma once

#include <cstdint>

#include "kernels/kernel.h"

namespace leni_kernels::two_branch {

// An activation [N, C, H, W], read in place: stride 1 along channels (channels_last) or along columns, also where there
// is one of them. Strides are in elements.
struct Activation {
  const void* data;
  int64_t batch, channels, height, width;
  int64_t stride_batch, stride_channel, stride_row, stride_column;
  bool channels_last;
};

// The problems below are of a = [max(x, 0); z]. LENI's z is taps ⋆ᵀ min(x, 0), with taps [C, k, k]; Reborn's is given,
// and there are no taps. Parameters and statistics are contiguous, of double where x is, else of float.

// y = weight · (a − mean) + bias. weight [C, 2C], bias [C] and both halves of the mean, [C] each or null for 0. y is
// contiguous in x's order.
// The mean is subtracted before the product: a sum of what is much larger than the deviations from it would lose them.
struct FoldedProblem {
  Scalar scalar;
  Activation x;
  void* y;
  const void* weight;
  const void* bias;
  const void* taps = nullptr;
  int64_t kernel_size = 0;
  const Activation* z = nullptr;
  const void* positive_mean = nullptr;
  const void* negative_mean = nullptr;
};

// mean and variance (biased) of a, [2C] each; Reborn's is of z alone, which stands for x, [C] each.
struct StatisticsProblem {
  Scalar scalar;
  Activation x;
  void* mean;
  void* variance;
  const void* taps = nullptr;
  int64_t kernel_size = 0;
};

// The gradients of the folded form for a gradient ``grad`` of y, which may have any strides. constant and slope [2C]
// (or both null) are added to the gradient of a as constant + slope·a: what a gradient of a's statistics amounts to. dx
// is contiguous in x's order; the rest is contiguous.
struct GradientProblem {
  Scalar scalar;
  Activation x;
  Activation grad;
  const void* taps = nullptr;
  int64_t kernel_size = 0;
  const Activation* z = nullptr;
  const void* weight = nullptr;
  const void* constant = nullptr;
  const void* slope = nullptr;
  const void* mean = nullptr;  // [2C] or null: dweight is taken of a − mean
  void* dx = nullptr;
  void* dtaps = nullptr;
  void* dweight = nullptr;
  void* dbias = nullptr;
};

}  // namespace leni_kernels::two_branch
