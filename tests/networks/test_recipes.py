"""Recipes: each parameter in its group once, frozen sets that stay put, thresholds as Table 4 starts them."""

import copy
import math

import pytest
import torch
from torch import distributed, nn

import leni_kernels as lk


class Network(nn.Module):
    """Every kind of parameter: weights, biases, norms, thresholds, slopes, a bare vector."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), lk.AdaReLU(4))
        self.middle = nn.Sequential(lk.ConvReLU2d(4, 6, 3), nn.GroupNorm(2, 6), lk.FullyParametricReLU(6))
        self.block = lk.LENI2d(6)
        self.scale = nn.Parameter(torch.ones(6, 1, 1))
        self.shift = nn.Parameter(torch.zeros(6))
        self.head = nn.Sequential(nn.Flatten(), nn.Linear(6 * 16, 8), nn.LayerNorm(8), nn.PReLU(8), nn.Linear(8, 10))

    def forward(self, x):
        x = self.scale * self.block(self.middle(self.stem(x))) + self.shift[:, None, None]
        return self.head(x)


ROLES = {
    "weights": {"stem.0.weight", "middle.0.weight", "block.deconv.weight", "block.compress.weight", "scale",
                "head.1.weight", "head.4.weight"},
    "thresholds": {"stem.2.threshold", "middle.0.threshold"},
    "slopes": {"middle.2.positive_slope", "middle.2.negative_slope", "head.3.weight"},
    "norms and biases": {"stem.0.bias", "stem.1.weight", "stem.1.bias", "middle.0.bias", "middle.1.weight",
                         "middle.1.bias", "block.bn_negative.weight", "block.bn_negative.bias",
                         "block.bn_fusion.weight", "block.bn_fusion.bias", "block.compress.bias", "shift",
                         "head.1.bias", "head.2.weight", "head.2.bias", "head.4.bias"},
}


def names_by_group(model, **options):
    names = {parameter: name for name, parameter in model.named_parameters()}
    return {group["name"]: [names[parameter] for parameter in group["params"]]
            for group in lk.parameter_groups(model, **options)}


def digits():
    data = pytest.importorskip("sklearn.datasets", reason="the images are scikit-learn's").load_digits()
    return torch.from_numpy(data.images).float()[:, None] / 16, torch.from_numpy(data.target)


# ---- parameter_groups --------------------------------------------------------------------------------------


def test_every_parameter_where_it_belongs_and_once():
    groups = names_by_group(Network())
    assert {name: set(members) for name, members in groups.items()} == ROLES
    assert sum(map(len, groups.values())) == len(list(Network().parameters()))


def test_decays():
    def decays(**options):
        return {group["name"]: group["weight_decay"] for group in lk.parameter_groups(Network(), **options)}

    assert decays() == {"weights": 5e-4, "thresholds": 5e-4, "slopes": 0, "norms and biases": 0}
    assert decays(weight_decay=0.1, threshold_weight_decay=0.2, slope_weight_decay=0.3) == {
        "weights": 0.1, "thresholds": 0.2, "slopes": 0.3, "norms and biases": 0}
    assert decays(weight_decay=0.1)["thresholds"] == 0.1
    assert decays(threshold_weight_decay=0)["thresholds"] == 0


def test_an_optimizer_takes_the_groups():
    model = Network()
    optimizer = torch.optim.SGD(lk.parameter_groups(model, threshold_weight_decay=0.5), lr=1.0)
    nn.init.ones_(model.stem[2].threshold)
    before = copy.deepcopy(model.state_dict())
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    after = model.state_dict()
    assert torch.equal(after["stem.2.threshold"], 0.5 * before["stem.2.threshold"])
    assert torch.equal(after["stem.1.weight"], before["stem.1.weight"])
    torch.testing.assert_close(after["head.1.weight"], before["head.1.weight"] * (1 - 5e-4))


def test_shared_frozen_and_parametrized_parameters():
    model = Network()
    model.head[4].bias.requires_grad_(False)
    model.again = model.middle
    model.tied = nn.Conv2d(1, 4, 3)
    model.tied.weight = model.stem[0].weight
    nn.utils.parametrizations.weight_norm(model.head[4])
    nn.utils.parametrize.register_parametrization(model.stem[2], "threshold", nn.Softplus())
    nn.utils.parametrize.register_parametrization(model.stem[1], "weight", nn.Softplus())
    groups = names_by_group(model)
    listed = [name for members in groups.values() for name in members]
    assert sorted(listed) == sorted(name for name, _ in model.named_parameters())
    assert "head.4.bias" in groups["norms and biases"]
    assert {f"head.4.parametrizations.weight.original{i}" for i in (0, 1)} < set(groups["weights"])
    assert "stem.2.parametrizations.threshold.original" in groups["thresholds"]
    assert "stem.1.parametrizations.weight.original" in groups["norms and biases"]


def test_one_parametrized_block():
    conv = lk.ConvReLU2d(2, 3, 3)
    nn.utils.parametrizations.weight_norm(conv)
    assert names_by_group(conv) == {
        "thresholds": ["threshold"], "norms and biases": ["bias"],
        "weights": ["parametrizations.weight.original0", "parametrizations.weight.original1"]}


def test_groups_without_parameters_are_left_out():
    assert list(names_by_group(nn.Linear(2, 3, bias=False))) == ["weights"]
    assert lk.parameter_groups(nn.ReLU()) == []


@pytest.mark.parametrize("option", ["weight_decay", "threshold_weight_decay", "slope_weight_decay"])
def test_a_negative_decay_is_refused(option):
    with pytest.raises(ValueError, match=r"parameter_groups: the weight decay of \w+ must be at least 0, got -1"):
        lk.parameter_groups(Network(), **{option: -1})


# ---- AlternatingSchedule -----------------------------------------------------------------------------------


def trainable(model):
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def train_step(model, optimizer, images=None):
    optimizer.zero_grad()
    model(torch.randn(8, 1, 8, 8) if images is None else images).square().mean().backward()
    optimizer.step()


OPTIMIZERS = {
    "sgd": lambda groups: torch.optim.SGD(groups, lr=0.01, momentum=0.9),
    "nesterov": lambda groups: torch.optim.SGD(groups, lr=0.01, momentum=0.9, nesterov=True),
    "adam": lambda groups: torch.optim.Adam(groups, lr=0.01),
    "adamw": lambda groups: torch.optim.AdamW(groups, lr=0.01, amsgrad=True, foreach=False),
}


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_a_frozen_set_does_not_drift(make):
    model = Network()
    slopes = ROLES["slopes"]
    optimizer = make(lk.parameter_groups(model, weight_decay=0.1, slope_weight_decay=0.1))
    for _ in range(3):
        train_step(model, optimizer)  # everything trains: momentum for all
    schedule = lk.AlternatingSchedule(model)
    for epoch in range(4):
        before = copy.deepcopy(dict(model.named_parameters()))
        for _ in range(2):
            train_step(model, optimizer)
        moved = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
        frozen = slopes if epoch % 2 == 0 else set(before) - slopes
        assert moved.isdisjoint(frozen)
        assert moved >= ({"stem.0.weight", "stem.2.threshold"} if epoch % 2 == 0 else {"middle.2.positive_slope"})
        # Between backward and the optimizer's step, or with grads set to zero instead of None.
        model(torch.randn(8, 1, 8, 8)).sum().backward()
        schedule.step()
        before = copy.deepcopy(dict(model.named_parameters()))
        optimizer.zero_grad(set_to_none=False)
        optimizer.step()
        assert all(torch.equal(parameter, before[name]) for name, parameter in model.named_parameters()
                   if not parameter.requires_grad)


def test_the_period():
    schedule = lk.AlternatingSchedule(Network(), period=3)
    turns = []
    for _ in range(8):
        turns.append(schedule.trains)
        schedule.step()
    assert turns == ["weights"] * 3 + ["slopes"] * 3 + ["weights"] * 2


@pytest.mark.parametrize("error", [None, RuntimeError])
def test_leaving_restores_what_was_trainable(error):
    model = Network()
    model.head[1].weight.requires_grad_(False)
    model.middle[2].positive_slope.requires_grad_(False)
    before = trainable(model)
    try:
        with lk.AlternatingSchedule(model) as schedule:
            assert trainable(model) == before - ROLES["slopes"]
            schedule.step()
            assert trainable(model) == before & ROLES["slopes"]
            if error:
                raise error
    except RuntimeError:
        pass
    assert trainable(model) == before


def test_resumes():
    model = Network()
    schedule = lk.AlternatingSchedule(model, period=2)
    for _ in range(3):
        schedule.step()
    state = copy.deepcopy(schedule.state_dict())
    again = Network()
    resumed = lk.AlternatingSchedule(again, period=2)
    resumed.load_state_dict(state)
    assert resumed.trains == "slopes"
    assert trainable(again) == trainable(model) == ROLES["slopes"]
    resumed.step()
    assert resumed.trains == "weights"


def test_schedules_that_cannot_be():
    with pytest.raises(ValueError, match="period must be at least 1, got 0"):
        lk.AlternatingSchedule(Network(), period=0)
    with pytest.raises(ValueError, match="Sequential has no slopes that require gradients"):
        lk.AlternatingSchedule(nn.Sequential(nn.Linear(2, 3), nn.ReLU()))
    with pytest.raises(ValueError, match="PReLU has no weights that require gradients"):
        lk.AlternatingSchedule(nn.PReLU())


def test_under_distributed_data_parallel(tmp_path):
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        model = Network()
        wrapped = nn.parallel.DistributedDataParallel(model, find_unused_parameters=True)
        optimizer = OPTIMIZERS["sgd"](lk.parameter_groups(model))
        train_step(wrapped, optimizer)
        schedule = lk.AlternatingSchedule(model)
        for _ in range(2):
            before = copy.deepcopy(dict(model.named_parameters()))
            for _ in range(2):
                train_step(wrapped, optimizer)
            moved = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
            assert moved
            assert moved <= trainable(model)
            schedule.step()
    finally:
        distributed.destroy_process_group()


# ---- how thresholds start ----------------------------------------------------------------------------------


def conv_relu(choice, **options):
    return lk.ConvReLU2d(32, 16, (3, 5), threshold_init=choice, **options)


def ada_relu(choice, **options):
    return lk.AdaReLU(480, threshold_init=choice, **options)


@pytest.mark.parametrize("make", [conv_relu, ada_relu])
def test_choices(make):
    xavier = math.sqrt(3 / 480) if isinstance(make("zeros"), lk.AdaReLU) else math.sqrt(6 / ((32 + 16) * 15))
    assert not make("zeros").threshold.any()
    normal = make("normal", dtype=torch.float64).threshold
    assert normal.std().item() == pytest.approx(0.01, rel=0.15)
    uniform = make("xavier").threshold
    assert 0.95 * xavier < uniform.abs().max() <= xavier
    assert uniform.std().item() == pytest.approx(xavier / math.sqrt(3), rel=0.1)
    module = make("xavier")
    before = module.threshold.clone()
    module.reset_parameters()
    assert not torch.equal(before, module.threshold)
    assert module.threshold.abs().max() <= xavier


def test_groups_have_the_weights_fans():
    threshold = conv_relu("xavier", groups=4).threshold
    bound = math.sqrt(6 / ((8 + 4) * 15))
    assert 0.95 * bound < threshold.abs().max() <= bound


def test_from_conv_takes_a_choice():
    conv = nn.Conv2d(8, 8, 3)
    assert not lk.ConvReLU2d.from_conv(conv).threshold.any()
    assert lk.ConvReLU2d.from_conv(conv, "normal").threshold.any()
    assert lk.ConvReLU2d.from_conv(conv, "normal").weight is conv.weight


def from_conv(choice):
    return lk.ConvReLU2d.from_conv(nn.Conv2d(2, 2, 3), choice)


@pytest.mark.parametrize("make", [conv_relu, ada_relu, from_conv])
def test_an_unknown_choice_is_refused(make):
    with pytest.raises(ValueError, match="threshold_init must be one of zeros, normal, xavier, got 'ones'"):
        make("ones")


# ---- end to end --------------------------------------------------------------------------------------------


def digits_network(activation):
    return nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), activation(8),
                         nn.Conv2d(8, 16, 3, stride=2, padding=1), nn.BatchNorm2d(16), activation(16),
                         nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(64, 10))


def conv_relu_network(choice):
    network = digits_network(lambda channels: nn.ReLU())
    network[2], network[3] = nn.Identity(), lk.ConvReLU2d.from_conv(network[3], choice)
    return network


RECIPES = {
    "thresholds": (lambda: digits_network(lk.AdaReLU), False),
    **{f"conv_relu, {choice}": (lambda choice=choice: conv_relu_network(choice), False)
       for choice in ("zeros", "normal", "xavier")},
    "slopes in turn": (lambda: digits_network(lk.FullyParametricReLU), True),
}


@pytest.mark.parametrize(("make", "alternates"), RECIPES.values(), ids=RECIPES)
def test_digits_are_learnt(make, alternates):
    images, targets = digits()
    model = make()
    start = copy.deepcopy(model.state_dict())
    optimizer = torch.optim.SGD(lk.parameter_groups(model), lr=0.1, momentum=0.9)
    schedule = lk.AlternatingSchedule(model) if alternates else None
    losses = []
    for _ in range(4):
        for indices in torch.randperm(len(images)).split(128):
            loss = nn.functional.cross_entropy(model(images[indices]), targets[indices])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        if schedule:
            schedule.step()
    assert sum(losses[-10:]) / 10 < 0.25 * losses[0]
    assert all(not torch.equal(tensor, start[name]) for name, tensor in model.state_dict().items())
