"""Reborn as modules that stand where an ``nn.ReLU`` stood, and its inference forms."""

from __future__ import annotations

from torch import Tensor, nn

from ..common import checks
from ..two_branch.modules import (
    LAYERS,
    Block,
    FoldedBlock,
    LazyBlock,
    norm_state,
    weight_and_bias,
)
from . import ops
from .reference import FoldedReborn, FoldedRebornFeatures


class _Reborn(Block):
    """What Reborn1d, Reborn2d and Reborn3d share."""

    _layers = ("deconv", "bn_negative", "compress")
    _run = staticmethod(ops.run_reborn)

    def __init__(self, channels: int, kernel_size: int = 3, groups: int = 1, compress_kernel_size: int = 1,
                 compress: bool = True, eps: float = 1e-5, momentum: float | None = 0.1, device: object = None,
                 dtype: object = None) -> None:
        super().__init__(channels, kernel_size, groups, eps, momentum, device, dtype)
        compress_kernel_size = checks.integer(type(self).__name__, "compress_kernel_size", compress_kernel_size)
        if compress_kernel_size < 1 or compress_kernel_size % 2 == 0:
            raise ValueError(f"{type(self).__name__}: compress_kernel_size must be odd, got {compress_kernel_size}")
        self.compress = LAYERS[self.dims][2](2 * channels, channels, compress_kernel_size, device=device, dtype=dtype,
                                             padding=compress_kernel_size // 2) if compress else None

    def parameters_for_kernels(self) -> ops.RebornParameters:
        """The children's tensors as they are now."""
        children = self._modules
        deconv, compress = children["deconv"], children.get("compress")
        return ops.RebornParameters(weight_and_bias(deconv)[0], norm_state(children["bn_negative"]),
                                    *(weight_and_bias(compress) if compress else (None, None)), deconv.groups)


class Reborn2d(_Reborn):
    """Reborn (Cai, Huang, Peng 2021, eq. 2): ``compress([max(x,0); bn_negative(deconv(min(x,0)))])``.

    Takes and returns ``[N, C, H, W]``, in any floating dtype and memory format; without compression it returns
    ``[N, 2C, H, W]``. In training and in eval mode what follows the deconvolution is fused; on a CPU a dense 3×3 one of
    up to 256 channels trains in float32 or float16 by kernels of its own, and so does a small one of any kind; any
    other is the library's. x and the deconvolved map are kept for backward.

    Where no kernel serves (a compression that is not 1×1, or none, is such a case), or if a child has a hook or was
    replaced by another kind of layer, its layers run one by one, of which :func:`leni_kernels.explain` tells; hooks are
    :class:`LENI2d`'s.

    Args:
        channels: C.
        kernel_size: k of the transposed convolution, odd; the paper's is 3.
        groups: its groups; the paper's is 1, a dense one, and C, a depthwise one, a variant of it.
        compress_kernel_size: m of the compression, odd; the paper's is 1, and 3 a variant of it.
        compress: whether there is a compression; a variant of the paper's leaves it out.
        eps: of the batch norm, as in ``nn.BatchNorm2d``.
        momentum: of the batch norm, as there; None averages over all batches.
        device: of the parameters.
        dtype: of the parameters, and so of the inputs, outside of autocast.

    Attributes:
        deconv: ``nn.ConvTranspose2d(C, C, k, padding=k//2, groups=groups, bias=False)``
        bn_negative: ``nn.BatchNorm2d(C)``
        compress: ``nn.Conv2d(2C, C, m, padding=m//2)``, or None

    Raises:
        ValueError: for an even kernel size, or an input that does not fit.
        TypeError: for a dtype that does not fit the parameters'.
    """

    dims = 2
    deconv: nn.ConvTranspose2d
    bn_negative: nn.BatchNorm2d
    compress: nn.Conv2d | None


class Reborn1d(_Reborn):
    """Reborn (Cai, Huang, Peng 2021, eq. 2) on ``[N, C, L]``; otherwise as :class:`Reborn2d`, with layers for that.

    It runs on the kernels of Reborn2d, as a feature map of height 1.
    """

    dims = 1
    deconv: nn.ConvTranspose1d
    bn_negative: nn.BatchNorm1d
    compress: nn.Conv1d | None


class Reborn3d(_Reborn):
    """Reborn (Cai, Huang, Peng 2021, eq. 2) on ``[N, C, D, H, W]``; otherwise as :class:`Reborn2d`, with layers for it.

    No kernel serves: its layers run one by one.
    """

    dims = 3
    deconv: nn.ConvTranspose3d
    bn_negative: nn.BatchNorm3d
    compress: nn.Conv3d | None


class LazyReborn2d(LazyBlock, Reborn2d):
    """A :class:`Reborn2d` whose number of channels is that of its first input.

    Takes :class:`Reborn2d`'s arguments but for ``channels``, and ``inplace``, which it ignores; otherwise as
    :class:`LazyLENI2d`.
    """

    cls_to_become = Reborn2d


class LazyReborn1d(LazyBlock, Reborn1d):
    """A :class:`Reborn1d` whose number of channels is that of its first input; otherwise as :class:`LazyReborn2d`."""

    cls_to_become = Reborn1d


class LazyReborn3d(LazyBlock, Reborn3d):
    """A :class:`Reborn3d` whose number of channels is that of its first input; otherwise as :class:`LazyReborn2d`."""

    cls_to_become = Reborn3d


class FoldedReborn2d(FoldedBlock):
    """Reborn2d with its norm folded, for inference on ``[N, C, H, W]``.

    Made by :func:`leni_kernels.fold`; ``taps`` ``[C, C // groups, k, k]``, ``weight`` ``[C, 2C]``, ``bias``
    ``[C]``.
    """

    def __init__(self, folded: FoldedReborn, groups: int) -> None:
        super().__init__(folded)
        self.groups = groups

    def forward(self, x: Tensor) -> Tensor:
        return ops.run_reborn_folded(x, self.taps, self.weight, self.bias, self.groups, self._kept)


class FoldedRebornFeatures2d(FoldedBlock):
    """Reborn2d's 2C channels with its norm folded, for inference: ``[N, C, H, W]`` to ``[N, 2C, H, W]``.

    Made by :func:`leni_kernels.fold` of a block whose compression is not 1×1, and which stands behind it, or which
    has none; ``taps`` ``[C, C // groups, k, k]``, ``shift`` ``[C]``.
    """

    def __init__(self, folded: FoldedRebornFeatures, groups: int) -> None:
        super().__init__(folded)
        self.groups = groups

    def forward(self, x: Tensor) -> Tensor:
        return ops.reborn_features_folded(x, self.taps, self.shift, self.groups)
