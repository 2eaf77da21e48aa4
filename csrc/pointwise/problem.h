// AdaReLU, FullyParametricReLU and CReLU on the CPU: what the operators ask of the kernels, and the kernels there are.
#pragma once

#include <cstdint>

#include "kernels/kernel.h"

namespace leni_kernels::pointwise {

// The elements of a tensor in the order in which those of y lie in memory: dense, or with ``sizes`` and ``strides``
// (in elements, the last dimension innermost).
struct Sequence {
  const void* data;
  bool dense;
  int dimensions;
  const int64_t* sizes;
  const int64_t* strides;
};

enum class Function { AdaRelu, FullyParametricRelu };

constexpr int kMostParameters = 2;

// Elements [first, first + count) of x and y, of which element first + i has the parameters of number
// i / run % period. Parameters and their gradients are double where x is, else float and double.
struct Problem {
  Function function;
  Scalar scalar;
  Sequence x;
  int64_t first = 0, count = 0, run = 1, period = 1;
  const void* parameters[kMostParameters] = {};
};

// dx is in y's order; null where it is not asked for, as the sums over the gradients of each parameter may be.
struct GradientProblem : Problem {
  Sequence grad;
  void* dx = nullptr;
  double* sums[kMostParameters] = {};
};

// x as [outer, inner] and y, or its gradient, as [outer, 2, inner], where CReLU puts its halves.
struct CReluProblem {
  Scalar scalar;
  Sequence x;
  int64_t outer, inner;
  void* y;
};

struct CReluGradientProblem {
  Scalar scalar;
  Sequence x, grad;
  int64_t outer, inner;
  void* dx;
};

// The kernels of one instruction set. Beyond AVX-512 there are none.
struct Kernels {
  void (*forward)(const Problem& problem, void* y, const Host& host) = nullptr;
  void (*backward)(const GradientProblem& problem, const Host& host) = nullptr;
  void (*crelu)(const CReluProblem& problem, const Host& host) = nullptr;
  void (*crelu_backward)(const CReluGradientProblem& problem, const Host& host) = nullptr;
};

LENI_KERNELS_TABLES

}  // namespace leni_kernels::pointwise
