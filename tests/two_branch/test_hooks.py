"""Hooks and parametrizations of a block's layers: what computes a tensor does so once a call, any other is told of."""

import copy
import warnings

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

import leni_kernels as lk
from leni_kernels.common import extension, hooks

FUSED = "reference" if extension.why_missing else "cpp"
SHAPES = {1: (3, 4, 9), 2: (2, 4, 5, 6), 3: (2, 4, 3, 5, 4)}
BLOCKS = [lk.LENI1d, lk.LENI2d, lk.LENI3d, lk.Reborn1d, lk.Reborn2d, lk.Reborn3d]
every_block = pytest.mark.parametrize("make", BLOCKS)
planar_block = pytest.mark.parametrize("make", [lk.LENI1d, lk.LENI2d, lk.Reborn2d])


@pytest.fixture(autouse=True)
def nothing_was_warned_of(monkeypatch):
    monkeypatch.setattr(hooks, "_warned", {})


def old_weight_norm(layer):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        nn.utils.weight_norm(layer)


COMPUTED = {"pruned": lambda layer: prune.random_unstructured(layer, "weight", 0.5),
            "pruned twice": lambda layer: [prune.random_unstructured(layer, "weight", 0.3) for _ in range(2)],
            "weight_norm": old_weight_norm, "spectral_norm": nn.utils.spectral_norm}
PARAMETRIZED = {"parametrized weight_norm": parametrizations.weight_norm,
                "parametrized spectral_norm": parametrizations.spectral_norm}
CHANGES = {**COMPUTED, **PARAMETRIZED}
every_change = pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)


def children_of(block):
    return [name for name, child in block.named_children() if not isinstance(child, nn.modules.batchnorm._BatchNorm)]


def changed(make, change, dtype=torch.float64):
    """A block whose convolutions were changed, a copy of it, and an x."""
    block = make(4, dtype=dtype)
    for name in children_of(block):
        change(getattr(block, name))
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.add_(0.1 * torch.rand_like(parameter))
    other = make(4, dtype=dtype)
    for name in children_of(other):
        change(getattr(other, name))
    other.load_state_dict(block.state_dict())
    return block, other, torch.randn(SHAPES[block.dims], dtype=dtype, requires_grad=True)


def layer_by_layer(block, x):
    features = torch.cat([torch.relu(x), block.bn_negative(block.deconv(-torch.relu(-x)))], 1)
    return block.compress(block.bn_fusion(features) if hasattr(block, "bn_fusion") else features)


@every_block
@every_change
@pytest.mark.parametrize("backend", [None, "reference"])
def test_each_is_computed_once_a_call_as_the_layers_do(make, change, backend):
    """Power iterations move vectors: one too many or too few would show in the buffers."""
    block, other, x = changed(make, change)
    with lk.use_backend(backend):
        if backend is None:
            assert lk.explain(block, x)[0].backend == ("reference" if block.dims == 3 else FUSED)
        for training in (True, True, False):
            y, wanted = block.train(training)(x), layer_by_layer(other.train(training), x)
            torch.testing.assert_close(y, wanted)
            weights = torch.randn_like(y)
            torch.testing.assert_close(torch.autograd.grad((y * weights).sum(), [x, *block.parameters()]),
                                       torch.autograd.grad((wanted * weights).sum(), [x, *other.parameters()]))
    torch.testing.assert_close(dict(block.named_buffers()), dict(other.named_buffers()))


class Counted(nn.Module):
    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, tensor):
        self.calls += 1
        return 2 * tensor


@every_block
@pytest.mark.parametrize("backend", [None, "reference"])
@pytest.mark.parametrize("training", [True, False])
def test_a_parametrization_of_any_tensor_is_evaluated_once(make, backend, training):
    block = make(4).train(training)
    counts = []
    for child in block.children():
        for name in [name for name, _ in child.named_parameters(recurse=False)]:
            counts.append(Counted())
            parametrize.register_parametrization(child, name, counts[-1], unsafe=True)
    for count in counts:
        count.calls = 0
    with lk.use_backend(backend):
        block(torch.randn(SHAPES[block.dims]))
    assert [count.calls for count in counts] == [1] * len(counts)


@planar_block
def test_a_pruned_norm_is_fused(make):
    block, x = make(4).eval(), torch.randn(SHAPES[make.dims])
    prune.random_unstructured(block.bn_negative, "weight", 0.5)
    prune.random_unstructured(block.compress, "bias", 0.5)
    assert lk.explain(block, x)[0].backend == FUSED
    torch.testing.assert_close(block(x), layer_by_layer(block, x))


@planar_block
@every_change
def test_explain_leaves_everything_as_it_was(make, change):
    block, _, x = changed(make, change)
    before = {name: tensor.clone() for name, tensor in block.state_dict().items()}
    tensors = {name: vars(getattr(block, name)).get("weight") for name in children_of(block)}
    lk.explain(block, x)
    assert all(vars(getattr(block, name)).get("weight") is tensor for name, tensor in tensors.items())
    assert all(torch.equal(tensor, before[name]) for name, tensor in block.state_dict().items())


@pytest.mark.parametrize("make", [lk.LENI2d, lk.Reborn2d])
@every_change
def test_folded_with_the_weight_as_it_is(make, change):
    block, _, x = changed(make, change)
    block(x)  # what hooks computed has a history now, which PyTorch's deepcopy refuses
    network = nn.Sequential(block).eval()
    folded = lk.fold(network)
    assert type(folded[0]).__name__ == f"Folded{make.__name__}"
    torch.testing.assert_close(folded(x), network(x))


def test_compiled_where_tensors_are_computed():
    def change(layer):
        (COMPUTED["spectral_norm"] if isinstance(layer, nn.Conv2d) else COMPUTED["pruned"])(layer)

    torch._dynamo.reset()
    block, other, x = changed(lk.LENI2d, change)
    compiled = torch.compile(block, fullgraph=True, backend="aot_eager")
    for _ in range(2):
        torch.testing.assert_close(compiled(x), other(x))
    torch.testing.assert_close(dict(block.named_buffers()), dict(other.named_buffers()))


# ---- hooks that ask for their layer's call ------------------------------------------------------------------


@planar_block
def test_any_other_hook_is_warned_of_once(make):
    seen = []
    for child in ("deconv", "compress"):
        block, x = make(4), torch.randn(SHAPES[make.dims])
        getattr(block, child).register_forward_hook(lambda *_: seen.append("ran"))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert f"a hook on {child} must see its layer run" in str(lk.explain(block, x))
        with pytest.warns(UserWarning, match=f"^leni_kernels: a hook on {child} .* of this {make.__name__} run one by "
                                             "one, which is slower; leni_kernels.explain") as told:
            block(x)
        assert told[0].filename == __file__
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            block(x)
            again = make(4)
            getattr(again, child).register_forward_pre_hook(lambda *_: None)
            again(x)
    assert len(seen) == 6


def test_a_hook_beside_one_that_computes():
    block, x, seen = lk.LENI2d(4), torch.randn(SHAPES[2]), []
    nn.utils.spectral_norm(block.deconv)
    block.deconv.register_forward_hook(lambda *_: seen.append("ran"))
    other = copy.deepcopy(block)
    with pytest.warns(UserWarning, match="a hook on deconv"):
        y = block(x)
    torch.testing.assert_close(y, layer_by_layer(other, x))
    torch.testing.assert_close(block.deconv.weight_u, other.deconv.weight_u)


def test_a_pruning_method_with_a_call_of_its_own_sees_its_layer():
    class Told(prune.Identity):
        def __call__(self, module, inputs):
            self.inputs = inputs
            super().__call__(module, inputs)

    block = lk.LENI2d(4)
    Told.apply(block.deconv, "weight")
    with pytest.warns(UserWarning, match="a hook on deconv"):
        block(torch.randn(SHAPES[2]))
    hook, = block.deconv._forward_pre_hooks.values()
    assert hook.inputs[0].shape == SHAPES[2]


@pytest.mark.parametrize("tracer", ["compile", "export"])
def test_no_warning_while_a_hooked_block_is_traced(tracer):
    torch._dynamo.reset()
    block, x = lk.LENI2d(4).eval(), torch.randn(SHAPES[2])
    block.deconv.register_forward_hook(lambda module, args, output: 2 * output)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "leni_kernels")
        if tracer == "compile":
            traced = torch.compile(block, fullgraph=True, backend="aot_eager")
        else:
            traced = torch.export.export(block, (x,)).module()
        y = traced(x)
    torch.testing.assert_close(y, layer_by_layer(block, x))


# ---- convolutions that are not the block's ------------------------------------------------------------------

OTHERS = {
    "a deconvolution with a bias": lambda block: setattr(
        block, "deconv", nn.ConvTranspose2d(4, 4, 3, padding=1, groups=4)),
    "a convolution": lambda block: setattr(block, "deconv", nn.Conv2d(4, 4, 3, padding=1, groups=4, bias=False)),
    "a dilated deconvolution": lambda block: setattr(
        block, "deconv", nn.ConvTranspose2d(4, 4, 3, padding=2, dilation=2, groups=4, bias=False)),
    "a compression with a stride": lambda block: setattr(block.compress, "stride", (2, 2)),
    "a compression with padding": lambda block: setattr(block.compress, "padding", (1, 1)),
}


@pytest.mark.parametrize("change", OTHERS.values(), ids=OTHERS)
def test_other_convolutions_are_called(change):
    block, x = lk.LENI2d(4).eval(), torch.randn(SHAPES[2])
    change(block)
    decision, = lk.explain(block, x)
    assert decision.backend == "reference"
    assert "is another convolution than the block's" in decision.why_not["cpp"]
    torch.testing.assert_close(block(x), layer_by_layer(block, x))
