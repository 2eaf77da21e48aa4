"""Whole steps of LENI and Reborn in Triton: the passes over the activations, and the algebra between them.

Launches: ``leni_batch_statistics`` 2, ``leni_eval`` 2, ``leni_training`` 3 (2 for statistics that are given),
``leni_running_statistics`` 1, ``leni_training_backward`` 5 (2 for the parameters alone, 4 for gradients of the
statistics that are given): a step 9, and nothing else on the device.
Reborn, apart from the library's deconvolution: ``reborn_training`` 3 (2 for a mean and a variance that are given),
``reborn_running_statistics`` 1, ``reborn_training_backward`` 4: a step 8, too.
Where a channel has few values they are converted first, and so are the results.

Parameters come as they are: of any floating dtype, and None where a norm has none or there is no bias. Statistics are
packed in float64: mean and biased variance of the features, and the count of values a channel.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from . import reference, triton_algebra, triton_input_gradient, triton_kernels, triton_tail, triton_training
from .batch_norms import precise


def _as_read(*parameters: Tensor | None) -> list[Any]:
    """The parameters without gaps, as the kernels read them; most are, and then this is free."""
    return [None if parameter is None else parameter.contiguous() for parameter in parameters]


def _or_empty(gradients: Sequence[Tensor | None], like: Tensor) -> list[Tensor]:
    """An operator's results are tensors: what is not asked for is empty."""
    return [like.new_empty(0) if gradient is None else gradient for gradient in gradients]


# ---- LENI --------------------------------------------------------------------------------------------------
# x ``[N, C, H, W]`` has stride 1 along channels if ``channels_last``, or else along columns, and so do y and dx; D
# ``[C, 1, k, k]``, P ``[C, 2C, 1, 1]``.


def leni_batch_statistics(x: Tensor, deconv_weight: Tensor, channels_last: bool) -> Tensor:
    """The statistics ``[4C + 1]`` of ``a = [max(x, 0); D ⋆ᵀ min(x, 0)]``; zeros of an empty batch."""
    a, = precise(x, channels_last)
    return triton_algebra.merged_statistics(
        *triton_training.statistics_shares(a, deconv_weight.contiguous(), channels_last))


def leni_eval(x: Tensor, deconv_weight: Tensor, negative_mean: Tensor, negative_variance: Tensor,
              negative_weight: Tensor | None, negative_bias: Tensor | None, fusion_mean: Tensor,
              fusion_variance: Tensor, fusion_weight: Tensor | None, fusion_bias: Tensor | None,
              compress_weight: Tensor, compress_bias: Tensor | None, negative_eps: float, fusion_eps: float,
              channels_last: bool) -> Tensor:
    """y with running statistics."""
    negative = _as_read(negative_mean, negative_variance, negative_weight, negative_bias)
    fusion = _as_read(fusion_mean, fusion_variance, fusion_weight, fusion_bias)
    deconv_weight, *compress = _as_read(deconv_weight, compress_weight, compress_bias)
    folded = triton_algebra.leni_fold_running(x, deconv_weight, negative, fusion, *compress, negative_eps, fusion_eps)
    return triton_kernels.leni_laid_out(x, *folded, channels_last)


def leni_training(x: Tensor, deconv_weight: Tensor, negative_weight: Tensor | None, negative_bias: Tensor | None,
                  fusion_weight: Tensor | None, fusion_bias: Tensor | None, compress_weight: Tensor,
                  compress_bias: Tensor | None, statistics: Tensor | None, negative_eps: float, fusion_eps: float,
                  channels_last: bool) -> tuple[Tensor, Tensor]:
    """y with the batch's statistics, and those; or y with the statistics that are given, and an empty tensor.

    β1 shifts what BN2 centres, and has no part in it.
    """
    a, = precise(x, channels_last)
    deconv_weight, *parameters = _as_read(deconv_weight, negative_weight, fusion_weight, fusion_bias, compress_weight,
                                          compress_bias)
    shares = None
    if statistics is None:
        shares = triton_training.statistics_shares(a, deconv_weight, channels_last)
    folded, of_batch = triton_algebra.leni_fold(a, shares, statistics, deconv_weight, *parameters, negative_eps,
                                                fusion_eps)
    y = triton_kernels.leni_laid_out(a, *folded, channels_last).to(x.dtype)
    return y, of_batch if statistics is None else statistics.new_empty(0)


def leni_training_backward(grad: Tensor, x: Tensor, deconv_weight: Tensor, negative_weight: Tensor | None,
                           negative_bias: Tensor | None, fusion_weight: Tensor | None, fusion_bias: Tensor | None,
                           compress_weight: Tensor, statistics: Tensor, grad_statistics: Tensor | None,
                           negative_eps: float, fusion_eps: float, channels_last: bool, needs_input: bool,
                           ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The gradients of x, D, γ1, β1, γ2, β2, P, c, and of the statistics' mean and variance ``[4C]`` in float64.

    Of the first two only if ``needs_input``. For gradients of the statistics that are given, these two alone.
    """
    a, grad = precise(x, channels_last, grad)
    deconv_weight, *parameters = _as_read(deconv_weight, negative_weight, negative_bias, fusion_weight, fusion_bias,
                                          compress_weight)
    shares = None
    if grad_statistics is None:
        shares = triton_training.weight_shares(grad, a, deconv_weight, statistics, channels_last)
    passed, gradients, of_statistics = triton_algebra.leni_fold_backward(
        a, shares, statistics, grad_statistics, *parameters, negative_eps, fusion_eps)
    grad_x = grad_deconv = None
    if needs_input:
        grad_x, taps = triton_input_gradient.input_gradient_shares(grad, a, deconv_weight, *passed, channels_last)
        grad_x, grad_deconv = grad_x.to(x.dtype), triton_algebra.summed_taps(taps, deconv_weight)
    own_statistics = of_statistics if grad_statistics is None else None
    return tuple(_or_empty((grad_x, grad_deconv, *gradients, own_statistics), x))


def leni_running_statistics(statistics: Tensor, negative_weight: Tensor | None, negative_bias: Tensor | None,
                            negative_mean: Tensor | None, negative_variance: Tensor | None,
                            negative_batches: Tensor | None, negative_momentum: float | None,
                            fusion_mean: Tensor | None, fusion_variance: Tensor | None,
                            fusion_batches: Tensor | None, fusion_momentum: float | None,
                            negative_eps: float) -> None:
    """Count the batch and move both norms' running statistics, as :meth:`reference.Norm.update` does."""
    triton_algebra.update_leni(
        statistics, *_as_read(negative_weight, negative_bias), (negative_mean, negative_variance, negative_batches),
        negative_momentum, (fusion_mean, fusion_variance, fusion_batches), fusion_momentum, negative_eps)


# ---- Reborn ------------------------------------------------------------------------------------------------
# As for LENI, but D ``[C, C // groups, k, k]``; z = D ⋆ᵀ min(x, 0), which is the library's, is laid out as x.


def _laid_out(tensor: Tensor, channels_last: bool) -> Tensor:
    # A copy only where sizes of 1 let the library choose the other of two equal layouts.
    return tensor.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)


def _deconvolve(x: Tensor, deconv_weight: Tensor, groups: int, channels_last: bool) -> Tensor:
    return _laid_out(reference.reborn_deconvolve(x, deconv_weight.to(x.dtype), groups), channels_last)


def reborn_batch_statistics(x: Tensor, deconv_weight: Tensor, groups: int,
                            channels_last: bool) -> tuple[Tensor, Tensor]:
    """z, as in :func:`reborn_training`, and its statistics ``[2C + 1]``."""
    a, = precise(x, channels_last)
    z = _deconvolve(a, deconv_weight, groups, channels_last)
    return z, triton_algebra.merged_statistics(*triton_tail.statistics_shares(z, channels_last))


def reborn_training(x: Tensor, deconv_weight: Tensor, norm_weight: Tensor | None, norm_bias: Tensor | None,
                    compress_weight: Tensor, compress_bias: Tensor | None, z: Tensor | None, mean: Tensor | None,
                    variance: Tensor | None, eps: float, groups: int,
                    channels_last: bool) -> tuple[Tensor, Tensor, Tensor]:
    """y, z, in float64 where a channel has few values, and the norm's statistics ``[2C + 1]``.

    These are the batch's, or a mean and a variance that are given.

    A z that is given is not deconvolved again, and comes back as an empty tensor.
    """
    # With z or without statistics it is a batch in training, whose norm is its own or a group's.
    a, = precise(x, channels_last) if mean is None or z is not None else (x,)
    of_a = _deconvolve(a, deconv_weight, groups, channels_last) if z is None else z
    shares = triton_tail.statistics_shares(of_a, channels_last) if mean is None or variance is None else None
    norm_weight, norm_bias, compress_weight, compress_bias, mean, variance = _as_read(
        norm_weight, norm_bias, compress_weight, compress_bias, mean, variance)
    (weight, bias, middle), statistics = triton_algebra.reborn_fold(
        a, shares, mean, variance, norm_weight, norm_bias, compress_weight, compress_bias, eps)
    y = triton_tail.tail_laid_out(a, of_a, weight, bias, middle, channels_last).to(x.dtype)
    return y, of_a if z is None else x.new_empty(0), statistics


def reborn_eval(x: Tensor, deconv_weight: Tensor, norm_weight: Tensor | None, norm_bias: Tensor | None,
                compress_weight: Tensor, compress_bias: Tensor | None, mean: Tensor, variance: Tensor, eps: float,
                groups: int, channels_last: bool) -> Tensor:
    """y with running statistics."""
    return reborn_training(x, deconv_weight, norm_weight, norm_bias, compress_weight, compress_bias, None, mean,
                           variance, eps, groups, channels_last)[0]


def reborn_training_backward(grad: Tensor, x: Tensor, deconv_weight: Tensor, norm_weight: Tensor | None,
                             norm_bias: Tensor | None, compress_weight: Tensor, z: Tensor, statistics: Tensor,
                             grad_statistics: Tensor | None, eps: float, groups: int, channels_last: bool,
                             trains: bool, needs_x: bool, needs_deconv: bool, needs_parameters: bool,
                             ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The gradients of x, D, γ, β, P, c, and of the statistics' mean and variance ``[2C]`` in float64.

    Unless the norm ``trains``, none goes through the statistics.
    For gradients of the statistics that are given, x's and D's alone.
    """
    a, grad = precise(x, channels_last, grad) if trains else (x, grad)
    norm_weight, norm_bias, compress_weight = _as_read(norm_weight, norm_bias, compress_weight)
    shares = None
    if grad_statistics is None and (trains or needs_parameters):
        shares = triton_tail.weight_shares(grad, a, z, None, statistics, channels_last)
    passed, gradients, of_statistics = triton_algebra.reborn_fold_backward(
        a, shares, statistics, grad_statistics, norm_weight, norm_bias, compress_weight, eps)
    positive, negative = passed.weight.unbind()
    added = passed[1:] if trains else (None, None)
    grad_x = grad_deconv = None
    if needs_x or needs_deconv:
        grad_z = triton_tail.branch_gradient(grad, z, None, negative, *added, channels_last)
        taps = deconv_weight.to(a.dtype)
        if needs_x:
            of_negative = _laid_out(reference.reborn_deconvolve_backward(grad_z, taps, groups), channels_last)
            grad_x = triton_tail.branch_gradient(grad, a, of_negative, positive, None, None, channels_last).to(x.dtype)
        if needs_deconv:
            grad_deconv = reference.reborn_deconv_gradient(grad_z, a, taps, groups).to(deconv_weight.dtype).contiguous()
    own_statistics = of_statistics if grad_statistics is None else None
    return tuple(_or_empty((grad_x, grad_deconv, *gradients, own_statistics), x))


def reborn_running_statistics(statistics: Tensor, mean: Tensor | None, variance: Tensor | None,
                              batches: Tensor | None, momentum: float | None) -> None:
    """As :func:`leni_running_statistics`, of the one norm."""
    triton_algebra.update_reborn(statistics, mean, variance, batches, momentum)
