"""fold: the same network with its blocks one operation each, everything else left alone, all refusals."""

import copy
import io
import pickle

import pytest
import torch
from torch import nn

import leni_kernels as lk
from leni_kernels.common import extension
from leni_kernels.leni.modules import FoldedLENI2d
from leni_kernels.reborn.modules import FoldedReborn2d

BLOCKS = {"leni": lambda: lk.LENI2d(4, 5), "separable leni": lambda: lk.LENI2d(4, separable=True),
          "reborn": lambda: lk.Reborn2d(4), "grouped reborn": lambda: lk.Reborn2d(4, 5, groups=2)}
FOLDED = (FoldedLENI2d, FoldedReborn2d)
every_block = pytest.mark.parametrize("make", BLOCKS.values(), ids=BLOCKS)


def randomised(model, dtype=torch.float32):
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.5)
                module.running_var.uniform_(0.5, 2)
                nn.init.normal_(module.weight, 1, 0.5)
                nn.init.normal_(module.bias, 0, 0.5)
    return model.to(dtype).eval()


class Network(nn.Module):
    """Blocks in every place a network keeps them: attribute, list, dictionary, twice, under two names."""

    def __init__(self, make):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), make())
        self.listed = nn.ModuleList([make(), nn.ReLU()])
        self.named = nn.ModuleDict({"act": make()})
        self.shared = make()
        self.again = self.shared
        self.repeated = nn.Sequential(self.shared, nn.Conv2d(4, 4, 1), self.shared)

    def forward(self, x):
        x = self.named["act"](self.listed[1](self.listed[0](self.stem(x))))
        return self.again(self.repeated(self.shared(x)))


def x(dtype=torch.float32):
    return torch.randn(2, 3, 7, 6).to(dtype)


def assert_near(actual, expected, tolerance):
    assert actual.dtype == expected.dtype
    assert (actual - expected).abs().max() <= tolerance * expected.abs().max()


@every_block
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_the_network_computes_the_same(make, dtype, tolerance):
    model = randomised(Network(make), dtype)
    folded, images = lk.fold(model), x(dtype)
    with torch.no_grad(), lk.use_backend("reference"):
        assert_near(folded(images), model(images), tolerance)
    assert not folded.training


@every_block
def test_each_block_and_nothing_else_is_replaced(make):
    model = randomised(Network(make))
    before = copy.deepcopy(model)
    kinds = {name: type(module) for name, module in model.named_modules()}
    folded = lk.fold(model)
    assert folded is not model
    for name, module in folded.named_modules():
        assert isinstance(module, FOLDED if kinds[name] in (lk.LENI2d, lk.Reborn2d) else kinds[name])
    assert sum(isinstance(module, FOLDED) for module in folded.modules()) == 4
    assert folded.shared is folded.again is folded.repeated[0] is folded.repeated[2]
    assert not any(module.training for module in folded.modules())
    # The original is as it was, and shares nothing with the copy.
    assert {name: type(module) for name, module in model.named_modules()} == kinds
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), before.parameters(), strict=True))
    pointers = {tensor.data_ptr() for tensor in model.state_dict().values()}
    assert not pointers & {tensor.data_ptr() for tensor in folded.state_dict().values()}


@every_block
def test_in_place(make):
    model, images = randomised(Network(make), torch.float64), x(torch.float64)
    expected, conv, block = model(images), model.stem[0], model.shared
    weights = {tensor.data_ptr() for tensor in block.parameters()}
    assert lk.fold(model, inplace=True) is model
    assert model.stem[0] is conv
    assert isinstance(model.shared, FOLDED)
    assert not weights & {tensor.data_ptr() for tensor in model.shared.parameters()}
    assert_near(model(images), expected, 1e-12)


@every_block
@pytest.mark.parametrize("inplace", [False, True])
def test_the_model_may_be_a_block(make, inplace):
    block, features = randomised(make(), torch.float64), torch.randn(2, 4, 5, 6, dtype=torch.float64)
    folded = lk.fold(block, inplace=inplace)
    assert isinstance(folded, FOLDED)
    assert_near(folded(features), block(features), 1e-12)


def test_a_model_without_blocks_is_copied():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU()).eval()
    folded = lk.fold(model)
    assert str(folded) == str(model)
    assert folded is not model
    assert lk.fold(model, inplace=True) is model


def test_folding_twice_changes_nothing():
    once = lk.fold(randomised(Network(BLOCKS["leni"])))
    twice = lk.fold(once)
    assert str(once) == str(twice)
    assert all(torch.equal(a, b) for a, b in zip(once.parameters(), twice.parameters(), strict=True))


def test_a_subclass_is_left_alone():
    class Doubled(lk.LENI2d):
        def forward(self, x):
            return 2 * super().forward(x)

    model = nn.Sequential(randomised(Doubled(4)))
    model.eval()
    assert type(lk.fold(model)[0]) is Doubled


def test_blocks_without_compress_bias_or_affine_norms():
    block = lk.LENI2d(4)
    block.compress = nn.Conv2d(8, 4, 1, bias=False)
    block.bn_negative = nn.BatchNorm2d(4, affine=False)
    block.eval().double()
    features = torch.randn(2, 4, 5, 6, dtype=torch.float64)
    assert_near(lk.fold(block)(features), block(features), 1e-12)


def test_converted_norms_are_folded():
    model = randomised(nn.Sequential(lk.LENI2d(4)), torch.float64)
    features = torch.randn(2, 4, 5, 6, dtype=torch.float64)
    expected = model(features)
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(model).eval()
    assert_near(lk.fold(converted)(features), expected, 1e-12)


def test_parametrized_blocks_are_folded():
    block, features = randomised(lk.LENI2d(4), torch.float64), torch.randn(2, 4, 5, 6, dtype=torch.float64)
    nn.utils.parametrizations.weight_norm(block.deconv)
    assert_near(lk.fold(block)(features), block(features), 1e-12)


# ---- refusals ----------------------------------------------------------------------------------------------


def refused(model, message):
    before = str(model)
    for inplace in (False, True):
        with pytest.raises(ValueError, match=message):
            lk.fold(model, inplace=inplace)
    assert str(model) == before


@every_block
def test_training_mode_is_refused(make):
    refused(Network(make), r"fold: the model \(Network\) is in training mode; call eval\(\) first")
    refused(make(), r"fold: the model \((LENI|Reborn)2d\) is in training mode")
    refused(nn.Sequential(nn.ReLU()), r"fold: the model \(Sequential\) is in training mode")
    model = Network(make).eval()
    model.named["act"].train()
    refused(model, r"fold: 'named.act' \((LENI|Reborn)2d\) is in training mode")
    model.eval()
    model.listed[0].bn_negative.train()
    refused(model, r"fold: 'listed.0' \((LENI|Reborn)2d\) is in training mode")


@every_block
@pytest.mark.parametrize("register", ["register_forward_hook", "register_forward_pre_hook",
                                      "register_full_backward_hook", "register_full_backward_pre_hook"])
def test_hooks_that_would_be_lost_are_refused(make, register):
    model = Network(make).eval()
    handle = getattr(model.shared, register)(lambda *_: None)
    refused(model, r"fold: 'shared' \((LENI|Reborn)2d\) has hooks, which its folded form would lose")
    handle.remove()
    handle = getattr(model.shared.compress, register)(lambda *_: None)
    refused(model, r"fold: 'shared' \(\w+\) cannot be folded: a hook on compress must see its layer run; "
                   "remove the hook first")
    handle.remove()
    lk.fold(model)


def test_hooks_elsewhere_are_kept():
    model, seen = Network(BLOCKS["leni"]).eval(), []
    model.stem[0].register_forward_hook(lambda *_: seen.append("ran"))
    lk.fold(model)(x())
    assert seen == ["ran"]


@every_block
def test_norms_without_running_statistics_are_refused(make):
    model = Network(make)
    model.stem[2].bn_negative = nn.BatchNorm2d(4, track_running_stats=False)
    refused(model.eval(), r"fold: 'stem.2' \(\w+\) cannot be folded: bn_negative has no running statistics")


@every_block
def test_replaced_layers_are_refused(make):
    block = make().eval()
    block.bn_negative = nn.Identity().eval()
    refused(block, r"fold: the model \(\w+\) cannot be folded: bn_negative was replaced by a Identity")


# ---- dtypes and devices ------------------------------------------------------------------------------------


@every_block
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_folded_parameters_are_float32_or_float64(make, dtype):
    block = randomised(make(), dtype)
    folded, features = lk.fold(block), torch.randn(2, 4, 5, 6).to(dtype)
    kept = torch.float64 if dtype == torch.float64 else torch.float32
    assert {parameter.dtype for parameter in folded.parameters()} == {kept}
    assert not any(parameter.requires_grad for parameter in folded.parameters())
    y, expected = folded(features), copy.deepcopy(block).double()(features.double())
    assert y.dtype == dtype
    with lk.use_backend("reference"):
        composed = block(features)
    # Of float32 the largest error is a rounding or two: whose is larger is chance.
    limit = {torch.float64: 1e-12, torch.float32: 1e-6}.get(dtype, 2 * (composed - expected).abs().max())
    assert (y - expected).abs().max() <= limit


@every_block
def test_the_device_is_kept(make):
    folded = lk.fold(make().eval().to("meta"))
    assert {parameter.device.type for parameter in folded.parameters()} == {"meta"}
    assert folded(torch.empty(2, 4, 5, 6, device="meta")).device.type == "meta"


@every_block
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_change_of_dtype_after_folding(make, dtype):
    folded, features = lk.fold(randomised(make())), torch.randn(2, 4, 5, 6)
    expected = folded(features)
    changed = copy.deepcopy(folded).to(dtype)
    y = changed(features.to(dtype))
    assert y.dtype == dtype
    assert_near(y.float(), expected, {torch.float64: 1e-5, torch.bfloat16: 0.05, torch.float16: 0.01}[dtype])


@every_block
def test_autocast_after_folding(make):
    folded, features = lk.fold(randomised(make())), torch.randn(2, 4, 5, 6)
    with torch.autocast("cpu", torch.bfloat16):
        y = folded(features)
    assert y.dtype == torch.bfloat16
    assert_near(y.float(), folded(features), 0.05)


# ---- a folded network is a module like the others ----------------------------------------------------------


@every_block
def test_state_dict_round_trip(make):
    source, target = (lk.fold(randomised(Network(make))) for _ in range(2))
    images, stored = x(), io.BytesIO()
    torch.save(source.state_dict(), stored)
    stored.seek(0)
    assert not torch.equal(target(images), source(images))
    target.load_state_dict(torch.load(stored, weights_only=True))
    assert torch.equal(target(images), source(images))


@every_block
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies(make, copied):
    folded, images = lk.fold(randomised(Network(make))), x()
    assert torch.equal(copied(folded)(images), folded(images))


@every_block
def test_train_and_eval_leave_it_as_it_is(make):
    folded, features = lk.fold(randomised(make())), torch.randn(2, 4, 5, 6)
    expected = folded(features)
    assert torch.equal(folded.train()(features), expected)


def test_it_runs_fused():
    decision, = lk.explain(lk.fold(lk.LENI2d(4).eval()), torch.randn(2, 4, 5, 6))
    assert decision.operation == "leni_folded"
    assert decision.backend == ("reference" if extension.why_missing else "cpp")


def test_representation():
    assert repr(lk.fold(lk.LENI2d(4, 5).eval())) == "FoldedLENI2d(4, kernel_size=5)"
    assert repr(lk.fold(lk.Reborn2d(4, groups=2).eval())) == "FoldedReborn2d(4, kernel_size=3)"


def test_compiled_and_exported():
    torch._dynamo.reset()
    model = randomised(nn.Sequential(nn.Conv2d(3, 4, 3), lk.LENI2d(4), lk.Reborn2d(4)))
    folded, images = lk.fold(model), x()
    with torch.no_grad():
        expected = model(images)
        assert_near(torch.compile(folded, fullgraph=True, backend="aot_eager")(images), expected, 1e-5)
        program = torch.export.export(folded, (images,))
        assert_near(program.module()(images), expected, 1e-5)
