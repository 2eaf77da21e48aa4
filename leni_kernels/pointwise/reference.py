"""AdaReLU, FullyParametricReLU and CReLU in plain PyTorch; every backend is tested against this file.

AdaReLU: Gao, Cai, Ji 2020, eq. 4-6. FullyParametricReLU: Varshney, Singh 2021. CReLU: Shang et al. 2016.
"""

from __future__ import annotations

import torch
from torch import Tensor


def _along_channels(parameter: Tensor, x: Tensor) -> Tensor:
    """``[C]`` (or one value) as it broadcasts along axis 1 of x, in x's dtype; ``[C, *spatial]`` as it is."""
    parameter = parameter.to(x.dtype)
    return parameter if parameter.dim() > 1 else parameter.reshape(-1, *[1] * (x.dim() - 2))


def ada_relu(x: Tensor, threshold: Tensor) -> Tensor:
    """``x if x > threshold else threshold`` for x ``[N, C, *spatial]``.

    The threshold is ``[C]``, one value, or ``[C, *spatial]``. Where x equals it the gradient goes to it and
    none to x (eq. 6), where ``torch.maximum`` would split it in half; a NaN in x stays a NaN.
    """
    threshold = _along_channels(threshold, x)
    return torch.where(x <= threshold, threshold, x)


def fully_parametric_relu(x: Tensor, positive_slope: Tensor, negative_slope: Tensor) -> Tensor:
    """``positive_slope · x if x > 0 else negative_slope · x`` for x ``[N, C, *spatial]``, slopes ``[C]``.

    The slope is selected before the product: a selection between two products would give the other slope the
    gradient 0·x, a NaN where x is infinite.
    """
    return x * torch.where(x > 0, _along_channels(positive_slope, x), _along_channels(negative_slope, x))


def crelu(x: Tensor) -> Tensor:
    """``[max(x, 0); max(-x, 0)]`` on channels, for x ``[N, C, *spatial]``; both gradients are 0 at x = 0."""
    return torch.cat([torch.relu(x), torch.relu(-x)], dim=1)


# ---- memory formats ----------------------------------------------------------------------------------------


def memory_order(dense: Tensor) -> list[int]:
    """The dimensions of a dense tensor, outermost in memory first.

    A dimension of size 1 may stand at either end of its stride; the larger one goes first, which keeps channels
    behind columns in channels-last.
    """
    return sorted(range(dense.dim()), key=lambda d: (-dense.stride(d), -dense.shape[d]))


def empty_crelu(x: Tensor) -> Tensor:
    """An empty ``[N, 2C, *spatial]`` in the memory format that ``torch.relu`` would give x."""
    order = memory_order(torch.empty_like(x))
    y = x.new_empty([2 * x.shape[d] if d == 1 else x.shape[d] for d in order])
    return y.permute([order.index(d) for d in range(x.dim())])
