// Reborn's backward: the gradients of weight and bias (two_branch/weight_gradient.h), from which those of the norm's
// statistics follow; that of z (branch_gradient.h); and those of x and of the deconvolution's weight
// (deconv_gradient.h, or few.h, or the library's and branch_gradient.h).
#pragma once

#include "kernels/kernel.h"
#include "kernels/target.h"
#include "reborn/branch_gradient.h"
#include "reborn/deconv_gradient.h"
#include "reborn/expand.h"
#include "reborn/problem.h"
#include "two_branch/weight_gradient.h"

LENI_KERNELS_BEGIN
namespace leni_kernels::reborn::inline LENI_KERNELS_TARGET {

inline void weight_gradient(const GradientProblem& problem, const Host& host) {
  two_branch::weight_gradient<Given>(problem, host);
}

}  // namespace leni_kernels::reborn::inline LENI_KERNELS_TARGET
LENI_KERNELS_END
