// The operators leni_kernels::leni_*_cpp: check what the kernels rely on, allocate, and put passes and norms together.
#include <algorithm>
#include <cstdint>
#include <optional>
#include <tuple>
#include <vector>

#include "leni/problem.h"
#include "pytorch/host.h"
#include "pytorch/stable.h"
#include "pytorch/tensors.h"
#include "two_branch/norms.h"
#include "two_branch/tensors.h"

namespace leni_kernels::leni {
namespace {

// The pass of this CPU's kernels.
template <class Problem>
void run(void (*Kernels::*pass)(const Problem&, const Host&), const Problem& problem, const Host& host) {
  chosen(tables, pass, problem.scalar)(problem, host);
}

// ---- checks ----------------------------------------------------------------------------------------------------

void check_kernel_size(const char* op, int64_t k) {
  STD_TORCH_CHECK(k == 3 || k == 5 || k == 7, op, ": k must be 3, 5 or 7, got ", k);
}

// What the passes ask of x and taps; returns whether x is channels-last.
bool check_input(const char* op, const Tensor& x, const Tensor& taps) {
  const bool channels_last = check_activation(op, x, "x");
  check_parameter(op, taps, "taps", x);
  STD_TORCH_CHECK(taps.dim() == 3 && taps.size(0) == x.size(1) && taps.size(1) == taps.size(2), op, ": taps must be [",
                  x.size(1), ", k, k]");
  check_kernel_size(op, taps.size(1));
  return channels_last;
}

// ---- passes ----------------------------------------------------------------------------------------------------

// The first half of a mean [2C], or the second.
const void* half_of(const Tensor& mean, const Tensor& x, int half) {
  const int64_t bytes = x.scalar_type() == ScalarType::Double ? sizeof(double) : sizeof(float);
  return static_cast<const char*>(mean.const_data_ptr()) + half * x.size(1) * bytes;
}

Tensor leni_folded(const Tensor& x, const Tensor& taps, const Tensor& weight, const Tensor& bias,
                   std::optional<Tensor> mean) {
  constexpr const char* op = "leni_folded_cpp";
  const bool channels_last = check_input(op, x, taps);
  check_weight(op, weight, x);
  check_vector(op, bias, "bias", x, x.size(1));
  const Scalar scalar = scalar_of(x);
  Tensor y = empty_as(x, channels_last);
  if (y.numel() == 0) return y;
  const Tensor t = gathered(taps), w = gathered(weight), b = gathered(bias);
  FoldedProblem problem{scalar,
                        activation(x, channels_last),
                        y.mutable_data_ptr(),
                        w.const_data_ptr(),
                        b.const_data_ptr(),
                        t.const_data_ptr(),
                        taps.size(1)};
  Tensor m;
  if (mean.has_value()) {
    check_vector(op, *mean, "mean", x, 2 * x.size(1));
    m = gathered(*mean);
    problem.positive_mean = half_of(m, x, 0);
    problem.negative_mean = half_of(m, x, 1);
  }
  run(&Kernels::folded, problem, Call());
  return y;
}

std::tuple<Tensor, Tensor> leni_statistics(const Tensor& x, const Tensor& taps) {
  constexpr const char* op = "leni_statistics_cpp";
  const bool channels_last = check_input(op, x, taps);
  const Scalar scalar = scalar_of(x);
  const int64_t features = 2 * x.size(1);
  Tensor mean = torch::stable::new_empty(taps, {features}), variance = torch::stable::new_empty(taps, {features});
  if (x.numel() == 0) return {torch::stable::zero_(mean), torch::stable::zero_(variance)};
  const Tensor t = gathered(taps);
  run(&Kernels::statistics,
      {scalar, activation(x, channels_last), mean.mutable_data_ptr(), variance.mutable_data_ptr(), t.const_data_ptr(),
       taps.size(1)},
      Call());
  return {mean, variance};
}

std::tuple<Tensor, Tensor> leni_weight_gradient(const Tensor& grad, const Tensor& x, const Tensor& taps,
                                                std::optional<Tensor> mean) {
  constexpr const char* op = "leni_weight_gradient_cpp";
  const bool channels_last = check_input(op, x, taps);
  check_gradient(op, grad, x);
  const int64_t channels = x.size(1);
  Tensor weight = torch::stable::new_empty(taps, {channels, 2 * channels});
  Tensor bias = torch::stable::new_empty(taps, {channels});
  if (x.numel() == 0) return {torch::stable::zero_(weight), torch::stable::zero_(bias)};
  const Tensor t = gathered(taps);
  GradientProblem problem{scalar_of(x), activation(x, channels_last), activation(grad, channels_last),
                          t.const_data_ptr(), taps.size(1)};
  Tensor m;
  if (mean.has_value()) {
    check_vector(op, *mean, "mean", x, 2 * channels);
    m = gathered(*mean);
    problem.mean = m.const_data_ptr();
  }
  problem.dweight = weight.mutable_data_ptr();
  problem.dbias = bias.mutable_data_ptr();
  run(&Kernels::weight_gradient, problem, Call());
  return {weight, bias};
}

std::tuple<Tensor, Tensor> leni_input_gradient(const Tensor& grad, const Tensor& x, const Tensor& taps,
                                               const Tensor& weight, std::optional<Tensor> constant,
                                               std::optional<Tensor> slope, std::optional<Tensor> matrix,
                                               std::optional<Tensor> centre) {
  constexpr const char* op = "leni_input_gradient_cpp";
  const bool channels_last = check_input(op, x, taps);
  check_gradient(op, grad, x);
  check_weight(op, weight, x);
  STD_TORCH_CHECK(constant.has_value() == slope.has_value(), op, ": constant and slope go together");
  STD_TORCH_CHECK(matrix.has_value() == centre.has_value(), op, ": matrix and centre go together");
  STD_TORCH_CHECK(slope.has_value() || !matrix.has_value(), op, ": a matrix goes with a slope");
  Tensor dx = empty_as(x, channels_last), dtaps = torch::stable::new_empty(taps, taps.sizes());
  if (x.numel() == 0) return {dx, torch::stable::zero_(dtaps)};
  const Tensor t = gathered(taps), w = gathered(weight);
  InputGradientProblem problem{
      {scalar_of(x), activation(x, channels_last), activation(grad, channels_last), t.const_data_ptr(), taps.size(1)}};
  problem.weight = w.const_data_ptr();
  Tensor c, s, m, z;
  if (matrix.has_value()) {
    check_parameter(op, *matrix, "matrix", x);
    STD_TORCH_CHECK(matrix->dim() == 2 && matrix->size(0) == x.size(1) && matrix->size(1) == x.size(1), op,
                    ": matrix must be [", x.size(1), ", ", x.size(1), "]");
    check_vector(op, *centre, "centre", x, x.size(1));
    m = gathered(*matrix);
    z = gathered(*centre);
    problem.matrix = m.const_data_ptr();
    problem.centre = z.const_data_ptr();
  }
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
  run(&Kernels::input_gradient, problem, Call());
  return {dx, dtaps};
}

Tensor leni_covariance(const Tensor& x, const Tensor& taps, const Tensor& centre) {
  constexpr const char* op = "leni_covariance_cpp";
  const bool channels_last = check_input(op, x, taps);
  check_vector(op, centre, "centre", x, x.size(1));
  Tensor covariance = torch::stable::new_empty(taps, {x.size(1), x.size(1)});
  if (x.numel() == 0) return torch::stable::zero_(covariance);
  const Tensor t = gathered(taps), c = gathered(centre);
  run(&Kernels::covariance,
      {scalar_of(x), activation(x, channels_last), covariance.mutable_data_ptr(), c.const_data_ptr(),
       t.const_data_ptr(), taps.size(1)},
      Call());
  return covariance;
}

// ---- whole blocks ----------------------------------------------------------------------------------------------

constexpr int kTaps = kCompressSlot + 1, kWeight = kTaps + 1, kGradWeight = kWeight + 1;  // slots of scratch memory

// D as the passes take it, for the duration of a call.
template <class Scale>
struct Taps {
  const Scale* data;
  int64_t kernel_size;

  Taps(const char* op, const Tensor& x, const Tensor& deconv_weight, const Host& host)
      : kernel_size(deconv_weight.size(2)) {
    STD_TORCH_CHECK(deconv_weight.is_cpu() && deconv_weight.dim() == 4 && deconv_weight.size(0) == x.size(1) &&
                        deconv_weight.size(1) == 1 && deconv_weight.size(3) == kernel_size,
                    op, ": deconv_weight must be [", x.size(1), ", 1, k, k]");
    check_kernel_size(op, kernel_size);
    data = array_of<Scale>(deconv_weight, host, kTaps);
  }
};

// y for features less their mean, [2C] or none.
template <class Scale>
Tensor folded_block(const Tensor& x, const Taps<Scale>& taps, const Scale* compress, const Vector& compress_bias,
                    const Vector& scale, const Vector& shift, const double* mean, bool channels_last,
                    const Host& host) {
  Tensor y = empty_as(x, channels_last);
  if (y.numel() == 0) return y;
  const int64_t channels = x.size(1), features = 2 * channels;
  auto* weight = static_cast<Scale*>(host.scratch(kWeight, features * channels * sizeof(Scale)));
  std::vector<Scale> bias(channels), centre;
  fold(compress, compress_bias, scale, shift, weight, bias.data());
  FoldedProblem problem{
      scalar_of(x),    activation(x, channels_last), y.mutable_data_ptr(), weight, bias.data(), taps.data,
      taps.kernel_size};
  if (mean != nullptr) {
    centre.assign(mean, mean + features);
    problem.positive_mean = centre.data();
    problem.negative_mean = centre.data() + channels;
  }
  run(&Kernels::folded, problem, host);
  return y;
}

// Of a = [max(x, 0); D ⋆ᵀ min(x, 0)]: the mean and the biased variance, [2C] each, and the count of values a channel.
template <class Scale>
Tensor statistics_of(const Tensor& x, const Taps<Scale>& taps, bool channels_last, const Host& host) {
  const int64_t features = 2 * x.size(1);
  std::vector<Scale> moments(2 * features);
  if (x.numel() > 0) {
    run(&Kernels::statistics,
        {scalar_of(x), activation(x, channels_last), moments.data(), moments.data() + features, taps.data,
         taps.kernel_size},
        host);
  }
  return packed_statistics(moments, values_of(x));
}

Tensor leni_batch_statistics(const Tensor& x, const Tensor& deconv_weight) {
  constexpr const char* op = "leni_batch_statistics_cpp";
  const bool channels_last = check_activation(op, x, "x");
  const Call host;
  const Tensor a = in_type(x, training_type(x), channels_last);
  return with_scale(a, [&](auto scale) {
    using Scale = decltype(scale);
    return statistics_of(a, Taps<Scale>(op, a, deconv_weight, host), channels_last, host);
  });
}

LeniNorms norms_of(const Tensor& x, const std::optional<Tensor>& negative_weight,
                   const std::optional<Tensor>& fusion_weight, const std::optional<Tensor>& fusion_bias,
                   double negative_eps, double fusion_eps) {
  const int64_t channels = x.size(1);
  return {vector_of(negative_weight, channels, 1), vector_of(fusion_weight, 2 * channels, 1),
          vector_of(fusion_bias, 2 * channels, 0), negative_eps, fusion_eps};
}

std::tuple<Tensor, Tensor> leni_training(const Tensor& x, const Tensor& deconv_weight,
                                         std::optional<Tensor> negative_weight, std::optional<Tensor> /*cancels*/,
                                         std::optional<Tensor> fusion_weight, std::optional<Tensor> fusion_bias,
                                         const Tensor& compress_weight, std::optional<Tensor> compress_bias,
                                         std::optional<Tensor> statistics, double negative_eps, double fusion_eps) {
  constexpr const char* op = "leni_training_cpp";
  const bool channels_last = check_activation(op, x, "x");
  const int64_t channels = x.size(1);
  const LeniNorms norms = norms_of(x, negative_weight, fusion_weight, fusion_bias, negative_eps, fusion_eps);
  const Call host;
  const Tensor a = in_type(x, training_type(x), channels_last);
  return with_scale(a, [&](auto scale) -> std::tuple<Tensor, Tensor> {
    using Scale = decltype(scale);
    const Taps<Scale> taps(op, a, deconv_weight, host);
    const auto* compress = compress_of<Scale>(op, compress_weight, channels, host);
    const Tensor of_batch = statistics.has_value() ? nothing(*statistics) : statistics_of(a, taps, channels_last, host);
    const double* mean = check_statistics(op, statistics.value_or(of_batch), 2 * channels);
    const Tensor y = folded_block(a, taps, compress, vector_of(compress_bias, channels, 0),
                                  norms.scale(mean + 2 * channels), norms.fusion_bias, mean, channels_last, host);
    return {in_type(y, x.scalar_type(), channels_last), of_batch};
  });
}

// The gradients of all parameters and of the statistics, and with needs_input those of x and D; given those of the
// statistics, summed over the processes that share them, those of x and D alone.
using LeniGradients = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

LeniGradients leni_training_backward(const Tensor& grad, const Tensor& x, const Tensor& deconv_weight,
                                     std::optional<Tensor> negative_weight, std::optional<Tensor> negative_bias,
                                     std::optional<Tensor> fusion_weight, std::optional<Tensor> fusion_bias,
                                     const Tensor& compress_weight, const Tensor& statistics,
                                     std::optional<Tensor> grad_statistics, double negative_eps, double fusion_eps,
                                     bool needs_input) {
  constexpr const char* op = "leni_training_backward_cpp";
  const bool channels_last = check_activation(op, x, "x");
  check_gradient(op, grad, x);
  const int64_t channels = x.size(1), features = 2 * channels;
  const LeniNorms norms = norms_of(x, negative_weight, fusion_weight, fusion_bias, negative_eps, fusion_eps);
  const double* mean = check_statistics(op, statistics, features);
  const double *variance = mean + features, count = variance[features];
  const Vector scale = norms.scale(variance);
  const Call host;
  const Tensor a = in_type(x, training_type(x), channels_last);
  const Tensor g = in_type(grad, a.scalar_type(), channels_last);
  return with_scale(a, [&](auto type) -> LeniGradients {
    using Scale = decltype(type);
    const Taps<Scale> taps(op, a, deconv_weight, host);
    const auto* compress = compress_of<Scale>(op, compress_weight, channels, host);
    GradientProblem problem{scalar_of(a), activation(a, channels_last), activation(g, channels_last), taps.data,
                            taps.kernel_size};
    Results<9> result;
    Vector through;  // the gradient of a's mean, and of its variance
    if (grad_statistics.has_value()) {
      const double* given = check_packed(op, *grad_statistics, 2 * features);
      through.assign(given, given + 2 * features);
    } else {
      const std::vector<Scale> centre(mean, mean + features);
      std::vector<Scale> grad_bias(channels);
      auto* grad_weight = static_cast<Scale*>(host.scratch(kGradWeight, features * channels * sizeof(Scale)));
      problem.mean = centre.data();
      problem.dweight = grad_weight;
      problem.dbias = grad_bias.data();
      if (x.numel() > 0) {
        run(&Kernels::weight_gradient, problem, host);
      } else {
        std::fill_n(grad_weight, features * channels, Scale(0));
      }
      const auto folded = fold_backward(compress, scale, norms.fusion_bias, grad_weight, grad_bias.data());
      const LeniNormGradients of_norms = norms_backward(norms, variance, folded.scale, folded.shift);
      result[2] = like(negative_weight, of_norms.negative_weight, x);
      result[3] = like(negative_bias, Vector(channels), x);  // β1 shifts what BN2 centres
      result[4] = like(fusion_weight, of_norms.fusion_weight, x);
      result[5] = like(fusion_bias, of_norms.fusion_bias, x);
      through = of_norms.mean;
      through.insert(through.end(), of_norms.variance.begin(), of_norms.variance.end());
      store_gradients(result, 6, compress_weight, folded.compress, grad_bias, through);
    }
    if (!needs_input) return as_tuple(result, x);

    Tensor dx = empty_as(a, channels_last);
    std::vector<Scale> constant(features), slope(features), bias(channels);
    std::vector<Scale> grad_taps(channels * taps.kernel_size * taps.kernel_size);
    through_statistics(mean, count, through.data(), through.data() + features, features, constant.data(), slope.data());
    auto* weight = static_cast<Scale*>(host.scratch(kWeight, features * channels * sizeof(Scale)));
    fold(compress, Vector(channels), scale, norms.fusion_bias, weight, bias.data());
    problem.weight = weight;
    problem.constant = constant.data();
    problem.slope = slope.data();
    problem.dx = dx.mutable_data_ptr();
    problem.dtaps = grad_taps.data();
    if (x.numel() > 0) run(&Kernels::input_gradient, InputGradientProblem{problem}, host);
    result[0] = in_type(dx, x.scalar_type(), channels_last);
    result[1] = new_like(deconv_weight);
    scatter(grad_taps.data(), *result[1]);
    return as_tuple(result, x);
  });
}

// Inference with both norms' running statistics. Products in bfloat16 are of features less their mean, where that is
// large against the deviations from it: less a small one, values are not smaller.
Tensor leni_eval(const Tensor& x, const Tensor& deconv_weight, const Tensor& negative_mean,
                 const Tensor& negative_variance, std::optional<Tensor> negative_weight,
                 std::optional<Tensor> negative_bias, const Tensor& fusion_mean, const Tensor& fusion_variance,
                 std::optional<Tensor> fusion_weight, std::optional<Tensor> fusion_bias, const Tensor& compress_weight,
                 std::optional<Tensor> compress_bias, double negative_eps, double fusion_eps) {
  constexpr const char* op = "leni_eval_cpp";
  const bool channels_last = check_activation(op, x, "x");
  const int64_t channels = x.size(1), features = 2 * channels;
  const Vector first_mean = vector_of(negative_mean, channels, 0), gamma = vector_of(negative_weight, channels, 1);
  const Vector first_variance = vector_of(negative_variance, channels, 1);
  const Vector second_variance = vector_of(fusion_variance, features, 1);
  const Vector beta = vector_of(negative_bias, channels, 0);
  Vector mean = vector_of(fusion_mean, features, 0), scale = vector_of(fusion_weight, features, 1);
  Vector shift = vector_of(fusion_bias, features, 0);
  const bool centred = x.scalar_type() == ScalarType::BFloat16;
  for (int64_t f = 0; f < features; ++f) {
    double variance = second_variance[f];
    scale[f] *= inverse_root(variance, fusion_eps);
    if (const int64_t c = f - channels; c >= 0) {
      shift[f] += scale[f] * (beta[c] - mean[f]);
      scale[f] *= gamma[c] * inverse_root(first_variance[c], negative_eps);
      mean[f] = first_mean[c];
      variance = first_variance[c];
    }
    if (!centred || mean[f] * mean[f] <= variance) {
      shift[f] -= scale[f] * mean[f];
      mean[f] = 0;
    }
  }
  const Call host;
  return with_scale(x, [&](auto type) {
    using Scale = decltype(type);
    const Taps<Scale> taps(op, x, deconv_weight, host);
    const auto* compress = compress_of<Scale>(op, compress_weight, channels, host);
    return folded_block(x, taps, compress, vector_of(compress_bias, channels, 0), scale, shift,
                        centred ? mean.data() : nullptr, channels_last, host);
  });
}

void leni_running_statistics(const Tensor& statistics, std::optional<Tensor> negative_weight,
                             std::optional<Tensor> negative_bias, std::optional<Tensor> negative_mean,
                             std::optional<Tensor> negative_variance, std::optional<Tensor> negative_batches,
                             std::optional<double> negative_momentum, std::optional<Tensor> fusion_mean,
                             std::optional<Tensor> fusion_variance, std::optional<Tensor> fusion_batches,
                             std::optional<double> fusion_momentum, double negative_eps) {
  const int64_t features = statistics.numel() / 2, channels = features / 2;
  const double* mean = check_statistics("leni_running_statistics_cpp", statistics, features);
  const double *variance = mean + features, count = variance[features];
  const LeniNorms norms{vector_of(negative_weight, channels, 1), {}, {}, negative_eps, 0};
  update_running(negative_mean, negative_variance, negative_batches, negative_momentum,
                 Vector(mean + channels, mean + features), Vector(variance + channels, variance + features), count);
  Vector fused_mean(mean, mean + channels), fused_variance(features);
  const Vector beta = vector_of(negative_bias, channels, 0);
  fused_mean.insert(fused_mean.end(), beta.begin(), beta.end());
  for (int64_t f = 0; f < features; ++f) fused_variance[f] = norms.fusion_variance(variance, f);
  update_running(fusion_mean, fusion_variance, fusion_batches, fusion_momentum, fused_mean, fused_variance, count);
}

}  // namespace
}  // namespace leni_kernels::leni

STABLE_TORCH_LIBRARY_FRAGMENT(leni_kernels, m) {
  m.def("leni_folded_cpp(Tensor x, Tensor taps, Tensor weight, Tensor bias, Tensor? mean=None) -> Tensor");
  m.def("leni_statistics_cpp(Tensor x, Tensor taps) -> (Tensor, Tensor)");
  m.def(
      "leni_weight_gradient_cpp(Tensor grad, Tensor x, Tensor taps, Tensor? mean=None) "
      "-> (Tensor, Tensor)");
  m.def(
      "leni_input_gradient_cpp(Tensor grad, Tensor x, Tensor taps, Tensor weight, Tensor? constant, Tensor? slope, "
      "Tensor? matrix=None, Tensor? centre=None) -> (Tensor, Tensor)");
  m.def("leni_covariance_cpp(Tensor x, Tensor taps, Tensor centre) -> Tensor");
  m.def("leni_batch_statistics_cpp(Tensor x, Tensor deconv_weight) -> Tensor");
  m.def(
      "leni_training_cpp(Tensor x, Tensor deconv_weight, Tensor? negative_weight, Tensor? negative_bias, "
      "Tensor? fusion_weight, Tensor? fusion_bias, Tensor compress_weight, Tensor? compress_bias, "
      "Tensor? statistics, float negative_eps, float fusion_eps) -> (Tensor, Tensor)");
  m.def(
      "leni_training_backward_cpp(Tensor grad, Tensor x, Tensor deconv_weight, Tensor? negative_weight, "
      "Tensor? negative_bias, Tensor? fusion_weight, Tensor? fusion_bias, Tensor compress_weight, Tensor statistics, "
      "Tensor? grad_statistics, float negative_eps, float fusion_eps, bool needs_input) "
      "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "leni_eval_cpp(Tensor x, Tensor deconv_weight, Tensor negative_mean, Tensor negative_variance, "
      "Tensor? negative_weight, Tensor? negative_bias, Tensor fusion_mean, Tensor fusion_variance, "
      "Tensor? fusion_weight, Tensor? fusion_bias, Tensor compress_weight, Tensor? compress_bias, "
      "float negative_eps, float fusion_eps) -> Tensor");
  m.def(
      "leni_running_statistics_cpp(Tensor statistics, Tensor? negative_weight, Tensor? negative_bias, "
      "Tensor(a!)? negative_mean, Tensor(b!)? negative_variance, Tensor(c!)? negative_batches, "
      "float? negative_momentum, Tensor(d!)? fusion_mean, Tensor(e!)? fusion_variance, Tensor(f!)? fusion_batches, "
      "float? fusion_momentum, float negative_eps) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(leni_kernels, CPU, m) {
  m.impl("leni_folded_cpp", TORCH_BOX(&leni_kernels::leni::leni_folded));
  m.impl("leni_statistics_cpp", TORCH_BOX(&leni_kernels::leni::leni_statistics));
  m.impl("leni_weight_gradient_cpp", TORCH_BOX(&leni_kernels::leni::leni_weight_gradient));
  m.impl("leni_input_gradient_cpp", TORCH_BOX(&leni_kernels::leni::leni_input_gradient));
  m.impl("leni_covariance_cpp", TORCH_BOX(&leni_kernels::leni::leni_covariance));
  m.impl("leni_batch_statistics_cpp", TORCH_BOX(&leni_kernels::leni::leni_batch_statistics));
  m.impl("leni_training_cpp", TORCH_BOX(&leni_kernels::leni::leni_training));
  m.impl("leni_training_backward_cpp", TORCH_BOX(&leni_kernels::leni::leni_training_backward));
  m.impl("leni_eval_cpp", TORCH_BOX(&leni_kernels::leni::leni_eval));
  m.impl("leni_running_statistics_cpp", TORCH_BOX(&leni_kernels::leni::leni_running_statistics));
}
