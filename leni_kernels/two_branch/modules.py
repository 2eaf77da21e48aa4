"""What the modules of LENI and Reborn share: the negative branch's layers, and how their tensors are read.

Tensors and options are read where nn.Module keeps them, in its ``__dict__``, since its own search is slow. One that is
not there, as where it is parametrized, is an attribute; a hook may have to compute it first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import torch.nn.functional as F
from torch import Tensor, distributed, nn

from ..common import checks
from ..common.hooks import compute_tensors, must_run, warn_of_hook
from ..common.kept import Kept
from ..common.lazy import LazyActivation
from ..common.leaf import Leaf
from ..common.norm import Norm
from .reference import Layer


def norm_state(norm: nn.Module) -> Norm:
    """The state of a BatchNorm2d or SyncBatchNorm."""
    own = norm.__dict__
    parameters, buffers = own["_parameters"], own["_buffers"]
    try:
        return Norm(buffers["running_mean"], buffers["running_var"], parameters["weight"], parameters["bias"],
                    own["training"], own["momentum"], own["eps"], buffers["num_batches_tracked"])
    except KeyError:
        compute_tensors(norm)
        return Norm(norm.running_mean, norm.running_var, norm.weight, norm.bias, norm.training, norm.momentum,
                    norm.eps, norm.num_batches_tracked)


def weight_and_bias(layer: nn.Module) -> tuple[Tensor, Tensor | None]:
    parameters = layer.__dict__["_parameters"]
    try:
        return parameters["weight"], parameters["bias"]
    except KeyError:
        compute_tensors(layer)
        return layer.weight, layer.bias


_BATCH_NORM = nn.BatchNorm2d


def sync_group(norm: nn.Module) -> str:
    """The process group that a SyncBatchNorm in training takes its statistics over; "" if it stays by itself."""
    if type(norm) is _BATCH_NORM:  # as it nearly always is
        return ""
    if not (isinstance(norm, nn.SyncBatchNorm) and norm.training and distributed.is_available()
            and distributed.is_initialized()):
        return ""
    group = norm.process_group or distributed.group.WORLD
    return group.group_name if group.size() > 1 else ""


LAYERS = {1: (nn.ConvTranspose1d, nn.BatchNorm1d, nn.Conv1d), 2: (nn.ConvTranspose2d, nn.BatchNorm2d, nn.Conv2d),
          3: (nn.ConvTranspose3d, nn.BatchNorm3d, nn.Conv3d)}
"""The layers of a block, by its number of spatial dimensions."""
SPATIAL = {1: ("L",), 2: ("H", "W"), 3: ("D", "H", "W")}
"""The spatial axes in messages, by how many there are."""
_ONCE = {1: (1,), 2: (1, 1)}
_PLAIN_LAYERS = (*LAYERS[2], *LAYERS[1], *LAYERS[3], nn.SyncBatchNorm)


def _untouched(layer: nn.Module) -> bool:
    """Whether a layer is one of PyTorch's and has no hooks, as nearly always: it is plain then, and not hooked."""
    own = layer.__dict__
    return type(layer) in _PLAIN_LAYERS and not (
        own["_forward_hooks"] or own["_forward_pre_hooks"] or own["_backward_hooks"] or own["_backward_pre_hooks"]
        or "forward" in own)


def _plain(layer: nn.Module) -> bool:
    """Whether the layer computes what PyTorch's own does with its tensors; a parametrized one does too."""
    if "forward" in vars(layer):
        return False
    return type(layer) in _PLAIN_LAYERS or any(type(layer).forward is known.forward for known in _PLAIN_LAYERS)


def _as_made(convolution: nn.Module, kind: type[nn.Module], dims: int) -> bool:
    """Whether it keeps the size of what it reads, as those of a block do, and reads zeros beside it."""
    if type(convolution) is not kind and not isinstance(convolution, kind):
        return False
    own, once = convolution.__dict__, _ONCE[dims]  # where its options are, at the least cost
    size = own["kernel_size"][0]
    return (own["stride"] == once and own["padding"] == (size // 2,) * dims
            and (size == 1 or own["dilation"] == once) and own["padding_mode"] == "zeros")


def _is_pointwise(convolution: nn.Module, kind: type[nn.Module], dims: int) -> bool:
    """Whether it is a product of each pixel's channels with a matrix, and nothing else."""
    own = convolution.__dict__
    return (_as_made(convolution, kind, dims) and own["kernel_size"] == _ONCE[dims] and own["groups"] == 1
            and own["_parameters"].get("bias") is None)


class Block(Leaf):
    """What LENI and Reborn share, of any dimensions: the deconvolution and its norm."""

    dims: ClassVar[int]
    _layers: ClassVar[tuple[str, ...]]
    """The children in the order in which the definition takes them."""
    _run: ClassVar[Callable[..., Tensor]]
    """The function of the mechanism: of x, parameters, what makes the layers, an obstacle and a process group."""

    if TYPE_CHECKING:  # of nn.Module's own call, no type checker knows the result
        def __call__(self, x: Tensor) -> Tensor: ...

    def __init__(self, channels: int, kernel_size: int, groups: int, eps: float, momentum: float | None,
                 device: object, dtype: object, separable: bool = False) -> None:
        super().__init__()
        name = type(self).__name__
        channels, groups = checks.integer(name, "channels", channels), checks.integer(name, "groups", groups)
        kernel_size = checks.integer(name, "kernel_size", kernel_size)
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise ValueError(f"{name}: kernel_size must be odd, got {kernel_size}")
        factory = {"device": device, "dtype": dtype}
        self.channels = channels
        deconv, norm, conv = LAYERS[self.dims]
        self.deconv = deconv(channels, channels, kernel_size, padding=kernel_size // 2, groups=groups, bias=False,
                             **factory)
        if separable:
            self.deconv_pointwise = conv(channels, channels, 1, bias=False, **factory)
        self.bn_negative = norm(channels, eps=eps, momentum=momentum, **factory)

    def obstacle(self) -> str | None:
        """Why the children must be called one by one, or None if only their tensors matter."""
        dims, children = self.dims, self._modules
        if dims == 3:
            return "kernels exist for one and two spatial dimensions"
        for name, child in children.items():
            if child is None or _untouched(child):
                continue
            if must_run(child):
                return f"a hook on {name} must see its layer run"
            if not _plain(child):
                return f"{name} was replaced by a {type(child).__name__}"
        deconv, compress = children["deconv"], children.get("compress")
        pointwise = children.get("deconv_pointwise")
        kinds = LAYERS[dims]
        if not _as_made(deconv, kinds[0], dims) or deconv.__dict__["_parameters"].get("bias") is not None:
            return "deconv is another convolution than the block's"
        if pointwise is not None and not _is_pointwise(pointwise, kinds[2], dims):
            return "deconv_pointwise is another convolution than the block's"
        if compress is not None and not _as_made(compress, kinds[2], dims):
            return "compress is another convolution than the block's"
        return None

    def forward(self, x: Tensor) -> Tensor:
        obstacle, dims, run = self.obstacle(), self.dims, self._run
        if obstacle is None:
            parameters, layers = self.parameters_for_kernels(), None
        else:
            self._warn_of_hook(obstacle)
            parameters, layers = None, self._children
        if dims != 2 or parameters is None:
            self._check_channels(x)
        group = sync_group(self._modules["bn_negative"])
        if group and parameters is not None:
            layers = partial(self._synchronised, parameters)
        if dims == 2:
            return run(x, parameters, layers, obstacle, group)
        return in_a_plane(x, parameters, layers, partial(_run_last, run, obstacle, group))

    def _check_channels(self, x: Tensor) -> None:
        name, dims = type(self).__name__, self.dims
        channels = channels_of(name, x, dims)
        wanted = getattr(self._modules["deconv"], "in_channels", channels)
        if channels != wanted:
            checks.shape(name, "x", x, ("N", wanted, *SPATIAL[dims]))

    def _children(self) -> tuple[nn.Module | None, ...]:
        return tuple(map(self._modules.get, self._layers))

    def _synchronised(self, parameters: Any) -> tuple[Layer | None, ...]:
        """The layers of the tensors read, but norms that see other processes, which only their modules do."""
        return tuple(child if isinstance(child, nn.SyncBatchNorm) else layer
                     for child, layer in zip(self._children(), parameters.layers(), strict=True))

    def _warn_of_hook(self, obstacle: str) -> None:
        for name in self._layers:
            if obstacle.startswith(f"a hook on {name} "):
                warn_of_hook(type(self).__name__, name)

    def extra_repr(self) -> str:
        return f"{self.channels}"


def _run_last(run: Callable[..., Tensor], obstacle: str | None, group: str, *call: Any) -> Tensor:
    return run(*call, obstacle, group)


class LazyBlock(LazyActivation):
    """What the lazy forms of LENI and Reborn share."""

    def channels_of(self, x: Tensor) -> int:
        return channels_of(type(self).__name__, x, self.dims)


def channels_of(name: str, x: Tensor, dims: int) -> int:
    """How many channels x has.

    Raises:
        ValueError: for an x that is not ``[N, C, *spatial]`` with so many spatial dimensions, or has no site.
        TypeError: for an x of two dimensions that is not floating-point.
    """
    if dims == 2:
        return checks.feature_map(name, x)
    if x.dim() != dims + 2 or 0 in x.shape[1:]:
        raise ValueError(f"{name}: x must be [N, C, {', '.join(SPATIAL[dims])}] with at least one channel and "
                         f"site, got shape {tuple(x.shape)}")
    return x.shape[1]


# ---- blocks of one and of three dimensions -----------------------------------------------------------------
# A signal [N, C, L] is a feature map of height 1. A volume is one whose rows are those of all its planes, for what
# goes by its values one by one; its layers see it as it is.


_WEIGHTS = ("deconv_weight", "pointwise_weight", "compress_weight")
"""Of a block's parameters, those that are convolutions', and may be absent."""


def weight_in_a_plane(weight: Tensor) -> Tensor:
    """The weight of a 1d convolution, ``[O, I, k]``, as that of a 2d one on height 1, ``[O, I, k, k]``."""
    beside = weight.shape[-1] // 2
    return F.pad(weight.unsqueeze(2), (0, 0, beside, beside))


def in_a_plane(x: Tensor, parameters: Any, layers: Callable[[], Sequence[Layer | None]] | None,
               run: Callable[[Tensor, Any, Callable[[], tuple[Layer | None, ...]]], Tensor]) -> Tensor:
    """``run(x, parameters, layers)``, which is for feature maps, on ``[N, C, *spatial]`` with parameters and layers for
    these; the parameters' own layers if there are no others.
    """
    spatial = x.shape[2:]

    def planar(layer: Layer | None) -> Layer | None:
        return None if layer is None else lambda y: _plane(layer(_as_it_is(y, spatial)))

    of_layers, of_kernels = parameters.layers if layers is None else layers, parameters
    if parameters is not None:
        weights = {name: getattr(parameters, name, None) for name in _WEIGHTS}
        of_kernels = parameters._replace(
            **{name: weight_in_a_plane(weight) for name, weight in weights.items() if weight is not None})
    return _as_it_is(run(_plane(x), of_kernels, lambda: tuple(map(planar, of_layers()))), spatial)


def _plane(x: Tensor) -> Tensor:
    return x.unsqueeze(2) if x.dim() == 3 else x.flatten(2, 3)


def _as_it_is(y: Tensor, spatial: Sequence[int]) -> Tensor:
    # Not unflatten, which a trace would hold to the example's sizes.
    return y.squeeze(2) if len(spatial) == 1 else y.view(*y.shape[:2], *spatial)


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
