"""Reborn as a module that stands where an ``nn.ReLU`` stood, and its inference forms."""

from __future__ import annotations

from torch import Tensor, nn

from ..two_branch.modules import Block, FoldedBlock, norm_state, sync_group, weight_and_bias
from . import ops
from .reference import FoldedReborn, FoldedRebornFeatures


class Reborn2d(Block):
    """Reborn (Cai, Huang, Peng 2021, eq. 2): ``compress([max(x,0); bn_negative(deconv(min(x,0)))])``.

    Takes and returns ``[N, C, H, W]``, in any floating dtype and memory format; without compression it returns
    ``[N, 2C, H, W]``. In training and in eval mode what follows the deconvolution is fused; on a CPU a dense 3×3 one of
    up to 256 channels trains in float32 by kernels of its own, and so does a small one of any kind; any other is the
    library's. x and the deconvolved map
    are kept for backward.

    Where no kernel serves (a compression that is not 1×1, or none, is such a case), or if a child has a hook or was
    replaced by another kind of layer, its layers run one by one; :func:`leni_kernels.explain` tells.

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

    def __init__(self, channels: int, kernel_size: int = 3, groups: int = 1, compress_kernel_size: int = 1,
                 compress: bool = True, eps: float = 1e-5, momentum: float | None = 0.1, device: object = None,
                 dtype: object = None) -> None:
        super().__init__(channels, kernel_size, groups, eps, momentum, device, dtype)
        if compress_kernel_size < 1 or compress_kernel_size % 2 == 0:
            raise ValueError(f"Reborn2d: compress_kernel_size must be odd, got {compress_kernel_size}")
        self.compress = nn.Conv2d(2 * channels, channels, compress_kernel_size, padding=compress_kernel_size // 2,
                                  device=device, dtype=dtype) if compress else None

    def parameters_for_kernels(self) -> ops.RebornParameters:
        """The children's tensors as they are now."""
        children = self._modules
        deconv, compress = children["deconv"], children.get("compress")
        of_compress = (None, None) if compress is None else weight_and_bias(compress)
        return ops.RebornParameters(weight_and_bias(deconv)[0], norm_state(children["bn_negative"]),
                                    *of_compress, deconv.groups)

    def forward(self, x: Tensor) -> Tensor:
        obstacle = self.obstacle()
        parameters = self.parameters_for_kernels() if obstacle is None else None
        children = self._modules
        layers = (children["deconv"], children["bn_negative"], children.get("compress"))
        return ops.run_reborn(x, parameters, layers, obstacle, sync_group(layers[1]))


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
