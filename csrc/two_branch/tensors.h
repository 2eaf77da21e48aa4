// PyTorch's tensors as the kernels of LENI and Reborn take them: checks of what the kernels rely on, views of
// activations, and parameters of any dtype and strides as arrays.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <optional>
#include <tuple>
#include <type_traits>
#include <vector>

#include "kernels/half.h"
#include "kernels/kernel.h"
#include "pytorch/checks.h"
#include "pytorch/stable.h"
#include "pytorch/tensors.h"
#include "two_branch/norms.h"
#include "two_branch/problem.h"

namespace leni_kernels::two_branch {

// ---- checks ----------------------------------------------------------------------------------------------------

inline Scalar scalar_of(const Tensor& x) { return leni_kernels::scalar_of("leni_kernels", x); }

inline void check_vector(const char* op, const Tensor& tensor, const char* name, const Tensor& x, int64_t size) {
  check_parameter(op, tensor, name, x);
  STD_TORCH_CHECK(tensor.dim() == 1 && tensor.size(0) == size, op, ": ", name, " must be [", size, "]");
}

inline void check_weight(const char* op, const Tensor& weight, const Tensor& x) {
  check_parameter(op, weight, "weight", x);
  const int64_t channels = x.size(1);
  STD_TORCH_CHECK(weight.dim() == 2 && weight.size(0) == channels && weight.size(1) == 2 * channels, op,
                  ": weight must be [", channels, ", ", 2 * channels, "]");
}

// Returns whether it is channels-last.
inline bool check_activation(const char* op, const Tensor& x, const char* name) {
  check_cpu(op, x, name);
  STD_TORCH_CHECK(x.dim() == 4, op, ": ", name, " must be [N, C, H, W], got ", x.dim(), " dimensions");
  return reads_channels_last(op, x, name);
}

inline void check_gradient(const char* op, const Tensor& grad, const Tensor& x) {
  leni_kernels::check_gradient(op, grad, x, x.sizes(), "x's");
}

// ---- allocation ------------------------------------------------------------------------------------------------

// An activation of x's sizes.
inline Tensor empty_as(const Tensor& x, bool channels_last, ScalarType type) {
  return empty(x.sizes(), type, channels_last);
}
inline Tensor empty_as(const Tensor& x, bool channels_last) { return empty_as(x, channels_last, x.scalar_type()); }

// A contiguous tensor of a parameter's shape and dtype.
inline Tensor new_like(const Tensor& parameter) { return empty(parameter.sizes(), parameter.scalar_type()); }

inline Tensor nothing(const Tensor& like) { return empty(like.scalar_type(), int64_t{0}); }

// An operator's results: each a tensor of its own, empty where there is none.
template <size_t N>
using Results = std::array<std::optional<Tensor>, N>;

template <size_t N>
auto as_tuple(Results<N>& results, const Tensor& x) {
  for (std::optional<Tensor>& result : results) {
    if (!result.has_value()) result = nothing(x);
  }
  return std::apply([](auto&... each) { return std::tuple(*each...); }, results);
}

// ---- elements of any dtype and strides -------------------------------------------------------------------------

// body(a value of the type that a tensor has)
template <class Body>
void with_type(ScalarType type, const Body& body) {
  switch (type) {
    case ScalarType::Float: return body(float{});
    case ScalarType::Double: return body(double{});
    case ScalarType::BFloat16: return body(BFloat16{});
    case ScalarType::Half: return body(Float16{});
    default: STD_TORCH_CHECK(false, "leni_kernels: tensors must be float32, float64, bfloat16 or float16");
  }
}

template <class To, class From>
To converted(From value) {
  if constexpr (std::is_same_v<To, From>) {
    return value;
  } else if constexpr (Half<From>) {
    return converted<To>(to_float(value));
  } else if constexpr (Half<To>) {
    return to_half<To>(static_cast<float>(value));
  } else {
    return static_cast<To>(value);
  }
}

// body(place in order of the first, its offset, how many, their stride) for runs of a tensor's elements, of up to four
// dimensions: one run where it is contiguous. A stride of 1 is one at compile time, for loops in vectors.
template <class Body>
void for_each_run(const Tensor& tensor, const Body& body) {
  using One = std::integral_constant<int64_t, 1>;
  if (tensor.is_contiguous()) return body(0, 0, tensor.numel(), One());
  int64_t sizes[4] = {1, 1, 1, 1}, strides[4] = {0, 0, 0, 0};
  const int64_t missing = 4 - tensor.dim();
  for (int64_t d = missing; d < 4; ++d) {
    sizes[d] = tensor.size(d - missing);
    strides[d] = tensor.stride(d - missing);
  }
  int64_t place = 0;
  for (int64_t i = 0; i < sizes[0]; ++i) {
    for (int64_t j = 0; j < sizes[1]; ++j) {
      for (int64_t k = 0; k < sizes[2]; ++k, place += sizes[3]) {
        body(place, i * strides[0] + j * strides[1] + k * strides[2], sizes[3], strides[3]);
      }
    }
  }
}

// A tensor's elements in order.
template <class To>
void gather(const Tensor& tensor, To* to) {
  with_type(tensor.scalar_type(), [&](auto type) {
    using From = decltype(type);
    const auto* from = static_cast<const From*>(tensor.const_data_ptr());
    for_each_run(tensor, [&](int64_t place, int64_t offset, int64_t count, auto stride) {
      for (int64_t i = 0; i < count; ++i) to[place + i] = converted<To>(from[offset + i * stride]);
    });
  });
}

// Elements in order into a tensor.
template <class From>
void scatter(const From* from, const Tensor& tensor) {
  with_type(tensor.scalar_type(), [&](auto type) {
    using To = decltype(type);
    auto* to = static_cast<To*>(tensor.mutable_data_ptr());
    for_each_run(tensor, [&](int64_t place, int64_t offset, int64_t count, auto stride) {
      for (int64_t i = 0; i < count; ++i) to[offset + i * stride] = converted<To>(from[place + i]);
    });
  });
}

// A tensor's elements into another of its sizes.
inline void copy(const Tensor& from, const Tensor& to) {
  if (from.is_contiguous()) {
    with_type(from.scalar_type(),
              [&](auto type) { scatter(static_cast<const decltype(type)*>(from.const_data_ptr()), to); });
  } else {
    Vector values(from.numel());
    gather(from, values.data());
    scatter(values.data(), to);
  }
}

// A parameter in double; where there is none, so many of its default.
inline Vector vector_of(const std::optional<Tensor>& parameter, int64_t size, double absent) {
  Vector result(size, absent);
  if (parameter.has_value()) {
    STD_TORCH_CHECK(parameter->is_cpu() && parameter->dim() == 1 && parameter->size(0) == size,
                    "leni_kernels: a parameter must be [", size, "], on the CPU");
    gather(*parameter, result.data());
  }
  return result;
}

// A new tensor like a parameter, of these values; an empty one where there is no parameter.
inline Tensor like(const std::optional<Tensor>& parameter, const Vector& values, const Tensor& x) {
  if (!parameter.has_value()) return nothing(x);
  const Tensor result = new_like(*parameter);
  scatter(values.data(), result);
  return result;
}

// From results[at] on: the gradients of P, of c, which has P's dtype, and of the statistics.
template <size_t N, class Scale>
void store_gradients(Results<N>& results, size_t at, const Tensor& compress_weight, const Scale* of_compress,
                     const std::vector<Scale>& of_bias, const Vector& of_statistics) {
  results[at] = new_like(compress_weight);
  scatter(of_compress, *results[at]);
  results[at + 1] = empty(compress_weight.scalar_type(), static_cast<int64_t>(of_bias.size()));
  scatter(of_bias.data(), *results[at + 1]);
  results[at + 2] = empty(ScalarType::Double, static_cast<int64_t>(of_statistics.size()));
  scatter(of_statistics.data(), *results[at + 2]);
}

// A matrix, or taps, of the kernels' type: in place where it is so, else in a slot of scratch memory.
template <class Scale>
const Scale* array_of(const Tensor& parameter, const Host& host, int slot) {
  constexpr auto type = std::is_same_v<Scale, double> ? ScalarType::Double : ScalarType::Float;
  if (parameter.scalar_type() == type && parameter.is_contiguous()) {
    return static_cast<const Scale*>(parameter.const_data_ptr());
  }
  auto* array = static_cast<Scale*>(host.scratch(slot, parameter.numel() * sizeof(Scale)));
  gather(parameter, array);
  return array;
}

// A small activation in another dtype.
inline Tensor in_type(const Tensor& x, ScalarType type, bool channels_last) {
  if (x.scalar_type() == type) return x;
  const Tensor result = empty_as(x, channels_last, type);
  copy(x, result);
  return result;
}

// ---- activations -----------------------------------------------------------------------------------------------

// The stride of a dimension of size 1 may be any number: here it is 1, or a column's one that joins rows.
inline Activation activation(const Tensor& x, bool channels_last) {
  const auto stride = [&](int dimension, int64_t of_one) {
    return x.size(dimension) == 1 ? of_one : x.stride(dimension);
  };
  const int64_t row = stride(2, 1), column = stride(3, channels_last ? row : 1);
  return {x.const_data_ptr(), x.size(0),    x.size(1), x.size(2), x.size(3),
          stride(0, 1),       stride(1, 1), row,       column,    channels_last};
}

// ---- norms -----------------------------------------------------------------------------------------------------

constexpr int kCompressSlot = kCallerSlot;

// P [C, 2C] as the norms' algebra takes it, for the duration of a call.
template <class Scale>
const Scale* compress_of(const char* op, const Tensor& weight, int64_t channels, const Host& host) {
  STD_TORCH_CHECK(weight.is_cpu() && weight.dim() == 4 && weight.size(0) == channels &&
                      weight.size(1) == 2 * channels && weight.size(2) == 1 && weight.size(3) == 1,
                  op, ": compress_weight must be [", channels, ", ", 2 * channels, ", 1, 1]");
  return array_of<Scale>(weight, host, kCompressSlot);
}

inline const double* check_packed(const char* op, const Tensor& packed, int64_t size) {
  STD_TORCH_CHECK(packed.is_cpu() && packed.scalar_type() == ScalarType::Double && packed.is_contiguous() &&
                      packed.dim() == 1 && packed.size(0) == size,
                  op, ": statistics must be [", size, "], contiguous and of float64");
  return static_cast<const double*>(packed.const_data_ptr());
}

// Of ``features``: the mean and the biased variance of each, and the count of values that they come from.
inline const double* check_statistics(const char* op, const Tensor& statistics, int64_t features) {
  return check_packed(op, statistics, 2 * features + 1);
}

template <class Scale>
Tensor packed_statistics(const std::vector<Scale>& moments, int64_t count) {
  Tensor result = empty(ScalarType::Double, static_cast<int64_t>(moments.size()) + 1);
  auto* packed = static_cast<double*>(result.mutable_data_ptr());
  std::copy(moments.begin(), moments.end(), packed);
  packed[moments.size()] = static_cast<double>(count);
  return result;
}

// body(a value of the kernels' type for parameters, sums and products of x)
template <class Body>
auto with_scale(const Tensor& x, const Body& body) {
  return x.scalar_type() == ScalarType::Double ? body(double{}) : body(float{});
}

// Moves running statistics towards a batch's, as nn.BatchNorm2d does in training: with the momentum, or without one
// as the average over all batches. A norm that keeps none has none of the tensors.
inline void update_running(const std::optional<Tensor>& mean, const std::optional<Tensor>& variance,
                           const std::optional<Tensor>& batches, std::optional<double> momentum,
                           const Vector& batch_mean, const Vector& batch_variance, double count) {
  double share = momentum.value_or(0);
  if (batches.has_value()) {
    STD_TORCH_CHECK(batches->is_cpu() && batches->scalar_type() == ScalarType::Long && batches->numel() == 1,
                    "leni_kernels: num_batches_tracked must be one int64, on the CPU");
    const int64_t seen = ++*static_cast<int64_t*>(batches->mutable_data_ptr());
    if (!momentum.has_value()) share = 1.0 / static_cast<double>(seen);
  }
  if (!mean.has_value() || !variance.has_value()) return;
  const int64_t size = batch_mean.size();
  Vector running_mean = vector_of(mean, size, 0), running_variance = vector_of(variance, size, 1);
  for (int64_t c = 0; c < size; ++c) {
    running_mean[c] = (1 - share) * running_mean[c] + share * batch_mean[c];
    running_variance[c] = (1 - share) * running_variance[c] + share * (batch_variance[c] * (count / (count - 1)));
  }
  scatter(running_mean.data(), *mean);
  scatter(running_variance.data(), *variance);
}

// Of a channel, up to which a batch's norms leave so little of a gradient that float's rounding drowns it: it is
// computed in double.
constexpr int64_t kFewValues = 16;

inline int64_t values_of(const Tensor& x) { return x.numel() / std::max<int64_t>(x.size(1), 1); }

inline ScalarType training_type(const Tensor& x) {
  return values_of(x) > kFewValues ? x.scalar_type() : ScalarType::Double;
}

}  // namespace leni_kernels::two_branch
