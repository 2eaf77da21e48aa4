"""The facts without which a time means nothing: the machine, the versions, the commit."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from leni_kernels.common import extension
from leni_kernels.common.environment import cpuinfo, processor, version

ISAS = (*reversed(extension.INSTRUCTION_SETS), "None")
"""What :func:`leni_kernels.common.extension.cpu_isa` may say, the best first."""

_ISA = ("avx2", "fma", "avx512f", "avx512_bf16", "amx_tile", "amx_bf16", "asimd", "bf16", "sve")
_PACKAGES = ("torch", "torchvision", "timm", "triton", "leni-kernels")


def facts(device: torch.device) -> dict[str, Any]:
    """What the times of this process depend on, as plain data."""
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commit": commit(),
        "device": device.type,
        "machine": {**cpu(), **({"gpu": gpu(device)} if device.type == "cuda" else {})},
        "threads": torch.get_num_threads(),
        "kernels_isa": extension.cpu_isa(),
        "versions": versions(),
    }


def name(facts: Mapping[str, Any]) -> str:
    """The machine of :func:`facts` in a few words."""
    if "gpu" in facts["machine"]:
        return facts["machine"]["gpu"]["name"]
    threads = facts["threads"]
    return f"{facts['machine']['cpu']} ({facts['kernels_isa'] or 'no kernels'}), {threads} thread{'s' * (threads != 1)}"


def kind(device: torch.device) -> str:
    """What names the results of such a machine: the device, and on a CPU the kernels' instruction set."""
    return f"cpu-{extension.cpu_isa()}" if device.type == "cpu" else device.type


def why_no_bfloat16(device: torch.device) -> str | None:
    """Why bfloat16 is not worth timing on the device, or None: PyTorch's sides would take most of an hour."""
    if device.type == "cpu" and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return "PyTorch has no bfloat16 kernels for this CPU, and takes about 30 times float32's time"
    return None


def cpu() -> dict[str, Any]:
    """The processor: its name, cores, vector instructions, and how busy it was."""
    description = cpuinfo()
    flags = description.get("flags", description.get("Features", "")).split()
    return {
        "cpu": processor(),
        "cores": cores(),
        "isa": [name for name in _ISA if name in flags],
        "load": load(),
    }


def gpu(device: torch.device) -> dict[str, Any]:
    """The GPU: its name, memory and multiprocessors."""
    properties = torch.cuda.get_device_properties(device)
    return {
        "name": properties.name,
        "memory_gib": round(properties.total_memory / 2**30, 1),
        "multiprocessors": properties.multi_processor_count,
        "runtime": f"ROCm {torch.version.hip}" if torch.version.hip else f"CUDA {torch.version.cuda}",
    }


def versions() -> dict[str, str | None]:
    """Python and the packages that matter; None for one that is not installed."""
    return {"python": platform.python_version(), **{name: version(name) for name in _PACKAGES}}


def commit() -> str | None:
    """The git commit of this checkout, with ``+`` where the code differs from it; None outside a checkout."""
    revision = _git("rev-parse", "--short=12", "HEAD")
    if revision is None:
        return None
    changed = _git("status", "--porcelain", "--", "leni_kernels", "csrc", "setup.py", "benchmarks/*.py")
    return f"{revision}+" if changed else revision


def _git(*arguments: str) -> str | None:
    try:
        root = Path(__file__).parents[2]
        done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True)
    except OSError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def load() -> float | None:
    """The number of processes that wanted a core over the last minute, where the system tells."""
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None


def why_not_quiet() -> str | None:
    """What disturbs times here, or None: where others want the cores, threads wait milliseconds for one another."""
    wanted, there = load(), cores()
    if wanted is None or wanted <= 0.5 * there:
        return None
    return f"Something else is running here (load {wanted} on {there} cores): times will be off."


def cores() -> int:
    """The cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
