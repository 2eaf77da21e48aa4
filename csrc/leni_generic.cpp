// LENI for generic.
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "bfloat16.h"
#include "leni.h"

namespace leni::generic {
#include "simd.h"
#include "product.h"
#include "leni_expand.h"
#include "leni_folded.h"
#include "gather.h"
#include "leni_training.h"
}  // namespace leni::generic

namespace leni {
const Kernels generic_kernels{&generic::folded, &generic::statistics, &generic::weight_gradient,
                              &generic::input_gradient};
}  // namespace leni
