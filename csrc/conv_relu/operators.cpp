// The operators leni_kernels::conv_relu*_cpp: check what the kernels rely on, allocate, choose the instruction set.
#include <cstdint>
#include <optional>
#include <tuple>
#include <vector>

#include "conv_relu/problem.h"
#include "kernels/kernel.h"
#include "pytorch/checks.h"
#include "pytorch/host.h"
#include "pytorch/stable.h"
#include "pytorch/tensors.h"

namespace leni_kernels::conv_relu {
namespace {

// The options of a convolution, one entry per spatial dimension, and two of ``pads``: before and after.
struct Options {
  const std::vector<int64_t>&stride, &pads, &dilation;
  int64_t groups;
};

void check_bias(const char* op, const std::optional<Tensor>& bias, const Tensor& x, int64_t channels) {
  if (!bias.has_value()) return;
  check_convertible(op, *bias, "bias", x);
  STD_TORCH_CHECK(bias->dim() == 1 && bias->size(0) == channels, op, ": bias must be [", channels, "]");
}

// Returns whether x is channels-last.
bool check_input(const char* op, const Tensor& x) {
  check_cpu(op, x, "x");
  STD_TORCH_CHECK(x.dim() >= 3 && x.dim() <= 5, op, ": x must be [N, C, W], [N, C, H, W] or [N, C, D, H, W]");
  for (int64_t i = 1; i < x.dim(); ++i) {
    STD_TORCH_CHECK(x.size(i) > 0, op, ": x must have at least one channel and one site in each dimension");
  }
  return reads_channels_last(op, x, "x");
}

void check_parameters(const char* op, const Tensor& x, const Tensor& weight, const Tensor& threshold,
                      const Options& options) {
  const size_t dimensions = x.dim() - 2;
  check_convertible(op, weight, "weight", x);
  check_convertible(op, threshold, "threshold", x);
  STD_TORCH_CHECK(options.stride.size() == dimensions && options.dilation.size() == dimensions &&
                      options.pads.size() == 2 * dimensions,
                  op, ": stride and dilation must have ", dimensions, " entries, pads twice as many");
  STD_TORCH_CHECK(options.groups > 0 && weight.dim() == x.dim() && weight.size(0) % options.groups == 0 &&
                      weight.size(1) * options.groups == x.size(1),
                  op, ": weight must be [O, C // groups, *kernel], groups dividing O");
  bool fits = threshold.dim() == x.dim() - 1 && threshold.size(0) == x.size(1);
  for (int64_t i = 1; fits && i < threshold.dim(); ++i) fits = threshold.size(i) == weight.size(i + 1);
  STD_TORCH_CHECK(fits, op, ": threshold must be [C, *kernel]");
}

// The stride of a dimension of size 1 may be any number: here it is 1, as that of a missing dimension.
Volume volume(const Tensor& tensor, bool channels_last) {
  const auto stride = [&](int64_t dimension) { return tensor.size(dimension) == 1 ? 1 : tensor.stride(dimension); };
  Volume result{tensor.const_data_ptr(),
                tensor.size(0),
                tensor.size(1),
                {1, 1, 1},
                stride(0),
                stride(1),
                {1, 1, 1},
                channels_last};
  const int64_t missing = 5 - tensor.dim();
  for (int64_t i = 2; i < tensor.dim(); ++i) {
    result.size[i - 2 + missing] = tensor.size(i);
    result.stride[i - 2 + missing] = stride(i);
  }
  return result;
}

// From one tap to the next of a weight [O, C/groups, *kernel], if the taps are as far apart all along the kernel.
std::optional<int64_t> stride_of_taps(const Tensor& weight) {
  std::optional<int64_t> innermost;
  int64_t next = 1;  // the stride that the next outer dimension must have
  for (int64_t d = weight.dim() - 1; d >= 2; --d) {
    if (weight.size(d) == 1) continue;
    if (!innermost.has_value()) {
      innermost = weight.stride(d);
    } else if (weight.stride(d) != next) {
      return std::nullopt;
    }
    next = weight.stride(d) * weight.size(d);
  }
  return innermost.value_or(1);
}

// A convolution and what its pointers point to.
struct Convolution {
  ConvRelu problem;
  std::vector<Tap> taps;
  Tensor weight, threshold;
  std::vector<int64_t> out_shape;

  Convolution(const char* op, const Tensor& x, const Tensor& w, const Tensor& t, const Options& options) {
    const bool channels_last = check_input(op, x);
    check_parameters(op, x, w, t, options);
    const int64_t missing = 5 - x.dim();
    int64_t kernel[3] = {1, 1, 1}, dilation[3] = {1, 1, 1}, before[3] = {0, 0, 0};
    problem = {scalar_of(op, x), volume(x, channels_last), nullptr, 0, {1, 1, 1}, options.groups, w.size(0), {1, 1, 1}};
    out_shape = {x.size(0), w.size(0)};
    for (int64_t d = missing; d < 3; ++d) {
      const int64_t i = d - missing;
      kernel[d] = w.size(i + 2);
      dilation[d] = options.dilation[i];
      before[d] = options.pads[2 * i];
      problem.stride[d] = options.stride[i];
      const int64_t padded = problem.x.size[d] + before[d] + options.pads[2 * i + 1];
      const int64_t extent = dilation[d] * (kernel[d] - 1) + 1;
      STD_TORCH_CHECK(kernel[d] > 0 && dilation[d] > 0 && problem.stride[d] > 0 && padded >= extent, op,
                      ": the dilated kernel must fit into the padded x");
      problem.out_size[d] = (padded - extent) / problem.stride[d] + 1;
      out_shape.push_back(problem.out_size[d]);
    }
    for (int64_t i = 0; i < kernel[0]; ++i) {
      for (int64_t j = 0; j < kernel[1]; ++j) {
        for (int64_t k = 0; k < kernel[2]; ++k) {
          taps.push_back({{i * dilation[0] - before[0], j * dilation[1] - before[1], k * dilation[2] - before[2]}});
        }
      }
    }
    set_parameters(as_type(w, wide(x)), as_type(t, wide(x)));
  }

  // A list of taps at stride 1 on [N, C, H, W], with an output for each site of x.
  Convolution(const char* op, const Tensor& x, const Tensor& w, const Tensor& t, const std::vector<int64_t>& offsets,
              const std::vector<int64_t>& below) {
    const bool channels_last = check_input(op, x);
    check_convertible(op, w, "weight", x);
    check_convertible(op, t, "threshold", x);
    const int64_t count = static_cast<int64_t>(below.size());
    STD_TORCH_CHECK(x.dim() == 4 && w.dim() == 3 && w.size(1) == x.size(1) && w.size(2) == count, op,
                    ": x must be [N, C, H, W] and weight [O, C, T]");
    STD_TORCH_CHECK(t.dim() == 2 && t.size(0) == x.size(1) && t.size(1) == count, op, ": threshold must be [C, T]");
    STD_TORCH_CHECK(static_cast<int64_t>(offsets.size()) == 2 * count, op, ": a tap must have two offsets");
    problem = {scalar_of(op, x), volume(x, channels_last), nullptr, 0, {1, 1, 1}, 1,
               w.size(0),        {1, x.size(2), x.size(3)}};
    out_shape = {x.size(0), w.size(0), x.size(2), x.size(3)};
    for (int64_t i = 0; i < count; ++i) taps.push_back({{0, offsets[2 * i], offsets[2 * i + 1]}, below[i] != 0});
    set_parameters(as_type(w, wide(x)), as_type(t, wide(x)));
  }

  // weight [O, C/groups, *kernel] as [O, C/groups, T], threshold as [C, T].
  void set_parameters(const Tensor& w, const Tensor& t) {
    weight = w;
    std::optional<int64_t> tap_stride = stride_of_taps(weight);
    if (!tap_stride.has_value()) {
      weight = torch::stable::contiguous(weight);
      tap_stride = 1;
    }
    threshold = gathered(t);
    problem.taps = taps.data();
    problem.tap_count = static_cast<int64_t>(taps.size());
    problem.weight = weight.const_data_ptr();
    // Channels-last weights, too, are read in place. The stride of a dimension of size 1 may be any number.
    const int64_t inputs = weight.size(1), taps_and_inputs = problem.tap_count * inputs;
    problem.weight_stride[0] = weight.size(0) == 1 ? taps_and_inputs : weight.stride(0);
    problem.weight_stride[1] = inputs == 1 ? problem.tap_count : weight.stride(1);
    problem.weight_stride[2] = *tap_stride;
    problem.threshold = threshold.const_data_ptr();
  }
};

// A parameter's gradient, to be computed in x's wide type; empty if it is not needed.
Tensor empty_gradient(const Tensor& parameter, const Tensor& x, bool needed) {
  return needed ? empty(parameter.sizes(), wide(x)) : empty({0}, wide(x));
}

Tensor forward(const Convolution& convolution, const Tensor& x, const std::optional<Tensor>& bias) {
  Tensor y = empty(convolution.out_shape, x.scalar_type(), convolution.problem.x.channels_last);
  if (y.numel() == 0) return y;
  const Tensor b = bias.has_value() ? gathered(as_type(*bias, wide(x))) : Tensor();
  chosen(tables, &Kernels::forward, convolution.problem.scalar)(
      {convolution.problem, bias.has_value() ? b.const_data_ptr() : nullptr, y.mutable_data_ptr()}, Call());
  return y;
}

Tensor conv_relu(const Tensor& x, const Tensor& weight, const Tensor& threshold, std::optional<Tensor> bias,
                 std::vector<int64_t> stride, std::vector<int64_t> pads, std::vector<int64_t> dilation,
                 int64_t groups) {
  constexpr const char* op = "conv_relu_cpp";
  const Convolution convolution(op, x, weight, threshold, {stride, pads, dilation, groups});
  check_bias(op, bias, x, weight.size(0));
  return forward(convolution, x, bias);
}

Tensor conv_relu_taps(const Tensor& x, const Tensor& weight, const Tensor& threshold, std::optional<Tensor> bias,
                      std::vector<int64_t> offsets, std::vector<int64_t> below) {
  constexpr const char* op = "conv_relu_taps_cpp";
  const Convolution convolution(op, x, weight, threshold, offsets, below);
  check_bias(op, bias, x, weight.size(0));
  return forward(convolution, x, bias);
}

ConvReluGradientProblem gradient_problem(const char* op, const Convolution& convolution, const Tensor& grad,
                                         const Tensor& x) {
  check_gradient(op, grad, x, convolution.out_shape, "y's");
  return {convolution.problem, volume(grad, convolution.problem.x.channels_last)};
}

// The gradients of x, weight, threshold and bias, which has weight's dtype; one that is not needed is empty.
std::tuple<Tensor, Tensor, Tensor, Tensor> conv_relu_backward(const Tensor& grad, const Tensor& x, const Tensor& weight,
                                                              const Tensor& threshold, std::vector<int64_t> stride,
                                                              std::vector<int64_t> pads, std::vector<int64_t> dilation,
                                                              int64_t groups, bool needs_x, bool needs_weight,
                                                              bool needs_threshold, bool needs_bias) {
  constexpr const char* op = "conv_relu_backward_cpp";
  const Convolution convolution(op, x, weight, threshold, {stride, pads, dilation, groups});
  ConvReluGradientProblem problem = gradient_problem(op, convolution, grad, x);
  const std::vector<int64_t> shape(x.sizes().begin(), x.sizes().end());
  const bool channels_last = convolution.problem.x.channels_last;
  Tensor dx = needs_x ? empty(shape, x.scalar_type(), channels_last) : empty({0}, x.scalar_type());
  Tensor dweight = empty_gradient(weight, x, needs_weight);
  Tensor dthreshold = empty_gradient(threshold, x, needs_threshold);
  Tensor dbias = empty({needs_bias ? weight.size(0) : 0}, wide(x));
  if (grad.numel() == 0) {
    for (Tensor* gradient : {&dx, &dweight, &dthreshold, &dbias}) torch::stable::zero_(*gradient);
  } else {
    if (needs_x) problem.dx = dx.mutable_data_ptr();
    if (needs_weight) problem.dweight = dweight.mutable_data_ptr();
    if (needs_threshold) problem.dthreshold = dthreshold.mutable_data_ptr();
    if (needs_bias) problem.dbias = dbias.mutable_data_ptr();
    const Call host;
    const Scalar scalar = problem.scalar;
    if (needs_x || needs_threshold) chosen(tables, &Kernels::input_gradient, scalar)(problem, host);
    if (needs_weight || needs_bias) chosen(tables, &Kernels::weight_gradient, scalar)(problem, host);
  }
  const ScalarType type = weight.scalar_type();
  return {dx, as_type(dweight, type), as_type(dthreshold, threshold.scalar_type()), as_type(dbias, type)};
}

}  // namespace
}  // namespace leni_kernels::conv_relu

STABLE_TORCH_LIBRARY_FRAGMENT(leni_kernels, m) {
  m.def(
      "conv_relu_cpp(Tensor x, Tensor weight, Tensor threshold, Tensor? bias, int[] stride, int[] pads, "
      "int[] dilation, int groups) -> Tensor");
  m.def(
      "conv_relu_taps_cpp(Tensor x, Tensor weight, Tensor threshold, Tensor? bias, int[] offsets, int[] below) "
      "-> Tensor");
  m.def(
      "conv_relu_backward_cpp(Tensor grad, Tensor x, Tensor weight, Tensor threshold, int[] stride, int[] pads, "
      "int[] dilation, int groups, bool needs_x, bool needs_weight, bool needs_threshold, "
      "bool needs_bias) -> (Tensor, Tensor, Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(leni_kernels, CPU, m) {
  m.impl("conv_relu_cpp", TORCH_BOX(&leni_kernels::conv_relu::conv_relu));
  m.impl("conv_relu_taps_cpp", TORCH_BOX(&leni_kernels::conv_relu::conv_relu_taps));
  m.impl("conv_relu_backward_cpp", TORCH_BOX(&leni_kernels::conv_relu::conv_relu_backward));
}
