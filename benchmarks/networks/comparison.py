"""What the comparisons of whole networks share: the batches, the cases, and a row of results."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from harness import parity, timing

from . import first_activation

BATCHES = {
    "cpu": {"mobilenet_v3_small": 32, "resnet18": 8, "vgg16_bn": 2},
    "cuda": {"mobilenet_v3_small": 256, "resnet18": 256, "vgg16_bn": 64},
}
QUICK_NETWORKS = ("resnet18",)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class Case(NamedTuple):
    """One network in one dtype."""

    network: str
    dtype: str

    def __str__(self) -> str:
        return f"{self.network} {self.dtype}"


def cases(quick: bool, dtypes: Iterable[str]) -> list[Case]:
    """All cases of a run in these dtypes."""
    networks = QUICK_NETWORKS if quick else first_activation.PLACES
    return [Case(network, dtype) for dtype in dtypes for network in networks]


def row(case: NamedTuple, batch: int, replaced: dict[str, str], backend: str | None, missing: dict[str, str],
        verdicts: dict[str, parity.Verdict], samples: dict[str, list[float]]) -> dict[str, Any]:
    """A row of the results; ``replaced`` says which activations were, and where they stood."""
    times = {name: timing.summary(values) for name, values in samples.items()}
    return {
        **case._asdict(),
        "batch": batch,
        **replaced,
        "backend": backend,
        "missing": missing,
        "parity": {name: verdict.as_json() for name, verdict in verdicts.items()},
        "seconds": times,
        "images_per_second": {name: batch / time["median"] for name, time in times.items()},
        "change_percent": {name: change(samples["stock"], values) for name, values in samples.items()
                           if name != "stock"},
    }


def change(stock: list[float], other: list[float]) -> float:
    """The change of images/s against the stock network in per cent: the median over the rounds."""
    return statistics.median(100 * (before / after - 1) for before, after in zip(stock, other, strict=True))
