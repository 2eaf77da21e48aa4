"""From what becomes of each call to a changed model: modules swapped or added, and calls sent to them."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn

from ..calls import names_in
from ..forwards import Change, InTurn, alike, change, redirection
from .call_sites import Site, Spot, activation, sort_of, spelling_of
from .observed import Observation
from .operations import Operation


@dataclass
class Edit:
    """The module at ``path`` is to be called by ``sites``, the calls that the example makes at one spot, in turn.

    It takes the place of the activation module there, wherever that hangs; or, with a ``spot``, of a call, made by the
    module at ``caller``. ``region`` begins the turns, where there are several. ``kept`` is one that is no block.
    """

    path: str
    sites: Sequence[Site]
    spot: Spot | None = None
    caller: str = ""
    region: str = ""
    kept: bool = False

    def module_of(self, site: Site) -> str:
        """The path of the block of one of the calls."""
        return f"{self.path}.{site.visit}".strip(".") if len(self.sites) > 1 else self.path


class Editor:
    """Finds how each site's call can be sent to a module of its own."""

    def __init__(self, observation: Observation) -> None:
        self._observation = observation
        self._paths = {module: name for name, module in observation.model.named_modules()}
        self._visits: dict[Any, list[Site]] = defaultdict(list)
        self._spots: dict[nn.Module | None, set[Spot | None]] = defaultdict(set)
        for site in observation.sites:
            self._visits[site.key].append(site)
        for site in (*observation.sites, *observation.only_in_training):
            self._spots[site.module].add(site.spot)

    def obstacle(self, site: Site) -> str | None:
        """Why no other module can be called, or None."""
        visits, trained = len(self._visits[site.key]), self._observation.in_training.get(site.key, 0)
        if visits > 1 and trained not in (0, visits):
            return f"it is called {visits} times in eval mode, and {trained} times in training mode"
        region = self._region(self._visits[site.key])
        if visits > 1 and (isinstance(region, fx.GraphModule) or self._observation.calls[region] > 1):
            return f"it is called {visits} times, and no forward in Python that runs once could begin their turns"
        if self._can_swap(site):
            return None
        if site.spot is None:
            return site.unplaced
        caller, place = site.spot
        if caller not in self._paths:
            return f"the {type(caller).__name__} that calls it is not one of the model's modules"
        if isinstance(place, str):
            return "it works in place, and its input is read again" if site.reread else None
        if site.placed and isinstance(caller, (nn.Sequential, nn.ModuleList, nn.ModuleDict)):
            return f"the forward of {type(caller).__name__} goes over its children, and a block would be one of them"
        if site.loose:
            return "it is called by a name that may mean something else the next time"
        return None

    def edits(self, sites: Iterable[Site]) -> list[Edit]:
        """What replaces these, none of which has an obstacle."""
        made: dict[Any, Edit] = {}
        taken: set[str] = set()
        for site in sites:
            if site.key not in made:
                made[site.key] = self._edit(self._visits[site.key], taken)
        # A block may have the name of an activation that its caller calls elsewhere too.
        for edit in [edit for edit in made.values() if edit.spot and edit.path in self._paths.values()]:
            for spot in self._beside(edit.sites[0]) - {other.spot for other in made.values()}:
                made[spot] = Edit(self._free(edit.path, taken), edit.sites[:1], spot, edit.caller, kept=True)
        return list(made.values())

    def _edit(self, sites: Sequence[Site], taken: set[str]) -> Edit:
        site, region = sites[0], self._paths[self._region(sites)]
        if self._can_swap(site):
            return Edit(self._paths[site.module], sites, region=region)
        caller, place = self._paths[site.spot.module], site.spot.place
        name = place if isinstance(place, str) else site.name.removeprefix(f"{site.frame.name}.")
        path = f"{caller}.{name}" if caller else name
        return Edit(path if isinstance(place, str) else self._free(path, taken), sites, site.spot, caller, region)

    def _can_swap(self, site: Site) -> bool:
        """Whether a module can take the activation module's place, since nothing else calls that."""
        told = site.spot is not None or len(self._visits[site.key]) == 1
        return (site.module in self._paths and told and not (site.reread or site.keyword)
                and len(self._spots[site.module]) == 1 and not self._beside(site))

    def _beside(self, site: Site) -> set[Spot]:
        """Where else its caller calls an activation module, on the example or not."""
        if site.module is None or not site.placed or site.loose:
            return set()
        beside = {site.spot._replace(place=place) for place in alike(*site.spot)}
        beside |= {spot for spot in self._spots[site.module] if spot and spot.module is site.spot.module}
        return beside - {site.spot}

    def _region(self, sites: Sequence[Site]) -> nn.Module:
        """The innermost module that runs once and in which all of them are called."""
        regions = [module for module in sites[0].callers if self._observation.calls[module] == 1
                   and module in self._paths and all(module in site.callers for site in sites)]
        return regions[-1] if regions else self._observation.model

    def _free(self, path: str, taken: set[str]) -> str:
        """A path for a block: that of the activation it stands for, or one that is free."""
        parent, _, name = path.rpartition(".")
        below = self._observation.model.get_submodule(parent)
        free, count = path, 0
        while free in taken or (name in names_in(below) and sort_of(below._modules.get(name)) is None):
            count += 1
            name = f"{path.rpartition('.')[2]}_{count}"
            free = f"{parent}.{name}" if parent else name
        taken.add(free)
        return free


# ---- doing it -----------------------------------------------------------------------------------------------


def apply(model: nn.Module, edits: Sequence[Edit], operations: Mapping[str, Operation], trial: bool) -> nn.Module:
    """Change a copy of the observed model, in a ``trial`` with stand-ins for blocks; returns what is the model then."""
    modules = dict(model.named_modules())
    nodes = {name: _activations(module) for name, module in modules.items() if isinstance(module, fx.GraphModule)}
    in_turn: dict[str, list[str]] = defaultdict(list)
    calls: dict[str, list[Edit]] = defaultdict(list)
    swaps: dict[nn.Module, nn.Module] = {}
    for edit in edits:
        new = _module(edit, operations, trial)
        if edit.spot is None:
            swaps[modules[edit.path]] = new
        else:
            parent, _, name = edit.path.rpartition(".")
            modules[parent]._modules[name] = new
            if not isinstance(edit.spot.place, str):
                calls[edit.caller].append(edit)
        if isinstance(new, InTurn):
            in_turn[edit.region].append(_below(edit.region, edit.path))
    for operation in operations.values():
        for name, new in operation.convolutions.items():
            swaps |= _swapped_convolution(modules[name], new, trial)
    for parent in list(model.modules()):  # wherever they hang, under all their names
        for name, child in parent._modules.items():
            if child in swaps:
                parent._modules[name] = swaps[child]
    for name in sorted({*calls, *in_turn}):
        module = modules[name]
        if isinstance(module, fx.GraphModule):
            _edit_graph(module, {nodes[name][edit.spot.place]: edit for edit in calls[name]}, name)
        else:
            redirections = (redirection(module, edit.spot.place, _below(name, edit.path), _rebound(edit))
                            for edit in calls[name])
            change(module, Change(tuple(redirections), tuple(in_turn[name])))
    return swaps.get(model, model)


def _below(name: str, path: str) -> str:
    return path.removeprefix(f"{name}.") if name else path


def _rebound(edit: Edit) -> tuple[tuple[str, ...], ...]:
    """The local variables that hold an input that is read again."""
    return next((site.names for site in edit.sites if site.reread and not edit.kept), ())


def _module(edit: Edit, operations: Mapping[str, Operation], trial: bool) -> nn.Module:
    here = [None if edit.kept else operations.get(site.name) for site in edit.sites]
    blocks = [operation.block if operation else activation(site.sort, site.inplace).train(site.callers[-1].training)
              for operation, site in zip(here, edit.sites, strict=True)]
    alike = all(repr(block) == repr(blocks[0]) and not block.state_dict() for block in blocks)
    if trial:
        blocks = [copy.deepcopy(operation.stand_in) if operation else block
                  for operation, block in zip(here, blocks, strict=True)]
    return blocks[0] if alike or len(blocks) == 1 else InTurn(blocks).train(blocks[0].training)


def _swapped_convolution(conv: nn.Module, new: nn.Module, trial: bool) -> dict[nn.Module, nn.Module]:
    if not trial:
        new.weight, new.bias = conv.weight, conv.bias
        return {conv: new}
    for hook in (*new._forward_pre_hooks.values(), _activated):
        conv.register_forward_pre_hook(hook)
    return {}


def _activated(conv: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    return (torch.relu(args[0]),)


def _activations(module: fx.GraphModule) -> list[fx.Node]:
    """The nodes of activations, which are in the order of their calls."""
    return [node for node in module.graph.nodes if (
        sort_of(module.get_submodule(node.target)) if node.op == "call_module" else
        node.op in ("call_function", "call_method") and spelling_of(node.target, node.args, node.kwargs))]


def _edit_graph(module: fx.GraphModule, edits: Mapping[fx.Node, Edit], name: str) -> None:
    """The same in a graph."""
    order = {node: index for index, node in enumerate(module.graph.nodes)}
    for node, edit in edits.items():
        source = node.args[0] if node.args else node.kwargs["input"]
        with module.graph.inserting_before(node):
            output = module.graph.call_module(_below(name, edit.path), (source,))
        node.replace_all_uses_with(output)
        if edit.sites[0].inplace:
            source.replace_all_uses_with(output, lambda user, node=node: order.get(user, -1) > order[node])
        module.graph.erase_node(node)
    module.recompile()
