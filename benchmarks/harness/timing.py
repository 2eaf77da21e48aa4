"""Fair times: all sides in one process, alternating, with page faults kept out for every one of them."""

from __future__ import annotations

import ctypes
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch

Side = Callable[[], Any]
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
WARM_UP = 2
"""Rounds before the first that counts: clocks rise, and the heap finds its final size."""


def alternate(sides: Mapping[str, Side], time_call: Callable[[Side], float], seconds: float,
              rounds: tuple[int, int] = (5, 60), warm_up: int = WARM_UP) -> dict[str, list[float]]:
    """Time every side once a round, and go on until ``seconds`` have passed.

    Every second round runs backwards, so that no side always follows the same other one.

    Args:
        sides: what to time, by name.
        time_call: runs one side and returns its seconds; see :func:`timer`.
        seconds: the time to spend, all sides together.
        rounds: at least and at most so many rounds, whatever the time.
        warm_up: rounds before the first that counts.

    Returns:
        The seconds of each side, in order of sampling: entry i of every side belongs to round i.
    """
    for _ in range(warm_up):
        for side in sides.values():
            side()
    forwards = list(sides)
    samples: dict[str, list[float]] = {name: [] for name in forwards}
    least, most = rounds
    end = time.perf_counter() + seconds
    for count in range(most):
        if count >= least and time.perf_counter() > end:
            break
        for name in forwards if count % 2 == 0 else reversed(forwards):
            samples[name].append(time_call(sides[name]))
    return samples


def alternate_counting_faults(*arguments: Any) -> tuple[dict[str, list[float]], int]:
    """:func:`alternate`, and the page faults meanwhile."""
    before = page_faults()
    samples = alternate(*arguments)
    return samples, page_faults() - before


def summary(samples: list[float]) -> dict[str, Any]:
    """Median, quantiles and count of the samples, in seconds."""
    values, levels = (torch.tensor(numbers, dtype=torch.float64) for numbers in (samples, QUANTILES))
    quantiles = dict(zip(map(str, QUANTILES), values.quantile(levels).tolist(), strict=True))
    return {"median": statistics.median(samples), "quantiles": quantiles, "count": len(samples)}


def timer(device: torch.device) -> Callable[[Side], float]:
    """The way to time one call on ``device``."""
    return _CudaTimer() if device.type == "cuda" else _time_on_cpu


def _time_on_cpu(side: Side) -> float:
    start = time.perf_counter()
    side()
    return time.perf_counter() - start


class _CudaTimer:
    """Times one call with events, behind work that empties the L2 cache and lets the host queue ahead."""

    def __init__(self) -> None:
        self.scratch = torch.empty(2**28, dtype=torch.int8, device="cuda")

    def __call__(self, side: Side) -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        for _ in range(4):
            self.scratch.zero_()
        start.record()
        side()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3


# ---- page faults -------------------------------------------------------------------------------------------

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # malloc.h of glibc
_HEAP = 2**30


def keep_freed_memory() -> bool:
    """Make malloc keep and reuse what is freed, from now on; returns False where it cannot be told to.

    By default glibc maps every block over 32 MiB afresh, and the page faults can double the time of any side
    that returns a new tensor. To be called before the large allocations.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return False
    kept = bool(mallopt(_M_MMAP_MAX, 0)) and bool(mallopt(_M_TRIM_THRESHOLD, -1))
    torch.ones(_HEAP // 4)  # touched and freed: later blocks come out of it
    return kept


def page_faults() -> int:
    """The page faults of this process so far."""
    usage = _usage()
    return 0 if usage is None else usage.ru_minflt + usage.ru_majflt


def interruptions() -> int:
    """How often a thread of this process has had to leave its core to another one so far."""
    usage = _usage()
    return 0 if usage is None else usage.ru_nivcsw


def _usage() -> Any:
    try:
        import resource
    except ImportError:
        return None
    return resource.getrusage(resource.RUSAGE_SELF)
