"""LENI and Reborn as modules that stand where an ``nn.ReLU`` stood."""

from __future__ import annotations

from torch import Tensor, distributed, nn

from . import ops
from .reference import Folded, FoldedReborn, Norm


def _norm_state(norm: nn.Module) -> Norm:
    """The state of a BatchNorm2d or SyncBatchNorm."""
    return Norm(norm.running_mean, norm.running_var, norm.weight, norm.bias, norm.training, norm.momentum, norm.eps,
                norm.num_batches_tracked)


def _sync_group(norm: nn.Module) -> str:
    """The process group that a SyncBatchNorm in training takes its statistics over; "" if it stays by itself."""
    if not (isinstance(norm, nn.SyncBatchNorm) and norm.training and distributed.is_available()
            and distributed.is_initialized()):
        return ""
    group = norm.process_group or distributed.group.WORLD
    return group.group_name if group.size() > 1 else ""


_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_PLAIN_LAYERS = (nn.ConvTranspose2d, nn.Conv2d, nn.BatchNorm2d, nn.SyncBatchNorm)


def hooked(module: nn.Module) -> bool:
    """Whether calling the module does more than its forward."""
    return any(getattr(module, hooks) for hooks in _HOOKS)


def _plain(layer: nn.Module) -> bool:
    """Whether the layer computes what PyTorch's own does with its tensors; a parametrized one does too."""
    forward = type(layer).forward
    return "forward" not in vars(layer) and any(forward is known.forward for known in _PLAIN_LAYERS)


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
        for name, child in self.named_children():
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
        return ops.LeniParameters(self.deconv.weight, _norm_state(self.bn_negative),
                                  _norm_state(self.bn_fusion), self.compress.weight, self.compress.bias)

    def obstacle(self) -> str | None:
        if _sync_group(self.bn_negative) != _sync_group(self.bn_fusion):
            return "the two batch norms synchronise over different process groups"
        return super().obstacle()

    def forward(self, x: Tensor) -> Tensor:
        obstacle = self.obstacle()
        parameters = self.parameters_for_kernels() if obstacle is None else None
        layers = (self.deconv, self.bn_negative, self.bn_fusion, self.compress)
        return ops.run_leni(x, parameters, layers, obstacle, _sync_group(self.bn_negative))


class Reborn2d(_Block):
    """Reborn (Cai, Huang, Peng 2021, eq. 2): ``compress([max(x,0); bn_negative(deconv(min(x,0)))])``.

    Takes and returns ``[N, C, H, W]``, in any floating dtype and memory format.

    Args:
        channels: C.
        kernel_size: k of the transposed convolution, odd; the paper's is 3.
        groups: its groups; the paper's is 1, a dense one.
        eps, momentum: of the batch norm, as in ``nn.BatchNorm2d``.

    Children:
        deconv: ``nn.ConvTranspose2d(C, C, k, padding=k//2, groups=groups, bias=False)``
        bn_negative: ``nn.BatchNorm2d(C)``
        compress: ``nn.Conv2d(2C, C, 1)``

    Raises:
        ValueError: for an even kernel size, or an input that does not fit.
        TypeError: for a dtype that does not fit the parameters'.
    """

    def __init__(self, channels: int, kernel_size: int = 3, groups: int = 1, eps: float = 1e-5,
                 momentum: float | None = 0.1, device: object = None, dtype: object = None) -> None:
        super().__init__(channels, kernel_size, groups, eps, momentum, device, dtype)
        self.compress = nn.Conv2d(2 * channels, channels, 1, device=device, dtype=dtype)

    def parameters_for_kernels(self) -> ops.RebornParameters:
        """The children's tensors as they are now."""
        return ops.RebornParameters(self.deconv.weight, _norm_state(self.bn_negative), self.compress.weight,
                                    self.compress.bias, self.deconv.groups)

    def forward(self, x: Tensor) -> Tensor:
        parameters = self.parameters_for_kernels() if self.obstacle() is None else None
        return ops.run_reborn(x, parameters, (self.deconv, self.bn_negative, self.compress))


# ---- inference forms ---------------------------------------------------------------------------------------


class _FoldedBlock(nn.Module):
    """Holds folded tensors as parameters that do not train."""

    def __init__(self, folded: Folded | FoldedReborn) -> None:
        super().__init__()
        for name, tensor in folded._asdict().items():
            self.register_parameter(name, nn.Parameter(tensor.detach().clone(), requires_grad=False))

    def extra_repr(self) -> str:
        return f"{self.bias.shape[0]}, kernel_size={self.taps.shape[-1]}"


class FoldedLENI2d(_FoldedBlock):
    """LENI2d with its norms folded, for inference: one fused operation on ``[N, C, H, W]``.

    Made by :func:`leni_kernels.fold`; ``taps`` ``[C, k, k]``, ``weight`` ``[C, 2C]``, ``bias`` ``[C]``.
    """

    def forward(self, x: Tensor) -> Tensor:
        return ops.leni_folded(x, self.taps, self.weight, self.bias)


class FoldedReborn2d(_FoldedBlock):
    """Reborn2d with its norm folded, for inference on ``[N, C, H, W]``.

    Made by :func:`leni_kernels.fold`; ``taps`` ``[C, C // groups, k, k]``, ``weight`` ``[C, 2C]``, ``bias``
    ``[C]``.
    """

    def __init__(self, folded: FoldedReborn, groups: int) -> None:
        super().__init__(folded)
        self.groups = groups

    def forward(self, x: Tensor) -> Tensor:
        return ops.reborn_folded(x, self.taps, self.weight, self.bias, self.groups)
