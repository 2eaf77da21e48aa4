"""What else users rely on: CUDA graphs, ``torch.compile``, streams, determinism, no waiting, memory, large tensors."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import NamedTuple

import torch
from harness import sides
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

import leni_kernels as lk

from . import judging
from .device import Gpu
from .records import Record

SHAPE, REHEARSED_SHAPE = (32, 64, 56, 56), (2, 4, 2, 3)
MOST_KEPT = {"LENI step": 0.02, "ConvReLU step": 0.02, "AdaReLU step": 0.02, "Reborn step": 1.02}
"""What a step may keep for its backward beside x, in multiples of x: vectors of channels, and Reborn its z."""

GOALS = {"LENI folded": 1, "LENI in eval mode": 2, "LENI step": 8}
"""How many kernels should be launched."""

ROUNDED = 2**-8
"""By how much equal sums in other orders differ once they are rounded to bfloat16."""


class Subject(NamedTuple):
    """Something to run, again and again, on an x that may change in place."""

    x: Tensor
    run: Callable[[], dict[str, Tensor]]
    module: nn.Module
    grad: Tensor | None


def _subject(name: str, here: Gpu, dtype: str = "bfloat16") -> Subject:
    shape = here.size(SHAPE, REHEARSED_SHAPE)
    channels = shape[1]
    makers: dict[str, Callable[[], nn.Module]] = {
        "LENI folded": lambda: lk.fold(sides.random_leni(channels), inplace=True),
        "LENI in eval mode": lambda: sides.random_leni(channels),
        "LENI step": lambda: sides.random_leni(channels).train(),
        "LENI step without momentum": lambda: lk.LENI2d(channels, momentum=None),
        "Reborn folded": lambda: lk.fold(sides.as_trained(lk.Reborn2d(channels).eval()), inplace=True),
        "Reborn step": lambda: lk.Reborn2d(channels),
        "ConvReLU": lambda: lk.ConvReLU2d(channels, channels, 3, padding=1, threshold_init="normal"),
        "ConvReLU step": lambda: lk.ConvReLU2d(channels, channels, 3, padding=1, threshold_init="normal"),
        "AdaReLU step": lambda: lk.AdaReLU(channels),
    }
    module = makers[name]().to(here.device, here.dtype(dtype))
    x, grad = (sides.in_layout(torch.randn(shape, device=here.device, dtype=here.dtype(dtype)), "channels_last")
               for _ in range(2))
    return _running(module, x, grad if "step" in name else None)


def _running(module: nn.Module, x: Tensor, grad: Tensor | None, forward: Callable[[Tensor], Tensor] | None = None,
             ) -> Subject:
    """The subject of a training step, or without a ``grad`` of inference."""
    if grad is not None:
        x.requires_grad_()
        step = sides.step(module, forward)
        return Subject(x, lambda: step((x, grad)), module, grad)

    @torch.no_grad()
    def run() -> dict[str, Tensor]:
        return {"y": (module if forward is None else forward)(x)}

    return Subject(x, run, module, None)


def _apart(results: dict[str, Tensor], wanted: dict[str, Tensor]) -> list[str]:
    """The results that are not bit for bit what is wanted."""
    return [f"{name} differs by {judging.error(results[name].double(), wanted[name].double()):.2g}"
            for name in wanted if not torch.equal(results[name], wanted[name])]


# ---- the checks --------------------------------------------------------------------------------------------
# Each takes the name of a subject, or of none, and returns a record.


def _graph(name: str, here: Gpu) -> Record:
    subject = _subject(name, here)
    replay, results = here.graph(subject.run)
    with torch.no_grad():
        subject.x.normal_()
        for tensor in tree_leaves(results):
            tensor.fill_(torch.nan)
    replay()
    return {"failures": _apart({name: tensor.clone() for name, tensor in results.items()}, subject.run())}


def _compiled(name: str, here: Gpu) -> Record:
    subject = _subject(name, here, "float32")
    wanted = subject.run()
    compiled = _running(subject.module, subject.x, subject.grad, here.compile(subject.module))
    return {"failures": judging.failures("float32", judging.errors(compiled.run(), wanted))}


def _streams(name: str, here: Gpu) -> Record:
    subjects = [_subject(name, here) for _ in range(2)]
    alone = [subject.run() for subject in subjects]
    wrong = []
    for _ in range(4):
        beside = here.beside(*(subject.run for subject in subjects))
        wrong += [line for result, wanted in zip(beside, alone, strict=True) for line in _apart(result, wanted)]
    return {"failures": wrong}


def _deterministic(name: str, here: Gpu) -> Record:
    subject = _subject(name, here)
    first = subject.run()
    return {"failures": [line for _ in range(3) for line in _apart(subject.run(), first)]}


def _never_waits(name: str, here: Gpu) -> Record:
    subject = _subject(name, here)
    subject.run()
    with here.without_synchronising():
        subject.run()
    return {"failures": []}


def _kept(name: str, here: Gpu) -> Record:
    subject = _subject(name, here)
    subject.run()  # workspaces, which stay
    before = here.allocated()
    y = subject.module(subject.x)
    kept = (here.allocated() - before - y.nbytes) / subject.x.nbytes if here.allocated() else 0.0
    del y
    peak = here.peak_of(subject.run) / subject.x.nbytes
    wrong = [f"keeps {kept:.3f} x beside x, allowed {MOST_KEPT[name]}"] if kept > MOST_KEPT[name] else []
    return {"failures": wrong, "kept": round(kept, 4), "peak": round(peak, 2)}


def _launches(name: str, here: Gpu) -> Record:
    subject = _subject(name, here)
    subject.run()
    kernels = here.kernels(subject.run)
    return {"failures": [] if kernels else ["the profiler saw no kernels"], "launches": len(kernels),
            "goal": GOALS[name], "kernels": sorted({kernel.name for kernel in kernels})}


def _autocast(name: str, here: Gpu) -> Record:
    subject = _subject(name, here, "float32")
    with torch.autocast(here.device.type, here.dtype("bfloat16")):
        results = subject.run()
    pair = (subject.x, subject.grad)
    truth = judging.truth_of_step(subject.module, pair)
    half = copy.deepcopy(subject.module).to(here.dtype("bfloat16"))
    layers = judging.step_of_definition(half)(tuple(tensor.detach().to(here.dtype("bfloat16")).requires_grad_()
                                                    for tensor in pair))
    return {"failures": judging.failures("bfloat16", judging.errors(results, truth), judging.errors(layers, truth))}


def _huge(name: str, here: Gpu) -> Record:
    """More elements than 32 bits count: equal images everywhere, whose last results must be those of few images."""
    subject, copies = _subject(name, here), _copies(here)
    small = subject.run()
    large = _running(subject.module, *_repeated(subject, copies)).run()
    count = len(subject.x)
    found = {"the last of y": judging.error(large["y"][-count:].double(), small["y"].double())}
    if subject.grad is not None:
        found["the last of x's gradient"] = judging.error(large["x"][-count:].double(), small["x"].double())
        weights = [results[_WEIGHTS[name]].double() for results in (large, small)]
        found["weight's gradient"] = judging.error(weights[0] / copies, weights[1])
    wrong = [f"{what}: {value:.2g} off" for what, value in found.items() if not value <= ROUNDED]
    return {"failures": wrong, "elements": subject.x.numel() * copies, "errors": judging.as_plain(found)}


_WEIGHTS = {"LENI step": "compress.weight", "ConvReLU step": "weight"}


def _copies(here: Gpu) -> int:
    return here.size(2**31 // torch.Size(SHAPE).numel() + 1, 2)


def _repeated(subject: Subject, copies: int) -> tuple[Tensor, Tensor | None]:
    """x and the gradient of a step, ``copies`` times each."""

    def many(tensor: Tensor) -> Tensor:
        images, *rest = tensor.shape
        large = torch.empty(images * copies, *rest, device=tensor.device, dtype=tensor.dtype,
                            memory_format=torch.channels_last)
        for part in large.split(images):
            part.copy_(tensor.detach())
        return large

    return many(subject.x), None if subject.grad is None else many(subject.grad)


# ---- the cases ---------------------------------------------------------------------------------------------

_CHECKS: dict[str, tuple[Callable[[str, Gpu], Record], tuple[str, ...]]] = {
    "replayed from a CUDA graph": (_graph, ("LENI folded", "LENI step", "ConvReLU", "ConvReLU step", "Reborn folded")),
    "without waiting for the GPU": (_never_waits, ("LENI folded", "LENI step", "ConvReLU step", "Reborn step",
                                                   "AdaReLU step", "LENI step without momentum")),
    "twice, bit for bit": (_deterministic, ("LENI step", "ConvReLU step", "Reborn step", "AdaReLU step")),
    "on two streams": (_streams, ("LENI step", "ConvReLU step", "Reborn folded")),
    "more than 2^31 elements": (_huge, ("LENI folded", "LENI step", "ConvReLU step")),
    "kept for backward": (_kept, tuple(MOST_KEPT)),
    "launches": (_launches, tuple(GOALS)),
    "under autocast": (_autocast, ("LENI step",)),
    "under torch.compile": (_compiled, ("LENI folded", "LENI step", "ConvReLU step")),
}


class Case(NamedTuple):
    """One check of one subject."""

    check: str
    subject: str

    def __str__(self) -> str:
        return f"{self.subject}, {self.check}"


def cases(here: Gpu, short: bool) -> list[Case]:
    """All cases, the most important first."""
    return [Case(check, subject) for check, (_, subjects) in _CHECKS.items()
            for subject in (subjects[-1:] if short else subjects)]


def run(case: Case, here: Gpu) -> Record:
    """Make one check."""
    with lk.use_backend("triton"):
        return _CHECKS[case.check][0](case.subject, here)


def launch(case: Case, here: Gpu) -> None:
    """Launch what the case launches itself; what ``torch.compile`` makes of a kernel it compiles alone."""
    subject = _subject(case.subject, here, "float32" if case.check in ("under autocast", "under torch.compile") else
                       "bfloat16")
    if case.check == "under autocast":
        with torch.autocast(here.device.type, here.dtype("bfloat16")):
            subject.run()
        return
    subject.run()
    if case.check == "more than 2^31 elements":
        _running(subject.module, *_repeated(subject, _copies(here))).run()
