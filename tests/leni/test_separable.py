"""A separable deconvolution: its kernels are right to the dtype, in training and eval mode, and x alone is kept."""

import copy

import large_means
import pytest
import torch
import training_steps
from training_steps import (
    SLICES,
    assert_no_worse_than_composed,
    assert_only_needed,
    check_gradients,
    half_precision,
    kept_tensors,
    laid_out,
    layouts,
    normal,
    second_gradients,
    step,
    truth,
)

import leni_kernels as lk
from leni_kernels.leni import reference

SHAPES = ((3, 5, 7), (8, 1, 1), (2, 15, 16), (1, 9, 225))
"""N, H and W: ends of vectors, no plane, whole vectors, and rows wider than a tile."""
modes = pytest.mark.parametrize("training", [False, True], ids=["eval", "training"])


@pytest.fixture
def make(make_leni):
    """A separable LENI2d whose norms are nothing trivial, in eval mode."""
    return lambda *arguments, **options: make_leni(*arguments, separable=True, **options)


def assert_right(got, exact, tolerance, cancelled=()):
    # BN2 cancels what BN1's bias adds, in every case.
    training_steps.assert_right(got, exact, tolerance, {"bn_negative.bias", *cancelled})


def test_its_layers():
    block, other = lk.LENI2d(4, separable=True), lk.LENI2d(4)
    assert list(dict(block.named_children())) == ["deconv", "deconv_pointwise", "bn_negative", "bn_fusion", "compress"]
    assert str(block.deconv_pointwise) == str(torch.nn.Conv2d(4, 4, 1, bias=False))
    assert other.deconv_pointwise is None
    assert other.state_dict().keys() == block.state_dict().keys() - {"deconv_pointwise.weight"}


@modes
def test_an_identity_changes_nothing(backend, make, make_leni, training):
    block = make(5, dtype=torch.float64).train(training)
    with torch.no_grad():
        block.deconv_pointwise.weight.copy_(torch.eye(5)[:, :, None, None])
    other = make_leni(5, dtype=torch.float64).train(training)
    other.load_state_dict({name: tensor for name, tensor in block.state_dict().items() if "pointwise" not in name})
    x, grad = normal(2, 2, 5, 6, 7)
    got, wanted = step(backend, block, x, grad), step(backend, other, x, grad)
    del got["deconv_pointwise.weight"]
    torch.testing.assert_close(got, wanted, rtol=1e-11, atol=1e-11)


# ---- right -------------------------------------------------------------------------------------------------


@layouts
@modes
def test_gradcheck(backend, make, layout, training):
    block = make(2, dtype=torch.float64).train(training)
    x = laid_out(layout, 2, 2, 3, 4, dtype=torch.float64)
    check_gradients(backend, block, x)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-11), (torch.float32, 3e-5)], ids=str)
@layouts
@modes
@pytest.mark.parametrize("channels", [3, 33, 64])
def test_widths_and_planes(kernel_backend, make, channels, layout, training, dtype, tolerance):
    for index, (batch, height, width) in enumerate(SHAPES):
        block = make(channels, 3 + 2 * (index % 3), dtype=dtype).train(training)
        # A mean of 0.5 keeps the sum over all pixels from cancelling by chance.
        x, grad = (laid_out(layout, batch, channels, height, width, dtype=dtype) for _ in range(2))
        grad += 0.5
        got = step(kernel_backend, block, x, grad)
        assert_right(got, truth(block, x, grad), tolerance)
        for name in ("y", "x"):
            assert got[name].dtype == dtype
            assert got[name].is_contiguous(memory_format=layout)


@layouts
@modes
def test_no_affine_parameters(kernel_backend, make, layout, training):
    block = make(5, dtype=torch.float64).train(training)
    for norm in (block.bn_negative, block.bn_fusion):
        norm.weight = norm.bias = None
    block.compress.bias = None
    x, grad = (laid_out(layout, 3, 5, 6, 7, dtype=torch.float64) for _ in range(2))
    assert_right(step(kernel_backend, block, x, grad), truth(block, x, grad), 1e-11)


@half_precision
@pytest.mark.parametrize("autocast", [False, True])
@layouts
@modes
def test_half_precision_is_no_worse_than_composed(kernel_backend, make, layout, training, autocast, dtype):
    block = make(33).train(training)
    if not autocast:
        block.to(dtype)
    for batch, height, width in ((8, 5, 7), (2, 15, 16)):
        x, grad = (laid_out(layout, batch, 33, height, width, dtype=dtype) for _ in range(2))
        assert_no_worse_than_composed(kernel_backend, block, x, grad, autocast)


@half_precision
def test_large_means(kernel_backend, dtype):
    large_means.check(kernel_backend, dtype, separable=True)


@pytest.mark.parametrize("take", SLICES.values(), ids=SLICES)
@layouts
def test_slices_of_a_larger_tensor(make, layout, take):
    larger = laid_out(layout, 3, 7, 8, 9, dtype=torch.float64)
    x = take(larger)
    block, grad = make(x.shape[1], dtype=torch.float64).train(), torch.randn(x.shape, dtype=torch.float64)
    assert_right(step(None, block, x, grad), truth(block, x, grad), 1e-11)


@layouts
@pytest.mark.parametrize("kernel_size", [3, 5])
@pytest.mark.parametrize("plane", [(41, 57), (6, 500)])
def test_sweeps_of_many_steps_and_strips(kernel_backend, make, layout, kernel_size, plane):
    """Planes that are swept in several steps of rows, and wide ones that are cut into strips."""
    block = make(64, kernel_size).train()
    x, grad = (laid_out(layout, 1, 64, *plane) for _ in range(2))
    grad += 0.5  # keeps the sum over all pixels from cancelling by chance
    assert_right(step(kernel_backend, block, x, grad), truth(block, x, grad), 3e-5)


@layouts
def test_nothing_but_zeros(kernel_backend, make, layout):
    """Channels without variance, in front of W and behind it: only the eps stand below the line."""
    block, grad = make(5, dtype=torch.float64).train(), normal(2, 5, 6, 7)
    with torch.no_grad():
        block.deconv_pointwise.weight[1] = 0
    x = laid_out(layout, 2, 5, 6, 7, dtype=torch.float64)
    x[:, 2], x[:, 3] = 0, x[:, 3].abs()
    assert_right(step(kernel_backend, block, x, grad), truth(block, x, grad), 1e-11)


@modes
def test_what_is_not_finite_travels(kernel_backend, make, training):
    block = make(4, dtype=torch.float64).train(training)
    for value in (float("nan"), float("inf"), -float("inf")):
        x, grad = normal(2, 2, 4, 9, 9)
        x[1, 2, 3, 4] = value
        got, exact = step(kernel_backend, block, x, grad), truth(block, x, grad)
        assert torch.equal(got["y"].isfinite(), exact["y"].isfinite())
        assert value == value or got["y"].isnan().any()


# ---- passes ------------------------------------------------------------------------------------------------


@layouts
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("channels", [1, 5, 16, 40])
def test_the_covariance(kernel_backend, make_folded, layout, dtype, channels):
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    taps, centre = make_folded(channels, 5, wide)[0], torch.randn(channels, dtype=wide)
    for shape in ((3, 5, 7), (2, 40, 41), (1, 9, 225)):
        x = laid_out(layout, shape[0], channels, *shape[1:], dtype=dtype)
        got = torch.ops.leni_kernels.leni_covariance_cpp(x, taps, centre)
        wanted = reference.leni_covariance(x.double(), taps.double(), centre.double())
        assert got.dtype == wide
        assert (got - wanted).abs().max() <= (1e-13 if wide == torch.float64 else 1e-6) * wanted.abs().max()


@layouts
def test_a_covariance_far_from_the_centre_of_a_batch_is_zero_of_none(kernel_backend, layout, make_folded):
    taps = make_folded(3)[0]
    x = laid_out(layout, 0, 3, 4, 5)
    assert not torch.ops.leni_kernels.leni_covariance_cpp(x, taps, torch.ones(3)).any()


@layouts
@pytest.mark.parametrize("channels", [1, 5, 16, 40])
def test_the_input_gradient_of_a_matrix(kernel_backend, make_folded, layout, channels):
    taps, weight, centre = make_folded(channels, 3, torch.float64)
    matrix, constant, slope = normal(channels, channels), *normal(2, 2 * channels)
    for shape in ((3, 5, 7), (2, 40, 41), (1, 9, 225)):
        x, grad = (laid_out(layout, shape[0], channels, *shape[1:], dtype=torch.float64) for _ in range(2))
        given = (grad, x, taps, weight, constant, slope, matrix, centre)
        got = torch.ops.leni_kernels.leni_input_gradient_cpp(*given)
        for actual, wanted in zip(got, reference.leni_input_gradient(*given), strict=True):
            assert (actual - wanted).abs().max() <= 1e-12 * wanted.abs().max()


# ---- only what is needed, kept and computed ----------------------------------------------------------------


@pytest.mark.parametrize("part", ["x", "parameters", "deconv.weight", "deconv_pointwise.weight", "bn_negative.weight",
                                  "compress.bias"])
@modes
def test_only_what_is_needed(backend, make, part, training):
    block = make(4, dtype=torch.float64).train(training)
    assert_only_needed(backend, block, *normal(2, 2, 4, 5, 6), part, 1e-11)


@layouts
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@modes
def test_x_alone_is_kept(kernel_backend, make, layout, dtype, training):
    block = make(6, dtype=dtype).train(training)
    x = laid_out(layout, 4, 6, 15, 16, dtype=dtype).requires_grad_()
    kept = kept_tensors(kernel_backend, block, x)
    large = [tensor for tensor in kept if tensor.numel() > 2 * 6 * 6]
    assert [tensor.data_ptr() for tensor in large] == [x.data_ptr()]


def test_second_gradients(kernel_backend, make):
    block, x = make(3, dtype=torch.float64).train(), normal(2, 3, 4, 5)
    results = []
    for name in (kernel_backend, "reference"):
        with lk.use_backend(name):
            results.append(second_gradients(copy.deepcopy(block), x))
    torch.testing.assert_close(*results, rtol=1e-10, atol=1e-10)


@layouts
def test_the_same_bits_on_two_runs(kernel_backend, make, layout):
    block = make(20).train()
    x, grad = (laid_out(layout, 5, 20, 30, 31) for _ in range(2))
    first, second = (step(kernel_backend, block, x, grad) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


# ---- what runs ---------------------------------------------------------------------------------------------


@modes
def test_its_kernels_serve(kernel_backend, training):
    block, x = lk.LENI2d(4, separable=True).train(training), torch.randn(2, 4, 5, 6)
    assert [decision.backend for decision in lk.explain(block, x)] == [kernel_backend]


def runs_on(block, x):
    decision, = lk.explain(block, x)
    return decision.backend, decision.why_not["cpp" if decision.backend == "reference" else "reference"]


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_few_values_train_on_the_reference_which_takes_less_time(kernel_backend, monkeypatch):
    monkeypatch.undo()  # the limits are the real ones
    small, block = torch.randn(4, 16, 5, 5), lk.LENI2d(16, separable=True)
    assert runs_on(block, small) == ("reference", "composed layers train 100 values in each of 16 channels faster")
    assert runs_on(block.double(), small.double())[0] == "reference"
    assert runs_on(block.float(), torch.randn(8, 16, 16, 16))[0] == kernel_backend
    wide, many = torch.randn(1, 80, 25, 25), torch.randn(1, 80, 25, 26)
    assert [runs_on(lk.LENI2d(80, separable=True), x)[0] for x in (wide, many)] == ["reference", kernel_backend]
    # Where the reference is no faster, or is no faster as far as we know.
    assert runs_on(block.eval(), small)[0] == kernel_backend
    assert runs_on(lk.LENI2d(16), small)[0] == kernel_backend
    assert runs_on(block.train().bfloat16(), small.bfloat16())[0] == kernel_backend
    with torch.autocast("cpu", torch.bfloat16):
        assert runs_on(block.float(), small)[0] == kernel_backend
    traced = torch.jit.trace(block, small, check_trace=False)
    assert f"leni_separable_training_{kernel_backend}" in str(traced.inlined_graph)
    with lk.use_backend(kernel_backend):
        assert runs_on(block.float(), small) == (kernel_backend, "'cpp' was asked for by name")
    with lk.use_backend("reference"):
        assert runs_on(block, small) == ("reference", "'reference' was asked for by name")


@pytest.mark.parametrize("other", [torch.nn.Conv2d(4, 4, 1), torch.nn.Conv2d(4, 4, 3, padding=1, bias=False),
                                   torch.nn.Conv2d(4, 4, 1, bias=False, groups=2)], ids=["bias", "3x3", "groups"])
def test_another_convolution_in_its_place_runs_as_a_layer(other):
    block, x = lk.LENI2d(4, separable=True).eval(), torch.randn(2, 4, 5, 6)
    block.deconv_pointwise = other
    with torch.no_grad():
        torch.testing.assert_close(block(x), reference.leni(
            x, block.deconv, block.bn_negative, block.bn_fusion, block.compress, other))
