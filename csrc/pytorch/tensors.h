// Tensors of the CPU as the operators make and read them: by plain calls, where PyTorch's dispatcher would look an
// operator up by its name each time, which takes longer than a kernel on a small activation.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstring>

#include "pytorch/stable.h"

namespace leni_kernels {

constexpr int64_t kMostDimensions = 64;  // as PyTorch has it

using Sizes = torch::headeronly::IntHeaderOnlyArrayRef;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Whether new memory is filled with NaN, so that an element that no kernel wrote fails a test: PyTorch's own setting
// does not reach these calls.
extern std::atomic<bool> fills_empty;

// A dense tensor.
inline Tensor empty_strided(Sizes sizes, Sizes strides, ScalarType type) {
  AtenTensorHandle tensor;
  TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(static_cast<int64_t>(sizes.size()), sizes.data(), strides.data(),
                                                  torch::stable::detail::to<int32_t>(torch::stable::detail::from(type)),
                                                  aoti_torch_device_type_cpu(), 0, &tensor));
  Tensor result(tensor);
  if (fills_empty && result.numel() > 0) {
    std::memset(result.mutable_data_ptr(), 0xff, result.numel() * result.element_size());
  }
  return result;
}

// A tensor that is dense with its dimensions in this order, order(0) outermost in memory.
template <class Order>
Tensor empty(Sizes sizes, const Order& order, ScalarType type) {
  const int64_t dimensions = static_cast<int64_t>(sizes.size());
  STD_TORCH_CHECK(dimensions <= kMostDimensions, "leni_kernels: a tensor of ", dimensions, " dimensions");
  int64_t strides[kMostDimensions], stride = 1;
  for (int64_t i = dimensions - 1; i >= 0; --i) {
    const int64_t d = order(i);
    strides[d] = stride;
    stride *= std::max<int64_t>(sizes[d], 1);
  }
  return empty_strided(sizes, Sizes(strides, dimensions), type);
}

inline Tensor empty(Sizes sizes, ScalarType type) {
  return empty(sizes, [](int64_t i) { return i; }, type);
}

template <class... Size>
Tensor empty(ScalarType type, Size... size) {
  const int64_t sizes[] = {size...};
  return empty(Sizes(sizes, sizeof...(Size)), type);
}

// An activation [N, C, *spatial], dense in NCHW's order or in that of channels-last.
inline Tensor empty(Sizes sizes, ScalarType type, bool channels_last) {
  const int64_t last = static_cast<int64_t>(sizes.size()) - 1;
  const auto channels_behind = [&](int64_t i) { return i == 0 ? 0 : i == last ? 1 : i + 1; };
  return channels_last ? empty(sizes, channels_behind, type) : empty(sizes, type);
}

inline Tensor as_type(const Tensor& tensor, ScalarType type) {
  return tensor.scalar_type() == type ? tensor : torch::stable::to(tensor, type);
}

inline Tensor gathered(const Tensor& tensor) {
  return tensor.is_contiguous() ? tensor : torch::stable::contiguous(tensor);
}

}  // namespace leni_kernels
