"""Counts the parameters of the papers' networks, beside the counts that the papers print.

A count is compared in the digits that are printed. Leaves a table on the terminal and a JSON file in the output folder.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from decimal import Decimal
from typing import NamedTuple

from harness import command, machine, report
from networks import published, table1
from networks.catalogue import build, parameter_count

import leni_kernels as lk

UNITS = {"M": 6, "K": 3, "": 0}


class Row(NamedTuple):
    """A count and, as printed in the paper, the published one; None where it is not available to us."""

    table: str
    network: str
    activation: str
    count: int
    published: str | None
    reading: str


def main(arguments: Sequence[str] | None = None) -> int:
    """Count and report; returns the exit status."""
    options = _options(arguments)
    found = []
    with report.progress(how_many()) as step:
        for row in rows():
            step(f"{row.network}, {row.activation}")
            found.append(row)
    path = options.output / "parameters.json"
    report.write_json(path, {"versions": machine.versions(), "commit": machine.commit(),
                             "rows": [{**row._asdict(), "difference": difference(row)} for row in found]})
    for table, reading in dict.fromkeys((row.table, row.reading) for row in found):
        report.table(f"{table}: {reading}", HEAD, [cells(row) for row in found if row[::5] == (table, reading)])
    missing = sum(row.published is None for row in found)
    report.say(f"{missing} of {len(found)} published counts are {published.NOT_AVAILABLE} (—). Results in {path}.")
    return 0


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = command.parser(__file__)
    command.add_output(parser)
    options = command.parse(parser, arguments)
    command.need(parser, ("torchvision", "timm"))
    return options


# ---- what is counted ---------------------------------------------------------------------------------------


def rows() -> Iterator[Row]:
    """All rows, table by table."""
    yield from _leni_layer()
    yield from _leni_table_1()
    for table, networks, activations, width, reading in SMALL_IMAGES:
        for network in networks:
            for activation in activations:
                name = f"{network} ×{width:g}" if width != 1 else network
                count = parameter_count(build(network, activation, width=width))
                yield Row(table, name, activation, count, published.PARAMETERS.get((table, name, activation)), reading)


def how_many() -> int:
    """The number of :func:`rows`."""
    return (len(LAYER_READINGS) + len(table1.NETWORKS) * (1 + len(table1.LAYERS))
            + sum(len(networks) * len(activations) for _, networks, activations, _, _ in SMALL_IMAGES))


LAYER_READINGS = {3: "the default here: the paper names no kernel size",
                  5: "gives the paper's number; 3×3 would too, were it a difference of totals rounded to 0.01 M"}
"""Kernel sizes of the block, and what is to be said of them."""


def _leni_layer() -> Iterator[Row]:
    """What LENI adds to a layer of 64 channels: the one increment whose published value is available to us."""
    for kernel, reading in LAYER_READINGS.items():
        yield Row("LENI Table 1, one layer of 64 channels", f"LENI, {kernel}×{kernel}", "leni",
                  parameter_count(lk.LENI2d(64, kernel)), published.LENI_LAYER_64, reading)


def _leni_table_1() -> Iterator[Row]:
    table = "LENI Table 1, ImageNet"
    for name in table1.NETWORKS:
        stock = table1.build(name)
        for layers in (0, *table1.LAYERS):
            network = table1.with_leni(stock, layers)[0] if layers else stock
            activation = f"leni in {table1.places(layers)}" if layers else "stock"
            yield Row(table, name, activation, parameter_count(network),
                      published.PARAMETERS.get((table, name, activation)), "torchvision's and timm's, 1,000 classes")


CONVNETS = "our reading: 6 convolutions and 2 linear layers, 10 and 3; batch norms; 3×32×32, 10 classes"
USUAL = "3×32×32, 10 classes, batch norms, one linear layer"
SMALL_IMAGES = (
    ("LENI Tables 2-3", ("vgg11", "vgg16", "resnet18", "resnet34"), ("relu", "prelu", "crelu", "leni"), 1.0, USUAL),
    ("LENI Tables 2-3", ("vgg11", "vgg16", "resnet18", "resnet34"), ("relu", "leni"), 0.5, f"{USUAL}; Half"),
    ("ConvReLU Table 6", ("vgg16", "resnet18", "densenet"), ("relu", "leaky_relu", "prelu", "conv_relu"), 1.0,
     f"{USUAL}; every ReLU replaced"),
    ("ConvReLU Table 6", ("text",), ("relu", "leaky_relu", "prelu", "conv_relu"), 1.0,
     "70×1014, 10 classes, as the character network of Zhang et al. 2015; every ReLU replaced"),
    ("Reborn", ("convnet8", "convnet13"), ("relu", "prelu", "crelu", "extended_conv", "reborn"), 1.0, CONVNETS),
)
"""Table, networks, activations, width, and how we read the paper."""


# ---- against what is printed -------------------------------------------------------------------------------


def difference(row: Row) -> str | None:
    """Our count less the published one, in the printed unit and digits; "exact" where they agree in all of them."""
    if row.published is None:
        return None
    digits, _, unit = row.published.removeprefix("+").partition(" ")
    printed = Decimal(digits.replace(",", ""))
    ours = Decimal(row.count).scaleb(-UNITS[unit]).quantize(printed)
    return "exact" if ours == printed else f"{ours - printed:+} {unit}".rstrip()


HEAD = ("network", "activation", "parameters", "published", "difference")


def cells(row: Row) -> list[str]:
    """A row of the table."""
    return [row.network, row.activation, f"{row.count:,}", row.published or "—", difference(row) or "—"]


if __name__ == "__main__":
    sys.exit(command.run(main))
