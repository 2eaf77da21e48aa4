"""What a training step keeps for its backward: with ReLU, with a composed LENI, and with ours.

On a CPU these are the bytes of the saved tensors, each storage once, without the parameters, which are there anyway;
on a GPU the peak of allocated memory over forward and backward. Blocks stand alone; networks have the block where
their first activation was (a Hardswish in mobilenet_v3_small, a ReLU in the others).

Leaves a table on the terminal, and a JSON file and a PNG picture in the output folder.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from harness import command, history, machine, plot, report, sides, tables
from harness.report import number
from networks import first_activation
from networks.training import trainable
from torch import Tensor, nn

BATCH = 2
LABELS = {"relu": "stock", "composed": "LENI, composed", "ours": "LENI, ours"}
MIB = 2**20


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and report; returns the exit status."""
    options = _options(arguments)
    device = torch.device(options.device)
    torch.manual_seed(0)
    with report.progress(2 * len(first_activation.PLACES)) as step:
        results = {**machine.facts(device), "batch": BATCH, "dtype": "float32", "blocks": _blocks(device, step),
                   "networks": _networks(device, step)}
    path = options.output / f"memory-{device.type}.json"
    report.write_json(path, results)
    report.table(f"{heading(results)}; MiB an image", HEAD, cells(results))
    _draw(path.with_suffix(".png"), results)
    if command.saves(options):
        history.append(results, summary(results))
    report.say(f"Results in {path}.")
    return 0


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = command.parser(__file__)
    command.add_device(parser)
    command.add_output(parser)
    options = command.parse(parser, arguments)
    command.need(parser, ("torchvision", "matplotlib"))
    return options


# ---- what is measured --------------------------------------------------------------------------------------


def _blocks(device: torch.device, step: Callable[[str], None]) -> list[dict[str, Any]]:
    """A block alone on the feature map of each network's first activation."""
    rows = []
    for place in first_activation.PLACES.values():
        step(f"a block on {place.channels}×{place.size}²")
        x = torch.randn(BATCH, place.channels, place.size, place.size, device=device)
        x = x.contiguous(memory_format=torch.channels_last).requires_grad_()
        leni = sides.random_leni(place.channels).to(device).train()
        row = _row(nn.ReLU(inplace=False), leni, x)
        rows.append({"channels": place.channels, "size": place.size, "x_bytes": x.nbytes, **row})
    return rows


def _networks(device: torch.device, step: Callable[[str], None]) -> list[dict[str, Any]]:
    rows = []
    for name, place in first_activation.PLACES.items():
        step(name)
        stock = first_activation.build(name)
        swapped = first_activation.swapped(stock, place, sides.random_leni(place.channels))
        stock, swapped = (trainable(network).to(device, memory_format=torch.channels_last)
                          for network in (stock, swapped))
        x = torch.randn(BATCH, 3, 224, 224, device=device).contiguous(memory_format=torch.channels_last)
        replaced = type(stock.get_submodule(place.path)).__name__
        rows.append({"network": name, "replaced": replaced, **_row(stock, swapped, x)})
    return rows


def _row(stock: nn.Module, leni: nn.Module, x: Tensor) -> dict[str, Any]:
    """Bytes kept, bytes of the parameters, and why a side is missing."""
    measure = peak_bytes if x.is_cuda else saved_bytes
    kept = {"relu": measure(stock, stock, x), "composed": measure(leni, sides.composed(leni), x)}
    missing, backend = {}, None
    try:
        backend = sides.backend_of(leni, x)
        kept["ours"] = measure(leni, leni, x)
    except sides.NotMeasured as reason:
        missing["ours"] = str(reason)
    parameters = {name: sum(tensor.nbytes for tensor in network.parameters())
                  for name, network in (("relu", stock), ("leni", leni))}
    return {"bytes": kept, "parameter_bytes": parameters, "backend": backend, "missing": missing}


def saved_bytes(network: nn.Module, forward: Callable[[Tensor], Tensor], x: Tensor) -> int:
    """The bytes that autograd keeps after ``forward(x)``: each storage once, parameters and buffers apart."""
    own = {tensor.untyped_storage().data_ptr() for tensor in (*network.parameters(), *network.buffers())}
    storages: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            storages[storage.data_ptr()] = storage  # kept alive, so that no other takes its address
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        forward(x)
    return sum(storage.nbytes() for storage in storages.values())


def peak_bytes(network: nn.Module, forward: Callable[[Tensor], Tensor], x: Tensor) -> int:
    """The peak of allocated GPU memory over forward and backward, above what was allocated before."""
    wanted = [tensor for tensor in (x, *network.parameters()) if tensor.requires_grad]
    for _ in range(2):  # the first time also allocates workspaces, which stay
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        y = forward(x)
        gradients = torch.autograd.grad(y.sum(), wanted)
        peak = torch.cuda.max_memory_allocated() - before
        del y, gradients
    return peak


# ---- what it found -----------------------------------------------------------------------------------------


HEAD = ("", *LABELS.values(), "composed / stock", "ours / stock", "parameters, MiB", "backend")


def heading(results: dict[str, Any]) -> str:
    """What the numbers are."""
    return "Kept for backward" if results["device"] == "cpu" else "Peak of allocated memory over a training step"


def title(row: dict[str, Any]) -> str:
    """The name of a row."""
    if "network" in row:
        return f"{row['network']} ({row['replaced']})"
    return f"block alone, {row['channels']}×{row['size']}² (ReLU)"


def cells(results: dict[str, Any]) -> list[list[str]]:
    """The table, in MiB an image."""
    return [[title(row), *(number(_mib(row["bytes"].get(name), results["batch"])) for name in LABELS),
             *(number(_ratio(row["bytes"], name)) for name in ("composed", "ours")),
             number(row["parameter_bytes"]["leni"] / MIB), row["backend"] or "—"]
            for row in (*results["blocks"], *results["networks"])]


def summary(results: dict[str, Any]) -> dict[str, float | None]:
    """What is kept as a multiple of what a ReLU keeps, geometric means: what the history keeps."""
    return {f"{heading(results)}, {what}, ours / stock": report.geometric_mean(
        _ratio(row["bytes"], "ours") for row in results[what] if "ours" in row["bytes"])
        for what in ("blocks", "networks")}


def _mib(count: int | None, batch: int) -> float | None:
    return None if count is None else count / batch / MIB


def _ratio(kept: dict[str, int], name: str) -> float | None:
    return kept[name] / kept["relu"] if name in kept else None


def _draw(path: Path, results: dict[str, Any]) -> None:
    groups = [(title(row), {name: count / results["batch"] / MIB for name, count in row["bytes"].items()})
              for row in (*results["blocks"], *results["networks"])]
    plot.draw_bars(path, groups, LABELS, f"{heading(results)}: MiB an image",
                   f"float32, batch {results['batch']}; {tables.title(results)}")


if __name__ == "__main__":
    sys.exit(command.run(main))
