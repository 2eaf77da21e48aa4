// LENI on the CPU: what the operators ask of the kernels, and the kernels there are.
#pragma once

#include "kernels/kernel.h"
#include "two_branch/problem.h"

namespace leni_kernels::leni {

using namespace two_branch;

// With a matrix [C, C] and a centre [C], matrix·(z − centre) stands in z's place beside the slope.
struct InputGradientProblem : GradientProblem {
  const void* matrix = nullptr;
  const void* centre = nullptr;
};

// The mean of (z − centre)·(z − centre)ᵀ, [C, C], for z = taps ⋆ᵀ min(x, 0); taps [C, k, k] and the centre [C] are as
// the parameters of the other problems.
struct CovarianceProblem {
  Scalar scalar;
  Activation x;
  void* covariance;
  const void* centre;
  const void* taps;
  int64_t kernel_size;
};

// The kernels of one instruction set, for kernel sizes 3, 5 and 7. Beyond AVX-512 there is one: folded, for bfloat16.
struct Kernels {
  void (*folded)(const FoldedProblem& problem, const Host& host) = nullptr;
  void (*statistics)(const StatisticsProblem& problem, const Host& host) = nullptr;
  void (*weight_gradient)(const GradientProblem& problem, const Host& host) = nullptr;      // dweight and dbias
  void (*input_gradient)(const InputGradientProblem& problem, const Host& host) = nullptr;  // dx and dtaps
  void (*covariance)(const CovarianceProblem& problem, const Host& host) = nullptr;
};

LENI_KERNELS_TABLES

}  // namespace leni_kernels::leni
