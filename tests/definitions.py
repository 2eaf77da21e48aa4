"""What tests of LENI's and Reborn's definitions share: the blocks in plain loops, and inputs off the kinks."""

import math

import pytest
import torch

import leni_kernels as lk
from leni_kernels.common.norm import Norm


@pytest.fixture(autouse=True)
def by_reference():
    with lk.use_backend("reference"):
        yield


def deconv_by_loops(x, weight, groups):
    """Transposed convolution as its name says: every input pixel spreads its value over its neighbours."""
    channels, height, width = x.shape[1:]
    half, per_group = weight.shape[-1] // 2, channels // groups
    y = torch.zeros_like(x)
    for n, c, i, j in torch.cartesian_prod(*map(torch.arange, x.shape)).tolist():
        for out, di, dj in torch.cartesian_prod(*map(torch.arange, weight.shape[1:])).tolist():
            row, column = i + di - half, j + dj - half
            if 0 <= row < height and 0 <= column < width:
                target = c // per_group * per_group + out
                y[n, target, row, column] += x[n, c, i, j] * weight[c, out, di, dj]
    return y


def norm_by_loops(x, norm):
    """Batch norm with running statistics, or in training mode with those of the batch."""
    y = torch.empty_like(x)
    for c in range(x.shape[1]):
        mean, variance = norm.running_mean[c], norm.running_var[c]
        if norm.training:
            mean, variance = x[:, c].mean(), x[:, c].var(correction=0)
        y[:, c] = (x[:, c] - mean) / math.sqrt(variance + norm.eps) * norm.weight[c] + norm.bias[c]
    return y


def compress_by_loops(features, compress):
    y = torch.empty_like(features[:, :compress.out_channels])
    for o in range(compress.out_channels):
        y[:, o] = 0 if compress.bias is None else compress.bias[o]
        for c in range(compress.in_channels):
            y[:, o] += compress.weight[o, c, 0, 0] * features[:, c]
    return y


def block_by_loops(block, x):
    positive = torch.tensor([max(value, 0.0) for value in x.flatten().tolist()]).view_as(x).to(x)
    negative = torch.tensor([min(value, 0.0) for value in x.flatten().tolist()]).view_as(x).to(x)
    deconvolved = deconv_by_loops(negative, block.deconv.weight, block.deconv.groups)
    if getattr(block, "deconv_pointwise", None) is not None:
        deconvolved = compress_by_loops(deconvolved, block.deconv_pointwise)
    rebuilt = norm_by_loops(deconvolved, block.bn_negative)
    features = torch.cat([positive, rebuilt], 1)
    if isinstance(block, lk.LENI2d):
        features = norm_by_loops(features, block.bn_fusion)
    return compress_by_loops(features, block.compress)


def close(actual, expected, tolerance=1e-12):
    assert actual.shape == expected.shape
    assert actual.dtype == expected.dtype
    assert (actual - expected).abs().max() <= tolerance * expected.abs().max()


def exact_input(*shape):
    return (torch.randn(*shape, dtype=torch.float64) * 64).round() / 64


def off_the_kinks(*shape):
    x = torch.randn(*shape, dtype=torch.float64)
    return (x + 0.05 * x.sign()).requires_grad_()


def random_norm(channels, training):
    affine = [torch.randn(channels, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    mean, variance = torch.rand(2, channels, dtype=torch.float64) + 0.5
    return Norm(mean, variance, *affine, training=training, momentum=0.0)


def weights(*shapes):
    return [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
