"""Which backend runs an operation, and why each other one does not.

An :class:`Operation` lists its backends, fastest first, and ends with the reference. Each backend answers
``why_not(call)`` with a reason in words, or None if it can serve. The first that can is chosen; a backend
asked for by name (:func:`use_backend` or ``LENI_KERNELS_BACKEND``) either serves or raises with its reason.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from . import checks
from .operators import watched

NAMES = ("cpp", "triton", "reference")


class BackendUnavailableError(RuntimeError):
    """A backend that was asked for by name cannot serve the call; the message says why."""


class KernelFailure(RuntimeError):
    """A kernel could not be compiled for a GPU or loaded, as the message says; nothing ran."""

    def __init__(self, kernel: str, gpu: str, kind: str, reason: str) -> None:
        super().__init__(f"kernel {kernel} did not compile on {gpu}: {reason}")
        self.gpu, self.kind = gpu, kind


class Backend(NamedTuple):
    """One way to run an operation: ``why_not(call)`` says why it cannot, or None; ``run(call)`` does it.

    ``how(call)`` says in words what else is worth knowing of that. ``why_slow(call)`` says why it takes longer than
    the reference, which then runs in its place, or None; asked for by name it runs all the same.
    """

    name: str
    why_not: Callable[[Any], str | None]
    run: Callable[[Any], Tensor]
    how: Callable[[Any], tuple[str, ...]] = lambda call: ()
    why_slow: Callable[[Any], str | None] = lambda call: None


class Operation:
    """A named operation and its backends, the preferred one first.

    Where a kernel of a backend cannot be compiled, and the backend was not asked for by name, the call runs on the
    next one with a warning, and later ones of its kind go there at once. Under torch.compile, which compiles the
    kernels itself, its error is raised: a call that is traced runs none.
    """

    def __init__(self, name: str, *backends: Backend) -> None:
        self.name = name
        self.backends = backends
        self._kernels = backends[:-1]

    def __call__(self, call: Any) -> Tensor:
        backend = self.backends[-1]
        if _forced is None:
            for kernel in self._kernels if _why_no_kernels(call) is None else ():
                if kernel.why_not(call) is None and not (_any_failed and _why_failed(self.name, kernel.name, call)):
                    if kernel.why_slow(call) is None:
                        backend = kernel
                    break
        else:
            backend = self._named(_forced, call)
        if _decisions is not None:
            _decisions.append(Decision(self.name, backend.name, self._reasons(call, backend), backend.how(call)))
        try:
            return backend.run(call)
        except KernelFailure as failure:
            _remember(failure, self.name, backend.name, call)
        return self(call)

    def _why_not(self, backend: Backend, call: Any) -> str | None:
        if backend is self.backends[-1]:
            return None
        return _why_no_kernels(call) or backend.why_not(call) or _why_failed(self.name, backend.name, call)

    def _named(self, name: str, call: Any) -> Backend:
        for backend in self.backends:
            if backend.name == name:
                reason = self._why_not(backend, call)
                if reason is None:
                    return backend
                raise _unavailable(name, self.name, reason)
        raise _unavailable(name, self.name, _no_kernel(self.name))

    def _reasons(self, call: Any, chosen: Backend) -> dict[str, str]:
        offered = {backend.name: backend for backend in self.backends}
        preferred = f"'{chosen.name}' {'was asked for by name' if _forced else 'is preferred'}"
        reasons = {}
        for name in NAMES:
            if name == chosen.name:
                continue
            if name in offered:
                reason = self._why_not(offered[name], call) or (None if _forced else offered[name].why_slow(call))
            else:
                reason = _no_kernel(self.name)
            reasons[name] = reason or preferred
        return reasons


def _no_kernel(operation: str) -> str:
    return f"{operation} has no kernel of this kind"


def _unavailable(name: str, operation: str, reason: str) -> BackendUnavailableError:
    return BackendUnavailableError(f"backend '{name}' cannot run {operation}: {reason}")


def _why_no_kernels(call: Any) -> str | None:
    """Why what is around a call needs PyTorch's own operators, whose insides it knows, or None if it does not."""
    if watched():
        if torch._C._are_functorch_transforms_active():
            return "it is inside a transform of torch.func, and kernels have no rules for these"
        if torch.onnx.is_in_onnx_export():
            return "it is exported to ONNX, which has no such operator"
    if forward_ad._current_level >= 0 and any(map(_has_tangent, tree_leaves(call))):
        return "forward-mode differentiation goes through it, and kernels have no rules for that"
    return None


def _has_tangent(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and forward_ad.unpack_dual(leaf).tangent is not None


def constant_to_the_compiler(function: Any) -> Any:
    """``torch.compiler.assume_constant_result`` without importing the compiler: tracing calls ``function`` as it is."""
    function._dynamo_marked_constant = True
    return function


# ---- kernels that do not compile ---------------------------------------------------------------------------

_failures: dict[tuple[Any, ...], str] = {}
"""The kinds of calls, of an operation on a backend, whose kernels did not compile, and why."""

_any_failed = False
"""Whether there are any: a plain bool, which takes no time to read and which torch.compile guards on."""

_warned: dict[tuple[str, str, str], object] = {}
"""What was warned of: an operation, a GPU, and the kind of failure."""


def with_reference(operation: str, backend: str, run: Callable[..., Any],
                   reference: Callable[..., Any]) -> Callable[..., Any]:
    """``run``, or ``reference`` of the same arguments where a kernel of it does not compile.

    For the passes of backward, whose backend was chosen in forward; otherwise as :class:`Operation` does it.
    """

    def run_or_reference(*call: Any) -> Any:
        reason = _why_failed(operation, backend, call)
        if reason is None:
            try:
                return run(*call)
            except KernelFailure as failure:
                _remember(failure, operation, backend, call)
        elif _forced == backend:
            raise _unavailable(backend, operation, reason)
        return reference(*call)

    return run_or_reference


def gradients_of(definition: Callable[..., Tensor], inputs: tuple[Tensor | None, ...], needs: tuple[bool, ...],
                 grad: Tensor) -> tuple[Tensor | None, ...]:
    """The gradients of ``definition(*inputs)`` by autograd for that of its result, None where not needed.

    They can be differentiated again where grad mode is on, as it is in a backward with ``create_graph``.
    """
    again = torch.is_grad_enabled()

    def leaf(tensor: Tensor | None, needed: bool) -> Tensor | None:
        if tensor is None or (again and tensor.requires_grad):
            return tensor
        return tensor.detach().requires_grad_(needed)

    leaves = list(map(leaf, inputs, needs))
    with torch.enable_grad():
        y = definition(*leaves)
    wanted = [leaf for leaf, needed in zip(leaves, needs, strict=True) if needed]
    gradients = iter(torch.autograd.grad(y, wanted, grad, create_graph=again))
    return tuple(next(gradients) if needed else None for needed in needs)


def _remember(failure: KernelFailure, operation: str, backend: str, call: Any) -> None:
    """Keep calls of this kind off the backend, and warn once; or raise, if the backend was asked for by name."""
    global _any_failed
    reason = f"its {failure}"
    _any_failed = True
    _failures[_kind(operation, backend, call)] = reason
    if _forced == backend:
        raise _unavailable(backend, operation, reason) from failure
    # setdefault is one step, even where several threads fail at once; the failure itself would keep tensors alive.
    first = object()
    if _warned.setdefault((operation, failure.gpu, failure.kind), first) is first:
        warnings.warn(f"leni_kernels: {operation} runs slower than it could, without backend '{backend}': {reason}. "
                      "Please report this, with the versions of torch and triton.", stacklevel=2)


def _why_failed(operation: str, backend: str, call: Any) -> str | None:
    if not _any_failed:
        return None
    if torch.compiler.is_compiling() or any(
            isinstance(leaf, Tensor) and not all(isinstance(size, int) for size in leaf.shape)
            for leaf in tree_leaves(call)):
        return _why_any_failed(operation, backend)
    return _failures.get(_kind(operation, backend, call))


@constant_to_the_compiler
def _why_any_failed(operation: str, backend: str) -> str | None:
    # Where a call is traced, sizes may be symbols, which say nothing of its kind: one failure is enough.
    return next((reason for kind, reason in _failures.items() if kind[:2] == (operation, backend)), None)


def _kind(operation: str, backend: str, call: Any) -> tuple[Any, ...]:
    """What a call's kernels depend on: all but the sizes of its batch and of its feature maps."""
    leaves = tree_leaves(call)
    x = next(leaf for leaf in leaves if isinstance(leaf, Tensor))
    return operation, backend, x.device, checks.autocast_dtype(x), *(_outline(leaf, x) for leaf in leaves)


def _outline(leaf: Any, x: Tensor) -> Any:
    if not isinstance(leaf, Tensor):
        return leaf if isinstance(leaf, (bool, int, float, str)) else None
    if leaf.dim() == x.dim() > 1 and (leaf.shape[0], *leaf.shape[2:]) == (x.shape[0], *x.shape[2:]):
        return leaf.dtype, leaf.shape[1], leaf.stride(1) == 1
    return leaf.dtype, leaf.shape


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

    An operation that the backend cannot serve raises :class:`BackendUnavailableError`; nothing falls back. A
    backward runs on the backend of its forward; where one of its kernels does not compile, it raises inside the
    block and falls back outside. The environment variable ``LENI_KERNELS_BACKEND`` does the same for a whole process.

    Args:
        name: "cpp", "triton" or "reference"; None chooses automatically again.

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
    how: tuple[str, ...] = ()
    """What is worth knowing of how it runs there: copies that it makes, the precision of products."""

    def __str__(self) -> str:
        lines = [f"{self.operation}: runs on '{self.backend}'", *(f"  {text}" for text in self.how)]
        lines += [f"  not '{name}': {reason}" for name, reason in self.why_not.items()]
        return "\n".join(lines)


class Explanation(tuple[Decision, ...]):
    """The decisions of one call, in order of execution; prints as one paragraph each."""

    __slots__ = ()

    def __str__(self) -> str:
        return "\n".join(map(str, self)) or "no leni_kernels operation is called"


_decisions: list[Decision] | None = None


def explaining() -> bool:
    """Whether the call is one of :func:`explain`'s."""
    return _decisions is not None


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
        *inputs: what it would be called with.
        **options: what it would be called with by name.

    Returns:
        A tuple of decisions, one for each operation in order of execution, which prints as text. A decision has
        ``operation`` and ``backend``, names; ``why_not``, a dictionary from every other backend's name to its
        reason; and ``how``, what else is worth knowing: copies that are made, the precision of products.

    Raises:
        BackendUnavailableError: if a backend asked for by name cannot serve.
    """
    from torch._subclasses import FakeTensorMode

    global _decisions
    fake_mode = FakeTensorMode(allow_non_fake_inputs=True)

    def fake(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        of_primal = fake_mode.from_tensor(value)
        if forward_ad._current_level < 0 or not _has_tangent(value):
            return of_primal
        return forward_ad.make_dual(of_primal, torch.zeros_like(of_primal))

    # What hooks compute of fake tensors is not to stay.
    modules = module_or_function.modules() if isinstance(module_or_function, nn.Module) else ()
    computed = [(vars(module), name, value) for module in modules for name, value in vars(module).items()
                if isinstance(value, Tensor)]
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
        for attributes, name, value in computed:
            attributes[name] = value
