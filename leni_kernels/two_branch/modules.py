"""What the modules of LENI and Reborn share: the negative branch's layers, and how their tensors are read.

Tensors are read where nn.Module keeps them, since its own search is slow. One that is not there, as where it is
parametrized, is an attribute.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, distributed, nn

from ..common.hooks import hooked
from ..common.kept import Kept
from ..common.norm import Norm


def norm_state(norm: nn.Module) -> Norm:
    """The state of a BatchNorm2d or SyncBatchNorm."""
    parameters, buffers = norm._parameters, norm._buffers
    try:
        return Norm(buffers["running_mean"], buffers["running_var"], parameters["weight"], parameters["bias"],
                    norm.training, norm.momentum, norm.eps, buffers["num_batches_tracked"])
    except KeyError:
        return Norm(norm.running_mean, norm.running_var, norm.weight, norm.bias, norm.training, norm.momentum,
                    norm.eps, norm.num_batches_tracked)


def weight_and_bias(layer: nn.Module) -> tuple[Tensor, Tensor | None]:
    parameters = layer._parameters
    try:
        return parameters["weight"], parameters["bias"]
    except KeyError:
        return layer.weight, layer.bias


def sync_group(norm: nn.Module) -> str:
    """The process group that a SyncBatchNorm in training takes its statistics over; "" if it stays by itself."""
    if type(norm) is nn.BatchNorm2d:  # as it nearly always is
        return ""
    if not (isinstance(norm, nn.SyncBatchNorm) and norm.training and distributed.is_available()
            and distributed.is_initialized()):
        return ""
    group = norm.process_group or distributed.group.WORLD
    return group.group_name if group.size() > 1 else ""


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


class Block(nn.Module):
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


# ---- inference forms ---------------------------------------------------------------------------------------


class FoldedBlock(nn.Module):
    """Holds folded tensors, a named tuple of them, as parameters that do not train, and their mean as a buffer.

    What the kernels read of them is kept between calls, and made again when a tensor changes, in place or for another;
    but a write through ``.data`` is not seen.
    """

    def __init__(self, folded: Any) -> None:
        super().__init__()
        tensors = {name: tensor.detach().clone() for name, tensor in folded._asdict().items()}
        if "mean" in tensors:
            self.register_buffer("mean", tensors.pop("mean"))
        for name, tensor in tensors.items():
            self.register_parameter(name, nn.Parameter(tensor, requires_grad=False))
        self._kept = Kept()

    def extra_repr(self) -> str:
        return f"{self.taps.shape[0]}, kernel_size={self.taps.shape[-1]}"
