// AdaReLU and FullyParametricReLU of vectors of elements, and the choice of one.
#pragma once

#include "kernels/kernel.h"
#include "kernels/scalar.h"
#include "kernels/simd.h"
#include "kernels/target.h"
#include "pointwise/problem.h"

LENI_KERNELS_BEGIN
namespace leni_kernels::pointwise::inline LENI_KERNELS_TARGET {

// x if x > θ, else θ: the gradient goes where the value came from. A NaN is not below θ.
struct AdaReluVectors {
  static constexpr int parameters = 1;

  template <class V>
  static V forward(V x, const V* threshold) {
    return {x.v <= threshold->v ? threshold->v : x.v};
  }

  template <class V>
  static V backward(V grad, V x, const V* threshold, V* sums) {
    const auto below = x.v <= threshold->v;
    sums[0] = V::add(sums[0], {below ? grad.v : V::zero().v});
    return {below ? V::zero().v : grad.v};
  }
};

// α·x if x > 0, else β·x.
struct FullyParametricReluVectors {
  static constexpr int parameters = 2;

  template <class V>
  static V forward(V x, const V* slopes) {
    return {x.v * (x.v > V::zero().v ? slopes[0].v : slopes[1].v)};
  }

  template <class V>
  static V backward(V grad, V x, const V* slopes, V* sums) {
    const auto above = x.v > V::zero().v;
    const auto product = grad.v * x.v;
    sums[0] = V::add(sums[0], {above ? product : V::zero().v});
    sums[1] = V::add(sums[1], {above ? V::zero().v : product});
    return {grad.v * (above ? slopes[0].v : slopes[1].v)};
  }
};

template <class Body>
void for_function(const Problem& p, const Body& body) {
  for_scalar(p.scalar, [&](auto zero, auto) {
    if (p.function == Function::AdaRelu) return body(AdaReluVectors{}, zero);
    body(FullyParametricReluVectors{}, zero);
  });
}

}  // namespace leni_kernels::pointwise::inline LENI_KERNELS_TARGET
LENI_KERNELS_END
