// ConvReLU on the CPU: what the operators ask of the kernels, and the kernels there are.
//
// One form serves one, two and three dimensions (missing ones have size 1), padding, dilation, and Reborn: a
// convolution is a list of taps. Tap t of the output site q reads x at q·stride + offset, where a site outside x is 0,
// and takes max(x, θ[c, t]) of it, or min(x, θ[c, t]) where the tap is ``below``.
#pragma once

#include <cstdint>

#include "kernels/kernel.h"

namespace leni_kernels::conv_relu {

// An activation [N, C, D, H, W], read in place: stride 1 along channels (channels_last) or along columns, also where
// there is one of them, except for a gradient of y, whose strides may be any. Strides are in elements.
struct Volume {
  const void* data;
  int64_t batch, channels, size[3];
  int64_t stride_batch, stride_channel, stride[3];
  bool channels_last;
};

struct Tap {
  int64_t offset[3];  // k·dilation − padding
  bool below = false;
};

// Parameters are of double where x is, else of float.
struct ConvRelu {
  Scalar scalar;
  Volume x;
  const Tap* taps;
  int64_t tap_count;
  int64_t stride[3];
  int64_t groups, out_channels, out_size[3];
  const void* weight = nullptr;     // [O, C/groups, T], of any strides
  int64_t weight_stride[3] = {};    // in elements
  const void* threshold = nullptr;  // [C, T], contiguous
};

// y[n, o, q] = bias[o] + Σ_c Σ_t weight[o, c, t] · max(x[n, c, q·stride + offset_t], threshold[c, t]), c over the
// channels of o's group.
struct ConvReluProblem : ConvRelu {
  const void* bias;  // [O], or null
  void* y;           // [N, O, D', H', W'], contiguous in x's order
};

// The gradients for a gradient ``grad`` of y [N, O, D', H', W']. What is null is not asked for. At x = threshold the
// gradient goes to the threshold and none to x; a site outside x counts for the threshold.
struct ConvReluGradientProblem : ConvRelu {
  Volume grad;
  void* dx = nullptr;          // contiguous in x's order
  void* dthreshold = nullptr;  // [C, T]
  void* dweight = nullptr;     // [O, C/groups, T], contiguous
  void* dbias = nullptr;       // [O]
};

// The kernels of one instruction set. No batch, channel or plane is empty. Beyond AVX-512 there is one: forward, for
// bfloat16.
struct Kernels {
  void (*forward)(const ConvReluProblem& problem, const Host& host) = nullptr;
  void (*input_gradient)(const ConvReluGradientProblem& problem, const Host& host) = nullptr;   // dx and dthreshold
  void (*weight_gradient)(const ConvReluGradientProblem& problem, const Host& host) = nullptr;  // dweight and dbias
};

LENI_KERNELS_TABLES

}  // namespace leni_kernels::conv_relu
