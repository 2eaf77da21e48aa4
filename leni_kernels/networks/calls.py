"""The calls of modules that are under way while a model runs, and what they are called."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from types import FrameType

import torch
from torch import nn


@dataclass(eq=False)
class Frame:
    """A call of a module; one that is ``opaque`` is, or is within, a module that is not looked into."""

    name: str
    module: nn.Module
    opaque: bool
    used: set[str] = field(default_factory=set)
    children: int = 0
    """How many modules it called."""


class Calls:
    """Names the calls of a run: the caller's name, then what it calls, numbered from the second call on.

    ``layer1.0.relu`` called again is ``layer1.0.relu_1``.

    Args:
        is_leaf: whether a module is not looked into.

    Attributes:
        frames: the calls under way, outermost first.
    """

    def __init__(self, is_leaf: Callable[[nn.Module], bool]) -> None:
        self.frames: list[Frame] = []
        self._is_leaf = is_leaf
        self._paths: dict[nn.Module, dict[nn.Module, str]] = {}

    @property
    def innermost(self) -> Frame | None:
        """The last call that began."""
        return self.frames[-1] if self.frames else None

    @property
    def callers(self) -> tuple[nn.Module, ...]:
        """The modules whose calls are under way, outermost first."""
        return tuple(frame.module for frame in self.frames)

    def enter(self, module: nn.Module) -> Frame:
        """A call of a module begins."""
        name, caller = "", self.innermost
        if caller is not None:
            name = self._call(position_of(module, caller) or self._label(module, caller.module))
            caller.children += 1
        opaque = self._is_leaf(module) or (caller is not None and caller.opaque)
        self.frames.append(Frame(name, module, opaque))
        return self.frames[-1]

    def leave(self, module: nn.Module) -> None:
        """It ends, and with it those within that ended by an exception."""
        while self.frames and self.frames.pop().module is not module:
            pass

    def name_of_function(self, label: str) -> str:
        """The name of a call of a function, which no attribute of the caller has."""
        return self._call(label, taken=names_in(self.frames[-1].module))

    def _call(self, label: str, taken: Collection[str] = ()) -> str:
        frame = self.frames[-1]
        name, count = label, 0
        while name in frame.used or name in (names_in(frame.module) if count else taken):
            count += 1
            name = f"{label}_{count}"
        frame.used.add(name)
        return f"{frame.name}.{name}" if frame.name else name

    def _label(self, module: nn.Module, caller: nn.Module) -> str:
        """A module's path below the caller; of a module that hangs elsewhere, what it is."""
        if caller not in self._paths:
            self._paths[caller] = {below: path for path, below in caller.named_modules()}
        return self._paths[caller].get(module, type(module).__name__.lower())


def names_in(module: nn.Module) -> set[str]:
    """The attributes that a module has already."""
    return {*dir(type(module)), *vars(module), *module._modules, *module._parameters, *module._buffers}


def position_of(module: nn.Module, caller: Frame | None) -> str | None:
    """Where in an nn.Sequential the module is that it calls next; None of other callers."""
    if caller is None or type(caller.module).forward is not nn.Sequential.forward:
        return None
    name = [*caller.module._modules, ""][min(caller.children, len(caller.module))]
    return name if caller.module._modules.get(name) is module else None


_NOT_THE_USERS = (os.path.dirname(torch.__file__) + os.sep, os.path.dirname(__file__) + os.sep)


def calling_frame() -> FrameType:
    """The innermost frame that is neither PyTorch's nor of a file here."""
    frame = sys._getframe(1)
    while frame.f_code.co_filename.startswith(_NOT_THE_USERS):
        frame = frame.f_back
    return frame
