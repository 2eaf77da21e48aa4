"""AdaReLU, FullyParametricReLU and CReLU as PyTorch operators: schemas, fakes, autograd and the choice of backend.

No arithmetic here: the definitions are in ``reference.py``, the kernels in ``csrc/pointwise/`` and ``gpu/``.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..common import checks, extension
from ..common.backends import Backend, Operation, gradients_of, with_reference
from ..common.gpu import support
from ..common.operators import differentiable, needed, unframed
from . import gpu, reference

# ---- what a call must be -------------------------------------------------------------------------------------
# Besides dtypes, which the functions compare, since autocast may be on at a call and not where it is traced. The C++
# kernels check the same, in less time and fewer words.


def _check_ada_relu(x: Tensor, threshold: Tensor) -> None:
    channels, shape = checks.channels("ada_relu", x), threshold.shape
    if shape not in ((channels,), (1,), (), x.shape[1:]):
        wanted = {"one per channel": (channels,), "one for all": (1,), "one per element": tuple(x.shape[1:])}
        listed = ", ".join(f"{list(size)} ({meaning})" for meaning, size in wanted.items())
        fits = "" if not shape or shape[0] == channels else (
            f"x must have {shape[0]} channels, got shape {tuple(x.shape)}; or ")
        raise ValueError(f"ada_relu: {fits}threshold must have shape {listed}, got {tuple(shape)}")
    checks.same_device("ada_relu", x=x, threshold=threshold)


def _check_fully_parametric_relu(x: Tensor, positive_slope: Tensor, negative_slope: Tensor) -> None:
    name = "fully_parametric_relu"
    channels = checks.channels(name, x)
    if positive_slope.dim() == 1 and positive_slope.shape == negative_slope.shape != (channels,):
        raise ValueError(f"{name}: x must have {positive_slope.shape[0]} channels, as the slopes have, got shape "
                         f"{tuple(x.shape)}")
    checks.shape(name, "positive_slope", positive_slope, (channels,))
    checks.shape(name, "negative_slope", negative_slope, (channels,))
    checks.same_device(name, x=x, positive_slope=positive_slope, negative_slope=negative_slope)


def _check_crelu(x: Tensor) -> None:
    checks.channels("crelu", x)


_CHECKS = {"ada_relu": _check_ada_relu, "fully_parametric_relu": _check_fully_parametric_relu, "crelu": _check_crelu}


def _checked(name: str, run: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def run_checked(*call: Tensor) -> Tensor:
        _CHECKS[name](*call)
        return run(*call)

    return run_checked


# ---- the operators -----------------------------------------------------------------------------------------
# Of each backend: <name>(x, *parameters) -> y, and <name>_backward(grad, x, *parameters, needs_input,
# needs_parameters) -> the gradients of all of them, empty if not asked for; crelu_backward(grad, x) -> x's gradient.
# Parameters may be of another dtype than x, as autocast hands them over; they are used in x's and their gradients
# are summed in float32 (float64 for a float64 x).

DEFINITIONS: dict[str, Callable[..., Tensor]] = {
    "ada_relu": reference.ada_relu,
    "fully_parametric_relu": reference.fully_parametric_relu,
    "crelu": reference.crelu,
}


def _fake_forward(x: Tensor, *parameters: Tensor) -> Tensor:
    return torch.empty_like(x)


def _fake_backward(grad: Tensor, x: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    *parameters, needs_input, needs_parameters = rest
    return (torch.empty_like(x) if needs_input else x.new_empty(0),
            *(parameter.new_empty(parameter.shape if needs_parameters else 0) for parameter in parameters))


def _fake_crelu_backward(grad: Tensor, x: Tensor) -> Tensor:
    return torch.empty_like(x)


def _save(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(definition: Callable[..., Tensor], operator: Any, at_once: Callable[..., Any]) -> Callable[..., Any]:
    def backward(ctx: Any, grad: Tensor) -> Any:
        needs = ctx.needs_input_grad
        if torch.is_grad_enabled():  # with create_graph: only the reference can be differentiated again
            return gradients_of(definition, ctx.saved_tensors, needs, grad)
        run = operator if torch.compiler.is_compiling() else at_once
        if len(needs) == 1:
            return run(grad, *ctx.saved_tensors)
        gradients = run(grad, *ctx.saved_tensors, needs[0], needs[1] or needs[-1])
        return needed(gradients, needs) if False in needs else gradients

    return backward


def _kernel_by_reference(definition: Callable[..., Tensor], grad: Tensor, x: Tensor, *rest: Any) -> Any:
    """What the operator of backward returns, from the definition."""
    if not rest:
        return gradients_of(definition, (x,), (True,), grad)[0]
    *parameters, needs_input, needs_parameters = rest
    needs = (needs_input, *[needs_parameters] * len(parameters))
    return gradients_of(definition, (x, *parameters), needs, grad)


def _operators(backend: str) -> dict[str, Any]:
    """The operators leni_kernels::<name>_<backend>, with autograd, and fakes of them and of their backward."""
    operators = {}
    for name, definition in DEFINITIONS.items():
        forward, backward = f"{name}_{backend}", f"{name}_backward_{backend}"
        operators[name], backward_operator = (getattr(torch.ops.leni_kernels, each).default
                                              for each in (forward, backward))
        at_once = unframed(backward_operator)
        if backend == "triton":
            backward_operator = at_once = with_reference(f"{name}_backward", backend, backward_operator,
                                                         partial(_kernel_by_reference, definition))
        fakes = (reference.empty_crelu, _fake_crelu_backward) if name == "crelu" else (_fake_forward, _fake_backward)
        for operator, fake in ((forward, _checked(name, fakes[0])), (backward, fakes[1])):
            torch.library.register_fake(f"leni_kernels::{operator}", fake)
        operators[name] = differentiable(operators[name], _save, _backward(definition, backward_operator, at_once))
    return operators


if extension.why_missing is None:
    _CPP = _operators("cpp")


@support.operators_when_needed
def _define_triton() -> None:
    global _TRITON
    for launch in (gpu.forward.ada_relu, gpu.forward.fully_parametric_relu, gpu.forward.crelu,
                   gpu.backward.ada_relu_backward, gpu.backward.fully_parametric_relu_backward,
                   gpu.backward.crelu_backward):
        support.define_operator(f"{launch.__name__}_triton", launch)
    _TRITON = _operators("triton")


# ---- which backend, and why --------------------------------------------------------------------------------
# A call is x and the parameters.


def _why_not_cpp(call: tuple[Tensor, ...]) -> str | None:
    return extension.why_not(call[0], call[0].dtype)


def _why_not_triton(call: tuple[Tensor, ...]) -> str | None:
    return support.why_not_here(call[0]) or gpu.view.why_not(*call)


def _operation(name: str) -> Operation:
    triton, definition = _checked(name, lambda *call: _TRITON[name](*call)), _checked(name, DEFINITIONS[name])

    def run_cpp(call: tuple[Tensor, ...]) -> Tensor:
        try:
            return _CPP[name](*call)
        except RuntimeError:
            _CHECKS[name](*call)
            raise

    return Operation(
        name,
        Backend("cpp", _why_not_cpp, run_cpp),
        Backend("triton", _why_not_triton, lambda call: triton(*call)),
        Backend("reference", lambda call: None, lambda call: definition(*call)),
    )


_ADA_RELU, _FULLY_PARAMETRIC_RELU, _CRELU = map(_operation, DEFINITIONS)


# ---- the functions -----------------------------------------------------------------------------------------


def ada_relu(x: Tensor, threshold: Tensor) -> Tensor:
    """AdaReLU (Gao, Cai, Ji 2020, eq. 4-6): ``x if x > threshold else threshold``.

    Where x equals the threshold, the gradient goes to the threshold and none to x.

    Args:
        x: ``[N, C, *spatial]`` with any number of spatial dimensions, none included; any floating dtype.
        threshold: ``[C]``, one per channel; ``[1]`` or a scalar, one for all; or ``[C, *spatial]``, one per
            element of a sample. In x's dtype; under autocast in any, and compared in x's.

    Returns:
        x's shape, dtype and memory format.

    Raises:
        ValueError: for shapes that do not fit, or tensors on several devices.
        TypeError: for dtypes that do not fit.
        BackendUnavailableError: if a backend asked for by name cannot serve.
    """
    if threshold.dtype is not x.dtype:
        _check_ada_relu(x, threshold)
        checks.same_dtype("ada_relu", x=x, threshold=threshold)
    return _ADA_RELU((x, threshold))


def fully_parametric_relu(x: Tensor, positive_slope: Tensor, negative_slope: Tensor) -> Tensor:
    """FullyParametricReLU (Varshney, Singh 2021, "FReLU"): a learnable slope per channel and sign.

    ``positive_slope · x if x > 0 else negative_slope · x``; at x = 0 the slope is the negative one.

    Args:
        x: ``[N, C, *spatial]`` with any number of spatial dimensions, none included; any floating dtype.
        positive_slope: ``[C]``, in x's dtype; under autocast in any, and multiplied in x's.
        negative_slope: the same.

    Returns:
        x's shape, dtype and memory format.

    Raises:
        ValueError: for shapes that do not fit, or tensors on several devices.
        TypeError: for dtypes that do not fit.
        BackendUnavailableError: if a backend asked for by name cannot serve.
    """
    if not positive_slope.dtype is x.dtype is negative_slope.dtype:
        _check_fully_parametric_relu(x, positive_slope, negative_slope)
        checks.same_dtype("fully_parametric_relu", x=x, positive_slope=positive_slope, negative_slope=negative_slope)
    return _FULLY_PARAMETRIC_RELU((x, positive_slope, negative_slope))


def crelu(x: Tensor) -> Tensor:
    """CReLU (Shang et al. 2016): ``[max(x, 0); max(-x, 0)]`` on channels, both with gradient 0 at x = 0.

    Args:
        x: ``[N, C, *spatial]`` with any number of spatial dimensions, none included; any floating dtype.

    Returns:
        ``[N, 2C, *spatial]`` in x's dtype and memory format.

    Raises:
        ValueError: if x has no channel axis, or no channels.
        TypeError: if x is not floating-point.
        BackendUnavailableError: if a backend asked for by name cannot serve.
    """
    return _CRELU((x,))
