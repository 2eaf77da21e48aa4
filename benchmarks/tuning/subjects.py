"""What is tuned: each kernel that has tilings, in both layouts, at the papers' shapes; its inputs, launch and truth."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from leni_kernels.common.gpu import tilings
from leni_kernels.conv_relu import reference as conv_relu_reference
from leni_kernels.conv_relu.gpu import configs as conv_relu_configs
from leni_kernels.leni import reference
from leni_kernels.leni.gpu import configs as leni_configs
from leni_kernels.reborn.gpu import configs as reborn_configs
from leni_kernels.two_branch.reference import split_signs

SIZES = {16: 112, 32: 112, 64: 112, 128: 28, 256: 14}
"""H = W of the papers' layers of so many channels."""

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
OPERANDS = ("bf16", "fp16")
"""The one that is timed, and the one that gets the same tilings."""

KERNEL_SIZE = 3
_OPTIONS = (1, 1), (1, 1, 1, 1), (1, 1), 1
"""Of a ConvReLU: stride, pads, dilation and groups."""

Outputs = tuple[Tensor, ...]


class Inputs(NamedTuple):
    """What the kernels take."""

    x: Tensor
    grad: Tensor
    z: Tensor
    """[N, C, H, W] like x and the gradient: Reborn's negative branch."""
    negative: Tensor
    """What that branch's gradient gives x."""
    taps: Tensor
    weight: Tensor
    """[C, 2C] of both branches."""
    bias: Tensor
    mean: Tensor
    """[2C] of both branches, as constant and slope are."""
    constant: Tensor
    slope: Tensor
    filters: Tensor
    """[C, C, k, k], a ConvReLU's weight."""
    threshold: Tensor


class Kernel(NamedTuple):
    """A kernel, or two that share their tilings."""

    name: str
    """As tables call it."""
    taps: int
    mechanism: str
    cases: tuple[str, ...]
    """The names of its cases in the mechanism's ``compile_cases``."""
    choose: Callable[[int, str, str, bool], Any]
    """The tiling of C channels, an operand, an architecture and channels-last or not."""
    run: Callable[[Inputs], Outputs]
    """Launch it."""
    truth: Callable[[Inputs], Outputs]
    """The same in plain PyTorch."""


# ---- the definitions ---------------------------------------------------------------------------------------


def _leni_weight_gradient(i: Inputs) -> Outputs:
    return reference.leni_weight_gradient(i.grad, i.x, i.taps, i.mean)


def _leni_input_gradient(i: Inputs) -> Outputs:
    """That of the folded form, whose outputs are joined by one of gradient 1 and by both branches."""
    positive, negative = split_signs(i.x)
    # Written as PyTorch runs it faster: the transposed convolution is one with flipped taps.
    negative = F.conv2d(negative, i.taps.flip(-1, -2)[:, None], padding=KERNEL_SIZE // 2, groups=i.x.shape[1])
    grad = torch.cat([i.grad, torch.ones_like(i.x[:, :1]), positive, negative], 1)
    weight = torch.cat([i.weight, i.constant[None], i.slope.diag()])
    return reference.leni_folded_backward(grad, i.x, i.taps, weight, None, (True, True, False, False))[:2]


def _reborn_statistics(i: Inputs) -> Outputs:
    variance, mean = torch.var_mean(i.z, (0, 2, 3), correction=0)
    return mean, variance


def _features(i: Inputs) -> Tensor:
    return torch.cat([i.x.relu(), i.z], 1)


def _reborn_gradient(i: Inputs) -> Outputs:
    positive, negative = F.conv2d(i.grad, i.weight.t()[:, :, None, None]).chunk(2, 1)
    constant, slope = _of_z(i)
    return (negative + constant[:, None, None] + slope[:, None, None] * i.z,
            torch.where(i.x > 0, positive, torch.where(i.x < 0, i.negative, 0)))


def _reborn_weight_gradient(i: Inputs) -> Outputs:
    return torch.einsum("nohw,nkhw->ok", i.grad, _features(i) - i.mean[:, None, None]), i.grad.sum((0, 2, 3))


def _of_z(i: Inputs) -> tuple[Tensor, Tensor]:
    channels = i.z.shape[1]
    return i.constant[:channels], i.slope[:channels]


def _mean_of_z(i: Inputs) -> Tensor:
    return i.mean[i.z.shape[1]:]


def _less_mean(i: Inputs, mean: Tensor) -> Tensor:
    """The bias, less the weight times the mean of its last features."""
    return i.bias - (i.weight[:, -mean.shape[0]:] * mean).sum(1)


def _conv_relu(x: Tensor, filters: Tensor, threshold: Tensor, bias: Tensor | None) -> Tensor:
    stride, pads, dilation, groups = _OPTIONS
    return conv_relu_reference.conv_relu(x, filters, threshold, bias, stride, (pads[:2], pads[2:]), dilation, groups)


def _conv_relu_gradients(i: Inputs, *wanted: str) -> Outputs:
    leaves = {name: getattr(i, name).detach().requires_grad_(name in wanted) for name in ("x", "filters", "threshold")}
    return torch.autograd.grad(_conv_relu(*leaves.values(), None), [leaves[name] for name in wanted], i.grad)


# ---- the kernels -------------------------------------------------------------------------------------------

_launch = torch.ops.leni_kernels


def _of_leni(name: str, case: str, choose: Callable[..., Any], run: Callable[[Inputs], Outputs],
             truth: Callable[[Inputs], Outputs]) -> Kernel:
    return Kernel(f"leni {name}", KERNEL_SIZE**2, "leni", (f"leni {case}{{layout}} C={{channels}} k={KERNEL_SIZE}",),
                  lambda channels, *where: choose(channels, KERNEL_SIZE, *where), run, truth)


def _of_reborn(name: str, cases: tuple[str, ...], choose: Callable[..., Any], run: Callable[[Inputs], Outputs],
               truth: Callable[[Inputs], Outputs]) -> Kernel:
    return Kernel(f"reborn {name}", 1, "reborn", tuple(f"reborn {case} {{layout}} C={{channels}}" for case in cases),
                  choose, run, truth)


def _of_conv_relu(name: str, cases: tuple[str, ...], run: Callable[[Inputs], Outputs],
                  truth: Callable[[Inputs], Outputs]) -> Kernel:
    window = f"{{channels}}→{{channels}} k={KERNEL_SIZE}×{KERNEL_SIZE}"
    return Kernel(f"conv_relu {name}", KERNEL_SIZE**2, "conv_relu",
                  tuple(f"conv_relu {case} {{layout}} {window}" for case in cases),
                  lambda channels, *where: conv_relu_configs.choose(name, channels, channels, KERNEL_SIZE**2, *where),
                  run, truth)


KERNELS = (
    _of_leni("folded", "", leni_configs.folded,
             lambda i: (_launch.leni_folded_triton(i.x, i.taps, i.weight, i.bias, i.mean),),
             lambda i: (reference.leni_folded(i.x, i.taps, i.weight, _less_mean(i, i.mean)),)),
    _of_conv_relu("forward", ("forward",),
                  lambda i: (_launch.conv_relu_triton(i.x, i.filters, i.threshold, i.bias, *_OPTIONS),),
                  lambda i: (_conv_relu(i.x, i.filters, i.threshold, i.bias),)),
    *(_of_leni(name, f"{name} ", choose,
               lambda i: _launch.leni_input_gradient_triton(i.grad, i.x, i.taps, i.weight, i.constant, i.slope),
               _leni_input_gradient)
      for name, choose in (("negative gradient", leni_configs.negative_gradient),
                           ("input gradient", leni_configs.input_gradient))),
    _of_leni("weight gradient", "weight gradient ", leni_configs.weight_gradient,
             lambda i: _launch.leni_weight_gradient_triton(i.grad, i.x, i.taps, i.mean),
             _leni_weight_gradient),
    _of_leni("statistics", "statistics ", leni_configs.statistics,
             lambda i: _launch.leni_statistics_triton(i.x, i.taps),
             lambda i: reference.leni_statistics(i.x, i.taps)),
    _of_conv_relu("input", ("input",),
                  lambda i: _launch.conv_relu_backward_triton(
                      i.grad, i.x, i.filters, i.threshold, *_OPTIONS, True, False, False, False)[:1],
                  lambda i: _conv_relu_gradients(i, "x")),
    _of_conv_relu("weight", ("weight",),
                  lambda i: _launch.conv_relu_backward_triton(
                      i.grad, i.x, i.filters, i.threshold, *_OPTIONS, False, True, True, False)[1:3],
                  lambda i: _conv_relu_gradients(i, "filters", "threshold")),
    _of_reborn("tail", ("tail",), reborn_configs.tail,
               lambda i: (_launch.reborn_tail_triton(i.x, i.z, i.weight, i.bias, _mean_of_z(i)),),
               lambda i: (F.conv2d(_features(i), i.weight[:, :, None, None], _less_mean(i, _mean_of_z(i))),)),
    _of_reborn("gradient", ("negative gradient", "input gradient"), reborn_configs.branch_gradient,
               lambda i: (_launch.reborn_negative_gradient_triton(i.grad, i.z, i.weight, *_of_z(i)),
                          _launch.reborn_input_gradient_triton(i.grad, i.x, i.negative, i.weight)),
               _reborn_gradient),
    _of_reborn("weight gradient", ("weight gradient",), reborn_configs.weight_gradient,
               lambda i: _launch.reborn_weight_gradient_triton(i.grad, i.x, i.z, i.mean),
               _reborn_weight_gradient),
    _of_reborn("statistics", ("statistics",), reborn_configs.statistics,
               lambda i: _launch.reborn_statistics_triton(i.z), _reborn_statistics),
)
"""Every kernel that has tilings, the more important first."""


# ---- the subjects ------------------------------------------------------------------------------------------


class Subject(NamedTuple):
    """A kernel at a number of channels, in a layout, on an architecture. It is sent between processes."""

    kernel: int
    """Its place in :data:`KERNELS`."""
    channels: int
    layout: str
    operand: str
    architecture: str

    def __str__(self) -> str:
        return f"{KERNELS[self.kernel].name} {self.layout} C={self.channels} {self.operand}"

    @property
    def channels_last(self) -> bool:
        return self.layout == "channels-last"

    @property
    def key(self) -> tilings.Key:
        kernel = KERNELS[self.kernel]
        return tilings.key(kernel.name, self.channels, self.channels, kernel.taps, self.operand, self.architecture,
                           self.channels_last)

    def incumbent(self) -> Any:
        """The tiling that the package gives it where the user has no table."""
        with tilings.without_users():
            return KERNELS[self.kernel].choose(self.channels, self.operand, self.architecture, self.channels_last)

    def inputs(self, shape: tuple[int, int], device: torch.device) -> Inputs:
        """Random inputs of ``shape`` = (N, H)."""
        batch, size = shape
        c, dtype = self.channels, DTYPES[self.operand]
        layout = torch.channels_last if self.channels_last else torch.contiguous_format
        x, grad, z, negative = (
            torch.empty((batch, c, size, size), dtype=dtype, device=device, memory_format=layout).normal_()
            for _ in range(4))
        taps, weight, filters = (torch.randn(of, device=device) for of in (
            (c, KERNEL_SIZE, KERNEL_SIZE), (c, 2 * c), (c, c, KERNEL_SIZE, KERNEL_SIZE)))
        bias, mean, constant, slope = (torch.randn(count, device=device) for count in (c, 2 * c, 2 * c, 2 * c))
        threshold = torch.randn(c, KERNEL_SIZE, KERNEL_SIZE, device=device).to(dtype).float() / 2
        # Parameters that a launch rounds to x's dtype are rounded here, so that the truth has the same.
        weight, filters = ((value / value[0].numel()**0.5).to(dtype).float() for value in (weight, filters))
        return Inputs(x, grad, z, negative, taps / KERNEL_SIZE, weight, bias, mean, constant, slope, filters, threshold)

    def run(self, tiling: Any, inputs: Inputs) -> Outputs:
        """Launch with a tiling."""
        with tilings.override(self.key, tiling):
            return KERNELS[self.kernel].run(inputs)

    def truth(self, inputs: Inputs) -> Outputs:
        """The same by the definition in float64."""
        return KERNELS[self.kernel].truth(Inputs(*(tensor.double() for tensor in inputs)))


def subjects(architecture: str, operand: str, match: str = "", channels: Iterable[int] = SIZES) -> list[Subject]:
    """The subjects of so many channels whose names contain ``match``, the more important first."""
    found = [Subject(kernel, count, layout, operand, architecture) for kernel, count, layout in _places(channels)]
    return [subject for subject in found if match in str(subject)]


def _places(channels: Iterable[int]) -> list[tuple[int, int, str]]:
    """LENI and ConvReLU in channels-last at C ≤ 64 come first, then Reborn there, then the rest."""
    places = [(kernel, count, layout) for layout in ("channels-last", "NCHW") for kernel in range(len(KERNELS))
              for count in sorted(channels, key=lambda count: abs(count - 64))]

    def importance(place: tuple[int, int, str]) -> tuple[bool, bool, bool]:
        kernel, count, layout = place
        return layout == "NCHW", count > 64, KERNELS[kernel].mechanism == "reborn"

    return sorted(places, key=importance)
