"""An exported or traced model takes NCHW and channels-last, whichever its example had, and gives back the same."""

import copy
import io
import re

import pytest
import torch
from exports import BLOCKS, C, assert_same, blocks, examples, exported, images

import leni_kernels as lk
from leni_kernels.common import extension
from leni_kernels.common.layout import is_channels_last

pytestmark = pytest.mark.skipif(extension.why_missing is not None, reason=str(extension.why_missing))


@examples
@pytest.mark.parametrize(("strict", "dtype"), [(False, torch.bfloat16), (True, torch.float32)], ids=["bf16", "strict"])
@blocks
def test_exported(name, strict, dtype, channels_last):
    block = BLOCKS[name]().to(dtype)
    program = exported(copy.deepcopy(block), images(channels_last, 2, C, 4, 6, dtype=dtype), strict)
    assert_same(program.module(), block, 3, C, 5, 7, dtype=dtype)


@examples
@pytest.mark.parametrize(("block", "shape"), [
    (lambda: lk.LENI1d(C), (3, C, 9)), (lambda: lk.ConvReLU1d(C, 4, 3), (3, C, 9)),
    (lambda: lk.ConvReLU3d(C, 4, 3, padding=1), (3, C, 3, 4, 5))], ids=["leni1d", "conv_relu1d", "conv_relu3d"])
def test_exported_in_other_dimensions(block, shape, channels_last):
    block = block()
    program = exported(copy.deepcopy(block), images(channels_last, 2, C, *(size + 1 for size in shape[2:])))
    assert_same(program.module(), block, *shape)


@examples
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@blocks
@pytest.mark.filterwarnings("ignore:`torch.jit.trace:FutureWarning", "ignore::torch.jit.TracerWarning")
def test_traced(name, dtype, channels_last):
    block = BLOCKS[name]().to(dtype)
    with torch.no_grad():
        traced = torch.jit.trace(copy.deepcopy(block), images(channels_last, 2, C, 4, 6, dtype=dtype),
                                 check_trace=False)
        assert_same(traced, block, 3, C, 5, 7, dtype=dtype)


@examples
@pytest.mark.parametrize("name", ["leni", "conv_relu"])
def test_exported_under_autocast(name, channels_last):
    block = BLOCKS[name]()
    with torch.autocast("cpu", torch.bfloat16):
        program = exported(copy.deepcopy(block), images(channels_last, 2, C, 4, 6))
        assert_same(program.module(), block, 3, C, 5, 7)


def saved_and_loaded(program):
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    buffer.seek(0)
    return torch.export.load(buffer)


@examples
@pytest.mark.parametrize("name", ["leni", "reborn"])
def test_exported_in_training_mode_saved_and_loaded(name, channels_last):
    block = BLOCKS[name]()
    program = saved_and_loaded(exported(copy.deepcopy(block), images(channels_last, 2, C, 4, 6)))
    module = program.module()
    assert_same(module, block, 3, C, 5, 7)
    state = dict(module.named_buffers())
    assert state.keys() == dict(block.named_buffers()).keys()
    for buffer, wanted in block.named_buffers():
        assert torch.equal(state[buffer], wanted), buffer
    assert block.bn_negative.num_batches_tracked == 2


# ---- what the operators read ---------------------------------------------------------------------------------

VIEWS = {
    "neither": (None, lambda x: x[..., ::2]),
    "every other channel": (False, lambda x: x[:, ::2]),
    "every other column of channels-last": (True, lambda x: images(True, *x.shape)[..., ::2]),
    "one column": (False, lambda x: x[..., ::9]),
    "one column of channels-last": (True, lambda x: images(True, *x.shape)[..., ::9]),
    "one channel": (True, lambda x: x[:, :1, :, ::2]),
    "one channel and column": (False, lambda x: x[:, :1, ..., ::9]),
}


@pytest.mark.parametrize(("channels_last", "view"), VIEWS.values(), ids=VIEWS)
def test_the_layout_of_a_view(channels_last, view):
    x = view(torch.randn(4, C, 5, 8))
    assert is_channels_last(x) is channels_last
    operators, (channels,) = torch.ops.leni_kernels, x.shape[1:2]
    weight, deconv = torch.randn(channels, 2 * channels), torch.randn(channels, channels, 3, 3)
    vector = torch.rand(channels)
    taps, grid = deconv[:, 0].contiguous(), ([1, 1], [1, 1, 1, 1], [1, 1], 1)
    compress, features, statistics = weight[:, :, None, None], vector.repeat(2), torch.rand(4 * channels + 1).double()
    norms, eps, of_z = (vector, vector, features, features), (1e-3, 1e-2), statistics[:2 * channels + 1]
    z, grad = torch.empty_like(x, memory_format=torch.contiguous_format), torch.randn(x.shape)
    if channels_last:
        z = z.to(memory_format=torch.channels_last)
    calls = {
        "leni_folded": (x, taps, weight, vector), "leni_statistics": (x, taps),
        "leni_weight_gradient": (grad, x, taps), "leni_input_gradient": (grad, x, taps, weight, None, None),
        "leni_batch_statistics": (x, taps[:, None]),
        "leni_training": (x, taps[:, None], *norms, compress, vector, None, *eps),
        "leni_eval": (x, taps[:, None], *[vector] * 4, *[features] * 4, compress, vector, *eps),
        "leni_training_backward": (grad, x, taps[:, None], *norms, compress, statistics, None, *eps, True),
        "reborn_deconvolve": (x, deconv), "reborn_deconv_gradient": (grad, z, x, deconv, weight, True, True),
        "reborn_tail": (x, z, weight, vector), "reborn_statistics": (x,),
        "reborn_weight_gradient": (grad, x, z, features),
        "reborn_negative_gradient": (grad, x, weight, vector, vector), "reborn_input_gradient": (grad, x, z, weight),
        "reborn_batch_statistics": (x, deconv, 1),
        "reborn_training": (x, deconv, vector, vector, compress, vector, None, None, None, 1e-3, 1),
        "reborn_eval": (x, deconv, vector, vector, compress, vector, vector, vector, 1e-3, 1),
        "reborn_training_backward": (grad, x, deconv, vector, vector, compress, z, of_z, None, 1e-3, 1, *[True] * 4),
        "conv_relu": (x, deconv, taps, vector, *grid),
        "conv_relu_backward": (grad, x, deconv, taps, *grid, *[True] * 4),
        "conv_relu_taps": (x, deconv.flatten(2), taps.flatten(1), vector, [0] * 18, [0] * 9),
    }
    for name, arguments in calls.items():
        operator = getattr(operators, f"{name}_cpp")
        if channels_last is None:
            message = (rf"{name}_cpp: ([xz]) must have stride 1 along channels or columns, as \1.contiguous\(\) has; "
                       rf"its strides are {re.escape(str(list(x.stride())))}")
            with pytest.raises(RuntimeError, match=message):
                operator(*arguments)
        else:  # its results have the strides that its fake says
            torch.library.opcheck(operator.default, arguments, test_utils=("test_schema", "test_faketensor"))


def test_an_exported_model_refuses_what_it_would_have_to_copy():
    program = exported(lk.fold(lk.LENI2d(C).eval()), images(False, 2, C, 4, 6)).module()
    with pytest.raises(RuntimeError, match="leni_folded_cpp: x must have stride 1 along channels or columns"):
        program(torch.randn(2, C, 4, 12)[..., ::2])
