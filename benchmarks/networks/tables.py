"""The papers' tables of accuracies and parameters: what each row is, and on which data.

What they print is in :mod:`.published`, under the same names.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple


class Method(NamedTuple):
    """What stands in the place of a network's ReLUs, as of :func:`.catalogue.build`."""

    activation: str
    where: str = "all"
    width: float = 1.0


class Row(NamedTuple):
    """A network, the method by its printed name, and what that is."""

    network: str
    method: str
    activation: str
    where: str = "all"
    width: float = 1.0


class Table(NamedTuple):
    """A table of a paper. ``recipe`` is the training's name; a table without data sets prints parameters only."""

    paper: str
    what: str
    datasets: tuple[str, ...]
    recipe: str
    rows: tuple[Row, ...]


def _rows(networks: Iterable[str], methods: dict[str, Method]) -> tuple[Row, ...]:
    return tuple(Row(network, name, *method) for network in networks for name, method in methods.items())


IMAGENET = {"ReLU": Method("relu"), "layer 1": Method("leni", "first:1"), "layer 1,2": Method("leni", "first:2"),
            "layer 1,2,3": Method("leni", "first:3")}
FUNCTIONS = {"ReLU": Method("relu"), "Leaky ReLU": Method("leaky_relu"), "PReLU": Method("prelu"),
             "RReLU": Method("rrelu"), "CELU": Method("celu"), "ELU": Method("elu"), "CReLU": Method("crelu")}
HALF = {"ReLU": Method("relu"), "Half ReLU": Method("relu", width=0.5), "Half CReLU": Method("crelu", width=0.5)}
PARTIAL = {"ReLU": Method("relu"), "LeakyReLU": Method("leaky_relu", "first-block"),
           "LeakyReLU (A)": Method("leaky_relu"), "PReLU": Method("prelu", "first-block"), "PReLU (A)": Method("prelu"),
           "ConvReLU": Method("conv_relu", "first-block")}

SMALL = ("convnet8", "convnet13", "resnet34")
"""The LENI paper calls the first two VGGNet-11 and VGGNet-16, and prints the Reborn paper's accuracies for them."""

SIX = ("cifar10", "cifar100", "svhn", "mnist", "kmnist", "fashion-mnist")
CIFAR = SIX[:2]

TABLES = {
    "leni-1": Table("LENI, Table 1", "LENI in the first layers", ("imagenet",), "imagenet", (
        *_rows(("convnet13", "resnet18"), IMAGENET),
        *_rows(("mobilenet_v1", "mobilenet_v2", "mobilenet_v3_small", "mobilenet_v3_large"),
               {name: IMAGENET[name] for name in ("ReLU", "layer 1")}))),
    "leni-2": Table("LENI, Table 2", "LENI among other activations", SIX, "reborn", _rows(
        SMALL, {**FUNCTIONS, "GELU": Method("gelu"), "LENI": Method("leni")})),
    "leni-3": Table("LENI, Table 3", "half the channels, and extended convolutions", SIX, "reborn", _rows(
        SMALL, {**HALF, "Half LENI": Method("leni", width=0.5), "Extended Conv": Method("extended_depthwise_conv")})),
    "reborn-2": Table("Reborn, Table 2", "Reborn among other activations", SIX, "reborn", _rows(
        SMALL, {**FUNCTIONS, "SELU": Method("selu"), "Reborn Mechanism": Method("reborn")})),
    "reborn-3": Table("Reborn, Table 3", "half the channels", SIX, "reborn", _rows(
        SMALL, {**HALF, "CReLU": Method("crelu"), "Half Reborn Mechanism": Method("reborn", width=0.5)})),
    "reborn-4": Table("Reborn, Table 4", "extended convolutions", SIX, "reborn", _rows(
        SMALL, {"ReLU": Method("relu"), "Extended Conv": Method("extended_conv"),
                "Reborn Mechanism": Method("reborn")})),
    "conv_relu-1": Table("ConvReLU, Table 1", "images", (*CIFAR, "tiny-imagenet"), "conv_relu",
                         _rows(("densenet",), PARTIAL)),
    "conv_relu-2": Table("ConvReLU, Table 2", "texts", ("mr", "ag-news", "yelp-full"), "conv_relu",
                         _rows(("text",), PARTIAL)),
    "conv_relu-3": Table("ConvReLU, Table 3", "popular networks", CIFAR, "conv_relu", _rows(
        ("vgg16", "resnet18", "densenet"), {name: PARTIAL[name] for name in ("ReLU", "ConvReLU")})),
    "conv_relu-4": Table("ConvReLU, Table 4", "how thresholds begin", CIFAR, "conv_relu", _rows(("densenet",), {
        "Zero Init": Method("conv_relu", "first-block"), "Random Init": Method("conv_relu_normal", "first-block"),
        "Glort Init": Method("conv_relu_xavier", "first-block")})),
    "conv_relu-5": Table("ConvReLU, Table 5", "where ConvReLU stands", CIFAR[:1], "conv_relu", _rows(("densenet",), {
        "R1 (First)": Method("conv_relu", "first-block"), "R2 (Last)": Method("conv_relu", "last-block"),
        "R3 (All)": Method("conv_relu")})),
    "conv_relu-6": Table("ConvReLU, Table 6", "parameters", (), "conv_relu", _rows(("densenet",), PARTIAL)),
}
"""The ConvReLU paper's rows without an (A) replace the first block's ReLUs only."""
