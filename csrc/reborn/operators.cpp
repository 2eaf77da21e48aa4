// The operators leni_kernels::reborn_*_cpp: check what the kernels rely on, allocate, and put the deconvolution, the
// passes behind it and the norm together.
#include <algorithm>
#include <cstdint>
#include <initializer_list>
#include <optional>
#include <tuple>
#include <vector>

#include "pytorch/checks.h"
#include "pytorch/host.h"
#include "pytorch/stable.h"
#include "pytorch/tensors.h"
#include "reborn/problem.h"
#include "two_branch/norms.h"
#include "two_branch/tensors.h"

namespace leni_kernels::reborn {
namespace {

// The pass of this CPU's kernels.
template <class Problem>
void run(void (*Kernels::*pass)(const Problem&, const Host&), const Problem& problem, const Host& host) {
  chosen(tables, pass, problem.scalar)(problem, host);
}

// ---- Reborn's tail: what follows the deconvolution that makes z -------------------------------------------------

// What every operator of the tail asks of z, or what stands for it, beside x.
void check_branch(const char* op, const Tensor& x, const Tensor& z, bool channels_last, const char* name = "z") {
  check_cpu(op, z, name);
  STD_TORCH_CHECK(z.scalar_type() == x.scalar_type() && has_sizes(z, x.sizes()), op, ": ", name,
                  " must have x's dtype and shape");
  check_layout(op, z, name, channels_last);
}

// What it asks of both; returns whether x is channels-last.
bool check_branches(const char* op, const Tensor& x, const Tensor& z, const char* name = "z") {
  const bool channels_last = check_activation(op, x, "x");
  check_branch(op, x, z, channels_last, name);
  return channels_last;
}

Tensor empty_parameter(const Tensor& x, std::initializer_list<int64_t> sizes) {
  return torch::stable::empty(sizes, wide(x), std::nullopt, x.device());
}

Tensor reborn_tail(const Tensor& x, const Tensor& z, const Tensor& weight, const Tensor& bias,
                   std::optional<Tensor> mean) {
  constexpr const char* op = "reborn_tail_cpp";
  const bool channels_last = check_branches(op, x, z);
  check_weight(op, weight, x);
  check_vector(op, bias, "bias", x, x.size(1));
  const Scalar scalar = scalar_of(x);
  Tensor y = empty_as(x, channels_last);
  if (y.numel() == 0) return y;
  const Tensor w = gathered(weight), b = gathered(bias);
  const Activation negative = activation(z, channels_last);
  FoldedProblem problem{scalar, activation(x, channels_last), y.mutable_data_ptr(), w.const_data_ptr(),
                        b.const_data_ptr()};
  problem.z = &negative;
  Tensor m;
  if (mean.has_value()) {
    check_vector(op, *mean, "mean", x, x.size(1));
    m = gathered(*mean);
    problem.negative_mean = m.const_data_ptr();
  }
  run(&Kernels::folded, problem, Call());
  return y;
}

std::tuple<Tensor, Tensor> reborn_statistics(const Tensor& z) {
  const bool channels_last = check_activation("reborn_statistics_cpp", z, "z");
  const Scalar scalar = scalar_of(z);
  Tensor mean = empty_parameter(z, {z.size(1)}), variance = empty_parameter(z, {z.size(1)});
  if (z.numel() == 0) return {torch::stable::zero_(mean), torch::stable::zero_(variance)};
  run(&Kernels::statistics,
      {scalar, activation(z, channels_last), mean.mutable_data_ptr(), variance.mutable_data_ptr()}, Call());
  return {mean, variance};
}

std::tuple<Tensor, Tensor> reborn_weight_gradient(const Tensor& grad, const Tensor& x, const Tensor& z,
                                                  const Tensor& mean) {
  constexpr const char* op = "reborn_weight_gradient_cpp";
  const bool channels_last = check_branches(op, x, z);
  check_gradient(op, grad, x);
  const int64_t channels = x.size(1);
  check_vector(op, mean, "mean", x, 2 * channels);
  Tensor weight = empty_parameter(x, {channels, 2 * channels}), bias = empty_parameter(x, {channels});
  if (x.numel() == 0) return {torch::stable::zero_(weight), torch::stable::zero_(bias)};
  const Tensor m = gathered(mean);
  const Activation negative = activation(z, channels_last);
  GradientProblem problem{scalar_of(x), activation(x, channels_last), activation(grad, channels_last)};
  problem.z = &negative;
  problem.mean = m.const_data_ptr();
  problem.dweight = weight.mutable_data_ptr();
  problem.dbias = bias.mutable_data_ptr();
  run(&Kernels::weight_gradient, problem, Call());
  return {weight, bias};
}

Tensor reborn_negative_gradient(const Tensor& grad, const Tensor& z, const Tensor& weight,
                                std::optional<Tensor> constant, std::optional<Tensor> slope) {
  constexpr const char* op = "reborn_negative_gradient_cpp";
  const bool channels_last = check_activation(op, z, "z");
  check_gradient(op, grad, z);
  check_weight(op, weight, z);
  STD_TORCH_CHECK(constant.has_value() == slope.has_value(), op, ": constant and slope go together");
  Tensor dz = empty_as(z, channels_last);
  if (z.numel() == 0) return dz;
  const Tensor w = gathered(weight);
  BranchGradientProblem problem{scalar_of(z), activation(z, channels_last), activation(grad, channels_last),
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
  run(&Kernels::branch_gradient, problem, Call());
  return dz;
}

Tensor reborn_input_gradient(const Tensor& grad, const Tensor& x, const Tensor& negative, const Tensor& weight) {
  constexpr const char* op = "reborn_input_gradient_cpp";
  const bool channels_last = check_branches(op, x, negative, "negative");
  check_gradient(op, grad, x);
  check_weight(op, weight, x);
  Tensor dx = empty_as(x, channels_last);
  if (x.numel() == 0) return dx;
  const Tensor w = gathered(weight);
  const Activation joined = activation(negative, channels_last);
  BranchGradientProblem problem{scalar_of(x), activation(x, channels_last), activation(grad, channels_last),
                                w.const_data_ptr(), &joined};
  problem.out = dx.mutable_data_ptr();
  run(&Kernels::branch_gradient, problem, Call());
  return dx;
}

// ---- Reborn's deconvolution, where it is dense, 3×3 and in float -----------------------------------------------

bool is_in_float(const Tensor& x) {
  return x.scalar_type() == ScalarType::Float || x.scalar_type() == ScalarType::Half;
}

// Returns whether x is channels-last.
bool check_deconvolution(const char* op, const Tensor& x, const Tensor& deconv_weight) {
  const bool channels_last = check_activation(op, x, "x");
  STD_TORCH_CHECK(is_in_float(x), op, ": x must be float32 or float16");
  check_parameter(op, deconv_weight, "deconv_weight", x);
  const int64_t channels = x.size(1);
  STD_TORCH_CHECK(deconv_weight.dim() == 4 && deconv_weight.size(0) == channels && deconv_weight.size(1) == channels &&
                      deconv_weight.size(2) == 3 && deconv_weight.size(3) == 3,
                  op, ": deconv_weight must be [", channels, ", ", channels, ", 3, 3]");
  return channels_last;
}

std::tuple<Tensor, Tensor, Tensor> reborn_deconvolve(const Tensor& x, const Tensor& deconv_weight) {
  const bool channels_last = check_deconvolution("reborn_deconvolve_cpp", x, deconv_weight);
  Tensor z = empty_as(x, channels_last);
  Tensor mean = empty_parameter(x, {x.size(1)}), variance = empty_parameter(x, {x.size(1)});
  if (z.numel() == 0) return {z, torch::stable::zero_(mean), torch::stable::zero_(variance)};
  const Tensor d = gathered(deconv_weight);
  run(&Kernels::deconvolve,
      {scalar_of(x), activation(x, channels_last), d.const_data_ptr(), z.mutable_data_ptr(), mean.mutable_data_ptr(),
       variance.mutable_data_ptr()},
      Call());
  return {z, mean, variance};
}

std::tuple<Tensor, Tensor> reborn_deconv_gradient(const Tensor& grad, const Tensor& grad_z, const Tensor& x,
                                                  const Tensor& deconv_weight, const Tensor& weight, bool needs_input,
                                                  bool needs_deconv) {
  constexpr const char* op = "reborn_deconv_gradient_cpp";
  const bool channels_last = check_deconvolution(op, x, deconv_weight);
  check_branch(op, x, grad_z, channels_last, "grad_z");
  check_gradient(op, grad, x);
  check_weight(op, weight, x);
  Tensor dx = needs_input ? empty_as(x, channels_last) : torch::stable::new_empty(x, {0});
  Tensor ddeconv = needs_deconv ? torch::stable::new_empty(deconv_weight, deconv_weight.sizes())
                                : torch::stable::new_empty(deconv_weight, {0});
  if (x.numel() == 0) return {dx, torch::stable::zero_(ddeconv)};
  const Tensor d = gathered(deconv_weight), w = gathered(weight);
  run(&Kernels::deconv_gradient,
      {scalar_of(x), activation(x, channels_last), activation(grad, channels_last), activation(grad_z, channels_last),
       d.const_data_ptr(), w.const_data_ptr(), needs_input ? dx.mutable_data_ptr() : nullptr,
       needs_deconv ? ddeconv.mutable_data_ptr() : nullptr},
      Call());
  return {dx, ddeconv};
}

// ---- the deconvolution, by the kernels or else by the library ----------------------------------------------------

constexpr int kDeconv = kCompressSlot + 1, kWeight = kDeconv + 1, kGradWeight = kWeight + 1;  // slots of scratch memory

// Beyond them a thread would keep more than 9 MiB of transformed weights.
constexpr int64_t kMostConvolvedChannels = 256;

// Up to which they take less time than a call of the library.
constexpr int64_t kFewProducts = 1 << 19;

Tensor call(const char* name, StableIValue* stack) {
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher(name, "", stack, TORCH_ABI_VERSION));
  return torch::stable::detail::to<Tensor>(stack[0]);
}

using torch::stable::detail::from;
using Integers = std::vector<int64_t>;

Tensor convolution(const Tensor& x, const Tensor& weight, bool transposed, int64_t groups) {
  const Integers ones{1, 1}, padding(2, weight.size(2) / 2);
  StableIValue stack[] = {from(x),    from(weight),     from(std::optional<Tensor>()), from(ones),  from(padding),
                          from(ones), from(transposed), from(Integers{0, 0}),          from(groups)};
  return call("aten::convolution", stack);
}

Tensor negative_part(const Tensor& x) {
  Tensor zero = empty(x.scalar_type(), int64_t{1});
  scatter(Vector{0}.data(), zero);
  StableIValue stack[] = {from(x), from(zero)};
  return call("aten::minimum", stack);
}

// What the library convolves x in: its convolutions of float16 take five to ten times as long as those of float.
ScalarType library_type(const Tensor& x) {
  return x.scalar_type() == ScalarType::Half ? ScalarType::Float : x.scalar_type();
}

// Of the library's: a copy only where sizes of 1 let it choose the other of two equal layouts.
Tensor laid_out(const Tensor& x, bool channels_last) {
  using torch::headeronly::MemoryFormat;
  return torch::stable::contiguous(x, channels_last ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous);
}

// D of the convolution that equals the stride-1 transposed one; libraries run it faster.
Tensor flipped(const Tensor& deconv_weight, int64_t groups) {
  const int64_t inputs = deconv_weight.size(0) / groups, outputs = deconv_weight.size(1);
  const int64_t taps = deconv_weight.size(2) * deconv_weight.size(3);
  const Tensor from = gathered(deconv_weight);
  Tensor to = empty(from.scalar_type(), groups * outputs, inputs, from.size(2), from.size(3));
  with_type(from.scalar_type(), [&](auto type) {
    using T = decltype(type);
    const auto* source = static_cast<const T*>(from.const_data_ptr());
    auto* target = static_cast<T*>(to.mutable_data_ptr());
    for (int64_t g = 0; g < groups; ++g) {
      for (int64_t i = 0; i < inputs; ++i) {
        for (int64_t o = 0; o < outputs; ++o) {
          const T* tap = source + ((g * inputs + i) * outputs + o) * taps;
          std::reverse_copy(tap, tap + taps, target + ((g * outputs + o) * inputs + i) * taps);
        }
      }
    }
  });
  return to;
}

// A parameter in another dtype.
Tensor parameter_in(ScalarType type, const Tensor& parameter) {
  if (parameter.scalar_type() == type) return parameter;
  Tensor result = empty(type, parameter.size(0), parameter.size(1), parameter.size(2), parameter.size(3));
  copy(parameter, result);
  return result;
}

// z = D ⋆ᵀ min(x, 0) and the last pass of backward, in x's layout. A D of more precision than a bfloat16 x is rounded
// to it, as autocast rounds it for the layer.
struct Deconvolution {
  Tensor weight;
  ScalarType given_type;
  int64_t groups;
  bool channels_last, few, fused;
  const Host& host;

  Deconvolution(const char* op, const Tensor& x, const Tensor& deconv_weight, int64_t groups_, bool channels_last_,
                bool trains, const Host& host_)
      : weight(x.scalar_type() == ScalarType::BFloat16 ? parameter_in(ScalarType::BFloat16, deconv_weight)
                                                       : deconv_weight),
        given_type(deconv_weight.scalar_type()),
        groups(groups_),
        channels_last(channels_last_),
        host(host_) {
    const int64_t channels = x.size(1), size = weight.size(2);
    STD_TORCH_CHECK(groups > 0 && channels % groups == 0 && weight.is_cpu() && weight.dim() == 4 &&
                        weight.size(0) == channels && weight.size(1) == channels / groups && size % 2 == 1 &&
                        weight.size(3) == size,
                    op, ": deconv_weight must be [C, C // groups, k, k], k odd");
    // The kernels spread a NaN over a tile of pixels: no harm where the batch's statistics spread it to all.
    fused = trains && groups == 1 && size == 3 && is_in_float(x) && channels <= kMostConvolvedChannels;
    few = !fused && x.numel() * (channels / groups) * size * size <= kFewProducts;
  }

  // z, and with ``moments`` its means and variances [2C].
  template <class Scale>
  Tensor forward(const Tensor& x, std::vector<Scale>* moments) const {
    const int64_t channels = x.size(1);
    if (!fused || x.numel() == 0) {
      Tensor z = x.numel() == 0 ? empty_as(x, channels_last) : deconvolved(x);
      if (moments != nullptr && x.numel() > 0) {
        run(&Kernels::statistics,
            {scalar_of(z), activation(z, channels_last), moments->data(), moments->data() + channels}, host);
      }
      return z;
    }
    std::vector<float> own(2 * channels);
    Tensor z = empty_as(x, channels_last);
    run(&Kernels::deconvolve,
        {scalar_of(x), activation(x, channels_last), array_of<float>(weight, host, kDeconv), z.mutable_data_ptr(),
         own.data(), own.data() + channels},
        host);
    if (moments != nullptr) moments->assign(own.begin(), own.end());
    return z;
  }

  Tensor deconvolved(const Tensor& x) const {
    if (few) return of_few(x, false, empty_as(x, channels_last));
    const ScalarType type = library_type(x);
    const Tensor negative = as_type(negative_part(x), type), same = parameter_in(type, weight);
    // Where the transposed one does not, the library's bfloat16 convolution makes NaNs beside an infinity.
    const bool transposed = type == ScalarType::BFloat16;
    const Tensor z = transposed ? convolution(negative, gathered(same), true, groups)
                                : convolution(negative, flipped(same, groups), false, groups);
    return laid_out(as_type(z, x.scalar_type()), channels_last);
  }

  // The gradients of x, through both branches of the tail with this ``compress``, and of D; each where it is not null.
  // The gradient of z may be written over.
  void backward(const Tensor& grad, const Tensor& grad_z, const Tensor& x, const void* compress, Tensor* dx,
                Tensor* ddeconv) const {
    if (fused) {
      if (dx != nullptr) *dx = empty_as(x, channels_last);
      if (ddeconv != nullptr) *ddeconv = empty(ScalarType::Float, x.size(1), x.size(1), int64_t{3}, int64_t{3});
      run(&Kernels::deconv_gradient,
          {scalar_of(x), activation(x, channels_last), activation(grad, channels_last),
           activation(grad_z, channels_last), array_of<float>(weight, host, kDeconv), compress,
           dx == nullptr ? nullptr : dx->mutable_data_ptr(), ddeconv == nullptr ? nullptr : ddeconv->mutable_data_ptr()},
          host);
      return;
    }
    if (ddeconv != nullptr) *ddeconv = few ? deconv_gradient_of_few(grad_z, x) : gathered(deconv_gradient(grad_z, x));
    if (dx == nullptr) return;
    const Tensor negative = few ? of_few(grad_z, true, grad_z) : convolved(grad_z);
    const Activation joined = activation(negative, channels_last);
    *dx = few ? negative : empty_as(x, channels_last);  // each element may take the place of the negative branch's
    BranchGradientProblem problem{scalar_of(x), activation(x, channels_last), activation(grad, channels_last), compress,
                                  &joined};
    problem.out = dx->mutable_data_ptr();
    run(&Kernels::branch_gradient, problem, host);
  }

  // What z's gradient gives x, by the library.
  Tensor convolved(const Tensor& grad_z) const {
    const ScalarType type = library_type(grad_z);
    const Tensor negative = convolution(as_type(grad_z, type), parameter_in(type, weight), false, groups);
    return laid_out(as_type(negative, grad_z.scalar_type()), channels_last);
  }

  // z for x, or ``backward`` what z's gradient gives x, in ``out``, which may be what is read.
  Tensor of_few(const Tensor& x, bool backward, const Tensor& out) const {
    const bool precise = weight.scalar_type() == ScalarType::Double;
    run(&Kernels::few_deconvolve,
        {scalar_of(x), activation(x, channels_last), precise ? Scalar::Float64 : Scalar::Float32,
         precise ? static_cast<const void*>(array_of<double>(weight, host, kDeconv))
                 : array_of<float>(weight, host, kDeconv),
         groups, weight.size(2), backward, out.mutable_data_ptr()},
        host);
    return out;
  }

  Tensor deconv_gradient_of_few(const Tensor& grad_z, const Tensor& x) const {
    const auto type = given_type == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
    Tensor gradient = empty(weight.sizes(), type);
    run(&Kernels::few_deconv_gradient,
        {scalar_of(x), activation(x, channels_last), activation(grad_z, channels_last), groups, weight.size(2),
         scalar_of(gradient), gradient.mutable_data_ptr()},
        host);
    return gradient;
  }

  // With the parts swapped, the gradient of the weight of the convolution by D of z's gradient.
  Tensor deconv_gradient(const Tensor& grad_z, const Tensor& x) const {
    const Integers ones{1, 1}, padding(2, weight.size(2) / 2);
    const bool wanted[] = {false, true, false};
    const ScalarType type = library_type(x);
    StableIValue stack[] = {from(as_type(negative_part(x), type)),
                            from(as_type(grad_z, type)),
                            from(parameter_in(type, weight)),
                            from(std::optional<Integers>()),
                            from(ones),
                            from(padding),
                            from(ones),
                            from(false),
                            from(Integers{0, 0}),
                            from(groups),
                            from(torch::headeronly::HeaderOnlyArrayRef<bool>(wanted, 3))};
    TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::convolution_backward", "", stack, TORCH_ABI_VERSION));
    Tensor gradients[3];  // all are to be owned, of which the outer ones are undefined
    for (int i = 0; i < 3; ++i) gradients[i] = torch::stable::detail::to<Tensor>(stack[i]);
    return gradients[1];
  }
};

// ---- whole blocks ----------------------------------------------------------------------------------------------

// z, in double where a channel has few values, and its statistics [2C + 1]: mean, biased variance, and the count of
// values a channel.
std::tuple<Tensor, Tensor> reborn_batch_statistics(const Tensor& x, const Tensor& deconv_weight, int64_t groups) {
  constexpr const char* op = "reborn_batch_statistics_cpp";
  const bool channels_last = check_activation(op, x, "x");
  const Call host;
  const Tensor a = in_type(x, training_type(x), channels_last);
  const Deconvolution deconvolution(op, a, deconv_weight, groups, channels_last, true, host);
  return with_scale(a, [&](auto type) -> std::tuple<Tensor, Tensor> {
    std::vector<decltype(type)> moments(2 * x.size(1));
    const Tensor z = deconvolution.forward(a, &moments);
    return {z, packed_statistics(moments, values_of(x))};
  });
}

struct Block {
  Tensor y, z;
  Vector statistics;  // mean and variance of z
};

// Without a mean and a variance, or with z beside them, the norm is in training: of a batch, or of a group's. Else they
// are the running ones.
Block block(const char* op, const Tensor& x, const Tensor& deconv_weight, const std::optional<Tensor>& norm_weight,
            const std::optional<Tensor>& norm_bias, const Tensor& compress_weight,
            const std::optional<Tensor>& compress_bias, const std::optional<Tensor>& z,
            const std::optional<Tensor>& mean, const std::optional<Tensor>& variance, double eps, int64_t groups) {
  const bool channels_last = check_activation(op, x, "x");
  STD_TORCH_CHECK(mean.has_value() == variance.has_value(), op, ": mean and variance go together");
  const int64_t channels = x.size(1);
  const RebornNorm norm{vector_of(norm_weight, channels, 1), vector_of(norm_bias, channels, 0), eps};
  const bool trains = !mean.has_value() || z.has_value();
  const Call host;
  const Tensor a = trains ? in_type(x, training_type(x), channels_last) : x;
  return with_scale(a, [&](auto type) -> Block {
    using Scale = decltype(type);
    std::vector<Scale> moments(2 * channels);
    const Tensor deconvolved = z.has_value() ? *z
                                             : Deconvolution(op, a, deconv_weight, groups, channels_last, trains, host)
                                                   .template forward<Scale>(a, mean.has_value() ? nullptr : &moments);
    check_branch(op, a, deconvolved, channels_last);
    Vector statistics(moments.begin(), moments.end());
    if (mean.has_value()) {
      statistics = vector_of(mean, channels, 0);
      const Vector given_variance = vector_of(variance, channels, 1);
      statistics.insert(statistics.end(), given_variance.begin(), given_variance.end());
    }
    Tensor y = empty_as(a, channels_last);
    if (y.numel() == 0) return {in_type(y, x.scalar_type(), channels_last), deconvolved, statistics};

    auto* weight = static_cast<Scale*>(host.scratch(kWeight, 2 * channels * channels * sizeof(Scale)));
    std::vector<Scale> bias(channels);
    const std::vector<Scale> centre(statistics.begin(), statistics.begin() + channels);
    fold(compress_of<Scale>(op, compress_weight, channels, host), vector_of(compress_bias, channels, 0),
         norm.scale(statistics.data() + channels), norm.shift(), weight, bias.data());
    const Activation negative = activation(deconvolved, channels_last);
    FoldedProblem problem{scalar_of(a), activation(a, channels_last), y.mutable_data_ptr(), weight, bias.data()};
    problem.z = &negative;
    problem.negative_mean = centre.data();
    run(&Kernels::folded, problem, host);
    return {in_type(y, x.scalar_type(), channels_last), deconvolved, statistics};
  });
}

std::tuple<Tensor, Tensor, Tensor> reborn_training(const Tensor& x, const Tensor& deconv_weight,
                                                   std::optional<Tensor> norm_weight, std::optional<Tensor> norm_bias,
                                                   const Tensor& compress_weight, std::optional<Tensor> compress_bias,
                                                   std::optional<Tensor> z, std::optional<Tensor> mean,
                                                   std::optional<Tensor> variance, double eps, int64_t groups) {
  const Block result = block("reborn_training_cpp", x, deconv_weight, norm_weight, norm_bias, compress_weight,
                             compress_bias, z, mean, variance, eps, groups);
  return {result.y, z.has_value() ? nothing(x) : result.z, packed_statistics(result.statistics, values_of(x))};
}

// Inference, with the running statistics.
Tensor reborn_eval(const Tensor& x, const Tensor& deconv_weight, std::optional<Tensor> norm_weight,
                   std::optional<Tensor> norm_bias, const Tensor& compress_weight, std::optional<Tensor> compress_bias,
                   const Tensor& mean, const Tensor& variance, double eps, int64_t groups) {
  return block("reborn_eval_cpp", x, deconv_weight, norm_weight, norm_bias, compress_weight, compress_bias,
               std::nullopt, mean, variance, eps, groups)
      .y;
}

// The gradients of x and D, each where needed; where the norm trains or they are needed those of the parameters; and
// where it trains those of the statistics [2C]. Given the latter, summed over the processes that share them, those of
// x and D alone.
using RebornGradients = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

RebornGradients reborn_training_backward(const Tensor& grad, const Tensor& x, const Tensor& deconv_weight,
                                         std::optional<Tensor> norm_weight, std::optional<Tensor> norm_bias,
                                         const Tensor& compress_weight, const Tensor& z, const Tensor& statistics,
                                         std::optional<Tensor> grad_statistics, double eps, int64_t groups, bool trains,
                                         bool needs_x, bool needs_deconv, bool needs_parameters) {
  constexpr const char* op = "reborn_training_backward_cpp";
  const bool channels_last = check_activation(op, x, "x");
  check_gradient(op, grad, x);
  const int64_t channels = x.size(1), features = 2 * channels;
  const RebornNorm norm{vector_of(norm_weight, channels, 1), vector_of(norm_bias, channels, 0), eps};
  const double* mean = check_statistics(op, statistics, channels);
  const double *variance = mean + channels, count = variance[channels];
  const Vector scale = norm.scale(variance), shift = norm.shift();
  const Call host;
  const Tensor a = trains ? in_type(x, training_type(x), channels_last) : x;
  const Tensor g = in_type(grad, a.scalar_type(), channels_last);
  const Deconvolution deconvolution(op, a, deconv_weight, groups, channels_last, trains, host);
  return with_scale(a, [&](auto type) -> RebornGradients {
    using Scale = decltype(type);
    check_branch(op, a, z, channels_last);
    const auto* compress = compress_of<Scale>(op, compress_weight, channels, host);
    const Activation negative = activation(z, channels_last);
    Results<7> result;
    Vector through;  // the gradient of z's mean, and of its variance
    if (grad_statistics.has_value()) {
      const double* given = check_packed(op, *grad_statistics, features);
      through.assign(given, given + features);
    } else if (trains || needs_parameters) {
      std::vector<Scale> centre(features), grad_bias(channels);
      std::copy(mean, mean + channels, centre.begin() + channels);
      auto* grad_weight = static_cast<Scale*>(host.scratch(kGradWeight, features * channels * sizeof(Scale)));
      GradientProblem problem{scalar_of(a), activation(a, channels_last), activation(g, channels_last)};
      problem.z = &negative;
      problem.mean = centre.data();
      problem.dweight = grad_weight;
      problem.dbias = grad_bias.data();
      if (x.numel() > 0) {
        run(&Kernels::weight_gradient, problem, host);
      } else {
        std::fill_n(grad_weight, features * channels, Scale(0));
      }
      const auto folded = fold_backward(compress, scale, shift, grad_weight, grad_bias.data());
      const RebornNormGradients of_norm = norm_backward(norm, variance, folded.scale, folded.shift);
      result[2] = like(norm_weight, of_norm.weight, x);
      result[3] = like(norm_bias, of_norm.bias, x);
      through = of_norm.statistics;
      store_gradients(result, 4, compress_weight, folded.compress, grad_bias, through);
    }
    if (!needs_x && !needs_deconv) return as_tuple(result, x);

    auto* weight = static_cast<Scale*>(host.scratch(kWeight, features * channels * sizeof(Scale)));
    std::vector<Scale> bias(channels), constant(2 * channels);
    Scale* slope = constant.data() + channels;
    fold(compress, Vector(channels), scale, shift, weight, bias.data());
    Tensor dx, ddeconv, dz = empty_as(a, channels_last);
    if (x.numel() > 0) {
      BranchGradientProblem problem{scalar_of(a), negative, activation(g, channels_last), weight};
      if (trains) {
        through_statistics(mean, count, through.data(), through.data() + channels, channels, constant.data(), slope);
        problem.constant = constant.data();
        problem.slope = slope;
      }
      problem.out = dz.mutable_data_ptr();
      run(&Kernels::branch_gradient, problem, host);
      deconvolution.backward(g, dz, a, weight, needs_x ? &dx : nullptr, needs_deconv ? &ddeconv : nullptr);
    } else {
      dx = empty_as(a, channels_last);
      if (needs_deconv) {
        ddeconv = new_like(deconv_weight);
        torch::stable::zero_(ddeconv);
      }
    }
    if (needs_x) result[0] = in_type(dx, x.scalar_type(), channels_last);
    if (needs_deconv) result[1] = parameter_in(deconv_weight.scalar_type(), ddeconv);
    return as_tuple(result, x);
  });
}

void reborn_running_statistics(const Tensor& statistics, std::optional<Tensor> mean, std::optional<Tensor> variance,
                               std::optional<Tensor> batches, std::optional<double> momentum) {
  const int64_t channels = statistics.numel() / 2;
  const double* of_batch = check_statistics("reborn_running_statistics_cpp", statistics, channels);
  update_running(mean, variance, batches, momentum, Vector(of_batch, of_batch + channels),
                 Vector(of_batch + channels, of_batch + 2 * channels), of_batch[2 * channels]);
}

}  // namespace
}  // namespace leni_kernels::reborn

STABLE_TORCH_LIBRARY_FRAGMENT(leni_kernels, m) {
  m.def("reborn_deconvolve_cpp(Tensor x, Tensor deconv_weight) -> (Tensor, Tensor, Tensor)");
  m.def(
      "reborn_deconv_gradient_cpp(Tensor grad, Tensor grad_z, Tensor x, Tensor deconv_weight, Tensor weight, "
      "bool needs_input, bool needs_deconv) -> (Tensor, Tensor)");
  m.def("reborn_tail_cpp(Tensor x, Tensor z, Tensor weight, Tensor bias, Tensor? mean=None) -> Tensor");
  m.def("reborn_statistics_cpp(Tensor z) -> (Tensor, Tensor)");
  m.def("reborn_weight_gradient_cpp(Tensor grad, Tensor x, Tensor z, Tensor mean) -> (Tensor, Tensor)");
  m.def(
      "reborn_negative_gradient_cpp(Tensor grad, Tensor z, Tensor weight, Tensor? constant, Tensor? slope) "
      "-> Tensor");
  m.def("reborn_input_gradient_cpp(Tensor grad, Tensor x, Tensor negative, Tensor weight) -> Tensor");
  m.def("reborn_batch_statistics_cpp(Tensor x, Tensor deconv_weight, int groups) -> (Tensor, Tensor)");
  m.def(
      "reborn_training_cpp(Tensor x, Tensor deconv_weight, Tensor? norm_weight, Tensor? norm_bias, "
      "Tensor compress_weight, Tensor? compress_bias, Tensor? z, Tensor? mean, Tensor? variance, float eps, "
      "int groups) -> (Tensor, Tensor, Tensor)");
  m.def(
      "reborn_eval_cpp(Tensor x, Tensor deconv_weight, Tensor? norm_weight, Tensor? norm_bias, Tensor compress_weight, "
      "Tensor? compress_bias, Tensor mean, Tensor variance, float eps, int groups) -> Tensor");
  m.def(
      "reborn_training_backward_cpp(Tensor grad, Tensor x, Tensor deconv_weight, Tensor? norm_weight, "
      "Tensor? norm_bias, Tensor compress_weight, Tensor z, Tensor statistics, Tensor? grad_statistics, float eps, "
      "int groups, bool trains, bool needs_x, bool needs_deconv, bool needs_parameters) "
      "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "reborn_running_statistics_cpp(Tensor statistics, Tensor(a!)? mean, Tensor(b!)? variance, "
      "Tensor(c!)? batches, float? momentum) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(leni_kernels, CPU, m) {
  m.impl("reborn_deconvolve_cpp", TORCH_BOX(&leni_kernels::reborn::reborn_deconvolve));
  m.impl("reborn_deconv_gradient_cpp", TORCH_BOX(&leni_kernels::reborn::reborn_deconv_gradient));
  m.impl("reborn_tail_cpp", TORCH_BOX(&leni_kernels::reborn::reborn_tail));
  m.impl("reborn_statistics_cpp", TORCH_BOX(&leni_kernels::reborn::reborn_statistics));
  m.impl("reborn_weight_gradient_cpp", TORCH_BOX(&leni_kernels::reborn::reborn_weight_gradient));
  m.impl("reborn_negative_gradient_cpp", TORCH_BOX(&leni_kernels::reborn::reborn_negative_gradient));
  m.impl("reborn_input_gradient_cpp", TORCH_BOX(&leni_kernels::reborn::reborn_input_gradient));
  m.impl("reborn_batch_statistics_cpp", TORCH_BOX(&leni_kernels::reborn::reborn_batch_statistics));
  m.impl("reborn_eval_cpp", TORCH_BOX(&leni_kernels::reborn::reborn_eval));
  m.impl("reborn_training_cpp", TORCH_BOX(&leni_kernels::reborn::reborn_training));
  m.impl("reborn_training_backward_cpp", TORCH_BOX(&leni_kernels::reborn::reborn_training_backward));
  m.impl("reborn_running_statistics_cpp", TORCH_BOX(&leni_kernels::reborn::reborn_running_statistics));
}
