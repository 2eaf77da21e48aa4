"""Batch norms that take their statistics of the parts of a batch in all processes, on GPUs and on CPUs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

import leni_kernels as lk

from . import processes

BLOCKS = (lk.LENI2d, lk.Reborn2d)
"""Whose norms synchronise on a CPU too, where they are ``nn.SyncBatchNorm``."""


class _Sum(torch.autograd.Function):
    """The sum over all processes, whose gradient is summed too."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        return processes.summed(tensor)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return processes.summed(grad)


class SynchronisedBatchNorm2d(nn.BatchNorm2d):
    """What ``nn.SyncBatchNorm`` computes, which runs on GPUs only; with affine parameters and running statistics."""

    def forward(self, x: Tensor) -> Tensor:
        """As ``nn.BatchNorm2d`` of all processes' x ``[N, C, H, W]``, whose N may differ."""
        if not self.training:
            return super().forward(x)
        count = x.new_tensor([x.numel() // x.shape[1]])
        total, count = _Sum.apply(torch.cat([x.sum((0, 2, 3)), count])).split([x.shape[1], 1])
        mean = total / count
        centred = x - mean[:, None, None]
        variance = _Sum.apply(centred.square().sum((0, 2, 3))) / count
        with torch.no_grad():
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * count / (count - 1), self.momentum)
        scale = self.weight * torch.rsqrt(variance + self.eps)
        return centred * scale[:, None, None] + self.bias[:, None, None]


def synchronise(network: nn.Module, device: torch.device) -> None:
    """Have the batch norms of a network take their statistics over all processes, in place.

    DistributedDataParallel is around it before: on a CPU it refuses a network that has an ``nn.SyncBatchNorm``.
    """
    if device.type == "cuda":
        nn.SyncBatchNorm.convert_sync_batchnorm(network)
        return
    for block in [module for module in network.modules() if isinstance(module, BLOCKS)]:
        nn.SyncBatchNorm.convert_sync_batchnorm(block)
    for norm in network.modules():
        if type(norm) is nn.BatchNorm2d:
            norm.__class__ = SynchronisedBatchNorm2d
