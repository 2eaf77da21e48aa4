// What LENI's norms need of a batch before the forward pass (two_branch/statistics.h).
#pragma once

#include "kernels/kernel.h"
#include "kernels/target.h"
#include "leni/expand.h"
#include "leni/problem.h"
#include "two_branch/statistics.h"

LENI_KERNELS_BEGIN
namespace leni_kernels::leni::inline LENI_KERNELS_TARGET {

inline void statistics(const StatisticsProblem& problem, const Host& host) {
  for_kernel_size(problem.kernel_size, [&](auto branch) { two_branch::statistics<decltype(branch)>(problem, host); });
}

}  // namespace leni_kernels::leni::inline LENI_KERNELS_TARGET
LENI_KERNELS_END
