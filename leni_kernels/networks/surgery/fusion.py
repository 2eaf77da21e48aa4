"""ReLUs fused into the convolutions that read them: ConvReLU."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import fx, nn

from ...common.hooks import hooked
from ...conv_relu.modules import ConvReLU1d, ConvReLU2d, ConvReLU3d
from .call_sites import Observer, Site, sort_of
from .graphs import CallTracer, mode, source_of, users_after
from .operations import Operation, region, settled

OPTIONS = frozenset({"threshold_init"})

_CONVOLUTIONS = {nn.Conv1d: ConvReLU1d, nn.Conv2d: ConvReLU2d, nn.Conv3d: ConvReLU3d}
_IN_PLACE_OPERATORS = ("iadd", "isub", "imul", "itruediv", "ifloordiv", "ipow", "imod", "iand", "ior", "ixor",
                       "imatmul", "setitem")


@dataclass
class Reading:
    """Who reads an activation's output, in the trace of ``region``."""

    region: nn.Module
    convolutions: dict[str, tuple[nn.Module, tuple[nn.Module, ...]]]
    """By name of the call: the convolution and its callers."""
    others: list[str]
    overwritten: bool
    """Whether somebody changes the activation's input or output in place."""


class Fusion:
    """A :class:`~.operations.Plan`: the convolutions that read a ReLU take it in; for other readers it stays."""

    def __init__(self, model: nn.Module, observer: Observer, options: Mapping[str, Any]) -> None:
        self._model, self._observer, self._options = model, observer, options
        self._readings, self.notes = _readings(model, observer)

    def obstacle(self, site: Site) -> str | None:
        if site.sort == "hardswish":
            return "Hardswish is no ReLU of anything that a convolution could read"
        reading = self._readings.get(site.name)
        if reading is None:
            return "no trace shows who reads it"
        if not reading.convolutions:
            return f"read by {listed(reading.others) or 'nobody'}, and by no convolution that can be fused"
        if reading.overwritten:
            return "its input or output is changed in place"
        return None

    def operation(self, site: Site) -> Operation:
        reading = self._readings[site.name]
        swaps = {conv: _CONVOLUTIONS[type(conv)].from_conv(conv, **self._options)
                 for conv, _ in reading.convolutions.values()}
        note = f"fused into {', '.join(reading.convolutions)}"
        added = sum(new.threshold.numel() for new in swaps.values())
        # ReLU6 is a ReLU of min(x, 6), which is a Hardtanh without its lower bound.
        cap = settled(self._model, site, nn.Hardtanh(-math.inf, 6.0)) if site.sort == "relu6" else None
        if not reading.others:
            block = cap or settled(self._model, site, nn.Identity())
            return Operation(site, block, region(self._observer, site), note, added, convolutions=swaps)
        callers = tuple(caller for _, callers in reading.convolutions.values() for caller in callers)
        return Operation(site, None, reading.region, f"{note}; stays for {listed(reading.others)}", added,
                         convolutions=swaps, past=tuple(reading.convolutions), past_callers=callers, cap=cap)


def listed(names: Sequence[str]) -> str:
    """The first few names."""
    return ", ".join(names if len(names) < 5 else (*names[:3], f"and {len(names) - 3} more"))


def _readings(model: nn.Module, observer: Observer) -> tuple[dict[str, Reading], tuple[str, ...]]:
    """Who reads each activation, by its name, and notes on what cannot be traced."""
    readings: dict[str, Reading] = {}
    notes: list[str] = []
    waiting = [model]
    while waiting:
        module = waiting.pop()
        if observer.calls[module] != 1 or not module._modules:
            continue
        try:
            in_eval, in_training = (_traced(module, observer, training) for training in (False, True))
        except Exception as error:  # the forward is the user's: anything may go wrong in it
            notes.append(f"torch.fx cannot trace {type(module).__name__} ({str(error).splitlines()[0]}); its children "
                         "were taken one by one, and ReLUs read outside them are left")
            waiting.extend(module.children())
        else:
            readings |= {name: _both(reading, in_training.get(name)) for name, reading in in_eval.items()}
    return readings, tuple(notes)


def _traced(module: nn.Module, observer: Observer, training: bool) -> dict[str, Reading]:
    with mode(module, training):
        graph = CallTracer().trace_call(module, observer.names[module])
    modules = dict(module.named_modules(remove_duplicate=False))
    readings = {}
    for node in graph.nodes:
        activation = node.meta.get("spelling")
        if node.op == "call_module" and sort_of(modules[node.target]) is not None:
            activation = modules[node.target]
        if activation is not None:
            readings[node.meta["call"]] = _reading(graph, node, activation.inplace, module, modules, observer)
    return readings


def _both(reading: Reading, other: Reading | None) -> Reading:
    """What holds in eval and in training mode."""
    if other is None:
        return Reading(reading.region, {}, [*reading.convolutions, *reading.others], reading.overwritten)
    convolutions = {name: conv for name, conv in reading.convolutions.items() if name in other.convolutions}
    others = [name for name in (*reading.convolutions, *other.convolutions) if name not in convolutions]
    others += [*reading.others, *other.others]
    return Reading(reading.region, convolutions, list(dict.fromkeys(others)), reading.overwritten or other.overwritten)


def _reading(graph: fx.Graph, node: fx.Node, inplace: bool, module: nn.Module, modules: Mapping[str, nn.Module],
             observer: Observer) -> Reading:
    source = source_of(node)
    readers = list(_readers(node, modules))
    if inplace:  # from here on, the input is the output
        readers += [(user, source) for user in users_after(graph, node, source)]
    touching = (*readers, *((user, source) for user in source.users if user is not node))
    reading = Reading(module, {}, [], any(_overwrites(user, read, modules) for user, read in touching))
    for user, read in readers:
        conv = modules[user.target] if user.op == "call_module" else None
        if conv is not None and _fusible(conv, observer) and user.args == (read,):
            reading.convolutions[user.meta["call"]] = conv, user.meta["callers"]
        else:
            reading.others.append(_name_of(user))
    return reading


def _readers(node: fx.Node, modules: Mapping[str, nn.Module]) -> Iterator[tuple[fx.Node, fx.Node]]:
    """Who reads the values of a node, and as which node: an Identity hands them on, a shape is none."""
    for user in node.users:
        module = modules[user.target] if user.op == "call_module" else None
        if type(module) is nn.Identity and not hooked(module):
            yield from _readers(user, modules)
        elif not (user.target in ("size", "dim") or (user.target is getattr and user.args[1] in ("shape", "ndim"))):
            yield user, node


def _fusible(conv: nn.Module, observer: Observer) -> bool:
    return type(conv) in _CONVOLUTIONS and observer.calls[conv] == 1 and not hooked(conv)


def _overwrites(user: fx.Node, read: fx.Node, modules: Mapping[str, nn.Module]) -> bool:
    """Whether a node changes the tensor that it reads."""
    if user.op == "output" or not user.args or user.args[0] is not read:
        return False
    if user.op == "call_module":
        return bool(getattr(modules[user.target], "inplace", False))
    name = _name_of_target(user)
    if getattr(user.target, "__module__", "") == "_operator":
        return name in _IN_PLACE_OPERATORS
    return (name.endswith("_") and not name.endswith("__")) or bool(user.kwargs.get("inplace"))


def _name_of(node: fx.Node) -> str:
    return "the output" if node.op == "output" else node.meta.get("call") or _name_of_target(node)


def _name_of_target(node: fx.Node) -> str:
    return node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))
