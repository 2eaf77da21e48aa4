"""Training a block whose deconvolution is separable: its norms' algebra, and the steps that the kernels' passes make.

Between z = D ⋆ᵀ min(x, 0) and BN1 stands W: n = W z. Its mean is W·m_z and its variance diag(W·Cov·Wᵀ), for the
covariance of z, so that there is no pass over n: what ``csrc/two_branch/norms.h`` says of [p; z] holds of [p; n], and a
block is y = weight · (a − mean) + bias of a = [p; z] still, with weight = [We_p, We_n·W] for P·diag(scale) = We.
Backward, with G = Σ dy·(a − mean)ᵀ as there, G_n = G_z·Wᵀ is that of n, and

    dW = We_nᵀ·G_z + 2·diag(dv_n)·W·Cov        dm_z = Wᵀ·dm_n
    g_z = (We_n·W)ᵀ·dy + dm_z/M + K·(z − m_z)   K = 2/M · Wᵀ·diag(dv_n)·W

so that in the pass to x's gradient a matrix takes the place of the slope of z.

It is five products of C×C matrices, in float64 and by PyTorch for the kernels of every backend. Those are
``ops.Kernels``. Only x, vectors of channels, weight and W·Cov are kept for backward.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..common import checks
from ..common.layout import reads_channels_last
from ..two_branch.reference import folding_dtype
from ..two_branch.statistics import gathered_over, precise, summed_over


class Moments(NamedTuple):
    """What a batch's norms need of a = [p; z], in float64."""

    mean: Tensor
    """``[2C]``, numbers that the kernels can subtract."""
    variance: Tensor
    """``[C]``, biased, of p."""
    covariance: Tensor
    """``[C, C]``, biased, of z."""
    count: Tensor
    """Of values a channel; ``[1]``."""


def _moments(kernels: Any, x: Tensor, taps: Tensor, group: str) -> Moments:
    """Of x, or of all batches of a process group."""
    channels = x.shape[1]
    mean, variance = kernels.statistics(x, taps)
    covariance = kernels.covariance(x, taps, mean[channels:].contiguous())
    count = torch.full((1,), x.numel() // channels, dtype=torch.float64, device=x.device)
    moments = Moments(mean.double(), variance[:channels].double(), covariance.double(), count)
    return _merged(group, moments, mean.dtype) if group else moments


def _merged(group: str, own: Moments, dtype: torch.dtype) -> Moments:
    """The moments of all processes together, whose batches may differ in size."""
    parts = gathered_over(group, torch.cat([part.flatten() for part in own]))
    mean, variance, covariance, counts = parts.split([part.numel() for part in own], dim=1)
    count, share = counts.sum(0), counts / counts.sum(0)
    whole = (mean * share).sum(0)
    positive, negative = (mean - whole).chunk(2, dim=1)
    variance = ((variance + positive.square()) * share).sum(0)
    covariance = (covariance * share).sum(0).view_as(own.covariance) + (negative * share).t() @ negative
    return Moments(whole.to(dtype).double(), variance, covariance, count)


def _statistics(moments: Moments, pointwise: Tensor, spread: Tensor) -> Tensor:
    """The packed statistics ``[4C + 1]`` of [p; n]; ``spread`` is W·Cov."""
    positive, negative = moments.mean.chunk(2)
    variance = (spread * pointwise).sum(1).clamp(min=0)
    return torch.cat([positive, pointwise @ negative, moments.variance, variance, moments.count])


class _Norms(NamedTuple):
    """Both norms of a batch on [p; n], each ``[2C]`` in float64."""

    first: Tensor
    """What BN1 multiplies by, 1 for p."""
    inverse: Tensor
    """BN1's r1, of p BN2's r2."""
    second: Tensor
    """BN2's r2."""
    weight: Tensor
    """γ2."""
    shift: Tensor
    """β2."""

    @property
    def scale(self) -> Tensor:
        return self.weight * self.second * self.first


def _or(parameter: Tensor | None, like: Tensor, default: float) -> Tensor:
    return torch.full_like(like, default) if parameter is None else parameter.double()


def _norms(statistics: Tensor, negative_weight: Tensor | None, fusion_weight: Tensor | None,
           fusion_bias: Tensor | None, negative_eps: float, fusion_eps: float) -> _Norms:
    variance = statistics[:-1].chunk(2)[1]
    positive, negative = variance.chunk(2)
    gamma, inverse = _or(negative_weight, negative, 1), torch.rsqrt(negative + negative_eps)
    # γ1²·v/(v + ε1), which at v = ∞ is γ1².
    seen = (1 - negative_eps / (negative + negative_eps)) * gamma.square()
    second = torch.rsqrt(torch.cat([positive, seen]) + fusion_eps)
    return _Norms(torch.cat([torch.ones_like(positive), gamma * inverse]),
                  torch.cat([second[:len(positive)], inverse]), second, _or(fusion_weight, variance, 1),
                  _or(fusion_bias, variance, 0))


def _matrix(weight: Tensor) -> Tensor:
    return weight.flatten(1).double()


def training(kernels: Any, x: Tensor, deconv_weight: Tensor, pointwise_weight: Tensor, negative_weight: Tensor | None,
             negative_bias: Tensor | None, fusion_weight: Tensor | None, fusion_bias: Tensor | None,
             compress_weight: Tensor, compress_bias: Tensor | None, negative_eps: float, fusion_eps: float,
             group: str) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """y, and in float64 the packed statistics ``[4C + 1]`` of [p; n], a's mean ``[2C]``, the weight ``[C, 2C]`` of
    [p; z], and W·Cov ``[C, C]``.

    β1 shifts what BN2 centres, and has no part in it.
    """
    channels_last = reads_channels_last("leni_separable_training", x)
    a, = precise(x, channels_last)
    dtype = folding_dtype(a.dtype)
    taps, pointwise, compress = deconv_weight.to(dtype).squeeze(1), _matrix(pointwise_weight), _matrix(compress_weight)
    moments = _moments(kernels, a, taps, group)
    spread = pointwise @ moments.covariance
    statistics = _statistics(moments, pointwise, spread)
    norms = _norms(statistics, negative_weight, fusion_weight, fusion_bias, negative_eps, fusion_eps)
    bias = compress @ norms.shift
    if compress_bias is not None:
        bias = bias + compress_bias.double()
    positive, negative = (compress * norms.scale).chunk(2, dim=1)
    weight = torch.cat([positive, negative @ pointwise], dim=1)
    y = kernels.folded(a, taps, weight.to(dtype), bias.to(dtype), moments.mean.to(dtype))
    return checks.in_dtype(y, x.dtype, channels_last), statistics, moments.mean, weight, spread


def training_backward(kernels: Any, rounds: bool, grad: Tensor, x: Tensor, deconv_weight: Tensor,
                      pointwise_weight: Tensor, negative_weight: Tensor | None, negative_bias: Tensor | None,
                      fusion_weight: Tensor | None, fusion_bias: Tensor | None, compress_weight: Tensor,
                      statistics: Tensor, mean: Tensor, weight: Tensor, spread: Tensor, negative_eps: float,
                      fusion_eps: float, group: str, needs_input: bool) -> tuple[Tensor | None, ...]:
    """The gradients of x, D, W, γ1, β1, γ2, β2, P and c; of the first two only if ``needs_input``.

    ``rounds`` says that the kernels round the weight to x's dtype.
    """
    channels_last = reads_channels_last("leni_separable_training_backward", x)
    a, grad = precise(x, channels_last, grad)
    dtype = folding_dtype(a.dtype)
    taps, pointwise, compress = deconv_weight.to(dtype).squeeze(1), _matrix(pointwise_weight), _matrix(compress_weight)
    norms = _norms(statistics, negative_weight, fusion_weight, fusion_bias, negative_eps, fusion_eps)
    weight, scale = weight.to(a.dtype if rounds else dtype), norms.scale

    of_weight, of_bias = (sums.double() for sums in kernels.weight_gradient(grad, a, taps, mean.to(dtype)))
    of_p, of_z = of_weight.chunk(2, dim=1)
    of_normed = torch.cat([of_p, of_z @ pointwise.t()], dim=1)
    of_scale, of_shift = (compress * of_normed).sum(0), of_bias @ compress
    of_variance = _variance_gradient(norms, of_scale, negative_eps)
    # What goes through the means has to cancel what the rounded weight passes on.
    through = torch.cat([-(of_bias @ weight.double()), of_variance])
    negative = slice(x.shape[1], None)
    of_pointwise = (compress[:, negative] * scale[negative]).t() @ of_z + 2 * of_variance[negative, None] * spread
    # BN2 all but undoes BN1's scale: what is left, of the order of the eps, is written as what it is.
    of_gamma = (of_scale * norms.weight * norms.inverse * norms.second ** 3)[negative] * fusion_eps
    gradients = (of_pointwise, of_gamma, torch.zeros_like(of_gamma), of_scale * norms.second * norms.first, of_shift,
                 of_normed * scale + of_bias[:, None] * norms.shift)
    parameters = (pointwise_weight, negative_weight, negative_bias, fusion_weight, fusion_bias, compress_weight)
    of_parameters = [None if parameter is None else gradient.to(parameter.dtype).view(parameter.shape)
                     for parameter, gradient in zip(parameters, gradients, strict=True)]
    of_parameters.append(of_bias.to(compress_weight.dtype))
    if not needs_input:
        return None, None, *of_parameters
    if group:
        through = summed_over(group, through)
    added = _through_statistics(through, statistics[-1], mean, pointwise, dtype)
    grad_x, grad_taps = kernels.input_gradient(grad, a, taps, weight.to(dtype), *added)
    return (checks.in_dtype(grad_x, x.dtype, channels_last), grad_taps.to(deconv_weight.dtype).view_as(deconv_weight),
            *of_parameters)


def _variance_gradient(norms: _Norms, of_scale: Tensor, negative_eps: float) -> Tensor:
    """Of [p; n]'s variance ``[2C]``, from that of scale; γ1²·v_n is gone from it as in ``norms.h``."""
    rest = norms.first * norms.second
    of_p, of_n = norms.inverse.square().chunk(2)
    per_variance = torch.cat([of_p, of_n * (1 + negative_eps * rest.chunk(2)[1].square())])
    return -0.5 * per_variance * of_scale * norms.scale


def _through_statistics(gradients: Tensor, count: Tensor, mean: Tensor, pointwise: Tensor,
                        dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What the gradients ``[4C]`` of a's mean, and of [p; n]'s variance, add to a's.

    That is constant + slope·[p; matrix·(z − centre)], where rows of the matrix are at most 1: half precision may not
    have numbers as small as they are else.
    """
    of_mean, of_variance = (gradients / count).chunk(2)
    of_p, of_n = of_variance.chunk(2)
    slope = (2 * of_p).to(dtype)  # rounded first: the constant has to cancel what it adds
    mean_p, mean_z = mean.chunk(2)
    constant_p, constant_z = of_mean.chunk(2)
    matrix = 2 * (pointwise.t() * of_n) @ pointwise
    largest = matrix.abs().amax(1)
    largest = torch.where(largest > 0, largest, 1)
    constant = torch.cat([constant_p - slope.double() * mean_p, constant_z])
    return (constant.to(dtype), torch.cat([slope, largest.to(dtype)]), (matrix / largest[:, None]).to(dtype),
            mean_z.to(dtype))
