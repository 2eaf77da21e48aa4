// leni_kernels::leni_folded_cpp: checks what the kernels rely on, allocates y and chooses the instruction set.
#include "leni.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

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

void check_parameter(const Tensor& tensor, const char* name, const Tensor& x) {
  const auto wanted = x.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
  STD_TORCH_CHECK(tensor.is_cpu(), "leni_folded_cpp: ", name, " must be on the CPU");
  STD_TORCH_CHECK(tensor.scalar_type() == wanted, "leni_folded_cpp: ", name,
                  " must be float64 for a float64 x, else float32");
}

void check(const Tensor& x, const Tensor& taps, const Tensor& weight, const Tensor& bias, bool channels_last) {
  STD_TORCH_CHECK(x.is_cpu(), "leni_folded_cpp: x must be on the CPU");
  STD_TORCH_CHECK(x.dim() == 4, "leni_folded_cpp: x must be [N, C, H, W], got ", x.dim(), " dimensions");
  check_parameter(taps, "taps", x);
  check_parameter(weight, "weight", x);
  check_parameter(bias, "bias", x);
  const int64_t channels = x.size(1);
  STD_TORCH_CHECK(taps.dim() == 3 && taps.size(0) == channels && taps.size(1) == taps.size(2),
                  "leni_folded_cpp: taps must be [", channels, ", k, k]");
  const int64_t k = taps.size(1);
  STD_TORCH_CHECK(k == 3 || k == 5 || k == 7, "leni_folded_cpp: k must be 3, 5 or 7, got ", k);
  STD_TORCH_CHECK(weight.dim() == 2 && weight.size(0) == channels && weight.size(1) == 2 * channels,
                  "leni_folded_cpp: weight must be [", channels, ", ", 2 * channels, "]");
  STD_TORCH_CHECK(bias.dim() == 1 && bias.size(0) == channels, "leni_folded_cpp: bias must be [", channels, "]");
  const int dimension = channels_last ? 1 : 3;
  STD_TORCH_CHECK(x.size(dimension) <= 1 || x.stride(dimension) == 1, "leni_folded_cpp: x must have stride 1 along ",
                  channels_last ? "channels" : "columns", ", got ", x.stride(dimension));
}

leni::Activation activation(const Tensor& x, bool channels_last) {
  return {x.const_data_ptr(), x.size(0), x.size(1), x.size(2), x.size(3),
          x.stride(0), x.stride(1), x.stride(2), x.stride(3), channels_last};
}

void run(const leni::FoldedProblem& problem) {
  const leni::Host host = leni::current_host();
  switch (leni::current_isa()) {
#if defined(__x86_64__)
    case leni::Isa::Amx:
      if (problem.scalar == leni::Scalar::BFloat16) return leni::folded_amx(problem, host);
      [[fallthrough]];
    case leni::Isa::Avx512Bf16: return leni::folded_avx512_bf16(problem, host);
    case leni::Isa::Avx512: return leni::folded_avx512(problem, host);
    case leni::Isa::Avx2: return leni::folded_avx2(problem, host);
#endif
    default: return leni::folded_generic(problem, host);
  }
}

Tensor leni_folded(const Tensor& x, const Tensor& taps, const Tensor& weight, const Tensor& bias, bool channels_last) {
  check(x, taps, weight, bias, channels_last);
  const auto format = channels_last ? torch::headeronly::MemoryFormat::ChannelsLast
                                    : torch::headeronly::MemoryFormat::Contiguous;
  Tensor y = torch::stable::empty(x.sizes(), x.scalar_type(), std::nullopt, x.device(), std::nullopt, format);
  if (y.numel() == 0) return y;
  // The parameters are small; a strided one, as a slice of a larger tensor is, is gathered here.
  const Tensor contiguous_taps = torch::stable::contiguous(taps);
  const Tensor contiguous_weight = torch::stable::contiguous(weight);
  const Tensor contiguous_bias = torch::stable::contiguous(bias);
  run({scalar_of(x), activation(x, channels_last), y.mutable_data_ptr(), contiguous_taps.const_data_ptr(),
       contiguous_weight.const_data_ptr(), contiguous_bias.const_data_ptr(), taps.size(1)});
  return y;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(leni_kernels, m) {
  m.def("leni_folded_cpp(Tensor x, Tensor taps, Tensor weight, Tensor bias, bool channels_last) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(leni_kernels, CPU, m) { m.impl("leni_folded_cpp", TORCH_BOX(&leni_folded)); }
