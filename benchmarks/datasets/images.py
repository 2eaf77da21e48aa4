"""Small images, from the files that people have of them; torchvision reads them, whatever their checksums."""

from __future__ import annotations

import gzip
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from . import folders, memory
from .files import reading, within
from .memory import Images
from .source import BadData, Examples


def digits() -> Images:
    """scikit-learn's digits: 1,797 images of 8×8, a fifth of them, stratified, for testing."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    found = load_digits()
    arrays = train_test_split(found.images, found.target, test_size=0.2, random_state=0, stratify=found.target)
    images, test_images, labels, test_labels = map(torch.from_numpy, arrays)
    return memory.images("digits", 10, images.byte()[:, None], labels, test_images.byte()[:, None], test_labels,
                         mirrored=False)


# ---- IDX files ---------------------------------------------------------------------------------------------


def mnist(folder: Path) -> Images:
    """MNIST, 70,000 grey images of 28×28, from its four IDX files, gzipped or not.

    Raises:
        BadData: if a file is missing or is no IDX file; the message names it. So it is with every set below.
    """
    return _from_idx("mnist", within(folder, "MNIST/raw", "raw"), mirrored=False)


def kmnist(folder: Path) -> Images:
    """Kuzushiji-MNIST, files of the same form."""
    return _from_idx("kmnist", within(folder, "KMNIST/raw", "raw"), mirrored=False)


def fashion_mnist(folder: Path) -> Images:
    """Fashion-MNIST, files of the same form."""
    return _from_idx("fashion-mnist", within(folder, "FashionMNIST/raw", "raw"), mirrored=True)


def _from_idx(name: str, folder: Path, *, mirrored: bool) -> Images:
    from torchvision.datasets.mnist import read_image_file, read_label_file

    images, labels, test_images, test_labels = (
        _idx(folder / f"{part}-{kind}-ubyte", read) for part in ("train", "t10k")
        for kind, read in (("images-idx3", read_image_file), ("labels-idx1", read_label_file)))
    return memory.images(name, 10, images[:, None], labels, test_images[:, None], test_labels, mirrored=mirrored)


def _idx(path: Path, read: Callable[[str], Tensor]) -> Tensor:
    """What torchvision reads from the file or, as it reads plain files only, from its unpacked copy."""
    packed = path.with_name(f"{path.name}.gz")
    form = f"an IDX file of {'images' if 'images' in path.name else 'labels'}"
    if path.is_file():
        with reading(path, form):
            return read(str(path))
    if not packed.is_file():
        raise BadData(f"there is neither {path} nor {packed.name} beside it, where {form} is wanted")
    with reading(packed, f"{form}, gzipped"), tempfile.TemporaryDirectory() as folder:
        plain = Path(folder) / path.name
        plain.write_bytes(gzip.decompress(packed.read_bytes()))
        return read(str(plain))


# ---- CIFAR and SVHN ----------------------------------------------------------------------------------------


def cifar10(folder: Path) -> Images:
    """CIFAR-10, 60,000 images of 32×32, from the six pickled batches of its Python version."""
    from torchvision.datasets import CIFAR10

    return _cifar("cifar10", 10, CIFAR10, folder)


def cifar100(folder: Path) -> Images:
    """CIFAR-100 with its 100 fine classes, from the two pickled batches of its Python version."""
    from torchvision.datasets import CIFAR100

    return _cifar("cifar100", 100, CIFAR100, folder)


def _cifar(name: str, classes: int, kind: Any, folder: Path) -> Images:
    folder = within(folder, kind.base_folder)
    training, test = ([_cifar_batch(folder / file) for file, _ in files] for files in (kind.train_list, kind.test_list))
    images, labels = map(torch.cat, zip(*training, strict=True))
    test_images, test_labels = map(torch.cat, zip(*test, strict=True))
    return memory.images(name, classes, images, labels, test_images, test_labels, mirrored=True)


def _cifar_batch(path: Path) -> Examples:
    from torchvision.datasets import CIFAR10

    class Batch(CIFAR10):
        base_folder, train_list, test_list = "", [(path.name, None)], []

        def _load_meta(self) -> None:
            """The classes' names are not needed."""

    with reading(path, "a pickled batch, with data and labels, of CIFAR's Python version"):
        batch = Batch(str(path.parent))
        return torch.from_numpy(batch.data).permute(0, 3, 1, 2), torch.tensor(batch.targets)


def svhn(folder: Path) -> Images:
    """SVHN's cropped digits, 99,289 images of 32×32, from its two MATLAB files; the extra part is not read."""
    folder = within(folder, "SVHN", "svhn")
    (images, labels), (test_images, test_labels) = (_svhn_part(folder, part) for part in ("train", "test"))
    return memory.images("svhn", 10, images, labels, test_images, test_labels, mirrored=False)


def _svhn_part(folder: Path, part: str) -> Examples:
    from torchvision.datasets import SVHN

    path = folder / f"{part}_32x32.mat"

    class Part(SVHN):
        split_list = {part: ("", path.name, None)}  # noqa: RUF012

    with reading(path, "a MATLAB file, before version 7.3, with X and y"):
        found = Part(str(folder), part)
        return torch.from_numpy(found.data).contiguous(), torch.from_numpy(found.labels)


# ---- Tiny ImageNet -----------------------------------------------------------------------------------------

TINY = 64


def tiny_imagenet(folder: Path) -> Images:
    """Tiny ImageNet, 110,000 images of 64×64 in 200 classes; as the test part's labels are not public, val tests.

    The pictures of val lie in ``val/images``, as distributed, with ``val/val_annotations.txt``, or sorted into
    folders by class. Gigabytes of memory are wanted, and reading takes seconds to minutes.
    """
    root = within(folder, "tiny-imagenet-200")
    classes, training = folders.listed(root / "train")
    test = (_annotated(root / "val", classes) if (root / "val" / "images").is_dir() else
            folders.listed(root / "val", classes)[1])
    (images, labels), (test_images, test_labels) = (
        folders.read_all(samples, _tiny, f"a picture of {TINY}×{TINY} pixels") for samples in (training, test))
    return memory.images("tiny-imagenet", len(classes), images, labels, test_images, test_labels, mirrored=True)


def _annotated(folder: Path, classes: list[str]) -> list[folders.Sample]:
    """The pictures of ``images``, in the order in which the annotations name them."""
    path = folder / "val_annotations.txt"
    numbers = {name: number for number, name in enumerate(classes)}
    with reading(path, "a text that names a picture and one of the classes of train in each line"):
        lines = [line.split()[:2] for line in path.read_text(encoding="utf-8").splitlines()]
        return [(str(folder / "images" / name), numbers[of]) for name, of in lines]


def _tiny(picture: Any) -> Tensor:
    from torchvision.transforms.v2.functional import pil_to_tensor

    if picture.size != (TINY, TINY):
        raise ValueError("it has {}×{}".format(*picture.size))
    return pil_to_tensor(picture)
