"""What the benchmarks of the Reborn block share: shapes, the block, and a row of results."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from harness import maps, parity, sides, timing
from harness.maps import Map

import leni_kernels as lk

SHAPES = ((16, 112), (32, 112), (64, 56), (128, 28))
QUICK_SHAPES, QUICK_LAYOUTS = ((16, 112), (64, 56)), ("channels_last",)
ELEMENTS = {"cpu": 2 * 64 * 112**2, "cuda": 16 * 64 * 112**2}
"""Elements of x: 6 MiB on a CPU, 49 MiB on a GPU; of its gradient as many."""

ROUNDS, WARM_UP = (4, 60), 1


def cases(quick: bool) -> list[Map]:
    """All cases of a run."""
    shapes, layouts = (QUICK_SHAPES, QUICK_LAYOUTS) if quick else (SHAPES, maps.LAYOUTS)
    return [Map(*shape, layout, "float32") for layout in layouts for shape in shapes]


def block(channels: int) -> lk.Reborn2d:
    """A block with statistics and affine parameters such as training leaves."""
    return sides.as_trained(lk.Reborn2d(channels))


def row(case: Map, batch: int, backend: str | None, missing: dict[str, str], verdicts: Mapping[str, parity.Verdict],
        timed: Mapping[str, timing.Side], ratios: Mapping[str, Any], device: torch.device,
        seconds: float) -> dict[str, Any]:
    """Time the sides; returns a row of the results with those of the ``ratios`` whose sides are there."""
    samples, faults = timing.alternate_counting_faults(timed, timing.timer(device), seconds, ROUNDS, WARM_UP)
    times = {name: timing.summary(values) for name, values in samples.items()}
    medians = {name: time["median"] for name, time in times.items()}
    return {
        **case._asdict(),
        "batch": batch,
        "backend": backend,
        "missing": missing,
        "parity": {name: verdict.as_json() for name, verdict in verdicts.items()},
        "seconds": times,
        "ratios": {ratio: medians[over] / medians[under] for ratio in ratios
                   for over, under in [ratio.split("/")] if over in medians and under in medians},
        "page_faults_per_call": round(faults / sum(map(len, samples.values())), 1),
    }
