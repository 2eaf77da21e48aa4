"""A small network on real images learns the same with the kernels as with the definition."""

import pytest
import torch
from torch import nn

import leni_kernels as lk

datasets = pytest.importorskip("sklearn.datasets", reason="the images are scikit-learn's")
STEPS = 50


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), lk.LENI2d(8), nn.Conv2d(8, 16, 3, stride=2, padding=1),
                         lk.LENI2d(16), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(64, 10))


def losses(backend, dtype, memory_format):
    """The loss before each step."""
    digits = datasets.load_digits()
    images = torch.from_numpy(digits.images).to(dtype)[:, None] / 16
    targets = torch.from_numpy(digits.target)
    model = network().to(dtype=dtype, memory_format=memory_format)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    order = torch.randperm(len(images)).repeat(2)[:STEPS * 64]
    curve = []
    for indices in order.split(64):
        with lk.use_backend(backend):
            loss = nn.functional.cross_entropy(model(images[indices].to(memory_format=memory_format)), targets[indices])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        curve.append(loss.detach())
    assert len(curve) == STEPS
    return torch.stack(curve)


@pytest.mark.parametrize(("dtype", "memory_format", "tolerance"), [
    (torch.float32, torch.contiguous_format, 1e-4),
    (torch.float64, torch.contiguous_format, 1e-10),
    (torch.float64, torch.channels_last, 1e-10),
])
def test_the_loss_curve_is_the_references(kernel_backend, dtype, memory_format, tolerance):
    fused, composed = (losses(backend, dtype, memory_format) for backend in (kernel_backend, "reference"))
    assert (fused - composed).abs().max() <= tolerance
    assert fused[-10:].mean() < 0.4 * fused[0]
