"""The two layouts of an activation ``[N, C, *spatial]``: NCHW, and channels-last, in any number of dimensions.

Kernels read either in place. Which one it is, an operator finds from x's strides at each call, so that an exported or
traced program takes both. ``csrc/pytorch/checks.h`` has the same rule.
"""

from __future__ import annotations

from torch import Tensor


def is_channels_last(x: Tensor) -> bool | None:
    """Whether the kernels read x with channels (True) or columns (False) at stride 1; None if neither is."""
    strides = x.stride()
    # In this order, for tensors of symbolic sizes: the usual ones, contiguous and channels-last, add no guards.
    if strides[-1] == 1:
        return False
    if strides[1] == 1:
        return True
    # The stride of a dimension of size 1 says nothing.
    return False if x.shape[-1] == 1 else True if x.shape[1] == 1 else None


def reads_channels_last(operator: str, x: Tensor, what: str = "x") -> bool:
    """The same for an operator, which copies nothing.

    Raises:
        RuntimeError: if x has stride 1 along neither.
    """
    channels_last = is_channels_last(x)
    if channels_last is None:
        raise RuntimeError(f"{operator}: {what} must have stride 1 along channels or columns, as {what}.contiguous() "
                           f"has; its strides are {list(x.stride())}")
    return channels_last
