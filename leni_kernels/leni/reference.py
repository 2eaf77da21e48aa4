"""LENI and Reborn, defined in plain PyTorch; every backend is tested against this file.

LENI: Cai, Peng, Shen 2023, "Learn to Enhance the Negative Information in Convolutional Neural Network", §3.1.
Reborn: Cai, Huang, Peng 2021, eq. 2.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

Layer = Callable[[Tensor], Tensor]


class Norm(NamedTuple):
    """The state of one batch norm, in the argument order of ``F.batch_norm``; calling it applies it.

    ``running_mean``, ``running_var``, ``weight`` and ``bias`` are ``[C]`` or None, as in ``nn.BatchNorm2d``;
    ``num_batches_tracked``, where there is one, counts the batches in training. A momentum of None means the
    average over all of them.
    """

    running_mean: Tensor | None
    running_var: Tensor | None
    weight: Tensor | None = None
    bias: Tensor | None = None
    training: bool = False
    momentum: float | None = 0.1
    eps: float = 1e-5
    num_batches_tracked: Tensor | None = None

    def __call__(self, x: Tensor) -> Tensor:
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias,
                            self.uses_batch_statistics, self._count_batch(), self.eps)

    def tracked(self) -> tuple[Tensor | None, Tensor | None, Tensor | None, float | None]:
        """What a batch in training moves: running mean and variance, count of batches, and the momentum."""
        if not self.training:
            return None, None, None, None
        running = (None, None) if self.running_mean is None or self.running_var is None else (
            self.running_mean, self.running_var)
        return *running, self.num_batches_tracked, self.momentum

    def _count_batch(self) -> float:
        """Count a batch in training; returns the weight of its statistics in the running ones."""
        if self.training and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
            if self.momentum is None:
                return 1.0 / float(self.num_batches_tracked)
        return 0.0 if self.momentum is None else self.momentum

    @property
    def uses_batch_statistics(self) -> bool:
        """Whether the mean and variance come from the batch rather than from the running statistics."""
        return self.training or self.running_mean is None or self.running_var is None

    def scale_and_shift(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """The affine map ``scale·x + shift`` (``[C]`` each) that the norm is with running statistics."""
        if self.running_mean is None or self.running_var is None:
            raise ValueError("a batch norm without running statistics cannot be folded: it is no affine map")
        scale = torch.rsqrt(self.running_var.to(dtype) + self.eps)
        if self.weight is not None:
            scale = scale * self.weight.to(dtype)
        shift = -self.running_mean.to(dtype) * scale
        return scale, shift if self.bias is None else shift + self.bias.to(dtype)


def split_signs(x: Tensor) -> tuple[Tensor, Tensor]:
    """``max(x, 0)`` and ``min(x, 0)``; their gradients at x = 0 are 0 (torch 2.11's ``clamp`` gives 1)."""
    return torch.relu(x), -torch.relu(-x)


def leni(x: Tensor, deconv: Layer, negative_norm: Layer, fusion_norm: Layer, compress: Layer) -> Tensor:
    """``compress(fusion_norm([max(x, 0); negative_norm(deconv(min(x, 0)))]))`` for x ``[N, C, H, W]``."""
    positive, negative = split_signs(x)
    return compress(fusion_norm(torch.cat([positive, negative_norm(deconv(negative))], dim=1)))


def reborn(x: Tensor, deconv: Layer, negative_norm: Layer, compress: Layer | None) -> Tensor:
    """``compress([max(x, 0); negative_norm(deconv(min(x, 0)))])`` for x ``[N, C, H, W]``.

    Without ``compress``, which makes C channels of them again, the 2C channels themselves.
    """
    positive, negative = split_signs(x)
    features = torch.cat([positive, negative_norm(deconv(negative))], dim=1)
    return features if compress is None else compress(features)


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


def folding_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which norms are folded, and which folded parameters have, for activations of ``dtype``."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def fold_leni(deconv_weight: Tensor, negative_norm: Norm, fusion_norm: Norm, compress_weight: Tensor,
              compress_bias: Tensor | None) -> Folded:
    """Fold the first norm into the deconvolution and the second into the 1×1 convolution.

    Takes ``deconv_weight`` ``[C, 1, k, k]``, ``compress_weight`` ``[C, 2C, 1, 1]`` and norms with running
    statistics over C and 2C channels; differentiable in all of them. Computes in float32, or float64 for
    float64 parameters.

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
    mean = (fusion_norm.running_mean.to(dtype) - F.pad(negative_shift, (channels, 0))).detach()
    # Less a mean that is small against the deviations from it, values are not smaller.
    mean = mean * (mean.square() > fusion_norm.running_var)
    return Folded(deconv_weight.to(dtype).squeeze(1) * negative_scale[:, None, None], weight, bias, mean)


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


def centred_bias(weight: Tensor, bias: Tensor, mean: Tensor) -> Tensor:
    """The bias with which ``weight · (a − mean) + bias`` is what ``weight · a + bias`` is with ``bias``."""
    return bias + (weight * mean).sum(1)


def leni_statistics(x: Tensor, taps: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance ``[2C]``, in taps' dtype, of ``[max(x, 0); taps ⋆ᵀ min(x, 0)]``."""
    variance, mean = torch.var_mean(_features(x.to(taps.dtype), taps), (0, 2, 3), correction=0)
    return mean, variance


def leni_weight_gradient(grad: Tensor, x: Tensor, taps: Tensor, mean: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The gradients of :func:`leni_folded` for (weight, bias), in taps' dtype; with ``mean`` ``[2C]``, for features
    less their mean."""
    return _sums_of_products(grad, _features(x, taps), taps.dtype, mean)


def _sums_of_products(grad: Tensor, features: Tensor, dtype: torch.dtype,
                      mean: Tensor | None) -> tuple[Tensor, Tensor]:
    features = features.to(dtype)
    if mean is not None:
        features = features - mean[:, None, None]
    return torch.einsum("nohw,nkhw->ok", grad.to(dtype), features), grad.sum((0, 2, 3), dtype=dtype)


def leni_input_gradient(grad: Tensor, x: Tensor, taps: Tensor, weight: Tensor, constant: Tensor | None = None,
                        slope: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The gradients of :func:`leni_folded` for (x, taps).

    With ``constant`` and ``slope`` ``[2C]``, the gradient of ``a = [max(x, 0); taps ⋆ᵀ min(x, 0)]`` has
    ``constant + slope·a`` added.
    """
    of_features = _through(grad, weight)
    if slope is not None:
        of_features = of_features + (constant[:, None, None] + slope[:, None, None] * _features(x, taps)).to(x.dtype)
    of_positive, of_deconvolved = of_features.chunk(2, dim=1)
    of_negative = _correlate(of_deconvolved, taps.to(x.dtype))
    grad_x = torch.where(x > 0, of_positive, torch.where(x < 0, of_negative, 0))
    height, width = x.shape[2:]
    negative, padded = split_signs(x)[1], F.pad(of_deconvolved.to(taps.dtype), [taps.shape[-1] // 2] * 4)
    offsets = range(taps.shape[-1])
    shifted = (padded[:, :, i:i + height, j:j + width] for i in offsets for j in offsets)
    grad_taps = torch.stack([(negative * shift).sum((0, 2, 3)) for shift in shifted], -1)
    return grad_x, grad_taps.view_as(taps)


def _through(grad: Tensor, weight: Tensor) -> Tensor:
    """What the 1×1 convolution by ``weight`` ``[C, K]`` passes back: ``weightᵀ · grad``."""
    return F.conv2d(grad, weight.to(grad.dtype).t()[:, :, None, None])


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


# ---- the passes of Reborn's backward, for z = D ⋆ᵀ min(x, 0) and y = weight · [max(x, 0); z] + bias -----------


def reborn_weight_gradient(grad: Tensor, x: Tensor, z: Tensor, mean: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients of (weight, bias), for [max(x, 0); z] less its ``mean`` ``[2C]``, in mean's dtype."""
    return _sums_of_products(grad, torch.cat([torch.relu(x), z], dim=1), mean.dtype, mean)


def reborn_negative_gradient(grad: Tensor, z: Tensor, weight: Tensor, constant: Tensor | None,
                             slope: Tensor | None) -> Tensor:
    """z's gradient; with ``constant`` and ``slope`` ``[C]``, ``constant + slope·z`` is added."""
    of_z = _through(grad, weight[:, z.shape[1]:])
    if slope is not None:
        of_z = of_z + (constant[:, None, None] + slope[:, None, None] * z).to(z.dtype)
    return of_z


def reborn_input_gradient(grad: Tensor, x: Tensor, negative: Tensor, weight: Tensor) -> Tensor:
    """x's gradient: through ``max(x, 0)`` where x > 0, ``negative`` where x < 0, and 0 where x = 0."""
    return torch.where(x > 0, _through(grad, weight[:, :x.shape[1]]), torch.where(x < 0, negative, 0))


# ---- blocks in training, as functions of the statistics of [max(x, 0); z] too: of whole batches, or given ------
# What a backward is where its kernels do not compile. Statistics are packed: mean, biased variance, count of values.


def _fused_scale(variance: Tensor, negative_weight: Tensor | None, fusion_weight: Tensor | None, negative_eps: float,
                 fusion_eps: float) -> Tensor:
    """What LENI's two norms scale ``[max(x, 0); z]`` by, for its variance ``[2C]``; both are in float64."""
    positive, negative = variance.chunk(2)
    gamma = torch.ones_like(negative) if negative_weight is None else negative_weight.double()
    first = torch.cat([torch.ones_like(gamma), gamma * torch.rsqrt(negative + negative_eps)])
    of_normed = (1 - negative_eps / (negative + negative_eps)) * gamma.square()
    scale = first * torch.rsqrt(torch.cat([positive, of_normed]) + fusion_eps)
    return scale if fusion_weight is None else scale * fusion_weight.double()


def _normed(features: Tensor, mean: Tensor, scale: Tensor, shift: Tensor | None, compress_weight: Tensor,
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


def leni_training_backward(
        grad: Tensor, x: Tensor, deconv_weight: Tensor, negative_weight: Tensor | None, negative_bias: Tensor | None,
        fusion_weight: Tensor | None, fusion_bias: Tensor | None, compress_weight: Tensor, statistics: Tensor,
        grad_statistics: Tensor | None, negative_eps: float, fusion_eps: float, channels_last: bool,
        needs_input: bool) -> tuple[Tensor, ...]:
    """The gradients of x, D, γ1, β1, γ2, β2, P, c and of the statistics of a batch in training, empty where there is
    none; for gradients of the statistics that are given, those of x and D alone."""

    def normed(features: Tensor, mean_and_variance: Tensor, *parameters: Tensor | None) -> Tensor:
        gamma1, gamma2, beta2, weight, bias = parameters
        mean, variance = mean_and_variance.chunk(2)
        return _normed(features, mean, _fused_scale(variance, gamma1, gamma2, negative_eps, fusion_eps), beta2, weight,
                       bias)

    gradients = _block_backward(
        grad, x, lambda inputs, taps: _features(inputs, taps.squeeze(1)), deconv_weight, normed,
        (negative_weight, fusion_weight, fusion_bias, compress_weight, compress_weight.new_zeros(x.shape[1])),
        statistics, grad_statistics, channels_last, (needs_input, needs_input, True), True)
    grad_x, grad_deconv, grad_gamma1, grad_gamma2, grad_beta2, grad_weight, grad_bias, of_statistics = gradients
    absent = negative_bias is None or grad_statistics is not None
    grad_beta1 = x.new_empty(0) if absent else torch.zeros_like(negative_bias)
    return (grad_x, grad_deconv, grad_gamma1, grad_beta1, grad_gamma2, grad_beta2, grad_weight, grad_bias,
            of_statistics)


def reborn_training_backward(
        grad: Tensor, x: Tensor, deconv_weight: Tensor, norm_weight: Tensor | None, norm_bias: Tensor | None,
        compress_weight: Tensor, z: Tensor, statistics: Tensor, grad_statistics: Tensor | None, eps: float,
        groups: int, channels_last: bool, trains: bool, needs_x: bool, needs_deconv: bool,
        needs_parameters: bool) -> tuple[Tensor, ...]:
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
        return _normed(branches, F.pad(mean, (mean.shape[0], 0)), torch.cat([torch.ones_like(scale), scale]), shift,
                       weight, bias)

    return _block_backward(
        grad, x, features, deconv_weight, normed,
        (norm_weight, norm_bias, compress_weight, compress_weight.new_zeros(x.shape[1])), statistics, grad_statistics,
        channels_last, (needs_x, needs_deconv, trains or needs_parameters), trains)


def _block_backward(grad: Tensor, x: Tensor, features: Callable[[Tensor, Tensor], Tensor], deconv_weight: Tensor,
                    normed: Callable[..., Tensor], parameters: tuple[Tensor | None, ...], statistics: Tensor,
                    grad_statistics: Tensor | None, channels_last: bool, needs: tuple[bool, bool, bool],
                    trains: bool) -> tuple[Tensor, ...]:
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
        layout = torch.channels_last if channels_last else torch.contiguous_format
        of_inputs = [grad_x.to(x.dtype).contiguous(memory_format=layout) if needs_x else nothing,
                     grad_deconv.to(deconv_weight.dtype).contiguous() if needs_deconv else nothing]
    return *of_inputs, *of_parameters, of_statistics
