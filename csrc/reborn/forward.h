// Reborn's forward pass behind its deconvolution, the tail: the folded form (two_branch/folded.h) with a z that is
// given. The deconvolution is deconvolution.h's or few.h's, or the library's.
#pragma once

#include "kernels/kernel.h"
#include "kernels/target.h"
#include "reborn/expand.h"
#include "reborn/problem.h"
#include "two_branch/folded.h"

LENI_KERNELS_BEGIN
namespace leni_kernels::reborn::inline LENI_KERNELS_TARGET {

inline void folded(const FoldedProblem& problem, const Host& host) { two_branch::folded<Given>(problem, host); }

}  // namespace leni_kernels::reborn::inline LENI_KERNELS_TARGET
LENI_KERNELS_END
