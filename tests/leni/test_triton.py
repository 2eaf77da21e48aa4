"""The Triton kernels compute the definition: on a GPU where there is one, else in Triton's interpreter.

``on_triton.py`` says how.
"""

from __future__ import annotations

import on_triton
import pytest
import rooms
import torch
from on_triton import DEVICE, GPU, needs_gpu, runs_kernels
from torch import Tensor

from leni_kernels.common.gpu import support
from leni_kernels.leni import ops, reference
from leni_kernels.leni.gpu import configs, forward
from leni_kernels.leni.reference import Folded
from leni_kernels.two_branch.reference import centred_bias, folding_dtype

test_in_the_interpreter = on_triton.in_the_interpreter(__file__)


# ---- material ----------------------------------------------------------------------------------------------


def parameters(channels: int, kernel_size: int, dtype: torch.dtype) -> Folded:
    dtype = folding_dtype(dtype)
    random = (torch.randn(shape, dtype=dtype, device=DEVICE) for shape in (
        (channels, kernel_size, kernel_size), (channels, 2 * channels), (channels,)))
    taps, weight, bias = random
    return Folded(taps / kernel_size, weight / channels**0.5, bias)


def feature_map(*shape: int, dtype: torch.dtype, channels_last: bool) -> Tensor:
    x = torch.randn(shape, dtype=torch.float64, device=DEVICE).to(dtype)
    return x.to(memory_format=torch.channels_last) if channels_last else x


def run(x: Tensor, folded: Folded) -> Tensor:
    return torch.ops.leni_kernels.leni_folded_triton(x, *folded[:3])


def truth(x: Tensor, folded: Folded) -> Tensor:
    return reference.leni_folded(x.double(), *(parameter.double() for parameter in folded[:3]))


def error(y: Tensor, wanted: Tensor) -> float:
    assert y.isfinite().all()
    return float((y.double() - wanted).norm() / wanted.norm())


def assert_right(x: Tensor, folded: Folded, channels_last: bool) -> None:
    y, wanted = run(x, folded), truth(x, folded)
    assert y.shape == x.shape
    assert y.dtype == x.dtype
    assert y.is_contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
    if x.dtype == torch.float64:
        assert error(y, wanted) <= 1e-12
    elif x.dtype == torch.float32:
        assert error(y, wanted) <= 1e-5
    else:
        composed = reference.leni_folded(x, *folded)
        assert error(y, wanted) <= 2 * error(composed, wanted)


layouts = pytest.mark.parametrize("channels_last", [True, False], ids=["channels_last", "nchw"])
DTYPES = [
    torch.float64,
    torch.float32,
    torch.float16,
    pytest.param(torch.bfloat16, marks=pytest.mark.skipif(
        not GPU, reason="Triton's interpreter is wrong for bfloat16; needs a GPU")),
]


# ---- the same numbers as the definition --------------------------------------------------------------------


@runs_kernels
@layouts
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("channels", "height", "width"), [(1, 1, 1), (3, 5, 7), (16, 6, 8), (20, 3, 9)])
def test_right_for_any_size(channels, height, width, dtype, channels_last):
    x = feature_map(2, channels, height, width, dtype=dtype, channels_last=channels_last)
    assert_right(x, parameters(channels, 3, dtype), channels_last)


@runs_kernels
@layouts
@pytest.mark.parametrize("kernel_size", [3, 5, 7])
def test_right_for_each_kernel_size(kernel_size, channels_last):
    x = feature_map(1, 5, 4, 8, dtype=torch.float64, channels_last=channels_last)
    assert_right(x, parameters(5, kernel_size, x.dtype), channels_last)


@runs_kernels
@layouts
@pytest.mark.parametrize(("channels", "dtype"), [
    (33, torch.float64), (33, torch.float16), (130, torch.float16)], ids=str)
def test_right_over_several_blocks_of_channels(channels, dtype, channels_last):
    """Several steps of input channels, several blocks of output channels, the last of each not full."""
    x = feature_map(1, channels, 2, 4, dtype=dtype, channels_last=channels_last)
    assert_right(x, parameters(channels, 3, dtype), channels_last)


@runs_kernels
@layouts
def test_the_tilings_of_architectures_are_right(channels_last, monkeypatch):
    """The rule gives each architecture tilings of its own: some are run on whatever runs this test."""
    chosen = configs.folded
    for architecture in ("sm_80", "sm_90"):
        rooms.replace(monkeypatch, "leni", "folded", lambda c, k, operand, _, layout, target=architecture:
                      chosen(c, k, operand, target, layout))
        for channels, kernel_size, height in ((72, 3, 3), (17, 7, 3), (200, 3, 3), (200, 3, 7), (260, 3, 3)):
            x = feature_map(1, channels, height, 8, dtype=torch.float16, channels_last=channels_last)
            assert_right(x, parameters(channels, kernel_size, x.dtype), channels_last)


@runs_kernels
@layouts
def test_half_precision_takes_any_mean(channels_last):
    """The kernel subtracts numbers of x's dtype from max(x, 0): the bias has the rest."""
    x = feature_map(2, 20, 5, 6, dtype=torch.float16, channels_last=channels_last)
    folded = parameters(20, 3, x.dtype)
    mean = 100 * torch.randn(40, device=DEVICE)
    bias = centred_bias(folded.weight.to(x.dtype), folded.bias, mean)
    less_mean = torch.ops.leni_kernels.leni_folded_triton(x, *folded[:2], bias, mean)
    composed = reference.leni_folded(x, *folded[:3], mean)
    assert error(less_mean, truth(x, folded)) <= 2 * error(composed, truth(x, folded))


@runs_kernels
@layouts
def test_many_tiles_to_a_program_and_wide_offsets(channels_last, monkeypatch):
    monkeypatch.setattr(forward, "_ENOUGH_PROGRAMS", 1)
    rooms.replace(monkeypatch, "leni", "wide", lambda x, y: True)
    x = feature_map(5, 16, 9, 24, dtype=torch.float32, channels_last=channels_last)
    assert_right(x, parameters(16, 3, x.dtype), channels_last)


@needs_gpu
@pytest.mark.gpu
@layouts
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize(("channels", "size"), [
    (16, 112), (32, 112), (64, 56), (128, 28), (256, 14), (512, 7)])
@pytest.mark.parametrize("kernel_size", [3, 7])
def test_right_at_the_sizes_of_networks(channels, size, kernel_size, dtype, channels_last):
    x = feature_map(8, channels, size, size, dtype=dtype, channels_last=channels_last)
    assert_right(x, parameters(channels, kernel_size, dtype), channels_last)


@needs_gpu
@pytest.mark.gpu
@layouts
def test_right_past_two_to_the_31_elements(channels_last):
    """The last images of a tensor of more than 2³¹ elements come out as they do alone."""
    if torch.cuda.get_device_properties(0).total_memory < 16 * 2**30:
        pytest.skip("needs 16 GiB of GPU memory")
    x = feature_map(2, 16, 64, 64, dtype=torch.float16, channels_last=channels_last)
    whole = x[:1].expand(2**15 + 2, -1, -1, -1).contiguous(
        memory_format=torch.channels_last if channels_last else torch.contiguous_format)
    whole[-2:] = x
    folded = parameters(16, 3, x.dtype)
    assert torch.equal(run(whole, folded)[-2:], run(x, folded))


# ---- x as it comes -----------------------------------------------------------------------------------------


@runs_kernels
@layouts
def test_an_empty_batch_launches_nothing(channels_last):
    x = feature_map(0, 16, 4, 4, dtype=torch.float32, channels_last=channels_last)
    assert run(x, parameters(16, 3, x.dtype)).shape == (0, 16, 4, 4)


@runs_kernels
@layouts
@pytest.mark.parametrize("part", [
    (slice(1, 3),), (slice(None), slice(2, 18)), (slice(None), slice(None), slice(1, 5)),
    (slice(None), slice(None), slice(None, None, 2)),
    (slice(None), slice(None), slice(None), slice(1, 7)),
    (slice(0, 3), slice(8, 16), slice(2, 6), slice(4, 8)),
], ids=["images", "channels", "rows", "every other row", "columns", "all four"])
def test_slices_of_a_larger_tensor_are_read_in_place(part, channels_last):
    x = feature_map(3, 24, 6, 8, dtype=torch.float32, channels_last=channels_last)[part]
    assert_right(x, parameters(x.shape[1], 3, x.dtype), channels_last)


@runs_kernels
@layouts
@pytest.mark.parametrize("channels", [20, 200], ids=["all at once", "in blocks"])
@pytest.mark.parametrize("height", [5, 8], ids=["tiles reach over the image", "tiles end with it"])
def test_what_is_around_images_is_not_read(height, channels, channels_last):
    around = feature_map(3, channels, height + 2, 12, dtype=torch.float16, channels_last=channels_last)
    x = around[1:2, :, 1:-1, 2:-2]
    inside = x.clone(memory_format=torch.preserve_format)
    around.fill_(float("nan"))
    x.copy_(inside)
    assert_right(x, parameters(channels, 3, x.dtype), channels_last)


@runs_kernels
@layouts
def test_an_expanded_batch_is_read_in_place(channels_last):
    x = feature_map(1, 16, 5, 8, dtype=torch.float32, channels_last=channels_last).expand(3, -1, -1, -1)
    assert_right(x, parameters(16, 3, x.dtype), channels_last)


@runs_kernels
def test_expanded_rows_are_read_in_place():
    x = torch.randn(2, 8, 1, 8, device=DEVICE).expand(-1, -1, 5, -1)
    assert_right(x, parameters(8, 3, x.dtype), channels_last=False)


@runs_kernels
@layouts
def test_parameters_may_have_any_strides(channels_last):
    x = feature_map(1, 16, 3, 8, dtype=torch.float32, channels_last=channels_last)
    taps, weight, bias, _ = parameters(16, 3, x.dtype)
    folded = Folded(taps.permute(0, 2, 1), weight.t().contiguous().t(), bias[:1].expand(16))
    assert_right(x, folded, channels_last)


@runs_kernels
@layouts
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_nan_and_infinity_travel_as_in_the_reference(value, dtype, channels_last):
    x = feature_map(1, 16, 5, 8, dtype=dtype, channels_last=channels_last)
    x[0, 3, 2, 5] = value
    folded = parameters(16, 3, dtype)
    y, wanted = run(x, folded), truth(x, folded)
    assert torch.equal(y.isnan(), wanted.isnan())
    assert torch.equal(y.isposinf(), wanted.isposinf())
    assert torch.equal(y.isneginf(), wanted.isneginf())
    if value != value:
        assert y.isnan().any()


@runs_kernels
@layouts
def test_zeros_give_exactly_the_bias(channels_last):
    x = feature_map(1, 16, 3, 8, dtype=torch.float32, channels_last=channels_last).zero_()
    folded = parameters(16, 3, x.dtype)
    assert torch.equal(run(x, folded), folded.bias[:, None, None].expand(16, 3, 8)[None])
    assert torch.equal(run(-x, folded), run(x, folded))


# ---- as an operator ----------------------------------------------------------------------------------------


@runs_kernels
@layouts
def test_gradients(channels_last):
    x = feature_map(2, 3, 3, 4, dtype=torch.float64, channels_last=channels_last)
    x = x.sign() * (x.abs() + 0.1)
    inputs = [tensor.detach().requires_grad_() for tensor in (x, *parameters(3, 3, x.dtype)[:3])]
    assert torch.autograd.gradcheck(lambda x, *folded: run(x, Folded(*folded)), inputs,
                                    fast_mode=True)


@runs_kernels
@layouts
@pytest.mark.parametrize("channels", [1, 4])
def test_opcheck(channels, channels_last):
    x = feature_map(2, channels, 3, 4, dtype=torch.float32, channels_last=channels_last).requires_grad_()
    torch.library.opcheck(torch.ops.leni_kernels.leni_folded_triton.default,
                          (x, *parameters(channels, 3, x.dtype)[:3]))


@pytest.mark.skipif(support.interpreting, reason="the interpreter's operator is opaque to tracing")
@layouts
def test_the_launch_can_be_traced_without_a_gpu(channels_last):
    """As torch.compile does: fake tensors on a GPU that need not exist give a graph with the kernel in it."""
    from torch._subclasses import FakeTensorMode
    from torch.fx.experimental.proxy_tensor import make_fx

    with FakeTensorMode():
        x = torch.empty(2, 16, 5, 8, device="cuda", dtype=torch.float16)
        x = x.to(memory_format=torch.channels_last) if channels_last else x
        shapes = ((16, 3, 3), (16, 32), (16,))
        folded = [torch.empty(shape, device="cuda") for shape in shapes]
        graph = make_fx(lambda x, *folded: forward.leni_folded(x, *folded))(x, *folded)
    assert "triton_kernel_wrapper" in graph.code


@needs_gpu
@pytest.mark.gpu
@layouts
def test_torch_compile(channels_last):
    x = feature_map(4, 32, 14, 14, dtype=torch.float16, channels_last=channels_last)
    folded = parameters(32, 3, x.dtype)
    compiled = torch.compile(ops.leni_folded, fullgraph=True)
    torch.testing.assert_close(compiled(x, *folded), ops.leni_folded(x, *folded))


@needs_gpu
@pytest.mark.gpu
def test_float32_follows_the_setting_of_convolutions():
    x = feature_map(2, 64, 16, 16, dtype=torch.float32, channels_last=True)
    folded = parameters(64, 3, x.dtype)
    exact = error(run(x, folded), truth(x, folded))
    with torch.backends.cudnn.flags(allow_tf32=True):
        rounded = error(run(x, folded), truth(x, folded))
    assert exact <= 1e-6
    assert rounded <= 2e-3
