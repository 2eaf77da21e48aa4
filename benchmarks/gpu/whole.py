"""Images per second of whole networks with LENI in layer 1, stock, composed and ours: bfloat16, channels-last."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from harness import sides, timing
from networks import comparison, first_activation
from networks.training import met_by, step_of, trainable
from torch import Tensor, nn

import leni_kernels as lk

from . import judging
from .device import Gpu
from .records import Record

NETWORKS = ("resnet18", "mobilenet_v3_small")
WORKS = ("inference", "training step")
DTYPE = "bfloat16"
SECONDS, ROUNDS, WARM_UP = 2.0, (5, 40), 2


class Case(NamedTuple):
    """One network, at inference or in a training step: forward, cross-entropy and backward."""

    network: str
    work: str

    def __str__(self) -> str:
        return f"{self.network}, {self.work}"


def cases(here: Gpu, short: bool) -> list[Case]:
    """All cases of a run."""
    networks, works = (NETWORKS[1:], WORKS[1:]) if short else (NETWORKS, WORKS)
    return [Case(network, work) for work in works for network in networks]


def run(case: Case, here: Gpu) -> Record:
    """Check and time one network."""
    try:
        import torchvision  # noqa: F401  (whose networks these are)
    except (ImportError, RuntimeError) as error:
        return {"failures": [f"there are no networks: torchvision cannot be imported ({error})"]}
    place, x, labels = first_activation.PLACES[case.network], *_images(case, here)
    stock, swapped = _built(case, here), _built(case, here)
    _put(swapped, place, _block(case))
    swapped = _on(here, swapped)
    functions = {name: _work(case, network, x, labels) for name, network in (("stock", _on(here, stock)),
                                                                           ("swapped", swapped))}
    composed = sides.composed(functions.pop("swapped"))
    with judging.untuned():
        wrong = _judge(case, swapped.get_submodule(place.path), composed)
    timed = {"stock": functions["stock"], "composed": composed}
    if not wrong:
        ours = swapped if case.work == "training step" else sides.folded(swapped)
        timed["ours"] = _work(case, ours, x, labels)
    with lk.use_backend("triton"):
        samples = timing.alternate(timed, here.timer(), *here.size((SECONDS, ROUNDS, WARM_UP), (0.0, (1, 1), 0)))
    replaced = first_activation.replaced(stock, [place.path])
    row = comparison.row(case, len(x), replaced, "triton", {}, {}, samples)
    del row["seconds"], row["missing"], row["parity"]
    return {**row, "dtype": DTYPE, "failures": wrong}


def launch(case: Case, here: Gpu) -> None:
    """Launch what the case launches."""
    network, (x, labels) = _built(case, here), _images(case, here)
    _put(network, first_activation.PLACES[case.network], _block(case))
    network = _on(here, network)
    if case.work == "inference":
        network = lk.fold(network, inplace=True)
    _work(case, network, x, labels)()


def _images(case: Case, here: Gpu) -> tuple[Tensor, Tensor]:
    batch = here.size(comparison.BATCHES["cuda"][case.network], 2)
    batch, size = batch // (2 if case.work == "training step" else 1), here.size(224, 32)
    x = torch.randn(max(2, batch), 3, size, size, device=here.device, dtype=here.dtype(DTYPE))
    return x.contiguous(memory_format=torch.channels_last), torch.arange(len(x), device=here.device)


def _built(case: Case, here: Gpu) -> nn.Module:
    torch.manual_seed(0)
    network = first_activation.build(case.network)
    return trainable(network) if case.work == "training step" else network


def _block(case: Case) -> lk.LENI2d:
    block = sides.random_leni(first_activation.PLACES[case.network].channels)
    return block.train(case.work == "training step")


def _put(network: nn.Module, place: first_activation.Place, block: nn.Module) -> None:
    parent, _, child = place.path.rpartition(".")
    setattr(network.get_submodule(parent), child, block)


def _on(here: Gpu, network: nn.Module) -> nn.Module:
    return network.to(here.device, here.dtype(DTYPE), memory_format=torch.channels_last)


def _work(case: Case, network: nn.Module, x: Tensor, labels: Tensor) -> Callable[[], Any]:
    if case.work == "training step":
        return partial(step_of(network), x, labels)
    return partial(torch.inference_mode()(network), x)


def _judge(case: Case, block: nn.Module, composed: Callable[[], Any]) -> list[str]:
    """What is wrong with ours: networks amplify rounding, so the block is judged, on what it meets in there."""
    if case.work == "training step":
        x, grad = met_by(block, composed)
        pair = (x, grad)
        with lk.use_backend("triton"):
            results = sides.step(copy.deepcopy(block))(pair)
        truth = judging.truth_of_step(block, pair)
        layers = judging.step_of_definition(copy.deepcopy(block))(pair)
    else:
        met: list[Tensor] = []
        with block.register_forward_pre_hook(lambda _, inputs: met.append(inputs[0][:2].clone())):
            composed()
        with torch.inference_mode():
            with lk.use_backend("triton"):
                results = {"y": sides.folded(block)(met[0])}
            truth = {"y": judging.definition_of(copy.deepcopy(block).double())(met[0].double())}
            layers = {"y": judging.definition_of(block)(met[0])}
    return judging.failures(DTYPE, judging.errors(results, truth), judging.errors(layers, truth))
