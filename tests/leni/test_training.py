"""LENI's fused training step: right to the dtype, deterministic, and only x is kept."""

import copy

import pytest
import torch
import training_steps
from training_steps import (
    GRADIENTS,
    SLICES,
    assert_no_worse_than_composed,
    assert_only_needed,
    check_gradients,
    errors,
    half_precision,
    kept_tensors,
    laid_out,
    layouts,
    normal,
    step,
    truth,
)

import leni_kernels as lk

WIDTHS = (1, 3, 16, 20, 33, 64, 130)
SHAPES = ((3, 5, 7), (8, 1, 1), (2, 15, 16), (1, 9, 225))
"""N, H and W: ends of vectors, no plane, whole vectors, and rows wider than a tile."""


@pytest.fixture
def train(make_leni):
    """LENI2d in training mode whose norms are nothing trivial."""
    return lambda *arguments, **options: make_leni(*arguments, **options).train()


def assert_right(got, exact, tolerance, cancelled=()):
    # BN2 cancels what BN1's bias adds, in every case.
    training_steps.assert_right(got, exact, tolerance, {"bn_negative.bias", *cancelled})


# ---- right -------------------------------------------------------------------------------------------------


@layouts
@pytest.mark.parametrize("kernel_size", [3, 5, 7])
def test_gradcheck(backend, train, kernel_size, layout):
    block = train(2, kernel_size, dtype=torch.float64)
    x = laid_out(layout, 2, 2, 3, 4, dtype=torch.float64)
    check_gradients(backend, block, x)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-11), (torch.float32, 2e-5)], ids=str)
@layouts
@pytest.mark.parametrize("channels", WIDTHS)
def test_widths_and_planes(kernel_backend, train, channels, layout, dtype, tolerance):
    for index, (batch, height, width) in enumerate(SHAPES):
        for kernel_size in (3, 5, 7) if channels * height * width < 8000 else (3 + 2 * (index % 3),):
            block = train(channels, kernel_size, dtype=dtype)
            # A mean of 0.5 keeps the sum over all pixels from cancelling by chance.
            x, grad = (laid_out(layout, batch, channels, height, width, dtype=dtype) for _ in range(2))
            grad += 0.5
            got = step(kernel_backend, block, x, grad)
            # On one pixel D only scales, which BN1 undoes; one channel's sum over all pixels may cancel by chance.
            names = [name for name, _ in block.named_parameters()]
            cancelled = names if channels == 1 else ["deconv.weight"] if height * width == 1 else []
            assert_right(got, truth(block, x, grad), tolerance, cancelled)
            for name in ("y", "x"):
                assert got[name].dtype == dtype
                assert got[name].is_contiguous(memory_format=layout)


@half_precision
@pytest.mark.parametrize("autocast", [False, True])
@layouts
@pytest.mark.parametrize("channels", [3, 16, 33, 64])
def test_half_precision_is_no_worse_than_composed(kernel_backend, train, channels, layout, autocast, dtype):
    block = train(channels)
    if not autocast:
        block.to(dtype)
    for batch, height, width in ((8, 5, 7), (2, 15, 16), (1, 9, 225)):
        x, grad = (laid_out(layout, batch, channels, height, width, dtype=dtype) for _ in range(2))
        assert_no_worse_than_composed(kernel_backend, block, x, grad, autocast)


def test_autocast_keeps_parameters_and_statistics_float32(kernel_backend, train):
    block, x, grad = train(16), torch.randn(2, 16, 9, 11), torch.randn(2, 16, 9, 11).bfloat16()
    got = step(kernel_backend, block, x, grad, autocast=True)
    assert got.pop("y").dtype == torch.bfloat16
    assert {tensor.dtype for tensor in got.values()} == {torch.float32, torch.int64}


@pytest.mark.parametrize("take", SLICES.values(), ids=SLICES)
@layouts
def test_slices_of_a_larger_tensor(train, layout, take):
    larger = laid_out(layout, 3, 7, 8, 9, dtype=torch.float64)
    x = take(larger)
    block, grad = train(x.shape[1], dtype=torch.float64), torch.randn(x.shape, dtype=torch.float64)
    exact, leaf, copied = truth(block, x, grad), larger.clone().requires_grad_(), copy.deepcopy(block)
    copied(take(leaf)).backward(grad)
    assert_right(step(None, block, x, grad), exact, 1e-11)
    wanted, = torch.autograd.grad(take(leaf), leaf, exact["x"])
    assert (leaf.grad - wanted).abs().max() <= 1e-11


@pytest.mark.parametrize("make_grad", GRADIENTS.values(), ids=GRADIENTS)
@layouts
def test_gradients_of_any_layout(kernel_backend, train, layout, make_grad):
    for channels, plane in ((5, (6, 7)), (17, (3, 35))):
        x = laid_out(layout, 3, channels, *plane, dtype=torch.float64)
        block, grad = train(channels, dtype=torch.float64), make_grad(*x.shape)
        # Where one number goes to a whole channel, the norms cancel all but the gradients behind them.
        cancelled = ["x", *(name for name, _ in block.named_parameters() if "bias" not in name)]
        constant = (grad == grad[:1, :, :1, :1]).all()
        exact = truth(block, x, grad)
        assert_right(step(kernel_backend, block, x, grad), exact, 1e-11, cancelled if constant else [])


@layouts
def test_no_gradient_at_ties(backend, train, layout):
    block, grad = train(5, dtype=torch.float64), normal(2, 5, 6, 7)
    x = laid_out(layout, 2, 5, 6, 7, dtype=torch.float64)
    ties = torch.rand_like(x) < 0.3
    x = x.masked_fill(ties, 0).masked_fill(x > 1.5, -0.0)
    got = step(backend, block, x, grad)
    assert torch.equal(got["x"] == 0, x == 0)
    assert_right(got, truth(block, x, grad), 1e-11)


@layouts
def test_nothing_but_zeros(kernel_backend, train, layout):
    """A channel without variance: only the eps stand below the line."""
    block, grad = train(5, dtype=torch.float64), normal(2, 5, 6, 7)
    x = laid_out(layout, 2, 5, 6, 7, dtype=torch.float64)
    x[:, 1], x[:, 2], x[:, 3] = 0, x[:, 2].abs(), -x[:, 3].abs()
    assert_right(step(kernel_backend, block, x, grad), truth(block, x, grad), 1e-11)


@layouts
def test_images_of_very_different_means(kernel_backend, layout):
    """Statistics are summed as distances from where the image before lay, which is far from this one."""
    x = torch.randn(6, 8, 20, 21) + torch.tensor([3000.0, -1, 0, 500, 500, -1000])[:, None, None, None]
    x, block = x.contiguous(memory_format=layout), lk.LENI2d(8, momentum=1.0)
    grad = torch.zeros_like(x)
    got, exact = step(kernel_backend, block, x, grad), truth(block, x, grad)
    for name in ("bn_negative.running_mean", "bn_negative.running_var", "bn_fusion.running_mean",
                 "bn_fusion.running_var"):
        assert ((got[name].double() - exact[name]).abs() <= 1e-4 * exact[name].abs() + 1e-6).all(), name


@layouts
@pytest.mark.parametrize("kernel_size", [3, 5])
@pytest.mark.parametrize("plane", [(41, 57), (6, 500)])
def test_sweeps_of_many_steps_and_strips(kernel_backend, train, layout, kernel_size, plane):
    """Planes that are swept in several steps of rows, and wide ones that are cut into strips."""
    block = train(64, kernel_size)
    x, grad = (laid_out(layout, 1, 64, *plane) for _ in range(2))
    grad += 0.5  # keeps the sum over all pixels from cancelling by chance
    assert_right(step(kernel_backend, block, x, grad), truth(block, x, grad), 2e-5)


@layouts
@pytest.mark.parametrize("sizes", [(6, 32, 112, 112), (17, 32, 64, 64), (16, 24, 57, 113)], ids=str)
def test_gradients_too_large_for_a_cache(kernel_backend, make_leni, layout, sizes):
    """Past 8 MiB, that of x is written past the caches, unless planes are whole pages or no whole lines."""
    block = make_leni(sizes[1])  # with running statistics no image depends on another
    x, grad = (laid_out(layout, *sizes) for _ in range(2))
    together = step(kernel_backend, block, x, grad)["x"]
    images = zip(x.split(1), grad.split(1), strict=True)
    alone = torch.cat([step(kernel_backend, block, *image)["x"] for image in images])
    assert torch.equal(together, alone)


@layouts
@pytest.mark.parametrize("plane", [(32, 32), (64, 64)])
def test_means_a_thousand_times_the_deviation(kernel_backend, layout, plane):
    """Channels of either sign; D only scales, so that the mean of z is as large against its deviation."""
    block = lk.LENI2d(8, momentum=1.0)
    with torch.no_grad():
        block.deconv.weight.zero_()[:, :, 1, 1] = 1
    signs = torch.tensor([1.0, -1.0]).repeat(4)[:, None, None]
    x = (1000 * signs + torch.randn(4, 8, *plane)).contiguous(memory_format=layout)
    got, exact = (result(block, x, torch.zeros_like(x)) for result in (
        lambda *arguments: step(kernel_backend, *arguments), truth))
    for norm in ("bn_negative", "bn_fusion"):
        variance = exact[f"{norm}.running_var"]
        mean_error = got[f"{norm}.running_mean"].double() - exact[f"{norm}.running_mean"]
        # A branch that is 0 all over has no deviation to compare with.
        deviation = torch.where(variance > 0.5, variance, 1).sqrt()
        assert ((mean_error / deviation).abs() <= 1e-3).all()
        assert ((got[f"{norm}.running_var"].double() - variance).abs() <= 1e-3 * deviation.square()).all()
    assert (got["y"].double() - exact["y"]).abs().max() <= 1e-3


# ---- only what is needed, kept and computed ----------------------------------------------------------------


@pytest.mark.parametrize("part", ["x", "parameters", "deconv.weight", "bn_negative.weight", "bn_negative.bias",
                                  "bn_fusion.weight", "bn_fusion.bias", "compress.weight", "compress.bias"])
def test_only_what_is_needed(backend, train, part):
    block = train(4, dtype=torch.float64)
    assert_only_needed(backend, block, *normal(2, 2, 4, 5, 6), part, 1e-11)


@layouts
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("training", [False, True])
def test_x_alone_is_kept(kernel_backend, make_leni, layout, dtype, training):
    block = make_leni(6, dtype=dtype).train(training)
    x = laid_out(layout, 4, 6, 15, 16, dtype=dtype).requires_grad_()
    kept = kept_tensors(kernel_backend, block, x)
    large, small = [], []
    for tensor in kept:
        (large if tensor.numel() > 2 * 6 * 6 else small).append(tensor)
    assert [tensor.data_ptr() for tensor in large] == [x.data_ptr()]
    assert sum(tensor.nbytes for tensor in large) == x.nbytes
    assert small


# ---- threads -----------------------------------------------------------------------------------------------


@pytest.fixture(params=[1, 2])
def on_threads(request):
    """:func:`step` on a number of threads."""

    def run(*arguments):
        before = torch.get_num_threads()
        torch.set_num_threads(request.param)
        try:
            return step(*arguments)
        finally:
            torch.set_num_threads(before)

    return run


@layouts
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_the_same_bits_on_two_runs(on_threads, kernel_backend, train, layout, dtype):
    block = train(20, dtype=dtype)
    x, grad = (laid_out(layout, 5, 20, 30, 31, dtype=dtype) for _ in range(2))
    first, second = (on_threads(kernel_backend, block, x, grad) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


@layouts
def test_right_on_several_threads(on_threads, kernel_backend, train, layout):
    for channels in (4, 33):
        block = train(channels, 5)
        x, grad = (laid_out(layout, 3, channels, 30, 31) for _ in range(2))
        assert_right(on_threads(kernel_backend, block, x, grad), truth(block, x, grad), 2e-5)


# ---- eval mode, and the compiler ---------------------------------------------------------------------------


@layouts
@pytest.mark.parametrize("channels", [3, 20, 64])
def test_eval_mode_backward(kernel_backend, make_leni, channels, layout):
    for kernel_size, plane in ((3, (15, 16)), (5, (1, 1)), (7, (5, 40))):
        block = make_leni(channels, kernel_size)
        x, grad = (laid_out(layout, 2, channels, *plane) for _ in range(2))
        got, exact = step(kernel_backend, block, x, grad), truth(block, x, grad)
        for name, error, size in errors(got, exact):
            assert error <= 2e-5 * size, name


def test_compiled_training(train):
    torch._dynamo.reset()
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), train(4)).double()
    x, grad = normal(2, 3, 7, 8), normal(2, 4, 5, 6)
    results = []
    for compiled in (False, True):
        twin, ours = copy.deepcopy(model), x.clone().requires_grad_()
        call = torch.compile(twin, fullgraph=True, backend="aot_eager") if compiled else twin
        call(ours).backward(grad)
        results.append([ours.grad, *(parameter.grad for parameter in twin.parameters()), *twin.buffers()])
    for eager, traced in zip(*results, strict=True):
        torch.testing.assert_close(traced, eager, rtol=1e-11, atol=1e-11)


@layouts
@pytest.mark.parametrize("mean", [10, 1000])
def test_gradients_where_the_mean_is_many_deviations_away(kernel_backend, layout, mean):
    """The norms' gradients are of a less its mean, which as a difference of sums would cancel."""
    block, twins = lk.LENI2d(8), {}
    x = laid_out(layout, 4, 8, 12, 12) + mean
    grad = torch.randn(4, 8, 12, 12) + 1
    for name, backend, dtype in (("truth", "reference", torch.float64), ("composed", "reference", torch.float32),
                                 ("fused", kernel_backend, torch.float32)):
        twin = copy.deepcopy(block).to(dtype)
        with lk.use_backend(backend):
            twin(x.to(dtype)).backward(grad.to(dtype))
        twins[name] = twin
    for name in ("compress.weight", "bn_fusion.weight"):
        truth, composed, fused = (twins[side].get_parameter(name).grad for side in ("truth", "composed", "fused"))
        assert (fused - truth).abs().max() <= 2 * (composed - truth).abs().max(), name
