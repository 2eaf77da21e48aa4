"""LENI, defined in plain PyTorch; every backend is tested against this file.

Cai, Peng, Shen 2023, "Learn to Enhance the Negative Information in Convolutional Neural Network", §3.1.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..common.norm import Norm
from ..two_branch.reference import (
    Layer,
    block_backward,
    centred_bias,
    compress_normed,
    folding_dtype,
    split_signs,
    sums_of_products,
    through_compress,
)


def leni(x: Tensor, deconv: Layer, negative_norm: Layer, fusion_norm: Layer, compress: Layer,
         pointwise: Layer | None = None) -> Tensor:
    """``compress(fusion_norm([max(x, 0); negative_norm(deconv(min(x, 0)))]))`` for x ``[N, C, H, W]``.

    A separable deconvolution goes through ``pointwise`` too, before the norm.
    """
    positive, negative = split_signs(x)
    deconvolved = deconv(negative)
    if pointwise is not None:
        deconvolved = pointwise(deconvolved)
    return compress(fusion_norm(torch.cat([positive, negative_norm(deconvolved)], dim=1)))


# ---- the folded form, for inference ------------------------------------------------------------------------


class Folded(NamedTuple):
    """LENI with its norms folded: ``y = weight · [max(x, 0); taps ⋆ᵀ min(x, 0)] + bias``.

    ``taps`` ``[C, k, k]``, ``weight`` ``[C, 2C]``, ``bias`` ``[C]``. ``mean`` ``[2C]`` changes nothing but the
    rounding: it is about the mean of what ``weight`` multiplies, and products that round are of values less it.
    """

    taps: Tensor
    weight: Tensor
    bias: Tensor
    mean: Tensor | None = None


def fold_leni(deconv_weight: Tensor, negative_norm: Norm, fusion_norm: Norm, compress_weight: Tensor,
              compress_bias: Tensor | None, pointwise_weight: Tensor | None = None, *, centred: bool = True) -> Folded:
    """Fold the first norm into the deconvolution and the second into the 1×1 convolution.

    Takes ``deconv_weight`` ``[C, 1, k, k]``, ``compress_weight`` ``[C, 2C, 1, 1]`` and norms with running
    statistics over C and 2C channels; differentiable in all of them. Of a separable deconvolution
    ``pointwise_weight`` ``[C, C, 1, 1]`` goes into the 1×1 convolution, and the first norm with it. There is a mean
    where one is asked for as ``centred``. Computes in float32, or float64 for float64 parameters.

    Raises:
        ValueError: if a norm has no running statistics.
    """
    channels = deconv_weight.shape[0]
    dtype = folding_dtype(deconv_weight.dtype)
    negative_scale, negative_shift = negative_norm.scale_and_shift(dtype)
    fusion_scale, fusion_shift = fusion_norm.scale_and_shift(dtype)
    compress = compress_weight.to(dtype).flatten(1)
    weight = compress * fusion_scale
    # Sums of products rather than matmul, which autocast would take down to half precision.
    bias = (compress * fusion_shift).sum(1) + (weight[:, channels:] * negative_shift).sum(1)
    if compress_bias is not None:
        bias = bias + compress_bias.to(dtype)
    mean = None
    if centred:
        mean = (fusion_norm.running_mean.to(dtype) - F.pad(negative_shift, (channels, 0))).detach()
        # Less a mean that is small against the deviations from it, values are not smaller.
        mean = mean * (mean.square() > fusion_norm.running_var)
    taps = deconv_weight.to(dtype).squeeze(1)
    if pointwise_weight is None:
        return Folded(taps * negative_scale[:, None, None], weight, bias, mean)
    pointwise = pointwise_weight.double().flatten(1)
    if centred:
        mean = torch.cat([mean[:channels], _mean_behind(pointwise.detach(), negative_norm).to(dtype)])
    positive, negative = weight.chunk(2, dim=1)
    negative = (negative.double() * negative_scale) @ pointwise
    return Folded(taps, torch.cat([positive, negative.to(dtype)], dim=1), bias, mean)


_FAR = 4
"""Of a mean, how many deviations away it is worth an estimate."""


def _mean_behind(pointwise: Tensor, norm: Norm) -> Tensor:
    """About the mean of what ``pointwise`` ``[C, C]`` makes of it, whose norm knows; 0 where no mean is far away."""
    mean, variance = norm.running_mean.double(), norm.running_var.double()
    squares = pointwise.t() @ pointwise
    # By least squares. What the matrix all but loses would come back as anything, but for the ridge.
    ridge = 1e-3 * squares.diagonal().mean() + torch.finfo(squares.dtype).tiny
    squares = squares + ridge * torch.eye(len(squares), dtype=squares.dtype, device=squares.device)
    factor = torch.linalg.cholesky_ex(squares)[0]  # which waits for no GPU
    estimate = torch.cholesky_solve((pointwise.t() @ mean)[:, None], factor)[:, 0]
    return torch.where((mean.square() > _FAR**2 * variance).any(), estimate, 0)


def _correlate(x: Tensor, taps: Tensor) -> Tensor:
    return F.conv2d(x, taps.unsqueeze(1), padding=taps.shape[-1] // 2, groups=x.shape[1])


def _deconvolve(x: Tensor, taps: Tensor) -> Tensor:
    return _correlate(x, taps.flip(-1, -2))


def _features(x: Tensor, taps: Tensor) -> Tensor:
    positive, negative = split_signs(x)
    return torch.cat([positive, _deconvolve(negative, taps.to(x.dtype))], dim=1)


def leni_folded(x: Tensor, taps: Tensor, weight: Tensor, bias: Tensor, mean: Tensor | None = None) -> Tensor:
    """``weight · [max(x, 0); taps ⋆ᵀ min(x, 0)] + bias`` in x's dtype, parameters as in :class:`Folded`.

    The stride-1 transposed convolution is written as the equal correlation with
    flipped taps, which PyTorch runs faster.
    """
    if mean is None:
        features = _features(x, taps)
    else:
        features = (_features(x.to(taps.dtype), taps) - mean[:, None, None]).to(x.dtype)
        bias = centred_bias(weight, bias, mean)
    return F.conv2d(features, weight.to(x.dtype)[:, :, None, None], bias.to(x.dtype))


def leni_statistics(x: Tensor, taps: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance ``[2C]``, in taps' dtype, of ``[max(x, 0); taps ⋆ᵀ min(x, 0)]``."""
    variance, mean = torch.var_mean(_features(x.to(taps.dtype), taps), (0, 2, 3), correction=0)
    return mean, variance


def leni_weight_gradient(grad: Tensor, x: Tensor, taps: Tensor, mean: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The gradients of :func:`leni_folded` for (weight, bias), in taps' dtype; with ``mean`` ``[2C]``, for features
    less their mean."""
    return sums_of_products(grad, _features(x, taps), taps.dtype, mean)


def leni_covariance(x: Tensor, taps: Tensor, centre: Tensor) -> Tensor:
    """The mean ``[C, C]`` of ``(z − centre)·(z − centre)ᵀ`` over pixels, for ``z = taps ⋆ᵀ min(x, 0)``, in taps' dtype;
    0 of an empty batch."""
    distances = _features(x.to(taps.dtype), taps)[:, x.shape[1]:] - centre[:, None, None]
    return torch.einsum("nihw,njhw->ij", distances, distances) / max(x.numel() // x.shape[1], 1)


def leni_input_gradient(grad: Tensor, x: Tensor, taps: Tensor, weight: Tensor, constant: Tensor | None = None,
                        slope: Tensor | None = None, matrix: Tensor | None = None,
                        centre: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The gradients of :func:`leni_folded` for (x, taps).

    With ``constant`` and ``slope`` ``[2C]``, the gradient of ``a = [max(x, 0); z]``, z = taps ⋆ᵀ min(x, 0), has
    ``constant + slope·a`` added; with a ``matrix`` ``[C, C]`` and a ``centre`` ``[C]``, of
    ``a = [max(x, 0); matrix·(z − centre)]``.
    """
    of_features = through_compress(grad, weight)
    if slope is not None:
        features = _features(x, taps)
        if matrix is not None:
            positive, deconvolved = features.chunk(2, dim=1)
            distances = (deconvolved - centre[:, None, None]).to(x.dtype)
            features = torch.cat([positive, F.conv2d(distances, matrix.to(x.dtype)[:, :, None, None])], 1)
        of_features = of_features + (constant[:, None, None] + slope[:, None, None] * features).to(x.dtype)
    of_positive, of_deconvolved = of_features.chunk(2, dim=1)
    of_negative = _correlate(of_deconvolved, taps.to(x.dtype))
    grad_x = torch.where(x > 0, of_positive, torch.where(x < 0, of_negative, 0))
    height, width = x.shape[2:]
    negative, padded = split_signs(x)[1], F.pad(of_deconvolved.to(taps.dtype), [taps.shape[-1] // 2] * 4)
    offsets = range(taps.shape[-1])
    shifted = (padded[:, :, i:i + height, j:j + width] for i in offsets for j in offsets)
    grad_taps = torch.stack([(negative * shift).sum((0, 2, 3)) for shift in shifted], -1)
    return grad_x, grad_taps.view_as(taps)


def leni_folded_backward(grad: Tensor, x: Tensor, taps: Tensor, weight: Tensor, mean: Tensor | None,
                         needs: tuple[bool, bool, bool, bool]) -> tuple[Tensor | None, ...]:
    """Gradients of ``weight · ([max(x, 0); taps ⋆ᵀ min(x, 0)] − mean) + bias`` for (x, taps, weight, bias), None where
    ``needs`` says so.

    Recomputes both branches from x, so that x is all that need be kept.
    """
    of_input = leni_input_gradient(grad, x, taps, weight) if any(needs[:2]) else (None, None)
    of_weight = leni_weight_gradient(grad, x, taps, mean) if any(needs[2:]) else (None, None)
    return tuple(gradient if needed else None
                 for gradient, needed in zip((*of_input, *of_weight), needs, strict=True))


# ---- a block in training -----------------------------------------------------------------------------------


def _fused_scale(variance: Tensor, negative_weight: Tensor | None, fusion_weight: Tensor | None, negative_eps: float,
                 fusion_eps: float) -> Tensor:
    """What LENI's two norms scale ``[max(x, 0); z]`` by, for its variance ``[2C]``; both are in float64."""
    positive, negative = variance.chunk(2)
    gamma = torch.ones_like(negative) if negative_weight is None else negative_weight.double()
    first = torch.cat([torch.ones_like(gamma), gamma * torch.rsqrt(negative + negative_eps)])
    of_normed = (1 - negative_eps / (negative + negative_eps)) * gamma.square()
    scale = first * torch.rsqrt(torch.cat([positive, of_normed]) + fusion_eps)
    return scale if fusion_weight is None else scale * fusion_weight.double()


def leni_training_backward(
        grad: Tensor, x: Tensor, deconv_weight: Tensor, negative_weight: Tensor | None, negative_bias: Tensor | None,
        fusion_weight: Tensor | None, fusion_bias: Tensor | None, compress_weight: Tensor, statistics: Tensor,
        grad_statistics: Tensor | None, negative_eps: float, fusion_eps: float,
        needs_input: bool) -> tuple[Tensor, ...]:
    """The gradients of x, D, γ1, β1, γ2, β2, P, c and of the statistics of a batch in training, empty where there is
    none; for gradients of the statistics that are given, those of x and D alone."""

    def normed(features: Tensor, mean_and_variance: Tensor, *parameters: Tensor | None) -> Tensor:
        gamma1, gamma2, beta2, weight, bias = parameters
        mean, variance = mean_and_variance.chunk(2)
        scale = _fused_scale(variance, gamma1, gamma2, negative_eps, fusion_eps)
        return compress_normed(features, mean, scale, beta2, weight, bias)

    gradients = block_backward(
        grad, x, lambda inputs, taps: _features(inputs, taps.squeeze(1)), deconv_weight, normed,
        (negative_weight, fusion_weight, fusion_bias, compress_weight, compress_weight.new_zeros(x.shape[1])),
        statistics, grad_statistics, (needs_input, needs_input, True), True)
    grad_x, grad_deconv, grad_gamma1, grad_gamma2, grad_beta2, grad_weight, grad_bias, of_statistics = gradients
    absent = negative_bias is None or grad_statistics is not None
    grad_beta1 = x.new_empty(0) if absent else torch.zeros_like(negative_bias)
    return (grad_x, grad_deconv, grad_gamma1, grad_beta1, grad_gamma2, grad_beta2, grad_weight, grad_bias,
            of_statistics)
