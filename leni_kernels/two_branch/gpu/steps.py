"""What whole steps of LENI and Reborn share: parameters as kernels read them, and results as operators give them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor


def as_read(*parameters: Tensor | None) -> list[Any]:
    """The parameters without gaps, as the kernels read them; most are, and then this is free."""
    return [None if parameter is None else parameter.contiguous() for parameter in parameters]


def or_empty(gradients: Sequence[Tensor | None], like: Tensor) -> list[Tensor]:
    """An operator's results are tensors: what is not asked for is empty."""
    return [like.new_empty(0) if gradient is None else gradient for gradient in gradients]
