"""Modules that learn from their first input how many channels they have, as ``nn.LazyConv2d`` does."""

from __future__ import annotations

import inspect
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter, UninitializedTensorMixin, is_lazy

from . import checks

_COUNTS = ("channels", "in_channels", "out_channels", "num_features", "groups")
"""The attributes of modules that may follow from how many channels there are."""


class Lazy(LazyModuleMixin):
    """The lazy form of ``cls_to_become``, whose first argument is the number of channels.

    The constructor takes the other arguments. Until the first call a layer of a block is a :class:`_LazyLayer`. Sizes
    and first values are those of an object that the constructor of ``cls_to_become`` makes at that call.
    """

    _ignored: ClassVar[tuple[inspect.Parameter, ...]] = ()
    """Arguments that it takes beside those of ``cls_to_become``."""
    _count: ClassVar[str]

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if cls.cls_to_become is not None:
            count, *others = inspect.signature(cls.cls_to_become).parameters.values()
            cls._count = count.name
            cls.__signature__ = inspect.Signature([*others, *cls._ignored])

    def __init__(self, *args: Any, **options: Any) -> None:
        arguments = self.__signature__.bind(*args, **options).arguments
        for ignored in self._ignored:
            arguments.pop(ignored.name, None)
        # Any count that the groups divide makes a pattern of it.
        super().__init__(**{self._count: arguments.get("groups", 1), **arguments, "device": "meta"})
        self._arguments = arguments
        where = {"device": arguments.pop("device", None), "dtype": arguments.pop("dtype", None)}
        for count in ("channels", "in_channels"):
            if count in vars(self):
                setattr(self, count, 0)
        for name, layer in self.named_children():
            self._modules[name] = _LazyLayer(layer, **where)
        _empty(self, self, **where)

    def channels_of(self, x: Tensor) -> int:
        """How many channels an input has; raises what the module raises for an input that does not fit."""
        return checks.channels(type(self).__name__, x)

    def has_uninitialized_params(self) -> bool:
        return any(map(is_lazy, (*self.parameters(), *self.buffers())))

    def reset_parameters(self) -> None:
        """What ``cls_to_become`` does if it has such a method; nothing before there are parameters."""
        if not self.has_uninitialized_params() and hasattr(super(), "reset_parameters"):
            super().reset_parameters()

    def initialize_parameters(self, x: Tensor) -> None:
        """Give all that is not initialized the shapes that fit x and the values that a new module has.

        Raises:
            ValueError: for an x that does not fit, or does not fit what was loaded; nothing has changed then.
        """
        channels = self.channels_of(x)
        empty = [tensor for tensor in (*self.parameters(), *self.buffers()) if is_lazy(tensor)]
        where = {"device": empty[0].device, "dtype": empty[0].dtype} if empty else {"device": "meta"}
        # Whatever mode the first call is made in, the parameters are to be trained.
        with torch.inference_mode(False), torch.no_grad():
            made = self.cls_to_become(**{self._count: channels, **self._arguments, **where})
            layers = {name: layer for name, layer in self.named_children() if isinstance(layer, _LazyLayer)}
            for path, module in {"": self, **layers}.items():
                for name, tensor in _tensors(module).items():
                    wanted = _tensors(made.get_submodule(path))[name].shape
                    if not is_lazy(tensor) and tensor.shape != wanted:
                        raise ValueError(f"{type(self).__name__}: x has {channels} channels, with which "
                                         f"{path}{path and '.'}{name} has shape {list(wanted)}, but one of "
                                         f"{list(tensor.shape)} was loaded")
            for name, layer in layers.items():
                layer._infer_parameters(layer, (getattr(made, name),))
            _fill(self, made)
        del self._arguments

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={value}" for name, value in self._arguments.items())


class LazyActivation(Lazy):
    """What stands where an ``nn.ReLU`` stood: like that it may be told ``inplace``, and it never is."""

    _ignored = (inspect.Parameter("inplace", inspect.Parameter.KEYWORD_ONLY, default=False, annotation="bool"),)


class _LazyLayer(LazyModuleMixin, nn.Module):
    """A layer of a block before the first call: neither convolution nor norm, so that initialisers pass it by.

    Those of a network are for parameters that exist. At the first call it becomes the layer, one object throughout.
    """

    def __init__(self, layer: nn.Module, device: Any, dtype: Any) -> None:
        super().__init__()
        own = vars(self)
        own.update({name: value for name, value in vars(layer).items() if name not in own})
        own.update({count: 0 for count in _COUNTS[:-1] if count in own})
        _empty(self, layer, device, dtype)
        self.cls_to_become = type(layer)

    def initialize_parameters(self, made: nn.Module) -> None:
        _fill(self, made)

    def _infer_parameters(self, module: nn.Module, args: tuple[Any, ...], kwargs: Any = None) -> None:
        super()._infer_parameters(module, args, kwargs)
        del self.cls_to_become

    def _get_name(self) -> str:
        return f"Lazy{self.cls_to_become.__name__}"


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    """A module's own parameters and buffers."""
    return {name: tensor for name, tensor in (*module._parameters.items(), *module._buffers.items())
            if tensor is not None}


def _empty(module: nn.Module, pattern: nn.Module, device: Any, dtype: Any) -> None:
    """Give a module the pattern's parameters and buffers, uninitialized; a count of batches is 0."""
    for name, tensor in pattern._parameters.items():
        module.register_parameter(name, None if tensor is None else _UninitializedParameter(True, device, dtype))
    for name, tensor in pattern._buffers.items():
        module.register_buffer(name, _UninitializedBuffer(False, device, dtype) if tensor.dim() else
                               torch.zeros((), device=device, dtype=tensor.dtype))


def _fill(module: nn.Module, made: nn.Module) -> None:
    """Give a module the counts of ``made``, and its values to what is not initialized."""
    for name, tensor in _tensors(module).items():
        if is_lazy(tensor):
            value = getattr(made, name)
            tensor.materialize(value.shape)
            tensor.copy_(value)
    vars(module).update({count: getattr(made, count) for count in _COUNTS if count in vars(made)})


class _Kept:
    """Copies and pickles have the device and the dtype, which those of PyTorch lose, where they do not fail."""

    _allowed_methods = (*UninitializedTensorMixin._allowed_methods, Tensor.bfloat16)

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        if id(self) not in memo:
            make, arguments = self.__reduce_ex__(2)
            memo[id(self)] = make(*arguments)
        return memo[id(self)]

    def __reduce_ex__(self, protocol: int) -> tuple[Any, ...]:
        return type(self), (self.requires_grad, self.data.device, self.data.dtype)


class _UninitializedParameter(_Kept, UninitializedParameter):
    pass


class _UninitializedBuffer(_Kept, UninitializedBuffer):
    pass
