"""Modules whose forward is a graph with some calls changed: traced, edited, compiled, copied, pickled."""

from __future__ import annotations

import copy
import inspect
import random
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from ...common.hooks import hooked
from .call_sites import FUNCTIONS, CallNames, Site, is_leaf, sort_of, spelling_of

# ---- traces -------------------------------------------------------------------------------------------------


class Tracer(fx.Tracer):
    """``torch.fx.Tracer`` to which the modules of this package are leaves, as PyTorch's own layers are."""

    proxy_buffer_attributes = True

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return is_leaf(m)

    def trace(self, root: Any, concrete_args: dict[str, Any] | None = None) -> fx.Graph:
        return super().trace(_with_forward_of_its_own(root), concrete_args)


def _with_forward_of_its_own(root: Any) -> Any:
    """fx reads the arguments off the class, which all rewired modules have in common."""
    # A copy, since a graph belongs to its GraphModule.
    return fx.GraphModule(root, copy.deepcopy(root.graphs[root.training])) if isinstance(root, Rewired) else root


class CallTracer(Tracer):
    """Notes on each node that calls a leaf or an activation the call's name and its callers.

    Args:
        opened: the modules to look into; None for all but leaves.
    """

    def __init__(self, opened: Collection[nn.Module] | None = None) -> None:
        super().__init__()
        self._names = CallNames()
        self._opened = opened

    def trace_call(self, module: nn.Module, name: str) -> fx.Graph:
        """The graph of a module's forward; arguments with defaults are taken to be these.

        Raises:
            ValueError: if the forward does what a graph would not: draws random numbers of its own, sets attributes,
                or (in a module to be rewritten) changes the grad mode or autocast.
            Exception: whatever else the forward does with values that a trace does not have.
        """
        self._names.enter(module, name)
        self._ambient = _ambient()
        parameters = inspect.signature(_with_forward_of_its_own(module).forward).parameters.values()
        defaults = {parameter.name: parameter.default for parameter in parameters
                    if parameter.default is not parameter.empty}
        with _undisturbed(module):
            return self.trace(module, defaults)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return is_leaf(m) if self._opened is None else m not in self._opened

    def call_module(self, m: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        callers = self._names.callers
        name = self._names.enter(m)
        try:
            result = super().call_module(m, forward, args, kwargs)
        finally:
            self._names.leave()
        if isinstance(result, fx.Proxy) and result.node.op == "call_module" and "call" not in result.node.meta:
            result.node.meta.update(call=name, callers=callers)
        return result

    def create_node(self, kind: str, target: Any, args: Any, kwargs: Any, *rest: Any, **named: Any) -> fx.Node:
        if self._opened is not None and _ambient() != self._ambient:
            raise ValueError("it changes the grad mode or autocast, and a graph would not")
        node = super().create_node(kind, target, args, kwargs, *rest, **named)
        if kind in ("call_function", "call_method"):
            spelling = spelling_of(target, args, kwargs)
            if spelling is not None:
                node.meta.update(call=self._names.function(spelling.sort), callers=self._names.callers,
                                 spelling=spelling)
        return node


def _ambient() -> tuple[bool, ...]:
    return (torch.is_grad_enabled(), torch.is_inference_mode_enabled(),
            *(torch.is_autocast_enabled(kind) for kind in ("cpu", "cuda")))


@contextmanager
def _undisturbed(module: nn.Module) -> Iterator[None]:
    """Require that a trace leaves nothing behind but constants: what it does once, the graph would never do again."""
    attributes = {each: dict(each.__dict__) for each in module.modules()}
    of_python = random.getstate()
    with torch.random.fork_rng(devices=[]):
        of_torch = torch.get_rng_state()
        try:
            yield
        finally:
            drawn = random.getstate() != of_python or not torch.equal(torch.get_rng_state(), of_torch)
            changed = {name for each, before in attributes.items() for name, value in each.__dict__.items()
                       if before.get(name) is not value and not name.startswith("_tensor_constant")}
            random.setstate(of_python)
            for each, before in attributes.items():
                for name in changed & each.__dict__.keys():
                    each.__dict__.pop(name)
                each.__dict__.update(before)
    if drawn:
        raise ValueError("it draws random numbers, which a graph would fix")
    if changed:
        raise ValueError(f"it sets {', '.join(sorted(changed))}, and a graph would not")


@contextmanager
def mode(model: nn.Module, training: bool) -> Iterator[None]:
    """Every module in training or eval mode; afterwards each in its own again."""
    before = {module: module.training for module in model.modules()}
    try:
        for module in before:
            module.training = training
        yield
    finally:
        for module, was in before.items():
            module.training = was


# ---- rewritten modules --------------------------------------------------------------------------------------


class Rewired(nn.Module):
    """A module after surgery: the children and parameters that it had, and its forward as a graph for each mode.

    Made by :func:`leni_kernels.replace_relu` where a call in the forward itself had to change. The methods and other
    attributes of the original are gone.

    Attributes:
        graphs: the ``torch.fx.Graph`` of training (True) and eval (False).
    """

    def __init__(self, module: nn.Module, graphs: dict[bool, fx.Graph]) -> None:
        super().__init__()
        adopt(self, module)
        self.original = getattr(module, "original", type(module).__name__)
        self.graphs = graphs
        self._compile()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self._forwards[self.training](self, *args, **kwargs)

    def _compile(self) -> None:
        self._forwards = {training: _function(graph) for training, graph in self.graphs.items()}

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_forwards"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._compile()

    def _get_name(self) -> str:
        return f"{self.original}, rewired"


def _function(graph: fx.Graph) -> Callable[..., Any]:
    code = graph.python_code(root_module="self")
    namespace = dict(code.globals)
    exec(code.src, namespace)
    return namespace["forward"]


def adopt(module: nn.Module, other: nn.Module) -> nn.Module:
    """Give a module another's children, parameters, buffers, other tensors and mode."""
    state = ("_parameters", "_buffers", "_non_persistent_buffers_set", "_modules", "training")
    module.__dict__ |= {name: value for name, value in other.__dict__.items()
                        if name in state or isinstance(value, Tensor)}
    return module


@dataclass
class Edit:
    """What becomes of one site in a graph.

    ``block`` takes its place; None leaves the activation. ``past`` are the names of calls that read the activation's
    input instead of its output, through ``cap`` if there is one; ``past_callers`` who makes them.
    """

    site: Site
    block: nn.Module | None
    past: tuple[str, ...] = ()
    past_callers: tuple[nn.Module, ...] = ()
    cap: nn.Module | None = None


class CannotRewireError(Exception):
    """Why a module cannot be rewritten, in words."""


def rewire(region: nn.Module, name: str, edits: Sequence[Edit]) -> Rewired:
    """The module ``region``, called ``name`` in the model, with some calls in it and below changed.

    Blocks are added to ``region`` under the name of their site. Modules that had to be opened lose their forward,
    which is part of the new one; sequences keep theirs.

    Raises:
        CannotRewireError: if fx cannot trace it, it has hooks, or training runs other activations than eval.
    """
    opened = {module for edit in edits for callers in (edit.site.callers, edit.past_callers)
              for module in _inside(callers, region)}
    for module in (region, *opened):
        if hooked(module):
            raise CannotRewireError(f"{type(module).__name__} has hooks, which a new forward would lose")
    by_name = {edit.site.name: edit for edit in edits}
    graphs = {training: _traced(region, name, opened, training) for training in (False, True)}
    calls = [[node.meta["call"] for node in graph.nodes if _is_activation(region, node)] for graph in graphs.values()]
    if calls[0] != calls[1]:
        raise CannotRewireError(f"{type(region).__name__}.forward calls other activations in training mode")
    missing = sorted(by_name.keys() - set(calls[0]))
    if missing:
        raise CannotRewireError(f"a trace of {type(region).__name__}.forward does not show {', '.join(missing)}")
    added = {_relative(edit.site.name, name): edit.block for edit in edits
             if edit.block is not None and not isinstance(edit.block, nn.Identity)}
    added |= {f"{_relative(edit.site.name, name)}_cap": edit.cap for edit in edits if edit.cap is not None}
    for graph in graphs.values():
        for node in list(graph.nodes):
            edit = by_name.get(node.meta.get("call"))
            if edit is not None:
                _apply(graph, node, edit, _relative(edit.site.name, name))
            elif node.op == "call_module" and node.target in added:
                _call_function(graph, node, region.get_submodule(node.target))
        for node in graph.nodes:
            node.meta.clear()  # of modules, which a graph must not hold
        graph.lint()
    for path, module in added.items():
        _add(region, path, module)
    swap(region, {module: adopt(nn.Module(), module) for module in opened if not isinstance(module, nn.Sequential)})
    return Rewired(region, graphs)


def _inside(callers: tuple[nn.Module, ...], region: nn.Module) -> tuple[nn.Module, ...]:
    return callers[callers.index(region) + 1:] if region in callers else ()


def _relative(name: str, region: str) -> str:
    return name.removeprefix(f"{region}.") if region else name


def _traced(region: nn.Module, name: str, opened: Collection[nn.Module], training: bool) -> fx.Graph:
    try:
        with mode(region, training):
            return CallTracer(opened).trace_call(region, name)
    except Exception as error:  # the forward is the user's: anything may go wrong in it
        raise CannotRewireError(f"torch.fx cannot trace {type(region).__name__}.forward ({error})") from error


def _is_activation(region: nn.Module, node: fx.Node) -> bool:
    if node.op == "call_module":
        return sort_of(region.get_submodule(node.target)) is not None
    return "spelling" in node.meta


def source_of(node: fx.Node) -> fx.Node:
    """The input of an activation's node."""
    return node.args[0] if node.args else node.kwargs["input"]


def _apply(graph: fx.Graph, node: fx.Node, edit: Edit, path: str) -> None:
    source = source_of(node)
    later = users_after(graph, node, source) if edit.site.inplace else []
    with graph.inserting_before(node):
        if isinstance(edit.block, nn.Identity):
            output = source
        elif edit.block is not None:
            output = graph.call_module(path, (source,))
        else:
            output = graph.call_function(FUNCTIONS[edit.site.sort], (source,))
        past = source if edit.cap is None else graph.call_module(f"{path}_cap", (source,))
    node.replace_all_uses_with(output)
    graph.erase_node(node)
    for user in later:
        user.replace_input_with(source, output)
    for user in graph.nodes:
        if user.meta.get("call") in edit.past:
            user.update_arg(0, past)


def users_after(graph: fx.Graph, node: fx.Node, source: fx.Node) -> list[fx.Node]:
    """The users of ``source`` that run after ``node``."""
    order = {node: index for index, node in enumerate(graph.nodes)}
    return [user for user in source.users if order[user] > order[node]]


def _call_function(graph: fx.Graph, node: fx.Node, module: nn.Module) -> None:
    """Call an activation as a function where its module's name is taken."""
    with graph.inserting_before(node):
        output = graph.call_function(FUNCTIONS[sort_of(module)], (source_of(node), module.inplace))
    node.replace_all_uses_with(output)
    graph.erase_node(node)


def _add(module: nn.Module, path: str, child: nn.Module) -> None:
    *parents, name = path.split(".")
    for parent in parents:
        if parent not in module._modules:
            module.add_module(parent, nn.Module())
        module = module._modules[parent]
    module._modules[name] = child


def swap(model: nn.Module, replaced: Mapping[nn.Module, nn.Module]) -> nn.Module:
    """Put each module's replacement wherever it hangs, under all its names; returns the model or what replaced it."""
    for parent in list(model.modules()):
        for name, child in parent._modules.items():
            if child in replaced:
                parent._modules[name] = replaced[child]
    return replaced.get(model, model)
