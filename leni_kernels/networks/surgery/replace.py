"""replace_relu: which calls become what, in a copy of the model that is checked before it is handed over."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from ..examples import Arguments, ExampleError, arguments_of, copied, near, run
from .blocks import KINDS, Blocks
from .call_sites import MODULES, Site
from .edits import Editor, apply
from .fusion import OPTIONS, Fusion
from .observed import observe
from .operations import Operation, obstacle
from .report import Report, Row
from .unseen import only_in_training, rows_not_run

Where = str | Sequence[str] | Callable[[int, str], bool]


def replace_relu(model: nn.Module, kind: str, where: Where = "all", *, example_input: Any, include: Sequence[str] = (),
                 strict: bool = False, **options: Any) -> tuple[nn.Module, Report]:
    """Put a mechanism where a network calls ReLUs.

    What counts is the call, not the module: an ``nn.ReLU`` called twice is two sites, and ``F.relu``, ``torch.relu``,
    ``x.relu()``, ``relu_`` and ``inplace=True`` are seen as well. ``example_input`` shows them: copies of the model run
    on it in eval and in training mode. A site is called after the caller and the callee, and numbered when repeated:
    ``layer1.0.relu``, ``layer1.0.relu_1``.

    The forward that the user wrote is what runs. A ReLU module that one place calls is replaced as a module. Any other
    call goes to a block of its own, which its caller gets: the source of that one function is compiled anew with
    ``self.relu_1(x)`` in the call's place, for a subclass of the caller's class that has the same name. Calls that the
    example does not make stay what they are. A place that makes several calls, as in a loop, has several blocks, called
    in turn (``lk.surgery.InTurn``); a forward that makes more of these calls than the example, or fewer, raises. What
    can be told in no way stays, and the report says why.

    "conv_relu" is different: it replaces the convolutions that read a ReLU by ConvReLUs on the ReLU's input, with the
    weights they had. The ReLU goes, or stays for others that read it too (a skip connection, a concatenation), in which
    case a ConvReLU that is given anything but its output raises. The example has to show these others, unless they are
    in the function that calls the ReLU. Where anything stands in between (pooling, dropout) nothing is fused. At
    thresholds of 0 the output of the network is what it was. ReLU6 is fused as ``min(x, 6)`` before a ConvReLU.

    The axis after the first is taken for channels, also of ``[N, tokens, C]``, which ``where`` can leave out. New
    modules get the activation's device, the dtype of the parameters around it, the memory format of the model and the
    mode of their caller; the rest keeps everything, ``requires_grad`` included.

    Args:
        model: any module, before ``torch.compile`` and ``DistributedDataParallel``. It is left as it is, and the
            result shares nothing with it.
        kind: "leni", "reborn", "conv_relu", "ada_relu" or "fully_parametric_relu".
        where: "all"; "first", "first:N" or "last:N" in order of execution; name patterns, as of ``fnmatch``, one of
            which must match; or a function of index and name. What cannot be replaced, as by LENI a feature vector, is
            neither counted nor asked for: the report says why.
        example_input: what the model is called with: a tensor, a tuple of arguments or a dictionary of them.
        include: "relu6", "hardswish": activations to replace along with ReLUs.
        strict: refuse a call that is asked for and cannot be sent to a block, in place of leaving it.
        **options: for the new modules: ``kernel_size``, ``eps``, ``momentum`` of LENI and Reborn, ``groups`` and
            ``compress_kernel_size`` of Reborn, ``threshold_init`` of ConvReLU and AdaReLU; and ``sharing`` of AdaReLU,
            "channel", "layer" or "element".

    Returns:
        The new model and a :class:`Report`, which prints as a table. The model is checked: with ReLUs in the blocks'
        places it computes in both modes what it did on the example.

    Raises:
        ValueError: for an unknown kind or ``where``, a pattern that matches nothing, a model without ReLUs or with none
            that the kind can take, an example that the model does not run on, or what ``strict`` refuses.
        TypeError: for an option that the kind does not take, or a model that is wrapped, scripted or compiled.
    """
    _check_model(model)
    _check_arguments(kind, include, options)
    choose, arguments = _chooser(where), arguments_of(example_input)
    before = _outputs(copied(model), arguments, example_input)
    observation = observe(copied(model), arguments)
    sites = [site for site in observation.sites if site.sort in ("relu", *include)]
    if not any(not site.within for site in sites):
        raise ValueError(f"replace_relu: {type(model).__name__} calls no {' or '.join(('relu', *include))}"
                         + _others(observation.sites))
    editor = Editor(observation)
    out_of_reach = {site.name: obstacle(site) or editor.obstacle(site) for site in sites}
    within_reach = [name for name, reason in out_of_reach.items() if reason is None]
    plan = (Fusion(observation, within_reach, options) if kind == "conv_relu"
            else Blocks(kind, observation.model, options))
    obstacles = {site.name: obstacle(site) or plan.obstacle(site) or out_of_reach[site.name] for site in sites}
    able = [site.name for site in sites if obstacles[site.name] is None
            or (strict and obstacles[site.name] == editor.obstacle(site))]
    chosen = choose(able, list(obstacles))
    refused = [f"{name} cannot be replaced: {obstacles[name]}" for name in able if name in chosen and obstacles[name]]
    if refused:
        raise ValueError(f"replace_relu: {'; '.join(refused)}. `where` can leave these out")
    operations = plan.operations([site for site in sites if site.name in chosen])
    if not operations:
        raise ValueError(f"replace_relu: nothing that {kind} can replace was asked for\n" + "\n".join(
            f"  {name}: {reason or 'not asked for'}" for name, reason in obstacles.items()))
    edits = editor.edits([operation.site for operation in operations.values()])
    after = _outputs(apply(copied(model), edits, operations, trial=True), arguments, example_input)
    _check_same(after, before)
    paths = {site.name: edit.module_of(site) for edit in edits if not edit.kept for site in edit.sites}
    rows = [_row(site, operations.get(site.name), obstacles[site.name], paths.get(site.name, "")) for site in sites]
    rows += rows_not_run(observation, include)
    result = apply(copied(model), edits, operations, trial=False)
    notes = filter(None, (observation.note, *only_in_training(observation)))
    return result, Report(kind, tuple(rows), tuple(notes))


def _row(site: Site, operation: Operation | None, reason: str | None, path: str) -> Row:
    if operation is None:
        return Row(site.name, site.text, site.shape, False, reason or "not asked for")
    return Row(site.name, site.text, site.shape, True, operation.note, operation.parameters, operation.flops, path)


def _outputs(model: nn.Module, arguments: Arguments, example: Any) -> list[Any]:
    """What the model returns in eval and in training mode; None where it does not run in the latter."""
    try:
        in_eval = run(model, arguments, training=False)
    except ExampleError as error:
        shapes = [tuple(leaf.shape) if isinstance(leaf, Tensor) else leaf for leaf in pytree.tree_leaves(arguments)]
        hint = ("" if not isinstance(example, list) else
                "\nA list is taken for the arguments; a model that takes a list as its one argument is shown ([...],)")
        raise ValueError(f"replace_relu: {type(model).__name__} does not run on the example of shape "
                         f"{', '.join(map(str, shapes))}: {error}{hint}") from error
    with suppress(ExampleError):
        return [in_eval, run(model, arguments, training=True)]
    return [in_eval, None]


def _check_same(after: Sequence[Any], before: Sequence[Any]) -> None:
    """Require the example's outputs, with the activations of old in the places of the blocks."""
    for mode, actual, expected in zip(("eval", "training"), after, before, strict=True):
        if not near(actual, expected):
            raise ValueError("replace_relu: with ReLUs in the places of the new modules the network does not compute "
                             f"what it did, in {mode} mode: something is shared in a way that the example does not "
                             "show; `where` can leave calls out")


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
            if not any(_matches(name, pattern) for name in every):
                raise ValueError(f"replace_relu: the pattern {pattern!r} matches none of {', '.join(every)}")
        return {name for name in names if any(_matches(name, pattern) for pattern in patterns)}

    return matching


def _matches(name: str, pattern: str) -> bool:
    """Whether a pattern is a name, which may have brackets in it, or fits it."""
    return name == pattern or fnmatchcase(name, pattern)


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
