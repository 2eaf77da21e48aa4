"""LENI and Reborn on signals and on volumes: what their layers compute one by one, on kernels where these serve."""

import copy

import pytest
import torch
from torch import nn

import leni_kernels as lk
from leni_kernels.common import hooks

SHAPES = {1: (3, 4, 9), 3: (2, 4, 3, 5, 4)}
BLOCKS = {"LENI1d": (lk.LENI1d, 1, {}), "LENI1d, k=5": (lk.LENI1d, 1, {"kernel_size": 5}), "LENI3d": (lk.LENI3d, 3, {}),
          "LENI1d, separable": (lk.LENI1d, 1, {"separable": True}),
          "LENI3d, separable": (lk.LENI3d, 3, {"separable": True}),
          "Reborn1d": (lk.Reborn1d, 1, {}), "Reborn1d, depthwise": (lk.Reborn1d, 1, {"groups": 4}),
          "Reborn1d, compressed by 3": (lk.Reborn1d, 1, {"compress_kernel_size": 3}),
          "Reborn1d, not compressed": (lk.Reborn1d, 1, {"compress": False}), "Reborn3d": (lk.Reborn3d, 3, {}),
          "Reborn3d, not compressed": (lk.Reborn3d, 3, {"compress": False})}
every_block = pytest.mark.parametrize(("make", "dims", "options"), BLOCKS.values(), ids=BLOCKS)


def layer_by_layer(block, x):
    z = block.deconv(-torch.relu(-x))
    if getattr(block, "deconv_pointwise", None) is not None:
        z = block.deconv_pointwise(z)
    features = torch.cat([torch.relu(x), block.bn_negative(z)], 1)
    if isinstance(block, (lk.LENI1d, lk.LENI3d)):
        features = block.bn_fusion(features)
    return features if block.compress is None else block.compress(features)


def pair(make, dims, options, dtype=torch.float64):
    block = make(4, **options, dtype=dtype)
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return block, copy.deepcopy(block), torch.randn(SHAPES[dims], dtype=dtype, requires_grad=True)


@every_block
@pytest.mark.parametrize("training", [True, False])
def test_the_layers_one_by_one(make, dims, options, training):
    block, other, x = pair(make, dims, options)
    for _ in range(2):
        y, expected = block.train(training)(x), layer_by_layer(other.train(training), x)
        torch.testing.assert_close(y, expected)
    weights = torch.randn_like(y)
    torch.testing.assert_close(torch.autograd.grad((y * weights).sum(), [x, *block.parameters()]),
                               torch.autograd.grad((expected * weights).sum(), [x, *other.parameters()]))
    torch.testing.assert_close(dict(block.named_buffers()), dict(other.named_buffers()))


@every_block
def test_children_are_layers_of_these_dimensions(make, dims, options):
    block = make(4, **options)
    deconv, norm, conv = {1: (nn.ConvTranspose1d, nn.BatchNorm1d, nn.Conv1d),
                          3: (nn.ConvTranspose3d, nn.BatchNorm3d, nn.Conv3d)}[dims]
    assert (type(block.deconv), type(block.bn_negative)) == (deconv, norm)
    assert block.compress is None or type(block.compress) is conv
    like = lk.LENI2d if make in (lk.LENI1d, lk.LENI3d) else lk.Reborn2d
    assert block.state_dict().keys() == like(4, **options).state_dict().keys()


@pytest.mark.parametrize("make", [lk.LENI1d, lk.Reborn1d])
def test_signals_run_on_kernels(make):
    block, x = make(4), torch.randn(SHAPES[1])
    served = ["cpp"] if "runs on 'cpp'" in str(lk.explain(lk.LENI2d(4), x[:, :, None])) else ["reference"]
    assert [decision.backend for decision in lk.explain(block, x)] == served
    with lk.use_backend("reference"):
        expected = copy.deepcopy(block)(x)
    torch.testing.assert_close(block(x), expected)


@pytest.mark.parametrize("make", [lk.LENI3d, lk.Reborn3d])
def test_volumes_say_that_no_kernel_serves(make):
    block, x = make(4), torch.randn(SHAPES[3])
    assert "kernels exist for one and two spatial dimensions" in str(lk.explain(block, x))
    with lk.use_backend("cpp"), pytest.raises(lk.BackendUnavailableError, match="one and two spatial dimensions"):
        block(x)


@every_block
def test_a_hook_on_a_child_sees_its_layer(make, dims, options, monkeypatch):
    monkeypatch.setattr(hooks, "_warned", {(make.__name__, "deconv"): True})
    block, other, x = pair(make, dims, options)
    seen = []
    block.deconv.register_forward_hook(lambda module, args, output: seen.append(output.shape))
    torch.testing.assert_close(block(x), layer_by_layer(other, x))
    assert seen == [x.shape]


@pytest.mark.parametrize("make", [lk.LENI1d, lk.Reborn1d])
@pytest.mark.parametrize("training", [True, False])
def test_gradients_of_signals(make, training):
    block, _, x = pair(make, 1, {})
    block.train(training)
    parameters = dict(block.named_parameters())

    def run(x, *values):
        return torch.func.functional_call(block, dict(zip(parameters, values, strict=True)), x)

    assert torch.autograd.gradcheck(run, (x, *parameters.values()))


@every_block
def test_compiled(make, dims, options):
    torch._dynamo.reset()
    block, other, x = pair(make, dims, options)
    torch.testing.assert_close(torch.compile(block, fullgraph=True, backend="aot_eager")(x), other(x))


@every_block
def test_any_strides_and_half_precision(make, dims, options):
    block, other, x = pair(make, dims, options, torch.bfloat16)
    moved = x.detach().movedim(1, -1).contiguous().movedim(-1, 1)
    with torch.no_grad():
        torch.testing.assert_close(block(moved), layer_by_layer(other.float(), moved.float()).bfloat16(),
                                   rtol=0.05, atol=0.05)


@every_block
@pytest.mark.parametrize("shape", [(4, 9), (2, 4, 5, 5), (2, 4, 0), (2, 0, 3, 3, 3), (2, 4, 3, 0, 3)])
def test_other_shapes_are_refused(make, dims, options, shape):
    with pytest.raises(ValueError, match=rf"{make.__name__}: x must be \[N, C, {'L' if dims == 1 else 'D, H, W'}\]"):
        make(4, **options)(torch.randn(shape))
