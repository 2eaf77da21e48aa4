// The operators leni_kernels::leni_*_cpp and reborn_*_cpp: check what the kernels rely on, allocate, and choose the
// instruction set.
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

void check_activation(const char* op, const Tensor& x, const char* name, bool channels_last) {
  STD_TORCH_CHECK(x.is_cpu(), op, ": ", name, " must be on the CPU");
  STD_TORCH_CHECK(x.dim() == 4, op, ": ", name, " must be [N, C, H, W], got ", x.dim(), " dimensions");
  const int dimension = channels_last ? 1 : 3;
  STD_TORCH_CHECK(x.size(dimension) <= 1 || x.stride(dimension) == 1, op, ": ", name, " must have stride 1 along ",
                  channels_last ? "channels" : "columns", ", got ", x.stride(dimension));
}

// What LENI's operators ask of x and taps.
void check_input(const char* op, const Tensor& x, const Tensor& taps, bool channels_last) {
  check_activation(op, x, "x", channels_last);
  check_parameter(op, taps, "taps", x);
  STD_TORCH_CHECK(taps.dim() == 3 && taps.size(0) == x.size(1) && taps.size(1) == taps.size(2), op, ": taps must be [",
                  x.size(1), ", k, k]");
  const int64_t k = taps.size(1);
  STD_TORCH_CHECK(k == 3 || k == 5 || k == 7, op, ": k must be 3, 5 or 7, got ", k);
}

bool same_shape(const Tensor& a, const Tensor& b) {
  bool same = a.dim() == b.dim();
  for (int i = 0; same && i < a.dim(); ++i) same = a.size(i) == b.size(i);
  return same;
}

void check_gradient(const char* op, const Tensor& grad, const Tensor& x) {
  STD_TORCH_CHECK(grad.is_cpu() && grad.scalar_type() == x.scalar_type(), op,
                  ": grad must be on the CPU, of x's dtype");
  STD_TORCH_CHECK(same_shape(grad, x), op, ": grad must have x's shape");
}

Tensor empty_as(const Tensor& x, bool channels_last) {
  const auto format =
      channels_last ? torch::headeronly::MemoryFormat::ChannelsLast : torch::headeronly::MemoryFormat::Contiguous;
  return torch::stable::empty(x.sizes(), x.scalar_type(), std::nullopt, x.device(), std::nullopt, format);
}

// Parameters are small; a strided one, as a slice of a larger tensor is, is gathered.
Tensor gathered(const Tensor& parameter) { return torch::stable::contiguous(parameter); }

// The stride of a dimension of size 1 may be any number: here it is 1, or a column's one that joins rows.
leni::Activation activation(const Tensor& x, bool channels_last) {
  const auto stride = [&](int dimension, int64_t of_one) {
    return x.size(dimension) == 1 ? of_one : x.stride(dimension);
  };
  const int64_t row = stride(2, 1), column = stride(3, channels_last ? row : 1);
  return {x.const_data_ptr(), x.size(0), x.size(1), x.size(2), x.size(3), stride(0, 1), stride(1, 1), row, column,
          channels_last};
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
  const leni::Call host;
#if defined(__x86_64__)
  if (problem.scalar == leni::Scalar::BFloat16) {
    if (leni::current_isa() == leni::Isa::Amx) return leni::folded_amx(problem, host);
    if (leni::current_isa() == leni::Isa::Avx512Bf16) return leni::folded_avx512_bf16(problem, host);
  }
#endif
  kernels().folded(problem, host);
}

// The first half of a mean [2C], or the second.
const void* half_of(const Tensor& mean, const Tensor& x, int half) {
  const int64_t bytes = x.scalar_type() == ScalarType::Double ? sizeof(double) : sizeof(float);
  return static_cast<const char*>(mean.const_data_ptr()) + half * x.size(1) * bytes;
}

Tensor leni_folded(const Tensor& x, const Tensor& taps, const Tensor& weight, const Tensor& bias, bool channels_last,
                   std::optional<Tensor> mean) {
  constexpr const char* op = "leni_folded_cpp";
  check_input(op, x, taps, channels_last);
  check_weight(op, weight, x);
  check_vector(op, bias, "bias", x, x.size(1));
  const leni::Scalar scalar = scalar_of(x);
  Tensor y = empty_as(x, channels_last);
  if (y.numel() == 0) return y;
  const Tensor t = gathered(taps), w = gathered(weight), b = gathered(bias);
  leni::FoldedProblem problem{scalar,
                              activation(x, channels_last),
                              y.mutable_data_ptr(),
                              t.const_data_ptr(),
                              w.const_data_ptr(),
                              b.const_data_ptr(),
                              taps.size(1)};
  Tensor m;
  if (mean.has_value()) {
    check_vector(op, *mean, "mean", x, 2 * x.size(1));
    m = gathered(*mean);
    problem.positive_mean = half_of(m, x, 0);
    problem.negative_mean = half_of(m, x, 1);
  }
  run(problem);
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
                       leni::Call());
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
  kernels().weight_gradient(problem, leni::Call());
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
  kernels().input_gradient(problem, leni::Call());
  return {dx, dtaps};
}

// ---- Reborn's tail: what follows the deconvolution that makes z -------------------------------------------------

// What every operator of the tail asks of x and z.
void check_branches(const char* op, const Tensor& x, const Tensor& z, bool channels_last, const char* name = "z") {
  check_activation(op, x, "x", channels_last);
  check_activation(op, z, name, channels_last);
  STD_TORCH_CHECK(z.scalar_type() == x.scalar_type() && same_shape(z, x), op, ": ", name,
                  " must have x's dtype and shape");
}

Tensor empty_parameter(const Tensor& x, std::initializer_list<int64_t> sizes) {
  const auto dtype = x.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
  return torch::stable::empty(sizes, dtype, std::nullopt, x.device());
}

Tensor reborn_tail(const Tensor& x, const Tensor& z, const Tensor& weight, const Tensor& bias, bool channels_last,
                   std::optional<Tensor> mean) {
  constexpr const char* op = "reborn_tail_cpp";
  check_branches(op, x, z, channels_last);
  check_weight(op, weight, x);
  check_vector(op, bias, "bias", x, x.size(1));
  const leni::Scalar scalar = scalar_of(x);
  Tensor y = empty_as(x, channels_last);
  if (y.numel() == 0) return y;
  const Tensor w = gathered(weight), b = gathered(bias);
  const leni::Activation negative = activation(z, channels_last);
  leni::FoldedProblem problem{scalar,
                              activation(x, channels_last),
                              y.mutable_data_ptr(),
                              nullptr,
                              w.const_data_ptr(),
                              b.const_data_ptr(),
                              0,
                              &negative};
  Tensor m;
  if (mean.has_value()) {
    check_vector(op, *mean, "mean", x, x.size(1));
    m = gathered(*mean);
    problem.negative_mean = m.const_data_ptr();
  }
  run(problem);
  return y;
}

std::tuple<Tensor, Tensor> reborn_statistics(const Tensor& z, bool channels_last) {
  check_activation("reborn_statistics_cpp", z, "z", channels_last);
  const leni::Scalar scalar = scalar_of(z);
  Tensor mean = empty_parameter(z, {z.size(1)}), variance = empty_parameter(z, {z.size(1)});
  if (z.numel() == 0) return {torch::stable::zero_(mean), torch::stable::zero_(variance)};
  kernels().statistics(
      {scalar, activation(z, channels_last), nullptr, mean.mutable_data_ptr(), variance.mutable_data_ptr(), 0},
      leni::Call());
  return {mean, variance};
}

std::tuple<Tensor, Tensor> reborn_weight_gradient(const Tensor& grad, const Tensor& x, const Tensor& z,
                                                  const Tensor& mean, bool channels_last) {
  constexpr const char* op = "reborn_weight_gradient_cpp";
  check_branches(op, x, z, channels_last);
  check_gradient(op, grad, x);
  const int64_t channels = x.size(1);
  check_vector(op, mean, "mean", x, 2 * channels);
  Tensor weight = empty_parameter(x, {channels, 2 * channels}), bias = empty_parameter(x, {channels});
  if (x.numel() == 0) return {torch::stable::zero_(weight), torch::stable::zero_(bias)};
  const Tensor m = gathered(mean);
  const leni::Activation negative = activation(z, channels_last);
  leni::GradientProblem problem{scalar_of(x), activation(x, channels_last), activation(grad, channels_last)};
  problem.z = &negative;
  problem.mean = m.const_data_ptr();
  problem.dweight = weight.mutable_data_ptr();
  problem.dbias = bias.mutable_data_ptr();
  kernels().weight_gradient(problem, leni::Call());
  return {weight, bias};
}

Tensor reborn_negative_gradient(const Tensor& grad, const Tensor& z, const Tensor& weight,
                                std::optional<Tensor> constant, std::optional<Tensor> slope, bool channels_last) {
  constexpr const char* op = "reborn_negative_gradient_cpp";
  check_activation(op, z, "z", channels_last);
  check_gradient(op, grad, z);
  check_weight(op, weight, z);
  STD_TORCH_CHECK(constant.has_value() == slope.has_value(), op, ": constant and slope go together");
  Tensor dz = empty_as(z, channels_last);
  if (z.numel() == 0) return dz;
  const Tensor w = gathered(weight);
  leni::BranchGradientProblem problem{scalar_of(z), activation(z, channels_last), activation(grad, channels_last),
                                      w.const_data_ptr()};
  Tensor c, s;
  if (slope.has_value()) {
    check_vector(op, *constant, "constant", z, z.size(1));
    check_vector(op, *slope, "slope", z, z.size(1));
    c = gathered(*constant);
    s = gathered(*slope);
    problem.constant = c.const_data_ptr();
    problem.slope = s.const_data_ptr();
  }
  problem.out = dz.mutable_data_ptr();
  kernels().branch_gradient(problem, leni::Call());
  return dz;
}

Tensor reborn_input_gradient(const Tensor& grad, const Tensor& x, const Tensor& negative, const Tensor& weight,
                             bool channels_last) {
  constexpr const char* op = "reborn_input_gradient_cpp";
  check_branches(op, x, negative, channels_last, "negative");
  check_gradient(op, grad, x);
  check_weight(op, weight, x);
  Tensor dx = empty_as(x, channels_last);
  if (x.numel() == 0) return dx;
  const Tensor w = gathered(weight);
  const leni::Activation joined = activation(negative, channels_last);
  leni::BranchGradientProblem problem{scalar_of(x), activation(x, channels_last), activation(grad, channels_last),
                                      w.const_data_ptr(), &joined};
  problem.out = dx.mutable_data_ptr();
  kernels().branch_gradient(problem, leni::Call());
  return dx;
}

// ---- Reborn's deconvolution, where it is dense, 3×3 and in float -----------------------------------------------

void check_deconvolution(const char* op, const Tensor& x, const Tensor& deconv_weight, bool channels_last) {
  check_activation(op, x, "x", channels_last);
  STD_TORCH_CHECK(x.scalar_type() == ScalarType::Float, op, ": x must be float32");
  check_parameter(op, deconv_weight, "deconv_weight", x);
  const int64_t channels = x.size(1);
  STD_TORCH_CHECK(deconv_weight.dim() == 4 && deconv_weight.size(0) == channels && deconv_weight.size(1) == channels &&
                      deconv_weight.size(2) == 3 && deconv_weight.size(3) == 3,
                  op, ": deconv_weight must be [", channels, ", ", channels, ", 3, 3]");
}

std::tuple<Tensor, Tensor, Tensor> reborn_deconvolve(const Tensor& x, const Tensor& deconv_weight, bool channels_last) {
  check_deconvolution("reborn_deconvolve_cpp", x, deconv_weight, channels_last);
  Tensor z = empty_as(x, channels_last);
  Tensor mean = empty_parameter(x, {x.size(1)}), variance = empty_parameter(x, {x.size(1)});
  if (z.numel() == 0) return {z, torch::stable::zero_(mean), torch::stable::zero_(variance)};
  const Tensor d = gathered(deconv_weight);
  kernels().deconvolve({activation(x, channels_last), d.const_data_ptr(), z.mutable_data_ptr(), mean.mutable_data_ptr(),
                        variance.mutable_data_ptr()},
                       leni::Call());
  return {z, mean, variance};
}

std::tuple<Tensor, Tensor> reborn_deconv_gradient(const Tensor& grad, const Tensor& grad_z, const Tensor& x,
                                                  const Tensor& deconv_weight, const Tensor& weight, bool needs_input,
                                                  bool needs_deconv, bool channels_last) {
  constexpr const char* op = "reborn_deconv_gradient_cpp";
  check_deconvolution(op, x, deconv_weight, channels_last);
  check_branches(op, x, grad_z, channels_last, "grad_z");
  check_gradient(op, grad, x);
  check_weight(op, weight, x);
  Tensor dx = needs_input ? empty_as(x, channels_last) : torch::stable::new_empty(x, {0});
  Tensor ddeconv = needs_deconv ? torch::stable::new_empty(deconv_weight, deconv_weight.sizes())
                                : torch::stable::new_empty(deconv_weight, {0});
  if (x.numel() == 0) return {dx, torch::stable::zero_(ddeconv)};
  const Tensor d = gathered(deconv_weight), w = gathered(weight);
  kernels().deconv_gradient({activation(x, channels_last), activation(grad, channels_last),
                             activation(grad_z, channels_last), d.const_data_ptr(), w.const_data_ptr(),
                             needs_input ? dx.mutable_data_ptr() : nullptr,
                             needs_deconv ? ddeconv.mutable_data_ptr() : nullptr},
                            leni::Call());
  return {dx, ddeconv};
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(leni_kernels, m) {
  m.def(
      "leni_folded_cpp(Tensor x, Tensor taps, Tensor weight, Tensor bias, bool channels_last, Tensor? mean=None) "
      "-> Tensor");
  m.def("leni_statistics_cpp(Tensor x, Tensor taps, bool channels_last) -> (Tensor, Tensor)");
  m.def(
      "leni_weight_gradient_cpp(Tensor grad, Tensor x, Tensor taps, bool channels_last, Tensor? mean=None) "
      "-> (Tensor, Tensor)");
  m.def(
      "leni_input_gradient_cpp(Tensor grad, Tensor x, Tensor taps, Tensor weight, Tensor? constant, Tensor? slope, "
      "bool channels_last) -> (Tensor, Tensor)");
  m.def("reborn_deconvolve_cpp(Tensor x, Tensor deconv_weight, bool channels_last) -> (Tensor, Tensor, Tensor)");
  m.def(
      "reborn_deconv_gradient_cpp(Tensor grad, Tensor grad_z, Tensor x, Tensor deconv_weight, Tensor weight, "
      "bool needs_input, bool needs_deconv, bool channels_last) -> (Tensor, Tensor)");
  m.def(
      "reborn_tail_cpp(Tensor x, Tensor z, Tensor weight, Tensor bias, bool channels_last, Tensor? mean=None) "
      "-> Tensor");
  m.def("reborn_statistics_cpp(Tensor z, bool channels_last) -> (Tensor, Tensor)");
  m.def(
      "reborn_weight_gradient_cpp(Tensor grad, Tensor x, Tensor z, Tensor mean, bool channels_last) "
      "-> (Tensor, Tensor)");
  m.def(
      "reborn_negative_gradient_cpp(Tensor grad, Tensor z, Tensor weight, Tensor? constant, Tensor? slope, "
      "bool channels_last) -> Tensor");
  m.def(
      "reborn_input_gradient_cpp(Tensor grad, Tensor x, Tensor negative, Tensor weight, bool channels_last) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(leni_kernels, CPU, m) {
  m.impl("leni_folded_cpp", TORCH_BOX(&leni_folded));
  m.impl("leni_statistics_cpp", TORCH_BOX(&leni_statistics));
  m.impl("leni_weight_gradient_cpp", TORCH_BOX(&leni_weight_gradient));
  m.impl("leni_input_gradient_cpp", TORCH_BOX(&leni_input_gradient));
  m.impl("reborn_deconvolve_cpp", TORCH_BOX(&reborn_deconvolve));
  m.impl("reborn_deconv_gradient_cpp", TORCH_BOX(&reborn_deconv_gradient));
  m.impl("reborn_tail_cpp", TORCH_BOX(&reborn_tail));
  m.impl("reborn_statistics_cpp", TORCH_BOX(&reborn_statistics));
  m.impl("reborn_weight_gradient_cpp", TORCH_BOX(&reborn_weight_gradient));
  m.impl("reborn_negative_gradient_cpp", TORCH_BOX(&reborn_negative_gradient));
  m.impl("reborn_input_gradient_cpp", TORCH_BOX(&reborn_input_gradient));
}
