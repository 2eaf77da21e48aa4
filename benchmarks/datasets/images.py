"""Small images, from the files that people have of them."""

from __future__ import annotations

import gzip
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from . import memory
from .memory import Images
from .source import BadData


def digits() -> Images:
    """scikit-learn's digits: 1,797 images of 8×8, a fifth of them, stratified, for testing."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    found = load_digits()
    arrays = train_test_split(found.images, found.target, test_size=0.2, random_state=0, stratify=found.target)
    images, test_images, labels, test_labels = map(torch.from_numpy, arrays)
    return memory.images("digits", 10, images.byte()[:, None], labels, test_images.byte()[:, None], test_labels,
                         mirrored=False)


def fashion_mnist(folder: Path) -> Images:
    """Fashion-MNIST, 70,000 images of 28×28, from its four IDX files, gzipped or not.

    They lie in ``folder``, or where torchvision puts them, in ``folder/FashionMNIST/raw``.

    Raises:
        BadData: if a file is missing or is no IDX file; the message names it.
    """
    from torchvision.datasets.mnist import read_image_file, read_label_file

    raw = folder / "FashionMNIST" / "raw"
    folder = raw if raw.is_dir() else folder
    images, labels, test_images, test_labels = (
        _idx(folder / f"{part}-{kind}-ubyte", read) for part in ("train", "t10k")
        for kind, read in (("images-idx3", read_image_file), ("labels-idx1", read_label_file)))
    return memory.images("fashion-mnist", 10, images[:, None], labels, test_images[:, None], test_labels,
                         mirrored=True)


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
        raise BadData(f"there is neither {path} nor {packed.name} beside it") from None
    # torchvision's reader asserts, indexes and reshapes without checks of its own.
    except (OSError, EOFError, ValueError, TypeError, RuntimeError, AssertionError, LookupError) as error:
        raise BadData(f"{path} is not an IDX file of the kind wanted: {error}") from error
