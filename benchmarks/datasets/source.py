"""What training asks of a data set."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Protocol, TypeVar

import torch
from torch import Tensor

Batches = Iterable[Tensor]
"""For each batch the indices of its examples, ``[B]`` int64, on the CPU."""

Examples = tuple[Tensor, Tensor]
"""Inputs as a network reads them, and labels ``[B]``, on the device."""

Part = Callable[[Tensor], Tensor]
"""Which rows of a batch a process trains on."""

S = TypeVar("S", bound="Source")


class BadData(ValueError):
    """Files that are missing, half there or of another form; the message names the file and the form wanted."""


class Source(Protocol):
    """A data set of images or texts, with its training and its test part.

    Images come as ``[B, channels, size, size]``, float32, normalised by a mean and a deviation of each channel, those
    of the training part or ImageNet's; texts as ``[B, size]``, int64, of ``channels`` different symbols.
    """

    name: str
    classes: int
    channels: int
    size: int

    @property
    def count(self) -> int:
        """The examples to train on."""

    @property
    def test_count(self) -> int:
        """The examples to test on."""

    def training(self, batches: Batches, generator: torch.Generator, augmented: bool, part: Part) -> Iterator[Examples]:
        """``part`` of each batch of the training part, augmented as the papers do with this set, if asked for.

        ``generator`` draws for the whole batch, so that all processes draw alike.

        Raises:
            BadData: if a file that is read only now cannot be.
        """

    def testing(self, batches: Batches) -> Iterator[Examples]:
        """Batches of the test part."""

    def split(self: S, seed: int) -> S:
        """The set as a run with this seed sees it: a fold of a set that has no test part of its own, else all of it."""

    def of_size(self: S, count: int | None) -> S:
        """The same with the first ``count`` training examples only; None is all."""

    def to(self: S, device: torch.device) -> S:
        """The same on a device."""
