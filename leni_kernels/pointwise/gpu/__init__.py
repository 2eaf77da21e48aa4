"""The Triton kernels and their launches; no autograd, no modules."""

from . import backward, forward, view

__all__ = ["backward", "forward", "view"]
