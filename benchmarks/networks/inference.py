"""Images per second of whole networks: as they are, with a composed LENI in layer 1, and with ours."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import torch
from harness import parity, sides, timing
from torch import Tensor, nn

from . import comparison, first_activation
from .comparison import Case
from .published import LENI_SPEED_CHANGE

LOW, HIGH = LENI_SPEED_CHANGE
TITLE = f"Whole networks, inference (published: {LOW} % to {HIGH} %)"
SECONDS = {"cpu": 1.5, "cuda": 2.0, "quick": 1.5}


def cases(quick: bool) -> list[Case]:
    """All cases of a run."""
    return comparison.cases(quick, comparison.DTYPES)


def measure(case: Case, device: torch.device, seconds: float, images: Tensor) -> dict[str, Any]:
    """Check and time one network, in channels-last; returns its row of the results."""
    place, batch = first_activation.PLACES[case.network], comparison.BATCHES[device.type][case.network]
    stock = first_activation.build(case.network)
    swapped = first_activation.swapped(stock, place, sides.random_leni(place.channels))
    replaced = first_activation.replaced(stock, [place.path])
    return compare(case, stock, swapped, replaced, images[:batch], device, seconds)


@torch.inference_mode()
def compare(case: Any, stock: nn.Module, swapped: nn.Module, replaced: dict[str, str], images: Tensor,
            device: torch.device, seconds: float) -> dict[str, Any]:
    """Check ``swapped``, composed and folded, and time both against ``stock``; returns a row of the results."""
    to = {"device": device, "dtype": comparison.DTYPES[case.dtype], "memory_format": torch.channels_last}
    x, stock, swapped = (each.to(**to) for each in (images, stock, swapped))
    contenders, missing, backend = {"composed": sides.composed(swapped)}, {}, None
    try:
        ours = sides.folded(swapped)
        backend = sides.backend_of(ours, x)
        contenders["ours"] = ours
    except sides.NotMeasured as reason:
        missing["ours"] = str(reason)
    truth = sides.composed(copy.deepcopy(swapped).double())(x.double())
    verdicts = parity.judge({name: contender(x) for name, contender in contenders.items()}, truth, "composed")
    timed = {"stock": partial(stock, x)}
    timed |= {name: partial(contender, x) for name, contender in contenders.items() if verdicts[name].passed}
    samples = timing.alternate(timed, timing.timer(device), seconds)
    return comparison.row(case, len(x), replaced, backend, missing, verdicts, samples)
