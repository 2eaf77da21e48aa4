"""The data sets by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from . import folders, images
from .source import Source

DATASETS: dict[str, Callable[[Path], Source]] = {
    "digits": lambda folder: images.digits(),
    "mnist": images.mnist,
    "kmnist": images.kmnist,
    "fashion-mnist": images.fashion_mnist,
    "cifar10": images.cifar10,
    "cifar100": images.cifar100,
    "svhn": images.svhn,
    "tiny-imagenet": images.tiny_imagenet,
    "imagenet": folders.imagenet,
    "image-folder": folders.image_folder,
}
FILES = {"fashion-mnist": "train-images-idx3-ubyte and its three siblings, gzipped or not"}
"""What each set's folder is to hold, in a line."""

TEXTS: tuple[str, ...] = ()
"""The sets of texts; the others are images."""

WITHOUT_FILES = ("digits",)
"""The sets that need no folder."""

_IDX = "the four files from train-images-idx3-ubyte to t10k-labels-idx1-ubyte, gzipped or not, in DIR or DIR/"
_PICTURES = "train/CLASS/ and val/CLASS/ in DIR, with JPEG, PNG or other pictures"

FILES = {
    "mnist": f"{_IDX}MNIST/raw",
    "kmnist": f"{_IDX}KMNIST/raw",
    "fashion-mnist": f"{_IDX}FashionMNIST/raw",
    "cifar10": "data_batch_1 to data_batch_5 and test_batch (Python version), in DIR or DIR/cifar-10-batches-py",
    "cifar100": "train and test (Python version), in DIR or DIR/cifar-100-python",
    "svhn": "train_32x32.mat and test_32x32.mat, in DIR or DIR/SVHN",
    "tiny-imagenet": "train/ and val/ as distributed, or val/ sorted by class, in DIR or DIR/tiny-imagenet-200",
    "imagenet": f"{_PICTURES}; 1,000 classes",
    "image-folder": f"{_PICTURES}; any classes",
}
"""What is looked for in the folder of each other set, DIR, in a line."""


def load(name: str, folder: Path | None) -> Source:
    """A data set from a folder, whose files :data:`FILES` names.

    Raises:
        BadData: if files are missing, or are not what they should be.
    """
    return DATASETS[name](folder or Path())
