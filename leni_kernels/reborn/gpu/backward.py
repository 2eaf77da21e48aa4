"""Reborn's backward in Triton, launch by launch, around the library's deconvolutions.

T is the bytes of one activation. The gradient of the weight (``weight_gradient.py``, 3T), the algebra of the norm on
vectors of channels (``algebra.py``), the gradients of z and of x (``input_gradient.py``, 7T): 4 launches, and two
convolutions of the library's, which make what dz gives x and D. x and z are kept.
"""

from __future__ import annotations

from torch import Tensor

from ...common.layout import reads_channels_last
from ...two_branch.gpu.steps import as_read, or_empty
from ...two_branch.layout import laid_out
from ...two_branch.statistics import precise
from .. import reference
from .algebra import reborn_fold_backward
from .input_gradient import branch_gradient
from .weight_gradient import weight_shares


def reborn_training_backward(grad: Tensor, x: Tensor, deconv_weight: Tensor, norm_weight: Tensor | None,
                             norm_bias: Tensor | None, compress_weight: Tensor, z: Tensor, statistics: Tensor,
                             grad_statistics: Tensor | None, eps: float, groups: int, trains: bool,
                             needs_x: bool, needs_deconv: bool, needs_parameters: bool,
                             ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The gradients of x, D, γ, β, P, c, and of the statistics' mean and variance ``[2C]`` in float64.

    Unless the norm ``trains``, none goes through the statistics.
    For gradients of the statistics that are given, x's and D's alone.
    """
    channels_last = reads_channels_last("reborn_training_backward_triton", x)
    a, grad = precise(x, channels_last, grad) if trains else (x, grad)
    norm_weight, norm_bias, compress_weight = as_read(norm_weight, norm_bias, compress_weight)
    shares = None
    if grad_statistics is None and (trains or needs_parameters):
        shares = weight_shares(grad, a, z, None, statistics, channels_last)
    passed, gradients, of_statistics = reborn_fold_backward(
        a, shares, statistics, grad_statistics, norm_weight, norm_bias, compress_weight, eps)
    positive, negative = passed.weight.unbind()
    added = passed[1:] if trains else (None, None)
    grad_x = grad_deconv = None
    if needs_x or needs_deconv:
        grad_z = branch_gradient(grad, z, None, negative, *added, channels_last)
        taps = deconv_weight.to(a.dtype)
        if needs_x:
            of_negative = laid_out(reference.reborn_deconvolve_backward(grad_z, taps, groups), channels_last)
            grad_x = branch_gradient(grad, a, of_negative, positive, None, None, channels_last).to(x.dtype)
        if needs_deconv:
            grad_deconv = reference.reborn_deconv_gradient(grad_z, a, taps, groups).to(deconv_weight.dtype).contiguous()
    own_statistics = of_statistics if grad_statistics is None else None
    return tuple(or_empty((grad_x, grad_deconv, *gradients, own_statistics), x))
