// Reborn on the CPU: what the operators ask of the kernels, and the kernels there are.
#pragma once

#include <cstdint>

#include "kernels/kernel.h"
#include "two_branch/problem.h"

namespace leni_kernels::reborn {

using namespace two_branch;

// The gradient of one branch of y = weight · [max(x, 0); z] + bias for a gradient ``grad`` of y, contiguous in x's
// order. Given ``negative``, the gradient of x by way of z, x's gradient: of both branches, each where it is x's. Else
// x stands for z, and it is z's gradient, with constant + slope·z added, [C] each or both null.
struct BranchGradientProblem {
  Scalar scalar;
  Activation x;
  Activation grad;
  const void* weight;
  const Activation* negative = nullptr;
  const void* constant = nullptr;
  const void* slope = nullptr;
  void* out = nullptr;
};

// z = deconv_weight ⋆ᵀ min(x, 0), dense and 3×3 with stride 1 and padding 1, and its mean and variance (biased), [C].
// x is of float or float16, all else but z of float. deconv_weight [C, C, 3, 3] is contiguous; z is contiguous in x's
// order.
struct DeconvolutionProblem {
  Scalar scalar;
  Activation x;
  const void* deconv_weight;
  void* z;
  void* mean;
  void* variance;
};

// The gradients of x and of deconv_weight [C, C, 3, 3] in y = weight · [max(x, 0); deconv_weight ⋆ᵀ min(x, 0)] + bias,
// for a gradient ``grad`` of y, of any strides, and ``grad_z`` of the deconvolution. Activations are of float or
// float16, weights of float. dx is contiguous in x's order; either may be null.
struct DeconvGradientProblem {
  Scalar scalar;
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

// The kernels of one instruction set. Beyond AVX-512 there is one: folded, for bfloat16.
struct Kernels {
  void (*folded)(const FoldedProblem& problem, const Host& host) = nullptr;
  void (*statistics)(const StatisticsProblem& problem, const Host& host) = nullptr;
  void (*weight_gradient)(const GradientProblem& problem, const Host& host) = nullptr;  // dweight and dbias
  void (*branch_gradient)(const BranchGradientProblem& problem, const Host& host) = nullptr;
  void (*deconvolve)(const DeconvolutionProblem& problem, const Host& host) = nullptr;
  void (*deconv_gradient)(const DeconvGradientProblem& problem, const Host& host) = nullptr;
  void (*few_deconvolve)(const FewDeconvolution& problem, const Host& host) = nullptr;
  void (*few_deconv_gradient)(const FewDeconvGradient& problem, const Host& host) = nullptr;
};

LENI_KERNELS_TABLES

}  // namespace leni_kernels::reborn
