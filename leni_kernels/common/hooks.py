"""Whether a module may be seen as its tensors alone."""

from __future__ import annotations

import warnings

import torch
from torch import nn
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from . import backends

_COMPUTE_TENSORS = tuple(kind.__call__ for kind in (BasePruningMethod, WeightNorm, SpectralNorm))
"""Hooks of PyTorch's that set a tensor of their module before it runs, and ask for nothing else."""


def hooked(module: nn.Module) -> bool:
    """Whether calling the module does more than its forward."""
    return bool(module._forward_hooks or module._forward_pre_hooks or module._backward_hooks
                or module._backward_pre_hooks)


def must_run(module: nn.Module) -> bool:
    """Whether a hook of the module asks for its call, and not only for :func:`compute_tensors`."""
    return bool(module._forward_hooks or module._backward_hooks or module._backward_pre_hooks) or not all(
        type(hook).__call__ in _COMPUTE_TENSORS for hook in module._forward_pre_hooks.values())


def compute_tensors(module: nn.Module) -> None:
    """Do what the hooks do that compute the module's tensors: pruning, ``weight_norm`` and ``spectral_norm``."""
    for hook in module._forward_pre_hooks.values():
        hook(module, ())


_warned: dict[tuple[str, str], object] = {}
"""What was warned of: a kind of block, and a child."""


def warn_of_hook(kind: str, child: str) -> None:
    """Say, once in a process, that blocks of a kind run slower than they could, for a hook on a child.

    Not where a call is traced, or explained, which says it too.
    """
    if torch.compiler.is_compiling() or backends.explaining():
        return
    # setdefault is one step, even where several threads come at once.
    first = object()
    if _warned.setdefault((kind, child), first) is first:
        warnings.warn(f"leni_kernels: a hook on {child} must see its layer run, so that the layers of this {kind} run "
                      "one by one, which is slower; leni_kernels.explain tells of every block.", stacklevel=6)
