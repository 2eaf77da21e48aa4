"""What the definitions of LENI and Reborn share: the two branches, and the backward of a block of them in training."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from ..common.layout import reads_channels_last
from .layout import laid_out

Layer = Callable[[Tensor], Tensor]


def split_signs(x: Tensor) -> tuple[Tensor, Tensor]:
    """``max(x, 0)`` and ``min(x, 0)``; their gradients at x = 0 are 0 (torch 2.11's ``clamp`` gives 1)."""
    return torch.relu(x), -torch.relu(-x)


def folding_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which norms are folded, and which folded parameters have, for activations of ``dtype``."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def centred_bias(weight: Tensor, bias: Tensor, mean: Tensor) -> Tensor:
    """The bias with which ``weight · (a − mean) + bias`` is what ``weight · a + bias`` is with ``bias``."""
    return bias + (weight * mean).sum(1)


def sums_of_products(grad: Tensor, features: Tensor, dtype: torch.dtype,
                     mean: Tensor | None) -> tuple[Tensor, Tensor]:
    """``Σ grad·(features − mean)ᵀ`` and ``Σ grad`` over pixels, in ``dtype``."""
    features = features.to(dtype)
    if mean is not None:
        features = features - mean[:, None, None]
    return torch.einsum("nohw,nkhw->ok", grad.to(dtype), features), grad.sum((0, 2, 3), dtype=dtype)


def through_compress(grad: Tensor, weight: Tensor) -> Tensor:
    """What the 1×1 convolution by ``weight`` ``[C, K]`` passes back: ``weightᵀ · grad``."""
    return F.conv2d(grad, weight.to(grad.dtype).t()[:, :, None, None])


# ---- blocks in training, as functions of the statistics of [max(x, 0); z] too: of whole batches, or given ------
# What a backward is where its kernels do not compile. Statistics are packed: mean, biased variance, count of values.


def compress_normed(features: Tensor, mean: Tensor, scale: Tensor, shift: Tensor | None, compress_weight: Tensor,
                    compress_bias: Tensor) -> Tensor:
    """``P · (scale · (features − mean) + shift) + c`` in features' dtype."""
    dtype = features.dtype
    normed = (features - mean.to(dtype)[:, None, None]) * scale.to(dtype)[:, None, None]
    if shift is not None:
        normed = normed + shift.to(dtype)[:, None, None]
    return F.conv2d(normed, compress_weight.to(dtype), compress_bias.to(dtype))


def _through_statistics(features: Tensor, statistics: Tensor, grad_statistics: Tensor) -> Tensor:
    """A number whose gradient for features is that which the gradient of their statistics has."""
    mean, count = statistics[:features.shape[1]], statistics[-1]
    of_mean, of_variance = (grad_statistics / count).to(features.dtype).chunk(2)
    deviations = features - mean.to(features.dtype)[:, None, None]
    return (deviations.sum((0, 2, 3)) * of_mean).sum() + (deviations.square().sum((0, 2, 3)) * of_variance).sum()


def block_backward(grad: Tensor, x: Tensor, features: Callable[[Tensor, Tensor], Tensor], deconv_weight: Tensor,
                   normed: Callable[..., Tensor], parameters: tuple[Tensor | None, ...], statistics: Tensor,
                   grad_statistics: Tensor | None, needs: tuple[bool, bool, bool], trains: bool) -> tuple[Tensor, ...]:
    """The gradients of x, D, the parameters and the statistics in ``normed(features(x, D), statistics, *parameters)``,
    each in its tensor's dtype and empty where it is not needed."""
    needs_x, needs_deconv, needs_parameters = needs
    dtype = folding_dtype(x.dtype)
    with torch.enable_grad():
        inputs, taps = (tensor.detach().to(dtype).requires_grad_() for tensor in (x, deconv_weight))
        given = statistics[:-1].detach().requires_grad_()
        leaves = [None if parameter is None else parameter.detach().requires_grad_() for parameter in parameters]
        branches = features(inputs, taps)
        y = normed(branches, given, *leaves)
    nothing = x.new_empty(0)
    of_statistics, of_parameters = nothing, [nothing] * len(leaves)
    if grad_statistics is None and needs_parameters:
        present = [leaf for leaf in leaves if leaf is not None]
        of_statistics, *found = torch.autograd.grad(y, [given, *present], grad.to(dtype), retain_graph=True)
        found = iter(found)
        of_parameters = [nothing if leaf is None else next(found) for leaf in leaves]
    of_inputs = [nothing, nothing]
    if needs_x or needs_deconv:
        with torch.enable_grad():
            total = (y * grad.to(dtype)).sum()
            if trains:
                own = branches[:, -(given.shape[0] // 2):]
                total = total + _through_statistics(
                    own, statistics, of_statistics if grad_statistics is None else grad_statistics)
        grad_x, grad_deconv = torch.autograd.grad(total, [inputs, taps])
        of_inputs = [laid_out(grad_x.to(x.dtype), reads_channels_last("leni_kernels", x)) if needs_x else nothing,
                     grad_deconv.to(deconv_weight.dtype).contiguous() if needs_deconv else nothing]
    return *of_inputs, *of_parameters, of_statistics
