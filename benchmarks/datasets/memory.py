"""Data sets that fit into memory, as tensors."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .source import BadData, Batches, Examples, Part

PADDING = 4


class Images(NamedTuple):
    """Images ``[N, C, H, H]``, uint8, and their labels ``[N]``: a :class:`~.source.Source`.

    ``mirrored``: whether the papers augment this set, by crops and mirror images.
    """

    name: str
    classes: int
    images: Tensor
    labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    mirrored: bool
    mean: Tensor
    deviation: Tensor

    @property
    def channels(self) -> int:
        return self.images.shape[1]

    @property
    def size(self) -> int:
        return self.images.shape[2]

    @property
    def count(self) -> int:
        return len(self.labels)

    @property
    def test_count(self) -> int:
        return len(self.test_labels)

    def training(self, batches: Batches, generator: torch.Generator, augmented: bool, part: Part) -> Iterator[Examples]:
        for batch in batches:
            indices = batch.to(self.images.device)
            images = self.images[indices]
            if augmented and self.mirrored:
                images = cropped_and_mirrored(images, generator)
            yield self._normalised(part(images)), part(self.labels[indices])

    def testing(self, batches: Batches) -> Iterator[Examples]:
        for batch in batches:
            indices = batch.to(self.images.device)
            yield self._normalised(self.test_images[indices]), self.test_labels[indices]

    def split(self, seed: int) -> Images:
        return self

    def of_size(self, count: int | None) -> Images:
        return self._replace(images=self.images[:count], labels=self.labels[:count])

    def to(self, device: torch.device) -> Images:
        return self._replace(**{name: value.to(device) for name, value in self._asdict().items()
                                if isinstance(value, Tensor)})

    def _normalised(self, images: Tensor) -> Tensor:
        return (images - self.mean) / self.deviation


def images(name: str, classes: int, images: Tensor, labels: Tensor, test_images: Tensor, test_labels: Tensor, *,
           mirrored: bool) -> Images:
    """A set of images, ``[N, C, H, H]`` uint8, with what normalises them.

    Raises:
        BadData: if there are none, or not as many labels, or a label is none of the ``classes``, or the images are not
            squares of bytes, all of one size.
    """
    for part, pictures, numbers in (("training", images, labels), ("test", test_images, test_labels)):
        if pictures.dtype != torch.uint8 or pictures.shape[1:] != (images.shape[1], *images.shape[2:3] * 2):
            raise BadData(f"{name}: {part} images of {'×'.join(map(str, pictures.shape[1:]))} {pictures.dtype}, "
                          "where bytes are wanted, and squares of one size in both parts")
        if len(pictures) != len(numbers) or len(pictures) == 0:
            raise BadData(f"{name}: {len(pictures)} {part} images, and labels for {len(numbers)}")
        if not 0 <= int(numbers.min()) <= int(numbers.max()) < classes:
            raise BadData(f"{name}: {part} labels from {int(numbers.min())} to {int(numbers.max())}, "
                          f"where 0 to {classes - 1} are wanted")
    found = torch.stack([_mean_and_deviation(images[:, channel]) for channel in range(images.shape[1])])
    mean, deviation = found[:, :, None, None].unbind(1)
    return Images(name, classes, images, labels.long(), test_images, test_labels.long(), mirrored, mean, deviation)


def _mean_and_deviation(values: Tensor) -> Tensor:
    """Of bytes, from how often each of the 256 is there: quicker than from all of them, and exact."""
    counts = torch.bincount(values.flatten(), minlength=256).double()
    levels = torch.arange(256, dtype=torch.float64)
    mean = counts @ levels / counts.sum()
    variance = counts @ (levels - mean) ** 2 / (counts.sum() - 1)
    return torch.stack([mean, variance.sqrt()]).float()


def cropped_and_mirrored(images: Tensor, generator: torch.Generator) -> Tensor:
    """Each image padded by 4 pixels of 0 (an eighth of small ones), cropped at random, and mirrored at random."""
    count, _, height, width = images.shape
    pad = min(PADDING, height // 8)
    shifts = torch.randint(2 * pad + 1, (2, count, 1), generator=generator).to(images.device)
    mirrored = (torch.rand(count, 1, 1, 1, generator=generator) < 0.5).to(images.device)
    rows, columns = (shift + torch.arange(size, device=images.device)
                     for shift, size in zip(shifts, (height, width), strict=True))
    padded = F.pad(images, [pad] * 4).movedim(1, -1)
    cropped = padded[torch.arange(count, device=images.device)[:, None, None], rows[:, :, None],
                     columns[:, None, :]].movedim(-1, 1)
    return torch.where(mirrored, cropped.flip(-1), cropped)
