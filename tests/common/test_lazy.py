"""Lazy forms: what the plain classes are once an input has come, and PyTorch's lazy modules until then."""

import copy
import pickle

import pytest
import timm
import torch
import torchvision
from torch import nn
from torch.nn.parameter import is_lazy

import leni_kernels as lk

SHAPES = {1: (2, 4, 7), 2: (2, 4, 6, 5), 3: (2, 4, 3, 4, 3)}
CASES = {f"{name}{dims}d{', ' * bool(options)}{' '.join(options)}": (f"{name}{dims}d", options, SHAPES[dims])
         for dims in SHAPES
         for name, options in (("LENI", {}), ("LENI", {"kernel_size": 5, "momentum": None}),
                               ("LENI", {"separable": True}), ("Reborn", {"groups": 2}),
                               ("Reborn", {"compress": False}),
                               ("ConvReLU", {"out_channels": 6, "kernel_size": 3, "groups": 2, "padding": 1}),
                               ("ConvReLU", {"out_channels": 6, "kernel_size": 1, "threshold_init": "xavier"}))}
CASES |= {name: (name, {}, SHAPES[2]) for name in ("AdaReLU", "FullyParametricReLU")}
CASES |= {"AdaReLU, xavier": ("AdaReLU", {"threshold_init": "xavier"}, (3, 4))}
every_case = pytest.mark.parametrize(("name", "options", "shape"), CASES.values(), ids=CASES)


def plain(name, options, **more):
    return getattr(lk, name)(4, **options, **more)


def lazy(name, options, **more):
    return getattr(lk, f"Lazy{name}")(**options, **more)


def state_of(module):
    return {name: (type(child), {key: value for key, value in vars(child).items() if not key.startswith("_")})
            for name, child in module.named_modules()}


def assert_same(module, wanted):
    assert state_of(module) == state_of(wanted)
    assert not module._forward_pre_hooks
    torch.testing.assert_close(module.state_dict(), wanted.state_dict(), rtol=0, atol=0)


@every_case
def test_the_first_call_makes_the_plain_module(name, options, shape):
    module, x = lazy(name, options), torch.randn(shape)
    assert isinstance(module, getattr(lk, name))
    assert all(map(is_lazy, module.parameters()))
    parameters = list(module.parameters())
    torch.manual_seed(3)
    y = module.eval()(x)
    torch.manual_seed(3)
    wanted = plain(name, options).eval()
    assert_same(module, wanted)
    assert module.__module__ == wanted.__module__
    assert torch.equal(y, wanted(x))
    # They are the ones that there were, so that who held them holds them still.
    assert all(ours is before for ours, before in zip(module.parameters(), parameters, strict=True))
    module.train()(x.requires_grad_()).sum().backward()
    assert all(parameter.grad is not None for parameter in module.parameters())


@every_case
def test_states_are_saved_and_loaded(name, options, shape):
    module, x = lazy(name, options).eval(), torch.randn(shape)
    trained = plain(name, options).eval()
    with torch.no_grad():
        for parameter in trained.parameters():
            parameter.normal_()
    saved = pickle.loads(pickle.dumps(module.state_dict()))
    assert saved.keys() == trained.state_dict().keys()
    module.load_state_dict(saved)
    assert all(map(is_lazy, module.parameters()))
    module.load_state_dict(trained.state_dict())
    before = torch.get_rng_state()
    assert torch.equal(module(x), trained(x))
    assert torch.equal(torch.get_rng_state(), before)
    assert_same(module, trained)
    with pytest.raises(RuntimeError, match="uninitialized parameter"):
        trained.load_state_dict(lazy(name, options).state_dict())


@every_case
def test_copies_pickles_and_casts(name, options, shape):
    module = lazy(name, options).to(torch.float64)
    for copied in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        copied(torch.randn(shape, dtype=torch.float64))
        assert type(copied) is getattr(lk, name)
        assert {tensor.dtype for tensor in copied.parameters()} == {torch.float64}
    assert all(map(is_lazy, module.parameters()))
    module.half().bfloat16()(torch.randn(shape, dtype=torch.bfloat16))
    assert {tensor.dtype for tensor in module.parameters()} == {torch.bfloat16}
    assert_same(pickle.loads(pickle.dumps(module)), module)
    on_meta = lazy(name, options, device="meta", dtype=torch.float64).eval()
    assert on_meta(torch.empty(shape, device="meta", dtype=torch.float64)).is_meta


@pytest.mark.parametrize(("name", "options", "shape"), [("LENI2d", {}, SHAPES[2]), ("AdaReLU", {}, SHAPES[2])])
def test_compiled_after_the_first_call(name, options, shape):
    torch._dynamo.reset()
    module, x = lazy(name, options), torch.randn(shape)
    module(x)
    module.eval()
    torch.testing.assert_close(torch.compile(module, fullgraph=True, backend="aot_eager")(x), module(x))


def test_what_was_set_before_the_first_call_stays():
    block, seen = lk.LazyLENI2d().eval(), []
    block.bn_fusion.eps = 0.5
    block.deconv.weight.requires_grad = False
    block.register_forward_hook(lambda *_: seen.append("block"))
    block(torch.randn(SHAPES[2]))
    assert (block.bn_fusion.eps, block.bn_negative.training, seen) == (0.5, False, ["block"])
    assert [parameter.requires_grad for parameter in block.parameters()] == [False, *[True] * 6]


def test_inference_mode_at_the_first_call_leaves_parameters_that_train():
    block, x = lk.LazyLENI2d(), torch.randn(SHAPES[2])
    with torch.inference_mode():
        block(x)
    block(x).sum().backward()


@pytest.mark.parametrize("name", ["LazyLENI2d", "LazyReborn2d", "LazyAdaReLU", "LazyFullyParametricReLU"])
def test_an_input_that_does_not_fit_leaves_it_lazy(name):
    block = getattr(lk, name)()
    for x, error in ((torch.randn(4), ValueError), (torch.randn(2, 0, 5, 5), ValueError),
                     (torch.ones(2, 4, 5, 5, dtype=torch.int64), TypeError)):
        with pytest.raises(error, match=f"{name}: x must "):
            block(x)
    assert all(map(is_lazy, block.parameters()))
    assert type(block(torch.randn(2, 4, 5, 5))) is torch.Tensor


def test_a_first_input_that_does_not_fit_what_was_loaded():
    block = lk.LazyLENI2d()
    block.load_state_dict(lk.LENI2d(8).state_dict())
    with pytest.raises(ValueError, match=r"LazyLENI2d: x has 4 channels, with which deconv.weight has shape "
                                         r"\[4, 1, 3, 3\], but one of \[8, 1, 3, 3\] was loaded"):
        block(torch.randn(2, 4, 5, 5))
    assert type(block) is lk.LazyLENI2d
    block(torch.randn(2, 8, 5, 5))
    assert (block.channels, block.deconv.groups, block.compress.in_channels) == (8, 8, 16)


def test_arguments_are_those_of_the_plain_class():
    with pytest.raises(TypeError, match="unexpected keyword argument 'slope'"):
        lk.LazyLENI2d(slope=1)
    with pytest.raises(TypeError, match="'kernel_size'"):
        lk.LazyConvReLU2d(8)
    with pytest.raises(TypeError, match="'inplace'"):
        lk.LazyConvReLU2d(8, 3, inplace=True)
    with pytest.raises(ValueError, match="LazyReborn2d: kernel_size must be odd, got 2"):
        lk.LazyReborn2d(2)
    with pytest.raises(ValueError, match="divisible by groups"):
        lk.LazyReborn2d(groups=3)(torch.randn(SHAPES[2]))


def test_a_lazy_module_shows_its_arguments():
    assert str(lk.LazyAdaReLU(threshold_init="xavier", inplace=True)) == "LazyAdaReLU(threshold_init=xavier)"
    assert "(compress): LazyConv2d()" in str(lk.LazyLENI2d(5))


def test_what_needs_parameters_says_that_there_are_none():
    block, x = lk.LazyLENI2d().eval(), torch.randn(SHAPES[2])
    with pytest.raises(ValueError, match="uninitialized parameter"):
        lk.explain(block, x)
    with pytest.raises(ValueError, match="uninitialized parameter"):
        lk.parameter_groups(block)
    with pytest.raises(ValueError, match=r"fold: '0' \(LazyLENI2d\) has no parameters before its first call"):
        lk.fold(nn.Sequential(block).eval())
    assert all(map(is_lazy, block.parameters()))


# ---- where other libraries ask for an activation -----------------------------------------------------------


@pytest.mark.parametrize("name", ["LENI2d", "Reborn2d", "AdaReLU", "FullyParametricReLU"])
def test_a_network_of_timm(name):
    network = timm.create_model("resnet18", act_layer=getattr(lk, f"Lazy{name}"), num_classes=10)
    network(torch.randn(2, 3, 32, 32)).sum().backward()
    assert sum(type(module) is getattr(lk, name) for module in network.modules()) == 17
    assert all(parameter.grad is not None for parameter in network.parameters())
    assert network.layer4[1].act2(torch.randn(2, 512, 2, 2)).shape == (2, 512, 2, 2)


@pytest.mark.parametrize("inplace", [None, True])
def test_blocks_of_torchvision(inplace):
    mlp = torchvision.ops.MLP(4, [8, 6, 3], activation_layer=lk.LazyAdaReLU, inplace=inplace)
    assert mlp(torch.randn(5, 4)).shape == (5, 3)
    assert [module.threshold.shape for module in mlp if type(module) is lk.AdaReLU] == [(8,), (6,)]
    options = {} if inplace is None else {"inplace": inplace}
    conv = torchvision.ops.Conv2dNormActivation(3, 8, activation_layer=lk.LazyLENI2d, **options)
    assert conv(torch.randn(2, 3, 6, 6)).shape == (2, 8, 6, 6)
    assert type(conv[2]) is lk.LENI2d


def test_of_tokens_channels_are_axis_1():
    mlp = torchvision.ops.MLP(4, [8, 3], activation_layer=lk.LazyAdaReLU)
    assert mlp(torch.randn(5, 7, 4)).shape == (5, 7, 3)
    assert mlp[1].threshold.shape == (7,)
