"""The compiled C++ backend, if this installation has it: importing registers its operators with PyTorch."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

import torch
from torch import Tensor

_LIBRARY = Path(__file__).parents[1] / "libleni_kernels.so"

INSTRUCTION_SETS = ("generic", "avx2", "avx512", "avx512_bf16", "amx")
"""Of the C++ kernels; each has what those before it have."""

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
"""Of the activations that the C++ kernels take."""

why_missing: str | None = None
"""Why the C++ operators are not registered, or None if they are."""


def _load() -> None:
    """Load the library, but no second copy of it: PyTorch ends a process that registers an operator twice."""
    if not hasattr(torch.ops.leni_kernels, "cpu_isa"):
        torch.ops.load_library(_LIBRARY)
        return
    try:
        ctypes.CDLL(str(_LIBRARY), os.RTLD_NOLOAD)
    except OSError:
        raise OSError(f"another copy of {_LIBRARY.name} was loaded into this process before") from None


try:
    _load()
except OSError as error:
    # PyTorch's error has the loader's as its cause, which says what is wrong.
    why_missing = f"the C++ extension is not available in this installation ({error.__cause__ or error})"
    note = _LIBRARY.with_name("_without_extension.txt")
    if note.is_file():
        why_missing = f"this package was installed without its C++ extension: {note.read_text(encoding='utf-8')}"


def library_path() -> Path:
    """The shared library that has this package's operators for CPUs and needs PyTorch alone, no Python.

    A process without this package runs networks that were exported with it once it has loaded the library: from C++
    by ``dlopen``, in Python by ``torch.ops.load_library``. One process can load one copy of it.

    Raises:
        RuntimeError: if this installation has no such library, or it cannot be loaded; the message says why.
    """
    if why_missing is not None:
        raise RuntimeError(why_missing)
    return _LIBRARY


def why_not(x: Tensor, dtype: torch.dtype) -> str | None:
    """Why the C++ kernels cannot take x, to be read in ``dtype``, or None if they can."""
    if why_missing is not None:
        return why_missing
    if not x.is_cpu:
        return f"x is on {x.device.type}"
    if dtype not in DTYPES:
        return f"the CPU kernels take float32, bfloat16, float16 and float64, not {dtype}"
    return None


def fill_empty(fill: bool) -> None:
    """Fill what the C++ operators allocate with NaN, or no more: a test that fails on what no kernel wrote.

    ``torch.use_deterministic_algorithms`` does so for PyTorch's own operators.
    """
    if why_missing is None:
        torch.ops.leni_kernels.fill_empty(fill)


def cpu_isa() -> str | None:
    """The instruction set the C++ kernels use here: "generic", "avx2", "avx512", "avx512_bf16" or "amx".

    The best that this CPU has, unless the environment variable ``LENI_KERNELS_ISA`` names a lesser one; None
    without the extension.
    """
    return torch.ops.leni_kernels.cpu_isa() if why_missing is None else None
