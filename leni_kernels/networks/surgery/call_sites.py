"""Where a network calls its ReLUs: how a call is spelt, what it is named, and a run that sees them all."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from ...conv_relu.modules import ConvReLU1d, ConvReLU2d, ConvReLU3d
from ...leni.modules import FoldedLENI2d, LENI2d
from ...pointwise.modules import AdaReLU, CReLU, FullyParametricReLU
from ...reborn.modules import FoldedReborn2d, Reborn2d

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
