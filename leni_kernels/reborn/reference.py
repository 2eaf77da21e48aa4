"""Reborn, defined in plain PyTorch; every backend is tested against this file.

Cai, Huang, Peng 2021, eq. 2.
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
    compress_normed,
    folding_dtype,
    split_signs,
    sums_of_products,
    through_compress,
)


def reborn(x: Tensor, deconv: Layer, negative_norm: Layer, compress: Layer | None) -> Tensor:
    """``compress([max(x, 0); negative_norm(deconv(min(x, 0)))])`` for x ``[N, C, H, W]``.

    Without ``compress``, which makes C channels of them again, the 2C channels themselves.
    """
    positive, negative = split_signs(x)
    features = torch.cat([positive, negative_norm(deconv(negative))], dim=1)
    return features if compress is None else compress(features)


class FoldedRebornFeatures(NamedTuple):
    """Reborn's 2C channels with the norm folded: ``[max(x, 0); taps ⋆ᵀ min(x, 0) + shift]``.

    ``taps`` ``[C, C // groups, k, k]``, ``shift`` ``[C]``.
    """

    taps: Tensor
    shift: Tensor


def fold_reborn_features(deconv_weight: Tensor, negative_norm: Norm, groups: int) -> FoldedRebornFeatures:
    """Fold the norm into the deconvolution: its scale into the taps, its shift into a bias."""
    channels = deconv_weight.shape[0]
    dtype = folding_dtype(deconv_weight.dtype)
    scale, shift = negative_norm.scale_and_shift(dtype)
    # Output channel j of a group is deconv_weight[:, j] for each of the group's inputs.
    per_input = scale.unflatten(0, (groups, -1)).repeat_interleave(channels // groups, dim=0)
    return FoldedRebornFeatures(deconv_weight.to(dtype) * per_input[:, :, None, None], shift)


def reborn_features_folded(x: Tensor, taps: Tensor, shift: Tensor, groups: int) -> Tensor:
    """``[max(x, 0); taps ⋆ᵀ min(x, 0) + shift]`` in x's dtype, for :class:`FoldedRebornFeatures`."""
    positive, negative = split_signs(x)
    deconvolved = F.conv_transpose2d(negative, taps.to(x.dtype), shift.to(x.dtype), padding=taps.shape[-1] // 2,
                                     groups=groups)
    return torch.cat([positive, deconvolved], dim=1)


class FoldedReborn(NamedTuple):
    """Reborn with its norm folded: ``y = weight · [max(x, 0); taps ⋆ᵀ min(x, 0)] + bias``.

    ``taps`` ``[C, C // groups, k, k]``, ``weight`` ``[C, 2C]``, ``bias`` ``[C]``.
    """

    taps: Tensor
    weight: Tensor
    bias: Tensor


def fold_reborn(deconv_weight: Tensor, negative_norm: Norm, compress_weight: Tensor,
                compress_bias: Tensor | None, groups: int) -> FoldedReborn:
    """Fold the norm into the deconvolution (scale) and the bias (shift); otherwise as :func:`fold_leni`."""
    channels = deconv_weight.shape[0]
    taps, shift = fold_reborn_features(deconv_weight, negative_norm, groups)
    weight = compress_weight.to(taps.dtype).flatten(1)
    bias = (weight[:, channels:] * shift).sum(1)
    if compress_bias is not None:
        bias = bias + compress_bias.to(taps.dtype)
    return FoldedReborn(taps, weight, bias)


def reborn_folded(x: Tensor, taps: Tensor, weight: Tensor, bias: Tensor, groups: int) -> Tensor:
    """``weight · [max(x, 0); taps ⋆ᵀ min(x, 0)] + bias`` in x's dtype, for :class:`FoldedReborn`."""
    positive, negative = split_signs(x)
    deconvolved = F.conv_transpose2d(negative, taps.to(x.dtype), padding=taps.shape[-1] // 2, groups=groups)
    features = torch.cat([positive, deconvolved], dim=1)
    return F.conv2d(features, weight.to(x.dtype)[:, :, None, None], bias.to(x.dtype))


def reborn_taps(taps: Tensor, weight: Tensor, groups: int) -> tuple[Tensor, list[int], list[int]]:
    """Folded Reborn as one convolution: ``y[q] = Σ_t W_t · f_t(x[q + offset_t]) + bias``.

    Tap by tap of the deconvolution f is ``min(x, 0)`` and W the product of both weights; one more tap takes
    ``max(x, 0)``. Returns W ``[C, C, k² + 1]``, the offsets ``[2 · (k² + 1)]``, and 1 for each minimum.
    """
    channels, size = weight.shape[0], taps.shape[-1]
    negative = weight[:, channels:].unflatten(1, (groups, -1))
    with torch.autocast(taps.device.type, enabled=False):
        products = torch.einsum("ogj,gijhw->ogihw", negative, taps.unflatten(0, (groups, -1)))
    dense = torch.cat([products.flatten(3).flatten(1, 2), weight[:, :channels, None]], 2)
    offsets = [size // 2 - place for row in range(size) for column in range(size) for place in (row, column)]
    return dense, [*offsets, 0, 0], [*[1] * size**2, 0]


# ---- the deconvolution of Reborn's training, and its gradients ------------------------------------------------


def flipped(deconv_weight: Tensor, groups: int) -> Tensor:
    """The weight of the convolution that equals the stride-1 transposed one; libraries run it faster."""
    return deconv_weight.unflatten(0, (groups, -1)).transpose(1, 2).flatten(0, 1).flip(-1, -2)


def reborn_deconvolve(x: Tensor, deconv_weight: Tensor, groups: int) -> Tensor:
    """z = ``D ⋆ᵀ min(x, 0)`` for D ``[C, C // groups, k, k]``."""
    padding, negative = deconv_weight.shape[-1] // 2, torch.clamp(x, max=0)
    if x.dtype == torch.bfloat16 and x.device.type == "cpu":
        # Where the transposed one does not, the library's bfloat16 convolution makes NaNs beside an infinity.
        return F.conv_transpose2d(negative, deconv_weight.contiguous(), padding=padding, groups=groups)
    return F.conv2d(negative, flipped(deconv_weight, groups), padding=padding, groups=groups)


def reborn_deconvolve_backward(grad: Tensor, deconv_weight: Tensor, groups: int) -> Tensor:
    """What z's gradient gives ``min(x, 0)``: ``D ⋆ grad``."""
    return F.conv2d(grad, deconv_weight, padding=deconv_weight.shape[-1] // 2, groups=groups)


def reborn_deconv_gradient(grad: Tensor, x: Tensor, deconv_weight: Tensor, groups: int) -> Tensor:
    """What z's gradient gives D: with the parts swapped, the gradient of the weight of ``D ⋆ grad``."""
    padding = [deconv_weight.shape[-1] // 2] * 2
    return torch.ops.aten.convolution_backward(torch.clamp(x, max=0), grad, deconv_weight, None, [1, 1], padding,
                                               [1, 1], False, [0, 0], groups, [False, True, False])[1]


# ---- the passes of Reborn's backward, for z = D ⋆ᵀ min(x, 0) and y = weight · [max(x, 0); z] + bias -----------


def reborn_weight_gradient(grad: Tensor, x: Tensor, z: Tensor, mean: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients of (weight, bias), for [max(x, 0); z] less its ``mean`` ``[2C]``, in mean's dtype."""
    return sums_of_products(grad, torch.cat([torch.relu(x), z], dim=1), mean.dtype, mean)


def reborn_negative_gradient(grad: Tensor, z: Tensor, weight: Tensor, constant: Tensor | None,
                             slope: Tensor | None) -> Tensor:
    """z's gradient; with ``constant`` and ``slope`` ``[C]``, ``constant + slope·z`` is added."""
    of_z = through_compress(grad, weight[:, z.shape[1]:])
    if slope is not None:
        of_z = of_z + (constant[:, None, None] + slope[:, None, None] * z).to(z.dtype)
    return of_z


def reborn_input_gradient(grad: Tensor, x: Tensor, negative: Tensor, weight: Tensor) -> Tensor:
    """x's gradient: through ``max(x, 0)`` where x > 0, ``negative`` where x < 0, and 0 where x = 0."""
    return torch.where(x > 0, through_compress(grad, weight[:, :x.shape[1]]), torch.where(x < 0, negative, 0))


def reborn_training_backward(
        grad: Tensor, x: Tensor, deconv_weight: Tensor, norm_weight: Tensor | None, norm_bias: Tensor | None,
        compress_weight: Tensor, z: Tensor, statistics: Tensor, grad_statistics: Tensor | None, eps: float,
        groups: int, trains: bool, needs_x: bool, needs_deconv: bool, needs_parameters: bool) -> tuple[Tensor, ...]:
    """As :func:`leni_training_backward`, of x, D, γ, β, P, c and the statistics of z; none goes through those unless
    the norm ``trains``."""

    def features(inputs: Tensor, taps: Tensor) -> Tensor:
        positive, negative = split_signs(inputs)
        return torch.cat([positive, F.conv_transpose2d(negative, taps, padding=taps.shape[-1] // 2, groups=groups)], 1)

    def normed(branches: Tensor, mean_and_variance: Tensor, *parameters: Tensor | None) -> Tensor:
        gamma, beta, weight, bias = parameters
        mean, variance = mean_and_variance.chunk(2)
        scale = torch.rsqrt(variance + eps)
        scale = scale if gamma is None else scale * gamma.double()
        shift = None if beta is None else F.pad(beta, (mean.shape[0], 0))
        return compress_normed(branches, F.pad(mean, (mean.shape[0], 0)), torch.cat([torch.ones_like(scale), scale]),
                               shift, weight, bias)

    return block_backward(
        grad, x, features, deconv_weight, normed,
        (norm_weight, norm_bias, compress_weight, compress_weight.new_zeros(x.shape[1])), statistics, grad_statistics,
        (needs_x, needs_deconv, trains or needs_parameters), trains)
