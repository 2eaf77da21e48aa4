"""The reference is what the papers write: against loops, at ties, with NaN and Inf, folded and unfolded."""

import math

import pytest
import torch
from torch.autograd import gradcheck

import leni_kernels as lk
from leni_kernels import functional
from leni_kernels.leni import reference
from leni_kernels.leni.reference import Norm


@pytest.fixture(autouse=True)
def _by_reference():
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
        y[:, o] = compress.bias[o]
        for c in range(compress.in_channels):
            y[:, o] += compress.weight[o, c, 0, 0] * features[:, c]
    return y


def block_by_loops(block, x):
    positive = torch.tensor([max(value, 0.0) for value in x.flatten().tolist()]).view_as(x).to(x)
    negative = torch.tensor([min(value, 0.0) for value in x.flatten().tolist()]).view_as(x).to(x)
    deconvolved = deconv_by_loops(negative, block.deconv.weight, block.deconv.groups)
    rebuilt = norm_by_loops(deconvolved, block.bn_negative)
    features = torch.cat([positive, rebuilt], 1)
    if isinstance(block, lk.LENI2d):
        features = norm_by_loops(features, block.bn_fusion)
    return compress_by_loops(features, block.compress)


def close(actual, expected, tolerance=1e-12):
    assert actual.shape == expected.shape
    assert actual.dtype == expected.dtype
    assert (actual - expected).abs().max() <= tolerance * expected.abs().max()


# Multiples of 1/64 so that the loops' Python floats lose nothing in the default dtype.
def exact_input(*shape):
    return (torch.randn(*shape, dtype=torch.float64) * 64).round() / 64


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(("channels", "kernel_size", "plane"),
                         [(2, 3, (4, 3)), (1, 5, (3, 4)), (3, 1, (2, 2))])
def test_leni_is_the_papers_formula(make_leni, channels, kernel_size, plane, training):
    block = make_leni(channels, kernel_size, torch.float64).train(training)
    x = exact_input(2, channels, *plane)
    with torch.no_grad():
        expected = block_by_loops(block, x)
        close(block(x), expected)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(("channels", "kernel_size", "groups"), [(2, 3, 1), (4, 3, 2), (2, 5, 2), (1, 3, 1)])
def test_reborn_is_the_papers_formula(make_reborn, channels, kernel_size, groups, training):
    block = make_reborn(channels, kernel_size, groups, torch.float64).train(training)
    x = exact_input(2, channels, 3, 4)
    with torch.no_grad():
        expected = block_by_loops(block, x)
        close(block(x), expected)


@pytest.mark.parametrize("kernel_size", [1, 3, 5, 7, 9])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("affine", [True, False])
def test_folded_leni_is_leni(make_leni, kernel_size, bias, affine):
    block = make_leni(6, kernel_size, torch.float64)
    layers = block.parameters_for_kernels()
    if not bias:
        layers = layers._replace(compress_bias=None)
    if not affine:
        layers = layers._replace(negative_norm=layers.negative_norm._replace(weight=None),
                                 fusion_norm=layers.fusion_norm._replace(bias=None))
    x = torch.randn(2, 6, 9, 8, dtype=torch.float64)
    with torch.no_grad():
        close(reference.leni_folded(x, *reference.fold_leni(*layers)), functional.leni(x, *layers))


@pytest.mark.parametrize("kernel_size", [1, 3, 5, 9])
@pytest.mark.parametrize("groups", [1, 2, 6])
@pytest.mark.parametrize("bias", [True, False])
def test_folded_reborn_is_reborn(make_reborn, kernel_size, groups, bias):
    layers = make_reborn(6, kernel_size, groups, torch.float64).parameters_for_kernels()
    if not bias:
        layers = layers._replace(compress_bias=None)
    x = torch.randn(2, 6, 9, 8, dtype=torch.float64)
    with torch.no_grad():
        folded = reference.fold_reborn(*layers)
        close(reference.reborn_folded(x, *folded, groups), functional.reborn(x, *layers))


def test_ties_pass_no_gradient():
    x = torch.tensor([-1.0, -0.0, 0.0, 2.0], dtype=torch.float64, requires_grad=True)
    positive, negative = reference.split_signs(x)
    assert torch.autograd.grad(positive.sum(), x)[0].tolist() == [0, 0, 0, 1]
    assert torch.autograd.grad(negative.sum(), x)[0].tolist() == [1, 0, 0, 0]


@pytest.mark.parametrize("name", ["leni", "reborn"])
def test_a_block_passes_no_gradient_at_ties(request, name):
    block = request.getfixturevalue(f"make_{name}")(3, dtype=torch.float64)
    x = torch.randn(2, 3, 4, 5, dtype=torch.float64)
    ties = torch.rand_like(x) < 0.3
    x = x.masked_fill(ties, 0).requires_grad_()
    gradient, = torch.autograd.grad(block(x).square().sum(), x)
    assert torch.equal(gradient == 0, ties)


@pytest.mark.parametrize("name", ["leni", "reborn"])
def test_nan_and_inf_travel(request, name):
    block = request.getfixturevalue(f"make_{name}")(2, dtype=torch.float64)
    neighbourhood = torch.zeros(5, 6, dtype=torch.bool)
    neighbourhood[1:4, 2:5] = True
    centre = torch.zeros_like(neighbourhood)
    centre[2, 3] = True
    for value, reached in ((math.nan, neighbourhood), (-math.inf, neighbourhood), (math.inf, centre)):
        x = torch.randn(1, 2, 5, 6, dtype=torch.float64)
        x[0, :, 2, 3] = value
        with torch.no_grad():
            assert torch.equal(~block(x)[0].isfinite(), reached.expand(2, 5, 6)), value


def off_the_kinks(*shape):
    x = torch.randn(*shape, dtype=torch.float64)
    return (x + 0.05 * x.sign()).requires_grad_()


def random_norm(channels, training):
    affine = [torch.randn(channels, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    mean, variance = torch.rand(2, channels, dtype=torch.float64) + 0.5
    return Norm(mean, variance, *affine, training=training, momentum=0.0)


def weights(*shapes):
    return [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]


@pytest.mark.parametrize("training", [False, True])
def test_leni_gradcheck(training):
    deconv, compress, bias = weights((2, 1, 3, 3), (2, 4, 1, 1), (2,))
    negative, fusion = random_norm(2, training), random_norm(4, training)

    def call(x, deconv, gamma1, beta1, gamma2, beta2, compress, bias):
        return functional.leni(x, deconv, negative._replace(weight=gamma1, bias=beta1),
                               fusion._replace(weight=gamma2, bias=beta2), compress, bias)

    assert gradcheck(call, (off_the_kinks(2, 2, 3, 4), deconv, negative.weight, negative.bias,
                            fusion.weight, fusion.bias, compress, bias))


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("groups", [1, 2])
def test_reborn_gradcheck(training, groups):
    deconv, compress, bias = weights((2, 2 // groups, 3, 3), (2, 4, 1, 1), (2,))
    negative = random_norm(2, training)

    def call(x, deconv, gamma, beta, compress, bias):
        norm = negative._replace(weight=gamma, bias=beta)
        return functional.reborn(x, deconv, norm, compress, bias, groups)

    x = off_the_kinks(2, 2, 3, 4)
    assert gradcheck(call, (x, deconv, negative.weight, negative.bias, compress, bias))


@pytest.mark.parametrize("kernel_size", [3, 5])
def test_folded_leni_gradcheck(kernel_size):
    assert gradcheck(functional.leni_folded, (off_the_kinks(2, 2, 3, 4),
                                              *weights((2, kernel_size, kernel_size), (2, 4), (2,))))


@pytest.mark.parametrize("kernel_size", [1, 3, 5, 7, 9])
@pytest.mark.parametrize("plane", [(1, 1), (1, 6), (7, 4)])
def test_the_written_backward_is_autograds(make_folded, kernel_size, plane):
    folded = [tensor.requires_grad_() for tensor in make_folded(3, kernel_size, torch.float64)]
    x = torch.randn(2, 3, *plane, dtype=torch.float64)
    x = x.masked_fill(torch.rand_like(x) < 0.2, 0).requires_grad_()
    y = reference.leni_folded(x, *folded)
    grad = torch.randn_like(y)
    expected = torch.autograd.grad(y, (x, *folded), grad)
    with torch.no_grad():
        written = reference.leni_folded_backward(grad, x, *folded[:2], None, (True, True, True, True))
    for actual, wanted in zip(written, expected, strict=True):
        close(actual, wanted)


@pytest.mark.parametrize("only", range(4))
def test_the_written_backward_gives_only_what_is_needed(make_folded, only):
    taps, weight, _ = make_folded(3, dtype=torch.float64)
    x = torch.randn(2, 3, 4, 5, dtype=torch.float64)
    grad = torch.randn_like(x)
    every = reference.leni_folded_backward(grad, x, taps, weight, None, (True,) * 4)
    one = reference.leni_folded_backward(grad, x, taps, weight, None, tuple(index == only for index in range(4)))
    assert torch.equal(one[only], every[only])
    assert [gradient is None for gradient in one] == [index != only for index in range(4)]


@pytest.mark.parametrize("half_precision", [torch.bfloat16, torch.float16])
def test_gradients_of_float32_parameters_sum_in_float32(make_folded, half_precision):
    folded = make_folded(3)
    x = torch.randn(2, 3, 40, 40).to(half_precision)
    grad = torch.randn_like(x)
    got = reference.leni_folded_backward(grad, x, *folded[:2], None, (True,) * 4)
    assert [gradient.dtype for gradient in got] == [half_precision] + [torch.float32] * 3
    close(got[3], grad.float().sum((0, 2, 3)), 1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("name", ["leni", "reborn"])
@pytest.mark.parametrize("training", [False, True])
def test_every_floating_dtype_works(request, name, dtype, training):
    block = request.getfixturevalue(f"make_{name}")(4, dtype=dtype).train(training)
    x = torch.randn(2, 4, 5, 6, dtype=dtype, requires_grad=True)
    y = block(x)
    y.sum().backward()
    assert y.dtype == x.grad.dtype == dtype
    assert y.isfinite().all()
