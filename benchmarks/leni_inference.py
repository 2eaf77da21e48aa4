"""LENI inference, shape by shape: the eager block, the hand-folded block compiled, ours, and the limits.

The limit L of a case is the slower of two things that no implementation can do without, measured beside it:
a copy of x, and the bare product ``[pixels × 2C] · [2C × C]``.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from harness import parity, sides, timing
from torch import Tensor

import leni_kernels as lk
from leni_kernels.leni import reference

SHAPES = ((16, 112), (32, 112), (64, 224), (64, 112), (64, 56), (32, 32), (128, 28), (256, 14), (512, 7))
"""(C, H): first layers of MobileNetV3, MobileNetV1/V2, VGG, ResNet and CIFAR networks, then deeper ones."""

LAYOUTS = {"channels_first": torch.contiguous_format, "channels_last": torch.channels_last}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
QUICK_SHAPES, QUICK_LAYOUTS = ((16, 112), (64, 56)), ("channels_last",)
ELEMENTS = {"cpu": 2 * 64 * 224**2, "cuda": 32 * 64 * 224**2}
"""Elements of x: 24.5 MiB in float32 on a CPU, 392 MiB on a GPU."""

BUFFERS = 4
"""Inputs that take turns: together larger than a last-level cache, so that every side finds its x cold."""

CONTENDERS = ("eager", "compiled", "ours")


class Case(NamedTuple):
    """One shape in one layout and dtype."""

    channels: int
    size: int
    layout: str
    dtype: str

    def __str__(self) -> str:
        return f"LENI {self.channels}×{self.size}² {self.layout} {self.dtype}"

    def batch(self, device: torch.device) -> int:
        return max(1, ELEMENTS[device.type] // (self.channels * self.size**2))


def cases(quick: bool) -> list[Case]:
    """All cases of a run."""
    shapes, layouts = (QUICK_SHAPES, QUICK_LAYOUTS) if quick else (SHAPES, LAYOUTS)
    return [Case(*shape, layout, dtype) for dtype in DTYPES for layout in layouts for shape in shapes]


def measure(case: Case, device: torch.device, seconds: float) -> dict[str, Any]:
    """Check and time one case; returns its row of the results."""
    inputs = [_input(case, device) for _ in range(BUFFERS)]
    block = sides.random_leni(case.channels).to(device, DTYPES[case.dtype])
    contenders, missing, backend = _contenders(block, inputs[0])
    verdicts = _parity(block, contenders, inputs[0])
    turns = itertools.cycle(inputs)
    timed = {name: _on(contender, turns) for name, contender in contenders.items() if verdicts[name].passed}
    timed |= _limits(case, inputs[0], turns)
    faults = timing.page_faults()
    samples = timing.alternate(timed, timing.timer(device), seconds)
    faults = timing.page_faults() - faults
    times = {name: timing.summary(values) for name, values in samples.items()}
    return {
        **case._asdict(),
        "batch": case.batch(device),
        "backend": backend,
        "missing": missing,
        "parity": {name: verdict.as_json() for name, verdict in verdicts.items()},
        "seconds": times,
        "ratios": ratios({name: time["median"] for name, time in times.items()}),
        "page_faults_per_call": round(faults / sum(time["count"] for time in times.values()), 1),
    }


def ratios(medians: dict[str, float]) -> dict[str, float]:
    """The ratios that matter: each contender in multiples of L, and ours against the others."""
    limit = max(medians["copy"], medians["product"])
    found = {f"{name}/L": medians[name] / limit for name in CONTENDERS if name in medians}
    if "ours" in medians:
        peers = [name for name in CONTENDERS if name in medians and name != "ours"]
        found |= {f"{name}/ours": medians[name] / medians["ours"] for name in peers}
        found["ours/relu"] = medians["ours"] / medians["relu"]
    return found


# ---- the sides ---------------------------------------------------------------------------------------------


def _input(case: Case, device: torch.device) -> Tensor:
    shape = (case.batch(device), case.channels, case.size, case.size)
    x = torch.randn(shape, dtype=DTYPES[case.dtype], device=device)
    return x.contiguous(memory_format=LAYOUTS[case.layout])


def _on(function: timing.Side, turns: Iterator[Tensor]) -> timing.Side:
    return lambda: function(next(turns))


def _contenders(block: lk.LENI2d, x: Tensor) -> tuple[dict[str, Any], dict[str, str], str | None]:
    """The functions of x to compare, why others are missing, and the backend of ours."""
    contenders, missing, backend = {"eager": _eager(block)}, {}, None
    try:
        contenders["compiled"] = _compiled(block, x)
    except Exception as error:
        first_line = str(error).strip().partition("\n")[0]
        missing["compiled"] = f"torch.compile failed: {type(error).__name__}: {first_line}"
    try:
        ours = sides.folded(block)
        backend = sides.backend_of(ours, x)
        contenders["ours"] = ours
    except sides.Fallback as error:
        missing["ours"] = str(error)
    return contenders, missing, backend


def _eager(block: lk.LENI2d) -> Any:
    def run(x: Tensor) -> Tensor:
        with lk.use_backend("reference"):
            return block(x)

    return run


def _compiled(block: lk.LENI2d, x: Tensor) -> Any:
    """The strongest peer: folded by hand, its deconvolution the faster correlation, and compiled."""
    parameters = [tensor.to(x.dtype) for tensor in reference.fold_leni(*block.parameters_for_kernels())]
    # A new start for every shape: after eight of them torch.compile silently runs eagerly.
    torch.compiler.reset()
    compiled = torch.compile(reference.leni_folded, fullgraph=True, dynamic=False)
    compiled(x, *parameters)
    return lambda x: compiled(x, *parameters)


def _parity(block: lk.LENI2d, contenders: dict[str, Any], x: Tensor) -> dict[str, parity.Verdict]:
    truth = _eager(copy.deepcopy(block).double())(x.double())
    outputs = {name: contender(x) for name, contender in contenders.items()}
    return parity.judge(outputs, truth, composed="eager")


def _limits(case: Case, x: Tensor, turns: Iterator[Tensor]) -> dict[str, timing.Side]:
    pixels = x.shape[0] * case.size**2
    copied, product = torch.empty_like(x), x.new_empty(pixels, case.channels)
    features = itertools.cycle(x.new_empty(BUFFERS // 2, pixels, 2 * case.channels).normal_())
    weight = x.new_empty(2 * case.channels, case.channels).normal_()
    return {
        "copy": lambda: copied.copy_(next(turns)),
        "product": lambda: torch.mm(next(features), weight, out=product),
        "relu": lambda: torch.relu(next(turns)),
    }
