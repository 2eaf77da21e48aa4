// LENI for generic.
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <limits>
#include <numeric>
#include <type_traits>

#include "bfloat16.h"
#include "leni.h"

namespace leni::generic {
#include "simd.h"
#include "product.h"
#include "leni_expand.h"
#include "reborn_expand.h"
#include "leni_folded.h"
#include "gather.h"
#include "leni_training.h"
#include "leni_statistics.h"
#include "leni_weight_gradient.h"
#include "leni_input_gradient.h"
#include "reborn_training.h"
#include "winograd.h"
#include "reborn_convolution.h"
#include "reborn_few.h"
}  // namespace leni::generic

namespace leni {
const Kernels generic_kernels{
    &generic::folded,          &generic::statistics, &generic::weight_gradient, &generic::input_gradient,
    &generic::branch_gradient, &generic::deconvolve, &generic::deconv_gradient, &generic::few_deconvolve,
    &generic::few_deconv_gradient};
}  // namespace leni
