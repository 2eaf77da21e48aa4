"""``python -m leni_kernels`` prints what a report of a fault should say: versions, machine, and which backends work."""

from __future__ import annotations

import os
import platform
import sys
import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

import leni_kernels as lk

from .common import backends, extension
from .common.environment import processor, version

VARIABLES = ("LENI_KERNELS_", "TRITON_", "OMP_", "CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES")
"""How the names of environment variables begin that change what runs."""


def main() -> None:
    lines = (f"{name + ':':<17}{answer(ask)}" for name, ask in questions())
    # A report may be shown to anyone: whose machine it is does not matter.
    home = str(Path.home())
    for line in lines:
        print(line.replace(home, "~") if len(home) > 1 else line, flush=True)


def questions() -> Iterator[tuple[str, Callable[[], str]]]:
    yield "leni_kernels", lambda: lk.__version__
    yield "Python", python
    yield "PyTorch", pytorch
    yield "Triton", lambda: version("triton") or version("triton-rocm") or "not installed"
    yield "system", platform.platform
    yield "CPU", cpu
    yield "kernels for", lambda: extension.cpu_isa() or "no CPU: there is no C++ extension"
    yield "threads", lambda: f"{torch.get_num_threads()} of {os.cpu_count()} CPUs"
    devices = ["cpu"]
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        devices.append(f"cuda:{index}")
        yield f"GPU {index}", lambda index=index: gpu(index)
    for device in devices:
        for name in backends.NAMES:
            yield f"{name}, {device}", lambda name=name, device=device: attempt(name, device)
    for name, value in sorted(os.environ.items()):
        if name.startswith(VARIABLES):
            yield "environment", lambda name=name, value=value: f"{name}={value}"


def answer(ask: Callable[[], str]) -> str:
    """What ``ask`` returns, or the error that it raises, in one line: this is run where something is broken."""
    try:
        said = ask()
    except Exception as error:
        said = str(error) if isinstance(error, lk.BackendUnavailableError) else f"{type(error).__name__}: {error}"
    return " ".join(said.split())[:300]


def python() -> str:
    threaded = ", free-threaded" if sysconfig.get_config_var("Py_GIL_DISABLED") else ""
    return f"{platform.python_version()} ({platform.python_implementation()}{threaded})"


def pytorch() -> str:
    built = f"CUDA {torch.version.cuda}" if torch.version.cuda else f"ROCm {torch.version.hip}"
    return f"{torch.__version__} ({built if torch.version.cuda or torch.version.hip else 'for CPUs'})"


def cpu() -> str:
    return f"{processor()}, {torch.backends.cpu.get_cpu_capability()}"


def gpu(index: int) -> str:
    properties = torch.cuda.get_device_properties(index)
    kind = getattr(properties, "gcnArchName", "") if torch.version.hip else f"sm_{properties.major}{properties.minor}"
    return f"{properties.name}, {kind}, {properties.total_memory / 2**30:.0f} GiB"


@torch.no_grad()
def attempt(backend: str, device: str) -> str:
    """Whether a small LENI block runs on the backend there, and gives what the reference does."""
    block = lk.LENI2d(4).eval().to(device)
    x = torch.linspace(-1, 1, 4 * 4 * 4, device=device).reshape(1, 4, 4, 4)
    with lk.use_backend("reference"):
        wanted = block(x)
    with lk.use_backend(backend):
        error = float((block(x) - wanted).abs().max())
    return "works" if error < 1e-2 else f"wrong by {error:.2g}; please report this"


if __name__ == "__main__":
    # Versions and settings are others' words, for which the terminal may lack characters.
    sys.stdout.reconfigure(errors="backslashreplace")
    main()
