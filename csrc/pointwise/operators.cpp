// The operators leni_kernels::{ada_relu, fully_parametric_relu, crelu}_cpp and their backward: check what the kernels
// rely on, allocate, describe layouts as sequences, and choose the instruction set.
#include <algorithm>
#include <array>
#include <cstdint>
#include <numeric>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#include "kernels/kernel.h"
#include "pointwise/problem.h"
#include "pytorch/checks.h"
#include "pytorch/host.h"
#include "pytorch/stable.h"
#include "pytorch/tensors.h"

namespace leni_kernels::pointwise {
namespace {

// ---- layouts ----------------------------------------------------------------------------------------------

// A number for each dimension of a tensor, or for some, without memory of its own on the heap.
class Dimensions {
 public:
  explicit Dimensions(int64_t count = 0) : count_(count) {
    STD_TORCH_CHECK(count <= kMostDimensions, "leni_kernels: a tensor of ", count, " dimensions");
    std::fill_n(values_, count, 0);
  }

  void push_back(int64_t value) { values_[count_++] = value; }
  int64_t size() const { return count_; }
  bool empty() const { return count_ == 0; }
  int64_t& operator[](int64_t i) { return values_[i]; }
  int64_t operator[](int64_t i) const { return values_[i]; }
  int64_t& back() { return values_[count_ - 1]; }
  const int64_t* data() const { return values_; }
  int64_t* begin() { return values_; }
  int64_t* end() { return values_ + count_; }
  const int64_t* begin() const { return values_; }
  const int64_t* end() const { return values_ + count_; }

 private:
  int64_t count_, values_[kMostDimensions];
};

// The dimensions of a dense tensor, outermost in memory first. One of size 1 may stand at either end of its stride:
// the larger dimension goes first, which keeps channels behind columns in channels-last.
Dimensions order_of(const Tensor& dense) {
  const Sizes sizes = dense.sizes(), strides = dense.strides();
  Dimensions order(dense.dim());
  for (int64_t i = 0; i < order.size(); ++i) {
    int64_t at = i;  // nearly always the last of those before
    for (; at > 0; --at) {
      const int64_t before = order[at - 1];
      if (strides[before] != strides[i] ? strides[before] > strides[i] : sizes[before] >= sizes[i]) break;
      order[at] = before;
    }
    order[at] = i;
  }
  return order;
}

// A tensor's sizes and strides in an order of its dimensions, those joined that can be stepped through as one.
struct Steps {
  const void* data;
  Dimensions sizes, strides;

  Steps(const Tensor& tensor, const Dimensions& order) : data(tensor.const_data_ptr()) {
    const Sizes all_sizes = tensor.sizes(), all_strides = tensor.strides();
    for (const int64_t d : order) {
      const int64_t size = all_sizes[d], stride = all_strides[d];
      if (size == 1) continue;
      if (!sizes.empty() && strides.back() == size * stride) {
        sizes.back() *= size;
        strides.back() = stride;
      } else {
        sizes.push_back(size);
        strides.push_back(stride);
      }
    }
  }

  bool dense() const { return sizes.empty() || (sizes.size() == 1 && strides[0] == 1); }

  Sequence sequence() const { return {data, dense(), static_cast<int>(sizes.size()), sizes.data(), strides.data()}; }

  // body(offset in elements) for each element.
  template <class Body>
  void for_each(const Body& body) const {
    Dimensions index(sizes.size());
    const int64_t count = std::accumulate(sizes.begin(), sizes.end(), int64_t{1}, std::multiplies<>());
    for (int64_t i = 0, offset = 0; i < count; ++i) {
      body(offset);
      for (int64_t d = sizes.size(); d-- > 0;) {
        offset += strides[d];
        if (++index[d] < sizes[d]) break;
        offset -= sizes[d] * strides[d];
        index[d] = 0;
      }
    }
  }
};

bool is_dense(const Tensor& x) { return x.numel() > 0 && Steps(x, order_of(x)).dense(); }

// As PyTorch's: of x's own strides if x is dense.
Tensor empty_as(const Tensor& x) {
  return is_dense(x) ? empty_strided(x.sizes(), x.strides(), x.scalar_type()) : torch::stable::empty_like(x);
}

// ---- checks -----------------------------------------------------------------------------------------------

Scalar check_input(const char* op, const Tensor& x) {
  check_cpu(op, x, "x");
  STD_TORCH_CHECK(x.dim() >= 2 && x.size(1) > 0, op, ": x must be [N, C, *spatial] with C at least 1");
  return scalar_of(op, x);
}

// Of a y of so many channels.
void check_gradient(const char* op, const Tensor& grad, const Tensor& x, int64_t channels) {
  Dimensions sizes(x.dim());
  for (int64_t d = 0; d < x.dim(); ++d) sizes[d] = d == 1 ? channels : x.size(d);
  leni_kernels::check_gradient(op, grad, x, Sizes(sizes.data(), sizes.size()), "y's");
}

// ---- parameters -------------------------------------------------------------------------------------------

// Which elements of y share a parameter: in memory, element ((group · repeats + r) · period + p) · run + i has
// parameter group · period + p. There is more than one group only for a threshold per element of samples that are
// not outermost in memory.
struct Sharing {
  Dimensions order;  // of the parameter's dimensions
  int64_t groups = 1, repeats = 1, period = 1, run = 1;

  Sharing(const Tensor& x, const Dimensions& x_order, const Tensor& parameter) : order(parameter.dim()) {
    std::iota(order.begin(), order.end(), 0);
    if (parameter.numel() == 1) {
      run = x.numel();
    } else if (parameter.dim() == 1) {
      const auto channels = std::find(x_order.begin(), x_order.end(), 1);
      repeats = product(x, x_order.begin(), channels);
      period = x.size(1);
      run = product(x, channels + 1, x_order.end());
    } else {
      const auto samples = std::find(x_order.begin(), x_order.end(), 0);
      groups = product(x, x_order.begin(), samples);
      repeats = x.size(0);
      period = product(x, samples + 1, x_order.end());
      std::copy_if(x_order.begin(), x_order.end(), order.begin(), [](int64_t d) { return d > 0; });
      for (int64_t& d : order) --d;
    }
  }

 private:
  static int64_t product(const Tensor& x, const int64_t* begin, const int64_t* end) {
    const Sizes sizes = x.sizes();
    return std::accumulate(begin, end, int64_t{1}, [&](int64_t total, int64_t d) { return total * sizes[d]; });
  }
};

template <class Body>
void for_dtype(ScalarType type, const Body& body) {
  switch (type) {
    case ScalarType::Float: return body(float{});
    case ScalarType::Double: return body(double{});
    case ScalarType::BFloat16: return body(torch::headeronly::BFloat16{});
    case ScalarType::Half: return body(torch::headeronly::Half{});
    default: STD_TORCH_CHECK(false, "leni_kernels: parameters must be floating-point");
  }
}

// The parameters of a call: as many as there are, then null.
using Given = std::array<const Tensor*, kMostParameters>;

// All that a call asks of them, but for the dtype, which autocast leaves as it is: slopes are [C]; a threshold may also
// be one value, [1] or [], or x's shape without the batch.
void check_parameters(const char* op, Function function, const Tensor& x, const Given& given) {
  const bool may_differ = function == Function::AdaRelu;
  for (size_t j = 0; j < given.size() && given[j] != nullptr; ++j) {
    const Sizes sizes = given[j]->sizes(), of_x = x.sizes();
    const bool per_channel = sizes.size() == 1 && sizes[0] == x.size(1);
    const bool one = sizes.size() == 0 || (sizes.size() == 1 && sizes[0] == 1);
    const bool per_element = std::equal(sizes.begin(), sizes.end(), of_x.begin() + 1, of_x.end());
    STD_TORCH_CHECK(given[j]->is_cpu(), op, ": parameters must be on the CPU");
    STD_TORCH_CHECK(per_channel || (may_differ && (one || per_element)), op, ": parameters must fit x");
  }
}

// Those as the kernels want them: by rows, one value each; by columns, copied until a row of them fills vectors.
class Parameters {
 public:
  Parameters(const Tensor& x, const Dimensions& x_order, const Given& given)
      : given_(given), sharing_(x, x_order, *given[0]) {
    constexpr int64_t vector = 16, least_period = 256, worth_copies = 8;
    // Rows of few vectors spend their time on ends; copying pays where there are many repeats to read the copies.
    if (sharing_.run < (sharing_.repeats < worth_copies ? vector : 4 * vector)) {
      each_ = sharing_.run;
      const int64_t columns = sharing_.period * each_;
      const int64_t whole_vectors = columns < 4 * vector ? vector / std::gcd(columns, vector) : 1;
      if (columns < least_period) all_ = whole_vectors * ((least_period - 1) / (columns * whole_vectors) + 1);
    }
    period_ = sharing_.period * each_ * all_;
    const ScalarType type = x.scalar_type();
    for (int64_t j = 0; j < count(); ++j) {
      for_dtype(type, [&](auto zero) { expand<decltype(zero)>(j, type); });
    }
  }

  int64_t count() const { return std::find(given_.begin(), given_.end(), nullptr) - given_.begin(); }
  int64_t groups() const { return sharing_.groups; }

  void describe(int64_t group, Problem& problem) const {
    problem.count = sharing_.repeats * sharing_.period * sharing_.run;
    problem.first = group * problem.count;
    problem.run = sharing_.run / each_;
    problem.period = period_;
    const int64_t bytes = problem.scalar == Scalar::Float64 ? sizeof(double) : sizeof(float);
    for (int64_t j = 0; j < count(); ++j) problem.parameters[j] = values_[j] + group * period_ * bytes;
  }

  // Memory for the sums over the gradients of parameter j, of all groups, and those sums as its gradient.
  double* sums(int64_t j) {
    sums_.resize(count() * sharing_.groups * period_);
    return sums_.data() + j * sharing_.groups * period_;
  }

  Tensor gradient(int64_t j) {
    const ScalarType type = given_[j]->scalar_type();
    const Tensor gradient = empty(given_[j]->sizes(), type);
    const double* sums = this->sums(j);
    for_dtype(type, [&](auto zero) {
      using T = decltype(zero);
      T* to = static_cast<T*>(gradient.mutable_data_ptr());
      for_each_value(Steps(gradient, sharing_.order), [&](int64_t first, int64_t offset) {
        const double* copies = sums + first;
        double total = 0;
        for (int64_t all = 0; all < all_; ++all, copies += period_ / all_) {
          total = std::accumulate(copies, copies + each_, total);
        }
        to[offset] = static_cast<T>(total);
      });
    });
    return gradient;
  }

 private:
  // body(the first of its copies, offset in elements) for each value of a parameter.
  template <class Body>
  void for_each_value(const Steps& steps, const Body& body) const {
    int64_t first = 0, number = 0;
    steps.for_each([&](int64_t offset) {
      body(first, offset);
      first += each_;
      if (++number < sharing_.period) return;
      first += period_ - sharing_.period * each_;
      number = 0;
    });
  }

  // Under autocast a parameter may be of more precision than x; it is used in x's, T.
  template <class T>
  void expand(int64_t j, ScalarType x_type) {
    using S = std::conditional_t<std::is_same_v<T, double>, double, float>;
    const Tensor& parameter = *given_[j];
    const Steps steps(parameter, sharing_.order);
    if (std::is_same_v<T, S> && parameter.scalar_type() == x_type && steps.dense() && each_ * all_ == 1) {
      values_[j] = static_cast<const char*>(parameter.const_data_ptr());
      return;
    }
    copies_[j].resize(sharing_.groups * period_ * sizeof(S));
    S* values = reinterpret_cast<S*>(copies_[j].data());
    for_dtype(parameter.scalar_type(), [&](auto zero) {
      const auto* from = static_cast<const decltype(zero)*>(parameter.const_data_ptr());
      for_each_value(steps, [&](int64_t first, int64_t offset) {
        std::fill_n(values + first, each_, static_cast<S>(static_cast<T>(from[offset])));
      });
    });
    for (int64_t group = 0; group < sharing_.groups; ++group) {
      S* once = values + group * period_;
      for (int64_t i = period_ / all_; i < period_; ++i) once[i] = once[i - period_ / all_];
    }
    values_[j] = copies_[j].data();
  }

  Given given_;
  Sharing sharing_;
  int64_t each_ = 1, all_ = 1, period_;  // how often each value is copied, then how often all of them; [period_]
  std::array<const char*, kMostParameters> values_;
  std::array<std::vector<char>, kMostParameters> copies_;
  std::vector<double> sums_;
};

// ---- AdaReLU and FullyParametricReLU ----------------------------------------------------------------------

// Zeros like a parameter, or a tensor of no elements.
Tensor zeros(const Tensor& parameter, bool like) {
  return like ? torch::stable::new_zeros(parameter, parameter.sizes()) : empty({0}, parameter.scalar_type());
}

Tensor run_forward(const char* op, Function function, const Tensor& x, const Given& given) {
  const Scalar scalar = check_input(op, x);
  check_parameters(op, function, x, given);
  Tensor y = empty_as(x);
  if (y.numel() == 0) return y;
  const Dimensions order = order_of(y);
  const Parameters parameters(x, order, given);
  const Steps steps(x, order);
  Problem problem{function, scalar, steps.sequence()};
  for (int64_t group = 0; group < parameters.groups(); ++group) {
    parameters.describe(group, problem);
    chosen(tables, &Kernels::forward, scalar)(problem, y.mutable_data_ptr(), Call());
  }
  return y;
}

// dx and the gradients of the parameters; what is not asked for is empty.
std::array<Tensor, 1 + kMostParameters> run_backward(const char* op, Function function, const Tensor& grad,
                                                     const Tensor& x, const Given& given, bool needs_input,
                                                     bool needs_parameters) {
  const Scalar scalar = check_input(op, x);
  check_gradient(op, grad, x, x.size(1));
  check_parameters(op, function, x, given);
  const Tensor dx = needs_input ? empty_as(x) : empty({0}, x.scalar_type());
  std::array<Tensor, 1 + kMostParameters> gradients{dx, dx, dx};  // where a new handle would allocate
  if (x.numel() == 0 || !needs_parameters) {
    for (size_t j = 0; j < given.size() && given[j] != nullptr; ++j) {
      gradients[1 + j] = zeros(*given[j], needs_parameters);
    }
    if (x.numel() == 0 || !needs_input) return gradients;
  }
  const Dimensions order = order_of(needs_input ? dx : x);
  Parameters parameters(x, order, given);
  const Steps steps(x, order), grad_steps(grad, order);
  GradientProblem problem{{function, scalar, steps.sequence()}, grad_steps.sequence()};
  if (needs_input) problem.dx = dx.mutable_data_ptr();
  for (int64_t group = 0; group < parameters.groups(); ++group) {
    parameters.describe(group, problem);
    for (int64_t j = 0; needs_parameters && j < parameters.count(); ++j) {
      problem.sums[j] = parameters.sums(j) + group * problem.period;
    }
    chosen(tables, &Kernels::backward, scalar)(problem, Call());
  }
  for (int64_t j = 0; needs_parameters && j < parameters.count(); ++j) gradients[1 + j] = parameters.gradient(j);
  return gradients;
}

Tensor ada_relu(const Tensor& x, const Tensor& threshold) {
  return run_forward("ada_relu_cpp", Function::AdaRelu, x, {&threshold});
}

std::tuple<Tensor, Tensor> ada_relu_backward(const Tensor& grad, const Tensor& x, const Tensor& threshold,
                                             bool needs_input, bool needs_parameters) {
  auto [dx, dthreshold, _] =
      run_backward("ada_relu_backward_cpp", Function::AdaRelu, grad, x, {&threshold}, needs_input, needs_parameters);
  return {std::move(dx), std::move(dthreshold)};
}

Tensor fully_parametric_relu(const Tensor& x, const Tensor& positive_slope, const Tensor& negative_slope) {
  return run_forward("fully_parametric_relu_cpp", Function::FullyParametricRelu, x, {&positive_slope, &negative_slope});
}

std::tuple<Tensor, Tensor, Tensor> fully_parametric_relu_backward(const Tensor& grad, const Tensor& x,
                                                                  const Tensor& positive_slope,
                                                                  const Tensor& negative_slope, bool needs_input,
                                                                  bool needs_parameters) {
  auto [dx, dpositive, dnegative] =
      run_backward("fully_parametric_relu_backward_cpp", Function::FullyParametricRelu, grad, x,
                   {&positive_slope, &negative_slope}, needs_input, needs_parameters);
  return {std::move(dx), std::move(dpositive), std::move(dnegative)};
}

// ---- CReLU ------------------------------------------------------------------------------------------------

// The elements of x's memory, or of y's, that one sample's channels, or one pixel's, take together.
int64_t inner_size(const Tensor& x, const Dimensions& order) {
  const auto channels = std::find(order.begin(), order.end(), 1);
  return std::accumulate(channels, order.end(), int64_t{1}, [&](int64_t n, int64_t d) { return n * x.size(d); });
}

Tensor crelu(const Tensor& x) {
  const Scalar scalar = check_input("crelu_cpp", x);
  const Dimensions order = order_of(is_dense(x) ? x : torch::stable::empty_like(x));
  Dimensions sizes(x.dim());
  for (int64_t d = 0; d < x.dim(); ++d) sizes[d] = x.size(d) * (d == 1 ? 2 : 1);
  const Tensor y = empty(Sizes(sizes.data(), sizes.size()), [&](int64_t i) { return order[i]; }, x.scalar_type());
  if (y.numel() == 0) return y;
  const Steps steps(x, order);
  const int64_t inner = inner_size(x, order);
  chosen(tables, &Kernels::crelu, scalar)({scalar, steps.sequence(), x.numel() / inner, inner, y.mutable_data_ptr()},
                                          Call());
  return y;
}

Tensor crelu_backward(const Tensor& grad, const Tensor& x) {
  constexpr const char* op = "crelu_backward_cpp";
  const Scalar scalar = check_input(op, x);
  check_gradient(op, grad, x, 2 * x.size(1));
  Tensor dx = empty_as(x);
  if (dx.numel() == 0) return dx;
  const Dimensions order = order_of(dx);
  const Steps steps(x, order), grad_steps(grad, order);
  const int64_t inner = inner_size(x, order);
  chosen(tables, &Kernels::crelu_backward, scalar)(
      {scalar, steps.sequence(), grad_steps.sequence(), x.numel() / inner, inner, dx.mutable_data_ptr()}, Call());
  return dx;
}

}  // namespace
}  // namespace leni_kernels::pointwise

STABLE_TORCH_LIBRARY_FRAGMENT(leni_kernels, m) {
  m.def("ada_relu_cpp(Tensor x, Tensor threshold) -> Tensor");
  m.def(
      "ada_relu_backward_cpp(Tensor grad, Tensor x, Tensor threshold, bool needs_input, bool needs_parameters) "
      "-> (Tensor, Tensor)");
  m.def("fully_parametric_relu_cpp(Tensor x, Tensor positive_slope, Tensor negative_slope) -> Tensor");
  m.def(
      "fully_parametric_relu_backward_cpp(Tensor grad, Tensor x, Tensor positive_slope, Tensor negative_slope, "
      "bool needs_input, bool needs_parameters) -> (Tensor, Tensor, Tensor)");
  m.def("crelu_cpp(Tensor x) -> Tensor");
  m.def("crelu_backward_cpp(Tensor grad, Tensor x) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(leni_kernels, CPU, m) {
  m.impl("ada_relu_cpp", TORCH_BOX(&leni_kernels::pointwise::ada_relu));
  m.impl("ada_relu_backward_cpp", TORCH_BOX(&leni_kernels::pointwise::ada_relu_backward));
  m.impl("fully_parametric_relu_cpp", TORCH_BOX(&leni_kernels::pointwise::fully_parametric_relu));
  m.impl("fully_parametric_relu_backward_cpp", TORCH_BOX(&leni_kernels::pointwise::fully_parametric_relu_backward));
  m.impl("crelu_cpp", TORCH_BOX(&leni_kernels::pointwise::crelu));
  m.impl("crelu_backward_cpp", TORCH_BOX(&leni_kernels::pointwise::crelu_backward));
}
