// LENI's forward pass, the folded form (two_branch/folded.h): all of inference, and what follows the statistics in
// training.
#pragma once

#include "kernels/kernel.h"
#include "kernels/target.h"
#include "leni/expand.h"
#include "leni/problem.h"
#include "two_branch/folded.h"

LENI_KERNELS_BEGIN
namespace leni_kernels::leni::inline LENI_KERNELS_TARGET {

inline void folded(const FoldedProblem& problem, const Host& host) {
  for_kernel_size(problem.kernel_size, [&](auto branch) { two_branch::folded<decltype(branch)>(problem, host); });
}

}  // namespace leni_kernels::leni::inline LENI_KERNELS_TARGET
LENI_KERNELS_END
