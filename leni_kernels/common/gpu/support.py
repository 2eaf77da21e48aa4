"""What every Triton room needs: whether Triton can run here, and how launches become PyTorch operators."""

from __future__ import annotations

import os
import re
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from ..backends import KernelFailure, constant_to_the_compiler
from ..operators import launch_at_once
from . import architectures
from .architectures import operand_types, why_unsupported

why_missing: str | None = None
"""Why Triton kernels cannot be defined here, or None if they can."""


def _why_too_old(version: str) -> str | None:
    parts = re.match(r"(\d+)\.(\d+)", version)
    if parts is None or tuple(map(int, parts.groups())) >= (3, 6):
        return None
    return f"Triton {version} is too old; the kernels need 3.6 or newer"


try:
    import triton

    why_missing = _why_too_old(triton.__version__)
    if why_missing is not None:
        raise ImportError(why_missing)
    import triton.language as tl
    from triton import constexpr_function, jit
except ImportError as error:
    why_missing = why_missing or f"Triton is not installed ({error})"
    tl: Any = None

    def jit(function: Any) -> Any:
        """Leave a kernel as it is: where there is no Triton, its file can still be imported."""
        return function

    constexpr_function: Any = jit

interpreting = os.environ.get("TRITON_INTERPRET") == "1"
"""Whether Triton runs kernels in its CPU interpreter; it reads the variable when a kernel is defined."""


# ---- where the kernels run ----------------------------------------------------------------------------------


def why_not_here(x: Tensor) -> str | None:
    """The reason no Triton kernel can run on x, or None."""
    if why_missing is not None:
        return why_missing
    if _noting is not None:
        define_operators()
        return why_unsupported(_noting.architecture)
    if x.device.type == "cuda":
        return _why_not_on_gpu(x.device)
    if interpreting and x.device.type == "cpu":
        return None
    return (f"x is on {x.device.type}; Triton kernels run on CUDA and ROCm devices "
            "(or with TRITON_INTERPRET=1 on a CPU)")


@constant_to_the_compiler
def _why_not_on_gpu(device: torch.device) -> str | None:
    define_operators()
    return why_unsupported(_architecture_of(device))


# ---- operators ---------------------------------------------------------------------------------------------


# Registering operators imports Inductor, which takes longer than all the rest of the package.
_waiting: list[Callable[[], None]] = []
_defining = threading.RLock()
if hasattr(os, "register_at_fork"):  # a process forked meanwhile would have half of the operators
    os.register_at_fork(before=_defining.acquire, after_in_parent=_defining.release, after_in_child=_defining.release)


def operators_when_needed(define: Callable[[], None]) -> None:
    """Decorate what registers operators: it is called now where they can run, else with the first tensor on a GPU.

    Now, so that programs that name the operators, as exported ones do, find them; later, because a GPU may come to
    be seen after the import, and a traced tensor may be on one that is elsewhere.
    """
    if why_missing is not None:
        return
    _waiting.append(define)
    if interpreting or torch.cuda.device_count() > 0:
        define_operators()


def define_operators() -> None:
    """Register what waits to be; nothing if there is nothing."""
    if _waiting:
        with _defining:
            while _waiting:
                _waiting[0]()
                del _waiting[0]


def define_operator(name: str, launch: Callable[..., Any], mutates: tuple[str, ...] = ()) -> None:
    """Register ``launch`` as the operator ``leni_kernels::name``; Inductor sees the kernels inside it.

    ``mutates`` are the names of the arguments that it writes to.
    """
    # The interpreter's kernels are plain Python, into which the compiler cannot look: there it is opaque.
    define: Any = torch.library.custom_op if interpreting else torch.library.triton_op
    define(f"leni_kernels::{name}", launch, mutates_args=mutates)
    launch_at_once(getattr(torch.ops.leni_kernels, name).default, _untraced(launch))


_thread = threading.local()


def _untraced(launch: Callable[..., Any]) -> Callable[..., Any]:
    """``launch``, with kernels that are launched as they are: outside an operator they would be wrapped to be seen."""

    def call(*inputs: Any) -> Any:
        before, _thread.untraced = getattr(_thread, "untraced", False), True
        try:
            return launch(*inputs)
        finally:
            _thread.untraced = before

    return call


# ---- launches ----------------------------------------------------------------------------------------------


def launchable(kernel: Any) -> Any:
    """``kernel`` as something to launch inside an operator made by :func:`define_operator`.

    Launched, it raises :class:`backends.KernelFailure` if it cannot be compiled or loaded; whatever else goes wrong
    is raised as it is. Where a compiler traces the operator, it compiles the kernel itself and raises its own error.
    """
    if _noting is not None:
        return _NotedKernel(kernel, _noting.note)
    untraced = interpreting or getattr(_thread, "untraced", False)
    traceable = kernel if untraced else torch.library.wrap_triton(kernel)
    return _Launch(kernel) if traceable is kernel else traceable


class _Launch:
    def __init__(self, kernel: Any) -> None:
        self.kernel = kernel

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        def launch(*arguments: Any, **options: Any) -> None:
            try:
                self.kernel[grid](*arguments, **options)
            except Exception as error:
                if not _before_it_ran(error):
                    raise
                raise KernelFailure(self.kernel.__name__, _gpu(), type(error).__name__, _reason(error)) from error

        return launch


_PREPARATION = ("_create_driver", "create_binder", "_do_compile", "_init_handles")
"""Where Triton finds its driver, compiles a kernel, and loads it; what is raised elsewhere is of the launch itself."""


def _before_it_ran(error: Exception) -> bool:
    """Whether a launch failed in compiling or loading the kernel, and for no want of memory."""
    from triton.runtime.errors import InterpreterError, TritonError

    if isinstance(error, TritonError):
        return not isinstance(error, InterpreterError)
    # Loading a kernel also reports what another one did wrong before.
    of_driver = str(error).startswith("Triton Error [")
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)) or (
            of_driver and not re.search("kernel image|PTX", str(error))):
        return False
    return any(frame.f_code.co_name in _PREPARATION and frame.f_globals.get("__name__", "").startswith("triton.")
               for frame, _ in traceback.walk_tb(error.__traceback__))


def _reason(error: Exception) -> str:
    from triton import knobs

    folder, named = knobs.cache.dir, str(getattr(error, "filename", None) or "")
    if isinstance(error, OSError) and named and (named.startswith(folder) or folder.startswith(named)):
        return f"Triton cannot write its cache folder {folder}; TRITON_CACHE_DIR names another ({error.strerror})"
    while getattr(error, "error_message", "") is None and isinstance(error.__cause__, Exception):
        error = error.__cause__  # of a compiler's nested errors the innermost speaks
    text = getattr(error, "error_message", None) or str(error)
    return f"{type(error).__name__}: {text.strip().partition(chr(10))[0]}"


def _gpu() -> str:
    if not torch.cuda.is_available():
        return "Triton's interpreter"
    return f"{torch.cuda.get_device_name()} ({_architecture_of(torch.device('cuda'))})"


# ---- the device --------------------------------------------------------------------------------------------


def _on_gpu(x: Tensor) -> bool:
    # Fake tensors may be on a GPU that this machine does not have.
    return x.device.type == "cuda" and torch.cuda.is_available()


def on_device_of(x: Tensor) -> AbstractContextManager[Any]:
    """Makes x's GPU the current one: Triton launches on the current device, wherever its arguments are."""
    return torch.cuda.device(x.device) if _on_gpu(x) else nullcontext()


def architecture(x: Tensor) -> str:
    """x's GPU as compilers call it ("sm_90", "gfx942"), or "" off the GPU."""
    if _noting is not None:
        return _noting.architecture
    return _architecture_of(x.device) if _on_gpu(x) else ""


def _architecture_of(gpu: torch.device) -> str:
    if not torch.cuda.is_available():
        return ""
    if torch.version.hip is not None:
        return torch.cuda.get_device_properties(gpu).gcnArchName.split(":")[0]
    major, minor = torch.cuda.get_device_capability(gpu)
    return f"sm_{major}{minor}"


def multiprocessors(x: Tensor) -> int:
    """Those of x's GPU, or if it is not there to be asked, of one of its architecture."""
    if _noting is None and _on_gpu(x):
        return _multiprocessors_of(x.device)
    return architectures.multiprocessors(architecture(x))


@cache
def _multiprocessors_of(gpu: torch.device) -> int:
    return torch.cuda.get_device_properties(gpu).multi_processor_count


def float32_operand(architecture: str) -> str:
    """What the matrix units multiply for float32: "tf32" where they can and PyTorch's convolutions would, or "fp32".

    The kernels' products stand for convolutions, and so follow the setting of those, which is TF32 by default:
    ``torch.backends.cudnn.conv.fp32_precision``, also written through ``torch.backends.cudnn.allow_tf32``. It is read
    at each launch; under torch.compile, when the launch is traced.
    """
    # This getter alone takes settings through PyTorch's old names and its new ones, in any order.
    allowed = torch.backends.cudnn.conv.fp32_precision == "tf32"
    return "tf32" if allowed and "tf32" in operand_types(architecture) else "fp32"


_OPERANDS = {torch.float16: "fp16", torch.bfloat16: "bf16", torch.float64: "fp64"}


def operand_of(x: Tensor) -> str:
    """What the matrix units multiply for x's dtype: "fp16", "bf16", "tf32", "fp32" or "fp64"."""
    return _OPERANDS.get(x.dtype) or float32_operand(architecture(x))


def how_multiplied(x: Tensor, dtype: torch.dtype) -> tuple[str, ...]:
    """In words what the matrix units multiply for an x that is read as ``dtype``, where a setting decides that."""
    if dtype != torch.float32:
        return ()
    setting = "torch.backends.cudnn.conv.fp32_precision"
    if float32_operand(architecture(x)) == "tf32":
        return (f"products are in TF32, as PyTorch's convolutions are: {setting}",)
    return (f"products are in float32, without TF32: {setting}, or the GPU, says so",)


# ---- compilation ahead of time -----------------------------------------------------------------------------

Size = TypeVar("Size", bound=tuple[int, ...])
Note = Callable[[Any, tuple[int, ...], tuple[Any, ...], dict[str, Any]], None]
"""What is told of a launch: the kernel, the grid, its arguments, and its options by name."""


class _Noting(NamedTuple):
    architecture: str
    note: Note


_noting: _Noting | None = None


@contextmanager
def launches_noted(architecture: str, note: Note) -> Iterator[None]:
    """Inside, kernels take x wherever it is, and ``note`` is told of every launch, which does not happen.

    Tilings are those for a GPU of this ``architecture`` ("sm_90"), which need not be there.
    """
    global _noting
    before, _noting = _noting, _Noting(architecture, note)
    try:
        yield
    finally:
        _noting = before


class _NotedKernel:
    """Stands where a kernel would be launched."""

    def __init__(self, kernel: Any, note: Note) -> None:
        self.kernel, self.note = kernel, note

    def __getitem__(self, grid: Any) -> Callable[..., None]:
        return lambda *arguments, **options: self.note(self.kernel, grid, arguments, options)


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


def operands_and_sizes(architecture: str, sizes: Iterable[Size]) -> Iterator[tuple[str, Size]]:
    """What is compiled ahead: each of the ``sizes``, (channels, kernel size) or (channels,), with each operand type.

    But that takes minutes: what sets fp16 apart from bfloat16, float32 from what PyTorch makes of it by default, and
    float64, which is there for checks, shows in a narrow size, a common one and a wide one.
    """
    found = operand_types(architecture)
    most = ("bf16", "tf32" if "tf32" in found else "fp32")
    few = {(channels, *kernel_size) for channels in (3, 64, 256) for kernel_size in ((), (3,))}
    return ((operand, size) for operand in found for size in sizes if operand in most or size in few)


LONGEST_RUN = 256
"""Of tiles that a program sums over: after more of them, what is added would be lost beside the sums."""


@constexpr_function
def power_of_two(size: int) -> int:
    """The smallest power of two that is not less than ``size``; of constants in a kernel too."""
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
