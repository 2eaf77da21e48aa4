"""The compiled C++ backend, if this installation has it: importing registers its operators with PyTorch."""

from __future__ import annotations

from importlib.resources import files

import torch

INSTRUCTION_SETS = ("generic", "avx2", "avx512", "avx512_bf16", "amx")
"""Of the C++ kernels; each has what those before it have."""

why_missing: str | None = None
"""Why the C++ operators are not registered, or None if they are."""

try:
    import leni_kernels._C  # noqa: F401
except ImportError as error:
    why_missing = f"the C++ extension is not available in this installation ({error})"
    note = files("leni_kernels") / "_without_extension.txt"
    if note.is_file():
        why_missing = f"this package was installed without its C++ extension: {note.read_text(encoding='utf-8')}"


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
