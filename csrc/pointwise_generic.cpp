// The pointwise activations for generic.
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "bfloat16.h"
#include "pointwise.h"

namespace leni::pointwise::generic {
#include "simd.h"
#include "pointwise_kernels.h"
}  // namespace leni::pointwise::generic

namespace leni::pointwise {
const Kernels generic_kernels{&generic::forward, &generic::backward, &generic::crelu, &generic::crelu_backward};
}  // namespace leni::pointwise
