"""What the benchmarks of the LENI block share: shapes, contenders, yardsticks, and a row of results."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from harness import blocks, maps, parity, sides, timing
from harness.maps import Map
from torch import Tensor

SHAPES = ((16, 112), (32, 112), (64, 224), (64, 112), (64, 56), (32, 32), (128, 28), (256, 14), (512, 7))
"""(C, H): first layers of MobileNetV3, MobileNetV1/V2, VGG, ResNet and CIFAR networks, then deeper ones."""

QUICK_SHAPES, QUICK_LAYOUTS = ((16, 112), (64, 56)), ("channels_last",)

CONTENDERS = ("eager", "compiled", "ours")
Function = Callable[[Any], Any]


def cases(quick: bool, dtypes: Iterable[str]) -> list[Map]:
    """All cases of a run in these dtypes."""
    shapes, layouts = (QUICK_SHAPES, QUICK_LAYOUTS) if quick else (SHAPES, maps.LAYOUTS)
    return [Map(*shape, layout, dtype) for dtype in dtypes for layout in layouts for shape in shapes]


TABLE = blocks.Table(
    times=("copy", "product", "relu", *CONTENDERS),
    ratios={"ours/L": "time / L", "eager/ours": "× composed", "compiled/ours": "× compiled", "best/ours": None,
            "ours/relu": "time / ReLU"},
    label=maps.label, head=maps.HEAD, average="geometric mean, C ≤ 256", averaged=lambda row: row["channels"] <= 256)


class Contenders(NamedTuple):
    """The functions of an input to compare, why others are missing, and the backend of ours."""

    functions: dict[str, Function]
    missing: dict[str, str]
    backend: str | None


def contenders(eager: Function, compiled: Callable[[], Function],
               ours: Callable[[], tuple[Function, str]]) -> Contenders:
    """Prepare the contenders: ``compiled()`` and ``ours()`` make theirs, or raise if there is none."""
    functions, missing, backend = {"eager": eager}, {}, None
    # A new start for every shape: after eight of them torch.compile silently runs eagerly.
    torch.compiler.reset()
    try:
        functions["compiled"] = compiled()
    except sides.NotMeasured as reason:
        missing["compiled"] = str(reason)
    except Exception as error:
        first_line = str(error).strip().partition("\n")[0]
        missing["compiled"] = f"torch.compile failed: {type(error).__name__}: {first_line}"
    try:
        functions["ours"], backend = ours()
    except sides.NotMeasured as reason:
        missing["ours"] = str(reason)
    return Contenders(functions, missing, backend)


def yardsticks(x: Tensor, turns: Iterator[Tensor]) -> dict[str, timing.Side]:
    """What limits are made of: a copy of x, and the bare product ``[pixels × 2C] · [2C × C]``."""
    channels = x.shape[1]
    pixels = x.numel() // channels
    copied, product = torch.empty_like(x), x.new_empty(pixels, channels)
    features = itertools.cycle(x.new_empty(maps.BUFFERS // 2, pixels, 2 * channels).normal_())
    weight = x.new_empty(2 * channels, channels).normal_()
    return {
        "copy": lambda: copied.copy_(next(turns)),
        "product": lambda: torch.mm(next(features), weight, out=product),
    }


def ratios(medians: Mapping[str, float], limit: float) -> dict[str, float]:
    """Each contender in multiples of the limit, and ours against the others and the best of them."""
    found = {f"{name}/L": medians[name] / limit for name in CONTENDERS if name in medians}
    if "ours" in medians:
        others = {name: medians[name] / medians["ours"] for name in ("eager", "compiled") if name in medians}
        found |= {f"{name}/ours": ratio for name, ratio in others.items()}
        if others:
            found["best/ours"] = min(others.values())
        if "relu" in medians:
            found["ours/relu"] = medians["ours"] / medians["relu"]
    return found


def row(case: Map, batch: int, found: Contenders, verdicts: dict[str, parity.Verdict],
        samples: dict[str, list[float]], faults: int,
        limit: Callable[[Mapping[str, float]], float]) -> dict[str, Any]:
    """A row of the results; ``limit`` finds L in the median times."""
    times = {name: timing.summary(values) for name, values in samples.items()}
    medians = {name: time["median"] for name, time in times.items()}
    return {
        **case._asdict(),
        "batch": batch,
        "backend": found.backend,
        "missing": found.missing,
        "parity": {name: verdict.as_json() for name, verdict in verdicts.items()},
        "seconds": times,
        "ratios": ratios(medians, limit(medians)),
        "page_faults_per_call": round(faults / sum(map(len, samples.values())), 1),
    }
