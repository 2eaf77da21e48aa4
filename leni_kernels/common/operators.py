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
from torch.autograd import forward_ad

_LIBRARY = torch.library.Library("leni_kernels", "FRAGMENT")

_BelowAutograd = torch._C._AutoDispatchBelowAutograd
"""Calls operators as they are below autograd."""

_launches: dict[Any, Callable[..., Any]] = {}
"""Of operators in Python, what runs on tensors at once, without what PyTorch does around it at every call."""


def launch_at_once(operator: Any, launch: Callable[..., Any]) -> None:
    """Say what an operator does with tensors that nobody traces; for what is made of it afterwards."""
    _launches[operator] = launch


def unframed(operator: Any) -> Callable[..., Any]:
    """What an operator runs, without the frame in Python of its call, for where nobody compiles.

    It is what the operator launches, where its tensors are plain ones and nobody traces or intercepts calls.
    """
    launch = _launches.get(operator)
    if launch is None:
        return operator._op

    def call(*inputs: Any) -> Any:
        return operator(*inputs) if intercepted(inputs[0]) else launch(*inputs)

    return call


def intercepted(tensor: Tensor) -> bool:
    """Whether somebody traces calls, or sees each one, of a mode, a transform or a tensor that is no plain one."""
    return watched() or type(tensor) not in (Tensor, torch.nn.Parameter)


def watched() -> bool:
    """Whether somebody traces calls, or sees each one, of a mode or a transform."""
    return (torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack() > 0
            or torch._C._are_functorch_transforms_active() or torch._C._get_tracing_state() is not None)


def define(schema: str, function: Callable[..., Any], fake: Callable[..., Any]) -> Any:
    """Define an operator of this package in Python, for CPUs and GPUs, without autograd; returns it."""
    name = schema[:schema.index("(")]
    _LIBRARY.define(schema)
    for device in ("CPU", "CUDA"):
        _LIBRARY.impl(name, function, device)
    torch.library.register_fake(f"leni_kernels::{name}", fake)
    return getattr(torch.ops.leni_kernels, name).default


def _without_gradient(value: Any) -> Any:
    return value.detach() if isinstance(value, Tensor) and value.requires_grad else value


def without_gradients(operator: Any) -> Callable[..., Any]:
    """What calls an operator whose results have no gradients, whoever asks for some."""
    at_once = unframed(operator)

    def call(*inputs: Any) -> Any:
        if torch.compiler.is_compiling():
            # Under torch.no_grad() an exported program could not be loaded. What is written to wants no gradient.
            return operator(*map(_without_gradient, inputs))
        with _BelowAutograd():
            return at_once(*inputs)

    return call


def once_differentiable(operator: Any) -> Callable[..., Any]:
    """Register that an operator of a backward has no gradients; returns what calls it."""
    return _without(operator, "cannot be differentiated again as an operator; use_backend('reference') can")


def inference_only(operator: Any) -> Callable[..., Any]:
    """Register that an operator of inference has no gradients; returns what calls it."""
    return _without(operator, "is for inference and has no gradients; in a graph that is exported with gradients on, "
                              "another one stands in its place")


def _without(operator: Any, message: str) -> Callable[..., Any]:
    def raise_it(ctx: Any, *grads: Tensor) -> None:
        raise NotImplementedError(f"leni_kernels: operator {operator._schema.name} {message}")

    return differentiable(operator, lambda *_: None, raise_it)


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

        @staticmethod
        def backward(ctx: Any, *grads: Any) -> Any:  # a plain function, as compiled autograd wants it
            return backward(ctx, *grads)

        @staticmethod
        def jvp(ctx: Any, *tangents: Any) -> None:
            raise no_rule()

    apply = Differentiable.apply

    def no_rule() -> NotImplementedError:
        return NotImplementedError(
            f"leni_kernels: operator {operator._schema.name} has no rule for forward-mode differentiation and the "
            "transforms of torch.func; under use_backend('reference') PyTorch's own operators run, which have")

    def run(*inputs: Any) -> Any:
        if torch._C._are_functorch_transforms_active():
            raise no_rule()
        if torch.is_grad_enabled() or forward_ad._current_level >= 0:
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
        if torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None:
            return operator(*inputs)
        if torch.is_grad_enabled():
            return apply(*inputs)
        with _BelowAutograd():
            return at_once(*inputs)

    return call


def needed(gradients: tuple[Tensor | None, ...], needs: Sequence[bool]) -> tuple[Tensor | None, ...]:
    """The gradients as autograd takes them: None for each that is not needed."""
    return tuple(gradient if need else None for gradient, need in zip(gradients, needs, strict=True))
