// What the operators check of their tensors because the kernels rely on it. ``op`` is the operator that is called.
#pragma once

#include <algorithm>
#include <cstdint>
#include <string>

#include "kernels/kernel.h"
#include "pytorch/stable.h"
#include "pytorch/tensors.h"

namespace leni_kernels {

inline Scalar scalar_of(const char* op, const Tensor& x) {
  switch (x.scalar_type()) {
    case ScalarType::Float: return Scalar::Float32;
    case ScalarType::Double: return Scalar::Float64;
    case ScalarType::BFloat16: return Scalar::BFloat16;
    case ScalarType::Half: return Scalar::Float16;
    default: STD_TORCH_CHECK(false, op, ": x must be float32, float64, bfloat16 or float16");
  }
}

// The type in which kernels take the parameters of x and sum.
inline ScalarType wide(const Tensor& x) {
  return x.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

inline void check_cpu(const char* op, const Tensor& tensor, const char* name) {
  STD_TORCH_CHECK(tensor.is_cpu(), op, ": ", name, " must be on the CPU");
}

// A parameter of the type that kernels take.
inline void check_parameter(const char* op, const Tensor& tensor, const char* name, const Tensor& x) {
  check_cpu(op, tensor, name);
  STD_TORCH_CHECK(tensor.scalar_type() == wide(x), op, ": ", name, " must be float64 for a float64 x, else float32");
}

// One of that type or of x's own, from which it is to be converted.
inline void check_convertible(const char* op, const Tensor& tensor, const char* name, const Tensor& x) {
  check_cpu(op, tensor, name);
  STD_TORCH_CHECK(tensor.scalar_type() == x.scalar_type() || tensor.scalar_type() == wide(x), op, ": ", name,
                  " must be of x's dtype, or of float32 for an x of half precision");
}

// Whether x [N, C, *spatial] is read in place with channels (true) or columns (false) at stride 1, as
// ``is_channels_last`` in leni_kernels/common/layout.py has it; the stride of a dimension of size 1 says nothing.
inline bool reads_channels_last(const char* op, const Tensor& x, const char* name) {
  const int64_t last = x.dim() - 1;
  if (x.stride(last) == 1) return false;
  if (x.stride(1) == 1) return true;
  if (x.size(last) == 1) return false;
  if (x.size(1) == 1) return true;
  std::string strides;
  for (const int64_t stride : x.strides()) strides += (strides.empty() ? "" : ", ") + std::to_string(stride);
  STD_TORCH_CHECK(false, op, ": ", name, " must have stride 1 along channels or columns, as ", name,
                  ".contiguous() has; its strides are [", strides, "]");
}

// That another activation can be read in place in x's layout.
inline void check_layout(const char* op, const Tensor& x, const char* name, bool channels_last) {
  const int64_t dimension = channels_last ? 1 : x.dim() - 1;
  STD_TORCH_CHECK(x.size(dimension) <= 1 || x.stride(dimension) == 1, op, ": ", name, " must have stride 1 along ",
                  channels_last ? "channels" : "columns", ", got ", x.stride(dimension));
}

inline bool has_sizes(const Tensor& tensor, Sizes sizes) {
  const Sizes own = tensor.sizes();
  return std::equal(own.begin(), own.end(), sizes.begin(), sizes.end());
}

// That grad is a gradient of y, which has these sizes; ``whose`` says so in words.
inline void check_gradient(const char* op, const Tensor& grad, const Tensor& x, Sizes sizes, const char* whose) {
  STD_TORCH_CHECK(grad.is_cpu() && grad.scalar_type() == x.scalar_type(), op,
                  ": grad must be on the CPU, of x's dtype");
  STD_TORCH_CHECK(has_sizes(grad, sizes), op, ": grad must have ", whose, " shape");
}

}  // namespace leni_kernels
