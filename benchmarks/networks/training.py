"""Images per second of a training step of whole networks: forward, cross-entropy, backward; no optimizer."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from harness import sides, timing
from torch import Tensor, nn

from . import comparison, first_activation
from .comparison import Case

ROUNDS, WARM_UP = (4, 60), 1

TITLE = "Whole networks, training step"
SECONDS = {"cpu": 1.5, "cuda": 2.0, "quick": 1.5}


def cases(quick: bool) -> list[Case]:
    """All cases of a run."""
    return comparison.cases(quick, ("float32",))


def measure(case: Case, device: torch.device, seconds: float, images: Tensor) -> dict[str, Any]:
    """Check and time one network, in channels-last; returns its row of the results."""
    place, batch = first_activation.PLACES[case.network], comparison.BATCHES[device.type][case.network] // 2
    x = images[:batch].to(device, memory_format=torch.channels_last)
    labels = torch.arange(batch, device=device)
    stock = trainable(first_activation.build(case.network))
    swapped = trainable(first_activation.swapped(stock, place, sides.random_leni(place.channels)))
    replaced = first_activation.replaced(stock, [place.path])
    stock, swapped = (network.to(device, memory_format=torch.channels_last) for network in (stock, swapped))
    steps, missing, backend = {"composed": sides.composed(step_of(swapped))}, {}, None
    try:
        backend = sides.backend_of(swapped, x)
        steps["ours"] = step_of(swapped)
    except sides.NotMeasured as reason:
        missing["ours"] = str(reason)
    # Networks amplify rounding: what is checked is the block, on the features and gradients it meets there.
    block = swapped.get_submodule(place.path)
    candidates = {"composed": sides.composed(sides.step(block)), "ours": sides.step(block)}
    verdicts = sides.judge_steps(block, {name: candidates[name] for name in steps},
                                 met_by(block, partial(steps["composed"], x, labels)))
    timed = {"stock": partial(step_of(stock), x, labels)}
    timed |= {name: partial(step, x, labels) for name, step in steps.items() if verdicts[name].passed}
    samples = timing.alternate(timed, timing.timer(device), seconds, ROUNDS, WARM_UP)
    return comparison.row(case, batch, replaced, backend, missing, verdicts, samples)


def trainable(network: nn.Module) -> nn.Module:
    """The network in training mode, without dropout, so that all sides compute the same."""
    network.train()
    for module in network.modules():
        if isinstance(module, nn.Dropout):
            module.eval()
    return network


def step_of(network: nn.Module) -> Callable[[Tensor, Tensor], tuple[Tensor, ...]]:
    """The step of a network: the gradients of its parameters."""
    parameters = list(network.parameters())

    def run(x: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad(F.cross_entropy(network(x), labels), parameters)

    return run


def met_by(block: nn.Module, run: Callable[[], Any]) -> sides.Pair:
    """The block's input, and the gradient of its output, while ``run()`` runs."""
    met: dict[str, Tensor] = {}

    def keep(module: nn.Module, inputs: tuple[Tensor, ...], y: Tensor) -> None:
        met["x"] = inputs[0].detach().clone().requires_grad_()
        y.register_hook(lambda grad: met.update(grad=grad.clone()))

    with block.register_forward_hook(keep):
        run()
    return met["x"], met["grad"]
