"""FLOPs of LENI's operators."""

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


def _as_layer(taps: Shape) -> Shape:
    return taps[0], 1, *taps[1:]


def _statistics(x: Shape, taps: Shape, **_: Any) -> int:
    return deconvolution(x, _as_layer(taps))


def _folded(x: Shape, taps: Shape, weight: Shape, **_: Any) -> int:
    return deconvolution(x, _as_layer(taps)) + compression(x, weight)


def _laid_out(x: Shape, taps: Shape, weight: Shape, **_: Any) -> int:
    size, _, channels = taps
    return _folded(x, (channels, size, size), weight)


def _input_gradient(x: Shape, taps: Shape, weight: Shape, **_: Any) -> int:
    return compression_backward(x, weight, (True, False)) + deconvolution_backward(x, _as_layer(taps), (True, True))


def _weight_gradient(x: Shape, **_: Any) -> int:
    return compression_backward(x, (x[1], 2 * x[1]), (False, True))


def _training_backward(x: Shape, deconv_weight: Shape, compress_weight: Shape, needs_input: bool,
                       grad_statistics: Shape | None = None, **_: Any) -> int:
    return (compression_backward(x, compress_weight, (True, grad_statistics is None))
            + deconvolution_backward(x, deconv_weight, (needs_input, needs_input)))


def _separable(x: Shape, deconv_weight: Shape, compress_weight: Shape, pointwise_weight: Shape, **_: Any) -> int:
    return block(x, deconv_weight, compress_weight) + compression(x, pointwise_weight)


def _separable_backward(x: Shape, deconv_weight: Shape, compress_weight: Shape, pointwise_weight: Shape,
                        needs_input: bool, **_: Any) -> int:
    return (_training_backward(x, deconv_weight, compress_weight, needs_input)
            + compression_backward(x, pointwise_weight, (needs_input, True)))


FORMULAS = {
    "leni_folded": _folded, "leni_laid_out": _laid_out, "leni_statistics": _statistics,
    "leni_weight_gradient": _weight_gradient, "leni_input_gradient": _input_gradient,
    "leni_covariance": _statistics,
    "leni_eval": block, "leni_batch_statistics": deconvolution,
    "leni_training": block, "leni_training_backward": _training_backward,
    "leni_synchronised": block, "leni_synchronised_backward": _training_backward,
    "leni_separable_eval": _separable, "leni_separable_training": _separable,
    "leni_separable_training_backward": _separable_backward,
}
"""By the names of the operators, less their backends'. Running statistics move by pointwise work, which is none.

A separable block's backward in eval mode is no operator: it goes through the folded weight, and counts the product that
folds the pointwise layer in the layer's place."""
