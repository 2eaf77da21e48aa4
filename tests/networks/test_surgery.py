"""replace_relu on small networks: every spelling of a call, every ``where``, what is fused, kept, reported, refused."""

import copy
import io
import pickle
import random
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import fx, nn
from torch.fx.experimental.optimization import fuse

import leni_kernels as lk

KINDS = ("leni", "reborn", "conv_relu", "ada_relu", "fully_parametric_relu")
every_kind = pytest.mark.parametrize("kind", KINDS)


def x(*shape, dtype=torch.float64):
    return torch.randn(*(shape or (2, 4, 6, 5)), dtype=dtype)


def network(forward, dtype=torch.float64, **modules):
    """A module made of children and a forward that names them."""

    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            for name, module in modules.items():
                setattr(self, name, module)

    Network.forward = forward
    return Network().to(dtype)


def conv(inputs=4, outputs=4, **options):
    return nn.Conv2d(inputs, outputs, 3, padding=1, **options)


class Block(nn.Module):
    """One nn.ReLU called twice, as in a residual block."""

    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = conv(bias=False), nn.BatchNorm2d(4)
        self.conv2, self.bn2 = conv(bias=False), nn.BatchNorm2d(4)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += x
        return self.relu(out)


def residual():
    return nn.Sequential(conv(), nn.ReLU(), Block(), Block(), nn.Flatten(), nn.Linear(120, 3), nn.ReLU()).double()


NAMES = ["1", "2.relu", "2.relu_1", "3.relu", "3.relu_1", "6"]


def rows(report):
    return {row.name: row for row in report.rows}


def replaced(report):
    return [row.name for row in report.rows if row.replaced]


def assert_same(model, other, *inputs, tolerance=1e-12):
    expected = other(*inputs)
    assert (model(*inputs) - expected).abs().max() <= tolerance * expected.abs().max()


# ---- call sites ---------------------------------------------------------------------------------------------


def spelt(call, **modules):
    def forward(self, x):
        return self.last(call(self, self.first(x)))

    return network(forward, first=conv(), last=conv(), **modules)


def assigned(method):
    def call(self, x):
        method(x)
        return x

    return call


SPELLINGS = {
    "module": (spelt(lambda self, x: self.act(x), act=nn.ReLU()), "act", "nn.ReLU"),
    "module in place": (spelt(lambda self, x: self.act(x), act=nn.ReLU(True)), "act", "nn.ReLU(inplace)"),
    "module by keyword": (spelt(lambda self, x: self.act(input=x), act=nn.ReLU()), "act", "nn.ReLU"),
    "F.relu": (spelt(lambda self, x: F.relu(x)), "relu", "F.relu"),
    "F.relu by keyword": (spelt(lambda self, x: F.relu(input=x)), "relu", "F.relu"),
    "F.relu in place": (spelt(lambda self, x: F.relu(x, inplace=True)), "relu", "F.relu(inplace)"),
    "F.relu in place by position": (spelt(lambda self, x: F.relu(x, True)), "relu", "F.relu(inplace)"),
    "torch.relu": (spelt(lambda self, x: torch.relu(x)), "relu", "torch.relu"),
    "method": (spelt(lambda self, x: x.relu()), "relu", "Tensor.relu"),
    "torch.relu_": (spelt(lambda self, x: torch.relu_(x)), "relu", "torch.relu_"),
    "method in place": (spelt(lambda self, x: x.relu_()), "relu", "Tensor.relu_"),
    "statement": (spelt(assigned(lambda x: x.relu_())), "relu", "Tensor.relu_"),
    "statement by function": (spelt(assigned(lambda x: F.relu(x, inplace=True))), "relu", "F.relu(inplace)"),
}


@every_kind
@pytest.mark.parametrize(("model", "name", "text"), SPELLINGS.values(), ids=SPELLINGS)
def test_every_spelling_is_seen(kind, model, name, text):
    result, report = lk.replace_relu(model, kind, example_input=x())
    row, = report.rows
    assert (row.name, row.site, row.shape, row.replaced) == (name, text, (2, 4, 6, 5), True)
    if kind == "conv_relu":
        assert type(result.last) is lk.ConvReLU2d
        assert result.last.weight.shape == model.last.weight.shape
    else:
        assert type(result.get_submodule(name)).__name__ == row.note
    if kind not in ("leni", "reborn"):
        assert_same(result, model, x())
    else:
        block = result.get_submodule(name)
        expected = result.last(block(result.first(images := x())))
        torch.testing.assert_close(result(images), expected)


def test_a_module_called_twice_is_two_sites():
    result, report = lk.replace_relu(residual(), "leni", example_input=x())
    assert [row.name for row in report.rows] == NAMES
    assert replaced(report) == NAMES[:-1]
    assert result[2].relu is not result[2].relu_1
    assert [type(result[i]) for i in (0, 1, 6)] == [nn.Conv2d, lk.LENI2d, nn.ReLU]
    assert isinstance(result[2], Block)
    images = x()
    block, y = result[2], result[1](result[0](images))
    expected = block.relu_1(block.bn2(block.conv2(block.relu(block.bn1(block.conv1(y))))) + y)
    torch.testing.assert_close(block(y), expected)


def test_one_of_two_calls_keeps_its_relu():
    for name in ("2.relu", "2.relu_1"):
        model = residual().eval()
        result, report = lk.replace_relu(model, "fully_parametric_relu", [name], example_input=x())
        assert replaced(report) == [name]
        assert_same(result, model, x())
        result.get_submodule(name).negative_slope.data.fill_(0.5)
        assert not torch.allclose(result(images := x()), model(images))


def test_a_module_under_several_names():
    shared = nn.ReLU()

    def forward(self, x):
        return self.b(self.second(self.first(x)))

    model = network(forward, first=conv(), a=shared, second=conv(), b=shared)
    result, report = lk.replace_relu(model, "ada_relu", example_input=x())
    assert replaced(report) == ["a"]
    assert result.a is result.b
    assert_same(result, model, x())


def test_a_module_shared_by_two_blocks():
    model = nn.Sequential(Block(), Block()).double().eval()
    model[1].relu = model[0].relu
    result, report = lk.replace_relu(model, "ada_relu", ["0.relu_1", "1.relu"], example_input=x())
    assert replaced(report) == ["0.relu_1", "1.relu"]
    assert_same(result, model, x())
    assert result[0].relu_1 is not result[1].relu


def test_a_module_called_twice_has_blocks_in_turn():
    class Activation(nn.Module):
        def forward(self, x):
            return F.relu(x) + 1

    def forward(self, x):
        return self.act(self.down(self.act(self.up(x))))

    model = network(forward, up=conv(4, 8), down=conv(8, 4), act=Activation())
    result, report = lk.replace_relu(model, "ada_relu", example_input=x())
    assert [(row.name, row.module, row.shape[1]) for row in report.rows] == [
        ("act.relu", "act.relu.0", 8), ("act_1.relu", "act.relu.1", 4)]
    assert type(result.act.relu) is lk.surgery.InTurn
    assert_same(result, model, x())
    assert [block.threshold.shape for block in result.act.relu] == [(8,), (4,)]
    nn.init.normal_(result.act.relu[0].threshold)
    y = result.down(result.act.relu[0](result.up(images := x())) + 1)
    torch.testing.assert_close(result(images), torch.relu(y) + 1)


def test_one_call_of_several_in_turn():
    model = network(lambda self, x: self.act(self.last(self.act(self.first(x)))), first=conv(), last=conv(),
                    act=nn.Sequential(nn.ReLU()))
    result, report = lk.replace_relu(model, "ada_relu", "last:1", example_input=x())
    assert replaced(report) == ["act_1.0"]
    assert [type(each) for each in result.act[0]] == [nn.ReLU, lk.AdaReLU]
    assert_same(result, model, x())


def test_relu6_and_hardswish_on_request():
    model = nn.Sequential(conv(), nn.ReLU6(), conv(), nn.Hardswish(), conv(), nn.ReLU()).double()
    _, report = lk.replace_relu(model, "ada_relu", example_input=x())
    assert [row.name for row in report.rows] == ["5"]
    result, report = lk.replace_relu(model, "leni", example_input=x(), include=("relu6", "hardswish"))
    assert [(row.name, row.site) for row in report.rows] == [("1", "nn.ReLU6"), ("3", "nn.Hardswish"), ("5", "nn.ReLU")]
    assert [type(result[i]) for i in (1, 3, 5)] == [lk.LENI2d] * 3


def test_functional_relu6_and_hardswish():
    model = network(lambda self, x: F.hardswish(self.b(F.relu6(self.a(x)))), a=conv(), b=conv())
    result, report = lk.replace_relu(model, "leni", example_input=x(), include=("relu6", "hardswish"))
    assert replaced(report) == ["relu6", "hardswish"]
    torch.testing.assert_close(result(images := x()), result.hardswish(result.b(result.relu6(result.a(images)))))


# ---- where --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("where", "expected"), [
    ("all", NAMES[:5]), ("first", NAMES[:1]), ("first:3", NAMES[:3]), ("last:2", NAMES[3:5]), ("first:9", NAMES[:5]),
    (["2.*"], NAMES[1:3]), (("1", "*.relu_1"), ["1", "2.relu_1", "3.relu_1"]),
    (lambda index, name: index % 2 == 0, ["1", "2.relu_1", "3.relu_1"]),
    (lambda index, name: name.startswith("3"), NAMES[3:5]),
])
def test_where(where, expected):
    _, report = lk.replace_relu(residual(), "leni", where, example_input=x())
    assert replaced(report) == expected
    assert all(row.note in ("LENI2d", "not asked for") for row in report.rows[:5])


def test_what_cannot_be_taken_is_not_counted():
    _, report = lk.replace_relu(residual(), "leni", "last:1", example_input=x())
    assert replaced(report) == ["3.relu_1"]
    assert rows(report)["6"].note == "the block takes [N, C, *spatial], this is [2, 3]"
    _, report = lk.replace_relu(residual(), "ada_relu", "last:1", example_input=x())
    assert replaced(report) == ["6"]


# ---- what works in place ------------------------------------------------------------------------------------


def test_later_readers_of_an_input_in_place_read_the_new_output():
    def forward(self, x):
        x = self.first(x)
        y = self.act(x)
        return self.last(y) + x

    model = network(forward, first=conv(), act=nn.ReLU(True), last=conv())
    result, report = lk.replace_relu(model, "ada_relu", example_input=x())
    assert replaced(report) == ["act"]
    assert_same(result, model, images := x())
    nn.init.normal_(result.act.threshold)
    y = result.act(result.first(images))
    torch.testing.assert_close(result(images), result.last(y) + y)
    # ConvReLU reads what was there before; the skip connection keeps its ReLU.
    result, report = lk.replace_relu(model, "conv_relu", example_input=images)
    assert report.rows[0].note == "fused into last; stays for add"
    assert_same(result, model, images)
    nn.init.normal_(result.last.threshold)
    y = result.first(images)
    torch.testing.assert_close(result(images), result.last(y) + torch.relu(y))
    result(images).sum().backward()


def test_readers_out_of_sight_keep_the_relu():
    def forward(self, x):
        x = self.first(x)
        flat = x.view(x.shape[0], -1)
        y = self.last(self.act(x))
        return y + flat.view_as(y)

    model = network(forward, first=conv(), act=nn.ReLU(True), last=conv())
    for kind in KINDS:
        with pytest.raises(ValueError, match="act: it works in place, and its input is read again out of"):
            lk.replace_relu(model, kind, example_input=x())


@pytest.mark.parametrize("change", [lambda x: x.add_(1), lambda x: F.relu6(x, inplace=True), lambda x: x.relu_()])
def test_outputs_changed_in_place_are_not_fused(change):
    def forward(self, x):
        x = torch.relu(self.first(x))
        change(x)
        return self.last(x)

    model = network(forward, first=conv(), last=conv())
    try:
        result, report = lk.replace_relu(model, "conv_relu", "first", example_input=x())
    except ValueError as error:
        assert "changed in place" in str(error)  # noqa: PT017
    else:
        assert not rows(report)["relu"].replaced
        assert_same(result, model, x())


# ---- ConvReLU -----------------------------------------------------------------------------------------------


def fused(forward, example=None, include=(), **modules):
    """The result and report, checked at thresholds of 0 in both modes, for a network with ``first`` and ``last``."""
    model = network(forward, first=conv(), last=conv(), **modules)
    example = x() if example is None else example
    result, report = lk.replace_relu(model, "conv_relu", example_input=example, include=include)
    for training in (True, False):
        assert_same(copy.deepcopy(result).train(training), copy.deepcopy(model).train(training), example)
    return result, report


def unfused(forward, message, **modules):
    model = network(forward, first=conv(), last=conv(), **modules)
    with pytest.raises(ValueError, match=message):
        lk.replace_relu(model, "conv_relu", example_input=x())


def test_a_relu_between_convolutions():
    result, report = fused(lambda self, x: self.last(self.act(self.first(x))), act=nn.ReLU())
    assert report.rows[0].note == "fused into last"
    assert type(result.act) is nn.Identity
    assert (report.parameters, result.last.threshold.shape) == (36, (4, 3, 3))


def test_two_convolutions_read_one_relu():
    def forward(self, x):
        y = F.relu(self.first(x))
        return self.last(y) + self.other(y)

    result, report = fused(forward, other=nn.Conv2d(4, 4, 1))
    assert report.rows[0].note == "fused into last, other"
    assert report.parameters == 40
    images = x()
    nn.init.normal_(result.other.threshold)
    y = result.first(images)
    torch.testing.assert_close(result(images), result.last(y) + result.other(y))


@pytest.mark.parametrize("inplace", [False, True])
def test_a_relu_stays_for_others(inplace):
    def forward(self, x):
        y = self.act(self.first(x))
        return torch.cat([self.last(y), y], 1)

    result, report = fused(forward, act=nn.ReLU(inplace))
    assert report.rows[0].note == "fused into last; stays for cat"
    images = x()
    nn.init.normal_(result.last.threshold)
    y = result.first(images)
    torch.testing.assert_close(result(images), torch.cat([result.last(y), torch.relu(y)], 1))


def test_across_blocks():
    model = nn.Sequential(conv(), Block(), Block(), conv()).double()
    result, report = lk.replace_relu(model, "conv_relu", example_input=x())
    assert [row.note for row in report.rows] == [
        "fused into 1.conv2", "fused into 2.conv1; stays for add", "fused into 2.conv2", "fused into 3"]
    assert type(result) is nn.Sequential
    for training in (True, False):
        assert_same(copy.deepcopy(result).train(training), copy.deepcopy(model).train(training), x())
    for module in result.modules():
        if isinstance(module, lk.ConvReLU2d):
            nn.init.normal_(module.threshold)
    first, second, last = (result.get_submodule(name) for name in "123")
    start = result.get_submodule("0")(images := x())
    middle = first.bn2(first.conv2(first.bn1(first.conv1(start)))) + start
    end = second.bn2(second.conv2(second.bn1(second.conv1(middle)))) + torch.relu(middle)
    torch.testing.assert_close(result(images), last(end))


def test_treated_networks_can_be_traced():
    model, _ = lk.replace_relu(stack(), "conv_relu", example_input=x())
    for training in (True, False):
        model.train(training)
        assert_same(fx.symbolic_trace(copy.deepcopy(model)), copy.deepcopy(model), x())


def test_identities_and_shapes_do_not_stand_in_between():
    def forward(self, x):
        y = self.nothing(torch.relu(self.first(x)))
        return self.last(y).view(y.shape)

    _, report = fused(forward, nothing=nn.Identity())
    assert report.rows[0].note == "fused into last"


def test_relu6_is_capped():
    def forward(self, x):
        y = self.act(self.first(10 * x))
        return self.last(y) + F.conv2d(F.relu6(10 * y), self.first.weight, padding=1)

    result, report = fused(forward, include=("relu6",), act=nn.ReLU6())
    assert [row.replaced for row in report.rows] == [True, False]
    images = x()
    nn.init.normal_(result.last.threshold)
    y = result.first(10 * images)
    rest = F.conv2d(F.relu6(10 * F.relu6(y)), result.first.weight, padding=1)
    torch.testing.assert_close(result(images), result.last(y.clamp(max=6)) + rest)
    result, report = fused(lambda self, x: self.last(self.act(self.first(10 * x))), include=("relu6",),
                           act=nn.ReLU6())
    assert repr(result.act) == "Hardtanh(min_val=-inf, max_val=6.0)"


@pytest.mark.parametrize("between", [nn.Dropout(0.5), nn.MaxPool2d(3, 1, 1), nn.BatchNorm2d(4), nn.ZeroPad2d(0)])
def test_nothing_may_stand_in_between(between):
    unfused(lambda self, x: self.last(self.between(torch.relu(self.first(x)))),
            "relu: read by between, and by no convolution", between=between)


def test_dropout_of_training_stands_in_between():
    def forward(self, x):
        y = torch.relu(self.first(x))
        return self.last(F.dropout(y) if self.training else y)

    unfused(forward, "relu: read by last, dropout, and by no convolution")


def test_convolutions_that_are_more_than_one():
    class Doubled(nn.Conv2d):
        def forward(self, x):
            return 2 * super().forward(x)

    def forward(self, x):
        return self.last(torch.relu(self.first(x)))

    unfused(lambda self, x: self.last(torch.relu(self.last(x))), "read by last_1, and by no convolution")
    unfused(lambda self, x: F.conv2d(torch.relu(self.first(x)), self.last.weight), "read by conv2d, and by no conv")
    unfused(lambda self, x: torch.relu(self.last(self.first(x))), "read by the output, and by no convolution")
    model = network(forward, first=conv(), last=Doubled(4, 4, 3))
    with pytest.raises(ValueError, match="no convolution that can be fused"):
        lk.replace_relu(model, "conv_relu", example_input=x())
    model = network(forward, first=conv(), last=nn.utils.parametrizations.weight_norm(conv()))
    with pytest.raises(ValueError, match="no convolution that can be fused"):
        lk.replace_relu(model, "conv_relu", example_input=x())


@pytest.mark.parametrize("options", [{"groups": 2}, {"padding": "same"}, {"stride": 2}, {"padding_mode": "reflect"},
                                     {"bias": False}, {"dilation": 2}], ids=str)
def test_options_of_convolutions_are_kept(options):
    model = nn.Sequential(conv(), nn.ReLU(), nn.Conv2d(4, 4, 3, **{"padding": 1, **options})).double()
    result, _ = lk.replace_relu(model, "conv_relu", example_input=x())
    assert_same(result, model, x())


@pytest.mark.parametrize(("convolution", "shape"), [(nn.Conv1d, (2, 3, 9)), (nn.Conv3d, (2, 3, 5, 4, 3))])
def test_other_dimensions(convolution, shape):
    model = nn.Sequential(convolution(3, 4, 3), nn.ReLU(), convolution(4, 5, 1)).double()
    for kind in ("conv_relu", "ada_relu", "fully_parametric_relu"):
        result, _ = lk.replace_relu(model, kind, example_input=x(*shape))
        assert_same(result, model, x(*shape))


# ---- training and eval --------------------------------------------------------------------------------------


def test_both_modes_keep_their_forward():
    def forward(self, x, scale=2.0, extra=None):
        x = F.dropout(F.relu(self.first(x)), 0.5, training=self.training) * scale
        if extra is not None:
            x = x + extra
        if self.training:
            return self.last(x), x
        return self.last(x)

    model = network(forward, first=conv(), last=conv())
    result, _ = lk.replace_relu(model, "fully_parametric_relu", example_input=x())
    images = x()
    torch.manual_seed(1)
    expected = model.train()(images)
    torch.manual_seed(1)
    torch.testing.assert_close(result.train()(images), expected)
    torch.testing.assert_close(result.eval()(images), model.eval()(images))
    torch.testing.assert_close(result(images, 3.0, extra=images), model(images, 3.0, extra=images))


def test_tensors_that_are_neither_parameters_nor_buffers():
    def forward(self, x):
        return self.block(F.relu(self.first(x)) * self.scale + torch.tensor(0.5))

    model = network(forward, first=conv(), block=Block())
    model.scale = torch.tensor(2.0, dtype=torch.float64)
    for kind in ("ada_relu", "conv_relu"):
        result, _ = lk.replace_relu(model, kind, example_input=x())
        assert isinstance(result, type(model))
        assert_same(result.eval(), model.eval(), x())


def test_other_relus_in_training_stay():
    def forward(self, x):
        if self.training:
            x = F.relu(x)
        return F.relu(self.first(x))

    model = network(forward, first=conv())
    result, report = lk.replace_relu(model, "fully_parametric_relu", example_input=x())
    assert replaced(report) == ["relu"]
    assert report.notes == ("in training mode only, and left: relu",)
    nn.init.constant_(result.relu.negative_slope, 1.0)
    images = x()
    torch.testing.assert_close(result.train()(images), result.first(torch.relu(images)))
    torch.testing.assert_close(result.eval()(images), result.first(images))


class NormAct(nn.BatchNorm2d):
    """As networks write it that fuse the two: its forward reads its mode, and counts."""

    def forward(self, x):
        if self.training:
            self.num_batches_tracked.add_(1)
        return F.relu(F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, self.training))


def test_a_norm_within_a_rewritten_forward_goes_on():
    model = nn.Sequential(conv(), NormAct(4), conv()).double()
    for kind in ("ada_relu", "conv_relu"):
        result, other = lk.replace_relu(model, kind, example_input=x())[0], copy.deepcopy(model)
        assert isinstance(result[1], NormAct)
        for _ in range(2):
            torch.testing.assert_close(result.train()(images := x()), other.train()(images))
        assert result[1].num_batches_tracked == 2
        torch.testing.assert_close(dict(result.named_buffers()), dict(other.named_buffers()))
        torch.testing.assert_close(result.eval()(images), other.eval()(images))


# ---- what is kept -------------------------------------------------------------------------------------------


@every_kind
def test_the_model_and_the_random_state_stay_as_they_are(kind):
    model = residual()
    model[2].bn1.eval()
    model[2].conv1.weight.requires_grad_(False)
    before, modes = copy.deepcopy(model.state_dict()), [module.training for module in model.modules()]
    text, random, example = str(model), torch.get_rng_state(), x()
    example_before = example.clone()
    torch.set_rng_state(random)
    result, _ = lk.replace_relu(model, kind, example_input=example)
    if kind not in ("leni", "reborn"):  # which start at random
        assert torch.equal(torch.get_rng_state(), random)
    assert torch.equal(example, example_before)
    assert str(model) == text
    assert [module.training for module in model.modules()] == modes
    after = model.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    pointers = {tensor.data_ptr() for tensor in after.values()}
    assert pointers.isdisjoint(tensor.data_ptr() for tensor in result.state_dict().values())
    # And the result has all that it had, under the same names.
    kept = result.state_dict()
    assert all(torch.equal(kept[name], tensor) for name, tensor in before.items())
    parameters = dict(result.named_parameters())
    assert all(parameters[name].requires_grad == before.requires_grad for name, before in model.named_parameters())
    modules = dict(result.named_modules())
    assert not modules["2.bn1"].training
    assert modules["2"].training


@every_kind
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("training", [True, False])
def test_dtype_mode_and_memory_format(kind, dtype, training):
    model = nn.Sequential(conv(), nn.ReLU(), conv(), Block()).to(dtype, memory_format=torch.channels_last)
    model.train(training)
    result, _ = lk.replace_relu(model, kind, example_input=x(dtype=dtype))
    assert {parameter.dtype for parameter in result.parameters()} == {dtype}
    assert all(module.training == training for module in result.modules())
    assert all(parameter.is_contiguous(memory_format=torch.channels_last) for parameter in result.parameters()
               if parameter.dim() == 4)


def test_parameters_around_a_site_decide_the_dtype():
    def forward(self, x):
        with torch.autocast("cpu", torch.bfloat16):
            return self.act(self.first(x))

    model = network(forward, torch.float32, first=conv(), act=nn.ReLU())
    result, _ = lk.replace_relu(model, "ada_relu", example_input=x(dtype=torch.float32))
    assert result.act.threshold.dtype == torch.float32
    assert torch.equal(result(images := x(dtype=torch.float32)), model(images))


def test_integers_are_left():
    model = network(lambda self, x: self.first(x) + F.relu(x.long()), first=conv())
    with pytest.raises(ValueError, match=r"relu: it takes torch\.int64"):
        lk.replace_relu(model, "ada_relu", example_input=x())


def test_randomness_in_eval_mode_is_no_difference():
    model = network(lambda self, x: F.relu(self.first(F.dropout(x))), first=conv())
    _, report = lk.replace_relu(model, "leni", example_input=x())
    assert report.replaced == 1


def test_outputs_of_any_kind():
    def forward(self, x):
        y = F.relu(self.first(x))
        return {"y": y, "positive": [y > 0, y.argmax(), "text"], "nothing": y[:0], "not": y / 0, "none": None}

    model = network(forward, first=conv())
    result, _ = lk.replace_relu(model, "ada_relu", example_input=x().requires_grad_() * 1)
    torch.testing.assert_close(result(images := x())["not"], model(images)["not"], equal_nan=True)


def test_arguments():
    model = network(lambda self, x, *, y: self.last(torch.relu(self.first(x) + y)), first=conv(), last=conv())
    result, _ = lk.replace_relu(model, "ada_relu", example_input={"x": x(), "y": x()})
    images, other = x(), x()
    torch.testing.assert_close(result(images, y=other), model(images, y=other))
    model = network(lambda self, x, y: self.last(torch.relu(self.first(x) + y)), first=conv(), last=conv())
    result, _ = lk.replace_relu(model, "ada_relu", example_input=(x(), x()))
    torch.testing.assert_close(result(images, other), model(images, other))


# ---- options ------------------------------------------------------------------------------------------------


def test_options_reach_the_modules():
    def made(kind, **options):
        result, _ = lk.replace_relu(residual(), kind, "first", example_input=x(), **options)
        return result.get_submodule("1")

    assert made("leni", kernel_size=5, eps=0.1, momentum=None).deconv.kernel_size == (5, 5)
    assert made("leni", momentum=None).bn_fusion.momentum is None
    assert made("leni", separable=True).deconv_pointwise.weight.shape == (4, 4, 1, 1)
    assert made("reborn", groups=4, kernel_size=1).deconv.groups == 4
    assert made("ada_relu", threshold_init="normal").threshold.any()
    assert made("ada_relu", sharing="layer").threshold.shape == (1,)
    assert made("ada_relu", sharing="element").threshold.shape == (4, 6, 5)
    result, _ = lk.replace_relu(residual(), "conv_relu", example_input=x(), threshold_init="xavier")
    assert result.get_submodule("2.conv2").threshold.any()


# ---- a treated network is a network like the others ---------------------------------------------------------


def moved(model):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


COPIES = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda model: pickle.loads(pickle.dumps(model)),
    "save": lambda model: saved(model),
}


def saved(model):
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


def stack():
    return nn.Sequential(conv(), nn.ReLU(), Block(), Block(), conv()).double()


@every_kind
@pytest.mark.parametrize("copied", COPIES.values(), ids=COPIES)
def test_copies(kind, copied):
    model, images = moved(lk.replace_relu(stack(), kind, example_input=x())[0]).eval(), x()
    other = copied(model)
    assert torch.equal(other(images), model(images))
    assert torch.equal(other.train()(images), model.train()(images))
    assert not {parameter.data_ptr() for parameter in other.parameters()} & {
        parameter.data_ptr() for parameter in model.parameters()}
    expected = model(images)
    moved(other)
    assert torch.equal(model(images), expected)


@every_kind
def test_state_dict_round_trip(kind):
    source, target = (moved(lk.replace_relu(stack(), kind, example_input=x())[0]).eval() for _ in range(2))
    target.load_state_dict(source.state_dict())
    assert torch.equal(target(images := x()), source(images))


@every_kind
def test_trains(kind):
    model = lk.replace_relu(stack(), kind, example_input=x())[0]
    model(x()).square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in model.parameters())


@pytest.mark.parametrize("kind", ["ada_relu", "conv_relu"])
def test_compiled(kind):
    torch._dynamo.reset()

    def forward(self, x):
        y = F.relu(self.first(x))
        return self.last(y) + y

    model = network(forward, first=nn.Conv2d(4, 4, 1), last=nn.Conv2d(4, 4, 1))
    model = moved(lk.replace_relu(model, kind, example_input=x())[0])
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    for training in (False, True):
        model.train(training)
        torch.testing.assert_close(compiled(images := x()), model(images))


def test_surgery_on_a_treated_network():
    once, first = lk.replace_relu(stack(), "ada_relu", ["2.relu"], example_input=x())
    twice, second = lk.replace_relu(once, "leni", "all", example_input=x())
    assert [row.name for row in second.rows] == [row.name for row in first.rows if not row.replaced]
    assert type(twice[2].relu) is lk.AdaReLU
    assert type(twice[2].relu_1) is lk.LENI2d
    with pytest.raises(ValueError, match="calls no relu"):
        lk.replace_relu(twice, "leni", example_input=x())
    once, _ = lk.replace_relu(stack(), "conv_relu", "first:3", example_input=x())
    twice, report = lk.replace_relu(once, "ada_relu", example_input=x())
    assert_same(twice.eval(), once.eval(), x())
    assert report.replaced == 4


def test_exported_explained_and_converted():
    model, _ = lk.replace_relu(stack(), "leni", example_input=x())
    images = x()
    expected = model.eval()(images)
    torch.testing.assert_close(torch.export.export(model, (images,)).module()(images), expected)
    assert [decision.operation for decision in lk.explain(model, images)] == ["leni"] * 5
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    assert type(converted.get_submodule("2.relu_1.bn_fusion")) is nn.SyncBatchNorm
    torch.testing.assert_close(converted(images), expected)


@pytest.mark.parametrize("kind", ["leni", "reborn"])
def test_folded_and_norms_fused_by_pytorch(kind):
    model = lk.replace_relu(stack(), kind, example_input=x())[0]
    for _ in range(3):
        model(x())
    model.eval()
    folded = lk.fold(model)
    assert not any(isinstance(module, (lk.LENI2d, lk.Reborn2d)) for module in folded.modules())
    assert_same(folded, model, x())
    fast = fuse(folded)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in fast.modules())
    assert_same(fast, model, x(), tolerance=1e-10)


# ---- the report ---------------------------------------------------------------------------------------------


def test_report():
    model = nn.Sequential(conv(), nn.ReLU(), Block(), nn.Flatten(), nn.Linear(120, 3), nn.ReLU(), nn.ReLU6()).double()
    model.unused = nn.ModuleList([nn.ReLU()])
    model.__class__ = type("Model", (nn.Sequential,), {"forward": lambda self, x: first_seven(self, x)})
    _, report = lk.replace_relu(model, "leni", "first:2", example_input=x(), kernel_size=5)
    parameters = 4 * 25 + 2 * 4 + 2 * 8 + 8 * 4 + 4
    assert (report.replaced, report.parameters) == (2, 2 * parameters)
    assert report.flops == 2 * 2 * 30 * (4 * 25 + 4 * 8)
    assert [row.note for row in report.rows] == [
        "LENI2d", "LENI2d", "not asked for", "the block takes [N, C, *spatial], this is [2, 3]",
        "does not run on the example in eval mode, or runs within a layer of torch.nn"]
    lines = str(report).splitlines()
    assert lines[0].split() == ["name", "site", "shape", "now", "parameters", "FLOPs"]
    assert lines[2].split() == ["1", "nn.ReLU", "2x4x6x5", "LENI2d", f"+{parameters}", "+7,920"]
    assert "left: not asked for" in lines[4]
    assert lines[-1].split() == ["2", "of", "5", "replaced", f"+{2 * parameters}", "+15,840"]
    assert [row.module for row in report.rows] == ["1", "2.relu", "", "", ""]


def first_seven(self, x):
    for index in range(7):
        x = self[index](x)
    return x


def test_parameters_added_are_those_the_model_has():
    for kind in KINDS:
        model = stack()
        result, report = lk.replace_relu(model, kind, example_input=x())
        count = [sum(parameter.numel() for parameter in each.parameters()) for each in (model, result)]
        assert report.parameters == count[1] - count[0]


# ---- what no trace can follow ----------------------------------------------------------------------------------


def branching(call, **modules):
    def forward(self, x):
        x = self.first(x)
        return self.last(call(self, x if x.sum() > 0 else -x))

    return network(forward, first=conv(), last=conv(), **modules)


def test_modules_are_replaced_in_what_cannot_be_traced():
    model = branching(lambda self, x: self.act(x), act=nn.ReLU(True))
    result, report = lk.replace_relu(model, "ada_relu", example_input=x())
    assert type(result) is type(model)
    assert report.rows[0].replaced
    assert_same(result, model, x())
    model = branching(lambda self, x: self.blocks(x), blocks=nn.Sequential(Block(), Block())).eval()
    result, report = lk.replace_relu(model, "leni", example_input=x())
    assert report.replaced == 4


@pytest.mark.skipif(sys.version_info < (3, 11), reason="Python 3.10 tells no two calls in a line apart")
def test_what_no_trace_can_follow_is_replaced():
    for call in (lambda self, x: F.relu(x), lambda self, x: self.act(self.act(x))):
        model = branching(call, act=nn.ReLU())
        result, report = lk.replace_relu(model, "ada_relu", example_input=x())
        assert report.replaced
        for images in (x(), -x()):
            assert_same(result, model, images)


class Remembering(nn.Module):
    """Forwards that do what a graph would not."""

    def __init__(self, do):
        super().__init__()
        self.conv, self.do, self.seen = conv(), do, 0

    def forward(self, x):
        return self.do(self, F.relu(self.conv(x)))


def without_grad(self, x):
    with torch.no_grad():
        return x + 1


def with_autocast(self, x):
    with torch.autocast("cpu", torch.bfloat16):
        return x + 1


def at_random(self, x):
    return x + 1 if torch.rand(()) < 2 else x


def at_random_by_python(self, x):
    return x + 1 if random.random() < 2 else x


def counting(self, x):
    self.seen += 1
    return x


def keeping(self, x):
    self.kept = x
    return x


@pytest.mark.parametrize("do", [without_grad, with_autocast, at_random, at_random_by_python, counting, keeping])
def test_what_a_graph_would_not_do_is_done(do):
    model = nn.Sequential(Remembering(do), conv()).double()
    example = x()
    states = torch.get_rng_state(), random.getstate()
    result, report = lk.replace_relu(model, "fully_parametric_relu", example_input=example)
    assert replaced(report) == ["0.relu"]
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert (result[0].seen, hasattr(result[0], "kept")) == (0, False)
    assert_same(result, model, images := x())
    assert result[0].seen == model[0].seen
    if do is keeping:
        torch.testing.assert_close(result[0].kept, torch.relu(result[0].conv(images)))


def test_a_view_that_hides_a_change_is_found():
    def forward(self, x):
        x = self.first(x)
        y = torch.relu(x)
        x.view(-1).add_(1)
        return self.last(y)

    model = network(forward, first=conv(), last=conv())
    with pytest.raises(ValueError, match="relu: its input or output is changed in place"):
        lk.replace_relu(model, "conv_relu", example_input=x())
    result, _ = lk.replace_relu(model, "ada_relu", example_input=x())
    assert_same(result, model, x())


def test_fusion_in_what_no_trace_can_follow():
    inner = nn.Sequential(conv(), nn.ReLU(), conv(), nn.ReLU())
    model = branching(lambda self, x: self.inner(x), inner=inner)
    result, report = lk.replace_relu(model, "conv_relu", example_input=x())
    assert [row.note for row in report.rows] == ["fused into inner.2", "fused into last"]
    assert type(result) is type(model)
    assert_same(result, model, x())
    model = branching(lambda self, x: F.relu(x))
    result, report = lk.replace_relu(model, "conv_relu", example_input=x())
    assert report.rows[0].note == "fused into last"
    assert_same(result, model, x())


# ---- refusals -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("error", "message", "arguments"), [
    (ValueError, "kind must be one of .*leni.*, got 'swish'", {"kind": "swish"}),
    (ValueError, "where must be 'all', .*, got 'some'", {"where": "some"}),
    (ValueError, "got 'first:0'", {"where": "first:0"}),
    (ValueError, "got 'last'", {"where": "last"}),
    (ValueError, "got 'first:x'", {"where": "first:x"}),
    (ValueError, r"where must hold name patterns, got \[\]", {"where": []}),
    (ValueError, r"where must hold name patterns, got \[3\]", {"where": [3]}),
    (ValueError, r"the pattern 'layer\*' matches none of 1, 2.relu", {"where": ["1", "layer*"]}),
    (ValueError, "nothing that leni can replace was asked for", {"where": lambda index, name: False}),
    (ValueError, r"6: the block takes \[N, C, \*spatial\], this is \[2, 3\]", {"where": ["6"]}),
    (ValueError, r"include must be some of \['relu6', 'hardswish'\], got \('gelu',\)", {"include": ("gelu",)}),
    (ValueError, "include must be some of", {"include": "relu6"}),
    (TypeError, "leni takes no option 'groups'; it takes eps, kernel_size, momentum, separable", {"groups": 2}),
    (TypeError, "ada_relu takes no option 'kernel_size'", {"kind": "ada_relu", "kernel_size": 3}),
    (TypeError, "fully_parametric_relu takes no option 'x'; it takes none", {"kind": "fully_parametric_relu", "x": 1}),
    (TypeError, "conv_relu takes no option 'sharing'; it takes threshold_init",
     {"kind": "conv_relu", "sharing": "layer"}),
    (TypeError, "reborn takes no option 'compress'", {"kind": "reborn", "compress": False}),
    (ValueError, "kernel_size must be odd, got 2", {"kernel_size": 2}),
    (ValueError, "sharing must be one of channel, layer, element, got 'none'", {"kind": "ada_relu", "sharing": "none"}),
    (ValueError, "threshold_init must be one of", {"kind": "conv_relu", "threshold_init": "ones"}),
    (ValueError, r"Sequential does not run on the example of shape \(2, 3, 6, 5\): ", {"example_input": x(2, 3, 6, 5)}),
    (ValueError, r"does not run on the example of shape \(2, 4, 6, 5\), 7: ", {"example_input": (x(), 7)}),
])
def test_bad_arguments(error, message, arguments):
    with pytest.raises(error, match=message):
        lk.replace_relu(**{"model": residual(), "kind": "leni", "example_input": x(), **arguments})


@pytest.mark.parametrize("wrap", [torch.compile, nn.DataParallel, torch.jit.script])
def test_wrapped_models_are_refused(wrap):
    with pytest.raises(TypeError, match="model must be a module of Python, before it is wrapped, scripted or compiled"):
        lk.replace_relu(wrap(nn.Sequential(nn.ReLU())), "leni", example_input=x())


def test_models_without_relus():
    with pytest.raises(ValueError, match=r"replace_relu: Sequential calls no relu$"):
        lk.replace_relu(nn.Sequential(conv()).double(), "leni", example_input=x())
    model = nn.Sequential(conv(), nn.ReLU6()).double()
    with pytest.raises(ValueError, match=r"calls no relu; it calls relu6, which include=\('relu6',\) would replace"):
        lk.replace_relu(model, "leni", example_input=x())


@every_kind
def test_hooks_are_not_lost(kind):
    model = nn.Sequential(conv(), nn.ReLU(), conv()).double()
    model[1].register_forward_hook(lambda *_: None)
    with pytest.raises(ValueError, match="1: it has hooks, which a replacement would lose"):
        lk.replace_relu(model, kind, example_input=x())
    model, seen = stack(), []
    model[2].register_forward_hook(lambda module, args, output: seen.append(output))
    result, _ = lk.replace_relu(model, kind, example_input=x())
    seen.clear()
    result(x())
    assert len(seen) == 1


def test_a_model_that_is_a_relu():
    result, report = lk.replace_relu(nn.ReLU(), "ada_relu", example_input=x())
    assert type(result) is lk.AdaReLU
    assert report.rows[0].name == ""


def test_layers_of_pytorch_are_not_opened():
    layer = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)
    model = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), layer).double()
    _, report = lk.replace_relu(model, "ada_relu", example_input=x(2, 4, 5))
    assert replaced(report) == ["1"]
    assert rows(report)["2.relu"].note == (
        "it runs within nn.TransformerEncoderLayer, a layer of PyTorch, which is not opened")
