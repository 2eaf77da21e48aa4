"""LENI as modules that stand where an ``nn.ReLU`` stood, and its inference form."""

from __future__ import annotations

from torch import Tensor, nn

from ..two_branch.modules import (
    LAYERS,
    Block,
    FoldedBlock,
    LazyBlock,
    norm_state,
    sync_group,
    weight_and_bias,
)
from . import ops


class _LENI(Block):
    """What LENI1d, LENI2d and LENI3d share."""

    _layers = ("deconv", "bn_negative", "bn_fusion", "compress", "deconv_pointwise")
    _run = staticmethod(ops.run_leni)

    def __init__(self, channels: int, kernel_size: int = 3, eps: float = 1e-5, momentum: float | None = 0.1,
                 device: object = None, dtype: object = None, *, separable: bool = False) -> None:
        super().__init__(channels, kernel_size, channels, eps, momentum, device, dtype, separable)
        if not separable:
            self.deconv_pointwise = None
        _, norm, conv = LAYERS[self.dims]
        self.bn_fusion = norm(2 * channels, eps=eps, momentum=momentum, device=device, dtype=dtype)
        self.compress = conv(2 * channels, channels, 1, device=device, dtype=dtype)

    def parameters_for_kernels(self) -> ops.LeniParameters:
        """The children's tensors as they are now."""
        children = self._modules
        pointwise = children.get("deconv_pointwise")
        return ops.LeniParameters(weight_and_bias(children["deconv"])[0], norm_state(children["bn_negative"]),
                                  norm_state(children["bn_fusion"]), *weight_and_bias(children["compress"]),
                                  None if pointwise is None else weight_and_bias(pointwise)[0])

    def obstacle(self) -> str | None:
        children = self._modules
        if sync_group(children["bn_negative"]) != sync_group(children["bn_fusion"]):
            return "the two batch norms synchronise over different process groups"
        return super().obstacle()


class LENI2d(_LENI):
    """LENI (Cai, Peng, Shen 2023, §3.1): ``compress(bn_fusion([max(x,0); bn_negative(deconv(min(x,0)))]))``.

    Takes and returns ``[N, C, H, W]``, in any floating dtype and memory format. The block is one fused
    operation that reads its children's tensors at every call and keeps only its input for backward. The children are
    ordinary PyTorch modules: initialisers, SyncBatchNorm conversion and weight-decay filters apply. Where no kernel
    serves, or if a child has a hook or was replaced by another kind of layer, the layers run one by one, and once in a
    process a warning tells of such a hook; :func:`leni_kernels.explain` always does. Hooks that only compute a child's
    tensors are no such hooks: those of ``torch.nn.utils.prune``, ``weight_norm`` and ``spectral_norm``.

    Args:
        channels: C.
        kernel_size: k of the depthwise transposed convolution, odd. The paper names none; 3 is the default.
        eps: of both batch norms, as in ``nn.BatchNorm2d``.
        momentum: of both, as there; None averages over all batches.
        device: of the parameters.
        dtype: of the parameters, and so of the inputs, outside of autocast.
        separable: whether the deconvolution is depthwise separable, with a pointwise convolution behind the depthwise
            one, and not depthwise alone. The paper's words may mean either.

    Attributes:
        deconv: ``nn.ConvTranspose2d(C, C, k, padding=k//2, groups=C, bias=False)``
        deconv_pointwise: ``nn.Conv2d(C, C, 1, bias=False)`` if ``separable``, else None
        bn_negative: ``nn.BatchNorm2d(C)``
        bn_fusion: ``nn.BatchNorm2d(2C)``
        compress: ``nn.Conv2d(2C, C, 1)``

    Raises:
        ValueError: for an even kernel size, or an input that does not fit.
        TypeError: for a dtype that does not fit the parameters'.
    """

    dims = 2
    deconv: nn.ConvTranspose2d
    deconv_pointwise: nn.Conv2d | None
    bn_negative: nn.BatchNorm2d
    bn_fusion: nn.BatchNorm2d
    compress: nn.Conv2d


class LENI1d(_LENI):
    """LENI (Cai, Peng, Shen 2023, §3.1) on ``[N, C, L]``; otherwise as :class:`LENI2d`, with layers for that.

    It runs on the kernels of LENI2d, as a feature map of height 1.
    """

    dims = 1
    deconv: nn.ConvTranspose1d
    deconv_pointwise: nn.Conv1d | None
    bn_negative: nn.BatchNorm1d
    bn_fusion: nn.BatchNorm1d
    compress: nn.Conv1d


class LENI3d(_LENI):
    """LENI (Cai, Peng, Shen 2023, §3.1) on ``[N, C, D, H, W]``; otherwise as :class:`LENI2d`, with layers for that.

    No kernel serves: its layers run one by one.
    """

    dims = 3
    deconv: nn.ConvTranspose3d
    deconv_pointwise: nn.Conv3d | None
    bn_negative: nn.BatchNorm3d
    bn_fusion: nn.BatchNorm3d
    compress: nn.Conv3d


class LazyLENI2d(LazyBlock, LENI2d):
    """A :class:`LENI2d` whose number of channels is that of its first input, for ``act_layer=lk.LazyLENI2d``.

    Takes :class:`LENI2d`'s arguments but for ``channels``, and ``inplace``, which it ignores. At the first call it
    becomes a :class:`LENI2d`, with the values that a new one has. It is to that what ``nn.LazyBatchNorm2d`` is to
    ``nn.BatchNorm2d``: until then its parameters are uninitialized ones of PyTorch's, which can be moved, cast, saved
    and loaded, from its own state or a :class:`LENI2d`'s. Its layers become PyTorch's at the same call, so that a
    network's own initialiser, which runs before, passes them by.

    Raises:
        ValueError: in the first call, for an input that does not fit, or not what was loaded; it stays lazy then.
    """

    cls_to_become = LENI2d


class LazyLENI1d(LazyBlock, LENI1d):
    """A :class:`LENI1d` whose number of channels is that of its first input; otherwise as :class:`LazyLENI2d`."""

    cls_to_become = LENI1d


class LazyLENI3d(LazyBlock, LENI3d):
    """A :class:`LENI3d` whose number of channels is that of its first input; otherwise as :class:`LazyLENI2d`."""

    cls_to_become = LENI3d


class FoldedLENI2d(FoldedBlock):
    """LENI2d with its norms folded, for inference: one fused operation on ``[N, C, H, W]``.

    Made by :func:`leni_kernels.fold`; ``taps`` ``[C, k, k]``, ``weight`` ``[C, 2C]``, ``bias`` ``[C]``, and the norms'
    ``mean`` ``[2C]`` of what the weight multiplies, which keeps half precision from losing deviations from it.
    """

    def forward(self, x: Tensor) -> Tensor:
        parameters, buffers = self._parameters, self._buffers
        try:
            tensors = parameters["taps"], parameters["weight"], parameters["bias"], buffers["mean"]
        except KeyError:
            tensors = self.taps, self.weight, self.bias, self.mean
        return ops.run_leni_folded(x, *tensors, self._kept)
