"""FlopCounterMode counts of the kernels what it counts of the definition's layers, forward and backward."""

from contextlib import nullcontext

import pytest
import torch
from torch._subclasses import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode, flop_registry

import leni_kernels as lk
from leni_kernels.common import extension
from leni_kernels.common.gpu import support
from leni_kernels.conv_relu.flops import FORMULAS as CONV_RELU
from leni_kernels.leni.flops import FORMULAS as LENI
from leni_kernels.reborn.flops import FORMULAS as REBORN

needs_extension = pytest.mark.skipif(extension.why_missing is not None, reason=str(extension.why_missing))
FORMULAS = {**LENI, **REBORN, **CONV_RELU}
POINTWISE = ("ada_relu", "fully_parametric_relu", "crelu", "leni_running_statistics", "reborn_running_statistics",
             "reborn_statistics")
"""Operators, or how their names begin, that multiply no matrices: for PyTorch's counter they do nothing."""

BLOCKS = {
    "LENI": (lambda: lk.LENI2d(8), (2, 8, 5, 6)),
    "LENI 5×5": (lambda: lk.LENI2d(8, 5), (2, 8, 5, 6)),
    "LENI1d": (lambda: lk.LENI1d(8), (2, 8, 7)),
    "separable LENI": (lambda: lk.LENI2d(8, separable=True), (2, 8, 5, 6)),
    "separable LENI1d": (lambda: lk.LENI1d(8, separable=True), (2, 8, 7)),
    "Reborn": (lambda: lk.Reborn2d(8), (2, 8, 5, 6)),
    "Reborn in groups": (lambda: lk.Reborn2d(8, 5, groups=4), (2, 8, 5, 6)),
    "Reborn1d": (lambda: lk.Reborn1d(8), (2, 8, 7)),
    "ConvReLU1d": (lambda: lk.ConvReLU1d(8, 6, 3, stride=2), (2, 8, 9)),
    "ConvReLU2d": (lambda: lk.ConvReLU2d(8, 6, 3, padding=1, dilation=2), (2, 8, 9, 7)),
    "ConvReLU2d in groups": (lambda: lk.ConvReLU2d(8, 6, (3, 1), groups=2), (2, 8, 9, 7)),
    "ConvReLU3d": (lambda: lk.ConvReLU3d(8, 6, 3, padding="same"), (2, 8, 3, 4, 5)),
    "AdaReLU": (lambda: lk.AdaReLU(8), (2, 8, 5, 6)),
}


def count(function):
    """What a function returns, and its FLOPs."""
    with FlopCounterMode(display=False) as counter:
        result = function()
    return result, counter.get_total_flops()


def forward_and_backward(backend, block, x):
    with lk.use_backend(backend):
        y, forward = count(lambda: block(x))
    return forward, count(y.sum().backward)[1] if y.requires_grad else None


@needs_extension
@pytest.mark.parametrize("mode", ["training", "eval", "inference"])
@pytest.mark.parametrize("name", BLOCKS)
def test_kernels_count_what_their_layers_do(name, mode):
    make, shape = BLOCKS[name]
    block, x = make().train(mode == "training"), torch.randn(shape, requires_grad=mode != "inference")
    with torch.no_grad() if mode == "inference" else nullcontext():
        ours, layers = (forward_and_backward(backend, block, x) for backend in ("cpp", "reference"))
    assert ours[0] == layers[0]
    if "separable" in name and mode == "eval":
        # Backward goes through the folded weight: the pointwise layer is a product, made again and differentiated.
        channels, sites = shape[1], x.numel() // shape[1]
        layers = layers[0], layers[1] - 4 * channels ** 2 * sites + 6 * channels ** 3
    assert ours[1] == layers[1]
    assert (ours[0] == 0) == (name == "AdaReLU")


@needs_extension
@pytest.mark.parametrize("frozen", [("x",), ("weight",), ("threshold",), ("x", "threshold"), ("x", "weight")], ids=str)
def test_gradients_that_nobody_needs_are_not_counted(frozen):
    block, x = lk.ConvReLU2d(4, 6, 3), torch.randn(2, 4, 5, 6, requires_grad="x" not in frozen)
    for name in set(frozen) - {"x"}:
        getattr(block, name).requires_grad_(False)
    assert forward_and_backward("cpp", block, x) == forward_and_backward("reference", block, x)
    reborn = lk.Reborn2d(4)
    reborn.deconv.weight.requires_grad_("weight" not in frozen)
    assert forward_and_backward("cpp", reborn, x) == forward_and_backward("reference", reborn, x)


@needs_extension
def test_a_multiply_add_is_two():
    x, sites, channels = torch.randn(2, 8, 5, 6), 2 * 5 * 6, 8
    convolution = 2 * sites * 9 * channels * 8
    assert count(lambda: lk.ConvReLU2d(8, 8, 3, padding=1)(x))[1] == convolution
    # Of the deconvolution, depthwise in LENI, and of the product with 2C features.
    leni = 2 * sites * (9 * channels + 2 * channels**2)
    assert count(lambda: lk.LENI2d(8)(x))[1] == leni
    folded = lk.fold(lk.LENI2d(8).eval())
    assert count(lambda: folded(x))[1] == leni
    assert count(lambda: lk.Reborn2d(8)(x))[1] == 2 * sites * (9 + 2) * channels**2


@needs_extension
def test_folded_reborn_is_one_convolution():
    """One product a site less than the layers, and once the product of both weights, which else is kept."""
    x, channels = torch.randn(2, 8, 5, 6), 8
    folded = lk.fold(lk.Reborn2d(8).eval())
    with torch.no_grad():
        flops = count(lambda: folded(x))[1]
    assert flops == 2 * (2 * 5 * 6) * (9 + 1) * channels**2 + 2 * 9 * channels**3


@needs_extension
@pytest.mark.parametrize("make", [lk.LENI2d, lk.Reborn2d])
def test_passes_add_up_to_steps(make):
    x, w = (2, 8, 5, 6), (8, 16)
    if make is lk.LENI2d:
        passes = {"leni_input_gradient": {"x": x, "taps": (8, 3, 3), "weight": w}, "leni_weight_gradient": {"x": x}}
        forward = {"leni_laid_out": {"x": x, "taps": (3, 3, 8), "weight": w}}
    else:
        deconv = (8, 8, 3, 3)
        passes = {"reborn_weight_gradient": {"x": x}, "reborn_negative_gradient": {"grad": x},
                  "reborn_deconv_gradient": {"grad": x, "x": x, "deconv_weight": deconv, "needs_input": True,
                                             "needs_deconv": True}}
        forward = {"reborn_deconvolve": {"x": x, "deconv_weight": deconv}, "reborn_tail": {"x": x, "weight": w}}
    got = tuple(sum(FORMULAS[name](**shapes) for name, shapes in parts.items()) for parts in (forward, passes))
    assert got == forward_and_backward("cpp", make(8), torch.randn(x, requires_grad=True))


@needs_extension
@pytest.mark.parametrize("mechanism", ["leni", "reborn"])
def test_a_step_over_several_processes_counts_its_own_part(mechanism):
    block = (lk.LENI2d if mechanism == "leni" else lk.Reborn2d)(8)
    needs = dict.fromkeys(("needs_input", "needs_x", "needs_deconv"), True)
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        x = torch.empty(2, 8, 5, 6)
        given = {"x": x, "deconv_weight": block.deconv.weight, "compress_weight": block.compress.weight, **needs,
                 "negative_eps": 1e-5, "fusion_eps": 1e-5, "eps": 1e-5, "groups": 1, "channels_last": False,
                 "group": "a group", "grad": x, "z": x, "statistics": x.new_empty(33)}

        def call(name):
            operator = getattr(torch.ops.leni_kernels, f"{mechanism}_{name}_cpp").default
            return operator(*(given.get(argument.name) for argument in operator._schema.arguments))

        flops = tuple(count(lambda name=name: call(name))[1] for name in ("synchronised", "synchronised_backward"))
    assert flops == forward_and_backward("reference", block, torch.randn(2, 8, 5, 6, requires_grad=True))


@needs_extension
@pytest.mark.parametrize("make", [lk.LENI2d, lk.Reborn2d, lambda channels: lk.ConvReLU2d(channels, 4, 3)])
def test_compiled_exported_and_on_fake_tensors(make):
    block, x = make(4), torch.randn(2, 4, 5, 6, requires_grad=True)
    wanted = forward_and_backward("cpp", block, x)
    compiled = torch.compile(lambda x: block(x), backend="aot_eager")  # which PyTorch does not run under a counter
    assert forward_and_backward("cpp", compiled, x) == wanted
    exported = torch.export.export(block, (x,)).module()
    assert count(lambda: exported(x))[1] == wanted[0]
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        assert forward_and_backward("cpp", block, mode.from_tensor(x)) == wanted


def _operators(backend):
    schemas = {schema.name: schema for schema in torch._C._jit_get_all_schemas()}
    return {name.removeprefix("leni_kernels::").removesuffix(f"_{backend}"): schema for name, schema in schemas.items()
            if name.startswith("leni_kernels::") and name.endswith(f"_{backend}")}


@needs_extension
def test_every_operator_has_a_formula():
    found = set(_operators("cpp"))
    assert set(FORMULAS) - found == {"leni_laid_out"}
    assert {name for name in found - set(FORMULAS) if not name.startswith(POINTWISE)} == set()
    assert all(getattr(torch.ops.leni_kernels, f"{name}_cpp") in flop_registry for name in set(FORMULAS) & found)


@needs_extension
@pytest.mark.skipif(support.why_missing is not None, reason=str(support.why_missing))
def test_triton_s_operators_are_counted_alike():
    support.define_operators()
    cpp, triton = _operators("cpp"), _operators("triton")
    assert set(FORMULAS) - set(triton) == {"reborn_deconvolve", "reborn_deconv_gradient"}
    for name in set(FORMULAS) & set(triton):
        assert getattr(torch.ops.leni_kernels, f"{name}_triton") in flop_registry
        if name in cpp:
            names = [[argument.name for argument in schema.arguments] for schema in (cpp[name], triton[name])]
            assert names[0] == names[1], name
    with FakeTensorMode(), torch.no_grad(), lk.use_backend("triton"):
        _, flops = count(lambda: lk.LENI2d(8, device="cuda")(torch.empty(2, 8, 5, 6, device="cuda")))
    assert flops == 2 * (2 * 5 * 6) * (9 * 8 + 2 * 8**2)
