"""How fast the kernels are beside what they replace, and how much of the GPU's bandwidth and product rate they use.

Sides alternate on inputs that take turns and together exceed the cache several times; medians count; a result that is
not the definition's gets no time. What is so short that launches are all of it is also replayed from a CUDA graph.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

import conv_relu_cases
import leni_cases
import torch
from harness import sides, timing
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

import leni_kernels as lk
from leni_kernels.leni import reference

from . import judging
from .device import Gpu
from .records import Record

SECONDS, ROUNDS, WARM_UP = 0.25, (5, 40), 2
BYTES = 192 * 2**20
"""Of one input: four times a large cache."""

SMALL_BYTES = 2 * 2**20
"""Of an input that is small: its kernels take less than their launches."""

INPUTS = 3
"""How many inputs take turns."""

SHAPES = ((64, 56), (64, 112), (32, 112), (16, 112), (128, 28), (256, 14))
"""(C, H) of the papers' layers."""

LAYERS = (conv_relu_cases.LAYERS[4], conv_relu_cases.LAYERS[0], conv_relu_cases.LAYERS[3], conv_relu_cases.LAYERS[1])
"""ResNet's 64 → 64, DenseNet's 128 → 32, VGG's 256 → 256, and a 1×1."""


class Case(NamedTuple):
    """One measurement; ``work`` is that of ``benchmarks/bars.py``, ``what`` the layer or activation."""

    work: str
    what: str
    channels: int
    size: int
    layout: str
    dtype: str
    kind: str = "large"
    """"large", "small", which is replayed from a graph too, or "compiled", beside ``torch.compile``."""

    def __str__(self) -> str:
        return (f"{self.work} {self.what} {self.channels}×{self.size}² {self.layout} {self.dtype} "
                f"{self.kind}".replace("  ", " "))


def cases(here: Gpu, short: bool) -> list[Case]:
    """All cases, the most important first."""
    last, first = "channels_last", "channels_first"
    ceilings = [Case("ceilings", "", 8192, 1, last, "bfloat16")]
    if short:
        return ceilings + [
            Case("leni_inference", "", 16, 112, last, "bfloat16", "compiled"),
            Case("leni_training", "", 16, 112, last, "bfloat16", "small"), *_of_layers(LAYERS[:1], last, "bfloat16"),
            Case("pointwise", "AdaReLU step", 64, 56, first, "bfloat16"),
            Case("reborn_training", "", 64, 56, last, "bfloat16")]

    def blocks(layout: str, dtype: str, kind: str = "large", shapes: tuple[tuple[int, int], ...] = SHAPES) -> list[Case]:
        return [Case(work, "", *shape, layout, dtype, kind) for work in ("leni_inference", "leni_training")
                for shape in shapes]

    reborn = [Case("reborn_training", "", *shape, last, "bfloat16") for shape in SHAPES[:1] + SHAPES[4:5]]
    pointwise = [Case("pointwise", f"{name} {work}", 64, 56, layout, "bfloat16") for layout in (last, first)
                 for name in ("AdaReLU", "FullyParametricReLU", "CReLU") for work in ("forward", "step")]
    small = [*blocks(last, "bfloat16", "small", SHAPES[:1]), *_of_layers(LAYERS[:1], last, "bfloat16", "small"),
             Case("pointwise", "AdaReLU step", 64, 56, last, "bfloat16", "small"),
             Case("reborn_training", "", 64, 56, last, "bfloat16", "small")]
    compiled = [Case("leni_inference", "", *shape, last, "bfloat16", "compiled") for shape in SHAPES]
    compiled.insert(1, Case("leni_training", "", 64, 56, last, "bfloat16", "compiled"))
    return [*ceilings, *blocks(last, "bfloat16"), *_of_layers(LAYERS, last, "bfloat16"), *small, *compiled,
            *pointwise, *reborn, *blocks(first, "bfloat16"), *_of_layers(LAYERS, first, "bfloat16"),
            *blocks(last, "float16"), *blocks(last, "float32"), *_of_layers(LAYERS, last, "float32"),
            *blocks(first, "float16"), *blocks(first, "float32")]


def _of_layers(layers: tuple[conv_relu_cases.Layer, ...], layout: str, dtype: str, kind: str = "large") -> list[Case]:
    return [Case(work, str(layer), layer.channels, layer.size, layout, dtype, kind)
            for work in ("conv_relu_inference", "conv_relu_training") for layer in layers]


# ---- one case ----------------------------------------------------------------------------------------------


class Work(NamedTuple):
    """What a case compares: functions of one of the inputs, ``ours`` among them."""

    inputs: list[Any]
    functions: dict[str, Callable[[Any], Any]]
    truth: Callable[[Any], judging.Tensors]
    composed: Callable[[Any], judging.Tensors]
    """The layers of PyTorch in the case's dtype: what half precision is judged by."""
    passes: int
    """How often at least an activation moves, counting reads and writes: T in ``GPU`` terms."""
    flops: float
    """Of the products in one call."""


def run(case: Case, here: Gpu) -> Record:
    """Check and time one case."""
    if case.work == "ceilings":
        return _ceilings(here)
    with lk.use_backend("triton"):
        work = _work(case, here)
        ours, composed = (_named(function(work.inputs[0])) for function in (work.functions["ours"], work.composed))
        truth = work.truth(work.inputs[0])
        found = judging.errors(ours, truth)
        half = judging.errors(composed, truth) if case.dtype in ("bfloat16", "float16") else None
        wrong = judging.failures(case.dtype, found, half)
        del ours, composed, truth
        timed = {name: function for name, function in work.functions.items() if name != "ours" or not wrong}
        medians = _times(timed, work.inputs, here)
        if case.kind == "small" and not wrong:
            medians |= _replayed(timed, work.inputs, here)
    return {
        **case._asdict(), "failures": wrong, "errors": judging.as_plain(found), "batch": _first(work.inputs[0]).shape[0],
        "milliseconds": {name: 1e3 * median for name, median in medians.items()}, "ratios": ratios(medians),
        "bytes": work.passes * _first(work.inputs[0]).nbytes, "flops": work.flops,
    }


def launch(case: Case, here: Gpu) -> None:
    """Launch what the case launches."""
    if case.work != "ceilings":
        work = _work(case, here)
        work.functions["ours"](work.inputs[0])


def ratios(medians: Mapping[str, float]) -> dict[str, float]:
    """Each side against ours, and ours against a ReLU and the convolution behind one, as the bars name them."""
    if "ours" not in medians:
        return {}
    ours = medians["ours"]
    peers = {name: medians[name] / ours for name in ("eager", "flipped", "compiled") if name in medians}
    found = {f"{name}/ours": ratio for name, ratio in peers.items()}
    if peers:
        found["best/ours"] = min(peers.values())
    found |= {f"ours/{name}": ours / medians[name] for name in ("relu", "relu_conv", "copy") if name in medians}
    pairs = (("relu", "ours/relu, replayed"), ("relu_conv", "ours/relu_conv, replayed"))
    return found | {text: medians["ours, replayed"] / medians[f"{name}, replayed"] for name, text in pairs
                    if f"{name}, replayed" in medians and "ours, replayed" in medians}


def _times(functions: Mapping[str, Callable[[Any], Any]], inputs: list[Any], here: Gpu) -> dict[str, float]:
    turns = itertools.cycle(inputs)
    timed = {name: leni_cases.on(function, turns) for name, function in functions.items()}
    samples = timing.alternate(timed, here.timer(), here.size(SECONDS, 0.0), here.size(ROUNDS, (2, 2)), WARM_UP)
    return {name: timing.summary(values)["median"] for name, values in samples.items()}


def _replayed(functions: Mapping[str, Callable[[Any], Any]], inputs: list[Any], here: Gpu) -> dict[str, float]:
    """The times of graphs, of those functions that can be captured."""
    replays = {}
    for name, function in functions.items():
        graphs = [here.graph(partial(function, each))[0] for each in inputs]
        replays[f"{name}, replayed"] = lambda turns=itertools.cycle(graphs): next(turns)()
    return _times({name: lambda _, replay=replay: replay() for name, replay in replays.items()}, inputs, here)


def _ceilings(here: Gpu) -> Record:
    """What the GPU itself can do: the bandwidth of a copy, and the rate of a product in bfloat16."""
    count, side = here.size(2**29, 2**12), here.size(8192, 64)
    x = torch.randn(count, device=here.device, dtype=here.dtype("bfloat16"))
    a, b = torch.randn(2, side, side, device=here.device, dtype=here.dtype("bfloat16"))
    copied, product = torch.empty_like(x), torch.empty_like(a)
    medians = _times({"copy": lambda _: copied.copy_(x), "product": lambda _: torch.mm(a, b, out=product)}, [None],
                     here)
    return {"work": "ceilings", "bytes_per_second": 2 * x.nbytes / medians["copy"],
            "flops": 2 * side**3 / medians["product"]}


# ---- what each case compares -------------------------------------------------------------------------------


def _work(case: Case, here: Gpu) -> Work:
    makers = {"leni_inference": _leni_inference, "leni_training": _leni_training, "reborn_training": _reborn_training,
              "pointwise": _pointwise}
    return makers.get(case.work, _conv_relu)(case, here)


def _activations(case: Case, here: Gpu, channels: int = 0, size: int = 0, dimensions: int = 2) -> list[Tensor]:
    """The inputs of a case, or activations of other ``channels`` and ``size`` for as many images."""
    rehearsed = (3, 2)
    dtype = here.dtype(case.dtype)
    images = (SMALL_BYTES if case.kind == "small" else BYTES) // (case.channels * case.size**2 * dtype.itemsize)
    shape = here.size((max(1, images), channels or case.channels, *[size or case.size] * dimensions),
                      (1, channels or case.channels, *rehearsed))
    return [sides.in_layout(torch.randn(shape, device=here.device, dtype=dtype), case.layout) for _ in range(INPUTS)]


def _leni(case: Case, here: Gpu) -> lk.LENI2d:
    return sides.random_leni(case.channels).to(here.device, here.dtype(case.dtype))


def _product_flops(inputs: list[Tensor]) -> float:
    """Of the bare product [pixels × 2C] · [2C × C]."""
    return 4.0 * inputs[0].numel() * inputs[0].shape[1]


def _leni_inference(case: Case, here: Gpu) -> Work:
    inputs, block = _activations(case, here), _leni(case, here)
    folded = reference.fold_leni(*block.parameters_for_kernels())
    with torch.no_grad():
        parameters = [tensor.to(inputs[0].dtype) for tensor in folded]
    ours = lk.fold(_leni_like(block, case, here), inplace=True)
    by_hand = partial(_folded_by_hand, reference.leni_folded, parameters)
    functions = {"ours": ours, "relu": torch.relu, "copy": _copier(inputs[0])}
    if case.kind == "compiled":
        functions["compiled"] = partial(_folded_by_hand, _compiled(here, reference.leni_folded), parameters)
    else:
        functions |= {"eager": sides.composed(block), "by hand": by_hand}
    return Work(inputs, {name: torch.inference_mode()(function) for name, function in functions.items()},
                lambda x: {"y": torch.no_grad()(judging.forward_of(_double(block)))(x[:JUDGED].double())},
                torch.no_grad()(judging.forward_of(block)), 2, _product_flops(inputs))
