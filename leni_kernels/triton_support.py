"""What every Triton room needs: whether Triton can run here, and how launches become PyTorch operators."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor

why_missing: str | None = None
"""Why Triton kernels cannot be defined here, or None if they can."""

try:
    import triton.language as tl
    from triton import constexpr_function, jit
except ImportError as error:
    why_missing = f"Triton is not installed ({error})"
    tl: Any = None

    def jit(function: Any) -> Any:
        """Leave a kernel as it is: where there is no Triton, its file can still be imported."""
        return function

    constexpr_function: Any = jit

interpreting = os.environ.get("TRITON_INTERPRET") == "1"
"""Whether Triton runs kernels in its CPU interpreter; it reads the variable when a kernel is defined."""


why_no_operators: str | None = why_missing
"""Why the operators are not registered, or None if they are: registering them costs an import of Inductor."""

if why_missing is None and not interpreting and torch.cuda.device_count() == 0:
    why_no_operators = "PyTorch sees no CUDA or ROCm device"


def why_not_here(x: Tensor) -> str | None:
    """The reason no Triton kernel can run on x, or None."""
    if why_missing is not None:
        return why_missing
    if x.device.type == "cuda" or (interpreting and x.device.type == "cpu"):
        return why_no_operators
    return (f"x is on {x.device.type}; Triton kernels run on CUDA and ROCm devices "
            "(or with TRITON_INTERPRET=1 on a CPU)")


# ---- operators ---------------------------------------------------------------------------------------------


def define_operator(name: str, launch: Callable[..., Any]) -> None:
    """Register ``launch`` as the operator ``leni_kernels::name``; Inductor sees the kernels inside it."""
    # The interpreter's kernels are plain Python, into which the compiler cannot look: there it is opaque.
    define: Any = torch.library.custom_op if interpreting else torch.library.triton_op
    define(f"leni_kernels::{name}", launch, mutates_args=())


def launchable(kernel: Any) -> Any:
    """``kernel`` as something to launch inside an operator made by :func:`define_operator`."""
    return kernel if interpreting else torch.library.wrap_triton(kernel)


# ---- the device --------------------------------------------------------------------------------------------


def _on_gpu(x: Tensor) -> bool:
    # Fake tensors may be on a GPU that this machine does not have.
    return x.device.type == "cuda" and torch.cuda.is_available()


def on_device_of(x: Tensor) -> AbstractContextManager[Any]:
    """Makes x's GPU the current one: Triton launches on the current device, wherever its arguments are."""
    return torch.cuda.device(x.device) if _on_gpu(x) else nullcontext()


def architecture(x: Tensor) -> str:
    """x's GPU as compilers call it ("sm_90", "gfx942"), or "" off the GPU."""
    if not _on_gpu(x):
        return ""
    if torch.version.hip is not None:
        return torch.cuda.get_device_properties(x.device).gcnArchName.split(":")[0]
    major, minor = torch.cuda.get_device_capability(x.device)
    return f"sm_{major}{minor}"


def float32_operand(architecture: str) -> str:
    """What the matrix units multiply for float32: "tf32" only where PyTorch's own setting allows it."""
    allowed = torch.get_float32_matmul_precision() != "highest"
    return "tf32" if allowed and not architecture.startswith("gfx") else "fp32"


# ---- compilation ahead of time -----------------------------------------------------------------------------


class CompileCase(NamedTuple):
    """One kernel in one configuration, for ``benchmarks/codegen.py``; each Triton room lists its own."""

    name: str
    kernel: Any
    signature: dict[str, str]
    """The type of every argument that is not a constant, as Triton writes it: ``*fp16``, ``i32``."""
    constants: dict[str, Any]
    warps: int
    operand: str
    """The type of x, or what the matrix units make of it: "fp16", "bf16", "tf32", "fp32" or "fp64"."""
    tile_rows: int
    """Rows of the accumulator; 0 for a kernel that multiplies no matrices."""
    vector_bits: int
    """The width that loads of x should have in the hot loop."""
    vector_loads: int
    """How many such loads each thread should make there, at least."""
    stages: int = 1
    """How many iterations of a loop overlap."""

    def with_wide_offsets(self) -> CompileCase:
        """The case as tensors of more than 2³¹ elements have it."""
        return self._replace(name=f"{self.name} wide", constants=self.constants | {"WIDE": True})


def power_of_two(size: int) -> int:
    """The smallest power of two that is not less than ``size``."""
    return 1 << (size - 1).bit_length()


@constexpr_function
def ceil_div(size: int, block: int) -> int:
    """How many blocks cover ``size``; of constants in a kernel too, where tl.cdiv gives none before Triton 3.8."""
    return -(-size // block)


def itemsize(operand: str) -> int:
    """Bytes of one element of an operand."""
    return {"fp16": 2, "bf16": 2, "tf32": 4, "fp32": 4, "fp64": 8}[operand]


def wide(*tensors: Tensor) -> bool:
    """Whether offsets into one of the tensors may not fit in 32 bits."""
    last = max(sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
               for tensor in tensors)
    # Some room is left for what the last tiles address past the last element.
    return last >= 2**31 - 2**20


def full_vector(operand: str) -> int:
    """Elements of one 128-bit access."""
    return 16 // itemsize(operand)


def vector_length(itemsize: int, *sizes: int) -> int:
    """The most elements, up to 128 bits, of one aligned access where ``sizes`` step through memory."""
    length = 16 // itemsize
    while any(size % length for size in sizes):
        length //= 2
    return length
