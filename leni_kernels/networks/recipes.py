"""The papers' training recipes: which parameters decay, and which train when."""

from __future__ import annotations

from collections.abc import Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Any

from torch import nn

from ..conv_relu.modules import ConvReLU1d, ConvReLU2d, ConvReLU3d
from ..pointwise.modules import AdaReLU, FullyParametricReLU

if TYPE_CHECKING:
    from typing_extensions import Self

_THRESHOLDED = (AdaReLU, ConvReLU1d, ConvReLU2d, ConvReLU3d)
_SLOPED = (FullyParametricReLU, nn.PReLU)
_NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)


def parameter_groups(model: nn.Module, weight_decay: float = 5e-4, threshold_weight_decay: float | None = None,
                     slope_weight_decay: float = 0.0) -> list[dict[str, Any]]:
    """The parameters of a model as groups for an optimizer of ``torch.optim``, each with its weight decay.

    Every parameter is in one group, frozen ones included, and once, however many modules share it (the first
    that ``named_parameters`` meets decides). What a parametrization computes a tensor from goes where the tensor
    would.

    | group              | holds                                               | weight decay             |
    | ------------------ | --------------------------------------------------- | ------------------------ |
    | "weights"          | tensors of two or more dimensions                   | `weight_decay`           |
    | "thresholds"       | `threshold` of ConvReLU and AdaReLU                 | `threshold_weight_decay` |
    | "slopes"           | slopes of FullyParametricReLU, and of `nn.PReLU`    | `slope_weight_decay`     |
    | "norms and biases" | scale and shift of norms, and every other vector    | 0                        |

    Args:
        model: any module; one block will do.
        weight_decay: of the weights; 5e-4 is that of Cai, Huang, Peng 2021.
        threshold_weight_decay: of the thresholds, which Gao, Cai, Ji 2020 regularise by L2 as they do weights;
            None for ``weight_decay``.
        slope_weight_decay: of the slopes. Decay would pull a positive slope away from the 1 at which it starts
            and towards 0, hence none unless it is asked for.

    Returns:
        Dictionaries with ``name``, ``params`` and ``weight_decay``; a group without parameters is left out.

    Raises:
        ValueError: for a negative weight decay.
    """
    decays = {"weights": weight_decay,
              "thresholds": weight_decay if threshold_weight_decay is None else threshold_weight_decay,
              "slopes": slope_weight_decay, "norms and biases": 0.0}
    for role, decay in decays.items():
        if not decay >= 0:
            raise ValueError(f"parameter_groups: the weight decay of {role} must be at least 0, got {decay}")
    groups = {role: {"name": role, "params": [], "weight_decay": decay} for role, decay in decays.items()}
    for role, parameter in _roles(model):
        groups[role]["params"].append(parameter)
    return [group for group in groups.values() if group["params"]]


class AlternatingSchedule:
    """Trains the weights and the slopes in turn (Varshney, Singh 2021: one set learns, the other is frozen).

    The slopes are those of :class:`FullyParametricReLU` and ``nn.PReLU``; everything else counts as weights. The
    weights begin, since slopes have nothing to fit to before. Freezing a set clears ``requires_grad`` and
    ``grad``: the optimizers of ``torch.optim`` pass over a parameter without a gradient, so that neither momentum
    nor weight decay moves it, and resume from the momentum they held. (LBFGS is no such optimizer: it moves all
    parameters together.) A parameter frozen beforehand stays frozen. Batch-norm statistics are no parameters and go
    on.

    ```python
    with lk.AlternatingSchedule(model) as schedule:
        for epoch in range(epochs):
            train(model, optimizer)
            schedule.step()
    ```

    Without ``with`` it works alike, and the last frozen set stays frozen. ``DistributedDataParallel`` needs
    ``find_unused_parameters=True``, as it waits for every parameter that had ``requires_grad`` when it wrapped the
    model; wrap it before the schedule begins. ``torch.compile`` compiles a training step once for each set.

    Args:
        model: with slopes and other parameters that require gradients.
        period: the epochs that a set trains before the other takes over.

    Raises:
        ValueError: for a period below 1, or a model in which one of the sets has nothing to train.
    """

    def __init__(self, model: nn.Module, period: int = 1) -> None:
        if period < 1:
            raise ValueError(f"AlternatingSchedule: period must be at least 1, got {period}")
        self.period, self.epoch = period, 0
        self._sets: dict[str, list[nn.Parameter]] = {"weights": [], "slopes": []}
        for role, parameter in _roles(model):
            if parameter.requires_grad:
                self._sets["slopes" if role == "slopes" else "weights"].append(parameter)
        for name, parameters in self._sets.items():
            if not parameters:
                raise ValueError(f"AlternatingSchedule: {type(model).__name__} has no {name} that require gradients")
        self._freeze()

    @property
    def trains(self) -> str:
        """The set that trains in this epoch: "weights" or "slopes"."""
        return ("weights", "slopes")[self.epoch // self.period % 2]

    def step(self) -> None:
        """End an epoch; the sets change places at every ``period``-th."""
        self.epoch += 1
        self._freeze()

    def state_dict(self) -> dict[str, int]:
        """The number of epochs that have ended."""
        return {"epoch": self.epoch}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Resume where ``state_dict`` was taken; the period remains this schedule's own."""
        self.epoch = state["epoch"]
        self._freeze()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 traceback: TracebackType | None) -> None:
        """Let both sets train again."""
        for parameters in self._sets.values():
            for parameter in parameters:
                parameter.requires_grad_(True)

    def _freeze(self) -> None:
        for name, parameters in self._sets.items():
            for parameter in parameters:
                parameter.requires_grad_(name == self.trains)
                if name != self.trains:
                    parameter.grad = None


def _roles(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Each parameter of the model once, with the name of its group."""
    for path, parameter in model.named_parameters():
        owner, name = path.rpartition(".")[::2]
        if "parametrizations" in owner.split("."):
            # layer.parametrizations.weight.original computes layer.weight.
            owner, _, inside = f".{owner}".rpartition(".parametrizations.")
            owner, name = owner.removeprefix("."), inside.split(".")[0]
        yield _role(model.get_submodule(owner), name, parameter), parameter


def _role(owner: nn.Module, name: str, parameter: nn.Parameter) -> str:
    if isinstance(owner, _THRESHOLDED) and name == "threshold":
        return "thresholds"
    if isinstance(owner, _SLOPED):
        return "slopes"
    return "norms and biases" if isinstance(owner, _NORMS) or parameter.dim() < 2 else "weights"
