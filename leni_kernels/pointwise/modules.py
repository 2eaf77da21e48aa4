"""AdaReLU, FullyParametricReLU and CReLU as modules that stand where an ``nn.ReLU`` stood.

Parameters are read where nn.Module keeps them: its search for an attribute takes a tenth of a small activation's time.
Those that are parametrized are attributes only.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..common.lazy import LazyActivation
from ..common.leaf import Leaf
from . import ops, thresholds


class AdaReLU(Leaf):
    """AdaReLU (Gao, Cai, Ji 2020, eq. 4-6): ``x if x > threshold else threshold``, a ReLU at the start.

    Takes and returns ``[N, C, *spatial]``, in any floating dtype and memory format.

    Args:
        shape: of the threshold, which says who shares one: ``C``, per channel; ``1``, the whole layer;
            ``(C, *spatial)``, per element of a sample.
        device: of the threshold.
        dtype: of the threshold, and so of the inputs, outside of autocast.
        threshold_init: how the threshold starts (Table 4): "zeros", as the paper chose; "normal", N(0, 0.01²); or
            "xavier", Glorot's uniform distribution with the number of thresholds for both fans.

    Attributes:
        threshold: a parameter of that shape, 0 at the start unless ``threshold_init`` says otherwise.

    Raises:
        ValueError: for an unknown ``threshold_init``, or an input that does not fit.
        TypeError: for an input whose dtype does not fit.
    """

    if TYPE_CHECKING:  # of nn.Module's own call, no type checker knows the result
        def __call__(self, x: Tensor) -> Tensor: ...

    def __init__(self, shape: int | Sequence[int], device: object = None, dtype: object = None,
                 threshold_init: str = "zeros") -> None:
        super().__init__()
        self.threshold_init = thresholds.checked(threshold_init)
        shape = tuple(shape) if isinstance(shape, Sequence) else (shape,)
        self.threshold = nn.Parameter(torch.empty(shape, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise the threshold as ``threshold_init`` says; at zeros it is a ReLU."""
        count = self.threshold.numel()
        thresholds.initialise(self.threshold, self.threshold_init, count, count)

    def forward(self, x: Tensor) -> Tensor:
        try:
            threshold = self._parameters["threshold"]
        except KeyError:
            threshold = self.threshold
        return ops.ada_relu(x, threshold)

    def extra_repr(self) -> str:
        shape = tuple(self.threshold.shape)
        return str(shape[0] if len(shape) == 1 else shape)


class LazyAdaReLU(LazyActivation, AdaReLU):
    """An :class:`AdaReLU` with a threshold per channel, whose number of channels is that of its first input.

    Takes :class:`AdaReLU`'s arguments but for ``shape``, and ``inplace``, which it ignores. Otherwise it is to
    :class:`AdaReLU` what ``nn.LazyConv2d`` is to ``nn.Conv2d``, by the rules that :class:`LazyLENI2d` names. Channels
    are axis 1 here too: those of ``[N, C]``, which linear layers return, are C, but of ``[N, tokens, C]`` the tokens.
    """

    cls_to_become = AdaReLU


class FullyParametricReLU(Leaf):
    """FullyParametricReLU (Varshney, Singh 2021, "FReLU"): one slope per channel and sign.

    A ReLU at the start. Takes and returns ``[N, C, *spatial]``, in any floating dtype and memory format.

    Args:
        channels: C.
        device: of the slopes.
        dtype: of the slopes, and so of the inputs, outside of autocast.

    Attributes:
        positive_slope: a parameter ``[C]``, 1 at the start.
        negative_slope: a parameter ``[C]``, 0 at the start; it is the slope at x = 0 as well.

    Raises:
        ValueError: for an input that does not fit.
        TypeError: for an input whose dtype does not fit.
    """

    if TYPE_CHECKING:  # of nn.Module's own call, no type checker knows the result
        def __call__(self, x: Tensor) -> Tensor: ...

    def __init__(self, channels: int, device: object = None, dtype: object = None) -> None:
        super().__init__()
        self.positive_slope = nn.Parameter(torch.empty(channels, device=device, dtype=dtype))
        self.negative_slope = nn.Parameter(torch.empty(channels, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Make it a ReLU."""
        nn.init.ones_(self.positive_slope)
        nn.init.zeros_(self.negative_slope)

    def forward(self, x: Tensor) -> Tensor:
        own = self._parameters
        try:
            slopes = own["positive_slope"], own["negative_slope"]
        except KeyError:
            slopes = self.positive_slope, self.negative_slope
        return ops.fully_parametric_relu(x, *slopes)

    def extra_repr(self) -> str:
        return str(self.positive_slope.shape[0])


class LazyFullyParametricReLU(LazyActivation, FullyParametricReLU):
    """A :class:`FullyParametricReLU` whose number of channels is that of its first input.

    Takes :class:`FullyParametricReLU`'s arguments but for ``channels``, and ``inplace``, which it ignores; otherwise as
    :class:`LazyAdaReLU`.
    """

    cls_to_become = FullyParametricReLU


class CReLU(Leaf):
    """CReLU (Shang et al. 2016): ``[N, C, *spatial]`` to ``[max(x, 0); max(-x, 0)]``, ``[N, 2C, *spatial]``.

    Takes any floating dtype and memory format.

    Raises:
        ValueError: for an input without channels.
        TypeError: for an input that is not floating-point.
    """

    if TYPE_CHECKING:  # of nn.Module's own call, no type checker knows the result
        def __call__(self, x: Tensor) -> Tensor: ...

    def forward(self, x: Tensor) -> Tensor:
        return ops.crelu(x)
