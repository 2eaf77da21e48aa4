"""The papers' tables, as printed: accuracies in per cent, parameters, speeds.

What a row stands for is in :mod:`.tables`, under the same names.

LENI: Cai, Peng, Shen 2023 (arXiv 2306.10536). Reborn: Cai, Huang, Peng 2021 (arXiv 2106.07026). ConvReLU: Gao, Cai,
Ji 2020 (AAAI 34(04), 3914-3921).
"""

from __future__ import annotations

import re
from typing import NamedTuple


class Printed(NamedTuple):
    """A row of a table: accuracies by data set, and what else it prints."""

    accuracies: dict[str, str]
    parameters: str | None = None
    speed: str | None = None
    changes: tuple[str, ...] = ()
    """The printed differences to the row without the method."""


def _read(text: str) -> dict[tuple[str, str], Printed]:
    """Rows by network and method. The first line names the columns; a line without cells is the network below it."""
    head, *lines = (line.strip() for line in text.strip().splitlines())
    datasets, *columns = (column.strip() for column in head.split("|")[1:])
    rows, network = {}, ""
    for line in lines:
        method, *cells = (cell.strip() for cell in line.split("|"))
        if cells:
            accuracies = dict(zip(datasets.split(), cells[0].split(), strict=True))
            more = dict(zip(columns, cells[1:], strict=True))
            changes = tuple(more.pop("changes", "").split())
            rows[network, method] = Printed(accuracies, **more, changes=changes)
        else:
            network = method
    return rows


PRINTED = {
    # The first three layers of VGG-16 have 64, 64 and 128 channels, and each adds as much, where a block grows with
    # their square. The rows of 1 have an empty cell in the place of "ReLU".
    "leni-1": _read("""
    method      | imagenet | parameters | speed  | changes
    convnet13
    ReLU        | 73.34    | 15.236M    | 1383/s |
    layer 1     | 73.82    | 15.246M    | 1375/s | +0.48 +0.010M -8/s
    layer 1,2   | 73.85    | 15.256M    | 1362/s | +0.51 +0.020M -21/s
    layer 1,2,3 | 73.92    | 15.266M    | 1347/s | +0.58 +0.030M -36/s
    resnet18
    ReLU        | 70.94    | 11.724M    | 1492/s |
    layer 1     | 71.29    | 11.734M    | 1479/s | +0.35 +0.010M -13/s
    layer 1,2   | 71.25    | 11.744M    | 1468/s | +0.31 +0.020M -24/s
    layer 1,2,3 | 71.35    | 11.754M    | 1457/s | +0.41 +0.030M -35/s
    mobilenet_v1
    ReLU        | 72.08    | 4.232M     | 1583/s |
    layer 1     | 72.44    | 4.234M     | 1571/s | +0.36 +0.002M -12/s
    mobilenet_v2
    ReLU        | 71.68    | 3.565M     | 1753/s |
    layer 1     | 71.99    | 3.567M     | 1737/s | +0.31 +0.002M -16/s
    mobilenet_v3_small
    ReLU        | 61.95    | 2.938M     | 1578/s |
    layer 1     | 63.19    | 2.939M     | 1573/s | +1.24 +0.001M -5/s
    mobilenet_v3_large
    ReLU        | 71.61    | 5.476M     | 1723/s |
    layer 1     | 71.98    | 5.477M     | 1721/s | +0.37 +0.001M -2/s
    """),
    # The same accuracies are in Reborn's Table 2, on networks called ConvNet-8 and -13, for SELU where this has GELU,
    # and for Reborn where this has LENI.
    "leni-2": _read("""
    method                | cifar10 cifar100 svhn mnist kmnist fashion-mnist | parameters
    convnet8
    ReLU                  | 90.39 67.27 93.96 99.50 97.06 92.95 | 5.21M
    Leaky ReLU            | 90.43 66.89 93.76 99.42 96.64 93.09 | 5.21M
    PReLU                 | 89.38 66.30 93.64 99.52 96.97 92.84 | 5.21M
    RReLU                 | 90.66 68.09 94.05 99.41 97.09 93.20 | 5.21M
    CELU                  | 89.45 65.62 93.57 99.41 96.59 92.76 | 5.21M
    GELU                  | 87.92 61.13 93.50 99.41 96.25 92.65 | 5.21M
    ELU                   | 90.00 65.92 93.42 99.41 96.24 92.82 | 5.21M
    CReLU                 | 89.83 66.71 94.37 99.41 97.68 93.02 | 9.39M
    LENI                  | 91.80 68.41 95.34 99.59 98.24 93.66 | 6.02M
    convnet13
    ReLU                  | 91.58 68.48 94.82 99.55 97.55 93.36 | 15.24M
    Leaky ReLU            | 91.52 68.89 94.86 99.51 97.47 93.52 | 15.24M
    PReLU                 | 91.08 68.11 94.55 99.50 97.55 93.71 | 15.24M
    RReLU                 | 91.75 69.38 94.74 99.48 97.69 93.48 | 15.24M
    CELU                  | 89.55 68.67 94.57 99.47 97.43 92.79 | 15.24M
    GELU                  | 87.61 65.02 94.27 99.41 97.20 92.71 | 15.24M
    ELU                   | 90.22 66.34 94.31 99.43 97.39 92.92 | 15.24M
    CReLU                 | 92.06 69.07 95.37 99.61 97.78 93.39 | 29.68M
    LENI                  | 93.17 70.77 95.81 99.70 98.51 93.86 | 21.52M
    resnet34
    ReLU                  | 93.64 74.89 95.43 99.57 98.17 94.23 | 21.33M
    Leaky ReLU            | 93.56 74.37 95.41 99.51 98.17 94.17 | 21.33M
    PReLU                 | 93.46 72.68 95.45 99.50 97.95 94.33 | 21.33M
    RReLU                 | 93.77 74.91 95.53 99.48 98.09 94.35 | 21.33M
    CELU                  | 92.52 72.34 95.47 99.47 97.63 93.76 | 21.33M
    GELU                  | 90.64 70.22 94.93 99.41 97.40 93.88 | 21.33M
    ELU                   | 92.71 72.86 95.01 99.43 97.49 93.91 | 21.33M
    CReLU                 | 93.89 75.32 95.67 99.61 98.34 94.17 | 41.85M
    LENI                  | 94.73 76.56 96.72 99.73 99.05 95.01 | 28.44M
    """),
    # Half the channels have the quarter of the parameters less what grows with the channels only; the printed counts
    # of ReLU and CReLU are exact quarters. Extended Conv, here a depthwise convolution, has LENI's parameters.
    "leni-3": _read("""
    method                | cifar10 cifar100 svhn mnist kmnist fashion-mnist | parameters
    convnet8
    ReLU                  | 90.39 67.27 93.96 99.50 97.06 92.95 | 5.21M
    Half ReLU             | 88.91 65.22 92.91 99.43 96.11 92.45 | 1.30M
    Half CReLU            | 88.62 65.01 93.56 99.36 97.15 92.93 | 2.35M
    Half LENI             | 91.19 67.35 93.90 99.53 96.92 93.05 | 1.51M
    Extended Conv         | 90.45 66.79 93.93 99.54 96.92 93.17 | 6.02M
    convnet13
    ReLU                  | 91.58 68.48 94.82 99.55 97.55 93.36 | 15.24M
    Half ReLU             | 90.45 67.25 94.67 99.42 97.56 92.56 | 3.81M
    Half CReLU            | 90.56 67.10 95.11 99.51 97.61 92.74 | 7.42M
    Half LENI             | 91.74 68.56 95.56 99.63 98.27 93.39 | 5.37M
    Extended Conv         | 90.54 67.32 94.96 99.54 97.75 93.09 | 21.52M
    resnet34
    ReLU                  | 93.64 74.89 95.43 99.57 98.17 94.23 | 21.33M
    Half ReLU             | 92.65 72.66 94.23 99.56 97.87 93.57 | 5.33M
    Half CReLU            | 92.76 73.14 95.21 99.54 98.04 93.91 | 10.46M
    Half LENI             | 93.15 75.23 95.73 99.62 98.22 93.97 | 7.10M
    Extended Conv         | 93.67 74.93 95.36 99.57 98.21 94.25 | 28.44M
    """),
    # A digit too many: 92.793.
    "reborn-2": _read("""
    method                | cifar10 cifar100 svhn mnist kmnist fashion-mnist
    convnet8
    ReLU                  | 90.39 67.27 93.96 99.50 97.06 92.95
    CReLU                 | 89.83 66.71 94.37 99.41 97.68 93.02
    Leaky ReLU            | 90.43 66.89 93.76 99.42 96.64 93.09
    PReLU                 | 89.38 66.30 93.64 99.52 96.97 92.84
    RReLU                 | 90.66 68.09 94.05 99.41 97.09 93.20
    CELU                  | 89.45 65.62 93.57 99.41 96.59 92.76
    SELU                  | 87.92 61.13 93.50 99.41 96.25 92.65
    ELU                   | 90.00 65.92 93.42 99.41 96.24 92.82
    Reborn Mechanism      | 91.80 68.41 95.34 99.59 98.24 93.66
    convnet13
    ReLU                  | 91.58 68.48 94.82 99.55 97.55 93.36
    CReLU                 | 92.06 69.07 95.37 99.61 97.78 93.39
    Leaky ReLU            | 91.52 68.89 94.86 99.51 97.47 93.52
    PReLU                 | 91.08 68.11 94.55 99.50 97.55 93.71
    RReLU                 | 91.75 69.38 94.74 99.48 97.69 93.48
    CELU                  | 89.55 68.67 94.57 99.47 97.43 92.793
    SELU                  | 87.61 65.02 94.27 99.41 97.20 92.71
    ELU                   | 90.22 66.34 94.31 99.43 97.39 92.92
    Reborn Mechanism      | 93.17 70.77 95.81 99.70 98.51 93.86
    resnet34
    ReLU                  | 93.64 74.89 95.43 99.57 98.17 94.23
    CReLU                 | 93.89 75.32 95.67 99.61 98.34 94.17
    Leaky ReLU            | 93.56 74.37 95.41 99.51 98.17 94.17
    PReLU                 | 93.46 72.68 95.45 99.50 97.95 94.33
    RReLU                 | 93.77 74.91 95.53 99.48 98.09 94.35
    CELU                  | 92.52 72.34 95.47 99.47 97.63 93.76
    SELU                  | 90.64 70.22 94.93 99.41 97.40 93.88
    ELU                   | 92.71 72.86 95.01 99.43 97.49 93.91
    Reborn Mechanism      | 94.73 76.56 96.72 99.73 99.05 95.01
    """),
    # The text calls the halved networks' parameters a quarter.
    "reborn-3": _read("""
    method                | cifar10 cifar100 svhn mnist kmnist fashion-mnist
    convnet8
    ReLU                  | 90.39 67.27 93.96 99.50 97.06 92.95
    CReLU                 | 89.83 66.71 94.37 99.41 97.68 93.02
    Half ReLU             | 88.91 65.22 92.91 99.43 96.11 92.45
    Half CReLU            | 88.62 65.01 93.56 99.36 97.15 92.93
    Half Reborn Mechanism | 91.19 67.35 93.90 99.53 96.92 93.05
    convnet13
    ReLU                  | 91.58 68.48 94.82 99.55 97.55 93.36
    CReLU                 | 92.06 69.07 95.37 99.61 97.78 93.39
    Half ReLU             | 90.45 67.25 94.67 99.42 97.56 92.56
    Half CReLU            | 90.56 67.10 95.11 99.51 97.61 92.74
    Half Reborn Mechanism | 91.74 68.56 95.56 99.63 98.27 93.39
    resnet34
    ReLU                  | 93.64 74.89 95.43 99.57 98.17 94.23
    CReLU                 | 93.89 75.32 95.67 99.61 98.34 94.17
    Half ReLU             | 92.65 72.66 94.23 99.56 97.87 93.57
    Half CReLU            | 92.76 73.14 95.21 99.54 98.04 93.91
    Half Reborn Mechanism | 93.15 75.23 95.73 99.62 98.22 93.97
    """),
    # LENI's Table 3 has the two CIFAR-100 accuracies of Extended Conv in ConvNet-8 and -13 the other way round.
    "reborn-4": _read("""
    method                | cifar10 cifar100 svhn mnist kmnist fashion-mnist
    convnet8
    ReLU                  | 90.39 67.27 93.96 99.50 97.06 92.95
    Extended Conv         | 90.45 67.32 93.93 99.54 96.92 93.17
    Reborn Mechanism      | 91.80 68.41 95.34 99.59 98.24 93.66
    convnet13
    ReLU                  | 91.58 68.48 94.82 99.55 97.55 93.36
    Extended Conv         | 90.54 66.79 94.96 99.54 97.75 93.09
    Reborn Mechanism      | 93.17 70.77 95.81 99.70 98.51 93.86
    resnet34
    ReLU                  | 93.64 74.89 95.43 99.57 98.17 94.23
    Extended Conv         | 93.67 74.93 95.36 99.57 98.21 94.25
    Reborn Mechanism      | 94.73 76.56 96.72 99.73 99.05 95.01
    """),
    "conv_relu-1": _read("""
    method        | cifar10 cifar100 tiny-imagenet
    densenet
    ReLU          | 94.29 75.87 56.31
    LeakyReLU     | 94.45 76.06 56.38
    LeakyReLU (A) | 94.32 75.29 55.97
    PReLU         | 94.58 75.78 56.09
    PReLU (A)     | 94.03 74.87 54.38
    ConvReLU      | 94.72 76.41 56.47
    """),
    "conv_relu-2": _read("""
    method        | mr ag-news yelp-full
    text
    ReLU          | 78.51 88.64 62.69
    LeakyReLU     | 77.48 88.98 62.93
    LeakyReLU (A) | 78.33 88.55 62.69
    PReLU         | 77.19 88.77 63.03
    PReLU (A)     | 79.83 88.52 62.94
    ConvReLU      | 80.39 89.13 63.19
    """),
    "conv_relu-3": _read("""
    method   | cifar10 cifar100
    vgg16
    ReLU     | 93.71 73.31
    ConvReLU | 94.01 74.04
    resnet18
    ReLU     | 94.37 75.17
    ConvReLU | 94.48 75.97
    densenet
    ReLU     | 94.29 75.87
    ConvReLU | 94.72 76.41
    """),
    "conv_relu-4": _read("""
    method      | cifar10 cifar100
    densenet
    Zero Init   | 94.72 76.41
    Random Init | 94.55 75.81
    Glort Init  | 94.45 75.44
    """),
    "conv_relu-5": _read("""
    method     | cifar10
    densenet
    R1 (First) | 94.72
    R2 (Last)  | 94.34
    R3 (All)   | 94.55
    """),
    # The caption says CIFAR-10; the counts are of 100 classes.
    "conv_relu-6": _read("""
    method        | | parameters | changes
    densenet
    ReLU          | | 1,035,268 | 0.00
    LeakyReLU     | | 1,035,268 | 0.00
    LeakyReLU (A) | | 1,035,268 | 0.00
    PReLU         | | 1,035,280 | 0.00
    PReLU (A)     | | 1,035,387 | 0.01
    ConvReLU      | | 1,038,184 | 0.28
    """),
}


def accuracy(table: str, network: str, method: str, dataset: str) -> str | None:
    """The printed accuracy in per cent; None where the table has none."""
    row = PRINTED[table].get((network, method))
    return row and row.accuracies.get(dataset)


def parameters(table: str, network: str, method: str) -> str | None:
    """The printed number of parameters, with its unit; None where the table has none."""
    row = PRINTED[table].get((network, method))
    return row and row.parameters


def _speed_changes() -> tuple[float, float]:
    rows = PRINTED["leni-1"]
    speeds = {key: int(re.sub(r"\D", "", row.speed or "")) for key, row in rows.items()}
    changes = [100 * (speed / speeds[network, "ReLU"] - 1) for (network, method), speed in speeds.items()
               if method != "ReLU"]
    return round(min(changes), 1), round(max(changes), 1)


LENI_SPEED_CHANGE = _speed_changes()
"""Of LENI's Table 1: change of images/s in per cent, the lowest and the highest of its rows."""
