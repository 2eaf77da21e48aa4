// What Reborn's norm needs of z where the deconvolution did not sum it (two_branch/statistics.h).
#pragma once

#include "kernels/kernel.h"
#include "kernels/target.h"
#include "reborn/expand.h"
#include "reborn/problem.h"
#include "two_branch/statistics.h"

LENI_KERNELS_BEGIN
namespace leni_kernels::reborn::inline LENI_KERNELS_TARGET {

inline void statistics(const StatisticsProblem& problem, const Host& host) {
  two_branch::statistics<Given>(problem, host);
}

}  // namespace leni_kernels::reborn::inline LENI_KERNELS_TARGET
LENI_KERNELS_END
