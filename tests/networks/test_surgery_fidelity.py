"""What the user wrote is what runs: after replace_relu a forward does all that it did, in both modes, on every path."""

import copy
import io
import pickle
import random
from collections import OrderedDict, defaultdict

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import fx, nn
from torch.fx.experimental.optimization import fuse
from torch.nn.utils import prune
from torch.utils.checkpoint import checkpoint

import leni_kernels as lk

KINDS = ("leni", "reborn", "conv_relu", "ada_relu", "fully_parametric_relu")
AS_BEFORE = ("conv_relu", "ada_relu", "fully_parametric_relu")
"""The kinds that begin as ReLUs."""
every_kind = pytest.mark.parametrize("kind", KINDS)
as_before = pytest.mark.parametrize("kind", AS_BEFORE)


def x(channels=4):
    return torch.randn(2, channels, 6, 5, dtype=torch.float64)


def conv(inputs=4, outputs=4):
    return nn.Conv2d(inputs, outputs, 3, padding=1)


class Plain(nn.Module):
    """A function, and a module called twice, between convolutions; subclasses do more."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.last, self.relu = conv(), conv(), conv(), nn.ReLU()
        self.register_buffer("ema", torch.zeros(4))
        self.n, self.log, self.num_classes = 0, [], 10

    def body(self, x):
        y = self.relu(F.relu(self.first(x)))
        return self.last(self.relu(self.second(y)))

    def forward(self, x):
        return self.body(x)


def replaced(model, kind, example=None, **options):
    result, report = lk.replace_relu(model.double(), kind, example_input=x() if example is None else example, **options)
    assert report.replaced
    return result, report


def seeded(model, *args, **kwargs):
    torch.manual_seed(1)
    random.seed(1)
    np.random.seed(1)
    return model(*args, **kwargs)


# ---- state and branches of training -------------------------------------------------------------------------


class Counting(Plain):
    def forward(self, x):
        y = self.body(x)
        if self.training:
            self.ema = 0.9 * self.ema + 0.1 * y.detach().mean((0, 2, 3))
            self.n = self.n + 1
            self.log.append(self.n)
        return y - self.ema[:, None, None]


class InPlaceData(Plain):
    def forward(self, x):
        y = self.body(x)
        if self.training:
            self.ema.data = self.ema.data + y.detach().mean((0, 2, 3))
            self.ema.mul_(0.5)
        return y - self.ema[:, None, None]


@as_before
@pytest.mark.parametrize("network", [Counting, InPlaceData])
def test_buffers_and_attributes_go_on(kind, network):
    model = network().double()
    result, _ = replaced(model, kind)
    for module in (model, result):
        assert (module.n, module.log, module.ema.any().item()) == (0, [], False)
    for images in (x(), x(), x()):
        torch.testing.assert_close(result.train()(images), model.train()(images))
    torch.testing.assert_close(result.eval()(images), model.eval()(images))
    torch.testing.assert_close(result.ema, model.ema)
    assert type(result.ema) is torch.Tensor
    assert (result.n, result.log) == (model.n, model.log)
    saved = io.BytesIO()
    torch.save(result.state_dict(), saved)
    saved.seek(0)
    torch.testing.assert_close(torch.load(saved)["ema"], model.ema)


def is_tensor(self, y):
    return y * 2 if self.training and isinstance(y, torch.Tensor) else y


def is_tensor_by_torch(self, y):
    return y * 2 if self.training and torch.is_tensor(y) else y


def type_is_tensor(self, y):
    return y * 2 if self.training and type(y) is torch.Tensor else y


def needs_gradient(self, y):
    return y * 2 if y.requires_grad else y


def in_grad_mode(self, y):
    with torch.set_grad_enabled(not self.training):
        return y * 2 if torch.is_grad_enabled() else y


def drawn(self, y):
    return y * torch.rand(()) * random.random() * np.random.rand()


def of_its_value(self, y):
    return y if y.sum() > 0 else -y


def of_its_shape(self, y):
    return y * 2 if y.shape[0] > 2 else y.reshape(-1)


def under_autocast(self, y):
    with torch.autocast("cpu", torch.bfloat16):
        return (y.float() @ y.float().mT).double()


@as_before
@pytest.mark.parametrize("do", [is_tensor, is_tensor_by_torch, type_is_tensor, needs_gradient, in_grad_mode, drawn,
                                of_its_value, of_its_shape, under_autocast])
def test_every_branch_is_taken_as_before(kind, do):
    network = type("Network", (Plain,), {"forward": lambda self, x: do(self, self.body(x))})
    model, example = network().double(), x()
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    result, _ = replaced(model, kind, example)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert (np.random.get_state()[1] == states[2]).all()
    for training in (True, False):
        for images in (x(), -x(), torch.cat([x(), x()])):
            torch.testing.assert_close(seeded(result.train(training), images), seeded(model.train(training), images))
            with torch.no_grad():
                torch.testing.assert_close(seeded(result, images), seeded(model, images))
    images = x()
    assert not torch.equal(seeded(result, images), result(images)) or do is not drawn


def kept_for_backward(model, images):
    sizes = {}

    def keep(tensor):
        sizes[tensor.data_ptr()] = tensor.nbytes
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(images)
    return sum(sizes.values())


class Checkpointed(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(Plain() for _ in range(4))

    def forward(self, x):
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=False) if self.training else block(x)
        return F.relu(x)


@as_before
def test_checkpoints_still_save_memory(kind):
    model = Checkpointed().double()
    result, _ = replaced(model, kind)
    images = x()
    without = copy.deepcopy(result)
    without.forward = lambda x: [x := block(x) for block in without.blocks][-1]
    assert 4 * kept_for_backward(result, images) < 1.2 * kept_for_backward(without, images)
    gradients = [torch.autograd.grad(each(images).square().sum(), list(each.blocks[0].first.parameters()))
                 for each in (model.train(), result.train())]
    torch.testing.assert_close(*gradients)


# ---- arguments, attributes, return values -------------------------------------------------------------------


class Shortcut(Plain):
    def forward(self, x, skip=None, *, scale=1.0, **others):
        y = self.body(x) * scale
        return y if skip is None else y + skip + len(others)


@as_before
@pytest.mark.parametrize("example", [(x(),), (x(), x()), {"x": x(), "labels": 3}])
def test_arguments_that_the_example_does_not_give(kind, example):
    model = Shortcut().double()
    result, _ = replaced(model, kind, example)
    images, skip = x(), x()
    for args, kwargs in (((images,), {}), ((images, skip), {}), ((images,), {"skip": skip, "scale": 2.0, "labels": 1})):
        torch.testing.assert_close(result(*args, **kwargs), model(*args, **kwargs))


@every_kind
def test_class_attributes_and_methods_stay(kind):
    model = Counting()
    result, _ = replaced(model, kind)
    assert isinstance(result, Counting)
    assert (type(result).__name__, type(result).__module__, type(result).__qualname__) == (
        "Counting", Counting.__module__, "Counting")
    assert (result.num_classes, result.n, result.log) == (10, 0, [])
    assert repr(type(result)) == repr(Counting)
    assert result.body(x()).shape == x().shape


class Ordered(OrderedDict):
    def __getattr__(self, name):
        return self[name]


@as_before
@pytest.mark.parametrize("make", [
    lambda y: OrderedDict(out=y, aux=y + 1), lambda y: Ordered(out=y), lambda y: defaultdict(list, out=[y]),
    lambda y: [y, (y, None)], lambda y: {"out": y, "n": 3},
], ids=["OrderedDict", "a subclass", "defaultdict", "list", "dict"])
def test_return_types_stay(kind, make):
    network = type("Network", (Plain,), {"forward": lambda self, x: make(self.body(x))})
    model = network().double()
    result, _ = replaced(model, kind)
    expected, actual = model(images := x()), result(images)
    assert type(actual) is type(expected)
    torch.testing.assert_close(*(list(each.values()) if isinstance(each, dict) else each
                                 for each in (actual, expected)))
    if isinstance(expected, Ordered):
        torch.testing.assert_close(actual.out, expected.out)


# ---- copies -------------------------------------------------------------------------------------------------


class Pooled(Plain):
    def forward(self, x):
        return F.max_pool2d(self.body(x), 2, return_indices=False)


@every_kind
@pytest.mark.parametrize("model", [
    nn.Sequential(*(Plain() for _ in range(100))), nn.Sequential(Pooled(), Plain()), Counting()],
    ids=["deep", "pooled", "counting"])
def test_pickles_copies_and_files(kind, model):
    result = replaced(copy.deepcopy(model), kind)[0].eval()
    stored = io.BytesIO()
    torch.save(result, stored)
    stored.seek(0)
    images = x()
    for copied in (copy.deepcopy(result), pickle.loads(pickle.dumps(result)), torch.load(stored, weights_only=False)):
        assert torch.equal(copied(images), result(images))
        assert type(copied) is type(result)
        copied.load_state_dict(result.state_dict())
        pointers = {parameter.data_ptr() for parameter in result.parameters()}
        assert pointers.isdisjoint(parameter.data_ptr() for parameter in copied.parameters())


# ---- other paths than the example's -------------------------------------------------------------------------


class Choosing(Plain):
    """One ReLU in each of two branches."""

    def forward(self, x, early=True):
        if early:
            x = F.relu(x)
        x = self.last(x)
        if not early:
            x = F.relu(x)
        return x


class Repeating(Plain):
    def forward(self, x, times=2, skip=()):
        for i in range(times):
            x = self.second(x)
            if i not in skip:
                x = F.relu(x)
        return x


class CallingAgain(Plain):
    def forward(self, x, again=False):
        x = self.relu(self.first(x))
        if again:
            x = self.relu(-x)
        return self.last(x)


def moved(model):
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("slope", "threshold")):
                parameter.add_(1.0)
    return model


def test_a_call_that_was_not_seen_stays_what_it_was():
    result = moved(replaced(Choosing(), "fully_parametric_relu")[0])
    torch.testing.assert_close(result(images := x(), early=False), torch.relu(result.last(images)))
    result, _ = replaced(CallingAgain(), "fully_parametric_relu")
    before = result(images, again=True)
    moved(result)
    y = 2 * torch.relu(z := result.first(images)) + torch.where(z < 0, z, 0.0)
    torch.testing.assert_close(result(images), result.last(y))
    torch.testing.assert_close(result(images, again=True), result.last(torch.relu(-y)))
    assert not torch.equal(before, result(images, again=True))


@pytest.mark.parametrize("kind", ["leni", "ada_relu", "fully_parametric_relu"])
def test_calls_in_turn(kind):
    result, report = replaced(Repeating(), kind)
    assert [row.module for row in report.rows[:2]] == ["relu_1.0", "relu_1.1"]
    moved(result)
    images = x()
    y = images
    for row in report.rows[:2]:
        y = result.get_submodule(row.module)(result.second(y))
    for _ in range(2):
        result.eval()
        torch.testing.assert_close(result(images), y if kind != "leni" else result(images))
    with pytest.raises(RuntimeError, match="a call that the example made 2 times is made again"):
        result(images, times=3)
    with pytest.raises(RuntimeError, match="relu_1 was called 1 times, and on the example 2 times"):
        result(images, skip=(0,))
    torch.testing.assert_close(result(images), result(images))
    torch.testing.assert_close(result(images, skip=(0, 1)), result.second(result.second(images)))


def activated(x):
    return F.relu(x)


class CallingTwice(Plain):
    """A function and a method, each from two places."""

    def forward(self, x):
        x = activated(self.first(x))
        x = activated(self.second(x))
        return self.turned(self.turned(x))

    def turned(self, x):
        return F.relu(self.last(x))


def test_functions_and_methods_that_are_called_twice():
    result, report = replaced(CallingTwice(), "leni")
    assert [row.module for row in report.rows[:4]] == ["relu_1", "relu_2", "relu_3.0", "relu_3.1"]
    blocks = [result.eval().get_submodule(row.module) for row in report.rows[:4]]
    y = images = x()
    for layer, block in zip((result.first, result.second, result.last, result.last), blocks, strict=True):
        y = block(layer(y))
    torch.testing.assert_close(result(images), y)


class Recursive(Plain):
    def forward(self, x, depth=2):
        x = F.relu(self.last(x))
        return self(x, depth - 1) if depth else self.second(x)


@pytest.mark.parametrize("kind", ["leni", "fully_parametric_relu"])
def test_what_calls_itself_stays(kind):
    with pytest.raises(ValueError, match="it is called 3 times, and no forward in Python that runs once could begin"):
        replaced(Recursive(), kind)


class Inheriting(nn.ReLU):
    """Is one."""


class Doubling(nn.ReLU):
    def forward(self, x):
        return 2 * super().forward(x)


def test_classes_that_inherit_from_an_activation():
    model = nn.Sequential(conv(), Inheriting(True))
    model[0].unused = Inheriting()
    _, report = replaced(model, "ada_relu")
    assert [(row.name, row.site, row.replaced) for row in report.rows] == [
        ("1", "Inheriting(inplace)", True), ("0.unused", "Inheriting", False)]
    model = nn.Sequential(conv(), Doubling(), conv(), nn.ReLU()).double()
    result, report = replaced(model, "ada_relu")
    assert [row.name for row in report.rows if row.replaced] == ["3"]
    torch.testing.assert_close(result(images := x()), model(images))


class CheckpointedInTurn(Plain):
    def forward(self, x, use_reentrant=False):
        for _ in range(2):
            x = checkpoint(self.turned, x, use_reentrant=use_reentrant)
        return x

    def turned(self, x):
        return F.relu(self.last(x))


def test_what_runs_again_apart_from_its_forward_says_so():
    result, _ = replaced(CheckpointedInTurn(), "leni")
    images = x().requires_grad_()
    for options in ({}, {"use_reentrant": True}):
        output = result(images, **options)
        with pytest.raises(RuntimeError, match="is made apart from it, as in a checkpoint"):
            output.sum().backward()
    with pytest.raises(RuntimeError, match="is made apart from it"):
        result.turned(images)


class SkippingSometimes(Plain):
    def forward(self, x, act=True):
        y = self.first(x)
        y = self.relu(y) if act else y
        return self.last(y) + y


def test_a_convolution_that_reads_no_activation_says_so():
    result, report = replaced(SkippingSometimes(), "conv_relu")
    assert report.rows[0].note == "fused into last; stays for add"
    result(x())
    with pytest.raises(RuntimeError, match="its input is no activation's: on the example it was"):
        result(x(), act=False)


class Returning(Plain):
    def forward(self, x, features=False):
        y = F.relu(self.first(x))
        return (self.last(y), y) if features else self.last(y)


class Keeping(Plain):
    def forward(self, x, features=False):
        y = self.relu(self.first(x))
        if features:
            self.kept = y
        return self.last(y)


class Stating(Plain):
    def forward(self, x, features=False):
        y = self.first(x)
        torch.relu_(y)
        return (self.last(y), y) if features else self.last(y)


class Naming(Plain):
    def forward(self, x, features=False):
        y = self.relu(self.first(x))
        other = y if features else None
        y = self.last(y)
        return y, other


@pytest.mark.parametrize("network", [Returning, Keeping, Stating, Naming])
def test_a_reader_that_was_not_seen_reads_an_activation(network):
    result, report = replaced(network(), "conv_relu")
    assert report.rows[0].note == "fused into last"
    expected = torch.relu(result.first(images := x()))
    output = result(images, features=True)
    torch.testing.assert_close(result.kept if network is Keeping else output[1], expected)


class Conditionally(Plain):
    """By arguments, or as it was built."""

    def forward(self, x, act=True):
        y = self.first(x)
        if act:
            y = self.relu(y)
        return self.last(y)


class Once(Plain):
    def forward(self, x):
        y = self.first(x)
        if self.num_classes:
            y = self.relu(y)
        y = self.last(y)
        return y + 1


def test_a_relu_that_nobody_else_may_read_is_not_computed():
    assert type(replaced(Once(), "conv_relu")[0].relu) is nn.Identity
    result, _ = replaced(Conditionally(), "conv_relu")
    assert type(result.relu) is not nn.Identity
    with pytest.raises(RuntimeError, match="its input is no activation's"):
        result(x(), act=False)


class ConvolvingAgain(Plain):
    def forward(self, x, again=False):
        y = self.last(self.relu(self.first(x)))
        if again:
            y = self.last(y)
        return y


def test_a_convolution_that_is_called_where_the_example_does_not_says_so():
    result, report = replaced(ConvolvingAgain(), "conv_relu")
    assert report.rows[0].note == "fused into last"
    result(x())
    with pytest.raises(RuntimeError, match="its input is no activation's"):
        result(x(), again=True)


class ChangingSometimes(Plain):
    def forward(self, x, change=False):
        y = self.relu(self.first(x))
        if change:
            y += 1
        return self.last(y) + y


def test_an_activation_changed_on_the_way_to_a_convolution_says_so():
    result, _ = replaced(ChangingSometimes(), "conv_relu")
    with pytest.raises(RuntimeError, match="was changed in place after its activation"):
        result(x(), change=True)


class InTrainingOtherwise(Plain):
    def forward(self, x):
        for _ in range(1 if self.training else 2):
            x = F.relu(self.second(x))
        return F.relu(x)


def test_loops_of_another_length_in_training_stay():
    _, report = replaced(InTrainingOtherwise(), "ada_relu")
    assert [row.note for row in report.rows[:3]] == [
        "it is called 2 times in eval mode, and 1 times in training mode"] * 2 + ["AdaReLU"]
    with pytest.raises(ValueError, match="relu_1 cannot be replaced: it is called 2 times in eval mode"):
        replaced(InTrainingOtherwise(), "ada_relu", strict=True)


# ---- what the report says -----------------------------------------------------------------------------------


class AuxiliaryHead(Plain):
    def forward(self, x):
        y = self.body(x)
        return (y, F.relu(self.second(y))) if self.training else y


def test_what_only_training_calls_is_named():
    _, report = replaced(AuxiliaryHead(), "ada_relu")
    assert report.notes == ("in training mode only, and left: relu_3",)


def test_an_example_without_a_training_mode():
    class Network(Plain):
        def forward(self, x):
            assert not self.training, "targets should not be none when in training mode"
            return self.body(x)

    _, report = replaced(Network(), "ada_relu")
    assert report.notes == ("in training mode it does not run on the example, and was not compared (targets should not "
                            "be none when in training mode)",)


def notes(report):
    return {(row.name, row.site): row.note for row in report.rows if not row.replaced}


def test_layers_that_are_not_opened_are_listed():
    model = nn.ModuleDict({
        "conv": nn.Sequential(conv(), nn.ReLU()), "rnn": nn.RNN(5, 5, nonlinearity="relu", batch_first=True),
        "cell": nn.RNNCell(5, 5, nonlinearity="relu"), "tanh": nn.RNN(5, 5, batch_first=True),
        "transformer": nn.TransformerEncoderLayer(5, 1, 5, batch_first=True), "unused": nn.Sequential(nn.ReLU()),
        "scripted": torch.jit.script(nn.Sequential(nn.ReLU(), nn.ReLU())), "parallel": nn.DataParallel(nn.ReLU())})

    def forward(self, x):
        x = self.parallel(self.scripted(self.conv(x)))
        y = x.flatten(0, 1)
        return self.transformer(self.tanh(self.rnn(y)[0])[0]) + self.cell(y[:, 0])[:, None]

    model.__class__ = type("Network", (nn.ModuleDict,), {"forward": forward})
    _, report = replaced(model, "ada_relu")
    assert [row.name for row in report.rows if row.replaced] == ["conv.1", "parallel.module"]
    inner = "runs within a layer that is not opened"
    assert notes(report) == {
        ("rnn", "nn.RNN(nonlinearity='relu')"): inner, ("cell", "nn.RNNCell(nonlinearity='relu')"): inner,
        ("scripted", "torch.jit.ScriptModule"): inner,
        ("transformer.relu", "F.relu"):
            "it runs within nn.TransformerEncoderLayer, a layer of PyTorch, which is not opened",
        ("unused.0", "nn.ReLU"): "does not run on the example in eval mode, or runs within a layer of torch.nn"}


class Iterating(nn.Module):
    """Goes over containers by itself, and cannot be traced."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.Sequential(nn.Sequential(conv(), nn.ReLU(), conv()), nn.Sequential(nn.ReLU(), conv()))
        self.rest = nn.ModuleList([nn.ReLU(), conv()])

    def forward(self, x):
        for block in self.blocks:
            x = block(x) if x.sum() > -torch.inf else x
        for layer in self.rest:
            x = layer(x)
        return x


def test_containers_that_a_forward_goes_over():
    for kind in AS_BEFORE:
        model = Iterating().double()
        result, report = replaced(model, kind)
        assert report.replaced == 3
        torch.testing.assert_close(result(images := x()), model(images))


def test_caps_that_are_lost_are_named():
    model = nn.Sequential(conv(), nn.ReLU6(), conv(), nn.ReLU())
    _, report = replaced(model, "ada_relu", include=("relu6",))
    assert [row.note for row in report.rows] == ["AdaReLU, without the cap at 6", "AdaReLU"]
    _, report = replaced(model, "conv_relu", include=("relu6",))
    assert report.rows[0].note == "fused into 2"


# ---- refusals -----------------------------------------------------------------------------------------------


class OfAList(Plain):
    def forward(self, images):
        return [self.body(images.get(0) if isinstance(images, dict) else image[None]) for image in images]


def test_a_list_that_is_one_argument():
    images = [x()[0], x()[0]]
    with pytest.raises(ValueError, match=r"a model that takes a list as its one argument is shown \(\[\.\.\.\],\)"):
        replaced(OfAList(), "ada_relu", images)
    _, report = replaced(OfAList(), "ada_relu", (images,))
    assert report.replaced == len(report.rows) == 6


def test_names_with_brackets():
    model = nn.Sequential(OrderedDict({"conv": conv(), "relu[0]": nn.ReLU()}))
    _, report = replaced(model, "ada_relu", where=["relu[0]"])
    assert report.replaced == 1


def test_outputs_of_another_structure():
    class Flattening(Plain):
        """What it returns depends on a child's type."""

        def forward(self, x):
            y = self.body(x)
            return (y,) if isinstance(self.relu, nn.ReLU) else (y, y)

    with pytest.raises(ValueError, match="the network does not compute what it did"):
        replaced(Flattening(), "conv_relu")


@pytest.mark.parametrize("norm", [nn.utils.weight_norm, lambda layer: prune.l1_unstructured(layer, "weight", 3)])
@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
def test_layers_that_compute_their_weight(norm):
    model = Plain().double()
    norm(model.second)
    model(x())
    for kind in AS_BEFORE:
        result, _ = replaced(model, kind)
        torch.testing.assert_close(result(images := x()), model(images))
        result(images).sum().backward()


# ---- who else looks at the result ---------------------------------------------------------------------------


@every_kind
def test_blocks_are_leaves_to_others(kind):
    features = pytest.importorskip("torchvision.models.feature_extraction")
    model = nn.Sequential(OrderedDict(stem=conv(), relu=nn.ReLU(), body=Plain(), norm=nn.BatchNorm2d(4), last=conv()))
    result = replaced(model.eval(), kind)[0].eval()
    images = x()
    expected = result(images)
    torch.testing.assert_close(fx.symbolic_trace(result)(images), expected)
    torch.testing.assert_close(features.create_feature_extractor(result, ["last"])(images)["last"], expected)
    torch.testing.assert_close(fuse(result)(images), expected)
    assert any(isinstance(module, lk.LENI2d | lk.Reborn2d | lk.ConvReLU2d | lk.AdaReLU | lk.FullyParametricReLU)
               for module in fx.symbolic_trace(result).modules())


@as_before
def test_a_graph_module_is_edited(kind):
    model = fx.symbolic_trace(nn.Sequential(conv(), nn.ReLU(True), Plain(), conv()).double())
    result, report = replaced(model, kind)
    assert report.replaced == (3 if kind == "conv_relu" else 4)
    for copied in (result, copy.deepcopy(result), pickle.loads(pickle.dumps(result))):
        torch.testing.assert_close(copied(images := x()), model(images))
    assert sum(node.target is F.relu for node in result.graph.nodes) == (kind == "conv_relu")


@pytest.mark.parametrize(("kind", "network"), [
    ("ada_relu", Plain), ("ada_relu", Repeating), ("conv_relu", Plain), ("conv_relu", SkippingSometimes)])
def test_compiled_and_exported(kind, network):
    torch._dynamo.reset()
    result = moved(replaced(network(), kind)[0]).eval()
    images = x()
    with torch.no_grad():
        expected = result(images)
        compiled = torch.compile(result, fullgraph=True, backend="aot_eager")
        for _ in range(2):
            torch.testing.assert_close(compiled(images), expected)
        torch.testing.assert_close(torch.export.export(result, (images,)).module()(images), expected)
