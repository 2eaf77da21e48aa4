"""Whole networks with a mechanism where ReLUs were: which calls become what, and a report of it."""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from .call_sites import (
    FUNCTIONS,
    MODULES,
    CallTracer,
    CannotRewireError,
    Edit,
    Observer,
    Rewired,
    Site,
    Tracer,
    mode,
    rewire,
    sort_of,
    source_of,
    swap,
)
from .conv_relu.modules import ConvReLU1d, ConvReLU2d, ConvReLU3d
from .leni.modules import LENI2d, Reborn2d, hooked
from .pointwise.modules import AdaReLU, FullyParametricReLU

__all__ = ["Report", "Rewired", "Row", "Tracer", "replace_relu"]

Where = str | Sequence[str] | Callable[[int, str], bool]

_CONVOLUTIONS = {nn.Conv1d: ConvReLU1d, nn.Conv2d: ConvReLU2d, nn.Conv3d: ConvReLU3d}


# ---- the report ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """One call of a ReLU.

    ``note`` says what stands there now, or why nothing new does. ``parameters`` and ``flops`` are what was added, the
    latter for one sample: additions and multiplications of the folded form, comparisons not counted.
    """

    name: str
    site: str
    shape: tuple[int, ...]
    replaced: bool
    note: str
    parameters: int = 0
    flops: int = 0


@dataclass(frozen=True)
class Report:
    """What :func:`replace_relu` did: a row for each call in order of execution, and what else is to be known."""

    kind: str
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()

    @property
    def replaced(self) -> int:
        """How many calls were replaced."""
        return sum(row.replaced for row in self.rows)

    @property
    def parameters(self) -> int:
        """Parameters added."""
        return sum(row.parameters for row in self.rows)

    @property
    def flops(self) -> int:
        """FLOPs added, for one sample."""
        return sum(row.flops for row in self.rows)

    def __str__(self) -> str:
        header = ("name", "site", "shape", "now", "parameters", "FLOPs")
        lines = [(row.name, row.site, "×".join(map(str, row.shape)), row.note if row.replaced else f"left: {row.note}",
                  f"{row.parameters:+,}" if row.replaced else "", f"{row.flops:+,}" if row.replaced else "")
                 for row in self.rows]
        total = (f"{self.replaced} of {len(self.rows)} replaced", "", "", "", f"{self.parameters:+,}",
                 f"{self.flops:+,}")
        widths = [max(map(len, column)) for column in zip(header, *lines, total, strict=True)]
        rule = "  ".join("-" * width for width in widths)

        def line(cells: Sequence[str]) -> str:
            return "  ".join(cell.rjust(width) if column > 3 else cell.ljust(width)
                             for column, (cell, width) in enumerate(zip(cells, widths, strict=True))).rstrip()

        return "\n".join((line(header), rule, *map(line, lines), rule, line(total), *self.notes))


# ---- the kinds ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Kind:
    """What may be put where a ReLU was."""

    module: type[nn.Module]
    options: frozenset[str]
    fits: Callable[[tuple[int, ...]], str | None]
    """Why a feature map of a shape cannot be taken, or None."""
    make: Callable[..., nn.Module]
    """(shape, device, dtype, **options) -> the module."""
    flops: Callable[[nn.Module, tuple[int, ...]], int]
    """What a module takes for one sample."""


def _options(*callables: Callable[..., Any], but: Sequence[str]) -> frozenset[str]:
    return frozenset(name for each in callables for name in inspect.signature(each).parameters).difference(but)


def _plane(shape: tuple[int, ...]) -> str | None:
    return None if len(shape) == 4 else f"the block takes [N, C, H, W], this is {list(shape)}"


def _channels(shape: tuple[int, ...]) -> str | None:
    return None if len(shape) >= 2 else f"the block takes [N, C, *spatial], this is {list(shape)}"


def _make_leni(shape: tuple[int, ...], device: object, dtype: object, **options: Any) -> LENI2d:
    return LENI2d(shape[1], device=device, dtype=dtype, **options)


def _make_reborn(shape: tuple[int, ...], device: object, dtype: object, **options: Any) -> Reborn2d:
    return Reborn2d(shape[1], device=device, dtype=dtype, **options)


def _make_ada_relu(shape: tuple[int, ...], device: object, dtype: object, sharing: str = "channel",
                   **options: Any) -> AdaReLU:
    shapes = {"channel": shape[1:2], "layer": (1,), "element": shape[1:]}
    if sharing not in shapes:
        raise ValueError(f"replace_relu: sharing must be one of {', '.join(shapes)}, got {sharing!r}")
    return AdaReLU(shapes[sharing], device=device, dtype=dtype, **options)


def _make_fully_parametric_relu(shape: tuple[int, ...], device: object, dtype: object) -> FullyParametricReLU:
    return FullyParametricReLU(shape[1], device=device, dtype=dtype)


def _block_flops(block: nn.Module, shape: tuple[int, ...]) -> int:
    """Of LENI and Reborn: a multiplication and an addition for each weight and pixel."""
    return 2 * math.prod(shape[2:]) * (block.deconv.weight.numel() + block.compress.weight.numel())


_NOT_OPTIONS = ("channels", "shape", "device", "dtype", "compress")
_KINDS = {
    "leni": _Kind(LENI2d, _options(LENI2d, but=_NOT_OPTIONS), _plane, _make_leni, _block_flops),
    "reborn": _Kind(Reborn2d, _options(Reborn2d, but=_NOT_OPTIONS), _plane, _make_reborn, _block_flops),
    "ada_relu": _Kind(AdaReLU, _options(AdaReLU, but=_NOT_OPTIONS) | {"sharing"}, _channels, _make_ada_relu,
                      lambda block, shape: 0),
    "fully_parametric_relu": _Kind(FullyParametricReLU, frozenset(), _channels, _make_fully_parametric_relu,
                                   lambda block, shape: math.prod(shape[1:])),
}
_CONV_RELU_OPTIONS = frozenset({"threshold_init"})


# ---- replace_relu -------------------------------------------------------------------------------------------


def replace_relu(model: nn.Module, kind: str, where: Where = "all", *, example_input: Any, include: Sequence[str] = (),
                 **options: Any) -> tuple[nn.Module, Report]:
    """Put a mechanism where a network calls ReLUs.

    What counts is the call, not the module: an ``nn.ReLU`` called twice is two sites, and ``F.relu``, ``torch.relu``,
    ``x.relu()``, ``relu_`` and ``inplace=True`` are seen as well. ``example_input`` shows them: the model runs on it in
    eval mode, without gradients, and neither its running statistics nor the random state change. A site is called
    after the caller and the callee, and numbered when repeated: ``layer1.0.relu``, ``layer1.0.relu_1``.

    A ReLU module that runs once is replaced as a module, and nothing else changes. Where another kind of call has to
    change, the module whose forward makes it becomes a :class:`Rewired`: ``torch.fx`` traces that one forward,
    in training and in eval mode, and the children stay what they were. Nothing else is traced, so that the rest of the
    network may be any Python.

    "conv_relu" is different: it replaces the convolutions that read a ReLU by ConvReLUs on the ReLU's input, with the
    weights they had, and removes the ReLU. A ReLU that others read too (a skip connection, a concatenation) stays for
    these. Where anything stands in between (pooling, dropout) nothing is fused. At thresholds of 0 the output of
    the network is what it was. ReLU6 is fused as ``min(x, 6)`` before a ConvReLU.

    The axis after the first is taken for channels. New modules get the device and dtype of the activation, the memory
    format of the model and the mode of their caller; the rest keeps everything, ``requires_grad`` included.

    Args:
        model: any module; it is left as it is, and the result shares nothing with it.
        kind: "leni", "reborn", "conv_relu", "ada_relu" or "fully_parametric_relu".
        where: "all"; "first", "first:N" or "last:N" in order of execution; name patterns, as of ``fnmatch``, one of
            which must match; or a function of index and name. What the kind cannot take, as LENI a feature vector,
            is neither counted nor asked for: the report says why.
        example_input: what the model is called with: a tensor, a tuple of arguments or a dictionary of them.
        include: "relu6", "hardswish": activations to replace along with ReLUs.
        **options: for the new modules: ``kernel_size``, ``eps``, ``momentum`` of LENI and Reborn, ``groups`` of Reborn,
            ``threshold_init`` of ConvReLU and AdaReLU; and ``sharing`` of AdaReLU, "channel", "layer" or "element".

    Returns:
        The new model and a :class:`Report`, which prints as a table. The model is checked: with ReLUs in the blocks'
        places it computes what it did on the example.

    Raises:
        ValueError: for an unknown kind or ``where``, a pattern that matches nothing, a model without ReLUs or with none
            that the kind can take, an example that the model does not run on, or a call that would have to
            change in a forward that cannot be traced; the message names it.
        TypeError: for an option that the kind does not take.
    """
    _check_arguments(kind, include, options)
    choose = _chooser(where)
    result = copy.deepcopy(model)
    arguments = _arguments(example_input)
    before = _run(result, arguments)
    with Observer() as observer:
        observer.read(_run(result, arguments))
    sites = [site for site in observer.sites if site.sort == "relu" or site.sort in include]
    if not sites:
        raise ValueError(f"replace_relu: {type(model).__name__} calls no {' or '.join(('relu', *include))}"
                         + _others(observer.sites))
    plan = _plan_convolutions if kind == "conv_relu" else _plan_activations
    operations, obstacles, notes = plan(result, observer, sites, kind, options)
    chosen = choose([site.name for site in sites if site.name in operations], [site.name for site in sites])
    if not chosen:
        raise ValueError(f"replace_relu: nothing that {kind} can replace was asked for\n" + "\n".join(
            f"  {site.name}: {obstacles.get(site.name, 'not asked for')}" for site in sites))
    selected = [operations[name] for name in operations if name in chosen]
    rows = [_row(site, operations.get(site.name), obstacles.get(site.name), site.name in chosen) for site in sites]
    rows += [Row(name, f"nn.{type(module).__name__}", (), False, "does not run on the example in eval mode, or runs "
                 "within a layer of torch.nn") for name, module in result.named_modules()
             if not observer.calls[module] and sort_of(module) in ("relu", *include)]
    result, rewired = _operate(result, observer, selected)
    _check_same(result, arguments, before, selected)
    return result, Report(kind, tuple(rows), (*notes, *rewired))


def _check_arguments(kind: str, include: Sequence[str], options: Mapping[str, Any]) -> None:
    kinds = (*_KINDS, "conv_relu")
    if kind not in kinds:
        raise ValueError(f"replace_relu: kind must be one of {', '.join(sorted(kinds))}, got {kind!r}")
    known = [sort for sort in MODULES.values() if sort != "relu"]
    if isinstance(include, str) or not set(include) <= set(known):
        raise ValueError(f"replace_relu: include must be some of {known}, got {include!r}")
    taken = _CONV_RELU_OPTIONS if kind == "conv_relu" else _KINDS[kind].options
    for name in options:
        if name not in taken:
            raise TypeError(f"replace_relu: {kind} takes no option {name!r}; it takes "
                            f"{', '.join(sorted(taken)) or 'none'}")


def _others(sites: Sequence[Site]) -> str:
    sorts = sorted({site.sort for site in sites})
    return f"; it calls {' and '.join(sorts)}, which include={tuple(sorts)} would replace" if sorts else ""


# ---- where --------------------------------------------------------------------------------------------------


def _chooser(where: Where) -> Callable[[Sequence[str], Sequence[str]], set[str]]:
    """From the names that can be replaced, and all, to those to replace."""
    if callable(where):
        return lambda names, every: {name for index, name in enumerate(names) if where(index, name)}
    if isinstance(where, str):
        return _slice(where)
    patterns = list(where)
    if not patterns or not all(isinstance(pattern, str) for pattern in patterns):
        raise ValueError(f"replace_relu: where must hold name patterns, got {where!r}")

    def matching(names: Sequence[str], every: Sequence[str]) -> set[str]:
        for pattern in patterns:
            if not any(fnmatchcase(name, pattern) for name in every):
                raise ValueError(f"replace_relu: the pattern {pattern!r} matches none of {', '.join(every)}")
        return {name for name in names if any(fnmatchcase(name, pattern) for pattern in patterns)}

    return matching


def _slice(where: str) -> Callable[[Sequence[str], Sequence[str]], set[str]]:
    end, _, count = where.partition(":")
    if where == "all":
        return lambda names, every: set(names)
    if where == "first":
        count = "1"
    if end not in ("first", "last") or not count.isdecimal() or int(count) < 1:
        raise ValueError("replace_relu: where must be 'all', 'first', 'first:N', 'last:N', a list of name patterns or "
                         f"a function of index and name, got {where!r}")
    number = int(count)
    return lambda names, every: set(names[:number] if end == "first" else names[-number:])


# ---- running the example ------------------------------------------------------------------------------------


def _arguments(example: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if isinstance(example, Mapping):
        return (), dict(example)
    return (tuple(example) if isinstance(example, (tuple, list)) else (example,)), {}


def _run(model: nn.Module, arguments: tuple[tuple[Any, ...], dict[str, Any]]) -> Any:
    """The output in eval mode; the arguments, the model and the random state stay as they are."""
    args, kwargs = copy.deepcopy(arguments)
    devices = {tensor.device for tensor in (*model.parameters(), *pytree.tree_leaves(arguments))
               if isinstance(tensor, Tensor) and tensor.is_cuda}
    try:
        with torch.no_grad(), torch.random.fork_rng(devices), mode(model, training=False):
            torch.manual_seed(0)
            return model(*args, **kwargs)
    except Exception as error:  # the model is the user's: anything may go wrong in it
        shapes = [tuple(leaf.shape) if isinstance(leaf, Tensor) else leaf for leaf in pytree.tree_leaves(arguments)]
        raise ValueError(f"replace_relu: {type(model).__name__} does not run on the example of shape "
                         f"{', '.join(map(str, shapes))}: {error}") from error


# ---- plans --------------------------------------------------------------------------------------------------


@dataclass
class _Operation:
    """What to do about one site.

    ``block`` takes its place, None leaves it; ``convolutions`` are swapped. ``region`` is the module to rewrite if a
    module's place is not all that changes. ``past`` and ``cap`` are :class:`Edit`'s.
    """

    site: Site
    block: nn.Module | None
    note: str
    parameters: int
    flops: int
    convolutions: dict[nn.Module, nn.Module]
    region: nn.Module | None
    past: tuple[str, ...] = ()
    past_callers: tuple[nn.Module, ...] = ()
    cap: nn.Module | None = None


_Plan = tuple[dict[str, _Operation], dict[str, str], tuple[str, ...]]
"""Operations by name of site, why there is none for the others, notes for the report."""


def _plan_activations(model: nn.Module, observer: Observer, sites: Sequence[Site], name: str,
                      options: Mapping[str, Any]) -> _Plan:
    kind, operations, obstacles = _KINDS[name], {}, {}
    for site in sites:
        obstacle = _obstacle(site) or kind.fits(site.shape)
        if obstacle is not None:
            obstacles[site.name] = obstacle
            continue
        block = _like(model, site, kind.make(site.shape, site.device, site.dtype, **options))
        operations[site.name] = _Operation(site, block, type(block).__name__, _size(block),
                                           kind.flops(block, site.shape), {}, _region(observer, site))
    return operations, obstacles, ()


def _obstacle(site: Site) -> str | None:
    """Why a site must stay as it is."""
    if site.module is not None and hooked(site.module):
        return "it has hooks, which a replacement would lose"
    if site.reread == "elsewhere":
        return "it works in place, and its input is read again out of its caller's sight"
    return None


def _region(observer: Observer, site: Site) -> nn.Module | None:
    """The module whose forward must change: the innermost caller that runs once; None if a module can be swapped."""
    if site.module is not None and observer.calls[site.module] == 1 and not (site.reread or site.keyword):
        return None
    return next(module for module in reversed(site.callers) if observer.calls[module] == 1)


def _like(model: nn.Module, site: Site, block: nn.Module) -> nn.Module:
    """The block in the model's memory format and its caller's mode."""
    if any(parameter.dim() == 4 and not parameter.is_contiguous()
           and parameter.is_contiguous(memory_format=torch.channels_last) for parameter in model.parameters()):
        block = block.to(memory_format=torch.channels_last)
    return block.train((site.callers[-1] if site.callers else model).training)


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _row(site: Site, operation: _Operation | None, obstacle: str | None, chosen: bool) -> Row:
    if operation is None or not chosen:
        return Row(site.name, site.text, site.shape, False, obstacle or "not asked for")
    return Row(site.name, site.text, site.shape, True, operation.note, operation.parameters, operation.flops)


# ---- fusing ReLUs into convolutions -------------------------------------------------------------------------


@dataclass
class _Reading:
    """Who reads an activation's output in a trace."""

    convolutions: dict[str, tuple[nn.Module, tuple[nn.Module, ...]]]
    """By name of the call: the convolution and its callers."""
    others: list[str]
    overwritten: bool


def _plan_convolutions(model: nn.Module, observer: Observer, sites: Sequence[Site], kind: str,
                       options: Mapping[str, Any]) -> _Plan:
    readings, regions, notes = _readings(model, observer)
    operations, obstacles = {}, {}
    for site in sites:
        reading = readings.get(site.name)
        obstacle = _obstacle(site) or _fusion_obstacle(site, reading)
        if obstacle is not None:
            obstacles[site.name] = obstacle
        else:
            operations[site.name] = _fusion(model, observer, site, reading, regions[site.name], options)
    return operations, obstacles, notes


def _fusion_obstacle(site: Site, reading: _Reading | None) -> str | None:
    if site.sort == "hardswish":
        return "Hardswish is no ReLU of anything that a convolution could read"
    if reading is None:
        return "no trace shows who reads it"
    if not reading.convolutions:
        return f"read by {_listed(reading.others) or 'nobody'}, and by no convolution that can be fused"
    if reading.overwritten:
        return "its input or output is changed in place"
    return None


def _fusion(model: nn.Module, observer: Observer, site: Site, reading: _Reading, region: nn.Module,
            options: Mapping[str, Any]) -> _Operation:
    swaps = {conv: _CONVOLUTIONS[type(conv)].from_conv(conv, **options) for conv, _ in reading.convolutions.values()}
    note, added = f"fused into {', '.join(reading.convolutions)}", sum(new.threshold.numel() for new in swaps.values())
    # ReLU6 is min(x, 6) under a ReLU; a Hardtanh without its lower bound.
    cap = _like(model, site, nn.Hardtanh(-math.inf, 6.0)) if site.sort == "relu6" else None
    if not reading.others:
        block = cap or _like(model, site, nn.Identity())
        return _Operation(site, block, note, added, 0, swaps, _region(observer, site))
    past_callers = tuple(caller for _, callers in reading.convolutions.values() for caller in callers)
    return _Operation(site, None, f"{note}; stays for {_listed(reading.others)}", added, 0, swaps, region,
                      tuple(reading.convolutions), past_callers, cap)


def _readings(model: nn.Module,
              observer: Observer) -> tuple[dict[str, _Reading], dict[str, nn.Module], tuple[str, ...]]:
    """Who reads each activation, the module whose trace shows it, and notes on what cannot be traced."""
    readings: dict[str, _Reading] = {}
    regions: dict[str, nn.Module] = {}
    notes: list[str] = []
    waiting = [model]
    while waiting:
        region = waiting.pop()
        if observer.calls[region] != 1 or not any(True for _ in region.children()):
            continue
        found = []
        try:
            for training in (False, True):
                with mode(region, training):
                    graph = CallTracer().trace_call(region, observer.names[region])
                found.append(_readings_of(graph, region, observer))
        except Exception as error:  # the forward is the user's: anything may go wrong in it
            notes.append(f"torch.fx cannot trace {type(region).__name__} ({str(error).splitlines()[0]}); its children "
                         "were taken one by one, and ReLUs read outside them are left")
            waiting.extend(region.children())
            continue
        in_eval, in_training = found
        for name, reading in in_eval.items():
            readings[name], regions[name] = _both(reading, in_training.get(name)), region
    return readings, regions, tuple(notes)


def _both(reading: _Reading, other: _Reading | None) -> _Reading:
    """What holds in eval and training mode."""
    if other is None:
        return _Reading({}, [*reading.convolutions, *reading.others], reading.overwritten)
    convolutions = {name: conv for name, conv in reading.convolutions.items() if name in other.convolutions}
    others = [name for name in (*reading.convolutions, *other.convolutions) if name not in convolutions]
    others += [*reading.others, *other.others]
    return _Reading(convolutions, list(dict.fromkeys(others)), reading.overwritten or other.overwritten)


def _readings_of(graph: fx.Graph, region: nn.Module, observer: Observer) -> dict[str, _Reading]:
    modules = dict(region.named_modules(remove_duplicate=False))
    order = {node: index for index, node in enumerate(graph.nodes)}
    readings = {}
    for node in graph.nodes:
        module = modules.get(node.target) if node.op == "call_module" else None
        inplace = module.inplace if module is not None and sort_of(module) else False
        if "spelling" in node.meta:
            inplace = node.meta["spelling"].inplace
        elif module is None or sort_of(module) is None:
            continue
        source = source_of(node)
        users = list(_readers(node, modules))
        # After an activation in place, its input is its output.
        users += [(user, source) for user in source.users if inplace and order[user] > order[node]]
        reading = _Reading({}, [], any(_overwrites(user, read, modules) for user, read in
                                       (*users, *((user, source) for user in source.users if user is not node))))
        for user, read in users:
            conv = modules.get(user.target) if user.op == "call_module" else None
            if conv is not None and _fusible(conv, observer) and user.args == (read,):
                reading.convolutions[user.meta["call"]] = conv, user.meta["callers"]
            else:
                reading.others.append(_name_of(user))
        readings[node.meta["call"]] = reading
    return readings


def _readers(node: fx.Node, modules: Mapping[str, nn.Module]) -> Iterator[tuple[fx.Node, fx.Node]]:
    """Who reads the values of a node, and as which node: an Identity hands them on, a shape is none."""
    for user in node.users:
        module = modules.get(user.target) if user.op == "call_module" else None
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
    name = user.target if isinstance(user.target, str) else getattr(user.target, "__name__", "")
    if getattr(user.target, "__module__", "") == "_operator":
        return name in _IN_PLACE_OPERATORS
    return (name.endswith("_") and not name.endswith("__")) or bool(user.kwargs.get("inplace"))


_IN_PLACE_OPERATORS = ("iadd", "isub", "imul", "itruediv", "ifloordiv", "ipow", "imod", "iand", "ior", "ixor",
                       "imatmul", "setitem")


def _listed(names: Sequence[str]) -> str:
    """The first few names."""
    return ", ".join(names if len(names) < 5 else (*names[:3], f"and {len(names) - 3} more"))


def _name_of(node: fx.Node) -> str:
    if node.op == "output":
        return "the output"
    return node.meta.get("call") or (node.target if isinstance(node.target, str) else node.target.__name__)


# ---- the operation ------------------------------------------------------------------------------------------


def _operate(model: nn.Module, observer: Observer,
             operations: Sequence[_Operation]) -> tuple[nn.Module, tuple[str, ...]]:
    """Do all of it; returns the model, or what took its place, and a note on the modules rewritten."""
    rewritten = []
    for region, edits in _by_region(operations).items():
        try:
            rewired = rewire(region, observer.names[region], edits)
        except CannotRewireError as error:
            names = ", ".join(edit.site.name for edit in edits)
            raise ValueError(f"replace_relu: {names} cannot be replaced: {error}. Replacing a module is not enough "
                             "there; `where` can leave these out") from error
        rewritten.append(observer.names[region] or "the model")
        model = swap(model, {region: rewired})
    swaps = {old: new for operation in operations for old, new in operation.convolutions.items()}
    swaps |= {operation.site.module: operation.block for operation in operations if operation.region is None}
    note = f"forwards that are now graphs: {_listed(rewritten)}"
    return swap(model, swaps), (note,) if rewritten else ()


def _by_region(operations: Sequence[_Operation]) -> dict[nn.Module, list[Edit]]:
    """The edits of each module to rewrite, where one within another goes to the outer."""
    regions = {operation.region for operation in operations} - {None}
    edits: dict[nn.Module, list[Edit]] = {}
    for operation in operations:
        if operation.region is not None:
            outermost = next(module for module in operation.site.callers if module in regions)
            edits.setdefault(outermost, []).append(
                Edit(operation.site, operation.block, operation.past, operation.past_callers, operation.cap))
    return edits


def _check_same(model: nn.Module, arguments: tuple[tuple[Any, ...], dict[str, Any]], before: Any,
                operations: Sequence[_Operation]) -> None:
    """Require the example's output, with the activations of old in the places of the blocks."""
    with _as_before(operations):
        after = _run(model, arguments)
    try:
        torch.testing.assert_close(after, before, equal_nan=True)
    except AssertionError as error:
        raise ValueError("replace_relu: with ReLUs in the places of the new modules the network does not compute what "
                         "it did: something is shared in a way that the example and a trace do not show. `where` can "
                         f"leave calls out. {error}") from error


@contextmanager
def _as_before(operations: Sequence[_Operation]) -> Iterator[None]:
    stand_ins: dict[nn.Module, Callable[..., Tensor]] = {}
    for operation in operations:
        if operation.block is not None and not operation.convolutions:
            stand_ins[operation.block] = FUNCTIONS[operation.site.sort]
        for conv, new in operation.convolutions.items():
            stand_ins[new] = lambda x, conv=conv: conv(torch.relu(x))
    for module, forward in stand_ins.items():
        module.forward = forward
    try:
        yield
    finally:
        for module in stand_ins:
            del module.forward
