"""Autograd for operators, at little cost a call.

``torch.library.register_autograd`` walks through all arguments at every call, which takes longer than a kernel on a
small activation. Here an operator gets a ``torch.autograd.Function``, which callers in eager mode apply directly, and
which PyTorch's dispatcher finds under the operator's name for everybody else: ``torch.ops``, the compiler, exporters.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

_LIBRARY = torch.library.Library("leni_kernels", "FRAGMENT")

_BelowAutograd = torch._C._AutoDispatchBelowAutograd
"""Calls operators as they are below autograd."""

_launches: dict[Any, Callable[..., Any]] = {}
"""Of operators in Python, what runs on tensors at once, without what PyTorch does around it at every call."""


def launch_at_once(operator: Any, launch: Callable[..., Any]) -> None:
    """Say what an operator does with tensors that nobody traces; for what is made of it afterwards."""
    _launches[operator] = launch


def eager(operator: Any) -> Callable[..., Any]:
    """The operator, or what it launches where its tensors are plain ones and nobody traces or intercepts calls."""
    launch = _launches.get(operator)
    if launch is None:
        return operator

    def call(*inputs: Any) -> Any:
        return operator(*inputs) if intercepted(inputs[0]) else launch(*inputs)

    return call


def unframed(operator: Any) -> Callable[..., Any]:
    """As :func:`eager`, but without the frame in Python of an operator's call, for where nobody compiles."""
    return eager(operator) if operator in _launches else operator._op


def intercepted(tensor: Tensor) -> bool:
    """Whether somebody traces calls, or sees each one, of a mode, a transform or a tensor that is no plain one."""
    return (torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack() > 0
            or torch._C._are_functorch_transforms_active() or torch._C._get_tracing_state() is not None
            or type(tensor) not in (Tensor, torch.nn.Parameter))


def define(schema: str, function: Callable[..., Any], fake: Callable[..., Any]) -> Any:
    """Define an operator of this package in Python, for CPUs and GPUs, without autograd; returns it."""
    name = schema[:schema.index("(")]
    _LIBRARY.define(schema)
    for device in ("CPU", "CUDA"):
        _LIBRARY.impl(name, function, device)
    torch.library.register_fake(f"leni_kernels::{name}", fake)
    return getattr(torch.ops.leni_kernels, name).default


def without_gradients(operator: Any) -> Callable[..., Any]:
    """What calls an operator whose results have no gradients, whoever asks for some."""
    at_once = unframed(operator)

    def call(*inputs: Any) -> Any:
        if torch.compiler.is_compiling():
            with torch.no_grad():
                return operator(*inputs)
        with _BelowAutograd():
            return at_once(*inputs)

    return call


def once_differentiable(operator: Any, message: str) -> Callable[..., Any]:
    """Register that nothing can be differentiated through a backward's operator, which raises the message.

    Returns what calls it.
    """

    def raise_it(ctx: Any, *grads: Tensor) -> None:
        raise NotImplementedError(message)

    torch.library.register_autograd(operator._schema.name, raise_it, setup_context=lambda *_, **__: None)

    at_once = unframed(operator)

    def call(*inputs: Any) -> Any:
        if torch.is_grad_enabled() or torch.compiler.is_compiling():
            return operator(*inputs)
        with _BelowAutograd():
            return at_once(*inputs)

    return call


def differentiable(operator: Any, save: Callable[[Any, tuple[Any, ...], Any], None],
                   backward: Callable[..., Any]) -> Callable[..., Any]:
    """Register autograd for an operator of this package; returns what calls it, with all of its arguments.

    ``save(ctx, inputs, output)`` keeps what ``backward(ctx, *grads)`` needs; ctx is an ``autograd.Function``'s.
    """

    at_once = unframed(operator)

    class Differentiable(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *inputs: Any) -> Any:
            with _BelowAutograd():
                output = at_once(*inputs)
            save(ctx, inputs, output)
            return output

    Differentiable.backward = staticmethod(backward)
    apply = Differentiable.apply

    def run(*inputs: Any) -> Any:
        if torch.is_grad_enabled():
            return apply(*inputs)
        with _BelowAutograd():
            return at_once(*inputs)

    defaults = [argument.default_value for argument in operator._schema.arguments]

    def run_as_operator(*inputs: Any) -> Any:
        return run(*inputs, *defaults[len(inputs):])  # the dispatcher hands over no defaults

    # An operator of Triton's has autograd by itself, and torch 2.11 warns where it is exchanged.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        _LIBRARY.impl(operator._schema.name, run_as_operator, "Autograd", allow_override=True)

    def call(*inputs: Any) -> Any:
        if torch.compiler.is_compiling():
            return operator(*inputs)
        return apply(*inputs) if torch.is_grad_enabled() else run(*inputs)

    return call


def needed(gradients: tuple[Tensor | None, ...], needs: Sequence[bool]) -> tuple[Tensor | None, ...]:
    """The gradients as autograd takes them: None for each that is not needed."""
    return tuple(gradient if need else None for gradient, need in zip(gradients, needs, strict=True))
