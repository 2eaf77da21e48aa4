"""The state of a batch norm, as every mechanism that has one reads it."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Norm(NamedTuple):
    """The state of one batch norm, in the argument order of ``F.batch_norm``; calling it applies it.

    Attributes:
        running_mean: ``[C]``, or None without running statistics, as in ``nn.BatchNorm2d``. Training moves it in place.
        running_var: the same, of the variance.
        weight: the scale ``[C]``, or None for 1.
        bias: the shift ``[C]``, or None for 0.
        training: whether the statistics are the batch's and move the running ones.
        momentum: of the running statistics; None means the average over all batches.
        eps: added to the variance.
        num_batches_tracked: a scalar that counts the batches in training, or None.
    """

    running_mean: Tensor | None
    running_var: Tensor | None
    weight: Tensor | None = None
    bias: Tensor | None = None
    training: bool = False
    momentum: float | None = 0.1
    eps: float = 1e-5
    num_batches_tracked: Tensor | None = None

    def __call__(self, x: Tensor) -> Tensor:
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias,
                            self.uses_batch_statistics, self._count_batch(), self.eps)

    def tracked(self) -> tuple[Tensor | None, Tensor | None, Tensor | None, float | None]:
        """What a batch in training moves: running mean and variance, count of batches, and the momentum."""
        if not self.training:
            return None, None, None, None
        running = (None, None) if self.running_mean is None or self.running_var is None else (
            self.running_mean, self.running_var)
        return *running, self.num_batches_tracked, self.momentum

    def _count_batch(self) -> float:
        """Count a batch in training; returns the weight of its statistics in the running ones."""
        if self.training and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
            if self.momentum is None:
                return 1.0 / float(self.num_batches_tracked)
        return 0.0 if self.momentum is None else self.momentum

    @property
    def uses_batch_statistics(self) -> bool:
        """Whether the mean and variance come from the batch rather than from the running statistics."""
        return self.training or self.running_mean is None or self.running_var is None

    def scale_and_shift(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """The affine map ``scale·x + shift`` (``[C]`` each) that the norm is with running statistics."""
        if self.running_mean is None or self.running_var is None:
            raise ValueError("a batch norm without running statistics cannot be folded: it is no affine map")
        scale = torch.rsqrt(self.running_var.to(dtype) + self.eps)
        if self.weight is not None:
            scale = scale * self.weight.to(dtype)
        shift = -self.running_mean.to(dtype) * scale
        return scale, shift if self.bias is None else shift + self.bias.to(dtype)
