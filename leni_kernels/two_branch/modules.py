"""What the modules of LENI and Reborn share: the negative branch's layers, and how their tensors are read.

Tensors are read where nn.Module keeps them, since its own search is slow. One that is not there, as where it is
parametrized, is an attribute.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch.nn.functional as F
from torch import Tensor, distributed, nn

from ..common.hooks import hooked
from ..common.kept import Kept
from ..common.leaf import Leaf
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


LAYERS = {1: (nn.ConvTranspose1d, nn.BatchNorm1d, nn.Conv1d), 2: (nn.ConvTranspose2d, nn.BatchNorm2d, nn.Conv2d),
          3: (nn.ConvTranspose3d, nn.BatchNorm3d, nn.Conv3d)}
"""The layers of a block, by its number of spatial dimensions."""
_PLAIN_LAYERS = (*LAYERS[2], *LAYERS[1], *LAYERS[3], nn.SyncBatchNorm)


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


class Block(Leaf):
    """What LENI and Reborn share, of any dimensions: the deconvolution and its norm."""

    dims: ClassVar[int]

    if TYPE_CHECKING:  # of nn.Module's own call, no type checker knows the result
        def __call__(self, x: Tensor) -> Tensor: ...

    def __init__(self, channels: int, kernel_size: int, groups: int, eps: float, momentum: float | None,
                 device: object, dtype: object) -> None:
        super().__init__()
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise ValueError(f"{type(self).__name__}: kernel_size must be odd, got {kernel_size}")
        factory = {"device": device, "dtype": dtype}
        self.channels = channels
        deconv, norm, _ = LAYERS[self.dims]
        self.deconv = deconv(channels, channels, kernel_size, padding=kernel_size // 2, groups=groups, bias=False,
                             **factory)
        self.bn_negative = norm(channels, eps=eps, momentum=momentum, **factory)

    def obstacle(self) -> str | None:
        """Why the children must be called one by one, or None if only their tensors matter."""
        if self.dims == 3:
            return "kernels exist for one and two spatial dimensions"
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


# ---- blocks of one and of three dimensions -----------------------------------------------------------------
# A signal [N, C, L] is a feature map of height 1. A volume is one whose rows are those of all its planes, for what
# goes by its values one by one; its layers see it as it is.


def weight_in_a_plane(weight: Tensor) -> Tensor:
    """The weight of a 1d convolution, ``[O, I, k]``, as that of a 2d one on height 1, ``[O, I, k, k]``."""
    beside = weight.shape[-1] // 2
    return F.pad(weight.unsqueeze(2), (0, 0, beside, beside))


def in_a_plane(name: str, x: Tensor, dims: int, layers: Sequence[nn.Module | None],
               run: Callable[[Tensor, tuple[Any, ...]], Tensor]) -> Tensor:
    """``run(x, layers)``, which is for feature maps, on ``[N, C, *spatial]`` with layers for these.

    Raises:
        ValueError: for an x of other dimensions, or none of whose sites there is.
    """
    spatial = x.shape[2:]
    if len(spatial) != dims or 0 in (*spatial, x.shape[1]):
        raise ValueError(f"{name}: x must be [N, C, {'L' if dims == 1 else 'D, H, W'}] with at least one channel and "
                         f"site, got shape {tuple(x.shape)}")

    def planar(layer: nn.Module) -> Callable[[Tensor], Tensor]:
        return lambda y: _plane(layer(_as_it_is(y, spatial)))

    return _as_it_is(run(_plane(x), tuple(layer and planar(layer) for layer in layers)), spatial)


def _plane(x: Tensor) -> Tensor:
    return x.unsqueeze(2) if x.dim() == 3 else x.flatten(2, 3)


def _as_it_is(y: Tensor, spatial: Sequence[int]) -> Tensor:
    return y.squeeze(2) if len(spatial) == 1 else y.unflatten(2, spatial[:2])


# ---- inference forms ---------------------------------------------------------------------------------------


class FoldedBlock(Leaf):
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
