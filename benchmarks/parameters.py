"""Counts the parameters of the papers' networks, beside the counts that the papers print.

A count is compared in the digits that are printed. Leaves a table on the terminal and a JSON file in the output folder.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from decimal import Decimal
from typing import NamedTuple

from harness import command, machine, report
from networks import published, tables
from networks.catalogue import build, parameter_count

import leni_kernels as lk

UNITS = {"M": 6, "K": 3, "": 0}


class Row(NamedTuple):
    """A count, how the paper is read, and the published count as printed."""

    table: str
    network: str
    method: str
    reading: str
    count: int
    published: str


def main(arguments: Sequence[str] | None = None) -> int:
    """Count and report; returns the exit status."""
    options = _options(arguments)
    found: list[Row] = []
    with report.progress(sum(len(tables.TABLES[name].rows) for name in COUNTED)) as step:
        for name in COUNTED:
            for row in tables.TABLES[name].rows:
                step(f"{row.network}, {row.method}")
                found += counted(name, row)
    path = options.output / "parameters.json"
    report.write_json(path, {"versions": machine.versions(), "commit": machine.commit(),
                             "rows": [{**row._asdict(), "difference": difference(row)} for row in found]})
    for table in dict.fromkeys(row.table for row in found):
        report.table(table, HEAD, [cells(row) for row in found if row.table == table])
    off = sum(difference(row) not in AGREED for row in found)
    report.say(f"{len(found) - off} of {len(found)} counts are the published ones. Results in {path}.")
    return 0


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = command.parser(__file__)
    command.add_output(parser)
    options = command.parse(parser, arguments)
    command.need(parser, ("torchvision", "timm"))
    return options


# ---- what is counted ---------------------------------------------------------------------------------------

COUNTED = tuple(name for name, printed in published.PRINTED.items() if any(row.parameters for row in printed.values()))
"""The tables that print parameters."""

CLASSES, CLASSES_OF = 100, {"convnet13": 1000}
"""With which the networks have the printed counts with ReLU; those of LENI's Table 1 have ImageNet's 1,000."""

LENI: dict[str, Callable[[int], int]] = {
    "deconvolution 3×3": lambda channels: 0,
    "deconvolution 5×5": lambda channels: 16 * channels,
    "deconvolution 3×3 and pointwise": lambda channels: channels ** 2,
}
"""What the paper may mean by a "depthwise separable deconvolution", of which it names no size, and what a block of so
many channels has then, more than our default."""


def counted(name: str, row: tables.Row) -> Iterator[Row]:
    """A row of a table, once for each way to read it; where differences are printed, they too."""
    printed = published.PRINTED[name][row.network, row.method]
    table = tables.TABLES[name].paper
    for reading, count in _readings(name, row, row.activation):
        yield Row(table, row.network, row.method, reading, count, printed.parameters or "")
        if name == "leni-1" and printed.changes:
            (_, stock), = _readings(name, row, "relu")
            yield Row(table, row.network, f"{row.method}, added", reading, count - stock, printed.changes[1])


def _readings(name: str, row: tables.Row, activation: str) -> Iterator[tuple[str, int]]:
    size, classes = (224, 1000) if name == "leni-1" else (32, CLASSES_OF.get(row.network, CLASSES))
    network = build(row.network, activation, classes, width=row.width, where=row.where, size=size)
    count, of = parameter_count(network), f"{classes:,} classes"
    blocks = [module.channels for module in network.modules() if isinstance(module, lk.LENI2d)]
    if blocks:
        for reading, more in LENI.items():
            yield f"{of}, {reading}", count + sum(map(more, blocks))
    elif activation == "extended_depthwise_conv":
        yield f"{of}, depthwise, as this paper says", count
        dense = build(row.network, "extended_conv", classes, width=row.width, where=row.where, size=size)
        yield f"{of}, dense, as the Reborn paper says", parameter_count(dense)
    else:
        yield of, count


# ---- against what is printed -------------------------------------------------------------------------------

AGREED = ("exact", "to the printed digits")


def difference(row: Row) -> str:
    """Our count less the published one in the printed unit and digits, or one of ``AGREED``."""
    digits, unit = re.fullmatch(r"\+?([\d.,]+)([MK]?)", row.published).groups()
    printed = Decimal(digits.replace(",", ""))
    ours = Decimal(row.count).scaleb(-UNITS[unit]).quantize(printed)
    if ours != printed:
        return f"{ours - printed:+}{unit}"
    return AGREED[bool(unit)]


HEAD = ("network", "method", "reading", "parameters", "published", "difference")


def cells(row: Row) -> list[str]:
    """A row of the table."""
    return [row.network, row.method, row.reading, f"{row.count:,}", row.published, difference(row)]


if __name__ == "__main__":
    sys.exit(command.run(main))
