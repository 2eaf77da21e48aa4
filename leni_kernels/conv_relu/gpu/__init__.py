"""The Triton kernels and their launches; no autograd, no modules."""

from . import backward, forward

__all__ = ["backward", "forward"]
