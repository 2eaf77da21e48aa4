"""LENI and Reborn as modules that stand where an ``nn.ReLU`` stood."""

from __future__ import annotations

from torch import Tensor, distributed, nn

from ..kept import Kept
from . import ops, reborn_ops
from .reference import Folded, FoldedReborn, FoldedRebornFeatures, Norm

# Tensors are read where nn.Module keeps them, since its own search is slow. One that is not there, as where it is
# parametrized, is an attribute.


def _norm_state(norm: nn.Module) -> Norm:
    """The state of a BatchNorm2d or SyncBatchNorm."""
    parameters, buffers = norm._parameters, norm._buffers
    try:
        return Norm(buffers["running_mean"], buffers["running_var"], parameters["weight"], parameters["bias"],
                    norm.training, norm.momentum, norm.eps, buffers["num_batches_tracked"])
    except KeyError:
        return Norm(norm.running_mean, norm.running_var, norm.weight, norm.bias, norm.training, norm.momentum,
                    norm.eps, norm.num_batches_tracked)


def _weight_and_bias(layer: nn.Module) -> tuple[Tensor, Tensor | None]:
    parameters = layer._parameters
    try:
        return parameters["weight"], parameters["bias"]
    except KeyError:
        return layer.weight, layer.bias


def _sync_group(norm: nn.Module) -> str:
    """The process group that a SyncBatchNorm in training takes its statistics over; "" if it stays by itself."""
    if type(norm) is nn.BatchNorm2d:  # as it nearly always is
        return ""
    if not (isinstance(norm, nn.SyncBatchNorm) and norm.training and distributed.is_available()
            and distributed.is_initialized()):
        return ""
    group = norm.process_group or distributed.group.WORLD
    return group.group_name if group.size() > 1 else ""


def hooked(module: nn.Module) -> bool:
    """Whether calling the module does more than its forward."""
    return bool(module._forward_hooks or module._forward_pre_hooks or module._backward_hooks
                or module._backward_pre_hooks)


_PLAIN_LAYERS = (nn.ConvTranspose2d, nn.Conv2d, nn.BatchNorm2d, nn.SyncBatchNorm)


def _untouched(layer: nn.Module) -> bool:
    """Whether a layer is one of PyTorch's and has no hooks, as nearly always: it is plain then, and not hooked."""
    return type(layer) in _PLAIN_LAYERS and not (
        layer._forward_hooks or layer._forward_pre_hooks or layer._backward_hooks or layer._backward_pre_hooks
        or "forward" in layer.__dict__)


def _plain(layer: nn.Module) -> bool:
    """Whether the layer computes what PyTorch's own does with its tensors; a parametrized one does too."""
    if "forward" in vars(layer):
        return False
    return type(layer) in _PLAIN_LAYERS or any(type(layer).forward is known.forward for known in _PLAIN_LAYERS)


class _Block(nn.Module):
    """What LENI2d and Reborn2d share: the deconvolution and its norm."""

    def __init__(self, channels: int, kernel_size: int, groups: int, eps: float, momentum: float | None,
                 device: object, dtype: object) -> None:
        super().__init__()
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise ValueError(f"{type(self).__name__}: kernel_size must be odd, got {kernel_size}")
        factory = {"device": device, "dtype": dtype}
        self.channels = channels
        self.deconv = nn.ConvTranspose2d(channels, channels, kernel_size, padding=kernel_size // 2,
                                         groups=groups, bias=False, **factory)
        self.bn_negative = nn.BatchNorm2d(channels, eps=eps, momentum=momentum, **factory)

    def obstacle(self) -> str | None:
        """Why the children must be called one by one, or None if only their tensors matter."""
        for name, child in self._modules.items():
            if child is None or _untouched(child):
                continue
            if hooked(child):
                return f"a hook on {name} must see its layer run"
            if not _plain(child):
                return f"{name} was replaced by a {type(child).__name__}"
        return None

    def extra_repr(self) -> str:
        return f"{self.channels}"


class LENI2d(_Block):
    """LENI (Cai, Peng, Shen 2023, §3.1): ``compress(bn_fusion([max(x,0); bn_negative(deconv(min(x,0)))]))``.

    Takes and returns ``[N, C, H, W]``, in any floating dtype and memory format. The block is one fused
    operation that reads the children's tensors at every call and keeps only its input for backward. Where no kernel
    serves, or if a child has a hook or was replaced by another kind of layer, its layers run one by one;
    :func:`leni_kernels.explain` tells.

    Args:
        channels: C.
        kernel_size: k of the depthwise transposed convolution, odd. The paper names none; 3 is the default.
        eps, momentum: of both batch norms, as in ``nn.BatchNorm2d``.

    Children (ordinary PyTorch modules: initialisers, SyncBatchNorm conversion, weight-decay filters apply):
        deconv: ``nn.ConvTranspose2d(C, C, k, padding=k//2, groups=C, bias=False)``
        bn_negative: ``nn.BatchNorm2d(C)``
        bn_fusion: ``nn.BatchNorm2d(2C)``
        compress: ``nn.Conv2d(2C, C, 1)``

    Raises:
        ValueError: for an even kernel size, or an input that does not fit.
        TypeError: for a dtype that does not fit the parameters'.
    """

    def __init__(self, channels: int, kernel_size: int = 3, eps: float = 1e-5, momentum: float | None = 0.1,
                 device: object = None, dtype: object = None) -> None:
        super().__init__(channels, kernel_size, channels, eps, momentum, device, dtype)
        self.bn_fusion = nn.BatchNorm2d(2 * channels, eps=eps, momentum=momentum, device=device, dtype=dtype)
        self.compress = nn.Conv2d(2 * channels, channels, 1, device=device, dtype=dtype)

    def parameters_for_kernels(self) -> ops.LeniParameters:
        """The children's tensors as they are now."""
        children = self._modules
        return ops.LeniParameters(_weight_and_bias(children["deconv"])[0], _norm_state(children["bn_negative"]),
                                  _norm_state(children["bn_fusion"]), *_weight_and_bias(children["compress"]))

    def obstacle(self) -> str | None:
        children = self._modules
        if _sync_group(children["bn_negative"]) != _sync_group(children["bn_fusion"]):
            return "the two batch norms synchronise over different process groups"
        return super().obstacle()

    def forward(self, x: Tensor) -> Tensor:
        obstacle = self.obstacle()
        parameters = self.parameters_for_kernels() if obstacle is None else None
        children = self._modules
        layers = (children["deconv"], children["bn_negative"], children["bn_fusion"], children["compress"])
        return ops.run_leni(x, parameters, layers, obstacle, _sync_group(layers[1]))


class Reborn2d(_Block):
    """Reborn (Cai, Huang, Peng 2021, eq. 2): ``compress([max(x,0); bn_negative(deconv(min(x,0)))])``.

    Takes and returns ``[N, C, H, W]``, in any floating dtype and memory format; without compression it returns
    ``[N, 2C, H, W]``. In training and in eval mode what follows the deconvolution is fused; on a CPU a dense 3×3 one of
    up to 256 channels trains in float32 by kernels of its own, any other is the library's. x and the deconvolved map
    are kept for backward.
    Where no kernel serves (a compression that is not 1×1, or none, is such a case), or if a child has a hook or was
    replaced by another kind of layer, its layers run one by one; :func:`leni_kernels.explain` tells.

    Args:
        channels: C.
        kernel_size: k of the transposed convolution, odd; the paper's is 3.
        groups: its groups; the paper's is 1, a dense one, and C, a depthwise one, a variant of it.
        compress_kernel_size: m of the compression, odd; the paper's is 1, and 3 a variant of it.
        compress: whether there is a compression; a variant of the paper's leaves it out.
        eps, momentum: of the batch norm, as in ``nn.BatchNorm2d``.

    Children:
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

    def parameters_for_kernels(self) -> reborn_ops.RebornParameters:
        """The children's tensors as they are now."""
        children = self._modules
        deconv, compress = children["deconv"], children.get("compress")
        weight_and_bias = (None, None) if compress is None else _weight_and_bias(compress)
        return reborn_ops.RebornParameters(_weight_and_bias(deconv)[0], _norm_state(children["bn_negative"]),
                                           *weight_and_bias, deconv.groups)

    def forward(self, x: Tensor) -> Tensor:
        obstacle = self.obstacle()
        parameters = self.parameters_for_kernels() if obstacle is None else None
        children = self._modules
        layers = (children["deconv"], children["bn_negative"], children.get("compress"))
        return reborn_ops.run_reborn(x, parameters, layers, obstacle, _sync_group(layers[1]))


# ---- inference forms ---------------------------------------------------------------------------------------


class _FoldedBlock(nn.Module):
    """Holds folded tensors as parameters that do not train, and their mean as a buffer.

    What the kernels read of them is kept between calls, and made again when a tensor changes, in place or for another;
    but a write through ``.data`` is not seen.
    """

    def __init__(self, folded: Folded | FoldedReborn | FoldedRebornFeatures) -> None:
        super().__init__()
        tensors = {name: tensor.detach().clone() for name, tensor in folded._asdict().items()}
        if "mean" in tensors:
            self.register_buffer("mean", tensors.pop("mean"))
        for name, tensor in tensors.items():
            self.register_parameter(name, nn.Parameter(tensor, requires_grad=False))
        self._kept = Kept()

    def extra_repr(self) -> str:
        return f"{self.taps.shape[0]}, kernel_size={self.taps.shape[-1]}"


class FoldedLENI2d(_FoldedBlock):
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


class FoldedReborn2d(_FoldedBlock):
    """Reborn2d with its norm folded, for inference on ``[N, C, H, W]``.

    Made by :func:`leni_kernels.fold`; ``taps`` ``[C, C // groups, k, k]``, ``weight`` ``[C, 2C]``, ``bias``
    ``[C]``.
    """

    def __init__(self, folded: FoldedReborn, groups: int) -> None:
        super().__init__(folded)
        self.groups = groups

    def forward(self, x: Tensor) -> Tensor:
        return reborn_ops.run_reborn_folded(x, self.taps, self.weight, self.bias, self.groups, self._kept)


class FoldedRebornFeatures2d(_FoldedBlock):
    """Reborn2d's 2C channels with its norm folded, for inference: ``[N, C, H, W]`` to ``[N, 2C, H, W]``.

    Made by :func:`leni_kernels.fold` of a block whose compression is not 1×1, and which stands behind it, or which
    has none; ``taps`` ``[C, C // groups, k, k]``, ``shift`` ``[C]``.
    """

    def __init__(self, folded: FoldedRebornFeatures, groups: int) -> None:
        super().__init__(folded)
        self.groups = groups

    def forward(self, x: Tensor) -> Tensor:
        return reborn_ops.reborn_features_folded(x, self.taps, self.shift, self.groups)
