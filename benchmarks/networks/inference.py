"""Images per second of whole networks: as they are, with a composed LENI in layer 1, and with ours."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import torch
from harness import parity, sides, timing
from torch import Tensor

from . import comparison, first_activation
from .comparison import Case

PUBLISHED = (-2.6, -0.1)
"""Change of images/s in per cent, lowest and highest, in Table 1 of the LENI paper."""

TITLE = f"Whole networks, inference (published: {PUBLISHED[0]} % to {PUBLISHED[1]} %)"
SECONDS = {"cpu": 3.0, "cuda": 2.0, "quick": 1.5}


def cases(quick: bool) -> list[Case]:
    """All cases of a run."""
    return comparison.cases(quick, comparison.DTYPES)


@torch.inference_mode()
def measure(case: Case, device: torch.device, seconds: float, images: Tensor) -> dict[str, Any]:
    """Check and time one network, in channels-last; returns its row of the results."""
    place, batch = first_activation.PLACES[case.network], comparison.BATCHES[device.type][case.network]
    to = {"device": device, "dtype": comparison.DTYPES[case.dtype], "memory_format": torch.channels_last}
    x = images[:batch].to(**to)
    stock = first_activation.build(case.network)
    swapped = first_activation.swapped(stock, place, sides.random_leni(place.channels)).to(**to)
    stock = stock.to(**to)
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
    return comparison.row(case, batch, stock, backend, missing, verdicts, samples)
