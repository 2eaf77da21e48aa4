// LENI's backward: the gradients of weight and bias (two_branch/weight_gradient.h), from which those of the norms'
// statistics follow, then those of x and taps (input_gradient.h).
#pragma once

#include "kernels/kernel.h"
#include "kernels/scalar.h"
#include "kernels/target.h"
#include "leni/expand.h"
#include "leni/input_gradient.h"
#include "leni/problem.h"
#include "two_branch/weight_gradient.h"

LENI_KERNELS_BEGIN
namespace leni_kernels::leni::inline LENI_KERNELS_TARGET {

inline void weight_gradient(const GradientProblem& problem, const Host& host) {
  for_kernel_size(problem.kernel_size,
                  [&](auto branch) { two_branch::weight_gradient<decltype(branch)>(problem, host); });
}

inline void input_gradient(const InputGradientProblem& problem, const Host& host) {
  for_kernel_size(problem.kernel_size, [&]<int K>(Deconvolved<K>) {
    for_scalar(problem.scalar,
               [&](auto x, auto scale) { input_gradient<K, decltype(x), decltype(scale)>(problem, host); });
  });
}

}  // namespace leni_kernels::leni::inline LENI_KERNELS_TARGET
LENI_KERNELS_END
