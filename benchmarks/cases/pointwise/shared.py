"""What the benchmarks of AdaReLU, FullyParametricReLU and CReLU share, beside torch's ReLU and PReLU, in float32.

What they cost more than a ReLU is the number to look at; ``composed`` is each of them made of PyTorch's operations, as
in ``reference.py``.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from harness import blocks, maps, parity, sides, timing
from harness.maps import BUFFERS, LAYOUTS, on
from torch import Tensor, nn

import leni_kernels as lk

SECONDS = {"cpu": 0.4, "cuda": 0.4, "quick": 0.4}
PICTURE = None

SHAPES, QUICK_SHAPES = ((16, 112), (64, 56), (256, 14), (512, 7)), ((64, 56),)
"""(C, H): a first layer of MobileNetV3, then three of a ResNet."""

ELEMENTS = {"cpu": 64 * 224**2, "cuda": 16 * 64 * 224**2}
"""Elements of x: 12.25 MiB on a CPU, 196 MiB on a GPU."""

OURS = {"AdaReLU": lk.AdaReLU, "FPReLU": lk.FullyParametricReLU, "CReLU": lambda channels: lk.CReLU()}
ROUNDS, WARM_UP = (5, 60), 1


class Case(NamedTuple):
    """One shape in one layout, forward or a whole step."""

    work: str
    channels: int
    size: int
    layout: str
    dtype: str = "float32"

    def __str__(self) -> str:
        return f"{self.work} {self.channels}×{self.size}² {self.layout}"


TABLE = blocks.Table(
    ("ReLU", "PReLU", *OURS),
    {"AdaReLU/ReLU": "AdaReLU/ReLU", "FPReLU/ReLU": "FPReLU/ReLU", "PReLU/ReLU": "PReLU/ReLU", "CReLU/ReLU": None,
     "composed/AdaReLU": None, "composed/FPReLU": None, "composed/CReLU": "composed/CReLU"},
    label=maps.label, head=maps.HEAD)


def cases(quick: bool, work: str) -> list[Case]:
    """All cases of a run, of "forward" or of "step"."""
    shapes = QUICK_SHAPES if quick else SHAPES
    return [Case(work, *shape, layout) for layout in LAYOUTS for shape in shapes]


def measure(case: Case, device: torch.device, seconds: float) -> dict[str, Any]:
    """Check and time one case; returns its row of the results."""
    batch = max(1, ELEMENTS[device.type] // (case.channels * case.size**2))
    tensors = [_random(case, batch, device) for _ in range(BUFFERS)]
    activations, missing, backend = _activations(case, device, tensors[0][0])
    functions = {name: function for name, function in _functions(case, activations).items() if name not in missing}
    verdicts = _judge(case, activations, functions, tensors[0])
    turns = itertools.cycle(tensors)
    timed = {name: on(function, turns) for name, function in functions.items()
             if name not in verdicts or verdicts[name].passed}
    samples, faults = timing.alternate_counting_faults(timed, timing.timer(device), seconds, ROUNDS, WARM_UP)
    times = {name: timing.summary(values) for name, values in samples.items()}
    return {
        **case._asdict(), "batch": batch, "backend": backend, "missing": missing,
        "parity": {name: verdict.as_json() for name, verdict in verdicts.items()},
        "seconds": times, "ratios": ratios({name: time["median"] for name, time in times.items()}),
        "page_faults_per_call": round(faults / sum(map(len, samples.values())), 1),
    }


def ratios(medians: Mapping[str, float]) -> dict[str, float]:
    """Each activation against a ReLU, and against itself composed."""
    found = {f"{name}/ReLU": medians[name] / medians["ReLU"] for name in ("PReLU", *OURS) if name in medians}
    return found | {f"composed/{name}": medians[f"composed {name}"] / medians[name] for name in OURS if name in medians}


# ---- the sides ---------------------------------------------------------------------------------------------

Triple = tuple[Tensor, Tensor, Tensor]
"""x, a gradient of its shape, and one of twice the channels."""


def _random(case: Case, batch: int, device: torch.device) -> Triple:
    def tensor(channels: int) -> Tensor:
        x = torch.randn(batch, channels, case.size, case.size, device=device)
        return x.contiguous(memory_format=LAYOUTS[case.layout])

    return tensor(case.channels).requires_grad_(case.work == "step"), tensor(case.channels), tensor(2 * case.channels)


def _activations(case: Case, device: torch.device,
                 x: Tensor) -> tuple[dict[str, nn.Module], dict[str, str], str | None]:
    """The modules by name, why those of ours are missing that no kernel runs, and the backend of the others."""
    found, missing, backend = {"ReLU": nn.ReLU(), "PReLU": nn.PReLU(case.channels)}, {}, None
    for name, make in OURS.items():
        found[name] = make(case.channels)
    for module in found.values():
        for parameter in module.to(device).parameters():
            nn.init.normal_(parameter)
    for name in OURS:
        try:
            backend = sides.backend_of(found[name], x)
        except sides.NotMeasured as reason:
            missing[name] = str(reason)
    return found, missing, backend


def _functions(case: Case, activations: Mapping[str, nn.Module]) -> dict[str, Callable[[Triple], Any]]:
    """What to do with a triple, by the name of a side."""
    functions = {name: _work(case, module, name) for name, module in activations.items()}
    return functions | {f"composed {name}": sides.composed(functions[name]) for name in OURS}


def _work(case: Case, module: nn.Module, name: str) -> Callable[[Triple], dict[str, Tensor]]:
    step, grad = sides.step(module), 2 if name == "CReLU" else 1

    def forward(tensors: Triple) -> dict[str, Tensor]:
        with torch.no_grad():
            return {"y": module(tensors[0])}

    return (lambda tensors: step((tensors[0], tensors[grad]))) if case.work == "step" else forward


def _judge(case: Case, activations: Mapping[str, nn.Module], functions: Mapping[str, Callable[[Triple], Any]],
           tensors: Triple) -> dict[str, parity.Verdict]:
    """Compare ours with the float64 reference: y, and in a step all gradients."""
    double = tuple(tensor.detach().double() for tensor in tensors)
    double[0].requires_grad_(case.work == "step")
    verdicts = {}
    for name in OURS.keys() & functions.keys():
        got = functions[name](tensors)
        truth = sides.composed(_work(case, activations[name].double(), name))(double)
        activations[name].float()
        verdicts[name] = parity.judge_steps({"ours": got}, truth, {})["ours"]
    return verdicts
