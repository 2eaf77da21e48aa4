// LENI on the CPU: what the operators ask of the kernels, and the kernels there are.
#pragma once

#include "kernels/kernel.h"
#include "two_branch/problem.h"

namespace leni_kernels::leni {

using namespace two_branch;

// The kernels of one instruction set, for kernel sizes 3, 5 and 7. Beyond AVX-512 there is one: folded, for bfloat16.
struct Kernels {
  void (*folded)(const FoldedProblem& problem, const Host& host) = nullptr;
  void (*statistics)(const StatisticsProblem& problem, const Host& host) = nullptr;
  void (*weight_gradient)(const GradientProblem& problem, const Host& host) = nullptr;  // dweight and dbias
  void (*input_gradient)(const GradientProblem& problem, const Host& host) = nullptr;   // dx and dtaps
};

LENI_KERNELS_TABLES

}  // namespace leni_kernels::leni
