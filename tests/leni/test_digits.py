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


def losses(backend, memory_format):
    """The loss before each step."""
    digits = datasets.load_digits()
    images = torch.from_numpy(digits.images).float()[:, None] / 16
    targets = torch.from_numpy(digits.target)
    model = network().to(memory_format=memory_format)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    curve = []
    for indices in torch.randperm(len(images))[:STEPS * 32].split(32):
        with lk.use_backend(backend):
            loss = nn.functional.cross_entropy(model(images[indices].to(memory_format=memory_format)), targets[indices])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        curve.append(loss.detach())
    assert len(curve) == STEPS
    return torch.stack(curve)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_the_loss_curve_is_the_references(kernel_backend, memory_format):
    fused, composed = (losses(backend, memory_format) for backend in (kernel_backend, "reference"))
    assert (fused - composed).abs().max() <= 1e-4
    assert fused[-10:].mean() < 0.3 * fused[0]
