"""ConvReLU's backward in Triton, launch by launch.

In bytes of activations, T each: the gradient of x moves 3T (``input_gradient.py``), those of weight and θ 2T
(``weight_gradient.py``), that of the bias 1T. Backward keeps nothing but x.

Launches, where parameters have no gaps: x's gradient 2, one of them to lay out weight and θ by tap; the gradients of
weight and θ 1 together, that of the bias 1, and 1 to sum, lay out and cast all three. x in NCHW is copied to channels
innermost, and y's gradient too: 2 more.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ...common.layout import reads_channels_last
from .input_gradient import input_gradient
from .layout import to_channels_last
from .problem import convolution, empty_activation, three_dimensional
from .weight_gradient import parameter_gradients


def conv_relu_backward(grad: Tensor, x: Tensor, weight: Tensor, threshold: Tensor, stride: Sequence[int],
                       pads: Sequence[int], dilation: Sequence[int], groups: int, needs_x: bool,
                       needs_weight: bool, needs_threshold: bool,
                       needs_bias: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradients of x, weight, threshold and bias for a ``grad`` of y; one that is not needed is empty.

    Where x equals the threshold the gradient is the threshold's; sites outside x count for the threshold.
    """
    channels_last = reads_channels_last("conv_relu_backward_triton", x)
    problem = convolution(x, weight, stride, pads, dilation, groups, channels_last)
    dx = empty_activation(x.shape, x, channels_last) if needs_x else x.new_empty(0)
    grad = three_dimensional(grad)
    if x.numel() == 0 or grad.numel() == 0:
        return (dx.zero_(), weight.new_zeros(weight.shape if needs_weight else 0),
                threshold.new_zeros(threshold.shape if needs_threshold else 0),
                weight.new_zeros(weight.shape[0] if needs_bias else 0))
    if problem.converts and (needs_x or needs_weight or needs_threshold):
        grad = to_channels_last(grad)
        problem = problem.with_copy(to_channels_last(problem.x))
    if needs_x:
        input_gradient(problem, grad, weight, threshold, dx)
    return dx, *parameter_gradients(problem, grad, weight, threshold, needs_weight, needs_threshold, needs_bias)
