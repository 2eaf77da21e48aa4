"""Whether a module may be seen as its tensors alone."""

from __future__ import annotations

from torch import nn


def hooked(module: nn.Module) -> bool:
    """Whether calling the module does more than its forward."""
    return bool(module._forward_hooks or module._forward_pre_hooks or module._backward_hooks
                or module._backward_pre_hooks)
