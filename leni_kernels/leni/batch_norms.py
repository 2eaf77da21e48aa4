"""The batch norms of LENI, two, and Reborn, one, in training, as algebra on per-channel vectors.

BN1's output has a known mean and variance, so the statistics of a = [p; z], p = max(x, 0) and z = D ⋆ᵀ min(x, 0),
determine both norms: y = weight · (a − mean) + bias, and no pass over BN1's output is needed. Backward, every reduction
that the norms ask for follows from G = Σ dy·(a − mean)ᵀ and S = Σ dy over all pixels.
Everything here is of size C or C²; the passes over the activations are the kernels'.

Statistics, and the vectors that are computed with them, are in float64: powers of a variance leave float32's range long
before the activations do, and what the norms leave of a gradient may be much smaller than what they subtract.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, distributed

from .. import checks

FEW_VALUES = 16
"""Of a channel, up to which a batch's norms leave so little of a gradient that float32's rounding drowns it."""


def precise(x: Tensor, channels_last: bool, *others: Tensor) -> tuple[Tensor, ...]:
    """x, a batch, and other activations of its size: as they are, or in float64 where a channel has few values."""
    if x.numel() // x.shape[1] > FEW_VALUES:
        return x, *others
    return tuple(checks.in_dtype(tensor, torch.float64, channels_last) for tensor in (x, *others))


class Statistics(NamedTuple):
    """Mean and biased variance ``[2C]`` of a, and the count of values a channel they come from; in float64."""

    mean: Tensor
    variance: Tensor
    count: Tensor

    @classmethod
    def of(cls, values: Tensor, mean: Tensor, variance: Tensor) -> Statistics:
        """Those of ``values`` ``[N, C, *spatial]``, of which there are mean and variance."""
        count = mean.new_full((), values.numel() // values.shape[1], dtype=torch.float64)
        return cls(mean.double(), variance.double(), count)


def merged(parts: Statistics) -> Statistics:
    """The statistics of several parts ``[parts, …]`` of a batch together, whose counts may differ."""
    counts = parts.count[:, None]
    count = parts.count.sum()
    mean = (parts.mean * counts).sum(0) / count
    return Statistics(mean, ((parts.variance + (parts.mean - mean).square()) * counts).sum(0) / count, count)


def merged_over(group: str, own: Tensor) -> Tensor:
    """The packed statistics of all processes of a group together, whose batches may differ in size."""
    process_group = distributed.distributed_c10d._resolve_process_group(group)
    gathered = [torch.empty_like(own) for _ in range(process_group.size())]
    distributed.all_gather(gathered, own, group=process_group)
    everyone = torch.stack(gathered)
    whole = merged(Statistics(*everyone[:, :-1].chunk(2, dim=1), everyone[:, -1]))
    return torch.cat([whole.mean, whole.variance, whole.count[None]])


def summed_over(group: str, vector: Tensor) -> Tensor:
    """A vector summed over the processes of a group."""
    total = vector.clone()
    distributed.all_reduce(total, group=distributed.distributed_c10d._resolve_process_group(group))
    return total


class BatchNorms(NamedTuple):
    """The parameters of both norms and of the 1×1 convolution behind them, all of one dtype."""

    negative_weight: Tensor
    """γ1 ``[C]``."""
    fusion_weight: Tensor
    """γ2 ``[2C]``."""
    fusion_bias: Tensor
    """β2 ``[2C]``."""
    compress_weight: Tensor
    """P ``[C, 2C]``."""
    compress_bias: Tensor
    """c ``[C]``."""
    negative_eps: float
    fusion_eps: float

    def scale_of_negative(self, variance: Tensor) -> Tensor:
        """γ1·r1, what BN1 multiplies z by; ``variance`` ``[2C]`` is that of a, and biased."""
        return self.negative_weight * torch.rsqrt(variance.chunk(2)[1] + self.negative_eps)

    def fusion_variance(self, variance: Tensor) -> Tensor:
        """The variance ``[2C]`` of what BN2 reads, [p; BN1(z)]."""
        positive, negative = variance.chunk(2)
        # γ1²·v/(v + ε1), which at v = ∞ is γ1².
        share = 1 - self.negative_eps / (negative + self.negative_eps)
        return torch.cat([positive, share * self.negative_weight.double().square()])

    def scales(self, variance: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """r2 ``[2C]``, BN1's scales of a ``[2C]`` (1 for p), and s ``[2C]``, the scales of both norms together."""
        inverse = torch.rsqrt(self.fusion_variance(variance) + self.fusion_eps)
        first = torch.cat([torch.ones_like(self.negative_weight), self.scale_of_negative(variance)])
        return inverse, first, self.fusion_weight * inverse * first

    def batch_statistics(self, negative_bias: Tensor, of_a: Statistics) -> tuple[Statistics, Statistics]:
        """What BN1 and BN2 see of a batch: z, and [p; BN1(z)], whose second half has β1 for its mean."""
        positive_mean, negative_mean = of_a.mean.chunk(2)
        fusion_mean = torch.cat([positive_mean, negative_bias])
        return (Statistics(negative_mean, of_a.variance.chunk(2)[1], of_a.count),
                Statistics(fusion_mean, self.fusion_variance(of_a.variance), of_a.count))

    def fold(self, variance: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """weight ``[C, 2C]`` and bias ``[C]`` of y = weight · (a − mean) + bias for a's biased variance ``[2C]``."""
        compress = self.compress_weight.to(dtype)
        bias = self.compress_bias.to(dtype) + (compress * self.fusion_bias).sum(1)
        return compress * self.scales(variance)[2].to(dtype), bias


class BatchNormGradients(NamedTuple):
    """The gradients of :meth:`BatchNorms.fold`: for its parameters, in their dtype, and for a's mean and variance."""

    negative_weight: Tensor
    fusion_weight: Tensor
    fusion_bias: Tensor
    compress_weight: Tensor
    compress_bias: Tensor
    mean: Tensor
    variance: Tensor


def fold_backward(norms: BatchNorms, variance: Tensor, grad_weight: Tensor, grad_bias: Tensor,
                  rounded_weight: Tensor | None = None) -> BatchNormGradients:
    """The gradients that follow from G ``[C, 2C]``, of weight for a less its mean, and S ``[C]``, of bias.

    Where products round the folded weight, what goes through the statistics has to cancel what the rounded one passes
    on, and follows from that.
    """
    inverse, first, scale = norms.scales(variance)
    compress = norms.compress_weight.to(grad_weight.dtype)
    grad_compress = grad_weight * scale.to(grad_weight.dtype) + grad_bias[:, None] * norms.fusion_bias
    grad_shift, grad_scale = _of_columns(compress, grad_weight, grad_bias)
    # BN2 all but undoes BN1's scale γ1·r1: with t = γ1²·r1²·v_z + ε2 the variance that BN2 divides by, what is left is
    # of the order of the eps. The differences t − γ1²·r1²·v_z = ε2 and r1² − r1⁴·v_z = ε1·r1⁴ are written as what
    # they are, since computed they would cancel.
    r1 = torch.rsqrt(variance.chunk(2)[1] + norms.negative_eps)
    negative_inverse = inverse.chunk(2)[1]
    grad_first = (grad_scale * norms.fusion_weight).chunk(2)[1]
    grad_gamma = grad_first * r1 * norms.fusion_eps * negative_inverse**3
    rest = norms.negative_eps * (norms.negative_weight * r1 * negative_inverse).square()
    per_variance = torch.cat([inverse.chunk(2)[0].square(), r1.square() * (1 + rest)])
    parameters = _like_parameters(
        norms, (grad_gamma, grad_scale * inverse * first, grad_shift, grad_compress, grad_bias))
    if rounded_weight is None:
        shift, scaled = grad_shift * scale, grad_scale * scale
    else:
        shift, scaled = _of_columns(rounded_weight, grad_weight, grad_bias)
    return BatchNormGradients(*parameters, -shift, -0.5 * per_variance * scaled)


def _of_columns(weight: Tensor, grad_weight: Tensor, grad_bias: Tensor) -> tuple[Tensor, Tensor]:
    """What the gradients of weight ``[C, K]`` and bias give a shift of its columns' features and a scale of them."""
    return ((weight * grad_bias[:, None]).sum(0, dtype=torch.float64),
            (weight * grad_weight).sum(0, dtype=torch.float64))


def _like_parameters(parameters: tuple[Any, ...], gradients: tuple[Tensor, ...]) -> list[Tensor]:
    """Each gradient in its parameter's dtype, and none a view of another tensor."""
    return [gradient.to(parameter.dtype, copy=True)
            for parameter, gradient in zip(parameters, gradients, strict=False)]


def through_statistics(mean: Tensor, count: Tensor, grad_mean: Tensor, grad_variance: Tensor,
                       dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """What the gradients of a's mean and variance add to that of each value of a: ``constant + slope · a``."""
    slope = (2 * grad_variance / count).to(dtype)  # rounded first: the constant has to cancel what it adds
    return (grad_mean / count - slope * mean).to(dtype), slope


# ---- Reborn's one norm -------------------------------------------------------------------------------------


class NegativeNorm(NamedTuple):
    """The parameters of Reborn's norm and of the 1×1 convolution behind it, all of one dtype."""

    weight: Tensor
    """γ ``[C]``."""
    bias: Tensor
    """β ``[C]``."""
    compress_weight: Tensor
    """P ``[C, 2C]``."""
    compress_bias: Tensor
    """c ``[C]``."""
    eps: float

    def fold(self, variance: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """weight ``[C, 2C]`` and bias ``[C]`` of y = weight · [p; z − mean] + bias for z's variance ``[C]``."""
        positive, negative = self.compress_weight.to(dtype).chunk(2, dim=1)
        bias = self.compress_bias.to(dtype) + (negative * self.bias).sum(1)
        return torch.cat([positive, negative * self.scale(variance).to(dtype)], dim=1), bias

    def scale(self, variance: Tensor) -> Tensor:
        """γ·r, what the norm multiplies z by."""
        return self.weight * torch.rsqrt(variance + self.eps)

    def fold_backward(self, variance: Tensor, grad_weight: Tensor, grad_bias: Tensor,
                      rounded_weight: Tensor | None = None) -> NegativeNormGradients:
        """The gradients that follow from G ``[C, 2C]``, of weight for [p; z − mean], and S ``[C]``, of bias;
        ``rounded_weight`` is as in :func:`fold_backward`."""
        negative = self.compress_weight.to(grad_weight.dtype).chunk(2, dim=1)[1]
        grad_positive, grad_negative = grad_weight.chunk(2, dim=1)
        inverse, scale = torch.rsqrt(variance + self.eps), self.scale(variance)
        grad_shift, grad_scale = _of_columns(negative, grad_negative, grad_bias)
        of_negative = grad_negative * scale.to(grad_weight.dtype) + grad_bias[:, None] * self.bias
        parameters = _like_parameters(self, (grad_scale * inverse, grad_shift,
                                             torch.cat([grad_positive, of_negative], dim=1), grad_bias))
        if rounded_weight is None:
            shift, scaled = grad_shift * scale, grad_scale * scale
        else:
            shift, scaled = _of_columns(rounded_weight.chunk(2, dim=1)[1], grad_negative, grad_bias)
        return NegativeNormGradients(*parameters, -shift, -0.5 * inverse.square() * scaled)


class NegativeNormGradients(NamedTuple):
    """The gradients of :meth:`NegativeNorm.fold`: for its parameters, in their dtype, and for z's mean and variance."""

    weight: Tensor
    bias: Tensor
    compress_weight: Tensor
    compress_bias: Tensor
    mean: Tensor
    variance: Tensor
