"""The data sets: every form in which people have their files, and what is said of files that are not as they should be.

The files here are small, and of the forms of the real ones.
"""

import gzip
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import catalogue, folders, images, memory
from datasets.source import BadData

pytest.importorskip("torchvision", reason="it reads the files")
Image = pytest.importorskip("PIL.Image", reason="it writes pictures")

ROOT = Path(__file__).parents[2]


def whole(batch):
    return batch


def pixels(*shape):
    """Random bytes, the same in every test."""
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def bad(name, folder):
    """What is said of a folder."""
    with pytest.raises(BadData) as raised:
        catalogue.load(name, folder)
    message = str(raised.value)
    assert "\n" not in message
    return message


def cut(path, size=None):
    content = path.read_bytes()
    path.write_bytes(content[:len(content) // 2 if size is None else size])


# ---- IDX files ---------------------------------------------------------------------------------------------


def write_idx(path, array, *, packed=False):
    content = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.astype(np.uint8).tobytes()
    if packed:
        path = path.with_name(f"{path.name}.gz")
        content = gzip.compress(content)
    path.write_bytes(content)


def write_idx_files(folder, **how):
    folder.mkdir(parents=True, exist_ok=True)
    for part, count in (("train", 5), ("t10k", 3)):
        write_idx(folder / f"{part}-images-idx3-ubyte", pixels(count, 4, 4), **how)
        write_idx(folder / f"{part}-labels-idx1-ubyte", np.arange(count), **how)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(("name", "place", "mirrored"), [
    ("mnist", "MNIST/raw", False), ("kmnist", "KMNIST/raw", False), ("fashion-mnist", "FashionMNIST/raw", True),
    ("kmnist", "raw", False), ("fashion-mnist", ".", True)])
def test_idx_files_are_read_gzipped_or_not_and_where_torchvision_puts_them(tmp_path, name, place, mirrored, packed):
    write_idx_files(tmp_path / place, packed=packed)
    data = catalogue.load(name, tmp_path)
    assert (data.name, data.classes, data.channels, data.size, data.mirrored) == (name, 10, 1, 4, mirrored)
    assert torch.equal(data.images[:, 0], torch.from_numpy(pixels(5, 4, 4)))
    assert torch.equal(data.test_images[:, 0], torch.from_numpy(pixels(3, 4, 4)))
    assert data.labels.tolist() == [0, 1, 2, 3, 4]
    assert data.test_labels.tolist() == [0, 1, 2]


@pytest.mark.parametrize(("spoil", "said"), [
    ("missing", "train-images-idx3-ubyte nor train-images-idx3-ubyte.gz"), ("cut", "train-images-idx3-ubyte is not"),
    ("empty", "train-images-idx3-ubyte is not"), ("not gzip", "train-images-idx3-ubyte.gz is not"),
    ("cut gzip", "train-images-idx3-ubyte.gz is not"), ("spoilt gzip", "train-images-idx3-ubyte.gz is not"),
    ("labels", "train-images-idx3-ubyte is not an IDX file of images"), ("uneven", "4 training images, and labels for"),
    ("oblong", "training images of 1×4×3"), ("other size", "test images of 1×3×3"), ("label", "labels from 0 to 10")])
def test_bad_idx_files_are_named(tmp_path, spoil, said):
    write_idx_files(tmp_path, packed="gzip" in spoil and spoil != "not gzip")
    file, packed = tmp_path / "train-images-idx3-ubyte", tmp_path / "train-images-idx3-ubyte.gz"
    if spoil == "missing":
        file.unlink()
    elif spoil == "not gzip":
        file.rename(packed)
    elif spoil == "spoilt gzip":
        packed.write_bytes(packed.read_bytes()[:20] + bytes(30) + packed.read_bytes()[50:])
    elif spoil in ("cut", "cut gzip"):
        cut(packed if "gzip" in spoil else file)
    elif spoil == "empty":
        cut(file, 0)
    elif spoil == "labels":
        file.write_bytes((tmp_path / "train-labels-idx1-ubyte").read_bytes())
    elif spoil == "label":
        write_idx(tmp_path / "train-labels-idx1-ubyte", np.arange(0, 11, 2.5))
    else:
        name, shape = {"uneven": ("train", (4, 4, 4)), "oblong": ("train", (5, 4, 3)),
                       "other size": ("t10k", (3, 3, 3))}[spoil]
        write_idx(tmp_path / f"{name}-images-idx3-ubyte", pixels(*shape))
    assert said in bad("fashion-mnist", tmp_path)


# ---- CIFAR -------------------------------------------------------------------------------------------------


def write_batch(path, labels, *, key="labels", data=None, **more):
    """A batch of CIFAR's Python version: rows of 1,024 red, 1,024 green and 1,024 blue values."""
    path.parent.mkdir(parents=True, exist_ok=True)
    data = pixels(len(labels), 3072) if data is None else data
    path.write_bytes(pickle.dumps({"data": data, key: labels, "batch_label": "a batch", **more}, protocol=2))


def write_cifar10(folder):
    for number in range(1, 6):
        write_batch(folder / f"data_batch_{number}", [number, 9])
    write_batch(folder / "test_batch", [1, 2, 3])


@pytest.mark.parametrize("place", [".", "cifar-10-batches-py"])
def test_cifar_10_is_read_from_its_batches(tmp_path, place):
    write_cifar10(tmp_path / place)
    data = catalogue.load("cifar10", tmp_path)
    assert (data.name, data.classes, data.channels, data.size, data.mirrored) == ("cifar10", 10, 3, 32, True)
    assert data.labels.tolist() == [1, 9, 2, 9, 3, 9, 4, 9, 5, 9]
    assert data.test_labels.tolist() == [1, 2, 3]
    assert torch.equal(data.images, torch.from_numpy(pixels(2, 3072)).reshape(2, 3, 32, 32).repeat(5, 1, 1, 1))
    assert torch.equal(data.test_images, torch.from_numpy(pixels(3, 3072)).reshape(3, 3, 32, 32))


@pytest.mark.parametrize("place", [".", "cifar-100-python"])
def test_cifar_100_is_read_with_its_fine_classes(tmp_path, place):
    write_batch(tmp_path / place / "train", [0, 99], key="fine_labels", coarse_labels=[0, 19])
    write_batch(tmp_path / place / "test", [50, 51, 52], key="fine_labels", coarse_labels=[1, 2, 3])
    data = catalogue.load("cifar100", tmp_path)
    assert (data.name, data.classes, data.channels, data.size, data.mirrored) == ("cifar100", 100, 3, 32, True)
    assert data.labels.tolist() == [0, 99]
    assert data.test_labels.tolist() == [50, 51, 52]


@pytest.mark.parametrize(("spoil", "said"), [
    ("missing", "there is no file {}, where a pickled batch"), ("cut", "{} is not a pickled batch"),
    ("binary version", "{} is not a pickled batch"), ("other keys", "{} is not a pickled batch"),
    ("other size", "{} is not a pickled batch"), ("floats", "images of 3×32×32 torch.float32, where bytes"),
    ("cifar-100's labels", "training labels from 1 to 90, where 0 to 9")])
def test_bad_batches_are_named(tmp_path, spoil, said):
    write_cifar10(tmp_path)
    path = tmp_path / "data_batch_3"
    if spoil == "missing":
        path.unlink()
    elif spoil == "cut":
        cut(path)
    elif spoil == "binary version":
        path.write_bytes(pixels(2, 3073).tobytes())
    elif spoil == "other keys":
        write_batch(path, [0], key="classes")
    elif spoil == "cifar-100's labels":
        write_batch(path, [90])
    else:
        write_batch(path, [0], data=pixels(1, 1000) if spoil == "other size" else np.zeros((1, 3072), np.float32))
    assert said.format(path) in bad("cifar10", tmp_path)


def test_the_wrong_cifar_is_told(tmp_path):
    write_cifar10(tmp_path / "cifar-10-batches-py")
    assert f"there is no file {tmp_path / 'train'}" in bad("cifar100", tmp_path)


# ---- SVHN --------------------------------------------------------------------------------------------------


def write_svhn(folder):
    io = pytest.importorskip("scipy.io", reason="it writes MATLAB files")
    folder.mkdir(exist_ok=True)
    for part, labels in (("train", [1, 10, 9]), ("test", [10, 2])):
        stored = pixels(len(labels), 3, 32, 32).transpose(2, 3, 1, 0)
        io.savemat(folder / f"{part}_32x32.mat", {"X": stored, "y": np.array(labels, np.uint8)[:, None]})


@pytest.mark.parametrize("place", [".", "SVHN"])
def test_svhn_is_read_from_its_matlab_files(tmp_path, place):
    write_svhn(tmp_path / place)
    data = catalogue.load("svhn", tmp_path)
    assert (data.name, data.classes, data.channels, data.size, data.mirrored) == ("svhn", 10, 3, 32, False)
    assert data.labels.tolist() == [1, 0, 9]
    assert data.test_labels.tolist() == [0, 2]
    assert torch.equal(data.images, torch.from_numpy(pixels(3, 3, 32, 32)))
    assert torch.equal(data.test_images, torch.from_numpy(pixels(2, 3, 32, 32)))


@pytest.mark.parametrize(("spoil", "said"), [
    ("missing", "there is no file {}, where a MATLAB file"), ("cut", "{} is not a MATLAB file"),
    ("a text", "{} is not a MATLAB file"), ("no labels", "{} is not a MATLAB file, before version 7.3, with X and y")])
def test_bad_matlab_files_are_named(tmp_path, spoil, said):
    write_svhn(tmp_path)
    path = tmp_path / "test_32x32.mat"
    if spoil == "missing":
        path.unlink()
    elif spoil == "cut":
        cut(path)
    elif spoil == "a text":
        path.write_text("no MATLAB file at all" * 20)
    else:
        pytest.importorskip("scipy.io").savemat(path, {"X": pixels(32, 32, 3, 2)})
    assert said.format(path) in bad("svhn", tmp_path)


# ---- Tiny ImageNet -----------------------------------------------------------------------------------------


def write_picture(path, color, size=(64, 64), mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, color).save(path, quality=95)


def write_tiny(folder, *, distributed=True):
    """Two classes with two pictures each, of which the one for testing is twice as bright."""
    for label, name in enumerate(("n01443537", "n01629819")):
        for number in range(2):
            write_picture(folder / "train" / name / "images" / f"{name}_{number}.JPEG", (50, 60 + 10 * label, number))
        (folder / "train" / name / f"{name}_boxes.txt").write_text(f"{name}_0.JPEG\t0\t0\t63\t63\n")
        test = folder / "val" / ("images" if distributed else name) / f"val_{label}.JPEG"
        write_picture(test, 100 + 20 * label, mode="L")
    (folder / "wnids.txt").write_text("n01629819\nn01443537\n")
    (folder / "val" / "val_annotations.txt").write_text(
        "val_1.JPEG\tn01629819\t0\t0\t63\t63\nval_0.JPEG\tn01443537\t0\t0\t63\t63\n")


@pytest.mark.parametrize("distributed", [True, False])
@pytest.mark.parametrize("place", [".", "tiny-imagenet-200"])
def test_tiny_imagenet_is_read_as_distributed_and_sorted(tmp_path, place, distributed):
    write_tiny(tmp_path / place, distributed=distributed)
    data = catalogue.load("tiny-imagenet", tmp_path)
    assert (data.name, data.classes, data.channels, data.size, data.mirrored) == ("tiny-imagenet", 2, 3, 64, True)
    assert data.images.dtype == torch.uint8
    assert data.labels.tolist() == [0, 1, 0, 1]  # the first few are of all classes
    for values, color in zip(data.images.float().mean((2, 3)), [(50, 60, 0), (50, 70, 0), (50, 60, 1), (50, 70, 1)],
                             strict=True):
        assert values.tolist() == pytest.approx(color, abs=2)
    assert data.test_labels.tolist() == ([1, 0] if distributed else [0, 1])
    for values, label in zip(data.test_images.float().mean((2, 3)), data.test_labels, strict=True):
        assert values.tolist() == pytest.approx([100 + 20 * int(label)] * 3, abs=2)


@pytest.mark.parametrize(("spoil", "said"), [
    ("no train", "there is no folder {}/train, where"), ("no val", "there is no folder {}/val, where"),
    ("no annotations", "there is no file {}/val/val_annotations.txt, where"),
    ("latin-1", "{}/val/val_annotations.txt is not a text"), ("short line", "{}/val/val_annotations.txt is not a text"),
    ("unknown class", "{}/val/val_annotations.txt is not a text that names"),
    ("no picture", "there is no file {}/val/images/val_0.JPEG, where a picture of 64×64"),
    ("cut", "{}/val/images/val_0.JPEG is not a picture"), ("no pictures", "{}/train: Found no valid file"),
    ("other size", "{}/val/images/val_0.JPEG is not a picture of 64×64 pixels (ValueError: it has 32×64)")])
def test_a_bad_tiny_imagenet_is_told(tmp_path, spoil, said):
    write_tiny(tmp_path)
    annotations, picture = tmp_path / "val" / "val_annotations.txt", tmp_path / "val" / "images" / "val_0.JPEG"
    if spoil in ("no train", "no val"):
        (tmp_path / spoil.removeprefix("no ")).rename(tmp_path / "elsewhere")
    elif spoil == "no annotations":
        annotations.unlink()
    elif spoil == "latin-1":
        annotations.write_bytes(b"val_\xe4.JPEG\tn01443537\n")
    elif spoil in ("short line", "unknown class"):
        annotations.write_text("val_0.JPEG\n" if spoil == "short line" else "val_0.JPEG\tn99999999\t0\t0\t63\t63\n")
    elif spoil == "no picture":
        picture.unlink()
    elif spoil == "cut":
        cut(picture)
    elif spoil == "no pictures":
        for file in (tmp_path / "train" / "n01629819" / "images").iterdir():
            file.unlink()
    else:
        write_picture(picture, (1, 2, 3), size=(32, 64))
    assert said.format(tmp_path) in bad("tiny-imagenet", tmp_path)


# ---- folders of pictures -----------------------------------------------------------------------------------

SIZE = 28


def write_folders(folder, *, classes=("cat", "dog", "eel"), size=(50, 40)):
    """Pictures of noise, four of each class to train on, and one, of one colour, to test on."""
    values = np.random.default_rng(0)
    for label, name in enumerate(classes):
        write_picture(folder / "val" / name / "picture.png", (10 * label, 20, 30), size)
        for number in range(4):
            path = folder / "train" / name / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(values.integers(0, 256, (*size[::-1], 3), dtype=np.uint8)).save(path)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    write_folders(folder)
    return catalogue.load("image-folder", folder)._replace(size=SIZE, workers=0)


def epochs(data, count=1, *, augmented=True, part=whole, batch=5):
    """What a run sees, and where it leaves its generator."""
    generator = torch.Generator().manual_seed(7)
    seen = [examples for _ in range(count)
            for examples in data.training(torch.arange(data.count).split(batch), generator, augmented, part)]
    images, labels = zip(*seen, strict=True)
    return torch.cat(images), torch.cat(labels), generator.get_state()


def test_folders_are_a_source(pictures):
    assert (pictures.name, pictures.classes, pictures.channels, pictures.size) == ("image-folder", 3, 3, SIZE)
    assert (pictures.count, pictures.test_count) == (12, 3)
    images, labels, _ = epochs(pictures)
    assert (images.shape, images.dtype) == ((12, 3, SIZE, SIZE), torch.float32)
    assert labels.tolist() == [0, 1, 2] * 4  # the first few are of all classes
    few = pictures.of_size(4)
    assert (few.count, few.classes, few.test_count) == (4, 3, 3)
    assert torch.equal(epochs(few)[0], images[:4])


def test_pictures_are_normalised_as_imagenet_is(pictures):
    (images, labels), = pictures.testing([torch.arange(3)])
    assert labels.tolist() == [0, 1, 2]
    for label, image in enumerate(images):
        color = torch.tensor([10 * label, 20, 30], dtype=torch.float64) / 255
        expected = (color - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor([0.229, 0.224, 0.225])
        torch.testing.assert_close(image.double(), expected[:, None, None].expand(3, SIZE, SIZE), atol=1e-5, rtol=0)


def test_without_augmentation_it_is_the_middle_of_the_picture(tmp_path):
    values = pixels(32, 48, 3)
    for part in ("train", "val"):
        (tmp_path / part / "only").mkdir(parents=True)
        Image.fromarray(values).save(tmp_path / part / "only" / "noise.png")
    data = catalogue.load("image-folder", tmp_path)._replace(size=SIZE, workers=0)
    (tested, _), = data.testing([torch.arange(1)])
    middle = torch.from_numpy(values).movedim(-1, 0)[:, 2:30, 10:38].double() / 255  # 32 = 28 · 256 / 224: not scaled
    mean, deviation = (torch.tensor(value).double()[:, None, None] for value in (folders.MEAN, folders.DEVIATION))
    torch.testing.assert_close(tested[0].double(), (middle - mean) / deviation, atol=1e-5, rtol=0)
    assert torch.equal(epochs(data, augmented=False)[0], tested)
    assert not torch.equal(epochs(data)[0], tested)


def test_each_epoch_and_each_picture_has_its_own_crop(pictures):
    images, _, _ = epochs(pictures._replace(samples=pictures.samples[:1] * 6), 3)
    assert len({image.numpy().tobytes() for image in images}) == 18


def test_epochs_are_the_same_whatever_the_workers_and_the_processes(pictures):
    state = torch.get_rng_state()
    images, labels, generator = epochs(pictures, 2)
    assert torch.equal(torch.get_rng_state(), state)  # which dropout goes on from
    with_workers = epochs(pictures._replace(workers=2), 2)
    assert torch.equal(torch.get_rng_state(), state)
    for found, expected in zip(with_workers, (images, labels, generator), strict=True):
        assert torch.equal(found, expected)
    parts = [epochs(pictures, 2, part=lambda batch, rank=rank: batch.tensor_split(2)[rank], batch=4) for rank in (0, 1)]
    for joined, expected in zip(parts[0], epochs(pictures, 2)[:2], strict=False):
        other = parts[1][0] if joined.dim() == 4 else parts[1][1]
        together = torch.stack([joined.unflatten(0, (-1, 2)), other.unflatten(0, (-1, 2))], 1).flatten(0, 2)
        assert torch.equal(together, expected)
    assert all(torch.equal(part[2], generator) for part in parts)


def test_a_process_reads_only_its_part(pictures, monkeypatch):
    read = []
    monkeypatch.setattr(folders.Pictures, "_read", lambda self, index: read.append(index) or torch.zeros(3, 2, 2))
    epochs(pictures, part=lambda batch: batch[::2], batch=6)
    assert read == [0, 2, 4, 6, 8, 10]


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("spoil", ["cut", "a text", "gone"])
def test_an_unreadable_picture_is_named_when_its_turn_comes(tmp_path, workers, spoil):
    write_folders(tmp_path)
    data = catalogue.load("image-folder", tmp_path)._replace(size=SIZE, workers=workers)
    path = tmp_path / "train" / "dog" / "1.png"
    if spoil == "gone":
        path.unlink()
    elif spoil == "cut":
        cut(path)
    else:
        path.write_text("no picture at all")
    examples = data.training(torch.arange(12).split(3), torch.Generator(), True, whole)
    next(examples)
    said = f"there is no file {path}, where a picture" if spoil == "gone" else f"{path} is not a picture ("
    with pytest.raises(BadData) as raised:
        next(examples)
    assert str(raised.value).startswith(said)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(("spoil", "said"), [
    ("no train", "there is no folder {}/train, where"), ("no val", "there is no folder {}/val, where"),
    ("no classes", "{}/val: Couldn't find any class folder"), ("empty class", "{}/val: Found no valid file for"),
    ("fewer classes", "{}/val should have the training pictures' classes, and differs in eel"),
    ("other classes", "{}/val should have the training pictures' classes, and differs in eel, fox")])
def test_bad_folders_are_told(tmp_path, spoil, said):
    write_folders(tmp_path)
    val = tmp_path / "val"
    if spoil in ("no train", "no val"):
        (tmp_path / spoil.removeprefix("no ")).rename(tmp_path / "elsewhere")
    elif spoil == "no classes":
        val.rename(tmp_path / "elsewhere")
        write_picture(val / "picture.png", 0, mode="L")
    elif spoil == "empty class":
        (val / "eel" / "picture.png").rename(val / "eel" / "picture.txt")
    else:
        (val / "eel").rename(tmp_path / "eel" if spoil == "fewer classes" else val / "fox")
    assert said.format(tmp_path) in bad("image-folder", tmp_path)


def test_imagenet_has_a_thousand_classes(tmp_path):
    write_folders(tmp_path)
    assert "train has 3 folders, where those of ImageNet's 1,000 classes" in bad("imagenet", tmp_path)
    for part in ("train", "val"):
        for number in range(997):
            (tmp_path / part / f"n{number:08}").mkdir()
            (tmp_path / part / f"n{number:08}" / "empty.JPEG").touch()
    data = catalogue.load("imagenet", tmp_path)
    assert (data.name, data.classes, data.count, data.size) == ("imagenet", 1000, 1009, 224)


# ---- all of them -------------------------------------------------------------------------------------------


def test_digits_are_split_once_and_for_all():
    pytest.importorskip("sklearn", reason="the images are scikit-learn's")
    data = catalogue.load("digits", None)
    assert data.images.shape == (1437, 1, 8, 8)
    assert data.test_images.shape == (360, 1, 8, 8)
    assert data.labels.bincount().min() > 100
    assert not data.mirrored
    assert torch.equal(data.images, images.digits().images)


@pytest.mark.parametrize("name", catalogue.FILES)
def test_a_folder_that_is_not_there_is_named(tmp_path, name):
    assert bad(name, tmp_path / "nowhere") == f"there is no folder {tmp_path / 'nowhere'}"
    assert str(tmp_path) in bad(name, tmp_path)


def test_each_set_says_what_files_it_wants():
    assert {*catalogue.DATASETS} == {*catalogue.FILES, *catalogue.WITHOUT_FILES}
    page = (ROOT / "docs" / "accuracy.md").read_text(encoding="utf-8")
    for name, files in catalogue.FILES.items():
        assert f"| `{name}` | {files} |" in page


def set_of(count, *, mirrored):
    values = torch.from_numpy(pixels(count, 1, 8, 8))
    return memory.images("noise", 10, values, torch.arange(count) % 10, values[:2], torch.arange(2), mirrored=mirrored)


def test_images_are_normalised_by_the_training_part():
    colors = torch.from_numpy(pixels(20, 3, 8, 8)) // torch.tensor([1, 2, 5], dtype=torch.uint8)[:, None, None]
    data = memory.images("noise", 10, colors, torch.arange(20) % 10, colors[:2], torch.arange(2), mirrored=False)
    (values, labels), = data.training([torch.arange(20)], torch.Generator(), True, whole)
    assert torch.equal(labels, data.labels)
    deviation, mean = torch.std_mean(colors.double(), (0, 2, 3), keepdim=True)
    torch.testing.assert_close(values.double(), (colors - mean) / deviation, atol=1e-6, rtol=1e-6)
    (tested, _), = data.testing([torch.arange(2)])
    assert torch.equal(tested, values[:2])


def test_only_sets_that_the_papers_augment_are_cropped():
    batches = torch.arange(20).split(10)
    for mirrored in (True, False):
        data = set_of(20, mirrored=mirrored)
        plain, augmented = (torch.cat([values for values, _ in data.training(
            batches, torch.Generator().manual_seed(0), wanted, whole)]) for wanted in (False, True))
        assert torch.equal(plain, augmented) is not mirrored


def test_crops_are_windows_of_the_padded_image_and_differ():
    values = torch.rand(64, 1, 8, 8) + 1
    cropped = memory.cropped_and_mirrored(values, torch.Generator().manual_seed(0))
    windows = torch.nn.functional.pad(values, [1] * 4).unfold(2, 8, 1).unfold(3, 8, 1).flatten(1, 3)
    matches = [(windows == candidate).flatten(2).all(2) for candidate in (cropped, cropped.flip(-1))]
    assert (matches[0] | matches[1]).any(1).all()
    assert matches[0].any(1).sum() not in (0, 64)
    assert len({tuple(row.nonzero().flatten().tolist()) for row in matches[0]}) > 4
