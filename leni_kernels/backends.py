"""Which backend runs an operation, and why each other one does not.

An :class:`Operation` lists its backends, fastest first, and ends with the reference. Each backend answers
``why_not(call)`` with a reason in words, or None if it can serve. The first that can is chosen; a backend
asked for by name (:func:`use_backend` or ``LENI_KERNELS_BACKEND``) either serves or raises with its reason.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

NAMES = ("cpp", "triton", "cuda", "reference")


class BackendUnavailableError(RuntimeError):
    """A backend that was asked for by name cannot serve the call; the message says why."""


class Backend(NamedTuple):
    """One way to run an operation: ``why_not(call)`` says why it cannot, or None; ``run(call)`` does it."""

    name: str
    why_not: Callable[[Any], str | None]
    run: Callable[[Any], Tensor]


class Operation:
    """A named operation and its backends, the preferred one first."""

    def __init__(self, name: str, *backends: Backend) -> None:
        self.name = name
        self.backends = backends

    def __call__(self, call: Any) -> Tensor:
        backend = self._choose(call)
        if _decisions is not None:
            _decisions.append(Decision(self.name, backend.name, self._reasons(call, backend)))
        return backend.run(call)

    def _choose(self, call: Any) -> Backend:
        if _forced is not None:
            return self._named(_forced, call)
        for backend in self.backends[:-1]:
            if backend.why_not(call) is None:
                return backend
        return self.backends[-1]

    def _named(self, name: str, call: Any) -> Backend:
        for backend in self.backends:
            if backend.name == name:
                reason = backend.why_not(call)
                if reason is None:
                    return backend
                raise BackendUnavailableError(f"backend '{name}' cannot run {self.name}: {reason}")
        raise BackendUnavailableError(f"backend '{name}' cannot run {self.name}: {_no_kernel(self.name)}")

    def _reasons(self, call: Any, chosen: Backend) -> dict[str, str]:
        offered = {backend.name: backend for backend in self.backends}
        preferred = f"'{chosen.name}' {'was asked for by name' if _forced else 'is preferred'}"
        reasons = {}
        for name in NAMES:
            if name == chosen.name:
                continue
            reason = offered[name].why_not(call) if name in offered else _no_kernel(self.name)
            reasons[name] = reason or preferred
        return reasons


def _no_kernel(operation: str) -> str:
    return f"{operation} has no kernel of this kind"


# ---- a backend by name -------------------------------------------------------------------------------------


def _known(name: str | None) -> str | None:
    if name is not None and name not in NAMES:
        raise ValueError(f"unknown backend {name!r}; the backends are {', '.join(NAMES)}")
    return name


# A plain module global rather than a context variable: torch.compile reads it and guards on it.
_forced: str | None = _known(os.environ.get("LENI_KERNELS_BACKEND") or None)


@contextmanager
def use_backend(name: str | None) -> Iterator[None]:
    """Run every operation inside the ``with`` block on the backend ``name``, in all threads of the process.

    ``name`` is "cpp", "triton", "cuda" or "reference"; None chooses automatically again. An operation that
    the backend cannot serve raises :class:`BackendUnavailableError`; nothing falls back. The environment
    variable ``LENI_KERNELS_BACKEND`` does the same for a whole process.

    Raises:
        ValueError: for an unknown name.
    """
    global _forced
    before, _forced = _forced, _known(name)
    try:
        yield
    finally:
        _forced = before


# ---- explain -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Decision:
    """The backend one operation would run on, and why each other one would not."""

    operation: str
    backend: str
    why_not: dict[str, str]

    def __str__(self) -> str:
        lines = [f"{self.operation}: runs on '{self.backend}'"]
        lines += [f"  not '{name}': {reason}" for name, reason in self.why_not.items()]
        return "\n".join(lines)


class Explanation(tuple[Decision, ...]):
    """The decisions of one call, in order of execution; prints as one paragraph each."""

    __slots__ = ()

    def __str__(self) -> str:
        return "\n".join(map(str, self)) or "no leni_kernels operation is called"


_decisions: list[Decision] | None = None


class _NumbersAreOne(TorchDispatchMode):
    """Lets a call on fake tensors, which hold no data, read numbers out of them."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return 1 if func is torch.ops.aten._local_scalar_dense.default else func(*args, **kwargs or {})


def explain(module_or_function: Callable[..., Any], *inputs: Any, **options: Any) -> Explanation:
    """Tell which backend each operation of a call would run on, and why each other one would not.

    Nothing is computed and no state changes: the call is made on fake tensors (shapes, dtypes, devices and
    strides, without data), so whole networks can be explained at no cost. Where a network reads a number out
    of a tensor, as batch norm without momentum does, it reads 1.

    Args:
        module_or_function: an ``nn.Module`` (of this package, or a network that contains some) or one of the
            functions in ``leni_kernels.functional``.
        *inputs, **options: what it would be called with.

    Raises:
        BackendUnavailableError: if a backend asked for by name cannot serve.
    """
    from torch._subclasses import FakeTensorMode

    global _decisions
    fake_mode = FakeTensorMode(allow_non_fake_inputs=True)

    def fake(value: Any) -> Any:
        return fake_mode.from_tensor(value) if isinstance(value, Tensor) else value

    inputs = torch.utils._pytree.tree_map(fake, inputs)
    options = torch.utils._pytree.tree_map(fake, options)
    before, _decisions = _decisions, []
    try:
        with fake_mode, _NumbersAreOne():
            if isinstance(module_or_function, nn.Module):
                state = {name: fake(tensor) for name, tensor in (*module_or_function.named_parameters(),
                                                                 *module_or_function.named_buffers())}
                torch.func.functional_call(module_or_function, state, inputs, options)
            else:
                module_or_function(*inputs, **options)
        return Explanation(_decisions)
    finally:
        _decisions = before
