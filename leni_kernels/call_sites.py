"""Where a network calls its ReLUs, and modules whose forward is a graph with some of those calls changed."""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from .conv_relu.modules import ConvReLU1d, ConvReLU2d, ConvReLU3d
from .leni.modules import FoldedLENI2d, FoldedReborn2d, LENI2d, Reborn2d, hooked
from .pointwise.modules import AdaReLU, CReLU, FullyParametricReLU

BLOCKS = (LENI2d, Reborn2d, FoldedLENI2d, FoldedReborn2d, ConvReLU1d, ConvReLU2d, ConvReLU3d, AdaReLU,
          FullyParametricReLU, CReLU)

MODULES: dict[type[nn.Module], str] = {nn.ReLU: "relu", nn.ReLU6: "relu6", nn.Hardswish: "hardswish"}
FUNCTIONS: dict[str, Callable[..., Tensor]] = {"relu": F.relu, "relu6": F.relu6, "hardswish": F.hardswish}
"""What a site of each sort computes."""


class Spelling(NamedTuple):
    """A way to call an activation."""

    sort: str
    text: str
    inplace: bool = False


_SPELLINGS: dict[Any, Spelling] = {
    F.relu: Spelling("relu", "F.relu"), torch.relu: Spelling("relu", "torch.relu"),
    Tensor.relu: Spelling("relu", "Tensor.relu"), torch.relu_: Spelling("relu", "torch.relu_", True),
    Tensor.relu_: Spelling("relu", "Tensor.relu_", True), F.relu6: Spelling("relu6", "F.relu6"),
    F.hardswish: Spelling("hardswish", "F.hardswish"),
}
_METHODS = {"relu": _SPELLINGS[Tensor.relu], "relu_": _SPELLINGS[Tensor.relu_]}


def sort_of(module: nn.Module) -> str | None:
    """The sort of an activation module; a subclass may compute something else."""
    return MODULES.get(type(module))


def spelling_of(function: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Spelling | None:
    """How a function or method, which fx gives by its name, spells an activation."""
    spelling = _METHODS.get(function) if isinstance(function, str) else _SPELLINGS.get(function)
    # F.relu, F.relu6 and F.hardswish are (input, inplace=False).
    if spelling is not None and (kwargs.get("inplace") or any(args[1:2])):
        return spelling._replace(text=f"{spelling.text}(inplace)", inplace=True)
    return spelling


def is_leaf(module: nn.Module) -> bool:
    """Whether a module is one thing, to be replaced or kept, and not looked into: PyTorch's layers and our blocks."""
    if isinstance(module, BLOCKS):
        return True
    return type(module).__module__.startswith(("torch.nn.", "torch.ao.nn.")) and not isinstance(module, nn.Sequential)


# ---- names of calls ----------------------------------------------------------------------------------------


@dataclass
class _Frame:
    """A call of a module; one that is ``opaque`` is, or is within, a module that is not looked into."""

    name: str
    module: nn.Module
    opaque: bool
    used: set[str] = field(default_factory=set)


class CallNames:
    """Names the calls of a forward: the caller's name, then what it calls, numbered from the second call on.

    ``layer1.0.relu`` called again is ``layer1.0.relu_1``. A run and a trace of the same code give the same names.
    """

    def __init__(self) -> None:
        self._paths: dict[nn.Module, dict[nn.Module, str]] = {}
        self._frames: list[_Frame] = []

    @property
    def frame(self) -> _Frame | None:
        """The innermost call under way."""
        return self._frames[-1] if self._frames else None

    @property
    def callers(self) -> tuple[nn.Module, ...]:
        """The modules whose calls are under way, outermost first."""
        return tuple(frame.module for frame in self._frames)

    def enter(self, module: nn.Module, name: str | None = None) -> str:
        """A call of a module begins; a name may be given for the outermost."""
        if name is None:
            name = self._call(self._label(module)) if self._frames else ""
        opaque = bool(self._frames) and self._frames[-1].opaque
        self._frames.append(_Frame(name, module, opaque or is_leaf(module)))
        return name

    def leave(self) -> None:
        """It ends."""
        self._frames.pop()

    def function(self, label: str) -> str:
        """The name of a call of a function by the caller."""
        return self._call(label, taken=self._frames[-1].module._modules)

    def under_way(self, frame: _Frame) -> bool:
        """Whether a call has not ended."""
        return any(frame is other for other in self._frames)

    def _call(self, label: str, taken: Collection[str] = ()) -> str:
        frame = self._frames[-1]
        name, count = label, 0
        while name in frame.used or name in (frame.module._modules if count else taken):
            count += 1
            name = f"{label}_{count}"
        frame.used.add(name)
        return f"{frame.name}.{name}" if frame.name else name

    def _label(self, module: nn.Module) -> str:
        """A module's path below the caller; of a module that hangs elsewhere, what it is."""
        caller = self._frames[-1].module
        if caller not in self._paths:
            self._paths[caller] = {below: path for path, below in caller.named_modules()}
        return self._paths[caller].get(module, type(module).__name__.lower())


# ---- a run --------------------------------------------------------------------------------------------------


@dataclass
class Site:
    """One call of an activation in a forward of the example.

    ``callers`` are the modules whose calls were under way, outermost first, and ``frame`` the innermost of these
    calls; ``module`` is the activation module, or None for a function, and ``keyword`` whether it is called as
    ``module(input=x)``, a name that no block shares. ``reread`` says who reads the input again after
    an activation in place changed it: "" for nobody, "caller" for the forward that made the call, before it ended, and
    "elsewhere" for anybody else.
    """

    name: str
    sort: str
    text: str
    inplace: bool
    callers: tuple[nn.Module, ...]
    module: nn.Module | None
    frame: _Frame | None
    keyword: bool = False
    shape: tuple[int, ...] = ()
    dtype: torch.dtype = torch.float32
    device: torch.device | None = None
    reread: str = ""


class Observer(TorchFunctionMode):
    """Sees every call of an activation while a model runs, in order of execution.

    Activations in place write elsewhere meanwhile, so that reading their input again can be told from reading
    their output: what the run returns may not be what the model does.

    Attributes:
        sites: in order of execution.
        calls: how often each module ran.
        names: of each module's first call.
    """

    def __init__(self) -> None:
        super().__init__()
        self.sites: list[Site] = []
        self.calls: Counter[nn.Module] = Counter()
        self.names: dict[nn.Module, str] = {}
        self._calls = CallNames()
        self._overwritten: dict[int, tuple[Tensor, Site, _Frame | None]] = {}

    def __enter__(self) -> Observer:
        register = nn.modules.module
        self._hooks = (register.register_module_forward_pre_hook(self._enter),
                       register.register_module_forward_hook(self._leave))
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        for hook in self._hooks:
            hook.remove()

    def read(self, value: Any) -> None:
        """Note which overwritten inputs a value holds."""
        for tensor in pytree.tree_leaves(value):
            if isinstance(tensor, Tensor) and (entry := self._overwritten.get(_storage(tensor))):
                before, site, frame = entry
                by_caller = tensor is before and frame is not None and self._calls.under_way(frame)
                site.reread = "caller" if by_caller and site.reread != "elsewhere" else "elsewhere"

    def _enter(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        caller, callers = self._calls.frame, self._calls.callers
        name = self._calls.enter(module)
        self.calls[module] += 1
        self.names.setdefault(module, name)
        sort = sort_of(module)
        if sort is not None and not (caller and caller.opaque):
            text = f"nn.{type(module).__name__}" + ("(inplace)" if module.inplace else "")
            self.sites.append(Site(name, sort, text, module.inplace, callers, module, caller, keyword=not args))

    def _leave(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        self._calls.leave()

    def __torch_function__(self, function: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        # A getter, as of x.shape, reads no values; a view that one makes is seen when it is read itself.
        if self._overwritten and getattr(function, "__name__", "") != "__get__":
            self.read((args, kwargs))
        site = self._site(spelling_of(function, args, kwargs))
        if site is None:
            return function(*args, **kwargs)
        x = args[0] if args else kwargs["input"]
        site.shape, site.dtype, site.device = tuple(x.shape), x.dtype, x.device
        if site.inplace:
            self._overwritten[_storage(x)] = (x, site, site.frame)
        return FUNCTIONS[site.sort](x)

    def _site(self, spelling: Spelling | None) -> Site | None:
        """The site whose function is called: a new one, or that of the activation module under way."""
        frame = self._calls.frame
        if frame is None:
            return None
        if sort_of(frame.module) is not None:  # whose forward is one function, of whatever name
            return self.sites[-1] if self.sites and self.sites[-1].name == frame.name else None
        if spelling is None or frame.opaque:
            return None
        self.sites.append(Site(self._calls.function(spelling.sort), *spelling, self._calls.callers, None, frame))
        return self.sites[-1]


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


# ---- traces -------------------------------------------------------------------------------------------------


class Tracer(fx.Tracer):
    """``torch.fx.Tracer`` to which the modules of this package are leaves, as PyTorch's own layers are."""

    proxy_buffer_attributes = True

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, BLOCKS) or super().is_leaf_module(m, module_qualified_name)

    def trace(self, root: Any, concrete_args: dict[str, Any] | None = None) -> fx.Graph:
        return super().trace(_with_forward_of_its_own(root), concrete_args)


def _with_forward_of_its_own(root: Any) -> Any:
    """fx reads the arguments off the class, which all rewired modules have in common."""
    return fx.GraphModule(root, root.graphs[root.training]) if isinstance(root, Rewired) else root


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
            Exception: whatever the forward does with values that a trace does not have.
        """
        self._names.enter(module, name)
        parameters = inspect.signature(_with_forward_of_its_own(module).forward).parameters.values()
        defaults = {parameter.name: parameter.default for parameter in parameters
                    if parameter.default is not parameter.empty}
        return self.trace(module, defaults)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return m not in self._opened if self._opened is not None else is_leaf(m)

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
        node = super().create_node(kind, target, args, kwargs, *rest, **named)
        if kind in ("call_function", "call_method"):
            spelling = spelling_of(target, args, kwargs)
            if spelling is not None:
                node.meta.update(call=self._names.function(spelling.sort), callers=self._names.callers,
                                 spelling=spelling)
        return node


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
    """Give a module another's children, parameters, buffers and mode."""
    for kept in ("_parameters", "_buffers", "_non_persistent_buffers_set", "_modules", "training"):
        module.__dict__[kept] = other.__dict__[kept]
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
    later = _users_after(graph, node, source) if edit.site.inplace else []
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


def _users_after(graph: fx.Graph, node: fx.Node, source: fx.Node) -> list[fx.Node]:
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
