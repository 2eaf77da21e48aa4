"""An activation that stays for some of its readers, while convolutions look past it."""

from __future__ import annotations

import math
import sys
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...common.leaf import Leaf


class ActivationPast(Leaf):
    """A ReLU or ReLU6 whose output carries, as an attribute of the tensor, what :func:`read_past` looks for: the input.

    Whoever reads the output in any other way, on whatever path, reads an activation's.
    """

    def __init__(self, activation: nn.Module) -> None:
        super().__init__()
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        output = self.activation(x)
        # ReLU6 is a ReLU of min(x, 6).
        output.before_activation = F.hardtanh(x, -math.inf, 6.0) if isinstance(self.activation, nn.ReLU6) else x
        return output


def read_past(conv: nn.Module, args: tuple[Any, ...]) -> tuple[Tensor]:
    """A hook before a ConvReLU, which finds what its input was before the activation.

    A ConvReLU that is called by itself, not within a network, takes what it is given.

    Raises:
        RuntimeError: if the input does not come from such an activation, or was changed since.
    """
    output, = args
    before = getattr(output, "before_activation", None)
    if before is None:
        if not torch.compiler.is_compiling() and _by_itself():
            return args
        raise RuntimeError(f"replace_relu: this {type(conv).__name__} reads what an activation is given, and its input "
                           "is no activation's: on the example it was")
    if not torch.compiler.is_compiling() and not output.is_inference() and output._version:
        raise RuntimeError(f"replace_relu: the input of this {type(conv).__name__} was changed in place after its "
                           "activation, which on the example it was not")
    return (before,)


def _by_itself() -> bool:
    """Whether a single call of a module is under way."""
    frame, calls = sys._getframe(1), 0
    while frame is not None:
        calls += frame.f_code is nn.Module._call_impl.__code__
        frame = frame.f_back
    return calls == 1
