// LENI on the CPU: what the operator asks of the kernels, and the kernels there are.
#pragma once

#include "kernel.h"

namespace leni {

// An activation [N, C, H, W], read in place: stride 1 along channels (channels_last) or along columns, also where there
// is one of them. Strides are in elements.
struct Activation {
  const void* data;
  int64_t batch, channels, height, width;
  int64_t stride_batch, stride_channel, stride_row, stride_column;
  bool channels_last;
};

// y = weight · ([max(x, 0); taps ⋆ᵀ min(x, 0)] − mean) + bias. taps [C, k, k], weight [C, 2C], bias [C] and both halves
// of the mean, [C] each or null for 0, are contiguous, of double where x is, else of float; y is contiguous in x's
// order.
// The mean is subtracted before the product: a sum of what is much larger than the deviations from it would lose them.
struct FoldedProblem {
  Scalar scalar;
  Activation x;
  void* y;
  const void* taps;
  const void* weight;
  const void* bias;
  int64_t kernel_size;
  const Activation* z = nullptr;  // with a kernel size of 0: stands for taps ⋆ᵀ min(x, 0), and taps is null
  const void* positive_mean = nullptr;
  const void* negative_mean = nullptr;
};

// mean and variance (biased) of [max(x, 0); taps ⋆ᵀ min(x, 0)], [2C] each; with a kernel size of 0, of x, [C] each.
struct StatisticsProblem {
  Scalar scalar;
  Activation x;
  const void* taps;
  void* mean;
  void* variance;
  int64_t kernel_size;
};

// The gradients of the folded form for a gradient ``grad`` of y, which may have any strides. constant and slope [2C]
// (or both null) are added to the gradient of a = [max(x, 0); taps ⋆ᵀ min(x, 0)] as constant + slope·a: what a
// gradient of a's statistics amounts to. dx is contiguous in x's order; the rest is contiguous.
struct GradientProblem {
  Scalar scalar;
  Activation x;
  Activation grad;
  const void* taps;
  const void* weight;
  const void* constant;
  const void* slope;
  const void* mean;  // [2C] or null: dweight is taken of a − mean
  void* dx;
  void* dtaps;
  void* dweight;
  void* dbias;
  int64_t kernel_size;
  const Activation* z;  // as in FoldedProblem
};

// The gradient of one branch of y = weight · [max(x, 0); z] + bias for a gradient ``grad`` of y, contiguous in x's
// order. Given ``negative``, the gradient of x by way of z, x's gradient: of both branches, each where it is x's. Else
// x stands for z, and it is z's gradient, with constant + slope·z added, [C] each or both null.
struct BranchGradientProblem {
  Scalar scalar;
  Activation x;
  Activation grad;
  const void* weight;
  const Activation* negative;
  const void* constant;
  const void* slope;
  void* out;
};

// z = deconv_weight ⋆ᵀ min(x, 0), dense and 3×3 with stride 1 and padding 1, in float, and its mean and variance
// (biased), [C]. deconv_weight [C, C, 3, 3] is contiguous; z is contiguous in x's order.
struct DeconvolutionProblem {
  Activation x;
  const void* deconv_weight;
  void* z;
  void* mean;
  void* variance;
};

// The gradients of x and of deconv_weight [C, C, 3, 3] in y = weight · [max(x, 0); deconv_weight ⋆ᵀ min(x, 0)] + bias,
// in float, for a gradient ``grad`` of y, of any strides, and ``grad_z`` of the deconvolution. dx is contiguous in x's
// order; either may be null.
struct DeconvGradientProblem {
  Activation x;
  Activation grad;
  Activation grad_z;
  const void* deconv_weight;
  const void* weight;
  void* dx;
  void* ddeconv_weight;
};

// z = deconv_weight ⋆ᵀ min(x, 0) of few values, any odd size; or ``backward``, where x stands for z's gradient, what
// that gives x. deconv_weight [C, C/groups, k, k] is contiguous, of float or double; out is contiguous in x's order.
struct FewDeconvolution {
  Scalar scalar;
  Activation x;
  Scalar deconv_scalar;
  const void* deconv_weight;
  int64_t groups, kernel_size;
  bool backward;
  void* out;
};

// The gradient of deconv_weight in the same for a gradient ``grad_z`` of z.
struct FewDeconvGradient {
  Scalar scalar;
  Activation x;
  Activation grad_z;
  int64_t groups, kernel_size;
  Scalar deconv_scalar;
  void* ddeconv_weight;
};

// The kernels of one instruction set. The first four are for kernel sizes 3, 5 and 7, and all of these but
// input_gradient for 0 as well: Reborn, whose deconvolution is not theirs. The last five are Reborn's alone.
struct Kernels {
  void (*folded)(const FoldedProblem& problem, const Host& host);
  void (*statistics)(const StatisticsProblem& problem, const Host& host);
  void (*weight_gradient)(const GradientProblem& problem, const Host& host);  // dweight and dbias
  void (*input_gradient)(const GradientProblem& problem, const Host& host);   // dx and dtaps
  void (*branch_gradient)(const BranchGradientProblem& problem, const Host& host);
  void (*deconvolve)(const DeconvolutionProblem& problem, const Host& host);
  void (*deconv_gradient)(const DeconvGradientProblem& problem, const Host& host);
  void (*few_deconvolve)(const FewDeconvolution& problem, const Host& host);
  void (*few_deconv_gradient)(const FewDeconvGradient& problem, const Host& host);
};

extern const Kernels generic_kernels;
#if defined(__x86_64__)
extern const Kernels avx2_kernels;
extern const Kernels avx512_kernels;
// For bfloat16 only; the other passes are AVX-512's.
void folded_avx512_bf16(const FoldedProblem& problem, const Host& host);
void folded_amx(const FoldedProblem& problem, const Host& host);
#endif

}  // namespace leni
