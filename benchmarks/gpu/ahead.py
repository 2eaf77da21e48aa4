"""Every kernel that the other steps launch, compiled on all cores before anything is run.

What a case launches is found by running it on fake tensors, which have shapes, strides and dtypes but no memory; a
launch is then only noted. What the compiler sees of a launch (:class:`Launch`) is compiled by a pool of processes
into Triton's cache, under the key that the launch itself will look up. No process needs or touches a GPU.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import importlib
import os
import resource
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, TimeoutError, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple, TypeVar

import codegen
import torch
from harness import machine
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from leni_kernels import use_backend
from leni_kernels.common.gpu import support

from . import records
from .device import Gpu
from .records import Record

REHEARSED_ON = "sm_90"
Noted = TypeVar("Noted")
CORES = 16
"""Of the machine for which a rehearsal foretells the time."""


# ---- what is launched --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pointer:
    """A tensor argument as the compiler sees it."""

    dtype: torch.dtype
    aligned: bool

    def data_ptr(self) -> int:
        return 16 if self.aligned else 1

    def ptr_range(self) -> int:
        """Read for AMD GPUs only: whether offsets fit in 32 bits."""
        return 0


class Launch(NamedTuple):
    """All that decides which machine code a launch needs."""

    module: str
    kernel: str
    arguments: tuple[Any, ...]
    options: tuple[tuple[str, Any], ...]

    def __str__(self) -> str:
        sizes = " ".join(f"{name}={value}" for name, value in self.options)
        dtypes = " ".join(str(value.dtype).removeprefix("torch.") for value in self.arguments
                          if isinstance(value, Pointer))
        numbers = " ".join(str(value) for value in self.arguments if not isinstance(value, Pointer))
        apart = "" if all(value.aligned for value in self.arguments if isinstance(value, Pointer)) else " not aligned"
        return f"{self.module.removeprefix('leni_kernels.')}.{self.kernel} {dtypes}{apart} {numbers} {sizes}"


def launch_of(kernel: Any, grid: tuple[int, ...], arguments: tuple[Any, ...], options: dict[str, Any]) -> Launch:
    """What the compiler sees of a launch; the grid is not among it."""
    return Launch(kernel.fn.__module__, kernel.fn.__name__, tuple(map(_as_compiled, arguments)),
                  tuple(options.items()))


def _as_compiled(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        # Memory from PyTorch's allocator is aligned; a view begins somewhere in it.
        return Pointer(value.dtype, value.storage_offset() * value.dtype.itemsize % 16 == 0)
    if isinstance(value, int) and not isinstance(value, bool) and value != 1:
        # One number stands for all that give the same code: of as many bits, and divisible by 16 or not.
        return (2**40 if abs(value) >= 2**31 else 2**10) + (0 if value % 16 == 0 else 3)
    return value


def _taps(launch: Launch) -> int:
    """How many taps a kernel unrolls: those of many take longest to compile, and are not to be begun last."""
    options = dict(launch.options)
    taps = options.get("TAPS") or ()  # each, or how many
    return (taps if isinstance(taps, int) else len(taps)) or options.get("KERNEL", 1) ** 2


class _Bodies(TorchDispatchMode):
    """Runs the Python body of an operator of this package where its fake would be run, and reads any number as 1."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        from torch._library.custom_ops import OPDEFS

        kwargs = kwargs or {}
        if func is torch.ops.aten._local_scalar_dense.default:
            return 1
        definition = OPDEFS.get(func._schema.name) if func.namespace == "leni_kernels" else None
        if definition is None:
            return func(*args, **kwargs)
        with self:
            return definition._init_fn(*args, **kwargs)


@contextmanager
def _modules_of_fakes() -> Iterator[None]:
    """Lets a module of fake tensors be moved and cast: PyTorch would swap them in place, which fakes do not allow."""

    def apply(module: nn.Module, function: Callable[..., Any], recurse: bool = True) -> nn.Module:
        for child in module.children() if recurse else ():
            child._apply(function)
        for name, tensor in module._parameters.items():
            if tensor is not None:
                module._parameters[name] = nn.Parameter(function(tensor), tensor.requires_grad)
        for name, tensor in module._buffers.items():
            if tensor is not None:
                module._buffers[name] = function(tensor)
        return module

    before, nn.Module._apply = nn.Module._apply, apply
    try:
        yield
    finally:
        nn.Module._apply = before


def launches(architecture: str, work: Callable[[], Any]) -> list[Launch]:
    """What ``work`` would launch on a GPU of this architecture; its tensors are made inside it, on the CPU."""
    return noted(architecture, work, launch_of)


def noted(architecture: str, work: Callable[[], Any], note: Callable[..., Noted]) -> list[Noted]:
    """What ``note`` makes of each launch of ``work``, as in :func:`launches`."""
    from torch._subclasses import FakeTensorMode

    found: list[Noted] = []
    with (support.launches_noted(architecture, lambda *launch: found.append(note(*launch))),
          use_backend("triton"), FakeTensorMode(), _Bodies(), _modules_of_fakes(),
          torch.autograd.set_multithreading_enabled(False)):
        work()
    return found


# ---- compiling ---------------------------------------------------------------------------------------------


def drive(architecture: str) -> None:
    """Make Triton compile for this architecture in this process, whatever GPU is here; it can launch no more."""
    from triton.runtime import driver

    target = codegen.target(architecture)
    driver.set_active(SimpleNamespace(get_current_device=lambda: 0, get_current_stream=lambda device: 0,
                                      get_current_target=lambda: target))


def compile_launch(launch: Launch) -> str:
    """Compile into Triton's cache for the architecture that :func:`drive` named; returns the key."""
    compiled = compiled_launch(launch)
    _build_launcher(compiled)
    return compiled.hash


def compiled_launch(launch: Launch) -> Any:
    """What Triton makes of a launch, for the architecture that :func:`drive` named."""
    kernel = getattr(importlib.import_module(launch.module), launch.kernel)
    return kernel.run(*launch.arguments, grid=(1,), warmup=True, **dict(launch.options))


def _build_launcher(compiled: Any) -> None:
    """Up to Triton 3.6 a launch goes through a C module of its own, which is built for each kind of signature."""
    if compiled.metadata.target.backend != "cuda":
        return
    from triton.backends.nvidia import driver

    if hasattr(driver, "make_launcher"):
        driver.CudaLauncher(compiled.src, compiled.metadata)


_DRIVER_FUNCTIONS = ("cuCtxGetCurrent", "cuCtxSetCurrent", "cuDeviceGet", "cuDevicePrimaryCtxRetain",
                     "cuFuncSetAttribute", "cuGetErrorString", "cuLaunchKernelEx", "cuPointerGetAttribute")


def _stand_in_driver(folder: str) -> None:
    """Give those modules a library to link with where CUDA's driver is not installed; nothing in it is called."""
    library = Path(folder) / "libcuda.so.1"
    library.parent.mkdir(parents=True, exist_ok=True)
    source = "".join(f"void {name}(void) {{}}\n" for name in _DRIVER_FUNCTIONS)
    command = [os.environ.get("CC", "cc"), "-shared", "-fPIC", "-Wl,-soname,libcuda.so.1", "-x", "c", "-"]
    subprocess.run([*command, "-o", str(library)], input=source, text=True, check=True)
    ctypes.CDLL(str(library), ctypes.RTLD_GLOBAL)
    os.environ["TRITON_LIBCUDA_PATH"] = folder


def _compiled(launch: Launch) -> Record:
    """The record of a launch: its key, and the seconds of a core it took, in this process and the compilers it called.

    An error is told in words: many compilers' errors do not survive the way from one process to another.
    """
    before = _cpu_seconds()
    try:
        key = compile_launch(launch)
    except Exception as error:
        return {"status": records.FAILED, "failures": [records.in_one_line(error)]}
    return {"status": records.PASSED, "key": key, "cpu_seconds": round(_cpu_seconds() - before, 2)}


def _cpu_seconds() -> float:
    usages = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


# ---- the step ----------------------------------------------------------------------------------------------


def _cases_of(step: str, here: Gpu, short: bool) -> list[Any]:
    return list(importlib.import_module(f"gpu.{step}").cases(here, short))


def _noted(architecture: str, step: str, short: bool, numbers: Iterable[int]) -> list[tuple[str, list[Launch], str]]:
    """The launches of some cases of a step, and what hinders the noting of a case's."""
    here, found = Planner(), []
    launch, cases = importlib.import_module(f"gpu.{step}").launch, _cases_of(step, here, short)
    for case in (cases[number] for number in numbers):
        try:
            found.append((str(case), launches(architecture, partial(launch, case, here)), ""))
        except Exception as error:
            found.append((str(case), [], records.in_one_line(error)))
    return found


class Planner(Gpu):
    """The GPU to come, while its launches are noted: full sizes, on fake tensors of the CPU."""

    device = torch.device("cpu")


def _architecture(rehearses: bool) -> str:
    """The GPU's, asked of a process that ends with the question: this one has to stay without CUDA."""
    if rehearses:
        return REHEARSED_ON
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(_ask_architecture).result()


def _ask_architecture() -> str:
    return support.architecture(torch.empty(1, device="cuda"))


def run_all(path: Path, here: Gpu, steps: Iterable[str], short: bool, until: float) -> None:
    """Note the launches of every case of the steps and compile each kernel once, while there is time.

    Each is recorded as a case; in short a few of them.
    """
    began, workers = time.perf_counter(), machine.cores()
    architecture = _architecture(here.rehearses)
    # From here on every process is the same with a GPU and without.
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    if ctypes.util.find_library("cuda") is None:
        _stand_in_driver(os.environ["TRITON_CACHE_DIR"])
    pool = ProcessPoolExecutor(workers, get_context("fork"), drive, (architecture,))
    wanted: dict[Launch, str] = {}
    for case, found, hindrance in _note_all(pool, architecture, steps, short, workers):
        for launch in found:
            wanted.setdefault(launch, case)
        if hindrance:
            records.append(path, {"case": f"launches of {case}", "status": records.FAILED, "failures": [hindrance]})
    noting = time.perf_counter() - began
    chosen = sorted(wanted.items(), key=lambda each: -_taps(each[0]))[::16 if short else 1]
    compiled = []
    for record in _compile_all(pool, chosen, until):
        records.append(path, record)
        compiled.append(record)
    pool.shutdown(wait=False, cancel_futures=True)
    spent = sum(record.get("cpu_seconds", 0.0) for record in compiled)
    records.append(path, {
        "case": "in all", "status": records.PASSED, "architecture": architecture, "kernels": len(compiled),
        "cores": workers, "noting_seconds": round(noting, 1), "seconds": round(time.perf_counter() - began, 1),
        "cpu_seconds": round(spent, 1),
        # Noting is shared among the cores as compiling is.
        f"seconds_on_{CORES}_cores": round((spent + noting * workers) / CORES, 1)})


def _note_all(pool: ProcessPoolExecutor, architecture: str, steps: Iterable[str], short: bool,
              workers: int) -> Iterator[tuple[str, list[Launch], str]]:
    parts: list[Future[Any]] = []
    for step in (step for step in steps if step != "ahead"):
        count = len(_cases_of(step, Planner(), short))
        parts += [pool.submit(_noted, architecture, step, short, range(first, count, workers))
                  for first in range(min(workers, count))]
    for part in parts:
        yield from part.result()


def _compile_all(pool: ProcessPoolExecutor, chosen: list[tuple[Launch, str]], until: float) -> Iterator[Record]:
    """The records of launches, as they are compiled; those that time was left for, and the others."""
    futures = {pool.submit(_compiled, launch): {"case": str(launch), "for": case} for launch, case in chosen}
    try:
        for future in as_completed(list(futures), max(0.0, until - time.time())):
            yield {**futures.pop(future), **_result(future)}
    except TimeoutError:
        for common in futures.values():
            yield {**common, "status": records.LEFT_OUT}


def _result(future: Future[Record]) -> Record:
    try:
        return future.result()
    except Exception as error:  # the compiler has taken its process with it, and so the pool
        return {"status": records.FAILED, "failures": [records.in_one_line(error)]}
