"""Pictures in a folder for each class, as ImageNet and torchvision's ImageFolder have them, read as they are needed."""

from __future__ import annotations

import dataclasses
import itertools
import os
from collections.abc import Callable, Iterator
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from .files import reading, within
from .source import BadData, Batches, Examples, Part

Sample = tuple[str, int]
"""Where a picture lies, and its class."""

IMAGENET_CLASSES = 1000
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""ImageNet's, of red, green and blue, which pretrained networks are used to as well."""


class Folders(NamedTuple):
    """Pictures ``[B, 3, size, size]``: a :class:`~.source.Source`, whose pictures ``workers`` processes decode.

    Training crops, scales and mirrors at random if augmented; otherwise, and for testing, it is the middle of the
    picture, scaled. What is random in an image depends on one number an epoch and the image's index alone.
    """

    name: str
    classes: int
    samples: list[Sample]
    test_samples: list[Sample]
    size: int = 224
    workers: int = 0
    device: torch.device = torch.device("cpu")

    @property
    def channels(self) -> int:
        return len(MEAN)

    @property
    def count(self) -> int:
        return len(self.samples)

    @property
    def test_count(self) -> int:
        return len(self.test_samples)

    def training(self, batches: Batches, generator: torch.Generator, augmented: bool, part: Part) -> Iterator[Examples]:
        """As :meth:`.source.Source.training`; an unreadable picture raises :class:`BadData` when its turn comes."""
        from torchvision.transforms import v2

        seed = int(torch.randint(2**62, (), generator=generator))
        transform = v2.Compose([v2.RandomResizedCrop(self.size), v2.RandomHorizontalFlip(), v2.PILToTensor()])
        pictures = Pictures(self.samples, transform if augmented else self._middle(), seed=seed)
        return self._examples(pictures, map(part, batches))

    def testing(self, batches: Batches) -> Iterator[Examples]:
        return self._examples(Pictures(self.test_samples, self._middle()), batches)

    def split(self, seed: int) -> Folders:
        return self

    def of_size(self, count: int | None) -> Folders:
        return self._replace(samples=self.samples[:count])

    def to(self, device: torch.device) -> Folders:
        return self._replace(device=device)

    def _middle(self) -> Callable[[Any], Tensor]:
        from torchvision.transforms import v2

        return v2.Compose([v2.Resize(self.size * 256 // 224), v2.CenterCrop(self.size), v2.PILToTensor()])

    def _examples(self, pictures: Pictures, batches: Batches) -> Iterator[Examples]:
        mean, deviation = (255 * torch.tensor(values, device=self.device)[:, None, None]
                           for values in (MEAN, DEVIATION))
        for images, labels in pictures.examples(batches, self.workers, pin=self.device.type == "cuda"):
            images, labels = (tensor.to(self.device, non_blocking=True) for tensor in (images, labels))
            yield (images - mean) / deviation, labels


def image_folder(folder: Path) -> Folders:
    """Pictures in ``train/CLASS/`` and ``val/CLASS/``, of which val tests.

    Raises:
        BadData: if a folder is missing or empty, or train and val have different classes.
    """
    root = within(folder)
    classes, samples = listed(root / "train")
    _, test_samples = listed(root / "val", classes)
    return Folders("image-folder", len(classes), samples, test_samples, workers=workers())


def imagenet(folder: Path) -> Folders:
    """ImageNet, 1.28 million pictures, in folders as :func:`image_folder` reads them.

    Raises:
        BadData: as :func:`image_folder`, or if there are not 1,000 classes.
    """
    data = image_folder(folder)
    if data.classes != IMAGENET_CLASSES:
        raise BadData(f"{folder / 'train'} has {data.classes} folders, where those of ImageNet's {IMAGENET_CLASSES:,} "
                      "classes are wanted; image-folder takes any")
    return data._replace(name="imagenet")


def listed(folder: Path, wanted: list[str] | None = None) -> tuple[list[str], list[Sample]]:
    """The classes, sorted, and the pictures: the first of each class, then the second, so that any few are of all.

    Raises:
        BadData: if there is no such folder, none for a class in it, no picture in one, or the classes are not those
            ``wanted``.
    """
    from torchvision.datasets import ImageFolder

    if not folder.is_dir():
        raise BadData(f"there is no folder {folder}, where one of pictures for each class is wanted")
    try:
        pictures = ImageFolder(str(folder))
    except OSError as error:
        raise BadData(f"{folder}: {error}") from error
    if wanted is not None and pictures.classes != wanted:
        differing = sorted({*wanted} ^ {*pictures.classes})
        raise BadData(f"{folder} should have the training pictures' classes, and differs in {', '.join(differing[:5])}"
                      + (f" and {len(differing) - 5} more" if len(differing) > 5 else ""))
    by_class = (list(samples) for _, samples in itertools.groupby(pictures.samples, key=itemgetter(1)))
    return pictures.classes, [sample for turn in itertools.zip_longest(*by_class) for sample in turn if sample]


def read_all(samples: list[Sample], transform: Callable[[Any], Tensor], form: str) -> Examples:
    """All the pictures in their order, as ``transform`` leaves them, and their labels.

    Raises:
        BadData: if one is not of the ``form``, or ``transform`` refuses it.
    """
    batches = torch.arange(len(samples)).split(500)
    images, labels = zip(*Pictures(samples, transform, form).examples(batches, workers()), strict=True)
    return torch.cat(images), torch.cat(labels)


def workers() -> int:
    """How many processes decode pictures for this one: its share of the machine's cores, and at most 16."""
    return max(1, min(16, len(os.sched_getaffinity(0)) // int(os.environ.get("LOCAL_WORLD_SIZE", 1))))


@dataclasses.dataclass
class Pictures:
    """Pictures for a DataLoader, whose workers ask for whole batches; what is random follows from seed and index."""

    samples: list[Sample]
    transform: Callable[[Any], Tensor]
    form: str = "a picture"
    seed: int = 0

    def examples(self, batches: Batches, workers: int, pin: bool = False) -> Iterator[Examples]:
        """Batches ``[B, C, H, W]`` and their labels, on the CPU.

        Raises:
            BadData: if a picture cannot be read, when its turn comes.
        """
        indices = [batch.tolist() for batch in batches]
        # With a generator of its own the loader takes nothing from the one that dropout draws from.
        loader = DataLoader(self, batch_size=None, sampler=indices, pin_memory=pin, generator=torch.Generator(),
                            num_workers=min(workers, len(indices)) if len(indices) > 1 else 0)
        for found in loader:
            if isinstance(found, BadData):
                raise found
            yield found

    def __getitem__(self, batch: list[int]) -> Examples | BadData:
        try:
            return torch.stack(list(map(self._read, batch))), torch.tensor([self.samples[i][1] for i in batch])
        except BadData as error:
            return error  # raised in a worker, it would arrive with the worker's traceback in its message

    def _read(self, index: int) -> Tensor:
        from torchvision.datasets.folder import default_loader

        path, _ = self.samples[index]
        with reading(Path(path), self.form), torch.random.fork_rng(devices=()):
            torch.default_generator.manual_seed(hash((self.seed, index)))
            return self.transform(default_loader(path))
