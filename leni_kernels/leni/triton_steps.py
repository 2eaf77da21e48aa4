"""Whole steps of LENI and Reborn in Triton: the passes over the activations, and the algebra between them.

Launches: ``leni_statistics`` 2, ``leni_eval`` 2, ``leni_training`` 3 (2 for statistics that are given),
``leni_running_statistics`` 1, ``leni_training_backward`` 4 (2 for the parameters alone, 3 for gradients of the
statistics that are given): a step 8, and nothing else on the device.
Reborn, apart from the library's deconvolution: ``reborn_training`` 3 (2 for a mean and a variance that are given),
``reborn_running_statistics`` 1, ``reborn_training_backward`` 4: a step 8, too.
Where a channel has few values they are converted first, and so are the results.

Parameters come as they are: of any floating dtype, and None where a norm has none or there is no bias. Statistics are
packed in float64: mean and biased variance of the features, and the count of values a channel.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from . import triton_algebra, triton_kernels, triton_training
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


def leni_statistics(x: Tensor, deconv_weight: Tensor, channels_last: bool) -> Tensor:
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


def leni_training(x: Tensor, deconv_weight: Tensor, negative_weight: Tensor | None, fusion_weight: Tensor | None,
                  fusion_bias: Tensor | None, compress_weight: Tensor, compress_bias: Tensor | None,
                  statistics: Tensor | None, negative_eps: float, fusion_eps: float,
                  channels_last: bool) -> tuple[Tensor, Tensor]:
    """y with the batch's statistics, and those; or y with the statistics that are given, and an empty tensor."""
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
                           fusion_weight: Tensor | None, fusion_bias: Tensor | None, compress_weight: Tensor,
                           statistics: Tensor, grad_statistics: Tensor | None, negative_eps: float,
                           fusion_eps: float, channels_last: bool, needs_input: bool,
                           ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The gradients of x, D, γ1, γ2, β2, P, c, and of the statistics' mean and variance ``[4C]`` in float64.

    Of the first two only if ``needs_input``. For gradients of the statistics that are given, these two alone.
    """
    a, grad = precise(x, channels_last, grad)
    deconv_weight, *parameters = _as_read(deconv_weight, negative_weight, fusion_weight, fusion_bias, compress_weight)
    shares = None
    if grad_statistics is None:
        shares = triton_training.weight_shares(grad, a, deconv_weight, statistics, channels_last)
    passed, gradients, of_statistics = triton_algebra.leni_fold_backward(
        a, shares, statistics, grad_statistics, *parameters, negative_eps, fusion_eps)
    grad_x = grad_deconv = None
    if needs_input:
        grad_x, taps = triton_training.input_gradient_shares(grad, a, deconv_weight, *passed, channels_last)
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
