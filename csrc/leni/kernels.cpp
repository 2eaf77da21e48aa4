// The kernels of LENI for one instruction set.
#include "leni/problem.h"

#include "kernels/target.h"
#if defined(LENI_KERNELS_ALL)
#include "leni/backward.h"
#include "leni/covariance.h"
#include "leni/forward.h"
#include "leni/statistics.h"
#elif defined(LENI_KERNELS_BFLOAT16)
#include "leni/forward.h"
#endif

namespace leni_kernels::leni {

#if defined(LENI_KERNELS_ALL)
const Kernels LENI_KERNELS_TABLE{&folded, &statistics, &weight_gradient, &input_gradient, &covariance};
#elif defined(LENI_KERNELS_BFLOAT16)
const Kernels LENI_KERNELS_TABLE{&folded};
#else
const Kernels LENI_KERNELS_TABLE;
#endif

}  // namespace leni_kernels::leni
