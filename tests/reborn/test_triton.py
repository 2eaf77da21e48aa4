"""The Triton kernels of Reborn's tail compute the definition: on a GPU, else in Triton's interpreter.

``on_triton.py`` says how.
"""

from __future__ import annotations

import on_triton
import pytest
import rooms
import torch
import torch.nn.functional as F
from on_triton import DEVICE, GPU, needs_gpu, runs_kernels
from torch import Tensor
from training_steps import (
    GRADIENTS,
    SLICES,
    assert_no_worse_than_composed,
    assert_only_needed,
    assert_right,
    check_gradients,
    kept_tensors,
    laid_out,
    layouts,
    normal,
    second_gradients,
    step,
    truth,
)

import leni_kernels as lk
from leni_kernels.common.gpu import support
from leni_kernels.reborn import ops
from leni_kernels.reborn.gpu import forward, input_gradient, statistics, tiles, weight_gradient
from leni_kernels.two_branch.reference import folding_dtype

test_in_the_interpreter = on_triton.in_the_interpreter(__file__)


@pytest.fixture(autouse=True)
def _on_the_device():
    with torch.device(DEVICE):
        yield


# ---- the passes --------------------------------------------------------------------------------------------


def parameters(channels: int, dtype: torch.dtype, sloped: bool = True) -> tuple[Tensor | None, ...]:
    """weight, bias, the features' mean, and constant and slope, which are None in eval mode."""
    dtype = folding_dtype(dtype)
    weight, bias, mean = normal(channels, 2 * channels) / channels**0.5, normal(channels), normal(2 * channels)
    added = (normal(channels).to(dtype), normal(channels).to(dtype)) if sloped else (None, None)
    return weight.to(dtype), bias.to(dtype), mean.to(dtype), *added


def passes(layout: torch.memory_format, grad: Tensor, x: Tensor, z: Tensor, negative: Tensor, weight: Tensor,
           bias: Tensor, mean: Tensor, constant: Tensor | None, slope: Tensor | None) -> dict[str, Tensor]:
    """What the kernels make of an input."""
    ops = torch.ops.leni_kernels
    means, variances = ops.reborn_statistics_triton(z)
    grad_weight, grad_bias = ops.reborn_weight_gradient_triton(grad, x, z, mean)
    results = {"y": ops.reborn_tail_triton(x, z, weight, bias),
               "z": ops.reborn_negative_gradient_triton(grad, z, weight, constant, slope),
               "x": ops.reborn_input_gradient_triton(grad, x, negative, weight)}
    for result in results.values():
        assert result.dtype == x.dtype
        assert result.is_contiguous(memory_format=layout)
    return {"mean": means, "variance": variances, "weight": grad_weight, "bias": grad_bias, **results}


def definition(grad: Tensor, x: Tensor, z: Tensor, negative: Tensor, weight: Tensor, bias: Tensor, mean: Tensor,
               constant: Tensor | None, slope: Tensor | None) -> dict[str, Tensor]:
    """The same in plain PyTorch, all in x's dtype but for sums over pixels."""
    dtype = folding_dtype(x.dtype)
    variances, means = torch.var_mean(z.to(dtype), (0, 2, 3), correction=0)
    features = torch.cat([torch.relu(x), z], 1)
    centred = (features - mean[:, None, None]).to(x.dtype).to(dtype)
    weight = weight.to(x.dtype)
    of_positive, of_negative = F.conv2d(grad, weight.t()[:, :, None, None]).chunk(2, 1)
    if slope is not None:
        of_negative = of_negative + (constant[:, None, None] + slope[:, None, None] * z).to(x.dtype)
    return {"mean": means, "variance": variances, "weight": torch.einsum("nohw,nkhw->ok", grad.to(dtype), centred),
            "bias": grad.sum((0, 2, 3), dtype=dtype), "z": of_negative,
            "y": F.conv2d(features, weight[:, :, None, None], bias.to(x.dtype)),
            "x": torch.where(x > 0, of_positive, torch.where(x < 0, negative, 0))}


def relative(got: Tensor, wanted: Tensor) -> float:
    assert got.shape == wanted.shape
    assert got.isfinite().all()
    return float((got.double() - wanted).norm() / wanted.norm())


def assert_passes(x: Tensor, grad: Tensor, layout: torch.memory_format, sloped: bool = True) -> None:
    z, negative = (laid_out(layout, *x.shape, dtype=x.dtype) for _ in range(2))
    tensors = grad, x, z, negative, *parameters(x.shape[1], x.dtype, sloped)
    exact = definition(*(None if tensor is None else tensor.double() for tensor in tensors))
    got = passes(layout, *tensors)
    composed = definition(*tensors) if x.dtype.itemsize == 2 else None
    for name, wanted in exact.items():
        allowed = 1e-12 if x.dtype == torch.float64 else 1e-5
        if composed is not None and name not in ("mean", "variance"):
            allowed = 2 * relative(composed[name], wanted) + 1e-6
        assert relative(got[name], wanted) <= allowed, name


@runs_kernels
@layouts
@pytest.mark.parametrize(("shape", "dtype"), [
    ((2, 3, 3, 5), torch.float64), ((1, 20, 2, 8), torch.float32), ((2, 3, 3, 5), torch.float16),
    ((1, 20, 2, 8), torch.float16)], ids=str)
def test_right_for_any_size(shape, dtype, layout):
    assert_passes(*(laid_out(layout, *shape, dtype=dtype) for _ in range(2)), layout, sloped=shape[1] == 3)


@runs_kernels
@layouts
def test_right_for_one_pixel(layout):
    grad, x, z, negative = (laid_out(layout, 2, 1, 1, 1, dtype=torch.float64) for _ in range(4))
    tensors = grad, x, z, negative, *parameters(1, x.dtype)
    got, wanted = passes(layout, *tensors), definition(*tensors)
    for name, exact in wanted.items():
        assert (got[name] - exact).abs().max() <= 1e-12, name


@runs_kernels
@layouts
@pytest.mark.parametrize(("channels", "dtype"), [(17, torch.float64), (130, torch.float16)], ids=str)
def test_right_over_several_blocks(channels, dtype, layout):
    """Several blocks of channels and of outputs, the last of each not full."""
    assert_passes(*(laid_out(layout, 1, channels, 3, 8, dtype=dtype) for _ in range(2)), layout)


@runs_kernels
@layouts
@pytest.mark.parametrize("programs", [1, 2])
def test_several_tiles_to_a_program(programs, layout, monkeypatch):
    """Sums are of several programs', the last with fewer tiles; offsets have 64 bits."""
    rooms.replace(monkeypatch, "two_branch", "programs_at_once", lambda x, warps: programs)
    rooms.replace(monkeypatch, "reborn", "_ENOUGH_PROGRAMS", 1)
    rooms.replace(monkeypatch, "reborn", "wide", lambda *tensors: True)
    assert_passes(*(laid_out(layout, 3, 3, 15, 7, dtype=torch.float64) for _ in range(2)), layout)


@runs_kernels
@pytest.mark.parametrize(("architecture", "layout"), [
    ("sm_90", torch.channels_last), ("sm_80", torch.contiguous_format), ("gfx942", torch.channels_last)], ids=str)
def test_the_tilings_of_architectures_are_right(architecture, layout, monkeypatch):
    rooms.replace(monkeypatch, "reborn", "architecture", lambda x: architecture)
    for channels, dtype in ((17, torch.float16), (70, torch.float32)):
        assert_passes(*(laid_out(layout, 1, channels, 9, 8, dtype=dtype) for _ in range(2)), layout)


@runs_kernels
@layouts
def test_statistics_where_the_mean_is_many_deviations_away(layout):
    z = (1000 + torch.randn(2, 16, 32, 16)).contiguous(memory_format=layout)
    mean, variance = torch.ops.leni_kernels.reborn_statistics_triton(z)
    exact_variance, exact_mean = torch.var_mean(z.double(), (0, 2, 3), correction=0)
    assert ((mean - exact_mean).abs() <= 1e-4).all()
    assert ((variance - exact_variance).abs() <= 1e-4 * exact_variance).all()


# ---- x and gradients as they come --------------------------------------------------------------------------


@runs_kernels
@layouts
@pytest.mark.parametrize("make_grad", GRADIENTS.values(), ids=GRADIENTS)
def test_gradients_of_any_strides(make_grad, layout):
    x = laid_out(layout, 2, 4, 2, 4, dtype=torch.float64)
    assert_passes(x, make_grad(*x.shape), layout)


@runs_kernels
@layouts
@pytest.mark.parametrize("take", SLICES.values(), ids=SLICES)
def test_slices_of_a_larger_tensor(make_reborn, layout, take):
    """Read in place where the kernels have the layout, and refused where they do not."""
    x = take(laid_out(layout, 3, 6, 8, 8, dtype=torch.float64))
    block, grad = make_reborn(x.shape[1], dtype=torch.float64).train(), normal(*x.shape)
    if x.stride(1) == 1 or x.stride(3) == 1:
        assert_right(step("triton", block, x, grad), truth(block, x, grad), 1e-11)
    else:
        with pytest.raises(lk.BackendUnavailableError, match="neither along channels nor along columns"):
            step("triton", block, x, grad)


@layouts
def test_rows_that_follow_each_other_are_read_as_one(layout):
    last = layout == torch.channels_last
    x = laid_out(layout, 2, 4, 5, 6)
    grad = torch.randn(4, 1, 1).expand(2, 4, 5, 6)
    for joined, original in zip(tiles.joined_rows(last, x, grad), (x, grad), strict=True):
        assert joined.data_ptr() == original.data_ptr()
        assert torch.equal(joined, original.reshape(2, 4, 1, 30))
    for apart in ((x[..., 1:], grad[..., 1:]), (x, torch.randn(2, 4, 6, 5).transpose(2, 3))):
        assert [tensor.shape[2] for tensor in tiles.joined_rows(last, *apart)] == [5, 5]


@runs_kernels
@layouts
def test_an_empty_batch_launches_nothing(layout):
    x = torch.randn(0, 4, 3, 5, dtype=torch.float16).contiguous(memory_format=layout)
    results = passes(layout, x, x, x, x, *parameters(4, x.dtype))
    assert results["x"].shape == results["y"].shape == results["z"].shape == x.shape
    assert not any(result.any() for result in results.values())


@runs_kernels
@layouts
def test_an_empty_batch_of_a_block(make_reborn, layout):
    block, x = make_reborn(3), torch.randn(0, 3, 4, 5).contiguous(memory_format=layout).requires_grad_()
    with lk.use_backend("triton"):
        y = block(x)
        y.sum().backward()
        with pytest.raises(lk.BackendUnavailableError, match="an empty batch has no statistics"):
            block.train()(x)
    assert y.shape == x.grad.shape == x.shape
    assert not any(parameter.grad.any() for parameter in block.parameters())


@runs_kernels
@layouts
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_nan_and_infinity_travel(make_reborn, layout, value):
    block, x = make_reborn(5), laid_out(layout, 2, 5, 6, 7)
    x[0, 2, 3, 4] = value
    with lk.use_backend("triton"), torch.no_grad():
        y, exact = block(x), block.double()(x.double())
    assert torch.equal(y.isfinite(), exact.isfinite())
    assert not y[0, :, 3, 4].isfinite().any()
    assert y[1].isfinite().all()


@runs_kernels
@layouts
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_and_infinity_of_x_reach_the_weight_s_gradient(layout, value):
    grad, x, z, negative = (laid_out(layout, 1, 4, 3, 4, dtype=torch.float64) for _ in range(4))
    x[0, 2, 2, 1], z[0, 1, 0, 0] = value, value
    tensors = grad, x, z, negative, *parameters(4, x.dtype)
    got, wanted = passes(layout, *tensors), definition(*tensors)
    for name in ("mean", "variance", "weight", "y", "z"):
        assert torch.equal(got[name].isfinite(), wanted[name].isfinite()), name
        assert not got[name].isfinite().all(), name


# ---- the block ---------------------------------------------------------------------------------------------


@pytest.fixture(params=[True, False], ids=["training", "eval"])
def make(request, make_reborn):
    """Reborn2d with batch statistics, and with running ones."""
    return lambda *arguments, **options: make_reborn(*arguments, **options).train(request.param)


@runs_kernels
@pytest.mark.parametrize(("training", "layout", "groups"), [
    (True, torch.channels_last, 1), (True, torch.contiguous_format, 2), (False, torch.channels_last, 2)], ids=str)
def test_gradcheck(make_reborn, training, layout, groups):
    block = make_reborn(2, groups=groups, dtype=torch.float64).train(training)
    x = laid_out(layout, 1, 2, 2, 3, dtype=torch.float64)
    check_gradients("triton", block, x, fast_mode=True)


@runs_kernels
@layouts
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-11), (torch.float32, 2e-5)], ids=str)
@pytest.mark.parametrize(("kernel_size", "groups"), [(3, 1), (9, 1), (5, 5)])
def test_a_step_is_the_definition_s(make, kernel_size, groups, dtype, tolerance, layout):
    block = make(5, kernel_size, groups, dtype)
    # A mean of 0.5 keeps the sum over all pixels from cancelling by chance.
    x, grad = (laid_out(layout, 2, 5, 4, 6, dtype=dtype) for _ in range(2))
    assert_right(step("triton", block, x, grad + 0.5), truth(block, x, grad + 0.5), tolerance)


@runs_kernels
@layouts
def test_half_precision_is_no_worse_than_composed(make, layout):
    block = make(16, dtype=torch.float16)
    x, grad = (laid_out(layout, 4, 16, 9, 8, dtype=torch.float16) for _ in range(2))
    assert_no_worse_than_composed("triton", block, x, grad)


@runs_kernels
def test_autocast(make):
    block, x = make(3), torch.randn(2, 3, 4, 5)
    with lk.use_backend("triton"), torch.autocast(DEVICE, torch.float16):
        y = block(x.requires_grad_())
    assert y.dtype == torch.float16
    y.float().square().sum().backward()
    assert {tensor.grad.dtype for tensor in (x, *block.parameters())} == {torch.float32}


@runs_kernels
@layouts
def test_the_same_bits_on_two_runs(make, layout):
    block = make(5)
    x, grad = (laid_out(layout, 2, 5, 4, 6) for _ in range(2))
    first, second = (step("triton", block, x, grad) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


@runs_kernels
@layouts
def test_no_gradient_at_ties(make, layout):
    block, grad = make(5, dtype=torch.float64), normal(2, 5, 4, 6)
    x = laid_out(layout, 2, 5, 4, 6, dtype=torch.float64)
    x = x.masked_fill(torch.rand_like(x) < 0.3, 0).masked_fill(x > 1.5, -0.0)
    got = step("triton", block, x, grad)
    assert torch.equal(got["x"] == 0, x == 0)
    assert_right(got, truth(block, x, grad), 1e-11)


@runs_kernels
@pytest.mark.parametrize("part", ["x", "parameters", "deconv.weight", "bn_negative.weight", "compress.bias"])
def test_only_what_is_needed(make, part):
    block = make(4, dtype=torch.float64)
    assert_only_needed("triton", block, normal(2, 4, 5, 6), normal(2, 4, 5, 6), part, 1e-11)


@runs_kernels
@layouts
def test_x_and_z_alone_are_kept(make, layout):
    block, x = make(3), laid_out(layout, 2, 3, 8, 8).requires_grad_()
    kept = {tensor.data_ptr(): tensor for tensor in reversed(kept_tensors("triton", block, x))}
    large = [tensor for tensor in kept.values() if tensor.numel() > 3 * 3 * 9]
    assert x.data_ptr() in kept
    assert sum(tensor.nbytes for tensor in large) == 2 * x.nbytes


@runs_kernels
def test_inference_of_a_block_that_is_not_folded(make_reborn):
    block, x = make_reborn(4, dtype=torch.float64), normal(2, 4, 5, 6)
    with lk.use_backend("triton"), torch.no_grad():
        torch.testing.assert_close(block(x), lk.fold(block)(x), rtol=1e-11, atol=1e-11)


@runs_kernels
def test_norms_without_affine_or_running_statistics(make):
    block = make(5, dtype=torch.float64)
    training = block.training
    block.bn_negative = torch.nn.BatchNorm2d(5, affine=False, track_running_stats=False, dtype=torch.float64)
    block.train(training)
    x, grad = normal(3, 5, 4, 6), normal(3, 5, 4, 6)
    assert_right(step("triton", block, x, grad), truth(block, x, grad), 1e-11)


@runs_kernels
def test_second_gradients(make):
    block, x = make(2, dtype=torch.float64), normal(2, 2, 3, 4)
    with lk.use_backend("reference"):
        wanted = second_gradients(block, x)
    with lk.use_backend("triton"):
        torch.testing.assert_close(second_gradients(block, x), wanted, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize(("options", "reason"), [
    ({"compress_kernel_size": 3}, "the compression is 3x3; kernels exist for 1x1"),
    ({"compress": False}, "the block does not compress"),
])
def test_a_variant_without_kernels_says_so(options, reason):
    block, x = lk.Reborn2d(4, **options), torch.randn(2, 4, 5, 6)
    with lk.use_backend("triton"), pytest.raises(lk.BackendUnavailableError, match=reason):
        block(x)
    decision, = lk.explain(block, x)
    assert decision.backend == "reference"
    assert reason in decision.why_not["triton"]


@pytest.mark.skipif(GPU or support.interpreting, reason="the kernels run here")
def test_why_not_here():
    block, x = lk.Reborn2d(4), torch.randn(2, 4, 5, 6)
    reason = "x is on cpu; Triton kernels run on CUDA and ROCm devices"
    with lk.use_backend("triton"), pytest.raises(lk.BackendUnavailableError, match=reason):
        block(x)


# ---- as operators ------------------------------------------------------------------------------------------


@runs_kernels
@layouts
def test_opcheck_of_the_passes(layout):
    ops = torch.ops.leni_kernels
    x, z, grad = (laid_out(layout, 1, 4, 1, 4) for _ in range(3))
    weight, bias, mean, constant, slope = parameters(4, x.dtype)
    for operator, inputs in (
            (ops.reborn_tail_triton, (x, z, weight, bias)), (ops.reborn_statistics_triton, (z,)),
            (ops.reborn_weight_gradient_triton, (grad, x, z, mean)),
            (ops.reborn_negative_gradient_triton, (grad, z, weight, constant, slope)),
            (ops.reborn_negative_gradient_triton, (grad, z, weight, None, None)),
            (ops.reborn_input_gradient_triton, (grad, x, z, weight))):
        torch.library.opcheck(operator.default, inputs, test_utils=("test_schema", "test_faketensor"))


@runs_kernels
@layouts
def test_opcheck_of_training(layout):
    x, deconv, weight = laid_out(layout, 2, 2, 2, 3), torch.randn(2, 2, 3, 3), torch.randn(2, 4)
    vector, bias = torch.rand(2) + 0.5, torch.randn(2)
    leaves = [tensor.clone().requires_grad_() for tensor in (x, deconv, vector, bias, weight[:, :, None, None], bias)]
    for running in ((None, None), (bias, vector)):
        torch.library.opcheck(torch.ops.leni_kernels.reborn_training_triton.default,
                              (*leaves, None, *running, 1e-3, 1),
                              test_utils=("test_schema", "test_autograd_registration", "test_faketensor"))


@pytest.mark.skipif(support.interpreting, reason="the interpreter's operator is opaque to tracing")
@layouts
def test_the_launches_can_be_traced_without_a_gpu(layout):
    from torch._subclasses import FakeTensorMode
    from torch.fx.experimental.proxy_tensor import make_fx

    def launch(x, weight, features, vector):
        return (statistics.reborn_statistics(x), forward.reborn_tail(x, x, weight, vector),
                weight_gradient.reborn_weight_gradient(x, x, x, features),
                input_gradient.reborn_negative_gradient(x, x, weight, vector, vector),
                input_gradient.reborn_input_gradient(x, x, x, weight))

    with FakeTensorMode():
        x = torch.empty(2, 16, 5, 8, device="cuda", dtype=torch.float16).to(memory_format=layout)
        small = [torch.empty(shape, device="cuda") for shape in ((16, 32), (32,), (16,))]
        graph = make_fx(launch)(x, *small)
    assert graph.code.count("triton_kernel_wrapper") >= 5


@runs_kernels
def test_a_process_group_of_one_changes_nothing(tmp_path):
    """The sums of a group are the same algebra on every backend; ``test_distributed.py`` has two processes."""
    from torch import distributed

    if not (distributed.is_available() and distributed.is_gloo_available()):
        pytest.skip("needs torch.distributed with gloo")
    x, deconv, weight, bias = normal(2, 3, 4, 5), normal(3, 3, 3, 3), normal(3, 6), normal(3)
    vector = torch.rand(3, dtype=torch.float64) + 0.5
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/meeting", rank=0, world_size=1)
    results = []
    try:
        training, group = ops._TRITON, distributed.group.WORLD.group_name
        for run in (lambda *leaves: training.alone(*leaves, None, None, None, 1e-3, 1),
                    lambda *leaves: training.synchronised(*leaves, 1e-3, 1, group)):
            leaves = [tensor.clone().requires_grad_() for tensor in (
                x, deconv, vector, bias, weight[:, :, None, None], bias)]
            y, _, *statistics = run(*leaves)
            results.append([y, *statistics, *torch.autograd.grad(y.square().sum(), leaves)])
    finally:
        distributed.destroy_process_group()
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


# ---- on a GPU ----------------------------------------------------------------------------------------------


@needs_gpu
@pytest.mark.gpu
@layouts
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize(("channels", "size"), [(16, 112), (32, 112), (64, 56), (128, 28), (256, 14), (512, 7)])
def test_right_at_the_sizes_of_networks(channels, size, dtype, layout):
    assert_passes(*(laid_out(layout, 8, channels, size, size, dtype=dtype) for _ in range(2)), layout)


@needs_gpu
@pytest.mark.gpu
@layouts
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_the_same_bits_at_the_size_of_a_network(dtype, layout):
    grad, x, z, negative = (laid_out(layout, 32, 64, 112, 112, dtype=dtype) for _ in range(4))
    tensors = grad, x, z, negative, *parameters(64, dtype)
    first = passes(layout, *tensors)
    for _ in range(5):
        again = passes(layout, *tensors)
        assert all(torch.equal(first[name], again[name]) for name in first)
