// The kernels of Reborn for one instruction set.
#include "reborn/problem.h"

#include "kernels/target.h"
#if defined(LENI_KERNELS_ALL)
#include "reborn/backward.h"
#include "reborn/deconvolution.h"
#include "reborn/few.h"
#include "reborn/forward.h"
#include "reborn/statistics.h"
#elif defined(LENI_KERNELS_BFLOAT16)
#include "reborn/forward.h"
#endif

namespace leni_kernels::reborn {

#if defined(LENI_KERNELS_ALL)
const Kernels LENI_KERNELS_TABLE{&folded,     &statistics,      &weight_gradient, &branch_gradient,
                                 &deconvolve, &deconv_gradient, &few_deconvolve,  &few_deconv_gradient};
#elif defined(LENI_KERNELS_BFLOAT16)
const Kernels LENI_KERNELS_TABLE{&folded};
#else
const Kernels LENI_KERNELS_TABLE;
#endif

}  // namespace leni_kernels::reborn
