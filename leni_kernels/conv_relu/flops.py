"""FLOPs of ConvReLU's operators: those of a convolution, whose taps read thresholded values."""

from __future__ import annotations

from typing import Any

from ..common.flops import Shape, convolution, convolution_backward


def _forward(x: Shape, weight: Shape, out_shape: Shape, groups: int = 1, **_: Any) -> int:
    return convolution(x, weight, out_shape, groups)


def _backward(grad: Shape, x: Shape, weight: Shape, groups: int, needs_x: bool, needs_weight: bool,
              needs_threshold: bool, **_: Any) -> int:
    """The threshold's gradient, like x's, comes of the gradient of what the taps read."""
    return convolution_backward(x, weight, grad, (needs_x or needs_threshold, needs_weight), groups)


FORMULAS = {"conv_relu": _forward, "conv_relu_backward": _backward, "conv_relu_taps": _forward}
"""By the names of the operators, less their backends'."""
