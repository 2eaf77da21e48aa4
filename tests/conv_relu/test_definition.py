"""ConvReLU is what its paper writes: the example, the identities, a loop over the formula; its modules."""

import copy
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import leni_kernels as lk

pytestmark = pytest.mark.usefixtures("each_backend")

CONVOLUTIONS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
FUNCTIONS = {1: lk.functional.conv_relu1d, 2: lk.functional.conv_relu2d, 3: lk.functional.conv_relu3d}
PLAIN_MODULES = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
MODULES = {1: lk.ConvReLU1d, 2: lk.ConvReLU2d, 3: lk.ConvReLU3d}

# The input without its batch axis, the output channels, the kernel, and the convolution's options.
CASES = {
    "1d": ((3, 9), 4, (3,), {}),
    "1d strided": ((4, 12), 6, (3,), {"stride": 2, "dilation": 2, "padding": 3, "groups": 2}),
    "1d same, even kernel": ((2, 7), 3, (4,), {"padding": "same"}),
    "2d": ((3, 6, 5), 4, (3, 3), {"padding": 1}),
    "2d valid": ((3, 6, 5), 4, (3, 3), {"padding": "valid"}),
    "2d 1x1": ((3, 6, 5), 4, (1, 1), {}),
    "2d asymmetric": ((4, 9, 8), 6, (3, 2), {"stride": (2, 1), "padding": (0, 2), "dilation": (1, 3)}),
    "2d same, even kernel": ((4, 6, 5), 6, (4, 2), {"padding": "same", "dilation": (1, 3), "groups": 2}),
    "2d depthwise": ((4, 6, 5), 8, (3, 3), {"padding": (1,), "groups": 4}),
    "2d kernel as large as the input": ((2, 3, 4), 3, (3, 4), {}),
    "2d last sites unread": ((2, 6, 6), 3, (3, 3), {"stride": 2}),
    "3d": ((2, 4, 5, 3), 3, (2, 3, 1), {"padding": (1, 0, 1), "stride": (1, 2, 1)}),
    "3d groups, same": ((4, 4, 3, 5), 2, (3, 2, 2), {"padding": "same", "groups": 2}),
}


def tensors(case, batch=(2,), dtype=torch.float64):
    """The function of a case, its tensors (x, weight, threshold, bias), and its options."""
    sample, out_channels, kernel, options = CASES[case]
    weight = torch.randn(out_channels, sample[0] // options.get("groups", 1), *kernel, dtype=dtype)
    threshold = torch.randn(sample[0], *kernel, dtype=dtype)
    x = torch.randn(*batch, *sample, dtype=dtype)
    return len(kernel), x, weight, threshold, torch.randn(out_channels, dtype=dtype), options


def test_worked_example():
    x, weight = torch.tensor([[[2.0, 3.0, 4.0]]]), torch.tensor([[[1.0, -1.0]]])
    y = lk.functional.conv_relu1d(x, weight, torch.tensor([[0.0, 3.5]]))
    assert y.tolist() == [[[-1.5, -1.0]]]


@pytest.mark.parametrize("batch", [(2,), (0,), ()], ids=["batch", "empty batch", "unbatched"])
@pytest.mark.parametrize("case", CASES)
def test_threshold_minus_infinity_is_a_convolution(case, batch):
    dimensions, x, weight, threshold, bias, options = tensors(case, batch)
    y = FUNCTIONS[dimensions](x, weight, torch.full_like(threshold, -torch.inf), bias, **options)
    truth = CONVOLUTIONS[dimensions](x, weight, bias, **options)
    torch.testing.assert_close(y, truth, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("batch", [(2,), (0,), ()], ids=["batch", "empty batch", "unbatched"])
@pytest.mark.parametrize("case", CASES)
def test_threshold_zero_is_a_convolution_of_relu(case, batch):
    dimensions, x, weight, threshold, bias, options = tensors(case, batch)
    y = FUNCTIONS[dimensions](x, weight, torch.zeros_like(threshold), bias, **options)
    truth = CONVOLUTIONS[dimensions](x.relu(), weight, bias, **options)
    torch.testing.assert_close(y, truth, rtol=1e-12, atol=1e-12)


def loop(x, weight, threshold, bias, stride, pads, dilation, groups):
    """DESIGN's formula, one multiplication at a time; a site outside x is 0."""
    batch, out_channels, per_group = x.shape[0], *weight.shape[:2]
    sizes, kernel = x.shape[2:], weight.shape[2:]
    out = [(size + sum(pad) - d * (k - 1) - 1) // s + 1
           for size, pad, d, k, s in zip(sizes, pads, dilation, kernel, stride, strict=True)]
    y = torch.empty(batch, out_channels, *out, dtype=x.dtype)
    for n, o, *site in product(range(batch), range(out_channels), *map(range, out)):
        total = bias[o].item()
        for i, *tap in product(range(per_group), *map(range, kernel)):
            channel = o // (out_channels // groups) * per_group + i
            read = [q * s + k * d - before
                    for q, s, k, d, (before, _) in zip(site, stride, tap, dilation, pads, strict=True)]
            inside = all(0 <= position < size for position, size in zip(read, sizes, strict=True))
            value = x[(n, channel, *read)].item() if inside else 0.0
            total += weight[(o, i, *tap)].item() * max(value, threshold[(channel, *tap)].item())
        y[(n, o, *site)] = total
    return y


@pytest.mark.parametrize(("shape", "weight_shape", "stride", "padding", "pads", "dilation", "groups"), [
    ((2, 4, 6), (4, 2, 3), (2,), (1,), ((1, 1),), (2,), 2),
    ((1, 2, 5), (2, 2, 2), (1,), "same", ((0, 1),), (1,), 1),
    ((2, 4, 4, 5), (2, 2, 3, 2), (2, 1), (1, 0), ((1, 1), (0, 0)), (1, 2), 2),
    ((1, 2, 3, 4), (2, 1, 2, 4), (1, 1), "same", ((0, 1), (1, 2)), (1, 1), 2),
    ((1, 2, 3, 2, 3), (2, 2, 2, 1, 2), (1, 1, 2), (1, 0, 1), ((1, 1), (0, 0), (1, 1)), (2, 1, 1), 1),
], ids=["1d", "1d same", "2d", "2d same", "3d"])
def test_is_the_formula(shape, weight_shape, stride, padding, pads, dilation, groups):
    x, weight = torch.randn(shape, dtype=torch.float64), torch.randn(weight_shape, dtype=torch.float64)
    threshold = torch.randn(shape[1], *weight_shape[2:], dtype=torch.float64)
    bias = torch.randn(weight_shape[0], dtype=torch.float64)
    y = FUNCTIONS[len(stride)](x, weight, threshold, bias, stride, padding, dilation, groups)
    truth = loop(x, weight, threshold, bias, stride, pads, dilation, groups)
    torch.testing.assert_close(y, truth, rtol=1e-12, atol=1e-12)


def test_added_site_contributes_its_threshold():
    x, weight = torch.full((1, 1, 1), -1.0), torch.tensor([[[10.0, 1.0, 100.0]]])
    y = lk.functional.conv_relu1d(x, weight, torch.tensor([[0.5, -2.0, -3.0]]), padding=1)
    assert y.item() == 10 * 0.5 - 1 + 100 * 0


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_nonfinite_values_travel_as_through_relu(bad):
    _, x, weight, threshold, bias, options = tensors("2d")
    x[0, 1, 2, 3] = bad
    y = lk.functional.conv_relu2d(x, weight, torch.zeros_like(threshold), bias, **options)
    torch.testing.assert_close(y, F.conv2d(x.relu(), weight, bias, **options), equal_nan=True)


def test_nan_reaches_exactly_the_outputs_that_read_it():
    x = torch.randn(1, 1, 7)
    x[0, 0, 3] = torch.nan
    y = lk.functional.conv_relu1d(x, torch.randn(1, 1, 3), torch.full((1, 3), 5.0), padding=1)
    assert y.isnan().tolist() == [[[False, False, True, True, True, False, False]]]


@pytest.mark.parametrize("case", ["2d", "2d asymmetric", "2d depthwise", "3d", "3d groups, same"])
def test_channels_last_is_kept(case):
    dimensions, x, weight, threshold, bias, options = tensors(case)
    channels_last = {2: torch.channels_last, 3: torch.channels_last_3d}[dimensions]
    truth = FUNCTIONS[dimensions](x, weight, threshold, bias, **options)
    y = FUNCTIONS[dimensions](x.contiguous(memory_format=channels_last), weight, threshold, bias, **options)
    assert truth.is_contiguous()
    assert y.is_contiguous(memory_format=channels_last)
    torch.testing.assert_close(y, truth, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("view", [
    lambda x: x.repeat_interleave(2, dim=3)[..., ::2],
    lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
    lambda x: torch.cat([x, x], dim=1).to(memory_format=torch.channels_last)[:, :x.shape[1]],
    lambda x: x[:1].expand(3, -1, -1, -1),
    lambda x: x[:, :1].expand(-1, x.shape[1], -1, -1),
], ids=["strided", "transposed", "channel slice", "expanded batch", "expanded channels"])
def test_layout_of_x_does_not_matter(view):
    _, x, weight, threshold, bias, options = tensors("2d asymmetric", batch=(3,))
    x = view(x)
    y = lk.functional.conv_relu2d(x, weight, threshold, bias, **options)
    truth = lk.functional.conv_relu2d(x.contiguous(), weight, threshold, bias, **options)
    torch.testing.assert_close(y, truth, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_low_precision_is_as_good_as_the_convolution(dtype):
    _, x, weight, threshold, bias, options = tensors("2d", dtype=dtype)
    threshold.zero_()
    truth = F.conv2d(x.double().relu(), weight.double(), bias.double(), **options)
    y = lk.functional.conv_relu2d(x, weight, threshold, bias, **options)
    composed_error = (F.conv2d(x.relu(), weight, bias, **options) - truth).abs().max()
    assert y.dtype == dtype
    assert (y - truth).abs().max() <= 2 * composed_error


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_autocast_runs_the_product_in_its_dtype(dtype):
    _, x, weight, threshold, bias, options = tensors("2d", dtype=torch.float32)
    x = x.to(dtype).requires_grad_()
    threshold.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        y = lk.functional.conv_relu2d(x, weight, threshold, bias, **options)
    rounded = [tensor.bfloat16() for tensor in (x, weight, threshold, bias)]
    with lk.use_backend("reference"):
        composed = lk.functional.conv_relu2d(*rounded, **options)
        truth = lk.functional.conv_relu2d(*(tensor.double() for tensor in (x, weight, threshold, bias)), **options)
    assert (y - truth).abs().max() <= 2 * (composed - truth).abs().max()
    y.sum().backward()
    assert (y.dtype, x.grad.dtype, threshold.grad.dtype) == (torch.bfloat16, dtype, torch.float32)


# ---- the modules -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dimensions", [1, 2, 3])
@pytest.mark.parametrize("padding_mode", ["zeros", "reflect", "replicate", "circular"])
@pytest.mark.parametrize("padding", ["same", 2])
def test_from_conv_is_relu_and_convolution(dimensions, padding_mode, padding):
    conv = PLAIN_MODULES[dimensions](4, 6, (3, 4, 2)[-dimensions:], padding=padding, groups=2,
                                     padding_mode=padding_mode, dtype=torch.float64)
    module = MODULES[dimensions].from_conv(conv.eval())
    assert module.weight is conv.weight
    assert module.bias is conv.bias
    assert not module.training
    x = torch.randn(2, 4, *(6, 5, 4)[-dimensions:], dtype=torch.float64)
    for batch in x, x[0], x[:0]:
        torch.testing.assert_close(module(batch), conv(batch.relu()), rtol=1e-12, atol=1e-12)


def test_padding_mode_pads_before_the_threshold():
    module = lk.ConvReLU1d(1, 1, 3, padding=1, padding_mode="circular", bias=False)
    nn.init.ones_(module.weight)
    nn.init.constant_(module.threshold, 2.5)
    y = module(torch.tensor([[[1.0, 2.0, 3.0, 4.0]]]))
    assert y.tolist() == [[[4 + 2.5 + 2.5, 2.5 + 2.5 + 3, 2.5 + 3 + 4, 3 + 4 + 2.5]]]


@pytest.mark.parametrize("dimensions", [1, 2, 3])
def test_initial_values_are_the_convolutions(dimensions):
    torch.manual_seed(1)
    conv = PLAIN_MODULES[dimensions](4, 6, 3)
    torch.manual_seed(1)
    module = MODULES[dimensions](4, 6, 3)
    assert torch.equal(module.weight, conv.weight)
    assert torch.equal(module.bias, conv.bias)
    assert torch.equal(module.threshold, torch.zeros(4, *[3] * dimensions))
    nn.init.ones_(module.threshold)
    torch.manual_seed(1)
    module.reset_parameters()
    assert torch.equal(module.weight, conv.weight)
    assert not module.threshold.any()


def test_state_dict_round_trip():
    module, other = lk.ConvReLU2d(4, 6, (3, 2), groups=2), lk.ConvReLU2d(4, 6, (3, 2), groups=2)
    nn.init.normal_(module.threshold)
    assert {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()} == {
        "weight": (6, 2, 3, 2), "bias": (6,), "threshold": (4, 3, 2)}
    other.load_state_dict(module.state_dict())
    x = torch.randn(2, 4, 5, 5)
    assert torch.equal(other(x), module(x))
    assert torch.equal(copy.deepcopy(module)(x), module(x))


def test_module_without_bias_takes_what_the_function_takes():
    module = lk.ConvReLU2d(4, 6, (3, 2), (2, 1), (0, 2), (1, 3), bias=False, dtype=torch.float64)
    nn.init.normal_(module.threshold)
    x = torch.randn(2, 4, 9, 8, dtype=torch.float64)
    truth = lk.functional.conv_relu2d(x, module.weight, module.threshold, None, (2, 1), (0, 2), (1, 3))
    assert module.bias is None
    assert torch.equal(module(x), truth)


def test_repr_is_the_convolutions():
    assert repr(lk.ConvReLU2d(4, 6, 3, padding=1, bias=False)) == (
        "ConvReLU2d(4, 6, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1), bias=False)")


def test_from_conv_refuses_what_it_would_change():
    with pytest.raises(TypeError, match="conv must be a plain Conv2d, got ConvReLU2d"):
        lk.ConvReLU2d.from_conv(lk.ConvReLU2d(2, 2, 3))
    with pytest.raises(TypeError, match="plain Conv3d, got Conv2d"):
        lk.ConvReLU3d.from_conv(nn.Conv2d(2, 2, 3))


def test_conversions_reach_the_threshold():
    module = lk.ConvReLU3d(2, 3, 2).to(memory_format=torch.channels_last_3d, dtype=torch.float64)
    assert module.weight.is_contiguous(memory_format=torch.channels_last_3d)
    assert module.threshold.dtype == torch.float64
    assert module.threshold.shape == (2, 2, 2, 2)
    x = torch.randn(1, 2, 3, 3, 3, dtype=torch.float64)
    module(x).sum().backward()
    assert module.float().threshold.grad.dtype == torch.float32
    assert lk.ConvReLU2d(2, 3, 2, device="meta").to_empty(device="cpu").threshold.device.type == "cpu"
