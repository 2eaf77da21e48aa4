"""The Triton kernels and their launches; no autograd, no modules."""

from . import backward, covariance, forward, input_gradient, statistics, weight_gradient

__all__ = ["backward", "covariance", "forward", "input_gradient", "statistics", "weight_gradient"]
