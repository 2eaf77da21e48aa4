// The kernels of AdaReLU, FullyParametricReLU and CReLU for one instruction set.
#include "pointwise/problem.h"

#include "kernels/target.h"
#if defined(LENI_KERNELS_ALL)
#include "pointwise/backward.h"
#include "pointwise/forward.h"
#endif

namespace leni_kernels::pointwise {

#if defined(LENI_KERNELS_ALL)
const Kernels LENI_KERNELS_TABLE{&forward, &backward, &crelu, &crelu_backward};
#else
const Kernels LENI_KERNELS_TABLE;
#endif

}  // namespace leni_kernels::pointwise
