"""Fixtures: a small network around each mechanism, a batch, and the gradients that training on it gives."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import leni_kernels as lk
from leni_kernels.common import extension

MECHANISMS = {
    "LENI": lambda: lk.LENI2d(4),
    "Reborn": lambda: lk.Reborn2d(4),
    "ConvReLU": lambda: lk.ConvReLU2d(4, 4, 3, padding=1),
    "AdaReLU": lambda: lk.AdaReLU(4),
    "FullyParametricReLU": lambda: lk.FullyParametricReLU(4),
    "CReLU": lambda: nn.Sequential(lk.CReLU(), nn.Conv2d(8, 4, 1)),
}


@pytest.fixture(autouse=True)
def on_kernels():
    """A tool must leave the kernels in use: asked for by name, they raise where they cannot serve."""
    if extension.why_missing is not None:
        pytest.skip(extension.why_missing)
    with lk.use_backend("cpp"):
        yield


@pytest.fixture(params=MECHANISMS)
def make_network(request):
    """Makes the same network at every call."""

    def make():
        torch.manual_seed(1)
        return nn.Sequential(nn.Conv2d(3, 4, 3), MECHANISMS[request.param](), nn.Conv2d(4, 4, 3),
                             nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))

    return make


@pytest.fixture
def batch():
    return torch.randn(4, 3, 8, 8), torch.tensor([0, 1, 0, 1])


def gradients(model):
    return [parameter.grad for parameter in model.parameters()]


@pytest.fixture
def gradients_of(batch):
    """Calls a model on the batch and returns its parameters' gradients of the loss."""

    def run(model, call=None):
        images, targets = batch
        F.cross_entropy((call or model)(images), targets).backward()
        return gradients(model)

    return run
