"""The Triton kernels of training compute the definition's gradients: on a GPU, else in Triton's interpreter.

``on_triton.py`` says how.
"""

from __future__ import annotations

import copy

import large_means
import on_triton
import pytest
import rooms
import torch
from on_triton import DEVICE, needs_gpu, runs_kernels
from torch import Tensor
from training_steps import check_gradients, kept_tensors, second_gradients

import leni_kernels as lk
from leni_kernels.common.gpu import support
from leni_kernels.leni import ops, reference
from leni_kernels.leni.gpu import input_gradient, statistics, weight_gradient
from leni_kernels.two_branch.reference import folding_dtype, split_signs

layouts = pytest.mark.parametrize("channels_last", [True, False], ids=["channels_last", "nchw"])
test_in_the_interpreter = on_triton.in_the_interpreter(__file__)


# ---- material ----------------------------------------------------------------------------------------------


def normal(*shape: int, dtype: torch.dtype = torch.float64, channels_last: bool = False) -> Tensor:
    tensor = torch.randn(shape, dtype=torch.float64, device=DEVICE).to(dtype)
    return tensor.to(memory_format=torch.channels_last) if channels_last else tensor


def parameters(channels: int, kernel_size: int, dtype: torch.dtype, sloped: bool = True) -> tuple[Tensor | None, ...]:
    """taps, weight, and mean, constant and slope of both branches; the last two are None in eval mode."""
    dtype = folding_dtype(dtype)
    taps, weight = normal(channels, kernel_size, kernel_size) / kernel_size, normal(channels, 2 * channels)
    mean, constant, slope = normal(3, 2 * channels, dtype=dtype)
    return taps.to(dtype), (weight / channels**0.5).to(dtype), mean, *((constant, slope) if sloped else (None, None))


def passes(grad: Tensor, x: Tensor, taps: Tensor, weight: Tensor, mean: Tensor, constant: Tensor | None,
           slope: Tensor | None, channels_last: bool) -> dict[str, Tensor]:
    """What the three kernels make of an input."""
    ops = torch.ops.leni_kernels
    means, variances = ops.leni_statistics_triton(x, taps)
    grad_weight, grad_bias = ops.leni_weight_gradient_triton(grad, x, taps, mean)
    grad_x, grad_taps = ops.leni_input_gradient_triton(grad, x, taps, weight, constant, slope)
    assert grad_x.dtype == x.dtype
    assert grad_x.is_contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
    return {"mean": means, "variance": variances, "weight": grad_weight, "bias": grad_bias, "x": grad_x,
            "taps": grad_taps}


def definition(grad: Tensor, x: Tensor, taps: Tensor, weight: Tensor, mean: Tensor, constant: Tensor | None,
               slope: Tensor | None) -> dict[str, Tensor]:
    """The same from the definition by autograd, all in x's dtype but for sums over pixels."""
    dtype = folding_dtype(x.dtype)
    means, variances = reference.leni_statistics(x, taps.to(dtype))
    leaf, taps = x.detach().requires_grad_(), taps.to(x.dtype).requires_grad_()
    positive, negative = split_signs(leaf)
    deconvolved = torch.nn.functional.conv_transpose2d(negative, taps.unsqueeze(1), padding=taps.shape[-1] // 2,
                                                       groups=x.shape[1])
    a = torch.cat([positive, deconvolved], 1)
    of_a = torch.nn.functional.conv2d(grad, weight.to(x.dtype).t()[:, :, None, None])
    if slope is not None:
        of_a = of_a + (constant[:, None, None] + slope[:, None, None] * a.detach()).to(x.dtype)
    centred = (a.detach() - mean[:, None, None]).to(x.dtype).to(dtype)
    grad_x, grad_taps = torch.autograd.grad(a, (leaf, taps), of_a)
    return {"mean": means, "variance": variances,
            "weight": torch.einsum("nohw,nkhw->ok", grad.to(dtype), centred), "bias": grad.sum((0, 2, 3), dtype=dtype),
            "x": grad_x, "taps": grad_taps}


def relative(got: Tensor, wanted: Tensor) -> float:
    assert got.shape == wanted.shape
    assert got.isfinite().all()
    return float((got.double() - wanted).norm() / wanted.norm())


def assert_right(x: Tensor, grad: Tensor, channels_last: bool, kernel_size: int = 3, sloped: bool = True) -> None:
    tensors = parameters(x.shape[1], kernel_size, x.dtype, sloped)
    got = passes(grad, x, *tensors, channels_last)
    exact = definition(*(None if tensor is None else tensor.double() for tensor in (grad, x, *tensors)))
    composed = definition(grad, x, *tensors) if x.dtype.itemsize == 2 else None
    for name, wanted in exact.items():
        allowed = 1e-12 if x.dtype == torch.float64 else 1e-5
        if composed is not None and name not in ("mean", "variance"):
            allowed = 2 * relative(composed[name], wanted) + 1e-6
        assert relative(got[name], wanted) <= allowed, name


# ---- the same numbers as the definition --------------------------------------------------------------------


@runs_kernels
@layouts
@pytest.mark.parametrize(("shape", "dtype"), [
    ((2, 3, 3, 5), torch.float64), ((1, 20, 2, 8), torch.float32), ((2, 3, 3, 5), torch.float16),
    ((1, 20, 2, 8), torch.float16)], ids=str)
def test_right_for_any_size(shape, dtype, channels_last):
    x, grad = (normal(*shape, dtype=dtype, channels_last=channels_last) for _ in range(2))
    assert_right(x, grad, channels_last, sloped=shape[1] == 3)


@runs_kernels
@layouts
def test_right_for_one_pixel(channels_last):
    shape = (2, 1, 1, 1)
    tensors = parameters(1, 3, torch.float64)
    x, grad = (normal(*shape, channels_last=channels_last) for _ in range(2))
    got, wanted = passes(grad, x, *tensors, channels_last), definition(grad, x, *tensors)
    for name, exact in wanted.items():
        assert (got[name] - exact).abs().max() <= 1e-12, name


@runs_kernels
@layouts
@pytest.mark.parametrize("kernel_size", [5, 7])
def test_right_for_each_kernel_size(kernel_size, channels_last):
    x, grad = (normal(1, 4, 3, 4, channels_last=channels_last) for _ in range(2))
    assert_right(x, grad, channels_last, kernel_size)


@runs_kernels
@layouts
@pytest.mark.parametrize(("channels", "dtype"), [(17, torch.float64), (130, torch.float16)], ids=str)
def test_right_over_several_blocks(channels, dtype, channels_last):
    """Several blocks of channels and of outputs, the last of each not full."""
    x, grad = (normal(1, channels, 1, 8, dtype=dtype, channels_last=channels_last) for _ in range(2))
    assert_right(x, grad, channels_last, sloped=False)


@runs_kernels
@layouts
@pytest.mark.parametrize(("programs", "kernel_size", "shape"), [(1, 5, (1, 2, 18, 8)), (2, 3, (1, 3, 20, 7))])
def test_several_tiles_to_a_program(programs, kernel_size, shape, channels_last, monkeypatch):
    """Sums are of several tiles' and several programs'."""
    rooms.replace(monkeypatch, "two_branch", "programs_at_once", lambda x, warps: programs)
    rooms.replace(monkeypatch, "leni", "wide", lambda *tensors: True)
    x, grad = (normal(*shape, channels_last=channels_last) for _ in range(2))
    assert_right(x, grad, channels_last, kernel_size)


@runs_kernels
@pytest.mark.parametrize(("architecture", "channels", "channels_last"), [
    ("sm_90", 17, True), ("sm_90", 40, True), ("sm_90", 40, False), ("sm_80", 17, False)])
def test_the_tilings_of_architectures_are_right(architecture, channels, channels_last, monkeypatch):
    rooms.replace(monkeypatch, "leni", "architecture", lambda x: architecture)
    x, grad = (normal(1, channels, 9, 8, dtype=torch.float16, channels_last=channels_last) for _ in range(2))
    assert_right(x, grad, channels_last)


@runs_kernels
@layouts
def test_statistics_where_the_mean_is_many_deviations_away(channels_last):
    """D only scales, so that the mean of z is as large against its deviation."""
    signs = torch.tensor([1.0, -1.0], device=DEVICE).repeat(8)[:, None, None]
    x = 1000 * signs + normal(2, 16, 32, 16, dtype=torch.float32, channels_last=channels_last)
    taps = torch.zeros(16, 3, 3, device=DEVICE)
    taps[:, 1, 1] = 1
    got = torch.ops.leni_kernels.leni_statistics_triton(x, taps)
    mean, variance = reference.leni_statistics(x.double(), taps.double())
    deviation = torch.where(variance > 0.5, variance, 1).sqrt()
    assert (((got[0] - mean) / deviation).abs() <= 1e-4).all()
    assert ((got[1] - variance).abs() <= 1e-4 * deviation.square()).all()


# ---- x and gradients as they come --------------------------------------------------------------------------

GRADIENTS = {
    "the other layout": lambda n, c, h, w, last: normal(n, c, h, w, channels_last=not last),
    "a slice of channels": lambda n, c, h, w, last: normal(n, 2 * c + 1, h, w, channels_last=last)[:, 1:-c],
    "every other row and column": lambda n, c, h, w, _: normal(n, c, 2 * h, 2 * w)[:, :, ::2, 1::2],
    "transposed": lambda n, c, h, w, _: normal(n, c, w, h).transpose(2, 3),
    "one number, expanded": lambda n, c, h, w, _: normal(1)[:, None, None, None].expand(n, c, h, w),
}


@runs_kernels
@layouts
@pytest.mark.parametrize("make_grad", GRADIENTS.values(), ids=GRADIENTS)
def test_gradients_of_any_strides(make_grad, channels_last):
    x = normal(2, 4, 2, 4, channels_last=channels_last)
    assert_right(x, make_grad(*x.shape, channels_last), channels_last, sloped=False)


@runs_kernels
@layouts
@pytest.mark.parametrize("part", [(slice(None), slice(2, 6), slice(1, 5), slice(2, 6)),
                                  (slice(1, 2), slice(None), slice(None, None, 2))], ids=["slices", "every other row"])
def test_slices_of_a_larger_tensor_are_read_in_place(part, channels_last):
    x = normal(2, 8, 6, 8, channels_last=channels_last)[part]
    assert_right(x, normal(*x.shape), channels_last)


@runs_kernels
@layouts
def test_an_empty_batch_launches_nothing(channels_last):
    x = normal(0, 4, 3, 5, dtype=torch.float16, channels_last=channels_last)
    results = passes(x, x, *parameters(4, 3, x.dtype), channels_last)
    assert results["x"].shape == x.shape
    assert not any(result.any() for result in results.values())


@runs_kernels
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
@pytest.mark.parametrize(("value", "channels_last"), [
    (float("nan"), True), (float("nan"), False), (float("-inf"), True), (float("inf"), False)])
def test_nan_and_infinity_stay_in_their_channel(value, channels_last):
    x, grad = (normal(1, 4, 3, 4, channels_last=channels_last) for _ in range(2))
    x[0, 2, 2, 1] = value
    tensors = parameters(4, 3, x.dtype, sloped=False)
    got = passes(grad, x, *tensors, channels_last)
    others = torch.tensor([0, 1, 3, 4, 5, 7], device=DEVICE)
    assert not got["mean"][2::4].isfinite().all()
    assert got["mean"][others].isfinite().all()
    wanted = definition(grad, x, *tensors)["weight"]
    assert torch.equal(got["weight"].isfinite(), wanted.isfinite())
    assert torch.equal(got["weight"].isnan(), wanted.isnan())
    assert got["taps"][others[:3]].isfinite().all()
    assert not (value < 0 and got["taps"][2].isfinite().all())


@runs_kernels
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
@layouts
@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_past_the_edge_is_nothing_even_of_infinity(value, channels_last):
    """The taps that would carry the corner's x past the image have sums of the other pixels alone."""
    x, grad = (normal(1, 3, 9, 8, channels_last=channels_last) for _ in range(2))
    x[0, 1, 0, 0] = value
    tensors = parameters(3, 3, x.dtype, sloped=False)
    got = passes(grad, x, *tensors, channels_last)["taps"]
    x[0, 1, 0, 0] = 0
    wanted = definition(grad, x, *tensors)["taps"]
    assert got.isfinite().sum() == 27 - 4
    torch.testing.assert_close(got[got.isfinite()], wanted[got.isfinite()], rtol=1e-12, atol=1e-12)


# ---- the block ---------------------------------------------------------------------------------------------


@pytest.fixture
def train(make_leni):
    """LENI2d in training mode whose norms are nothing trivial."""
    return lambda *arguments, **options: make_leni(*arguments, **options).train().to(DEVICE)


def step(backend: str, block: torch.nn.Module, x: Tensor, grad: Tensor) -> dict[str, Tensor]:
    """y, the gradients and the buffers that one step of a copy of the block leaves on a backend."""
    block, x = copy.deepcopy(block), x.detach().requires_grad_()
    with lk.use_backend(backend):
        y = block(x)
    y.backward(grad)
    gradients = {name: parameter.grad for name, parameter in block.named_parameters()}
    return {"y": y.detach(), "x": x.grad, **gradients, **dict(block.named_buffers())}


def errors(got: dict[str, Tensor], exact: dict[str, Tensor]) -> dict[str, float]:
    """Each result's largest error, relative to its largest magnitude; BN2 cancels what BN1's bias adds."""
    assert got.keys() == exact.keys()
    return {name: float((got[name].double() - wanted).abs().max() / wanted.double().abs().max().clamp(min=1e-300))
            for name, wanted in exact.items() if name != "bn_negative.bias"}


@runs_kernels
@pytest.mark.parametrize(("training", "channels_last"), [(True, True), (True, False), (False, True)])
def test_gradcheck(train, training, channels_last):
    block = train(2, dtype=torch.float64).train(training)
    x = normal(1, 2, 2, 3, channels_last=channels_last)
    for norm in (block.bn_negative, block.bn_fusion):  # their gradients are algebra that all backends share
        norm.requires_grad_(False)
    check_gradients("triton", block, x, fast_mode=True)


@runs_kernels
@layouts
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-11), (torch.float32, 2e-5)], ids=str)
def test_a_step_is_the_definition_s(train, dtype, tolerance, training, channels_last):
    block = train(5, dtype=dtype).train(training)
    x, grad = (normal(2, 5, 4, 6, dtype=dtype, channels_last=channels_last) for _ in range(2))
    exact = step("reference", copy.deepcopy(block).double(), x.double(), grad.double())
    for name, error in errors(step("triton", block, x, grad), exact).items():
        assert error <= tolerance, f"{name}: {error:.3g}"


@runs_kernels
@pytest.mark.parametrize(("dtype", "tolerance", "training", "channels_last"), [
    (torch.float64, 1e-11, True, True), (torch.float64, 1e-11, True, False), (torch.float32, 3e-5, True, True),
    (torch.float64, 1e-11, False, False)], ids=["channels_last", "nchw", "float32", "eval"])
def test_a_step_of_a_separable_block_is_the_definition_s(train, dtype, tolerance, training, channels_last):
    block = train(5, dtype=dtype, separable=True).train(training)
    x, grad = (normal(3, 5, 2, 4, dtype=dtype, channels_last=channels_last) for _ in range(2))
    exact = step("reference", copy.deepcopy(block).double(), x.double(), grad.double())
    for name, error in errors(step("triton", block, x, grad), exact).items():
        assert error <= tolerance, f"{name}: {error:.3g}"


@runs_kernels
@layouts
def test_the_passes_of_a_separable_block(channels_last):
    x, grad = (normal(2, 5, 3, 8, channels_last=channels_last) for _ in range(2))
    taps, weight, mean, constant, slope = parameters(5, 3, x.dtype)
    centre, matrix, kernels = mean[:5].contiguous(), normal(5, 5), torch.ops.leni_kernels
    torch.testing.assert_close(kernels.leni_covariance_triton(x, taps, centre),
                               reference.leni_covariance(x, taps, centre), rtol=1e-12, atol=1e-12)
    call = (grad, x, taps, weight, constant, slope, matrix, centre)
    torch.testing.assert_close(kernels.leni_input_gradient_triton(*call), reference.leni_input_gradient(*call),
                               rtol=1e-12, atol=1e-12)


@runs_kernels
@pytest.mark.parametrize("separable", [False, True], ids=["depthwise", "separable"])
@layouts
def test_half_precision_is_no_worse_than_composed(train, separable, channels_last):
    block = train(16, dtype=torch.float16, separable=separable)
    x, grad = (normal(4, 16, 9, 8, dtype=torch.float16, channels_last=channels_last) for _ in range(2))
    exact = step("reference", copy.deepcopy(block).double(), x.double(), grad.double())
    composed = errors(step("reference", block, x, grad), exact)
    for name, error in errors(step("triton", block, x, grad), exact).items():
        assert error <= 2 * composed[name], f"{name}: {error:.3g} > 2 × {composed[name]:.3g}"


@runs_kernels
@layouts
def test_gradients_where_the_mean_is_many_deviations_away(channels_last):
    """The norms' gradients are of a less its mean, which as a difference of sums would cancel."""
    block = lk.LENI2d(8).to(DEVICE)
    x = normal(2, 8, 12, 12, dtype=torch.float32, channels_last=channels_last) + 1000
    grad = normal(*x.shape, dtype=torch.float32) + 1
    exact = step("reference", copy.deepcopy(block).double(), x.double(), grad.double())
    composed, fused = (errors(step(name, block, x, grad), exact) for name in ("reference", "triton"))
    for name in ("compress.weight", "bn_fusion.weight"):
        assert fused[name] <= 2 * composed[name], name


@runs_kernels
@layouts
def test_the_same_bits_on_two_runs(train, channels_last):
    block = train(5)
    x, grad = (normal(2, 5, 4, 6, dtype=torch.float32, channels_last=channels_last) for _ in range(2))
    first, second = (step("triton", block, x, grad) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


@runs_kernels
@layouts
def test_no_gradient_at_ties(train, channels_last):
    block, grad = train(5, dtype=torch.float64), normal(2, 5, 4, 6)
    x = normal(2, 5, 4, 6, channels_last=channels_last)
    x = x.masked_fill(torch.rand_like(x) < 0.3, 0).masked_fill(x > 1.5, -0.0)
    got = step("triton", block, x, grad)
    assert torch.equal(got["x"] == 0, x == 0)
    assert max(errors(got, step("reference", block, x, grad)).values()) <= 1e-11


@runs_kernels
@layouts
@pytest.mark.parametrize("training", [True, False])
def test_x_alone_is_kept(train, training, channels_last):
    block = train(3).train(training)
    x = normal(2, 3, 8, 8, dtype=torch.float32, channels_last=channels_last).requires_grad_()
    kept = kept_tensors("triton", block, x)
    large = [tensor for tensor in kept if tensor.numel() > 3 * 3 * 3]
    assert [tensor.data_ptr() for tensor in large] == [x.data_ptr()]
    assert sum(tensor.nbytes for tensor in large) == x.nbytes


@runs_kernels
def test_second_gradients(train):
    block, x = train(2, dtype=torch.float64), normal(1, 2, 3, 4)
    with lk.use_backend("reference"):
        wanted = second_gradients(block, x)
    with lk.use_backend("triton"):
        torch.testing.assert_close(second_gradients(block, x), wanted, rtol=1e-9, atol=1e-10)


# ---- as operators ------------------------------------------------------------------------------------------


@runs_kernels
@layouts
def test_opcheck_of_the_passes(channels_last):
    ops = torch.ops.leni_kernels
    x = normal(1, 4, 1, 4, dtype=torch.float32, channels_last=channels_last)
    taps, weight, mean, constant, slope = parameters(4, 3, x.dtype)
    for operator, inputs in (
            (ops.leni_statistics_triton, (x, taps)),
            (ops.leni_weight_gradient_triton, (x, x, taps, mean)),
            (ops.leni_input_gradient_triton, (x, x, taps, weight, constant, slope))):
        torch.library.opcheck(operator.default, inputs, test_utils=("test_schema", "test_faketensor"))


@runs_kernels
@layouts
def test_opcheck_of_training(channels_last):
    x = normal(2, 2, 2, 3, dtype=torch.float32, channels_last=channels_last)
    taps, weight, *_ = parameters(2, 3, x.dtype)
    vectors = [torch.rand(size, device=DEVICE) + 0.5 for size in (2, 2, 4, 4)]
    tensors = [tensor.detach().clone().requires_grad_() for tensor in (
        x, taps[:, None], *vectors, weight[:, :, None, None], vectors[0])]
    torch.library.opcheck(torch.ops.leni_kernels.leni_training_triton.default,
                          (*tensors, None, 1e-3, 1e-2),
                          test_utils=("test_schema", "test_autograd_registration", "test_faketensor"))


@pytest.mark.skipif(support.interpreting, reason="the interpreter's operator is opaque to tracing")
@layouts
def test_the_launches_can_be_traced_without_a_gpu(channels_last):
    from torch._subclasses import FakeTensorMode
    from torch.fx.experimental.proxy_tensor import make_fx

    def launch(grad, x, taps, weight, vector):
        return (statistics.leni_statistics(x, taps),
                weight_gradient.leni_weight_gradient(grad, x, taps, vector),
                input_gradient.leni_input_gradient(grad, x, taps, weight, vector, vector))

    with FakeTensorMode():
        x = torch.empty(2, 16, 5, 8, device="cuda", dtype=torch.float16)
        x = x.to(memory_format=torch.channels_last) if channels_last else x
        small = [torch.empty(shape, device="cuda") for shape in ((16, 3, 3), (16, 32), (32,))]
        graph = make_fx(launch)(x, x, *small)
    assert graph.code.count("triton_kernel_wrapper") >= 4


@runs_kernels
def test_a_process_group_of_one_changes_nothing(train, tmp_path):
    """The sums of a group are the same algebra on every backend; ``test_distributed.py`` has two processes."""
    from torch import distributed

    if not (distributed.is_available() and distributed.is_gloo_available()):
        pytest.skip("needs torch.distributed with gloo")
    x, vectors = normal(2, 3, 4, 5), [torch.rand(size, device=DEVICE).double() + 0.5 for size in (3, 3, 6, 6)]
    taps, weight, *_ = parameters(3, 3, x.dtype)
    tensors = (x, taps[:, None], *vectors, weight[:, :, None, None], vectors[0])
    training = ops._TRAINING_TRITON
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/meeting", rank=0, world_size=1)
    try:
        alone = training.alone(*tensors, None, 1e-3, 1e-2)
        grouped = training.synchronised(*tensors, 1e-3, 1e-2, distributed.group.WORLD.group_name)
    finally:
        distributed.destroy_process_group()
    for ours, theirs in zip(alone, grouped, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


# ---- on a GPU ----------------------------------------------------------------------------------------------


@needs_gpu
@pytest.mark.gpu
@layouts
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize(("channels", "size"), [(16, 112), (32, 112), (64, 56), (128, 28), (256, 14), (512, 7)])
@pytest.mark.parametrize("kernel_size", [3, 5, 7])
def test_right_at_the_sizes_of_networks(channels, size, kernel_size, dtype, channels_last):
    x, grad = (normal(8, channels, size, size, dtype=dtype, channels_last=channels_last) for _ in range(2))
    assert_right(x, grad, channels_last, kernel_size)


@needs_gpu
@pytest.mark.gpu
@layouts
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_the_same_bits_at_the_size_of_a_network(dtype, channels_last):
    """Where programs race for a result, bits differ from run to run."""
    x, grad = (normal(32, 64, 112, 112, dtype=dtype, channels_last=channels_last) for _ in range(2))
    tensors = parameters(64, 3, dtype)
    first = passes(grad, x, *tensors, channels_last)
    for _ in range(5):
        again = passes(grad, x, *tensors, channels_last)
        assert all(torch.equal(first[name], again[name]) for name in first)


# ---- large means -------------------------------------------------------------------------------------------


@runs_kernels
@pytest.mark.parametrize("dtype", [torch.float16, pytest.param(torch.bfloat16, marks=needs_gpu)], ids=str)
def test_half_precision_with_large_means_is_no_worse_than_composed(dtype):
    large_means.check("triton", dtype, (4, 16, 6, 8), DEVICE)
