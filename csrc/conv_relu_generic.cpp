// ConvReLU for generic.
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <limits>
#include <numeric>
#include <type_traits>

#include "bfloat16.h"
#include "conv_relu.h"

namespace leni::generic {
#include "simd.h"
#include "product.h"
#include "gather.h"
namespace conv_relu {
#include "conv_relu_expand.h"
#include "conv_relu_depthwise.h"
#include "conv_relu_forward.h"
#include "conv_relu_backward.h"
}  // namespace conv_relu
}  // namespace leni::generic

namespace leni {
const ConvReluKernels generic_conv_relu_kernels{&generic::conv_relu::forward,
                                                &generic::conv_relu::input_gradient,
                                                &generic::conv_relu::weight_gradient};
}  // namespace leni
