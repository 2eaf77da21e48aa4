"""The processes that ``torchrun`` starts: each has its part of every batch, and the first alone reads and writes files.

Where torchrun started none there is one, the first, and nothing here talks to anyone.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed

T = TypeVar("T")


def launched() -> bool:
    """Whether torchrun started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def why_no_device(kind: str) -> str | None:
    """Why this process cannot have a device of this type to itself, or None."""
    index = int(os.environ["LOCAL_RANK"]) if launched() else 0
    there = torch.cuda.device_count() if kind == "cuda" else index + 1
    return None if index < there else f"torchrun started more processes here than the {there} GPUs that PyTorch sees"


@contextlib.contextmanager
def joined(kind: str) -> Iterator[torch.device]:
    """This process's device of a type; meanwhile the processes talk to each other, by gloo, on GPUs by NCCL."""
    if not launched():
        yield torch.device(kind)
        return
    device = torch.device(kind, int(os.environ["LOCAL_RANK"])) if kind == "cuda" else torch.device(kind)
    if kind == "cuda":
        torch.cuda.set_device(device)
    distributed.init_process_group("nccl" if kind == "cuda" else "gloo")
    try:
        yield device
    finally:
        distributed.destroy_process_group()


def _talk() -> bool:
    return distributed.is_available() and distributed.is_initialized()


def count() -> int:
    """How many processes there are."""
    return distributed.get_world_size() if _talk() else 1


def rank() -> int:
    """Which of them this one is."""
    return distributed.get_rank() if _talk() else 0


def first() -> bool:
    """Whether this is the one that writes."""
    return rank() == 0


def part(batch: Tensor) -> Tensor:
    """This process's part of a batch of all; no two parts differ by more than one in size."""
    return batch.tensor_split(count())[rank()]


def summed(tensor: Tensor) -> Tensor:
    """The sum over all processes."""
    if count() == 1:
        return tensor
    total = tensor.clone()
    distributed.all_reduce(total)
    return total


def as_first(tensors: Iterable[Tensor]) -> None:
    """Give the tensors, in place, the values that they have in the first process."""
    if count() > 1:
        for tensor in tensors:
            distributed.broadcast(tensor, 0)


def from_first(make: Callable[[], T]) -> T:
    """What ``make`` returns in the first process, which alone calls it.

    If it raises there, the others end with status 2: the first says why.
    """
    if count() == 1:
        return make()
    told: list[Any] = [None, False]
    try:
        if first():
            told = [make(), True]
    finally:
        distributed.broadcast_object_list(told, 0)
    value, made = told
    if not made:
        sys.exit(2)
    return value
