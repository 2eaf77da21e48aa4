"""The ReLUs that no run of the example shows: not called, in another mode, or within a layer that is not opened."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress

import torch
import torch.nn.functional as F
from torch import nn

from .call_sites import MODULES, sort_of
from .observed import Observation
from .report import Row

_NOT_RUN = "does not run on the example in eval mode, or runs within a layer of torch.nn"


def rows_not_run(observation: Observation, include: Sequence[str]) -> list[Row]:
    """A row for each."""
    rows: list[Row] = []
    seen = {site.module for site in observation.sites}
    seen |= {caller for site in observation.sites if site.within for caller in site.callers}
    scripted = [f"{name}." for name, module in observation.model.named_modules()
                if isinstance(module, torch.jit.ScriptModule)]
    for name, module in observation.model.named_modules():
        if module in seen or name.startswith(tuple(scripted)):
            continue
        if sort_of(module) in ("relu", *include):
            rows.append(Row(name, "nn." * (type(module) in MODULES) + type(module).__name__, (), False, _NOT_RUN))
        rows += [Row(name, text, (), False, "runs within a layer that is not opened") for text in _within(module)]
    return rows


def only_in_training(observation: Observation) -> list[str]:
    """A note on the functions that only training mode calls."""
    names = [site.name for site in observation.only_in_training if site.module is None]
    return [f"in training mode only, and left: {', '.join(names)}"] if names else []


def _within(module: nn.Module) -> Iterator[str]:
    """How a layer says that it computes a ReLU without calling one."""
    if isinstance(module, (nn.RNN, nn.RNNCell)) and module.nonlinearity == "relu":
        yield f"nn.{type(module).__name__}(nonlinearity='relu')"
    is_transformer = isinstance(module, (nn.TransformerEncoderLayer, nn.TransformerDecoderLayer))
    if is_transformer and module.activation in (F.relu, torch.relu):
        yield f"nn.{type(module).__name__}(activation='relu')"
    if isinstance(module, torch.jit.ScriptModule):
        with suppress(RuntimeError):  # it has no forward
            yield from ["torch.jit.ScriptModule"] * ("aten::relu" in str(module.inlined_graph))
