"""The registered operators keep PyTorch's contract: schema, fake, autograd, tracing, strides."""

import pytest
import torch
from torch._subclasses import FakeTensorMode

from leni_kernels.common import extension
from leni_kernels.two_branch.reference import folding_dtype

pytestmark = pytest.mark.skipif(extension.why_missing is not None, reason=str(extension.why_missing))

LAYOUTS = {False: torch.contiguous_format, True: torch.channels_last}
SAMPLES = [
    (torch.float32, (2, 5, 6, 7), 3, False, True),
    (torch.float32, (1, 16, 1, 9), 5, True, False),
    (torch.float64, (2, 3, 4, 1), 7, False, False),
    (torch.bfloat16, (3, 17, 5, 4), 3, True, True),
    (torch.float32, (0, 4, 5, 5), 3, True, False),
]


def operator():
    return torch.ops.leni_kernels.leni_folded_cpp.default


def arguments(make_folded, dtype, shape, kernel_size, channels_last, requires_grad=False):
    x = torch.randn(shape, dtype=dtype).to(memory_format=LAYOUTS[channels_last])
    folded = make_folded(shape[1], kernel_size, folding_dtype(dtype))
    return [tensor.requires_grad_(requires_grad) for tensor in (x, *folded)]


@pytest.mark.parametrize(("dtype", "shape", "kernel_size", "channels_last", "requires_grad"), SAMPLES)
def test_opcheck(make_folded, dtype, shape, kernel_size, channels_last, requires_grad):
    torch.library.opcheck(operator(),
                          arguments(make_folded, dtype, shape, kernel_size, channels_last, requires_grad))


# ---- training ----------------------------------------------------------------------------------------------


def training_arguments(dtype, shape, kernel_size, requires_grad=False):
    """x, D and the parameters of the norms and the 1×1 convolution as their layers hold them."""
    channels = shape[1]
    sizes = [(channels, 1, kernel_size, kernel_size), (channels,), (channels,), (2 * channels,), (2 * channels,),
             (channels, 2 * channels, 1, 1), (channels,)]
    return [torch.randn(size).to(dtype).requires_grad_(requires_grad) for size in (shape, *sizes)]


@pytest.mark.parametrize("absent", [(), (2, 3, 4, 5, 7)], ids=["all", "no affine norms, no bias"])
@pytest.mark.parametrize(("dtype", "shape", "kernel_size", "channels_last", "requires_grad"), SAMPLES[:4])
def test_opcheck_of_training(dtype, shape, kernel_size, channels_last, requires_grad, absent):
    tensors = training_arguments(dtype, shape, kernel_size, requires_grad)
    tensors = [None if place in absent else tensor for place, tensor in enumerate(tensors)]
    x = tensors[0].detach().contiguous(memory_format=LAYOUTS[channels_last]).requires_grad_(requires_grad)
    statistics = torch.rand(4 * shape[1] + 1, dtype=torch.float64) + 0.5
    operators = torch.ops.leni_kernels
    torch.library.opcheck(operators.leni_batch_statistics_cpp.default, (x, tensors[1]),
                          test_utils=("test_schema", "test_faketensor"))
    operator, options = operators.leni_training_cpp.default, (1e-3, 1e-2)
    torch.library.opcheck(operator, (x, *tensors[1:], None, *options))
    torch.library.opcheck(operator, (x, *tensors[1:], statistics, *options),
                          test_utils=("test_schema", "test_faketensor"))


def test_given_statistics_have_no_gradient():
    x, *parameters = training_arguments(torch.float32, (2, 3, 4, 5), 3, requires_grad=True)
    statistics = torch.rand(13, dtype=torch.float64) + 0.5
    y, _ = torch.ops.leni_kernels.leni_training_cpp(x, *parameters, statistics, 1e-3, 1e-2)
    with pytest.raises(NotImplementedError, match="a part of one over several processes"):
        y.sum().backward()


@pytest.mark.parametrize("needs_input", [False, True])
@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize(("dtype", "shape", "kernel_size", "channels_last", "_"), SAMPLES[:4])
def test_opcheck_of_training_backward(dtype, shape, kernel_size, channels_last, _, needs_input, given):
    x, *parameters, _ = training_arguments(dtype, shape, kernel_size)
    x = x.contiguous(memory_format=LAYOUTS[channels_last])
    statistics = torch.rand(4 * shape[1] + 1, dtype=torch.float64) + 0.5
    torch.library.opcheck(
        torch.ops.leni_kernels.leni_training_backward_cpp.default,
        (torch.randn_like(x), x, *parameters, statistics, statistics[1:].clone() if given else None, 1e-3, 1e-2,
         needs_input))


@pytest.mark.parametrize(("dtype", "shape", "kernel_size", "channels_last", "_"), SAMPLES)
def test_opcheck_of_inference(dtype, shape, kernel_size, channels_last, _):
    x, deconv, gamma1, beta1, gamma2, beta2, weight, bias = training_arguments(dtype, shape, kernel_size)
    x = x.contiguous(memory_format=LAYOUTS[channels_last])
    torch.library.opcheck(
        torch.ops.leni_kernels.leni_eval_cpp.default,
        (x, deconv, gamma1, gamma1.abs(), gamma1, beta1, gamma2, gamma2.abs(), gamma2, beta2, weight, bias, 1e-3,
         1e-2))


@pytest.mark.parametrize("momentum", [0.1, None])
def test_opcheck_of_running_statistics(momentum):
    statistics, vectors = torch.rand(17, dtype=torch.float64) + 0.5, [torch.rand(4) for _ in range(4)]
    wide = [torch.rand(8) for _ in range(2)]
    batches = torch.tensor(3)
    torch.library.opcheck(torch.ops.leni_kernels.leni_running_statistics_cpp.default,
                          (statistics, *vectors, batches, momentum, *wide, batches.clone(), momentum, 1e-3),
                          test_utils=("test_schema", "test_faketensor"))
    torch.library.opcheck(torch.ops.leni_kernels.reborn_running_statistics_cpp.default,
                          (torch.rand(9, dtype=torch.float64) + 0.5, *vectors[:2], batches, momentum),
                          test_utils=("test_schema", "test_faketensor"))


@pytest.mark.parametrize("channels_last_grad", LAYOUTS)
@pytest.mark.parametrize(("dtype", "shape", "kernel_size", "channels_last", "_"), SAMPLES)
def test_opcheck_of_the_passes(make_folded, dtype, shape, kernel_size, channels_last, _, channels_last_grad):
    x, taps, weight, _ = arguments(make_folded, dtype, shape, kernel_size, channels_last)
    grad = torch.randn_like(x).contiguous(memory_format=LAYOUTS[channels_last_grad])
    constant, slope = torch.rand(2, 2 * shape[1], dtype=taps.dtype)
    ops = torch.ops.leni_kernels
    for operator, inputs in (
            (ops.leni_statistics_cpp, (x, taps)), (ops.leni_weight_gradient_cpp, (grad, x, taps)),
            (ops.leni_input_gradient_cpp, (grad, x, taps, weight, None, None)),
            (ops.leni_input_gradient_cpp, (grad, x, taps, weight, constant, slope))):
        torch.library.opcheck(operator.default, inputs)


def test_the_passes_have_no_gradients(make_folded):
    x, taps, *_ = arguments(make_folded, torch.float32, (2, 4, 5, 6), 3, False, requires_grad=True)
    mean, _ = torch.ops.leni_kernels.leni_statistics_cpp(x, taps)
    with pytest.raises(NotImplementedError, match="leni_statistics_cpp cannot be differentiated again"):
        mean.sum().backward()


# ---- results -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels_last", LAYOUTS)
@pytest.mark.parametrize("shape", [
    (2, 5, 6, 7), (0, 5, 6, 7), (1, 5, 6, 7), (2, 1, 6, 7), (2, 5, 1, 7), (2, 5, 6, 1), (2, 5, 1, 1),
    (1, 1, 1, 1), (2, 1, 1, 7), (2, 1, 6, 1)])
def test_fake_strides_are_the_real_ones(make_folded, shape, channels_last):
    tensors = arguments(make_folded, torch.float32, shape, 3, channels_last)
    real = operator()(*tensors)
    with FakeTensorMode() as mode:
        fake = operator()(*map(mode.from_tensor, tensors))
    assert fake.shape == real.shape == shape
    assert fake.stride() == real.stride()
    assert fake.dtype == real.dtype
    assert fake.device == real.device


def test_slices_have_fake_strides_too(make_folded):
    x = torch.randn(3, 8, 9, 10)[:, 1:6, ::2, 3:]
    folded = make_folded(5)
    real = operator()(x, *folded)
    with FakeTensorMode() as mode:
        fake = operator()(*map(mode.from_tensor, (x, *folded)))
    assert fake.stride() == real.stride()


@pytest.mark.parametrize("channels_last", LAYOUTS)
def test_the_result_is_new_memory(make_folded, channels_last):
    x, *rest = arguments(make_folded, torch.float32, (2, 4, 5, 6), 3, channels_last)
    before = [tensor.clone() for tensor in (x, *rest)]
    y = operator()(x, *rest)
    assert y.untyped_storage().data_ptr() != x.untyped_storage().data_ptr()
    assert all(torch.equal(tensor, saved) for tensor, saved in zip((x, *rest), before, strict=True))
