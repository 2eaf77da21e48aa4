"""FLOPs of Reborn's operators. Its folded form is one convolution, which is counted as ConvReLU's ``taps``."""

from __future__ import annotations

from typing import Any

from ..common.flops import Shape
from ..two_branch.flops import (
    block,
    compression,
    compression_backward,
    deconvolution,
    deconvolution_backward,
)


def _training(x: Shape, deconv_weight: Shape, compress_weight: Shape, z: Shape | None, **_: Any) -> int:
    return block(x, deconv_weight, compress_weight) if z is None else compression(x, compress_weight)


def _training_backward(x: Shape, deconv_weight: Shape, compress_weight: Shape, needs_x: bool, needs_deconv: bool,
                       needs_parameters: bool = True, grad_statistics: Shape | None = None, **_: Any) -> int:
    needs_weight = needs_parameters and grad_statistics is None
    return (compression_backward(x, compress_weight, (True, needs_weight))
            + deconvolution_backward(x, deconv_weight, (needs_x, needs_deconv)))


def _weight_gradient(x: Shape, **_: Any) -> int:
    return compression_backward(x, (x[1], 2 * x[1]), (False, True))


def _through_one_branch(grad: Shape, **_: Any) -> int:
    return compression_backward(grad, (grad[1], grad[1]), (True, False))


def _deconv_gradient(grad: Shape, x: Shape, deconv_weight: Shape, needs_input: bool, needs_deconv: bool,
                     **_: Any) -> int:
    of_positive = _through_one_branch(grad) if needs_input else 0
    return of_positive + deconvolution_backward(x, deconv_weight, (needs_input, needs_deconv))


FORMULAS = {
    "reborn_eval": block, "reborn_batch_statistics": deconvolution,
    "reborn_training": _training, "reborn_training_backward": _training_backward,
    "reborn_synchronised": block, "reborn_synchronised_backward": _training_backward,
    "reborn_tail": compression, "reborn_weight_gradient": _weight_gradient,
    "reborn_negative_gradient": _through_one_branch, "reborn_input_gradient": _through_one_branch,
    "reborn_deconvolve": deconvolution, "reborn_deconv_gradient": _deconv_gradient,
}
"""By the names of the operators, less their backends'. Statistics are sums, which count nothing."""
