"""What is called on a tiny input, where the kernels have next to nothing to do."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from torch import Tensor, nn

CHANNELS = 16
SHAPE = (1, CHANNELS, 4, 4)
WORKS = ("inference", "step")


class Subject(NamedTuple):
    """What is measured, and the name of what it is compared with: PyTorch's own are compared with nothing."""

    name: str
    peer: str | None
    make: Callable[[], nn.Module]
    forward: Callable[[nn.Module, Tensor], Tensor] | None = None
    """What calls the module's layers, where it is not the module itself."""

    works: Sequence[str] = WORKS
