"""ConvReLU as modules that stand where a ReLU and the convolution after it stood."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from ..common import checks
from ..common.lazy import Lazy
from ..common.leaf import Leaf
from ..pointwise import thresholds
from . import ops

if TYPE_CHECKING:
    from typing_extensions import Self


class _ConvReLU(Leaf, nn.modules.conv._ConvNd):
    """What ConvReLU1d, ConvReLU2d and ConvReLU3d add to the ``nn.ConvNd`` that each of them is."""

    _convolution: ClassVar[type[nn.Module]]
    _function: ClassVar[Callable[..., Tensor]]

    if TYPE_CHECKING:  # of nn.Module's own call, no type checker knows the result
        def __call__(self, x: Tensor) -> Tensor: ...

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int | Sequence[int],
                 stride: int | Sequence[int] = 1, padding: int | Sequence[int] | str = 0,
                 dilation: int | Sequence[int] = 1, groups: int = 1, bias: bool = True,
                 padding_mode: str = "zeros", device: Any = None, dtype: Any = None,
                 threshold_init: str = "zeros") -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias,
                         padding_mode, device, dtype)
        self.threshold_init = thresholds.checked(threshold_init)
        shape = (in_channels, *self.kernel_size)
        self.threshold = nn.Parameter(torch.empty(shape, device=device, dtype=dtype))
        self._reset_threshold()

    def reset_parameters(self) -> None:
        """Initialise weight and bias as the convolution does, and the threshold as ``threshold_init`` says."""
        super().reset_parameters()
        # The convolution's constructor resets too, before there is a threshold.
        if hasattr(self, "threshold"):
            self._reset_threshold()

    def _reset_threshold(self) -> None:
        taps = math.prod(self.kernel_size)
        thresholds.initialise(self.threshold, self.threshold_init, self.in_channels // self.groups * taps,
                              self.out_channels // self.groups * taps)

    @classmethod
    def from_conv(cls, conv: nn.Module, threshold_init: str = "zeros") -> Self:
        """The module equal to ``nn.Sequential(nn.ReLU(), conv)``, with conv's own weight and bias.

        Args:
            conv: an ``nn.Conv1d``, ``nn.Conv2d`` or ``nn.Conv3d``, as the class is; its parameters are shared.
            threshold_init: the constructor's; only with "zeros" are the two equal.

        Raises:
            TypeError: if conv is not ``nn.ConvNd`` itself; a subclass may compute something else.
            ValueError: for an unknown ``threshold_init``.
        """
        if type(conv) is not cls._convolution:
            raise TypeError(f"{cls.__name__}.from_conv: conv must be a plain {cls._convolution.__name__}, "
                            f"got {type(conv).__name__}")
        module = cls(conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride, conv.padding,
                     conv.dilation, conv.groups, conv.bias is not None, conv.padding_mode, "meta",
                     conv.weight.dtype, threshold_init)
        module.weight, module.bias = conv.weight, conv.bias
        module.threshold = nn.Parameter(torch.empty_like(module.threshold, device=conv.weight.device))
        module._reset_threshold()
        return module.train(conv.training)

    def forward(self, x: Tensor) -> Tensor:
        padding = self.padding
        if self.padding_mode != "zeros":
            name, dimensions = type(self).__name__, len(self.kernel_size)
            batch = ("N",) if checks.convolution_input(name, x, dimensions) else ()
            checks.shape(name, "x", x, (*batch, self.in_channels, *checks.SPATIAL[-dimensions:]))
            x = F.pad(x, self._reversed_padding_repeated_twice, mode=self.padding_mode)
            padding = 0
        return self._function(x, self.weight, self.threshold, self.bias, self.stride, padding, self.dilation,
                              self.groups)


class ConvReLU1d(_ConvReLU, nn.Conv1d):
    """ConvReLU (Gao, Cai, Ji 2020, eq. 7-8) on ``[N, C, L]`` or ``[C, L]``; otherwise as :class:`ConvReLU2d`.

    Attributes:
        weight: that of ``nn.Conv1d``, initialised as there.
        bias: that of ``nn.Conv1d``, or None.
        threshold: a parameter ``[C, k]``, 0 at the start unless ``threshold_init`` says otherwise.
    """

    _convolution = nn.Conv1d
    _function = staticmethod(ops.conv_relu1d)


class ConvReLU2d(_ConvReLU, nn.Conv2d):
    """ConvReLU (Gao, Cai, Ji 2020, eq. 7-8): a convolution that thresholds what each tap reads.

    Stands where ``nn.Sequential(nn.ReLU(), nn.Conv2d(...))`` stood, and computes the same at the start; takes
    ``[N, C, H, W]`` or ``[C, H, W]``. It is an ``nn.Conv2d`` with one more parameter, so initialisers and
    weight-decay filters find what they know. x is padded before the threshold.

    Args:
        in_channels: C; this and all but the last are as in ``nn.Conv2d``.
        out_channels: O.
        kernel_size: one number, or one for each spatial dimension, as are stride, padding and dilation.
        stride: of the convolution.
        padding: sites to add on each side, or "same" or "valid".
        dilation: the distance between taps.
        groups: of the convolution; the threshold has all input channels whatever they are.
        bias: whether there is one.
        padding_mode: "zeros", "reflect", "replicate" or "circular"; what is added passes the threshold as well.
        device: of the parameters.
        dtype: of the parameters, and so of the inputs, outside of autocast.
        threshold_init: how the threshold starts (Table 4): "zeros", as the paper chose; "normal", N(0, 0.01²); or
            "xavier", Glorot's uniform distribution with the weight's fans.

    Attributes:
        weight: that of ``nn.Conv2d``, initialised as there.
        bias: that of ``nn.Conv2d``, or None.
        threshold: a parameter ``[C, kh, kw]``, 0 at the start unless ``threshold_init`` says otherwise; shared by
            all output channels.

    Raises:
        ValueError: for arguments that ``nn.Conv2d`` refuses, or an input that does not fit.
        TypeError: for an input whose dtype does not fit.
    """

    _convolution = nn.Conv2d
    _function = staticmethod(ops.conv_relu2d)


class ConvReLU3d(_ConvReLU, nn.Conv3d):
    """ConvReLU (Gao, Cai, Ji 2020, eq. 7-8) on ``[N, C, D, H, W]`` or ``[C, D, H, W]``.

    Otherwise as :class:`ConvReLU2d`.

    Attributes:
        weight: that of ``nn.Conv3d``, initialised as there.
        bias: that of ``nn.Conv3d``, or None.
        threshold: a parameter ``[C, kd, kh, kw]``, 0 at the start unless ``threshold_init`` says otherwise.
    """

    _convolution = nn.Conv3d
    _function = staticmethod(ops.conv_relu3d)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        # Module.to(memory_format=torch.channels_last_3d) converts every 4-D parameter too, and fails on it.
        def flat_if_threshold(tensor: Tensor) -> Tensor:
            if is_lazy(tensor) or tensor.dim() != 4:
                return fn(tensor)
            return fn(tensor.flatten()).reshape(tensor.shape)

        return super()._apply(flat_if_threshold, recurse)


class _LazyConvReLU(Lazy):
    """What LazyConvReLU1d, LazyConvReLU2d and LazyConvReLU3d share."""

    def channels_of(self, x: Tensor) -> int:
        batched = checks.convolution_input(type(self).__name__, x, len(self.kernel_size))
        return x.shape[1 if batched else 0]


class LazyConvReLU1d(_LazyConvReLU, ConvReLU1d):
    """A :class:`ConvReLU1d` whose ``in_channels`` are those of its first input.

    Otherwise as :class:`LazyConvReLU2d`.
    """

    cls_to_become = ConvReLU1d


class LazyConvReLU2d(_LazyConvReLU, ConvReLU2d):
    """A :class:`ConvReLU2d` whose ``in_channels`` are those of its first input.

    Takes :class:`ConvReLU2d`'s arguments but for ``in_channels``. Otherwise it is to :class:`ConvReLU2d` what
    ``nn.LazyConv2d`` is to ``nn.Conv2d``, by the rules that :class:`LazyLENI2d` names.
    """

    cls_to_become = ConvReLU2d


class LazyConvReLU3d(_LazyConvReLU, ConvReLU3d):
    """A :class:`ConvReLU3d` whose ``in_channels`` are those of its first input.

    Otherwise as :class:`LazyConvReLU2d`.
    """

    cls_to_become = ConvReLU3d
