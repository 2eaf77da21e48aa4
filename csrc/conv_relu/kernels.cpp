// The kernels of ConvReLU for one instruction set.
#include "conv_relu/problem.h"

#include "kernels/target.h"
#if defined(LENI_KERNELS_ALL)
#include "conv_relu/backward.h"
#include "conv_relu/forward.h"
#elif defined(LENI_KERNELS_BFLOAT16)
#include "conv_relu/forward.h"
#endif

namespace leni_kernels::conv_relu {

#if defined(LENI_KERNELS_ALL)
const Kernels LENI_KERNELS_TABLE{&forward, &input_gradient, &weight_gradient};
#elif defined(LENI_KERNELS_BFLOAT16)
const Kernels LENI_KERNELS_TABLE{&forward};
#else
const Kernels LENI_KERNELS_TABLE;
#endif

}  // namespace leni_kernels::conv_relu
