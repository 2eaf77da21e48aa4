"""The paper's variants of Reborn: a depthwise deconvolution, a larger compression, and none."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch.autograd import gradcheck

import leni_kernels as lk
from leni_kernels import functional
from leni_kernels.reborn import ops as reborn_ops
from leni_kernels.reborn.modules import FoldedReborn2d, FoldedRebornFeatures2d

C = 4
VARIANTS = {
    "depthwise": {"groups": C},
    "3×3": {"compress_kernel_size": 3},
    "uncompressed": {"compress": False},
    "5×5, depthwise, 3×3": {"kernel_size": 5, "groups": C, "compress_kernel_size": 3},
}

variants = pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)


def maps(*shape):
    return torch.randn(shape, dtype=torch.float64)


@pytest.mark.parametrize("training", [False, True])
@variants
def test_the_papers_formula(make_reborn, options, training):
    block, x = make_reborn(C, dtype=torch.float64, **options).train(training), maps(3, C, 5, 6)
    deconv, norm, compress = copy.deepcopy((block.deconv, block.bn_negative, block.compress))
    features = torch.cat([x.clamp(min=0), norm(deconv(x.clamp(max=0)))], dim=1)
    exact = features if compress is None else F.conv2d(features, compress.weight, compress.bias,
                                                       padding=compress.weight.shape[-1] // 2)
    y = block(x)
    assert y.shape == (3, 2 * C if options.get("compress") is False else C, 5, 6)
    torch.testing.assert_close(y, exact, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(block.bn_negative.running_var, norm.running_var, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("training", [False, True])
@variants
def test_gradcheck(make_reborn, options, training):
    block, x = make_reborn(C, dtype=torch.float64, **options).train(training), maps(2, C, 3, 4)
    names, parameters = zip(*block.named_parameters(), strict=True)

    def call(x, *parameters):
        return torch.func.functional_call(block, dict(zip(names, parameters, strict=True)), x)

    assert gradcheck(call, ((x + 0.05 * x.sign()).requires_grad_(), *parameters))


@variants
def test_the_folded_form_is_the_block(make_reborn, options):
    block, x = make_reborn(C, dtype=torch.float64, **options), maps(2, C, 6, 7)
    folded = lk.fold(block)
    assert not folded.training
    torch.testing.assert_close(folded(x), block(x), rtol=1e-12, atol=1e-12)
    kinds = [type(module) for module in folded.modules() if type(module) is not torch.nn.Sequential]
    if block.compress is None:
        assert kinds == [FoldedRebornFeatures2d]
    elif block.compress.kernel_size == (1, 1):
        assert kinds == [FoldedReborn2d]
    else:
        assert kinds == [FoldedRebornFeatures2d, torch.nn.Conv2d]


@variants
def test_fold_inside_a_model(make_reborn, options):
    model = torch.nn.Sequential(torch.nn.Conv2d(3, C, 3), make_reborn(C, **options)).eval()
    x = torch.randn(2, 3, 7, 8)
    wanted = model(x)
    for folded in (lk.fold(model), lk.fold(model, inplace=True)):
        assert not any(isinstance(module, lk.Reborn2d) for module in folded.modules())
        torch.testing.assert_close(folded(x), wanted, rtol=1e-5, atol=1e-5)


@variants
def test_functional_is_the_module(make_reborn, options):
    block, x = make_reborn(C, dtype=torch.float64, **options), maps(2, C, 5, 6)
    assert torch.equal(functional.reborn(x, *block.parameters_for_kernels()), block(x))


def test_children():
    assert lk.Reborn2d(C, compress_kernel_size=3).compress.weight.shape == (C, 2 * C, 3, 3)
    assert lk.Reborn2d(C, compress_kernel_size=5).compress.padding == (2, 2)
    assert lk.Reborn2d(C, groups=C).deconv.weight.shape == (C, 1, 3, 3)
    uncompressed = lk.Reborn2d(C, compress=False)
    assert uncompressed.compress is None
    assert [name for name in uncompressed.state_dict() if "compress" in name] == []


def test_what_is_refused(make_reborn):
    for size in (0, 2):
        with pytest.raises(ValueError, match=f"Reborn2d: compress_kernel_size must be odd, got {size}"):
            lk.Reborn2d(C, compress_kernel_size=size)
    x, parameters = torch.randn(1, C, 5, 6), make_reborn(C).parameters_for_kernels()
    for weight, message in (
        (torch.randn(C, 2 * C, 2, 2), "compress_weight must have an odd square kernel, got 2x2"),
        (torch.randn(C, C, 3, 3), r"compress_weight must have shape \[4, 8, m, m\], got \(4, 4, 3, 3\)"),
        (None, "compress_bias needs a compress_weight"),
    ):
        with pytest.raises(ValueError, match=f"reborn: {message}"):
            functional.reborn(x, *parameters._replace(compress_weight=weight))


def test_folded_features_refuse_what_does_not_fit():
    x, taps, shift = torch.randn(1, C, 5, 6), torch.randn(C, C, 3, 3), torch.randn(C)
    for arguments, message in (
        ((x, taps[:, :1], shift), r"taps must have shape"),
        ((x, taps, shift[:1]), r"shift must have shape \[4\], got \(1,\)"),
        ((x, taps, shift, 3), "groups must divide the 4 channels, got 3"),
    ):
        with pytest.raises(ValueError, match=f"reborn_features_folded: {message}"):
            reborn_ops.reborn_features_folded(*arguments)
    with pytest.raises(TypeError, match="shift must have dtype"):
        reborn_ops.reborn_features_folded(x, taps, shift.double())
