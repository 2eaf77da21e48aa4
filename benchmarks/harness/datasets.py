"""The data sets of the accuracy runs, as tensors: nothing is downloaded."""

from __future__ import annotations

import gzip
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor


class Dataset(NamedTuple):
    """Images ``[N, 1, H, W]``, float32, normalised by the training set's mean and deviation; labels ``[N]``.

    ``mirrored``: whether a mirrored image is still one of its class.
    """

    name: str
    images: Tensor
    labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    mirrored: bool

    def of_size(self, count: int | None) -> Dataset:
        """The same with the first ``count`` training images only; None is all."""
        return self._replace(images=self.images[:count], labels=self.labels[:count])

    def to(self, device: torch.device) -> Dataset:
        """The same on a device."""
        return self._replace(**{name: value.to(device) for name, value in self._asdict().items()
                                if isinstance(value, Tensor)})


def digits() -> Dataset:
    """scikit-learn's digits: 1,797 images of 8×8, a fifth of them, stratified, for testing."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    found = load_digits()
    arrays = train_test_split(found.images, found.target, test_size=0.2, random_state=0, stratify=found.target)
    images, test_images, labels, test_labels = map(torch.from_numpy, arrays)
    return _normalised("digits", images, labels, test_images, test_labels, mirrored=False)


def fashion_mnist(folder: Path) -> Dataset:
    """Fashion-MNIST, 70,000 images of 28×28, from its four IDX files, gzipped or not.

    They lie in ``folder``, or where torchvision puts them, in ``folder/FashionMNIST/raw``.

    Raises:
        ValueError: if a file is missing or is no IDX file; the message names it.
    """
    from torchvision.datasets.mnist import read_image_file, read_label_file

    raw = folder / "FashionMNIST" / "raw"
    folder = raw if raw.is_dir() else folder
    tensors = [_idx(folder / f"{part}-{kind}-ubyte", read) for part in ("train", "t10k")
               for kind, read in (("images-idx3", read_image_file), ("labels-idx1", read_label_file))]
    return _normalised("fashion-mnist", *tensors, mirrored=True)


def _idx(path: Path, read: Callable[[str], Tensor]) -> Tensor:
    """What torchvision reads from the file or, as it reads plain files only, from its unpacked copy."""
    packed = path.with_name(f"{path.name}.gz")
    try:
        if path.exists():
            return read(str(path))
        with tempfile.TemporaryDirectory() as folder:
            plain = Path(folder) / path.name
            plain.write_bytes(gzip.decompress(packed.read_bytes()))
            return read(str(plain))
    except FileNotFoundError:
        raise ValueError(f"there is neither {path} nor {packed.name} beside it") from None
    # torchvision's reader asserts, indexes and reshapes without checks of its own.
    except (OSError, EOFError, ValueError, TypeError, RuntimeError, AssertionError, LookupError) as error:
        raise ValueError(f"{path} is not an IDX file of the kind wanted: {error}") from error


def _normalised(name: str, images: Tensor, labels: Tensor, test_images: Tensor, test_labels: Tensor, *,
                mirrored: bool) -> Dataset:
    for part, pictures, classes in (("training", images, labels), ("test", test_images, test_labels)):
        if len(pictures) != len(classes) or len(pictures) == 0:
            raise ValueError(f"{name}: {len(pictures)} {part} images, and labels for {len(classes)}")
    deviation, mean = torch.std_mean(images.float())
    images, test_images = ((part.float()[:, None] - mean) / deviation for part in (images, test_images))
    return Dataset(name, images, labels.long(), test_images, test_labels.long(), mirrored)
