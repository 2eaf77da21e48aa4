// AdaReLU, FullyParametricReLU and CReLU on the CPU: what the operators ask of the kernels, and the kernels there are.
#pragma once

#include <cstdint>

#include "leni.h"

namespace leni::pointwise {

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
  int64_t first, count, run, period;
  const void* parameters[kMostParameters];
};

// dx is in y's order; null where it is not asked for, as the sums over the gradients of each parameter may be.
struct GradientProblem : Problem {
  Sequence grad;
  void* dx;
  double* sums[kMostParameters];
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

// The kernels of one instruction set.
struct Kernels {
  void (*forward)(const Problem& problem, void* y, const Host& host);
  void (*backward)(const GradientProblem& problem, const Host& host);
  void (*crelu)(const CReluProblem& problem, const Host& host);
  void (*crelu_backward)(const CReluGradientProblem& problem, const Host& host);
};

extern const Kernels generic_kernels;
#if defined(__x86_64__)
extern const Kernels avx2_kernels;
extern const Kernels avx512_kernels;
#endif

}  // namespace leni::pointwise
