"""What does not fit is refused, in words that name what came and what was wanted; nothing crashes."""

import re

import numpy as np
import pytest
import torch

import leni_kernels as lk
from leni_kernels import functional
from leni_kernels.common import extension
from leni_kernels.common.norm import Norm

C = 4


def norm(channels):
    return Norm(torch.zeros(channels), torch.ones(channels), torch.ones(channels), torch.zeros(channels))


LENI = {"deconv_weight": torch.randn(C, 1, 3, 3), "negative_norm": norm(C), "fusion_norm": norm(2 * C),
        "compress_weight": torch.randn(C, 2 * C, 1, 1), "compress_bias": torch.randn(C)}
REBORN = {"deconv_weight": torch.randn(C, C, 3, 3), "negative_norm": norm(C),
          "compress_weight": torch.randn(C, 2 * C, 1, 1), "compress_bias": torch.randn(C)}
LENI_FOLDED = {"taps": torch.randn(C, 3, 3), "weight": torch.randn(C, 2 * C), "bias": torch.randn(C)}
REBORN_FOLDED = {**LENI_FOLDED, "taps": torch.randn(C, C, 3, 3)}
FUNCTIONS = {
    "leni": (functional.leni, LENI),
    "reborn": (functional.reborn, REBORN),
    "leni_folded": (functional.leni_folded, LENI_FOLDED),
    "reborn_folded": (lk.reborn.ops.reborn_folded, REBORN_FOLDED),
}
every_function = pytest.mark.parametrize("name", FUNCTIONS)


def call(name, x=None, **changes):
    function, arguments = FUNCTIONS[name]
    return function(torch.randn(2, C, 5, 6) if x is None else x, **{**arguments, **changes})


# ---- x -----------------------------------------------------------------------------------------------------


@every_function
@pytest.mark.parametrize("shape", [(C,), (C, 5), (C, 5, 6), (2, C, 3, 5, 6)])
def test_wrong_rank(name, shape):
    with pytest.raises(ValueError, match=re.escape(f"{name}: x must be [N, C, H, W], got shape {shape}")):
        call(name, torch.randn(shape))


@every_function
def test_wrong_channel_count(name):
    with pytest.raises(ValueError, match=rf"{name}: x must have shape \[N, 4, H, W\], got \(2, 5, 6, 7\)"):
        call(name, torch.randn(2, 5, 6, 7))


@every_function
@pytest.mark.parametrize("shape", [(2, C, 0, 6), (2, C, 5, 0), (0, C, 0, 6), (2, 0, 5, 6)])
def test_nothing_to_read(name, shape):
    wanted = f"{name}: x must have at least one channel, row and column, got shape {shape}"
    with pytest.raises(ValueError, match=re.escape(wanted)):
        call(name, torch.randn(shape))


@every_function
@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.bool, torch.complex64])
def test_not_floating(name, dtype):
    with pytest.raises(TypeError, match=rf"{name}: x must be floating-point, got {dtype}"):
        call(name, torch.ones(2, C, 5, 6).to(dtype))


@every_function
def test_an_empty_batch_is_not_an_error(name):
    assert call(name, torch.randn(0, C, 5, 6)).shape == (0, C, 5, 6)


# ---- the parameters ----------------------------------------------------------------------------------------


@every_function
@pytest.mark.parametrize("kernel", [(2, 2), (4, 4), (3, 5), (0, 0)])
def test_not_an_odd_square_kernel(name, kernel):
    what = "taps" if "folded" in name else "deconv_weight"
    weight = FUNCTIONS[name][1][what]
    wanted = f"{name}: {what} must have an odd square kernel, got {kernel[0]}x{kernel[1]}"
    with pytest.raises(ValueError, match=wanted):
        call(name, **{what: torch.randn(*weight.shape[:-2], *kernel)})


def wrong_shapes():
    for name, (_, arguments) in FUNCTIONS.items():
        for what, value in arguments.items():
            if isinstance(value, Norm):
                yield name, what, norm(len(value.weight) + 1)
                yield name, what, value._replace(bias=torch.zeros(1, len(value.weight)))
            else:
                yield name, what, torch.randn(value.shape[0] + 1, *value.shape[1:])
                yield name, what, torch.randn(1, *value.shape)
                yield name, what, torch.randn(())


@pytest.mark.parametrize(("name", "what", "wrong"), list(wrong_shapes()))
def test_wrong_shapes(name, what, wrong):
    with pytest.raises(ValueError, match=rf"{name}: {what}(\.\w+)? must have shape \[.*\], got \("):
        call(name, **{what: wrong})


@pytest.mark.parametrize("name", ["reborn", "reborn_folded"])
@pytest.mark.parametrize("groups", [0, -1, 3, 8])
def test_groups_that_do_not_divide(name, groups):
    with pytest.raises(ValueError, match=f"{name}: groups must divide the {C} channels, got {groups}"):
        call(name, groups=groups)


# ---- dtypes and devices that do not go together ------------------------------------------------------------


@pytest.mark.parametrize("name", ["leni", "reborn"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_dtype_mix(name, dtype):
    message = rf"{name}: all tensors must have the same dtype, got x {dtype}, deconv_weight torch.float32"
    with pytest.raises(TypeError, match=message):
        call(name, torch.randn(2, C, 5, 6, dtype=dtype))


@pytest.mark.parametrize("name", ["leni_folded", "reborn_folded"])
@pytest.mark.parametrize(("x_dtype", "dtype"), [
    (torch.float32, torch.float64), (torch.float64, torch.float32), (torch.float32, torch.bfloat16),
    (torch.bfloat16, torch.float64), (torch.float32, torch.int64)])
def test_dtype_mix_of_folded_forms(name, x_dtype, dtype):
    with pytest.raises(TypeError, match=rf"{name}: weight must have dtype .* to fit x, got {dtype}"):
        call(name, torch.randn(2, C, 5, 6).to(x_dtype), weight=torch.ones(C, 2 * C).to(dtype),
             taps=FUNCTIONS[name][1]["taps"].to(x_dtype))


@pytest.mark.parametrize("name", ["leni", "reborn"])
def test_autocast_does_not_hide_a_dtype_mix(name):
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(TypeError, match=f"{name}: all tensors must"):
        call(name, torch.randn(2, C, 5, 6, dtype=torch.float64))


@every_function
def test_device_mix(name):
    with pytest.raises(ValueError, match=rf"{name}: all tensors must have the same device, got x meta, "):
        call(name, torch.empty(2, C, 5, 6, device="meta"))


def test_device_mix_of_norms():
    away = Norm(*(tensor.to("meta") for tensor in LENI["fusion_norm"][:4]))
    with pytest.raises((ValueError, RuntimeError), match="device"):
        call("leni", fusion_norm=away)


@pytest.mark.parametrize(("weight", "error", "message"), [
    (torch.ones(C, C), ValueError, r"pointwise_weight must have shape \[4, 4, 1, 1\], got \(4, 4\)"),
    (torch.ones(C, C, 3, 3), ValueError, r"pointwise_weight must have shape \[4, 4, 1, 1\], got \(4, 4, 3, 3\)"),
    (torch.ones(C, C, 1, 1).double(), TypeError, "same dtype, got x torch.float32, pointwise_weight torch.float64"),
    (torch.ones(C, C, 1, 1, device="meta"), ValueError, "same device, got x cpu, pointwise_weight meta"),
], ids=["rank", "size", "dtype", "device"])
def test_pointwise_weights_that_do_not_fit(weight, error, message):
    with pytest.raises(error, match=f"leni: .*{message}"):
        call("leni", pointwise_weight=weight)


# ---- modules -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("module", [lk.LENI2d, lk.Reborn2d])
@pytest.mark.parametrize("kernel_size", [0, 2, 4, -1])
def test_modules_refuse_even_kernels(module, kernel_size):
    with pytest.raises(ValueError, match=f"{module.__name__}: kernel_size must be odd, got {kernel_size}"):
        module(C, kernel_size)


def test_modules_refuse_groups_that_do_not_divide():
    with pytest.raises(ValueError, match="divisible by groups"):
        lk.Reborn2d(C, groups=3)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("module", [lk.LENI2d, lk.Reborn2d])
def test_modules_check_as_functions_do(module, training):
    block = module(C).train(training)
    with pytest.raises(ValueError, match=r"x must be \[N, C, H, W\], got shape \(4, 5, 6\)"):
        block(torch.randn(C, 5, 6))
    with pytest.raises(ValueError, match=r"x must have shape \[N, 4, H, W\], got \(2, 7, 5, 6\)"):
        block(torch.randn(2, 7, 5, 6))
    with pytest.raises(TypeError, match=r"same dtype, got x torch\.float64, deconv_weight torch\.float32"):
        block(torch.randn(2, C, 5, 6, dtype=torch.float64))


@pytest.mark.parametrize("make", [
    lk.LENI1d, lk.LENI2d, lk.LENI3d, lk.Reborn1d, lk.Reborn2d, lk.Reborn3d,
    lambda channels: lk.Reborn2d(channels, groups=2), lambda channels: lk.Reborn2d(channels, compress=False),
    lambda channels: lk.fold(lk.LENI2d(channels).eval()),
    lambda channels: lk.fold(lk.Reborn2d(channels).eval()),
    lambda channels: lk.fold(lk.Reborn2d(channels, compress=False).eval())])
@pytest.mark.parametrize("channels", [3, 5, 8])
def test_of_other_channels_x_is_to_blame(make, channels):
    block = make(C)
    dims = getattr(block, "dims", 2)
    spatial = {1: "L", 2: "H, W", 3: "D, H, W"}[dims]
    with pytest.raises(ValueError, match=rf"x must have shape \[N, 4, {spatial}\], got \(2, {channels}, "):
        block(torch.randn(2, channels, 5, 6, 7)[(..., *[0] * (3 - dims))])


def test_of_other_channels_x_is_to_blame_where_layers_run_one_by_one():
    block = lk.LENI2d(C)
    block.bn_negative = torch.nn.Identity()
    with pytest.raises(ValueError, match=r"LENI2d: x must have shape \[N, 4, H, W\], got \(2, 5, 6, 7\)"):
        block(torch.randn(2, 5, 6, 7))


INTEGER = np.int64


@pytest.mark.parametrize("make", [
    lambda: lk.LENI2d(INTEGER(4), kernel_size=INTEGER(5)),
    lambda: lk.Reborn2d(INTEGER(4), INTEGER(3), groups=INTEGER(2), compress_kernel_size=INTEGER(1)),
    lambda: lk.Reborn2d(INTEGER(4), groups=INTEGER(4), compress_kernel_size=INTEGER(3)),
    lambda: lk.fold(lk.Reborn2d(INTEGER(4), groups=INTEGER(2)).eval())])
@pytest.mark.parametrize("backend", [None, "reference"])
def test_integers_of_numpy_are_integers(make, backend):
    block = make()
    assert all(type(value) is int for value in vars(block).values() if isinstance(value, (int, np.integer))
               and not isinstance(value, bool))
    with lk.use_backend(backend):
        assert block(torch.randn(2, 4, 5, 6)).shape == (2, 4, 5, 6)


@pytest.mark.parametrize("groups", [INTEGER(2), np.int32(2)])
def test_groups_of_numpy_in_functions(groups):
    x, weight = torch.randn(2, C, 5, 6), torch.randn(C, C // 2, 3, 3)
    for name, what in (("reborn", "deconv_weight"), ("reborn_folded", "taps")):
        y = call(name, x, **{what: weight}, groups=groups)
        torch.testing.assert_close(y, call(name, x, **{what: weight}, groups=2))


@pytest.mark.parametrize(("arguments", "what"), [
    ((True,), "channels"), ((4.0,), "channels"), ((4, 3.0), "kernel_size"), ((4, True), "kernel_size"),
    (("4",), "channels"), ((None,), "channels")])
@pytest.mark.parametrize("module", [lk.LENI2d, lk.Reborn2d])
def test_what_is_no_integer_is_refused(module, arguments, what):
    with pytest.raises(TypeError, match=f"{module.__name__}: {what} must be an integer, got {arguments[-1]!r}"):
        module(*arguments)


@pytest.mark.parametrize("groups", [True, 2.0, None])
def test_groups_that_are_no_integer_are_refused(groups):
    with pytest.raises(TypeError, match=f"groups must be an integer, got {groups}"):
        lk.Reborn2d(4, groups=groups)
    for name in ("reborn", "reborn_folded"):
        with pytest.raises(TypeError, match=f"{name}: groups must be an integer, got {groups}"):
            call(name, groups=groups)


@pytest.mark.parametrize("module", [lk.LENI2d, lk.Reborn2d])
def test_one_value_per_channel_in_training_is_batch_norms_error(module):
    with pytest.raises(ValueError, match="Expected more than 1 value per channel when training"):
        module(C)(torch.randn(1, C, 1, 1))


# ---- the operator itself, called past the checks -----------------------------------------------------------


def direct_calls():
    x, (taps, weight, bias) = torch.randn(2, C, 5, 6), LENI_FOLDED.values()
    good = {"x": x, "taps": taps, "weight": weight, "bias": bias}
    wrong = {
        "rank 3": {"x": x[0]},
        "rank 5": {"x": x[None]},
        "more channels than parameters": {"x": torch.randn(2, C + 1, 5, 6)},
        "fewer channels than parameters": {"x": torch.randn(2, C - 1, 5, 6)},
        "int x": {"x": x.long()},
        "float8 x": {"x": x.to(torch.float8_e5m2)},
        "complex x": {"x": x.to(torch.complex64)},
        "float64 x, float32 parameters": {"x": x.double()},
        "float64 taps": {"taps": taps.double()},
        "bfloat16 weight": {"weight": weight.bfloat16()},
        "integer bias": {"bias": bias.long()},
        "taps with a channel axis": {"taps": taps[:, None]},
        "even taps": {"taps": torch.randn(C, 4, 4)},
        "taps of size 1": {"taps": torch.randn(C, 1, 1)},
        "taps of size 9": {"taps": torch.randn(C, 9, 9)},
        "oblong taps": {"taps": torch.randn(C, 3, 5)},
        "weight of one branch": {"weight": weight[:, :C]},
        "flat weight": {"weight": weight.flatten()},
        "weight of a convolution": {"weight": weight[:, :, None, None]},
        "short bias": {"bias": bias[1:]},
        "bias of rank 2": {"bias": bias[None]},
        "neither channels nor columns at stride 1": {"x": torch.randn(2, C, 5, 12)[..., ::2]},
        "sparse x": {"x": x.to_sparse()},
        "no bias": {"bias": None},
    }
    return {name: {**good, **changes} for name, changes in wrong.items()}


@pytest.mark.skipif(extension.why_missing is not None, reason=str(extension.why_missing))
@pytest.mark.parametrize("arguments", direct_calls().values(), ids=direct_calls())
def test_the_operator_refuses(arguments):
    with pytest.raises((RuntimeError, ValueError, TypeError)):
        torch.ops.leni_kernels.leni_folded_cpp(**arguments)


def direct_training_calls():
    x, (taps, weight, _) = torch.randn(2, C, 5, 6), LENI_FOLDED.values()
    good = {"grad": torch.randn_like(x), "x": x, "taps": taps, "weight": weight, "constant": torch.randn(2 * C),
            "slope": torch.randn(2 * C)}
    needs = {"leni_statistics_cpp": ("x", "taps"),
             "leni_weight_gradient_cpp": ("grad", "x", "taps"), "leni_input_gradient_cpp": good}
    wrong = {
        "rank 3": {"x": x[0], "grad": x[0]},
        "float8 x": {"x": x.to(torch.float8_e5m2), "grad": x.to(torch.float8_e5m2)},
        "float64 x, float32 parameters": {"x": x.double(), "grad": x.double()},
        "more channels than parameters": {"x": torch.randn(2, C + 1, 5, 6), "grad": torch.randn(2, C + 1, 5, 6)},
        "even taps": {"taps": torch.randn(C, 4, 4)},
        "taps of size 9": {"taps": torch.randn(C, 9, 9)},
        "oblong taps": {"taps": torch.randn(C, 3, 5)},
        "neither channels nor columns at stride 1": {"x": torch.randn(2, C, 5, 12)[..., ::2]},
        "float64 grad": {"grad": x.double()},
        "bfloat16 grad": {"grad": x.bfloat16()},
        "grad of fewer images": {"grad": x[:1]},
        "grad of another plane": {"grad": x.transpose(2, 3)},
        "grad of rank 3": {"grad": x[0]},
        "weight of one branch": {"weight": weight[:, :C]},
        "bfloat16 weight": {"weight": weight.bfloat16()},
        "constant without slope": {"slope": None},
        "slope without constant": {"constant": None},
        "slope of one branch": {"slope": torch.randn(C)},
        "float64 constant": {"constant": torch.randn(2 * C, dtype=torch.float64)},
    }
    for operator, names in needs.items():
        for why, changes in wrong.items():
            if changes.keys() & set(names):
                inputs = {**good, **changes}
                yield pytest.param(operator, {name: inputs[name] for name in names}, id=f"{operator}, {why}")


@pytest.mark.skipif(extension.why_missing is not None, reason=str(extension.why_missing))
@pytest.mark.parametrize(("operator", "arguments"), list(direct_training_calls()))
def test_the_operators_of_training_refuse(operator, arguments):
    with pytest.raises((RuntimeError, ValueError, TypeError)):
        getattr(torch.ops.leni_kernels, operator)(**arguments)
