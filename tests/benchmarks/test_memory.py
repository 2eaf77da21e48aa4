"""What training keeps, counted by storage."""

import memory
import pytest
import torch
from harness import report, sides
from networks import first_activation
from torch import nn

from leni_kernels.common import extension

CPU = torch.device("cpu")


@pytest.fixture
def x():
    return torch.randn(2, 8, 6, 6, requires_grad=True)


def test_relu_keeps_one_map_and_a_storage_counts_once(x):
    relu = nn.ReLU()
    assert memory.saved_bytes(relu, relu, x) == x.nbytes
    twice = nn.Sequential(nn.ReLU(), nn.Conv2d(8, 8, 1), nn.Flatten())  # the map that both layers keep
    assert memory.saved_bytes(twice, twice, x) == x.nbytes


def test_the_parameters_do_not_count(x):
    layer = nn.Conv2d(8, 4, 3)
    assert memory.saved_bytes(layer, layer, x) == x.nbytes


@pytest.mark.skipif(extension.why_missing is not None, reason="needs the C++ extension")
def test_our_block_keeps_one_map_and_vectors(x):
    block = sides.random_leni(8).train()
    assert sides.backend_of(block, x) == "cpp"
    assert x.nbytes < memory.saved_bytes(block, block, x) < 1.3 * x.nbytes


def test_the_composed_block_keeps_eight_maps(x):
    block = sides.random_leni(8).train()
    assert 8 * x.nbytes <= memory.saved_bytes(block, sides.composed(block), x) <= 8.3 * x.nbytes


def test_a_side_without_a_kernel_is_missing(x, monkeypatch):
    def fail(network, x):
        raise sides.Fallback("no kernel")

    monkeypatch.setattr(sides, "backend_of", fail)
    row = memory._row(nn.ReLU(), sides.random_leni(8).train(), x)
    assert set(row["bytes"]) == {"relu", "composed"}
    assert row["missing"] == {"ours": "no kernel"}


def test_the_report_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(first_activation, "PLACES", {"resnet18": first_activation.Place("relu", 8, 6)})
    monkeypatch.setattr(memory, "_networks", lambda device, step: [])
    assert memory.main(["--device", "cpu", "--output", str(tmp_path)]) == 0
    assert {path.name for path in tmp_path.iterdir()} == {"memory-cpu.json", "memory-cpu.png"}
    assert report.number(None) == "—"
