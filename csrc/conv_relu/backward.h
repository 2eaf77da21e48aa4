// ConvReLU's backward: the gradients of x and of the threshold (input_gradient.h), and of weight and bias
// (weight_gradient.h). What both know of a convolution is in panels.h.
#pragma once

#include "conv_relu/input_gradient.h"
#include "conv_relu/problem.h"
#include "conv_relu/weight_gradient.h"
#include "kernels/kernel.h"
#include "kernels/scalar.h"
#include "kernels/target.h"

LENI_KERNELS_BEGIN
namespace leni_kernels::conv_relu::inline LENI_KERNELS_TARGET {

inline void input_gradient(const ConvReluGradientProblem& problem, const Host& host) {
  for_scalar(problem.scalar,
             [&](auto x, auto scale) { gradients::input_gradient<decltype(x), decltype(scale)>(problem, host); });
}

inline void weight_gradient(const ConvReluGradientProblem& problem, const Host& host) {
  for_scalar(problem.scalar,
             [&](auto x, auto scale) { gradients::weight_gradient<decltype(x), decltype(scale)>(problem, host); });
}

}  // namespace leni_kernels::conv_relu::inline LENI_KERNELS_TARGET
LENI_KERNELS_END
