"""Training that a kill does not hurt: an epoch at a time, with everything the next one depends on in a file.

Under torchrun it is data-parallel: all processes draw the same batches, those that one process would draw, and each
takes its part of every one. The gradients are the joined batch's; its mean is the loss, however uneven the parts.
"""

from __future__ import annotations

import hashlib
import io
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from datasets.source import Source
from networks import catalogue
from torch import Tensor, nn

import leni_kernels as lk

from . import files, processes
from .synchronised import synchronise


class Recipe(NamedTuple):
    """SGD with momentum 0.9, whose learning rate falls tenfold at each of the ``steps``, fractions of the epochs.

    Weights and thresholds decay, slopes, norms and biases do not (:func:`leni_kernels.parameter_groups`).
    """

    epochs: int
    learning_rate: float
    steps: tuple[float, ...]
    batch: int
    weight_decay: float
    xavier: bool
    augmented: bool


_SHORT = Recipe(5, 0.05, (0.6, 0.85), batch=64, weight_decay=5e-4, xavier=True, augmented=False)
RECIPES = {
    "reborn": Recipe(80, 0.001, (1 / 2,), batch=64, weight_decay=5e-4, xavier=True, augmented=True),
    "conv_relu": Recipe(300, 0.1, (1 / 2, 5 / 6), batch=128, weight_decay=1e-4, xavier=False, augmented=True),
    "imagenet": Recipe(90, 0.1, (1 / 3, 2 / 3), batch=256, weight_decay=1e-4, xavier=False, augmented=True),
    "short": _SHORT,
    "short-texts": _SHORT._replace(epochs=12, weight_decay=1e-4),
}
"""``reborn``: Reborn paper, §4.3, and on CIFAR 160 epochs (:func:`recipe`). ``conv_relu``: ConvReLU paper,
"Experimental Setup"; momentum, weight decay and the last epoch are not printed, and are those of the DenseNet paper
that it builds on. ``imagenet``: the ResNet paper's, which LENI's §4.1 follows, with the 90 epochs that are usual.
``short-texts``: a network without norms first stands still for some epochs, in which a larger decay shrinks it so far
that from some seeds it never learns."""

MOMENTUM, TEST_BATCH = 0.9, 500


def recipe(name: str, dataset: str, epochs: int | None = None) -> Recipe:
    """A recipe for a data set; ``epochs`` in the place of its own stretch or shrink the schedule."""
    found = RECIPES[name]
    if name == "reborn" and dataset.startswith("cifar"):
        found = found._replace(epochs=160)
    return found if epochs is None else found._replace(epochs=epochs)


class Run(NamedTuple):
    """One training, wholly: the same run gives the same result on the same machine."""

    network: str
    activation: str
    seed: int
    dataset: str
    examples: int
    width: float
    where: str
    recipe: Recipe
    parts: int = 1
    """How many parts of a batch its norms see, each by itself; if it is 1, they synchronise over all processes."""

    def __str__(self) -> str:
        where = "" if self.where == "all" else f" {self.where}"
        return f"{self.network} ×{self.width:g} {self.activation}{where} seed {self.seed}"

    def file(self) -> str:
        """The name of its checkpoint, which no other run has."""
        digest = hashlib.sha256(json.dumps(self if self.parts > 1 else self[:-1]).encode()).hexdigest()[:8]
        return f"{self.network}-{self.activation}-{self.dataset}-{self.seed}-{digest}.pt"


class BadCheckpoint(Exception):
    """A file that is no checkpoint of the run whose name it has; the message names it and says what to do."""


class Learner:
    """A network under training, and all its state.

    Args:
        run: what to train.
        data: what to train on, on the device. On a GPU the network runs in bfloat16 under autocast, channels-last.
    """

    def __init__(self, run: Run, data: Source, device: torch.device) -> None:
        torch.manual_seed(run.seed)
        self.run, self.data, self.device = run, data, device
        self.network = catalogue.build(run.network, run.activation, data.classes, data.channels, run.width, run.where,
                                       data.size)
        if run.recipe.xavier:
            self.network.apply(_xavier)
        self.format = torch.channels_last if self.device.type == "cuda" else torch.contiguous_format
        self.network.to(self.device, memory_format=self.format)
        recipe = run.recipe
        groups = lk.parameter_groups(self.network, recipe.weight_decay)
        self.optimizer = torch.optim.SGD(groups, recipe.learning_rate, MOMENTUM)
        milestones = [round(step * recipe.epochs) for step in recipe.steps]
        self.scheduler = torch.optim.lr_scheduler.MultiStepLR(self.optimizer, milestones)
        self.model = self.network if processes.count() == 1 else self._parallel()
        # This freezes parameters, after DistributedDataParallel has seen to all of them.
        self.alternation = lk.AlternatingSchedule(self.network) if self._has_slopes() else None
        self.generator = torch.Generator().manual_seed(run.seed)
        self.history: list[dict[str, float]] = []

    def _has_slopes(self) -> bool:
        """Whether slopes and weights train in turn, as FullyParametricReLU's paper has it."""
        return any(isinstance(module, lk.FullyParametricReLU) for module in self.network.modules())

    def _parallel(self) -> nn.Module:
        """The network as all processes train it."""
        model = nn.parallel.DistributedDataParallel(self.network, [self.device] if self.device.type == "cuda" else None,
                                                    find_unused_parameters=self._has_slopes())
        if self.run.parts == 1:
            synchronise(self.network, self.device)
        return model

    def _stateful(self) -> dict[str, Any]:
        parts = {name: getattr(self, name) for name in ("network", "optimizer", "scheduler", "alternation")}
        return {name: part for name, part in parts.items() if part is not None}

    # ---- an epoch ----

    @property
    def finished(self) -> bool:
        return len(self.history) >= self.run.recipe.epochs

    def epoch(self) -> None:
        """Train on every image once, and test."""
        began = time.perf_counter()
        self.network.train()
        if not processes.first():  # the first one's noise is in the checkpoint; each has its own, which an epoch begins
            torch.manual_seed(hash((self.run.seed, len(self.history), processes.rank())))
        batches = self._batches()
        examples = self.data.training(batches, self.generator, self.run.recipe.augmented, processes.part)
        losses = processes.summed(torch.stack([self._step(inputs, labels, len(labels) / len(batch))
                                               for batch, (inputs, labels) in zip(batches, examples, strict=True)]))
        self.scheduler.step()
        if self.alternation is not None:
            self.alternation.step()
        self.history.append({"loss": losses.mean().item(), "accuracy": self.accuracy(),
                             "seconds": round(time.perf_counter() - began, 2)})

    def _batches(self) -> list[Tensor]:
        """The batches of all processes together, as indices."""
        # A batch norm refuses a single value per channel, and no process may be left without an example.
        least = max(2 * self.run.parts, processes.count())
        order = torch.randperm(self.data.count, generator=self.generator)
        return [batch for batch in order.split(self.run.recipe.batch) if len(batch) >= least]

    def _step(self, inputs: Tensor, labels: Tensor, share: float) -> Tensor:
        """Train on this process's share of a batch; returns what it adds to the batch's mean loss."""
        loss = F.cross_entropy(self._forward(self.model, inputs), labels) * share
        self.optimizer.zero_grad()
        (loss * processes.count()).backward()  # DistributedDataParallel divides by the number of processes
        self.optimizer.step()
        return loss.detach()

    def _forward(self, model: nn.Module, inputs: Tensor) -> Tensor:
        if inputs.dim() == 4:
            inputs = inputs.contiguous(memory_format=self.format)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            return model(inputs).float()

    @torch.no_grad()
    def accuracy(self) -> float:
        """The share of the test examples that the network names rightly, in per cent."""
        self.network.eval()
        processes.as_first(self.network.buffers())  # norms that do not synchronise have statistics of their own
        batches = torch.arange(self.data.test_count).split(TEST_BATCH)[processes.rank()::processes.count()]
        right = torch.zeros((), dtype=torch.long, device=self.device)
        for inputs, labels in self.data.testing(batches):
            right += (self._forward(self.network, inputs).argmax(1) == labels).sum()
        return 100 * processes.summed(right).item() / self.data.test_count

    # ---- the checkpoint ----

    def save(self, path: Path) -> None:
        """Write all state; a kill meanwhile leaves the file as it was."""
        state: dict[str, Any] = {name: part.state_dict() for name, part in self._stateful().items()}
        state |= {"history": self.history, "order": self.generator.get_state(), "random": torch.get_rng_state()}
        if self.device.type == "cuda":
            state["cuda"] = torch.cuda.get_rng_state(self.device)
        content = io.BytesIO()  # what PyTorch writes to a file itself ends in its own errors on a full disk
        torch.save(state, content)
        with files.whole(path) as partial:
            partial.write_bytes(content.getbuffer())

    def load(self, path: Path) -> None:
        """Take up all state, of a run on a CPU or a GPU.

        Raises:
            BadCheckpoint: if the file is none of this run.
        """
        self._take_up(processes.from_first(lambda: self._read(path)))

    def _read(self, path: Path) -> dict[str, Any]:
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
            self._take_up(state)
        except Exception as error:  # whatever a file may do to a reader
            reason = (str(error).splitlines() or [""])[0]
            raise BadCheckpoint(f"{path} is no whole checkpoint of this run ({type(error).__name__}: {reason}): "
                                "--fresh begins anew") from error
        return state

    def _take_up(self, state: dict[str, Any]) -> None:
        for name, part in self._stateful().items():
            part.load_state_dict(state[name])
        self.history = state["history"]
        self.generator.set_state(state["order"])
        torch.set_rng_state(state["random"])
        # A run that began on a CPU goes on with the seed's own numbers.
        if self.device.type == "cuda" and "cuda" in state:
            torch.cuda.set_rng_state(state["cuda"], self.device)


def train(run: Run, data: Source, device: torch.device, folder: Path, begin: Callable[[str], None]) -> Learner:
    """Train to the end, from the last whole epoch in ``folder`` on; ``begin`` hears of every epoch.

    Raises:
        BadCheckpoint: if what lies there under the run's name is no checkpoint of it.
        CannotWrite: if a checkpoint cannot be written.
    """
    learner = Learner(run, data.split(run.seed), device)
    path = folder / run.file()
    if processes.from_first(path.exists):
        learner.load(path)
    for epoch in range(run.recipe.epochs):
        begin(f"{run}, epoch {epoch + 1}")
        if epoch == len(learner.history):
            learner.epoch()
            processes.from_first(lambda: learner.save(path))
    return learner


def _xavier(module: nn.Module) -> None:
    if isinstance(module, (nn.modules.conv._ConvNd, nn.Linear)):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def result(learner: Learner) -> dict[str, Any]:
    """What there is to say of a finished run, as plain data."""
    run = learner.run
    return {
        "network": run.network, "activation": run.activation, "where": run.where, "width": run.width, "seed": run.seed,
        "parameters": catalogue.parameter_count(learner.network),
        "accuracy": learner.history[-1]["accuracy"],
        "seconds": round(sum(epoch["seconds"] for epoch in learner.history), 1),
        "history": learner.history,
    }
