"""The Triton kernels and their launches; no autograd, no modules."""

from . import backward, forward, input_gradient, statistics, weight_gradient

__all__ = ["backward", "forward", "input_gradient", "statistics", "weight_gradient"]
