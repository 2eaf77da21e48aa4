"""What the operators of LENI and Reborn share: how they are found, what they ask of a call, and why they refuse one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..common import checks, extension
from ..common.backends import gradients_of
from ..common.gpu import support
from ..common.norm import Norm
from ..common.operators import inference_only, needed, once_differentiable, without_gradients
from .reference import Layer, folding_dtype
from .statistics import FEW_VALUES

# ---- the operators -----------------------------------------------------------------------------------------

SYNCHRONISED = "leni_kernels: double backward with statistics of several processes is not supported"
GIVEN = ("leni_kernels: a step with statistics that are given is a part of one over several processes, and has no "
         "gradient by itself")


def operators_of(mechanism: str, backend: str, fakes: Any, names: tuple[str, ...]) -> list[Any]:
    """The operators leni_kernels::<mechanism>_<name>_<backend>, with their fakes registered."""
    operators = []
    for name in names:
        qualified = f"leni_kernels::{mechanism}_{name}_{backend}"
        torch.library.register_fake(qualified, getattr(fakes, name))
        operator = getattr(torch.ops.leni_kernels, f"{mechanism}_{name}_{backend}").default
        operators.append(operator if name == "folded" else once_differentiable(operator))
    return operators


def on_one_device(operator: str, fake: Callable[..., Any]) -> Callable[..., Any]:
    """A fake that refuses tensors on several devices: PyTorch calls it, and no kernel, where one of them is on meta."""

    def checked(*arguments: Any) -> Any:
        tensors = {f"argument {place}": each for place, each in enumerate(arguments) if isinstance(each, Tensor)}
        checks.same_device(operator, **tensors)
        return fake(*arguments)

    return checked


def steps_of(mechanism: str, backend: str, fakes: Any) -> Any:
    """The operators leni_kernels::<mechanism>_<name>_<backend> of whole blocks, with their fakes registered.

    Those whose gradients are the mechanism's own to say are as they are: ``eval`` and ``training``.
    """
    steps = []
    for name, fake in fakes._asdict().items():
        qualified = f"leni_kernels::{mechanism}_{name}_{backend}"
        of_activations = name != "running_statistics"
        torch.library.register_fake(qualified, on_one_device(qualified, fake) if of_activations else fake)
        steps.append(getattr(torch.ops.leni_kernels, f"{mechanism}_{name}_{backend}").default)
    steps = type(fakes)(*steps)
    return steps._replace(
        batch_statistics=inference_only(steps.batch_statistics),
        training_backward=once_differentiable(steps.training_backward),
        running_statistics=without_gradients(steps.running_statistics))


def gradient_of(parameter: Tensor | None, x: Tensor, needed: bool) -> Tensor:
    """What a parameter's gradient is written to; empty if there is none."""
    return parameter.new_empty(parameter.shape) if needed and parameter is not None else x.new_empty(0)


def fake_parameter_gradients(x: Tensor, parameters: Sequence[Tensor | None], statistics: int,
                             needed: bool) -> tuple[Tensor, ...]:
    """Those of the parameters, of which P is the last, of c, and of the statistics."""
    of_bias = parameters[-1].new_empty(x.shape[1]) if needed else x.new_empty(0)
    of_statistics = x.new_empty(statistics, dtype=torch.float64) if needed else x.new_empty(0)
    return *(gradient_of(parameter, x, needed) for parameter in parameters), of_bias, of_statistics


def only_first_differentiable(ctx: Any, output: tuple[Tensor, ...]) -> None:
    """Say that what comes with y, and is no use of the caller's, has no gradient, and let none be made of zeros."""
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)


def only_needed(gradients: tuple[Tensor, ...], needs: tuple[bool, ...]) -> tuple[Tensor | None, ...]:
    """Of an operator's gradients, for the first of its inputs, those that are needed; None for all other inputs."""
    asked = needs[:len(gradients)]
    others = (None,) * (len(needs) - len(gradients))
    if False not in asked:  # as nearly always
        return *gradients, *others
    return *needed(gradients, asked), *others


def gradients_again(block: Callable[..., Tensor], inputs: tuple[Tensor | None, ...], needs: tuple[bool, ...],
                    grad: Tensor) -> tuple[Tensor | None, ...]:
    """The gradients of a block, a function of x and of its parameters, in a backward with ``create_graph``: only those
    of the definition can be differentiated again. As precise as the kernels' are."""
    x = inputs[0]
    dtype = torch.float64 if values_of(x) <= FEW_VALUES else folding_dtype(x.dtype)

    def definition(*tensors: Tensor | None) -> Tensor:
        return block(*(tensor if tensor is None else tensor.to(dtype) for tensor in tensors)).to(x.dtype)

    return gradients_of(definition, inputs, needs, grad)


# ---- which backend, and why --------------------------------------------------------------------------------


def values_of(x: Tensor) -> int:
    """How many values of x a channel has."""
    return x.numel() // x.shape[1]


def why_no_layout(call: Any) -> str | None:
    if call.channels_last is None:
        return "x has stride 1 neither along channels nor along columns, and the kernels do not copy"
    return None


def why_not_on_cpu(call: Any) -> str | None:
    return extension.why_not(call.x, call.dtype) or why_no_layout(call)


def read(call: Any) -> Tensor:
    """A call's x as the kernels read it."""
    x, dtype = call.x, call.dtype
    return x if x.dtype == dtype else checks.cast(x, dtype, call.channels_last)


def how_triton(call: Any) -> tuple[str, ...]:
    """What is worth knowing of a call on Triton's kernels."""
    return support.how_multiplied(call.x, call.dtype)


def records_gradients() -> bool:
    """Whether what runs may be differentiated: a graph that torch.jit traces may, whatever the mode it is traced in."""
    return torch.is_grad_enabled() or torch._C._get_tracing_state() is not None


def wants_gradient(*tensors: Tensor | None) -> bool:
    return records_gradients() and any(tensor is not None and tensor.requires_grad for tensor in tensors)


# ---- what a call must be -----------------------------------------------------------------------------------


def check_values(x: Tensor, group: str) -> None:
    """What batch norm asks of a batch in training."""
    if x.numel() == x.shape[1] and not group:
        raise ValueError(f"Expected more than 1 value per channel when training, got input size {tuple(x.shape)}")


def folded_fits(x: Tensor, channels: int, dtype: torch.dtype, taps: Tensor, weight: Tensor, bias: Tensor) -> bool:
    """Whether folded tensors are of the dtype that kernels take and on x's device, and fit x, as they nearly always
    do; where they do not, :func:`check_folded` finds the words."""
    device = x.device
    return (taps.dtype == weight.dtype == bias.dtype == dtype
            and taps.device == weight.device == bias.device == device
            and weight.shape == (channels, 2 * channels) and bias.shape == (channels,))


def check_folded(name: str, x: Tensor, taps: Tensor, weight: Tensor, bias: Tensor) -> None:
    """What the folded forms of LENI and Reborn ask of their tensors alike."""
    channels = x.shape[1]
    checks.shape(name, "weight", weight, (channels, 2 * channels))
    checks.shape(name, "bias", bias, (channels,))
    checks.same_device(name, x=x, taps=taps, weight=weight, bias=bias)
    operand = checks.autocast_dtype(x)
    checks.dtype_in(name, (operand, folding_dtype(operand)), taps=taps, weight=weight, bias=bias)


def deconv_layer(weight: Tensor, groups: int) -> Layer:
    convolve = F.conv_transpose1d if weight.dim() == 3 else F.conv_transpose2d
    return partial(convolve, weight=weight, padding=weight.shape[-1] // 2, groups=groups)


def compress_layer(weight: Tensor, bias: Tensor | None) -> Layer:
    convolve = F.conv1d if weight.dim() == 3 else F.conv2d
    return partial(convolve, weight=weight, bias=bias, padding=weight.shape[-1] // 2)


def tensors_fit(x: Tensor, parameters: Any, channels: int, of_group: int) -> bool:
    """Whether D, P of 1×1 and c have one dtype and device with x, and their shapes, as they nearly always do.

    Where they do not, :func:`check_block` says why, unless autocast makes them alike.
    """
    deconv, compress, bias = parameters.deconv_weight, parameters.compress_weight, parameters.compress_bias
    shape, dtype, on_cpu = deconv.shape, x.dtype, x.is_cpu  # which takes less time to say than a device
    size = shape[-1] if shape else 0
    return (size % 2 == 1 and shape == (channels, of_group, size, size)
            and compress is not None and compress.shape == (channels, 2 * channels, 1, 1)
            and deconv.dtype is dtype and compress.dtype is dtype
            and ((on_cpu and deconv.is_cpu and compress.is_cpu) or deconv.device == compress.device == x.device)
            and (bias is None or (bias.shape == (channels,) and bias.dtype is dtype
                                  and ((on_cpu and bias.is_cpu) or bias.device == x.device))))


def norm_fits(norm: Norm, channels: int) -> bool:
    """Whether a norm's tensors have one entry per channel."""
    size, (mean, variance, weight, bias) = (channels,), norm[:4]
    return ((mean is None or mean.shape == size) and (variance is None or variance.shape == size)
            and (weight is None or weight.shape == size) and (bias is None or bias.shape == size))


def check_channels(name: str, x: Tensor, parameters: Any) -> None:
    """Say of an x with other channels than the block's that it is x."""
    checks.channels_of_weights(name, x, parameters.deconv_weight, parameters.compress_weight,
                               *parameters.negative_norm[:4])


def check_block(name: str, x: Tensor, parameters: Any, channels: int, deconv_channels: tuple[int, int]) -> None:
    """What LENI and Reborn ask of their tensors alike."""
    weight, bias = parameters.compress_weight, parameters.compress_bias
    checks.odd_kernel(name, "deconv_weight", parameters.deconv_weight, (*deconv_channels, "k", "k"))
    checks.norm(name, "negative_norm", parameters.negative_norm, channels)
    tensors = {"x": x, "deconv_weight": parameters.deconv_weight, "compress_weight": weight, "compress_bias": bias}
    if bias is not None:
        checks.shape(name, "compress_bias", bias, (channels,))
    given = {what: tensor for what, tensor in tensors.items() if tensor is not None}
    checks.same_device(name, **given)
    checks.same_dtype(name, **given)
