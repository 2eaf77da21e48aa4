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
}  // namespace leni::generic

namespace leni {
void folded_generic(const FoldedProblem& problem, const Host& host) { generic::folded(problem, host); }
}  // namespace leni
