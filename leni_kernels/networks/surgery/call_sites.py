"""Where a network calls its ReLUs: how a call is spelt, what it is named, and a run that sees them all."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.overrides import TorchFunctionMode

from ...common.leaf import Leaf
from ...conv_relu.modules import ConvReLU1d, ConvReLU2d, ConvReLU3d
from ..calls import Calls, Frame, calling_frame, position_of
from ..examples import tensors_in
from ..forwards import Place, UnplacedError, place_of
from .past import ActivationPast

MODULES: dict[type[nn.Module], str] = {nn.ReLU: "relu", nn.ReLU6: "relu6", nn.Hardswish: "hardswish"}
"""The activations, and the sort of each: the name of its function."""
CONVOLUTIONS: dict[type[nn.Module], Any] = {nn.Conv1d: ConvReLU1d, nn.Conv2d: ConvReLU2d, nn.Conv3d: ConvReLU3d}
"""What may take in the activations that it reads."""


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


def activation(sort: str, inplace: bool = False) -> nn.Module:
    """The module of a sort."""
    return next(module for module, of in MODULES.items() if of == sort)(inplace)


def sort_of(module: nn.Module) -> str | None:
    """The sort of an activation module; a subclass with a forward of its own may compute something else."""
    return next((sort for known, sort in MODULES.items() if isinstance(module, known)
                 and type(module).forward is known.forward and "forward" not in vars(module)), None)


def spelling_of(function: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Spelling | None:
    """How a function, or a method of which fx gives the name, spells an activation."""
    spelling = _SPELLINGS.get(getattr(Tensor, function, None) if isinstance(function, str) else function)
    # F.relu, F.relu6 and F.hardswish are (input, inplace=False).
    if spelling is not None and (kwargs.get("inplace") or any(args[1:2])):
        return spelling._replace(text=f"{spelling.text}(inplace)", inplace=True)
    return spelling


def is_leaf(module: nn.Module) -> bool:
    """Whether a module is one thing, to be replaced or kept, and not looked into: PyTorch's layers and our blocks."""
    if isinstance(module, (Leaf, ActivationPast)):
        return not isinstance(module, ActivationPast)
    transparent = (nn.Sequential, nn.ModuleList, nn.ModuleDict, nn.DataParallel, nn.parallel.DistributedDataParallel)
    return type(module).__module__.startswith(("torch.nn.", "torch.ao.nn.")) and not isinstance(module, transparent)


# ---- a run --------------------------------------------------------------------------------------------------


class Spot(NamedTuple):
    """Where in the network a call is made: by which module, and of it the position in an nn.Sequential, the number
    among the activations of a GraphModule, or the place in the source."""

    module: nn.Module
    place: str | int | Place


@dataclass
class Site:
    """One call of an activation in a forward of the example.

    ``callers`` are the modules whose calls were under way, outermost first, and ``frame`` the innermost of these
    calls; ``module`` is the activation module, or None for a function, and ``keyword`` whether it is called as
    ``module(input=x)``, a name that no block shares. ``spot`` is where it is called, or ``unplaced`` says why that
    cannot be told; ``loose`` is whether another call there may be of something else, and ``visit`` how often that spot
    was come to before. ``within`` is the layer of PyTorch that it is in, and which is not opened. ``reread`` says who
    reads the input again after an activation in place changed it: "" for nobody, "caller" for the forward that made the
    call, in which each function on the way to it knows it by ``names``, and "elsewhere" for anybody else. The output is
    read by ``convolutions``, by the names of their calls, and by other ``readers``; ``changed`` is whether one of them
    changes it, or the input, in place.
    """

    name: str
    sort: str
    text: str
    inplace: bool
    callers: tuple[nn.Module, ...]
    module: nn.Module | None
    frame: Frame | None
    keyword: bool = False
    spot: Spot | None = None
    unplaced: str = ""
    loose: bool = False
    visit: int = 0
    within: str = ""
    shape: tuple[int, ...] = ()
    dtype: torch.dtype = torch.float32
    device: torch.device | None = None
    names: tuple[tuple[str, ...], ...] = ()
    reread: str = ""
    convolutions: dict[str, nn.Module] = field(default_factory=dict)
    readers: list[str] = field(default_factory=list)
    changed: bool = False

    @property
    def placed(self) -> bool:
        """Whether its call can be found in the source."""
        return self.spot is not None and isinstance(self.spot.place, Place)

    @property
    def key(self) -> Any:
        """Tells where it is called."""
        return (self.spot, self.module) if self.spot else self.module or self.name


class Observer(TorchFunctionMode):
    """Sees every call of an activation while a model runs, in order of execution, and who reads its output.

    A call is named after the caller and what it calls, and numbered from the second on: ``layer1.0.relu_1``.
    Activations in place write elsewhere meanwhile, so that reading their input again can be told from reading
    their output: what the run returns may not be what the model does.

    Attributes:
        sites: in order of execution.
        calls: how often each module ran.
        visits: how often each :attr:`Site.key` was come to.
        reads: what each call of a convolution read: the activation whose output it was given, or None.
        spots: where convolutions are called, if that is in the source.
    """

    def __init__(self) -> None:
        super().__init__()
        self.sites: list[Site] = []
        self.calls: Counter[nn.Module] = Counter()
        self.visits: Counter[Any] = Counter()
        self.reads: dict[nn.Module, list[Site | None]] = defaultdict(list)
        self.spots: dict[nn.Module, set[Spot]] = defaultdict(set)
        self._calls = Calls(is_leaf)
        self._inputs: dict[int, tuple[Tensor, Site]] = {}
        self._outputs: dict[int, tuple[Tensor, Site]] = {}
        self._versions: list[tuple[Tensor, int, Site]] = []

    def __enter__(self) -> Observer:
        register = nn.modules.module
        self._hooks = (register.register_module_forward_pre_hook(self._enter),
                       register.register_module_forward_hook(self._leave, always_call=True))
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        for hook in self._hooks:
            hook.remove()
        for tensor, version, site in self._versions:
            site.changed |= _version(tensor) != version

    def returned(self, value: Any) -> None:
        """What the model returns is read too."""
        self._read(value, "the output")

    def _enter(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        caller, callers = self._calls.innermost, self._calls.callers
        position = position_of(module, caller)
        frame, sort = self._calls.enter(module), sort_of(module)
        self.calls[module] += 1
        if sort is not None:
            text = "nn." * (type(module) in MODULES) + type(module).__name__ + "(inplace)" * bool(module.inplace)
            site = Site(frame.name, sort, text, module.inplace, callers, module, caller, not args)
            self._add(site, lambda called: called is module, position)
        elif type(module) in CONVOLUTIONS and not (caller and caller.opaque):
            self._convolution(module, frame.name, args)
            if caller is not None and position is None:
                with suppress(UnplacedError):
                    place, loose = place_of(caller.module, calling_frame(), lambda called: called is module)
                    self.spots[module].update(() if loose else [Spot(caller.module, place)])

    def _leave(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        transparent = not is_leaf(module) or sort_of(module) is not None or type(module) is nn.Identity
        if isinstance(output, Tensor) and not transparent:  # though it may be its input, as of dropout in eval mode
            self._outputs.pop(_storage(output), None)
        self._calls.leave(module)

    def _add(self, site: Site, is_activation: Callable[[Any], bool], position: str | None = None) -> None:
        self.sites.append(site)
        if site.frame is None:
            return
        if site.frame.opaque:
            site.within = f"nn.{type(next(module for module in site.callers if is_leaf(module))).__name__}"
        elif position is not None:
            site.spot = Spot(site.frame.module, position)
        elif isinstance(site.frame.module, fx.GraphModule):
            site.spot = Spot(site.frame.module, sum(other.frame is site.frame for other in self.sites) - 1)
        else:
            try:
                place, site.loose = place_of(site.frame.module, calling_frame(), is_activation)
                site.spot = Spot(site.frame.module, place)
            except UnplacedError as error:
                site.unplaced = str(error)
        site.visit = self.visits[site.key]
        self.visits[site.key] += 1

    def _read(self, value: Any, reader: str) -> None:
        """Note of which activations a reader is given the output."""
        for tensor in tensors_in(value):
            for site, _ in self._known(tensor):
                site.readers.append(reader)

    def _known(self, tensor: Tensor) -> Iterator[tuple[Site, bool]]:
        """The activations whose output a tensor is, or a part of it, and whether it is all of it.

        After an activation in place that is its input too, which it is noted to be read again.
        """
        key = _storage(tensor)
        if key in self._outputs:
            output, site = self._outputs[key]
            yield site, tensor is output
        if key in self._inputs:
            before, site = self._inputs[key]
            by_caller = tensor is before and any(site.names) and site.frame in self._calls.frames
            site.reread = "caller" if by_caller and site.reread != "elsewhere" else "elsewhere"
            yield site, tensor is before

    def _convolution(self, conv: nn.Module, name: str, args: tuple[Any, ...]) -> None:
        known = list(self._known(args[0])) if len(args) == 1 else []
        whole = len(known) == 1 and known[0][1]
        self.reads[conv].append(known[0][0] if whole else None)
        for site, _ in known:
            if whole:
                site.convolutions[name] = conv
            else:
                site.readers.append(name)

    def __torch_function__(self, function: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        site = self._site(spelling_of(function, args, kwargs))
        layer = next((frame for frame in self._calls.frames if frame.opaque), None)
        # A getter, as of x.shape, reads no values; a view that one makes is seen when it is read itself.
        name = getattr(function, "__name__", "")
        if name not in ("__get__", "size", "dim") and not (layer and type(layer.module) in CONVOLUTIONS):
            self._read((args, kwargs), site.name if site else layer.name if layer else name.strip("_"))
        if site is None:
            return function(*args, **kwargs)
        x = args[0] if args else kwargs["input"]
        site.shape, site.dtype, site.device = tuple(x.shape), x.dtype, x.device
        output = getattr(F, site.sort)(x)
        if site.inplace:
            for other, _ in self._known(x):
                other.changed = True
            self._inputs[_storage(x)] = (x, site)
            site.names = tuple(_names_of(x, len(site.spot.place.calls))) if site.placed else ()
        self._outputs[_storage(output)] = (output, site)
        self._versions += [(x, _version(x), site), (output, _version(output), site)]
        return output

    def _site(self, spelling: Spelling | None) -> Site | None:
        """The site whose function is called: a new one, or that of the activation module under way."""
        frame = self._calls.innermost
        if frame is not None and sort_of(frame.module) is not None:  # whose forward is one function, of whatever name
            site = next(site for site in reversed(self.sites) if site.name == frame.name)
        elif frame is None or spelling is None:
            return None
        else:
            site = Site(self._calls.name_of_function(spelling.sort), *spelling, self._calls.callers, None, frame)
            self._add(site, lambda called: _sort_of_function(called) == spelling.sort)
        return None if site.within else site


def _names_of(x: Tensor, depth: int) -> Iterator[tuple[str, ...]]:
    """The local variables that hold a tensor, of the functions on the way to the innermost of them."""
    frames = [calling_frame()]
    while len(frames) < depth:
        frames.insert(0, frames[0].f_back)
    for frame in frames:
        code = frame.f_code
        # Within an expression, an assignment would be another scope's.
        variables = set() if code.co_name in ("<genexpr>", "<listcomp>") else {*code.co_varnames, *code.co_cellvars}
        yield tuple(sorted(name for name, value in frame.f_locals.items() if value is x and name in variables))


def _sort_of_function(value: Any) -> str | None:
    while isinstance(value, partial):
        value = value.func
    with suppress(TypeError):  # it cannot be hashed
        return _SPELLINGS[value].sort if value in _SPELLINGS else None


def _storage(tensor: Tensor) -> int:
    try:
        with torch._C.DisableTorchFunction():
            return tensor.untyped_storage()._cdata
    except (NotImplementedError, RuntimeError):  # as of sparse tensors
        return id(tensor)


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version
