"""The data sets by name."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from . import folders, images, texts
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
    "mr": texts.mr,
    "ag-news": texts.ag_news,
    "yelp-full": texts.yelp_full,
    "mr-words": partial(texts.mr, words=True),
    "ag-news-words": partial(texts.ag_news, words=True),
    "yelp-full-words": partial(texts.yelp_full, words=True),
}
READERS = {"mr": "text", "ag-news": "text", "yelp-full": "text",
           "mr-words": "text-words", "ag-news-words": "text-words", "yelp-full-words": "text-words"}
"""The network that reads a set of texts, by characters or by words; the other networks read the other sets."""

WITHOUT_FILES = ("digits",)
"""The sets that need no folder."""

_IDX = "the four files from train-images-idx3-ubyte to t10k-labels-idx1-ubyte, gzipped or not, in DIR or DIR/"
_TEXTS = "train.csv and test.csv, with or without a header line, in DIR"
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
    **dict.fromkeys(("mr", "mr-words"), "rt-polarity.pos and rt-polarity.neg in DIR, a sentence a line"),
    **dict.fromkeys(("ag-news", "ag-news-words"), f"{_TEXTS}: class, title, description"),
    **dict.fromkeys(("yelp-full", "yelp-full-words"), f"{_TEXTS}: stars, text"),
}
"""What is looked for in the folder of each other set, DIR, in a line."""


def load(name: str, folder: Path | None) -> Source:
    """A data set from a folder, whose files :data:`FILES` names, or from the folder of its name in it.

    Raises:
        BadData: if files are missing, or are not what they should be.
    """
    folder = folder or Path()
    own = folder / name.removesuffix("-words")
    return DATASETS[name](own if own.is_dir() else folder)
