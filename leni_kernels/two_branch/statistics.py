"""The statistics that the norms of LENI and Reborn take of a batch: of few values, and of several processes' parts.

Statistics of F features are one float64 tensor ``[2F + 1]``: means, biased variances, and the count of values that they
come from. What the norms make of them is algebra on vectors, the kernels' too: ``csrc/two_branch/norms.h`` and
``gpu/algebra.py`` have it, and the top of the former says how it goes.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, distributed

from ..common import checks

FEW_VALUES = 16
"""Of a channel, up to which a batch's norms leave so little of a gradient that float32's rounding drowns it."""


def precise(x: Tensor, channels_last: bool, *others: Tensor) -> tuple[Tensor, ...]:
    """x, a batch, and other activations of its size: as they are, or in float64 where a channel has few values."""
    if x.numel() // x.shape[1] > FEW_VALUES:
        return x, *others
    return tuple(checks.in_dtype(tensor, torch.float64, channels_last) for tensor in (x, *others))


class Statistics(NamedTuple):
    """Mean and biased variance ``[2C]`` of a, and the count of values a channel they come from; in float64."""

    mean: Tensor
    variance: Tensor
    count: Tensor


def merged(parts: Statistics) -> Statistics:
    """The statistics of several parts ``[parts, …]`` of a batch together, whose counts may differ."""
    counts = parts.count[:, None]
    count = parts.count.sum()
    mean = (parts.mean * counts).sum(0) / count
    return Statistics(mean, ((parts.variance + (parts.mean - mean).square()) * counts).sum(0) / count, count)


def gathered_over(group: str, own: Tensor) -> Tensor:
    """A vector of each process of a group, ``[processes, …]``."""
    process_group = distributed.distributed_c10d._resolve_process_group(group)
    gathered = [torch.empty_like(own) for _ in range(process_group.size())]
    distributed.all_gather(gathered, own, group=process_group)
    return torch.stack(gathered)


def merged_over(group: str, own: Tensor) -> Tensor:
    """The packed statistics of all processes of a group together, whose batches may differ in size."""
    everyone = gathered_over(group, own)
    whole = merged(Statistics(*everyone[:, :-1].chunk(2, dim=1), everyone[:, -1]))
    return torch.cat([whole.mean, whole.variance, whole.count[None]])


def summed_over(group: str, vector: Tensor) -> Tensor:
    """A vector summed over the processes of a group."""
    total = vector.clone()
    distributed.all_reduce(total, group=distributed.distributed_c10d._resolve_process_group(group))
    return total
