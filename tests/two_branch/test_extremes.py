"""LENI and Reborn where numbers end: infinities, the whole range of float32, batches of few values, and long sums."""


import pytest
import torch
from training_steps import LAYOUTS, errors, laid_out, layouts, step, truth

import leni_kernels as lk
from leni_kernels.common import extension
from leni_kernels.leni import reference
from leni_kernels.reborn import reference as reborn_reference

BLOCKS = {"leni": lk.LENI2d, "reborn": lk.Reborn2d, "reborn, depthwise": lambda c: lk.Reborn2d(c, groups=c)}

blocks = pytest.mark.parametrize("make", BLOCKS.values(), ids=BLOCKS)
needs_extension = pytest.mark.skipif(extension.why_missing is not None, reason=str(extension.why_missing))


def gradients_of(results):
    return {name: result for name, result in results.items() if "running" not in name and "tracked" not in name}


# ---- infinities --------------------------------------------------------------------------------------------


@layouts
@pytest.mark.parametrize("kernel_size", [3, 5, 7])
@pytest.mark.parametrize("place", [(4, 4), (0, 5), (8, 0), (3, -1)], ids=str)
@pytest.mark.parametrize("value", [float("inf"), float("-inf")])
def test_an_infinite_value_in_eval_mode_goes_where_it_goes_in_the_layers(kernel_backend, make_leni, layout,
                                                                        kernel_size, place, value):
    block = make_leni(5, kernel_size, dtype=torch.float64)
    x, grad = (laid_out(layout, 2, 5, 9, 19, dtype=torch.float64) for _ in range(2))
    x[(1, 2, *place)] = value
    got, wanted = step(kernel_backend, block, x, grad), step("reference", block, x, grad)
    for name in ("y", "x", "deconv.weight", "compress.bias"):
        # Where a tap reaches out of the plane, the library multiplies a zero that it adds, and makes a NaN.
        known = ~wanted[name].isnan()
        torch.testing.assert_close(got[name][known], wanted[name][known], rtol=1e-11, atol=1e-11)
        assert got[name].isnan().any() == (wanted[name].isnan().any() and name == "y")


# ---- the range of float32 ----------------------------------------------------------------------------------


@blocks
@pytest.mark.parametrize("exponent", [-15, -3, 12, 15, 17, 18])
def test_training_is_right_wherever_the_layers_are(kernel_backend, make, exponent):
    block, grad = make(6), torch.randn(3, 6, 9, 10)
    x = torch.randn(3, 6, 9, 10) * 10.0**exponent
    exact = truth(block, x, grad)
    composed = {name: error for name, error, _ in errors(step("reference", block, x, grad), exact)}
    for name, error, size in errors(step(kernel_backend, block, x, grad), exact):
        if name != "bn_negative.bias" or make is not lk.LENI2d:  # BN2 cancels it
            assert error <= 4 * composed[name] + 2e-6 * size, name


@blocks
@pytest.mark.parametrize("exponent", [20, 22, 30, 35])
def test_where_a_variance_leaves_the_range_training_gives_what_the_layers_give(kernel_backend, make, exponent):
    block, x, grad = make(6), torch.randn(3, 6, 9, 10) * 10.0**exponent, torch.randn(3, 6, 9, 10)
    got, composed = (gradients_of(step(name, block, x, grad)) for name in (kernel_backend, "reference"))
    for name, wanted in composed.items():
        assert wanted.isfinite().all()
        if name != "bn_negative.bias" or make is not lk.LENI2d:
            torch.testing.assert_close(got[name], wanted, rtol=1e-5, atol=1e-5, msg=name)
        assert got[name].isfinite().all()


# ---- few values --------------------------------------------------------------------------------------------


@blocks
@layouts
@pytest.mark.parametrize("shape", [(2, 1, 1), (3, 1, 1), (1, 2, 2), (5, 1, 1), (1, 1, 7), (2, 4, 2)], ids=str)
def test_batches_of_few_values_are_no_worse_than_composed(kernel_backend, make, layout, shape):
    """What the norms leave of such a gradient is all but nothing, so that errors vary: over several batches."""
    block, (batch, *plane) = make(8), shape
    ours, composed = {}, {}
    for _ in range(10):
        x, grad = (laid_out(layout, batch, 8, *plane) for _ in range(2))
        exact = truth(block, x, grad)
        for found, name in ((ours, kernel_backend), (composed, "reference")):
            for result, error, size in errors(step(name, block, x, grad), exact):
                found[result] = max(found.get(result, 0), error - 1e-6 * size)
    for name in ("y", "x", "deconv.weight", "compress.weight"):
        assert ours[name] <= composed[name] + 1e-9, name


# ---- long sums ---------------------------------------------------------------------------------------------


@needs_extension
@pytest.mark.parametrize("channels_last", [False, True])
def test_long_sums_of_terms_of_one_sign(channels_last):
    """4 million pixels in one thread: a sum in float32 alone would lose what is added."""
    shape, memory_format = (1, 2, 2048, 2048), list(LAYOUTS.values())[channels_last]
    x, grad = (-torch.rand(shape).contiguous(memory_format=memory_format) for _ in range(2))
    taps, weight = torch.rand(2, 3, 3), torch.rand(2, 4)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        ops = torch.ops.leni_kernels
        got = (ops.leni_input_gradient_cpp(grad, x, taps, weight, None, None)[1],
               *ops.leni_weight_gradient_cpp(grad, x, taps))
        deconv = torch.rand(2, 2, 3, 3)
        of_deconv = ops.reborn_deconv_gradient_cpp(grad, grad, x, deconv, weight, False, True)[1]
    finally:
        torch.set_num_threads(threads)
    wide = [tensor.double() for tensor in (grad, x, taps, weight)]
    wanted = (reference.leni_input_gradient(*wide)[1], *reference.leni_weight_gradient(*wide[:3]))
    for result, exact in zip(got, wanted, strict=True):
        assert ((result - exact).abs() <= 1e-5 * exact.abs()).all()
    exact = reborn_reference.reborn_deconv_gradient(wide[0], wide[1], deconv.double(), 1)
    assert ((of_deconv - exact).abs() <= 1e-5 * exact.abs()).all()
