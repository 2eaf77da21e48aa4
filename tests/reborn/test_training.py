"""Reborn's fused training step: right to the dtype, deterministic, and x and z are all that is kept."""

import copy

import pytest
import torch
from training_steps import (
    GRADIENTS,
    SLICES,
    assert_no_worse_than_composed,
    assert_only_needed,
    assert_right,
    check_gradients,
    dense_truth,
    half_precision,
    kept_tensors,
    laid_out,
    layouts,
    normal,
    step,
    truth,
)

import leni_kernels as lk
from leni_kernels import functional
from leni_kernels.common import extension

C = 4

precisions = pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-11), (torch.float32, 2e-5)], ids=str)
"""In float32, as in float16, a dense 3×3 deconvolution has kernels of its own on the CPU."""


@pytest.fixture
def train(make_reborn):
    """Reborn2d in training mode whose norm is nothing trivial."""
    return lambda *arguments, **options: make_reborn(*arguments, **options).train()


@pytest.fixture(params=[True, False], ids=["training", "eval"])
def make(request, make_reborn):
    """Reborn2d with batch statistics, and with running ones."""
    return lambda *arguments, **options: make_reborn(*arguments, **options).train(request.param)


# ---- right -------------------------------------------------------------------------------------------------


@layouts
@pytest.mark.parametrize(("kernel_size", "groups"), [(3, 1), (5, 2), (3, 4)])
def test_gradcheck(backend, make, kernel_size, groups, layout):
    block = make(C, kernel_size, groups, torch.float64)
    x = laid_out(layout, 2, C, 3, 4, dtype=torch.float64)
    check_gradients(backend, block, x)


@precisions
@layouts
@pytest.mark.parametrize("channels", [1, 3, 16, 33, 64])
def test_widths_and_planes(kernel_backend, make, channels, layout, dtype, tolerance):
    for batch, height, width in ((3, 5, 7), (8, 1, 1), (2, 15, 16), (2, 4, 8), (1, 9, 225)):
        for kernel_size, groups in ((3, 1), (3, channels), (5, 1)):
            block = make(channels, kernel_size, groups, dtype)
            # A mean of 0.5 keeps the sum over all pixels from cancelling by chance.
            x, grad = (laid_out(layout, batch, channels, height, width, dtype=dtype) for _ in range(2))
            grad += 0.5
            got = step(kernel_backend, block, x, grad)
            # One channel's sums over all pixels may cancel by chance, and on one pixel a depthwise D only scales.
            scales = block.training and groups == channels and height * width == 1
            cancelled = [name for name, _ in block.named_parameters()] if channels == 1 else ["deconv.weight"] * scales
            assert_right(got, truth(block, x, grad), tolerance, cancelled)
            for name in ("y", "x"):
                assert got[name].dtype == dtype
                assert got[name].is_contiguous(memory_format=layout)


@half_precision
@pytest.mark.parametrize("autocast", [False, True])
@layouts
@pytest.mark.parametrize("channels", [16, 33, 64])
def test_half_precision_is_no_worse_than_composed(kernel_backend, make, channels, layout, autocast, dtype):
    block = make(channels)
    if not autocast:
        block.to(dtype)
    for batch, height, width in ((8, 5, 7), (2, 15, 16), (1, 9, 225)):
        x, grad = (laid_out(layout, batch, channels, height, width, dtype=dtype) for _ in range(2))
        assert_no_worse_than_composed(kernel_backend, block, x, grad, autocast)


@precisions
@pytest.mark.parametrize("take", SLICES.values(), ids=SLICES)
@layouts
def test_slices_of_a_larger_tensor(train, layout, take, dtype, tolerance):
    larger = laid_out(layout, 3, 7, 8, 9, dtype=dtype)
    x = take(larger)
    block, grad = train(x.shape[1], dtype=dtype), normal(*x.shape).to(dtype)
    exact, leaf, copied = truth(block, x, grad), larger.clone().requires_grad_(), copy.deepcopy(block)
    copied(take(leaf)).backward(grad)
    assert_right(step(None, block, x, grad), exact, tolerance)
    wanted, = torch.autograd.grad(take(leaf), leaf, exact["x"].to(dtype))
    assert (leaf.grad - wanted).abs().max() <= tolerance


@precisions
@pytest.mark.parametrize("make_grad", GRADIENTS.values(), ids=GRADIENTS)
@layouts
def test_gradients_of_any_layout(kernel_backend, train, layout, make_grad, dtype, tolerance):
    for channels, plane in ((5, (6, 7)), (17, (3, 35))):
        x = laid_out(layout, 3, channels, *plane, dtype=dtype)
        block, grad = train(channels, dtype=dtype), make_grad(*x.shape).to(dtype)
        # Where one number goes to a whole channel, the norm cancels what goes through it.
        cancelled = ["deconv.weight", "bn_negative.weight"] if (grad == grad[:1, :, :1, :1]).all() else []
        assert_right(step(kernel_backend, block, x, grad), truth(block, x, grad), tolerance, cancelled)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 5e-6), (torch.float16, 2**-11 + 5e-6)], ids=str)
@layouts
@pytest.mark.parametrize("channels", [1, 5, 16, 33])
def test_dense_deconvolution(kernel_backend, channels, layout, dtype, tolerance):
    """Planes of every remainder of a tile, and, on a thread or two, rows and batches of more tiles than a block has."""
    operators = torch.ops.leni_kernels
    for batch, height, width in ((1, 1, 1), (2, 4, 8), (3, 5, 6), (2, 7, 9), (1, 3, 900), (40, 9, 10)):
        # Pixels need not follow each other, and those of y's gradient may lie in any order.
        x, grad_z, grad = (laid_out(layout, batch, channels, height, width, dtype=dtype)[..., :max(width - 1, 1)]
                           for _ in range(3))
        grad = grad.transpose(2, 3).contiguous().transpose(2, 3) if height > 1 else grad
        deconv, weight = torch.randn(channels, channels, 3, 3), torch.randn(channels, 2 * channels)
        z, exact_x, exact_deconv = dense_truth(grad, grad_z, x, deconv, weight)
        got = operators.reborn_deconvolve_cpp(x, deconv)
        assert got[0].is_contiguous(memory_format=layout)
        assert got[0].dtype == dtype
        assert (got[0] - z).abs().max() <= tolerance * z.abs().max()
        variance, mean = torch.var_mean(got[0].double(), (0, 2, 3), correction=0)  # of z as it is kept
        # What float16 is a multiple of makes float32 sums err to one side.
        of_sums = 5e-6 if dtype == torch.float32 else 5e-5
        for each, exact in zip(got[1:], (mean, variance), strict=True):
            assert (each - exact).abs().max() <= of_sums * exact.abs().max()
        for needs_input, needs_deconv in ((True, True), (True, False), (False, True)):
            dx, ddeconv = operators.reborn_deconv_gradient_cpp(grad, grad_z, x, deconv, weight, needs_input,
                                                               needs_deconv)
            if needs_deconv:
                assert (ddeconv - exact_deconv).abs().max() <= 5e-6 * exact_deconv.abs().max()
            if needs_input:
                assert dx.is_contiguous(memory_format=layout)
                assert (dx - exact_x).abs().max() <= tolerance * exact_x.abs().max()


@precisions
@layouts
def test_no_gradient_at_ties(backend, make, layout, dtype, tolerance):
    block, grad = make(5, dtype=dtype), normal(2, 5, 6, 7).to(dtype)
    x = laid_out(layout, 2, 5, 6, 7, dtype=dtype)
    ties = torch.rand_like(x) < 0.3
    x = x.masked_fill(ties, 0).masked_fill(x > 1.5, -0.0)
    got = step(backend, block, x, grad)
    assert torch.equal(got["x"] == 0, x == 0)
    assert_right(got, truth(block, x, grad), tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@layouts
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_nan_and_infinity_travel(backend, make_reborn, layout, value, dtype):
    block, x = make_reborn(5, dtype=dtype), laid_out(layout, 2, 5, 6, 7, dtype=dtype)
    x[0, 2, 3, 4] = value
    with lk.use_backend(backend), torch.no_grad():
        y, exact = block(x), block.double()(x.double())
    assert torch.equal(y.isfinite(), exact.isfinite())
    assert not y[0, :, 3, 4].isfinite().any()
    assert y[1].isfinite().all()


@layouts
@pytest.mark.parametrize("plane", [(32, 32), (64, 64)])
def test_means_a_thousand_times_the_deviation(kernel_backend, layout, plane):
    block = lk.Reborn2d(8, groups=8, momentum=1.0)
    with torch.no_grad():
        block.deconv.weight.zero_()[:, :, 1, 1] = 1
    x = (torch.randn(4, 8, *plane) - 1000).contiguous(memory_format=layout)
    got, exact = (result(block, x, torch.zeros_like(x)) for result in (
        lambda *arguments: step(kernel_backend, *arguments), truth))
    for name in ("bn_negative.running_mean", "bn_negative.running_var", "y"):
        assert (got[name].double() - exact[name]).abs().max() <= 1e-3, name


@layouts
@pytest.mark.skipif(extension.why_missing is not None, reason=str(extension.why_missing))
def test_statistics_of_a_dense_deconvolution_far_from_zero(layout):
    deconv = torch.zeros(8, 8, 3, 3)
    deconv[range(8), range(8), 1, 1] = 1
    x = (torch.randn(4, 8, 64, 64) - 1000).contiguous(memory_format=layout)
    z, mean, variance = torch.ops.leni_kernels.reborn_deconvolve_cpp(x, deconv)
    exact_variance, exact_mean = torch.var_mean(z.double(), (0, 2, 3), correction=0)
    assert (mean - exact_mean).abs().max() <= 1e-7 * exact_mean.abs().max()
    assert (variance - exact_variance).abs().max() <= 1e-5 * exact_variance.max()


# ---- only what is needed, kept and computed ----------------------------------------------------------------


@precisions
@pytest.mark.parametrize("part", ["x", "parameters", "deconv.weight", "bn_negative.weight", "bn_negative.bias",
                                  "compress.weight", "compress.bias"])
def test_only_what_is_needed(backend, make, part, dtype, tolerance):
    block = make(C, dtype=dtype)
    assert_only_needed(backend, block, *normal(2, 2, C, 5, 6).to(dtype), part, tolerance)


@layouts
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_x_and_z_alone_are_kept(kernel_backend, make, layout, dtype):
    block = make(16, dtype=dtype)
    x = laid_out(layout, 4, 16, 30, 31, dtype=dtype).requires_grad_()
    kept = {tensor.data_ptr(): tensor for tensor in reversed(kept_tensors(kernel_backend, block, x))}
    assert x.data_ptr() in kept
    parameters = {parameter.data_ptr() for parameter in block.parameters()}
    assert sum(tensor.nbytes for pointer, tensor in kept.items() if pointer not in parameters) <= 2.05 * x.nbytes


def test_backward_fills_no_activation_with_zeros(kernel_backend, make):
    """z and the statistics come with y, but no gradient of theirs is made up."""
    block, x, grad = make(16).float(), normal(4, 16, 30, 31).float().requires_grad_(), normal(4, 16, 30, 31).float()
    with lk.use_backend(kernel_backend):
        y = block(x)
        with torch.profiler.profile(record_shapes=True) as profile:
            y.backward(grad)
    zeroed = [event.input_shapes[0] for event in profile.events() if event.name == "aten::zero_"]
    assert list(x.shape) not in zeroed


# ---- norms -------------------------------------------------------------------------------------------------

NORMS = {
    "momentum None": {"momentum": None},
    "momentum 0.3": {"momentum": 0.3},
    "large eps": {"eps": 0.5},
}


@pytest.mark.parametrize("options", NORMS.values(), ids=NORMS)
def test_running_statistics_over_several_batches(kernel_backend, options):
    block = lk.Reborn2d(5, dtype=torch.float64, **options)
    twin = copy.deepcopy(block)
    for _ in range(3):
        x = normal(3, 5, 4, 6)
        for backend, trained in ((kernel_backend, block), ("reference", twin)):
            with lk.use_backend(backend):
                trained(x)
    for name, buffer in twin.named_buffers():
        torch.testing.assert_close(block.get_buffer(name), buffer, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("track", [False, True])
def test_norms_without_affine_or_running_statistics(kernel_backend, make, affine, track):
    block = make(5, dtype=torch.float64)
    training = block.training
    block.bn_negative = torch.nn.BatchNorm2d(5, affine=affine, track_running_stats=track, dtype=torch.float64)
    block.train(training)
    x, grad = normal(2, 3, 5, 4, 6)
    assert_right(step(kernel_backend, block, x, grad), truth(block, x, grad), 1e-11)


def test_one_value_a_channel_is_refused(backend, train):
    with lk.use_backend(backend), pytest.raises(ValueError, match="Expected more than 1 value per channel"):
        train(3)(torch.randn(1, 3, 1, 1))


@layouts
def test_an_empty_batch(backend, make_reborn, layout):
    block = make_reborn(3)
    x = laid_out(layout, 0, 3, 4, 5).requires_grad_()
    with lk.use_backend(backend):
        y = block(x)
    y.sum().backward()
    assert y.shape == x.grad.shape == x.shape
    assert not any(parameter.grad.any() for parameter in block.parameters())
    with pytest.raises(lk.BackendUnavailableError, match="an empty batch has no statistics"), lk.use_backend("cpp"):
        block.train()(x)


# ---- the variants ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("options", "reason"), [
    ({"compress_kernel_size": 3}, "the compression is 3x3; kernels exist for 1x1"),
    ({"compress": False}, "the block does not compress"),
])
def test_a_variant_without_kernels_says_so(kernel_backend, options, reason):
    block, x = lk.Reborn2d(C, **options), torch.randn(2, C, 5, 6)
    with lk.use_backend(kernel_backend), pytest.raises(lk.BackendUnavailableError, match=reason):
        block(x)
    decision, = lk.explain(block, x)
    assert decision.backend == "reference"
    assert reason in decision.why_not["cpp"]


@pytest.mark.parametrize("k", [3, 7, 9])
def test_any_odd_deconvolution_is_fused(kernel_backend, train, k):
    block, x, grad = train(5, k, dtype=torch.float64), *normal(2, 2, 5, 8, 9)
    assert lk.explain(block, x)[0].backend == kernel_backend
    assert_right(step(kernel_backend, block, x, grad), truth(block, x, grad), 1e-11)


# ---- threads, digits, the compiler -------------------------------------------------------------------------


@pytest.fixture(params=[1, 2])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


@layouts
@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_the_same_bits_on_two_runs(kernel_backend, train, layout, dtype):
    block = train(20, dtype=dtype)
    x, grad = (laid_out(layout, 5, 20, 30, 31, dtype=dtype) for _ in range(2))
    first, second = (step(kernel_backend, block, x, grad) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


@layouts
@pytest.mark.usefixtures("threads")
def test_right_on_several_threads(kernel_backend, train, layout):
    for channels in (4, 33):
        block = train(channels)
        x, grad = (laid_out(layout, 3, channels, 30, 31) for _ in range(2))
        assert_right(step(kernel_backend, block, x, grad), truth(block, x, grad), 2e-5)


@layouts
def test_losses_go_down_alike(kernel_backend, layout):
    images = laid_out(layout, 32, 1, 8, 8)
    labels = (images.mean((1, 2, 3)) > 0).long() + 2 * (images[:, 0, :4].mean((1, 2)) > 0).long()
    model = torch.nn.Sequential(torch.nn.Conv2d(1, 8, 3), lk.Reborn2d(8), torch.nn.Flatten(), torch.nn.Linear(288, 4))
    curves = []
    for backend in (kernel_backend, "reference"):
        twin = copy.deepcopy(model).to(memory_format=layout)
        optimizer = torch.optim.SGD(twin.parameters(), lr=0.05, momentum=0.9)
        curves.append([])
        for _ in range(20):
            with lk.use_backend(backend):
                loss = torch.nn.functional.cross_entropy(twin(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            curves[-1].append(loss.item())
    assert curves[0][-1] < 0.3 * curves[0][0]
    torch.testing.assert_close(*map(torch.tensor, curves), rtol=1e-3, atol=1e-3)


def test_compiled_training(make):
    torch._dynamo.reset()
    model = torch.nn.Sequential(torch.nn.Conv2d(3, C, 3), make(C)).double()
    x, grad = normal(2, 3, 7, 8), normal(2, C, 5, 6)
    results = []
    for compiled in (False, True):
        twin, ours = copy.deepcopy(model), x.clone().requires_grad_()
        call = torch.compile(twin, fullgraph=True, backend="aot_eager") if compiled else twin
        call(ours).backward(grad)
        results.append([ours.grad, *(parameter.grad for parameter in twin.parameters()), *twin.buffers()])
    for eager, traced in zip(*results, strict=True):
        torch.testing.assert_close(traced, eager, rtol=1e-11, atol=1e-11)


@pytest.mark.skipif(extension.why_missing is not None, reason=str(extension.why_missing))
@pytest.mark.parametrize("channels_last", [False, True])
def test_opcheck(channels_last):
    layout = torch.channels_last if channels_last else torch.contiguous_format
    x, z, grad = (laid_out(layout, 2, C, 4, 5) for _ in range(3))
    weight, bias, deconv, vector = torch.randn(C, 2 * C), torch.randn(C), torch.randn(C, C, 3, 3), torch.rand(C) + 0.5
    operators = torch.ops.leni_kernels
    checked = {
        operators.reborn_deconvolve_cpp: (x, deconv),
        operators.reborn_tail_cpp: (x, z, weight, bias),
        operators.reborn_statistics_cpp: (z,),
        operators.reborn_weight_gradient_cpp: (grad, x, z, torch.randn(2 * C)),
        operators.reborn_negative_gradient_cpp: (grad, z, weight, vector, vector),
        operators.reborn_input_gradient_cpp: (grad, x, z, weight),
    }
    by_need = [(operators.reborn_deconv_gradient_cpp, (grad, z, x, deconv, weight, *needs))
               for needs in ((True, True), (True, False), (False, True))]
    for operator, arguments in [*checked.items(), *by_need]:
        torch.library.opcheck(operator, arguments, test_utils=("test_schema", "test_faketensor"))
    compress = weight[:, :, None, None].clone()
    leaves = [tensor.clone().requires_grad_() for tensor in (x, deconv, vector, bias, compress, bias)]
    for known in ((None, None, None), (None, bias, vector)):
        torch.library.opcheck(operators.reborn_training_cpp, (*leaves, *known, 1e-3, 1))
    torch.library.opcheck(operators.reborn_training_cpp, (*leaves, z, bias, vector, 1e-3, 1),
                          test_utils=("test_schema", "test_faketensor"))
    statistics = torch.rand(2 * C + 1, dtype=torch.float64) + 0.5
    for of_statistics in (None, statistics[1:].clone()):
        for needs in ((True, True, True, True), (False, True, False, True), (True, False, False, False)):
            torch.library.opcheck(
                operators.reborn_training_backward_cpp,
                (grad, *(leaf.detach() for leaf in leaves[:5]), z, statistics, of_statistics, 1e-3, 1, *needs),
                test_utils=("test_schema", "test_faketensor"))
    torch.library.opcheck(operators.reborn_eval_cpp, (*(leaf.detach() for leaf in leaves), bias, vector, 1e-3, 1))
    torch.library.opcheck(operators.reborn_batch_statistics_cpp, (x, deconv, 1),
                          test_utils=("test_schema", "test_faketensor"))


@pytest.mark.skipif(extension.why_missing is not None, reason=str(extension.why_missing))
def test_operators_refuse_what_does_not_fit():
    x, weight, bias = torch.randn(2, C, 4, 5), torch.randn(C, 2 * C), torch.randn(C)
    tail = torch.ops.leni_kernels.reborn_tail_cpp
    for z, message in ((x.to(memory_format=torch.channels_last), "z must have stride 1 along columns"),
                       (x[:1], "z must have x's dtype and shape"), (x.double(), "z must have x's dtype and shape")):
        with pytest.raises(RuntimeError, match=message):
            tail(x, z, weight, bias)
    deconvolve, deconv = torch.ops.leni_kernels.reborn_deconvolve_cpp, torch.randn(C, C, 3, 3)
    for arguments, message in (((x.double(), deconv.double()), "x must be float32"),
                               ((x, deconv[:, :2]), r"deconv_weight must be \[4, 4, 3, 3\]"),
                               ((x, torch.randn(C, C, 5, 5)), r"deconv_weight must be \[4, 4, 3, 3\]")):
        with pytest.raises(RuntimeError, match=message):
            deconvolve(*arguments)
    with pytest.raises(RuntimeError, match="grad_z must have x's dtype and shape"):
        torch.ops.leni_kernels.reborn_deconv_gradient_cpp(x, x[:1], x, deconv, weight, True, True)


def test_functional_is_the_module(kernel_backend, make):
    block, x = make(5, dtype=torch.float64), normal(2, 5, 4, 6)
    twin = copy.deepcopy(block)
    with lk.use_backend(kernel_backend):
        assert torch.equal(functional.reborn(x, *twin.parameters_for_kernels()), block(x))
