"""LENI's backward in Triton, launch by launch.

T is the bytes of one activation. The gradient of the weight reads x and dy (``weight_gradient.py``, 2T). What the
norms' statistics add to the gradient of both branches depends on all of it, so that the gradients of z and x come after
(``input_gradient.py``, 7T), and between them the algebra of the norms, on vectors of channels (``algebra.py``). The
branches are recomputed from x, which is all that is kept.

Launches: 5 (2 for the parameters alone, 4 for gradients of the statistics that are given), and nothing else on the
device.
"""

from __future__ import annotations

from torch import Tensor

from ...common.layout import reads_channels_last
from ...two_branch.gpu.steps import as_read, or_empty
from ...two_branch.statistics import precise
from .algebra import leni_fold_backward, summed_taps
from .input_gradient import input_gradient_shares
from .weight_gradient import weight_shares


def leni_training_backward(grad: Tensor, x: Tensor, deconv_weight: Tensor, negative_weight: Tensor | None,
                           negative_bias: Tensor | None, fusion_weight: Tensor | None, fusion_bias: Tensor | None,
                           compress_weight: Tensor, statistics: Tensor, grad_statistics: Tensor | None,
                           negative_eps: float, fusion_eps: float, needs_input: bool,
                           ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The gradients of x, D, γ1, β1, γ2, β2, P, c, and of the statistics' mean and variance ``[4C]`` in float64.

    Of the first two only if ``needs_input``. For gradients of the statistics that are given, these two alone.
    """
    channels_last = reads_channels_last("leni_training_backward_triton", x)
    a, grad = precise(x, channels_last, grad)
    deconv_weight, *parameters = as_read(deconv_weight, negative_weight, negative_bias, fusion_weight, fusion_bias,
                                         compress_weight)
    shares = None
    if grad_statistics is None:
        shares = weight_shares(grad, a, deconv_weight, statistics, channels_last)
    passed, gradients, of_statistics = leni_fold_backward(
        a, shares, statistics, grad_statistics, *parameters, negative_eps, fusion_eps)
    grad_x = grad_deconv = None
    if needs_input:
        grad_x, taps = input_gradient_shares(grad, a, deconv_weight, *passed, channels_last)
        grad_x, grad_deconv = grad_x.to(x.dtype), summed_taps(taps, deconv_weight)
    own_statistics = of_statistics if grad_statistics is None else None
    return tuple(or_empty((grad_x, grad_deconv, *gradients, own_statistics), x))
