"""Images per second of whole networks: as they are, with a composed LENI in layer 1, and with ours."""

from __future__ import annotations

import copy
import statistics
from typing import Any, NamedTuple

import torch
from harness import parity, sides, timing
from torch import Tensor, nn

import leni_kernels as lk

from . import first_activation

BATCHES = {
    "cpu": {"mobilenet_v3_small": 32, "resnet18": 8, "vgg16_bn": 2},
    "cuda": {"mobilenet_v3_small": 256, "resnet18": 256, "vgg16_bn": 64},
}
QUICK_NETWORKS = ("resnet18",)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
PUBLISHED = (-2.6, -0.1)
"""Change of images/s in per cent, lowest and highest, in Table 1 of the LENI paper."""


class Case(NamedTuple):
    """One network in one dtype."""

    network: str
    dtype: str

    def __str__(self) -> str:
        return f"{self.network} {self.dtype}"


def cases(quick: bool) -> list[Case]:
    """All cases of a run."""
    networks = QUICK_NETWORKS if quick else first_activation.PLACES
    return [Case(network, dtype) for dtype in DTYPES for network in networks]


def measure(case: Case, device: torch.device, seconds: float, images: Tensor) -> dict[str, Any]:
    """Check and time one network, in channels-last; returns its row of the results."""
    place, batch = first_activation.PLACES[case.network], BATCHES[device.type][case.network]
    to = {"device": device, "dtype": DTYPES[case.dtype], "memory_format": torch.channels_last}
    x = images[:batch].to(**to)
    stock = first_activation.build(case.network)
    composed = first_activation.swapped(stock, place, sides.random_leni(place.channels)).to(**to)
    stock = stock.to(**to)
    contenders, missing, backend = {"composed": _composed(composed)}, {}, None
    try:
        ours = sides.folded(composed)
        backend = sides.backend_of(ours, x)
        contenders["ours"] = ours
    except sides.Fallback as error:
        missing["ours"] = str(error)
    truth = _composed(copy.deepcopy(composed).double())(x.double())
    verdicts = parity.judge({name: contender(x) for name, contender in contenders.items()}, truth, "composed")
    timed = {"stock": lambda: stock(x)}
    timed |= {name: _on(contender, x) for name, contender in contenders.items() if verdicts[name].passed}
    samples = timing.alternate(timed, timing.timer(device), seconds)
    times = {name: timing.summary(values) for name, values in samples.items()}
    changes = {name: change(samples["stock"], values) for name, values in samples.items() if name != "stock"}
    return {
        **case._asdict(),
        "batch": batch,
        "replaced": type(stock.get_submodule(place.path)).__name__,
        "place": place.path,
        "backend": backend,
        "missing": missing,
        "parity": {name: verdict.as_json() for name, verdict in verdicts.items()},
        "seconds": times,
        "images_per_second": {name: batch / time["median"] for name, time in times.items()},
        "change_percent": changes,
    }


def change(stock: list[float], other: list[float]) -> float:
    """The change of images/s against the stock network in per cent: the median over the rounds."""
    return statistics.median(100 * (before / after - 1) for before, after in zip(stock, other, strict=True))


def _composed(network: nn.Module) -> Any:
    def run(x: Tensor) -> Tensor:
        with lk.use_backend("reference"):
            return network(x)

    return run


def _on(function: Any, x: Tensor) -> timing.Side:
    return lambda: function(x)
