// The operators leni_kernels::leni_*_cpp: check what the kernels rely on, allocate, and choose the instruction set.
#include "leni.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <tuple>

#include "host.h"

namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

leni::Scalar scalar_of(const Tensor& x) {
  switch (x.scalar_type()) {
    case ScalarType::Float: return leni::Scalar::Float32;
    case ScalarType::Double: return leni::Scalar::Float64;
    case ScalarType::BFloat16: return leni::Scalar::BFloat16;
    default: STD_TORCH_CHECK(false, "leni_folded_cpp: x must be float32, float64 or bfloat16");
  }
}

void check_parameter(const char* op, const Tensor& tensor, const char* name, const Tensor& x) {
  const auto wanted = x.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
  STD_TORCH_CHECK(tensor.is_cpu(), op, ": ", name, " must be on the CPU");
  STD_TORCH_CHECK(tensor.scalar_type() == wanted, op, ": ", name, " must be float64 for a float64 x, else float32");
}

void check_vector(const char* op, const Tensor& tensor, const char* name, const Tensor& x, int64_t size) {
  check_parameter(op, tensor, name, x);
  STD_TORCH_CHECK(tensor.dim() == 1 && tensor.size(0) == size, op, ": ", name, " must be [", size, "]");
}

void check_weight(const char* op, const Tensor& weight, const Tensor& x) {
  check_parameter(op, weight, "weight", x);
  const int64_t channels = x.size(1);
  STD_TORCH_CHECK(weight.dim() == 2 && weight.size(0) == channels && weight.size(1) == 2 * channels, op,
                  ": weight must be [", channels, ", ", 2 * channels, "]");
}

// What every operator asks of x and taps.
void check_input(const char* op, const Tensor& x, const Tensor& taps, bool channels_last) {
  STD_TORCH_CHECK(x.is_cpu(), op, ": x must be on the CPU");
  STD_TORCH_CHECK(x.dim() == 4, op, ": x must be [N, C, H, W], got ", x.dim(), " dimensions");
  check_parameter(op, taps, "taps", x);
  STD_TORCH_CHECK(taps.dim() == 3 && taps.size(0) == x.size(1) && taps.size(1) == taps.size(2), op, ": taps must be [",
                  x.size(1), ", k, k]");
  const int64_t k = taps.size(1);
  STD_TORCH_CHECK(k == 3 || k == 5 || k == 7, op, ": k must be 3, 5 or 7, got ", k);
  const int dimension = channels_last ? 1 : 3;
  STD_TORCH_CHECK(x.size(dimension) <= 1 || x.stride(dimension) == 1, op, ": x must have stride 1 along ",
                  channels_last ? "channels" : "columns", ", got ", x.stride(dimension));
}

void check_gradient(const char* op, const Tensor& grad, const Tensor& x) {
  STD_TORCH_CHECK(grad.is_cpu() && grad.scalar_type() == x.scalar_type(), op,
                  ": grad must be on the CPU, of x's dtype");
  bool same = grad.dim() == 4;
  for (int i = 0; same && i < 4; ++i) same = grad.size(i) == x.size(i);
  STD_TORCH_CHECK(same, op, ": grad must have x's shape");
}

Tensor empty_as(const Tensor& x, bool channels_last) {
  const auto format =
      channels_last ? torch::headeronly::MemoryFormat::ChannelsLast : torch::headeronly::MemoryFormat::Contiguous;
  return torch::stable::empty(x.sizes(), x.scalar_type(), std::nullopt, x.device(), std::nullopt, format);
}

// Parameters are small; a strided one, as a slice of a larger tensor is, is gathered.
Tensor gathered(const Tensor& parameter) { return torch::stable::contiguous(parameter); }

leni::Activation activation(const Tensor& x, bool channels_last) {
  return {x.const_data_ptr(), x.size(0),   x.size(1),   x.size(2),   x.size(3),
          x.stride(0),        x.stride(1), x.stride(2), x.stride(3), channels_last};
}

const leni::Kernels& kernels() {
  switch (leni::current_isa()) {
#if defined(__x86_64__)
    case leni::Isa::Amx:
    case leni::Isa::Avx512Bf16:
    case leni::Isa::Avx512: return leni::avx512_kernels;
    case leni::Isa::Avx2: return leni::avx2_kernels;
#endif
    default: return leni::generic_kernels;
  }
}

void run(const leni::FoldedProblem& problem) {
  const leni::Host host = leni::current_host();
#if defined(__x86_64__)
  if (problem.scalar == leni::Scalar::BFloat16) {
    if (leni::current_isa() == leni::Isa::Amx) return leni::folded_amx(problem, host);
    if (leni::current_isa() == leni::Isa::Avx512Bf16) return leni::folded_avx512_bf16(problem, host);
  }
#endif
  kernels().folded(problem, host);
}

Tensor leni_folded(const Tensor& x, const Tensor& taps, const Tensor& weight, const Tensor& bias, bool channels_last) {
  constexpr const char* op = "leni_folded_cpp";
  check_input(op, x, taps, channels_last);
  check_weight(op, weight, x);
  check_vector(op, bias, "bias", x, x.size(1));
  const leni::Scalar scalar = scalar_of(x);
  Tensor y = empty_as(x, channels_last);
  if (y.numel() == 0) return y;
  const Tensor t = gathered(taps), w = gathered(weight), b = gathered(bias);
  run({scalar, activation(x, channels_last), y.mutable_data_ptr(), t.const_data_ptr(), w.const_data_ptr(),
       b.const_data_ptr(), taps.size(1)});
  return y;
}

std::tuple<Tensor, Tensor> leni_statistics(const Tensor& x, const Tensor& taps, bool channels_last) {
  constexpr const char* op = "leni_statistics_cpp";
  check_input(op, x, taps, channels_last);
  const leni::Scalar scalar = scalar_of(x);
  const int64_t features = 2 * x.size(1);
  Tensor mean = torch::stable::new_empty(taps, {features}), variance = torch::stable::new_empty(taps, {features});
  if (x.numel() == 0) return {torch::stable::zero_(mean), torch::stable::zero_(variance)};
  const Tensor t = gathered(taps);
  kernels().statistics({scalar, activation(x, channels_last), t.const_data_ptr(), mean.mutable_data_ptr(),
                        variance.mutable_data_ptr(), taps.size(1)},
                       leni::current_host());
  return {mean, variance};
}

std::tuple<Tensor, Tensor> leni_weight_gradient(const Tensor& grad, const Tensor& x, const Tensor& taps,
                                                bool channels_last, std::optional<Tensor> mean) {
  constexpr const char* op = "leni_weight_gradient_cpp";
  check_input(op, x, taps, channels_last);
  check_gradient(op, grad, x);
  const int64_t channels = x.size(1);
  Tensor weight = torch::stable::new_empty(taps, {channels, 2 * channels});
  Tensor bias = torch::stable::new_empty(taps, {channels});
  if (x.numel() == 0) return {torch::stable::zero_(weight), torch::stable::zero_(bias)};
  const Tensor t = gathered(taps);
  leni::GradientProblem problem{scalar_of(x), activation(x, channels_last), activation(grad, channels_last),
                                t.const_data_ptr()};
  Tensor m;
  if (mean.has_value()) {
    check_vector(op, *mean, "mean", x, 2 * channels);
    m = gathered(*mean);
    problem.mean = m.const_data_ptr();
  }
  problem.dweight = weight.mutable_data_ptr();
  problem.dbias = bias.mutable_data_ptr();
  problem.kernel_size = taps.size(1);
  kernels().weight_gradient(problem, leni::current_host());
  return {weight, bias};
}

std::tuple<Tensor, Tensor> leni_input_gradient(const Tensor& grad, const Tensor& x, const Tensor& taps,
                                               const Tensor& weight, std::optional<Tensor> constant,
                                               std::optional<Tensor> slope, bool channels_last) {
  constexpr const char* op = "leni_input_gradient_cpp";
  check_input(op, x, taps, channels_last);
  check_gradient(op, grad, x);
  check_weight(op, weight, x);
  STD_TORCH_CHECK(constant.has_value() == slope.has_value(), op, ": constant and slope go together");
  Tensor dx = empty_as(x, channels_last), dtaps = torch::stable::new_empty(taps, taps.sizes());
  if (x.numel() == 0) return {dx, torch::stable::zero_(dtaps)};
  const Tensor t = gathered(taps), w = gathered(weight);
  leni::GradientProblem problem{scalar_of(x), activation(x, channels_last), activation(grad, channels_last),
                                t.const_data_ptr(), w.const_data_ptr()};
  Tensor c, s;
  if (slope.has_value()) {
    check_vector(op, *constant, "constant", x, 2 * x.size(1));
    check_vector(op, *slope, "slope", x, 2 * x.size(1));
    c = gathered(*constant);
    s = gathered(*slope);
    problem.constant = c.const_data_ptr();
    problem.slope = s.const_data_ptr();
  }
  problem.dx = dx.mutable_data_ptr();
  problem.dtaps = dtaps.mutable_data_ptr();
  problem.kernel_size = taps.size(1);
  kernels().input_gradient(problem, leni::current_host());
  return {dx, dtaps};
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(leni_kernels, m) {
  m.def("leni_folded_cpp(Tensor x, Tensor taps, Tensor weight, Tensor bias, bool channels_last) -> Tensor");
  m.def("leni_statistics_cpp(Tensor x, Tensor taps, bool channels_last) -> (Tensor, Tensor)");
  m.def(
      "leni_weight_gradient_cpp(Tensor grad, Tensor x, Tensor taps, bool channels_last, Tensor? mean=None) "
      "-> (Tensor, Tensor)");
  m.def(
      "leni_input_gradient_cpp(Tensor grad, Tensor x, Tensor taps, Tensor weight, Tensor? constant, Tensor? slope, "
      "bool channels_last) -> (Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(leni_kernels, CPU, m) {
  m.impl("leni_folded_cpp", TORCH_BOX(&leni_folded));
  m.impl("leni_statistics_cpp", TORCH_BOX(&leni_statistics));
  m.impl("leni_weight_gradient_cpp", TORCH_BOX(&leni_weight_gradient));
  m.impl("leni_input_gradient_cpp", TORCH_BOX(&leni_input_gradient));
}
