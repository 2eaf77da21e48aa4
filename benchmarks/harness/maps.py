"""Feature maps as the papers' networks have them, and inputs that take turns."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import blocks, timing

LAYOUTS = {"channels_first": torch.contiguous_format, "channels_last": torch.channels_last}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}

BUFFERS = 4
"""Inputs that take turns: together larger than a last-level cache, so that every side finds its x cold."""


class Map(NamedTuple):
    """The shape of a feature map, in one layout and dtype."""

    channels: int
    size: int
    layout: str
    dtype: str

    def __str__(self) -> str:
        return f"{self.channels}×{self.size}² {self.layout} {self.dtype}"

    def tensor(self, elements: int, device: torch.device) -> Tensor:
        """A random feature map of about so many elements."""
        batch = max(1, elements // (self.channels * self.size**2))
        shape = (batch, self.channels, self.size, self.size)
        x = torch.randn(shape, dtype=DTYPES[self.dtype], device=device)
        return x.contiguous(memory_format=LAYOUTS[self.layout])


def label(row: blocks.Row) -> str:
    """A row's shape, as tables have it."""
    return f"{row['channels']}, {row['size']}×{row['size']}"


HEAD = "C, H×W"
"""How labels are to be read."""


def on(function: Callable[[Any], Any], turns: Iterator[Any]) -> timing.Side:
    """``function`` of whatever input's turn it is."""
    return lambda: function(next(turns))
