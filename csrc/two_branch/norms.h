// The batch norms of LENI, two, and Reborn, one, as algebra on vectors of channels.
//
// a = [p; z], p = max(x, 0) and z = D ⋆ᵀ min(x, 0), has a mean and a variance; BN1's output then has known ones, so
// that the statistics of a determine both norms. What a block computes is y = weight · (a − mean) + bias with
// weight = P · diag(scale) and bias = c + P · shift, and no pass over BN1's output is needed. Backward, every reduction
// that the norms ask for follows from G = Σ dy·(a − mean)ᵀ and S = Σ dy over all pixels.
//
// Vectors are in double: powers of a variance leave float's range long before the activations do, and what the norms
// leave of a gradient may be much smaller than what they subtract. Matrices are of the kernels' type.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

namespace leni_kernels::two_branch {

using Vector = std::vector<double>;

inline double inverse_root(double variance, double eps) { return 1 / std::sqrt(variance + eps); }

// ---- P between the norms and the kernels ---------------------------------------------------------------------

// weight [C, 2C] and bias [C] for P [C, 2C], c [C], scale and shift [2C].
template <class Scale>
void fold(const Scale* compress, const Vector& compress_bias, const Vector& scale, const Vector& shift, Scale* weight,
          Scale* bias) {
  const int64_t channels = compress_bias.size(), features = scale.size();
  for (int64_t o = 0; o < channels; ++o) {
    double sum = 0;
    for (int64_t k = 0; k < features; ++k) {
      const double value = compress[o * features + k];
      weight[o * features + k] = static_cast<Scale>(value * scale[k]);
      sum += value * shift[k];
    }
    bias[o] = static_cast<Scale>(compress_bias[o] + sum);
  }
}

// What G [C, 2C] and S [C] amount to: of P [C, 2C], of scale and of shift [2C].
template <class Scale>
struct FoldGradients {
  Scale* compress;
  Vector scale, shift;
};

// The gradient of P takes the place of G.
template <class Scale>
FoldGradients<Scale> fold_backward(const Scale* compress, const Vector& scale, const Vector& shift, Scale* grad_weight,
                                   const Scale* grad_bias) {
  const int64_t features = scale.size(), channels = features / 2;
  FoldGradients<Scale> result{grad_weight, Vector(features), Vector(features)};
  for (int64_t o = 0; o < channels; ++o) {
    const double sum = grad_bias[o];
    for (int64_t k = 0; k < features; ++k) {
      const double value = compress[o * features + k], product = grad_weight[o * features + k];
      result.scale[k] += value * product;
      result.shift[k] += value * sum;
      grad_weight[o * features + k] = static_cast<Scale>(product * scale[k] + sum * shift[k]);
    }
  }
  return result;
}

// What the gradients of a's mean and variance add to that of each value of a: constant + slope · a.
template <class Scale>
void through_statistics(const double* mean, double count, const double* grad_mean, const double* grad_variance,
                        int64_t features, Scale* constant, Scale* slope) {
  for (int64_t f = 0; f < features; ++f) {
    slope[f] = static_cast<Scale>(2 * grad_variance[f] / count);  // rounded first: the constant cancels what it adds
    constant[f] = static_cast<Scale>(grad_mean[f] / count - slope[f] * mean[f]);
  }
}

// ---- LENI's two norms in training ------------------------------------------------------------------------------

// γ1 [C], γ2 and β2 [2C], and the eps of both norms.
struct LeniNorms {
  Vector negative_weight, fusion_weight, fusion_bias;
  double negative_eps, fusion_eps;

  int64_t channels() const { return negative_weight.size(); }

  // Of what BN2 reads, [p; BN1(z)], for a's biased variance [2C].
  double fusion_variance(const double* variance, int64_t f) const {
    const int64_t c = f - channels();
    if (c < 0) return variance[f];
    // γ1²·v/(v + ε1), which at v = ∞ is γ1².
    const double share = 1 - negative_eps / (variance[f] + negative_eps);
    return share * negative_weight[c] * negative_weight[c];
  }

  // r2, what BN2 divides by, inverted.
  double inverse(const double* variance, int64_t f) const {
    return inverse_root(fusion_variance(variance, f), fusion_eps);
  }

  // What BN1 multiplies by: γ1·r1 for z, 1 for p.
  double first(const double* variance, int64_t f) const {
    const int64_t c = f - channels();
    return c < 0 ? 1 : negative_weight[c] * inverse_root(variance[f], negative_eps);
  }

  // Of both norms together.
  Vector scale(const double* variance) const {
    Vector result(2 * channels());
    for (size_t f = 0; f < result.size(); ++f) {
      result[f] = fusion_weight[f] * inverse(variance, f) * first(variance, f);
    }
    return result;
  }
};

struct LeniNormGradients {
  Vector negative_weight, fusion_weight, fusion_bias;  // of γ1, γ2, β2
  Vector mean, variance;                               // of a's, [2C] each
};

// From the gradients of scale and shift.
inline LeniNormGradients norms_backward(const LeniNorms& norms, const double* variance, const Vector& grad_scale,
                                        const Vector& grad_shift) {
  const int64_t channels = norms.channels(), features = 2 * channels;
  const Vector scale = norms.scale(variance);
  LeniNormGradients result{Vector(channels), Vector(features), grad_shift, Vector(features), Vector(features)};
  for (int64_t f = 0; f < features; ++f) {
    const double inverse = norms.inverse(variance, f);
    double per_variance = inverse * inverse;
    if (f >= channels) {
      // BN2 all but undoes BN1's scale γ1·r1: with t = γ1²·r1²·v_z + ε2 the variance that BN2 divides by, what is left
      // is of the order of the eps. The differences t − γ1²·r1²·v_z = ε2 and r1² − r1⁴·v_z = ε1·r1⁴ are written as
      // what they are, since computed they would cancel.
      const double gamma = norms.negative_weight[f - channels], r1 = inverse_root(variance[f], norms.negative_eps);
      const double rest = gamma * r1 * inverse;
      result.negative_weight[f - channels] =
          grad_scale[f] * norms.fusion_weight[f] * r1 * norms.fusion_eps * inverse * inverse * inverse;
      per_variance = r1 * r1 * (1 + norms.negative_eps * rest * rest);
    }
    result.fusion_weight[f] = grad_scale[f] * inverse * norms.first(variance, f);
    result.mean[f] = -grad_shift[f] * scale[f];
    result.variance[f] = -0.5 * per_variance * grad_scale[f] * scale[f];
  }
  return result;
}

// ---- Reborn's one norm -------------------------------------------------------------------------------------------

// γ, β [C], and what of a the norm leaves alone.
struct RebornNorm {
  Vector weight, bias;
  double eps;

  int64_t channels() const { return weight.size(); }

  Vector scale(const double* variance) const {
    Vector result(2 * channels(), 1);
    for (int64_t c = 0; c < channels(); ++c) result[channels() + c] = weight[c] * inverse_root(variance[c], eps);
    return result;
  }

  Vector shift() const {
    Vector result(2 * channels());
    std::copy(bias.begin(), bias.end(), result.begin() + channels());
    return result;
  }
};

struct RebornNormGradients {
  Vector weight, bias, statistics;  // of γ and β [C], and of z's mean and variance [2C]
};

// From the gradients of scale and shift [2C].
inline RebornNormGradients norm_backward(const RebornNorm& norm, const double* variance, const Vector& grad_scale,
                                         const Vector& grad_shift) {
  const int64_t channels = norm.channels();
  RebornNormGradients result{Vector(channels), Vector(channels), Vector(2 * channels)};
  for (int64_t c = 0; c < channels; ++c) {
    const double inverse = inverse_root(variance[c], norm.eps), scale = norm.weight[c] * inverse;
    result.weight[c] = grad_scale[channels + c] * inverse;
    result.bias[c] = grad_shift[channels + c];
    result.statistics[c] = -grad_shift[channels + c] * scale;
    result.statistics[channels + c] = -0.5 * inverse * inverse * grad_scale[channels + c] * scale;
  }
  return result;
}

}  // namespace leni_kernels::two_branch
