"""replace_relu: which calls become what, in a copy of the model that is checked before it is handed over."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from .blocks import KINDS, Blocks
from .call_sites import FUNCTIONS, MODULES, Observer, Site, sort_of
from .fusion import OPTIONS, Fusion, listed
from .graphs import CannotRewireError, Edit, mode, rewire, swap
from .operations import Operation, obstacle
from .report import Report, Row

Where = str | Sequence[str] | Callable[[int, str], bool]


def replace_relu(model: nn.Module, kind: str, where: Where = "all", *, example_input: Any, include: Sequence[str] = (),
                 **options: Any) -> tuple[nn.Module, Report]:
    """Put a mechanism where a network calls ReLUs.

    What counts is the call, not the module: an ``nn.ReLU`` called twice is two sites, and ``F.relu``, ``torch.relu``,
    ``x.relu()``, ``relu_`` and ``inplace=True`` are seen as well. ``example_input`` shows them: the model runs on it in
    eval mode, without gradients, and neither its running statistics nor the random state change. A site is called
    after the caller and the callee, and numbered when repeated: ``layer1.0.relu``, ``layer1.0.relu_1``.

    A ReLU module that runs once is replaced as a module, and nothing else changes. Where another kind of call has to
    change, the module whose forward makes it becomes a :class:`Rewired`: ``torch.fx`` traces that one forward,
    in training and in eval mode, and the children stay what they were. The rest of the network may be any Python.

    "conv_relu" is different: it replaces the convolutions that read a ReLU by ConvReLUs on the ReLU's input, with the
    weights they had, and removes the ReLU. A ReLU that others read too (a skip connection, a concatenation) stays for
    these. Where anything stands in between (pooling, dropout) nothing is fused. At thresholds of 0 the output of
    the network is what it was. ReLU6 is fused as ``min(x, 6)`` before a ConvReLU. Who reads what, a trace of the whole
    network tells; of what ``torch.fx`` cannot trace, the children are taken one by one.

    The axis after the first is taken for channels. New modules get the activation's device, the dtype of the
    parameters around it, the memory format of the model and the mode of their caller; the rest keeps everything,
    ``requires_grad`` included.

    Args:
        model: any module, before ``torch.compile`` and ``DistributedDataParallel``. It is left as it is, and the
            result shares nothing with it.
        kind: "leni", "reborn", "conv_relu", "ada_relu" or "fully_parametric_relu".
        where: "all"; "first", "first:N" or "last:N" in order of execution; name patterns, as of ``fnmatch``, one of
            which must match; or a function of index and name. What the kind cannot take, as LENI a feature vector,
            is neither counted nor asked for: the report says why.
        example_input: what the model is called with: a tensor, a tuple of arguments or a dictionary of them.
        include: "relu6", "hardswish": activations to replace along with ReLUs.
        **options: for the new modules: ``kernel_size``, ``eps``, ``momentum`` of LENI and Reborn, ``groups`` and
            ``compress_kernel_size`` of Reborn, ``threshold_init`` of ConvReLU and AdaReLU; and ``sharing`` of AdaReLU,
            "channel", "layer" or "element".

    Returns:
        The new model and a :class:`Report`, which prints as a table. The model is checked: with ReLUs in the blocks'
        places it computes what it did on the example.

    Raises:
        ValueError: for an unknown kind or ``where``, a pattern that matches nothing, a model without ReLUs or with none
            that the kind can take, an example that the model does not run on, or a call that would have to
            change in a forward that cannot be traced; the message names it.
        TypeError: for an option that the kind does not take, or a model that is wrapped, scripted or compiled.
    """
    _check_model(model)
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
    plan = Fusion(result, observer, options) if kind == "conv_relu" else Blocks(kind, result, observer, options)
    obstacles = {site.name: obstacle(site) or plan.obstacle(site) for site in sites}
    chosen = choose([name for name, reason in obstacles.items() if reason is None], list(obstacles))
    if not chosen:
        raise ValueError(f"replace_relu: nothing that {kind} can replace was asked for\n" + "\n".join(
            f"  {name}: {reason or 'not asked for'}" for name, reason in obstacles.items()))
    operations = {site.name: plan.operation(site) for site in sites if site.name in chosen}
    rows = [_row(site, operations.get(site.name), obstacles[site.name]) for site in sites]
    rows += _rows_not_run(result, observer, include)
    result, note = _operate(result, observer, list(operations.values()))
    _check_same(result, arguments, before, list(operations.values()))
    return result, Report(kind, tuple(rows), (*plan.notes, *note))


def _row(site: Site, operation: Operation | None, reason: str | None) -> Row:
    if operation is None:
        return Row(site.name, site.text, site.shape, False, reason or "not asked for")
    return Row(site.name, site.text, site.shape, True, operation.note, operation.parameters, operation.flops)


def _rows_not_run(model: nn.Module, observer: Observer, include: Sequence[str]) -> list[Row]:
    note = "does not run on the example in eval mode, or runs within a layer of torch.nn"
    return [Row(name, f"nn.{type(module).__name__}", (), False, note) for name, module in model.named_modules()
            if not observer.calls[module] and sort_of(module) in ("relu", *include)]


def _check_model(model: nn.Module) -> None:
    wrapped = isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel))
    # A compiled module's class would cost an import of Dynamo.
    if wrapped or isinstance(model, torch.jit.ScriptModule) or hasattr(model, "_orig_mod"):
        raise TypeError("replace_relu: model must be a module of Python, before it is wrapped, scripted or compiled, "
                        f"got {type(model).__name__}")


def _check_arguments(kind: str, include: Sequence[str], options: Mapping[str, Any]) -> None:
    kinds = (*KINDS, "conv_relu")
    if kind not in kinds:
        raise ValueError(f"replace_relu: kind must be one of {', '.join(sorted(kinds))}, got {kind!r}")
    known = [sort for sort in MODULES.values() if sort != "relu"]
    if isinstance(include, str) or not set(include) <= set(known):
        raise ValueError(f"replace_relu: include must be some of {known}, got {include!r}")
    taken = OPTIONS if kind == "conv_relu" else KINDS[kind].options
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
    args, kwargs = pytree.tree_map(lambda leaf: leaf.detach().clone() if isinstance(leaf, Tensor) else leaf, arguments)
    devices = {tensor.device for tensor in (*model.parameters(), *pytree.tree_leaves(arguments))
               if isinstance(tensor, Tensor) and tensor.is_cuda}
    of_python = random.getstate()
    try:
        with torch.no_grad(), torch.random.fork_rng(devices), mode(model, training=False):
            # Runs are compared. Not torch.manual_seed, which would seed the GPUs that are not forked too.
            random.seed(0)
            for generator in (torch.default_generator, *(torch.cuda.default_generators[gpu.index] for gpu in devices)):
                generator.manual_seed(0)
            return model(*args, **kwargs)
    except Exception as error:  # the model is the user's: anything may go wrong in it
        shapes = [tuple(leaf.shape) if isinstance(leaf, Tensor) else leaf for leaf in pytree.tree_leaves(arguments)]
        raise ValueError(f"replace_relu: {type(model).__name__} does not run on the example of shape "
                         f"{', '.join(map(str, shapes))}: {error}") from error
    finally:
        random.setstate(of_python)


# ---- the operation ------------------------------------------------------------------------------------------


def _operate(model: nn.Module, observer: Observer,
             operations: Sequence[Operation]) -> tuple[nn.Module, tuple[str, ...]]:
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
    note = f"forwards that are now graphs: {listed(rewritten)}"
    return swap(model, swaps), (note,) if rewritten else ()


def _by_region(operations: Sequence[Operation]) -> dict[nn.Module, list[Edit]]:
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
                operations: Sequence[Operation]) -> None:
    """Require the example's output, with the activations of old in the places of the blocks."""
    with _as_before(operations):
        after = _run(model, arguments)
    if not all(_near(*pair) for pair in zip(pytree.tree_leaves(after), pytree.tree_leaves(before), strict=True)):
        raise ValueError("replace_relu: with ReLUs in the places of the new modules the network does not compute what "
                         "it did: something is shared in a way that the example and a trace do not show; `where` can "
                         "leave calls out")


def _near(actual: Any, expected: Any) -> bool:
    """Whether two outputs agree, as far as a GPU that chooses its algorithms anew lets them; a slip is far greater."""
    if not isinstance(expected, Tensor):
        return True
    if actual.shape != expected.shape or not expected.numel():
        return actual.shape == expected.shape
    actual, expected = actual.double(), expected.double()
    scale = expected.nan_to_num(0.0, 0.0, 0.0).abs().max().item()
    return torch.allclose(actual, expected, rtol=0.0, atol=1e-2 * scale, equal_nan=True)


@contextmanager
def _as_before(operations: Sequence[Operation]) -> Iterator[None]:
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
