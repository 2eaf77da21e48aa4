"""Every operator takes parameters of any strides, and activations in which a dimension of size 1 has any stride."""

import mmap
import time
from functools import partial

import pytest
import torch

import leni_kernels as lk
from leni_kernels import functional
from leni_kernels.common import extension
from leni_kernels.common.norm import Norm
from leni_kernels.reborn.ops import reborn_folded

pytestmark = pytest.mark.skipif(extension.why_missing is not None, reason=str(extension.why_missing))

C = 4


def norm(channels, training=False):
    return Norm(torch.zeros(channels).double(), torch.ones(channels).double(), training=training)


def leni(training, x, deconv, compress, bias):
    return functional.leni(x, deconv, norm(C, training), norm(2 * C, training), compress, bias)


def reborn(training, groups, x, deconv, compress, bias):
    return functional.reborn(x, deconv, norm(C, training), compress, bias, groups)


OPERATORS = {
    "leni, training": (partial(leni, True), (C, 1, 3, 3), (C, 2 * C, 1, 1), (C,)),
    "leni, eval": (partial(leni, False), (C, 1, 5, 5), (C, 2 * C, 1, 1), (C,)),
    "leni, folded": (functional.leni_folded, (C, 3, 3), (C, 2 * C), (C,)),
    "reborn, training": (partial(reborn, True, 1), (C, C, 3, 3), (C, 2 * C, 1, 1), (C,)),
    "reborn, eval": (partial(reborn, False, 2), (C, C // 2, 3, 3), (C, 2 * C, 1, 1), (C,)),
    "reborn, folded": (reborn_folded, (C, C, 3, 3), (C, 2 * C), (C,)),
    "conv_relu": (partial(functional.conv_relu2d, padding=1), (5, C, 3, 3), (C, 3, 3), (5,)),
    "conv_relu, 1×1": (functional.conv_relu2d, (5, C, 1, 1), (C, 1, 1), (5,)),
    "conv_relu, groups": (partial(functional.conv_relu2d, groups=2), (6, C // 2, 3, 3), (C, 3, 3), (6,)),
    "conv_relu, depthwise": (partial(functional.conv_relu2d, groups=C, padding=1), (C, 1, 3, 3), (C, 3, 3), (C,)),
    "conv_relu, one output": (partial(functional.conv_relu2d, stride=2, padding=1), (1, C, 3, 3), (C, 3, 3), (1,)),
    "ada_relu": (functional.ada_relu, (C,)),
    "ada_relu, elements": (functional.ada_relu, (C, 6, 7)),
    "fully_parametric_relu": (functional.fully_parametric_relu, (C,), (C,)),
}
operators = pytest.mark.parametrize("name", OPERATORS)
layouts = pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["nchw", "last"])


def expanded(dimension, tensor):
    """One value along a dimension, of stride 0."""
    return tensor.narrow(dimension, 0, 1).expand_as(tensor)


def reversed_in_memory(tensor):
    order = list(reversed(range(tensor.dim())))
    return tensor.permute(order).contiguous().permute(order)


def every_third(tensor):
    larger = tensor.new_empty(*tensor.shape[:-1], 3 * tensor.shape[-1])
    larger[..., ::3] = tensor
    return larger[..., ::3]


def ones_of_stride(stride, tensor):
    """The tensor with another stride in its dimensions of size 1."""
    strides = [stride if size == 1 else step for size, step in zip(tensor.shape, tensor.stride(), strict=True)]
    return tensor.as_strided(tensor.shape, strides)


LAYINGS = {
    "reversed": reversed_in_memory, "every third": every_third, "expanded, last": partial(expanded, -1),
    **{f"expanded, {dimension}": partial(expanded, dimension) for dimension in (0, 1)},
    **{f"ones of stride {stride}": partial(ones_of_stride, stride) for stride in (0, 3, 2**62)},
}


def step(function, x, parameters, grad):
    inputs = [tensor.detach().requires_grad_() for tensor in (x, *parameters)]
    with lk.use_backend("cpp"):
        y = function(*inputs)
    return y.detach(), *torch.autograd.grad(y, inputs, grad[:, :y.shape[1], :y.shape[2], :y.shape[3]])


def forward(function, x, parameters):
    with torch.no_grad(), lk.use_backend("cpp"):
        return function(x, *parameters)


@operators
@layouts
@pytest.mark.parametrize("lay", LAYINGS.values(), ids=LAYINGS)
def test_parameters_may_have_any_strides(name, layout, lay):
    function, *shapes = OPERATORS[name]
    x, grad = (torch.randn(3, C + 2, 6, 7).double() for _ in range(2))
    x = x[:, :C].contiguous(memory_format=layout)
    for changed in range(len(shapes)):
        parameters = [torch.randn(shape).double() for shape in shapes]
        if parameters[changed].dim() == 1 and lay is LAYINGS["expanded, 1"]:
            continue
        parameters[changed] = lay(parameters[changed])
        dense = [parameter.clone(memory_format=torch.contiguous_format) for parameter in parameters]
        if name != "reborn, folded":  # which becomes a convolution only where no gradient is asked for
            for got, wanted in zip(step(function, x, parameters, grad), step(function, x, dense, grad), strict=True):
                torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(forward(function, x, parameters), forward(function, x, dense), rtol=1e-12,
                                   atol=1e-12)


ONES = {"one image": (1, C, 6, 7), "one row": (2, C, 1, 7), "one column": (2, C, 6, 1), "one pixel": (2, C, 1, 1),
        "one of each": (1, C, 1, 1)}


@pytest.mark.parametrize("name", [name for name, (_, *shapes) in OPERATORS.items()
                                  if name not in ("ada_relu, elements", "conv_relu, groups")])
@layouts
@pytest.mark.parametrize("shape", ONES.values(), ids=ONES)
def test_a_dimension_of_size_1_may_have_any_stride(name, layout, shape):
    function, *shapes = OPERATORS[name]
    if ("training" in name and shape == (1, C, 1, 1)) or (name == "reborn, folded" and shape[2:] == (1, 1)):
        pytest.skip("what no kernel computes: the statistics of one value, and a dense weight for few sites")
    parameters = [torch.randn(size).double() for size in shapes]
    x, grad = torch.randn(shape).double().contiguous(memory_format=layout), torch.randn(2, 5, 6, 7).double()
    wanted = forward(function, x, parameters)
    takes = [partial(ones_of_stride, stride) for stride in (0, 1, 3, 5, 2**62)]
    if shape[3] == 1:
        takes.append(every_third)  # with the same step from row to row as from column to column
    for take in takes:
        laid = take(x)
        assert torch.equal(laid, x)
        torch.testing.assert_close(forward(function, laid, parameters), wanted, rtol=1e-12, atol=1e-12)
        if name == "reborn, folded":
            continue
        gradient = grad[:shape[0], :wanted.shape[1], :wanted.shape[2], :wanted.shape[3]].contiguous()
        for got, exact in zip(step(function, laid, parameters, take(gradient)), step(function, x, parameters, gradient),
                              strict=True):
            torch.testing.assert_close(got, exact, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("name", ["leni, training", "leni, folded", "reborn, training", "reborn, folded", "conv_relu"])
@layouts
@pytest.mark.parametrize("dimensions", [(0,), (1,), (2,), (3,), (2, 3), (0, 1)], ids=str)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_reads_what_is_expanded(name, layout, dimensions, dtype):
    """Where the cast would otherwise choose a layout, as for strides of 0 it does, it may not be x's."""
    function, *shapes = OPERATORS[name]
    parameters = [torch.randn(size) for size in shapes]
    x = torch.randn([1 if d in dimensions else size for d, size in enumerate((2, C, 3, 4))])
    x = x.contiguous(memory_format=layout).expand(2, C, 3, 4)
    if x.stride(1) != 1 and x.stride(3) != 1:
        pytest.skip("the kernels do not serve it")
    with torch.autocast("cpu", dtype):
        y, wanted = forward(function, x, parameters), forward(function, x.contiguous(), parameters)
    # Layouts may be summed in different orders: a float32 sum near a tie may be rounded to the other neighbour. To that
    # of bfloat16 it is in ConvReLU alone.
    unit = torch.finfo(dtype).eps if name == "conv_relu" or dtype == torch.float16 else 0
    torch.testing.assert_close(y, wanted, rtol=unit, atol=1e-5 if dtype == torch.float16 else 0)


def test_columns_that_are_far_apart_take_no_longer():
    """What is between them is not fetched."""
    channels, stride = 8, 2**30
    pages = mmap.mmap(-1, 2 * (2 * stride + channels), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)  # on no memory yet
    x = torch.frombuffer(pages, dtype=torch.bfloat16).as_strided((4, channels, 1, 3), (0, 1, 0, stride))
    x[0].normal_()
    parameters = [torch.randn(size) for size in ((channels, 3, 3), (channels, 2 * channels), (channels,))]
    before = time.perf_counter()
    y = forward(functional.leni_folded, x, parameters)
    assert time.perf_counter() - before < 3
    assert torch.equal(y, forward(functional.leni_folded, x.clone(memory_format=torch.channels_last), parameters))
