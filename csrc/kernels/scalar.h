// The choice of types by what an activation has.
#pragma once

#include "kernels/half.h"
#include "kernels/kernel.h"
#include "kernels/target.h"

LENI_KERNELS_BEGIN
namespace leni_kernels::inline LENI_KERNELS_TARGET {

// body(a value of the activation's type, a value of the type that is computed in)
template <class Body>
void for_scalar(Scalar scalar, const Body& body) {
  switch (scalar) {
    case Scalar::Float32: return body(float(), float());
    case Scalar::Float64: return body(double(), double());
    case Scalar::BFloat16: return body(BFloat16(), float());
    case Scalar::Float16: return body(Float16(), float());
  }
}

}  // namespace leni_kernels::inline LENI_KERNELS_TARGET
LENI_KERNELS_END
