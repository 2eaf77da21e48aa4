"""What ``torch.utils.flop_counter.FlopCounterMode`` counts of operators: what it counts of the definition's layers.

That is two for each multiply-add of a convolution, by PyTorch's own formulas, and nothing for norms and pointwise work.
What a kernel computes again, as LENI's backward does both branches, is not counted again.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch

# Where there is no Triton, it warns that the kernels of Triton will not be counted.
_log = logging.getLogger("torch.utils.flop_counter")
_log.disabled = True
from torch.utils.flop_counter import flop_registry, register_flop_formula  # noqa: E402

_log.disabled = False

Shape = Sequence[int]

_aten = torch.ops.aten


def register(backend: str, formulas: dict[str, Callable[..., int]]) -> None:
    """Register the formula of each operator ``leni_kernels::<name>_<backend>`` that there is.

    A formula takes the operator's arguments by name, with shapes in place of tensors, and ``out_shape``.
    """
    for name, formula in formulas.items():
        if hasattr(torch.ops.leni_kernels, f"{name}_{backend}"):
            operator = getattr(torch.ops.leni_kernels, f"{name}_{backend}")
            register_flop_formula(operator)(_by_name(operator, formula))


def _by_name(operator: Any, formula: Callable[..., int]) -> Callable[..., int]:
    names = [argument.name for argument in operator.default._schema.arguments]

    def flops(*arguments: Any, **options: Any) -> int:
        return formula(**dict(zip(names, arguments, strict=False)), **options)

    return flops


_GEOMETRY = [1], [0], [1]
"""Stride, padding and dilation: what they do shows in the shapes."""


def convolution(x: Shape, weight: Shape, y: Shape, groups: int = 1, transposed: bool = False) -> int:
    """Of y, which a convolution makes of x."""
    return flop_registry[_aten.convolution](x, weight, None, *_GEOMETRY, transposed, [0], groups, out_val=y)


def convolution_backward(x: Shape, weight: Shape, y: Shape, needs: tuple[bool, bool], groups: int = 1,
                         transposed: bool = False) -> int:
    """Of the gradients for x and weight that are needed."""
    return flop_registry[_aten.convolution_backward](
        y, x, weight, None, *_GEOMETRY, transposed, [0], groups, (*needs, False), out_val=(x, weight, None))
