"""What every Triton room needs: whether Triton can run here, and how its launches become PyTorch operators."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

why_missing: str | None = None
"""Why Triton kernels cannot be defined here, or None if they can."""

try:
    import triton  # noqa: F401
except ImportError as error:
    why_missing = f"Triton is not installed ({error})"

interpreting = os.environ.get("TRITON_INTERPRET") == "1"
"""Whether Triton runs its kernels in its CPU interpreter; Triton reads the variable when a kernel is defined."""


def why_not_here(x: Tensor) -> str | None:
    """The reason no Triton kernel can run on x, or None."""
    if why_missing is not None:
        return why_missing
    if x.device.type == "cuda" or (interpreting and x.device.type == "cpu"):
        return None
    return f"x is on {x.device.type}; Triton kernels run on CUDA and ROCm devices (or TRITON_INTERPRET=1 on a CPU)"


def define_operator(name: str, launch: Callable[..., Tensor]) -> None:
    """Register ``launch`` as the operator ``leni_kernels::name``; Inductor sees the Triton kernels inside it."""
    # The interpreter's kernels are plain Python, which the compiler cannot look into: there the operator is opaque.
    define: Any = torch.library.custom_op if interpreting else torch.library.triton_op
    define(f"leni_kernels::{name}", launch, mutates_args=())


def launchable(kernel: Any) -> Any:
    """``kernel`` as something to launch inside an operator made by :func:`define_operator`."""
    return kernel if interpreting else torch.library.wrap_triton(kernel)
