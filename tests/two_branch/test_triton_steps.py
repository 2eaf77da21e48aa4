"""Whole steps of LENI and Reborn in Triton are the definition's, in as few launches as they say: on a GPU, else in
Triton's interpreter.

``on_triton.py`` says how.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import on_triton
import pytest
import rooms
import torch
import torch.nn.functional as F
from launches import FREE, Launches
from on_triton import DEVICE, runs_kernels
from torch import Tensor
from torch._higher_order_ops.triton_kernel_wrap import triton_kernel_wrapper_mutation
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext

import leni_kernels as lk
from leni_kernels.common.gpu import support
from leni_kernels.common.norm import Norm
from leni_kernels.leni import reference
from leni_kernels.leni.gpu import backward as leni_backward
from leni_kernels.leni.gpu import forward as leni_forward
from leni_kernels.reborn import reference as reborn_reference
from leni_kernels.reborn.gpu import backward as reborn_backward
from leni_kernels.reborn.gpu import forward as reborn_forward
from leni_kernels.two_branch.statistics import Statistics, merged

layouts = pytest.mark.parametrize("channels_last", [True, False], ids=["channels_last", "nchw"])
test_in_the_interpreter = on_triton.in_the_interpreter(__file__)

NEGATIVE_EPS, FUSION_EPS = 1e-3, 1e-2


# ---- material ----------------------------------------------------------------------------------------------


def normal(*shape: int, dtype: torch.dtype = torch.float64, channels_last: bool = False) -> Tensor:
    tensor = torch.randn(shape, dtype=torch.float64, device=DEVICE).to(dtype)
    return tensor.to(memory_format=torch.channels_last) if channels_last else tensor


class Block(NamedTuple):
    """The parameters of a LENI block; of Reborn, D is dense and there is no second norm."""

    deconv_weight: Tensor
    negative_weight: Tensor | None
    negative_bias: Tensor | None
    fusion_weight: Tensor | None
    fusion_bias: Tensor | None
    compress_weight: Tensor
    compress_bias: Tensor | None

    def double(self) -> Block:
        return Block(*(None if tensor is None else tensor.detach().double() for tensor in self))

    def of_training(self) -> tuple[Tensor | None, ...]:
        """In the order of ``leni_training``."""
        return tuple(self)

    def given(self) -> dict[str, Tensor]:
        return {name: tensor for name, tensor in self._asdict().items() if tensor is not None}


def block(channels: int, dtype: torch.dtype = torch.float64, kernel_size: int = 3, groups: int | None = None) -> Block:
    each = channels // (groups or channels)
    vector = partial(normal, dtype=dtype)
    return Block((normal(channels, each, kernel_size, kernel_size) / kernel_size / each**0.5).to(dtype),
                 vector(channels), vector(channels), vector(2 * channels), vector(2 * channels),
                 (normal(channels, 2 * channels, 1, 1) / channels**0.5).to(dtype), vector(channels))


def running(channels: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, variance and count of batches of a norm."""
    return normal(channels, dtype=dtype), normal(channels).square().add(0.5).to(dtype), torch.tensor(3, device=DEVICE)


def copies(*tensors: Tensor | None) -> list[Tensor | None]:
    return [None if tensor is None else tensor.clone() for tensor in tensors]


def norm(state: Any, weight: Tensor | None, bias: Tensor | None, eps: float, **options: Any) -> Norm:
    mean, variance, batches = state
    return Norm(mean, variance, weight, bias, eps=eps, num_batches_tracked=batches, **options)


def layers(of: Block, negative: Any, fusion: Any, **options: Any) -> tuple[Any, ...]:
    """The definition of a block whose norms have these running statistics."""
    channels, deconvolved = of.deconv_weight.shape[0], of.deconv_weight.shape[1]
    deconv = partial(F.conv_transpose2d, weight=of.deconv_weight, padding=of.deconv_weight.shape[-1] // 2,
                     groups=channels // deconvolved)
    first = norm(negative, of.negative_weight, of.negative_bias, NEGATIVE_EPS, **options)
    compress = partial(F.conv2d, weight=of.compress_weight, bias=of.compress_bias)
    if fusion is None:
        return deconv, first, compress
    return deconv, first, norm(fusion, of.fusion_weight, of.fusion_bias, FUSION_EPS, **options), compress


def move(state: Norm, mean: Tensor, variance: Tensor, count: Tensor) -> None:
    """As ``nn.BatchNorm2d`` does for a batch of this mean and biased variance."""
    share = state._count_batch()
    state.running_mean.mul_(1 - share).add_(mean.to(state.running_mean.dtype) * share)
    unbiased = variance * (count / (count - 1))
    state.running_var.mul_(1 - share).add_(unbiased.to(state.running_var.dtype) * share)


NOTHING = None, None, None


def truth(of: Block, x: Tensor, grad: Tensor, reborn: bool = False, dtype: torch.dtype = torch.float64,
          ) -> dict[str, Tensor]:
    """y and the gradients of a step with the batch's statistics, by autograd in another dtype."""
    of = Block(*(None if tensor is None else tensor.detach().to(dtype).requires_grad_() for tensor in of))
    x = x.detach().to(dtype).requires_grad_()
    run = reborn_reference.reborn if reborn else reference.leni
    y = run(x, *layers(of, NOTHING, None if reborn else NOTHING, training=True))
    wanted = {"x": x, **of.given()}
    gradients = torch.autograd.grad(y, list(wanted.values()), grad.to(dtype), allow_unused=True)
    return {"y": y.detach(), **{name: gradient for name, gradient in zip(wanted, gradients, strict=True)
                                if gradient is not None and (reborn or name != "negative_bias")}}


def step(of: Block, x: Tensor, grad: Tensor, channels_last: bool) -> dict[str, Tensor]:
    y, statistics = leni_forward.leni_training(x, *of.of_training(), None, NEGATIVE_EPS, FUSION_EPS)
    gradients = leni_backward.leni_training_backward(
        grad, x, *of.of_training()[:-1], statistics, None, NEGATIVE_EPS, FUSION_EPS, True)
    assert gradients[-1].shape == (4 * x.shape[1],)
    found = named(of, x, y, gradients, ("deconv_weight", "negative_weight", "negative_bias", "fusion_weight",
                                        "fusion_bias", "compress_weight", "compress_bias"), channels_last)
    of_shift = found.pop("negative_bias", None)
    if type(of_shift) is Tensor:  # and not a fake one
        assert not of_shift.any()  # β1 shifts what BN2 centres
    return found


def reborn_step(of: Block, x: Tensor, grad: Tensor, channels_last: bool, *statistics: Tensor) -> dict[str, Tensor]:
    """A step with the batch's statistics, or with a mean and a variance that are given."""
    groups = x.shape[1] // of.deconv_weight.shape[1]
    parameters = of.deconv_weight, of.negative_weight, of.negative_bias, of.compress_weight
    y, z, packed = reborn_forward.reborn_training(
        x, *parameters, of.compress_bias, None, *(statistics or (None, None)), NEGATIVE_EPS, groups)
    gradients = reborn_backward.reborn_training_backward(
        grad, x, *parameters, z, packed, None, NEGATIVE_EPS, groups, not statistics, True, True, True)
    assert gradients[-1].shape == (2 * x.shape[1],)
    return named(of, x, y, gradients, ("deconv_weight", "negative_weight", "negative_bias", "compress_weight",
                                       "compress_bias"), channels_last)


def named(of: Block, x: Tensor, y: Tensor, gradients: tuple[Tensor, ...], names: tuple[str, ...],
          channels_last: bool) -> dict[str, Tensor]:
    grad_x, *others, _ = gradients
    # Of one channel both layouts are the same, and have the strides of NCHW.
    layout = torch.channels_last if channels_last and x.shape[1] > 1 else torch.contiguous_format
    for activation in (y, grad_x):
        assert activation.dtype == x.dtype
        # Strides, since torch 2.11 says of no tensor with a symbolic batch that it is channels-last.
        assert activation.stride() == torch.empty_like(activation, memory_format=layout).stride()
    found = {"y": y, "x": grad_x}
    for name, gradient in zip(names, others, strict=True):
        parameter = getattr(of, name)
        if parameter is None and name != "compress_bias":
            assert gradient.numel() == 0
        elif parameter is not None:
            assert gradient.shape == parameter.shape
            assert gradient.dtype == (of.compress_weight if name == "compress_bias" else parameter).dtype
            found[name] = gradient
    return found


def relative(got: Tensor, wanted: Tensor) -> float:
    assert got.shape == wanted.shape
    assert got.isfinite().all()
    return float((got.double() - wanted).norm() / wanted.double().norm().clamp(min=1e-300))


def assert_close(got: dict[str, Tensor], wanted: dict[str, Tensor], tolerance: float,
                 composed: dict[str, Tensor] | None = None) -> None:
    assert got.keys() == wanted.keys()
    for name, exact in wanted.items():
        allowed = tolerance if composed is None else 2 * relative(composed[name], exact) + tolerance
        assert relative(got[name], exact) <= allowed, name


TOLERANCES = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 1e-3}
dtypes = pytest.mark.parametrize("dtype", TOLERANCES, ids=str)


# ---- LENI --------------------------------------------------------------------------------------------------


@runs_kernels
@layouts
@dtypes
@pytest.mark.parametrize("kernel_size", [3, 5])
def test_a_step_is_the_definition_s(dtype, kernel_size, channels_last):
    shape = 2, 5 if kernel_size == 3 else 3, 4, 6
    x, grad = (normal(*shape, dtype=dtype, channels_last=channels_last) for _ in range(2))
    of = block(shape[1], dtype, kernel_size)
    composed = truth(of, x, grad, dtype=dtype) if dtype == torch.float16 else None
    assert_close(step(of, x, grad, channels_last), truth(of, x, grad), TOLERANCES[dtype], composed)


@runs_kernels
@layouts
@pytest.mark.parametrize(("channels", "dtype"), [(1, torch.float64), (17, torch.float64), (130, torch.float32)],
                         ids=str)
def test_right_over_several_blocks(channels, dtype, channels_last):
    x, grad = (normal(1, channels, 3, 8, dtype=dtype, channels_last=channels_last) for _ in range(2))
    of = block(channels, dtype)
    assert_close(step(of, x, grad, channels_last), truth(of, x, grad), TOLERANCES[dtype])


@runs_kernels
@layouts
def test_more_shares_than_are_read_at_once(channels_last, monkeypatch):
    for mechanism in ("two_branch", "leni", "reborn"):
        rooms.replace(monkeypatch, mechanism, "LANES", 2)
    rooms.replace(monkeypatch, "two_branch", "_TILE", 8)
    for mechanism in ("leni", "reborn"):
        rooms.replace(monkeypatch, mechanism, "VECTOR", 2)
    rooms.replace(monkeypatch, "two_branch", "LONGEST_RUN", 1)
    x, grad = (normal(3, 3, 20, 8, channels_last=channels_last) for _ in range(2))
    of = block(3)
    assert_close(step(of, x, grad, channels_last), truth(of, x, grad), 1e-12)


@runs_kernels
@dtypes
def test_a_channel_of_few_values(dtype):
    x, grad = (normal(2, 3, 2, 3, dtype=dtype) for _ in range(2))
    of = block(3, dtype)
    # All is computed in float64: the results' own rounding is left, and of dD and dx, of the same order, more.
    assert_close(step(of, x, grad, False), truth(of, x, grad), {torch.float16: 5e-4}.get(dtype, 1e-7))


@runs_kernels
@pytest.mark.parametrize("absent", [("negative_weight", "negative_bias"), ("fusion_weight", "fusion_bias"),
                                    ("compress_bias",)], ids=str)
def test_parameters_may_be_absent(absent):
    x, grad = normal(2, 3, 4, 5), normal(2, 3, 4, 5)
    of = block(3)._replace(**dict.fromkeys(absent))
    assert_close(step(of, x, grad, False), truth(of, x, grad), 1e-12)


@runs_kernels
def test_parameters_of_other_dtypes_and_strides():
    x, grad = normal(2, 3, 4, 5, dtype=torch.float32), normal(2, 3, 4, 5, dtype=torch.float32)
    of = block(3, torch.float16)._replace(negative_weight=normal(3), fusion_bias=normal(12)[::2],
                                          compress_weight=normal(6, 3, 1, 1, dtype=torch.float32).transpose(0, 1))
    assert_close(step(of, x, grad, False), truth(of, x, grad), 1e-3)


@runs_kernels
@layouts
def test_a_group_s_statistics_are_those_of_one_batch(channels_last):
    """What two processes compute with statistics, and gradients of them, that are all processes'."""
    x, grad = (normal(4, 3, 4, 5, channels_last=channels_last) for _ in range(2))
    of, eps = block(3), (NEGATIVE_EPS, FUSION_EPS)
    parts = list(zip(x.split([1, 3]), grad.split([1, 3]), strict=True))
    packed = torch.stack([leni_forward.leni_batch_statistics(part, of.deconv_weight)
                          for part, _ in parts])
    statistics = merged(Statistics(*packed[:, :-1].chunk(2, 1), packed[:, -1]))
    statistics = torch.cat([statistics.mean, statistics.variance, statistics.count[None]])
    outputs, gradients = [], []
    for part, of_part in parts:
        y, none = leni_forward.leni_training(part, *of.of_training(), statistics, *eps)
        assert none.numel() == 0
        outputs.append(y)
        gradients.append(leni_backward.leni_training_backward(
            of_part, part, *of.of_training()[:-1], statistics, None, *eps, False))
        assert [tensor.numel() for tensor in gradients[-1][:2]] == [0, 0]
    of_gamma, of_shift, *sums, summed = (
        torch.stack(tensors).sum(0) for tensors in zip(*(found[2:] for found in gradients), strict=True))
    assert not of_shift.any()
    last = []
    for part, of_part in parts:
        last.append(leni_backward.leni_training_backward(
            of_part, part, *of.of_training()[:-1], statistics, summed, *eps, True))
        assert not any(tensor.numel() for tensor in last[-1][2:])
    names = ("negative_weight", "fusion_weight", "fusion_bias", "compress_weight", "compress_bias")
    got = {"y": torch.cat(outputs), "x": torch.cat([found[0] for found in last]),
           "deconv_weight": last[0][1] + last[1][1],
           **dict(zip(names, (of_gamma, *sums), strict=True))}
    assert_close(got, truth(of, x, grad), 1e-12)


@runs_kernels
@layouts
@dtypes
def test_running_statistics_are_folded(dtype, channels_last):
    of, negative, fusion = block(5, dtype), running(5), running(10)
    # One mean is large against its deviations, and is taken from the features before they are rounded.
    fusion[0][3], fusion[0][7], negative[0][2] = 40, -30, 20
    x = normal(2, 5, 4, 6, dtype=dtype, channels_last=channels_last)
    y = leni_forward.leni_eval(x, of.deconv_weight, *negative[:2], of.negative_weight, of.negative_bias, *fusion[:2],
                               of.fusion_weight, of.fusion_bias, of.compress_weight, of.compress_bias, NEGATIVE_EPS,
                               FUSION_EPS)
    wanted, composed = (reference.leni(x.to(other), *layers(
        Block(*(tensor.to(other) for tensor in of)), *([tensor.to(other) if tensor.is_floating_point() else tensor
                                                        for tensor in state] for state in (negative, fusion))))
        for other in (torch.float64, dtype))
    assert relative(y, wanted) <= (2 * relative(composed, wanted) if dtype == torch.float16 else TOLERANCES[dtype])


@runs_kernels
@layouts
def test_an_empty_batch_of_a_group(channels_last):
    x, of = normal(0, 3, 4, 5, dtype=torch.float16, channels_last=channels_last), block(3)
    assert not leni_forward.leni_batch_statistics(x, of.deconv_weight).any()
    statistics = torch.ones(13, dtype=torch.float64, device=DEVICE)
    y, _ = leni_forward.leni_training(x, *of.of_training(), statistics, NEGATIVE_EPS, FUSION_EPS)
    gradients = leni_backward.leni_training_backward(x, x, *of.of_training()[:-1], statistics, None, NEGATIVE_EPS,
                                                    FUSION_EPS, True)
    assert y.shape == gradients[0].shape == x.shape
    assert gradients[1].shape == of.deconv_weight.shape
    assert not any(gradient.any() for gradient in gradients)


# ---- the running statistics --------------------------------------------------------------------------------


@runs_kernels
@pytest.mark.parametrize("momentum", [0.1, 0.0, None])
@pytest.mark.parametrize("counted", [True, False])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16], ids=str)
def test_running_statistics_move_as_those_of_the_norms(dtype, momentum, counted):
    of, statistics = block(300, torch.float32), normal(1201).square()
    statistics[-1] = 24
    negative, fusion = running(300, dtype), running(600, dtype)
    if not counted:
        negative, fusion = (*negative[:2], None), (*fusion[:2], None)
    got, wanted = (tuple(map(lambda state: copies(*state), (negative, fusion))) for _ in range(2))
    leni_forward.leni_running_statistics(statistics, of.negative_weight, of.negative_bias, *got[0], momentum, *got[1],
                                         momentum, NEGATIVE_EPS)
    mean, variance = statistics[:-1].chunk(2)
    share = 1 - NEGATIVE_EPS / (variance[300:] + NEGATIVE_EPS)
    options = {"eps": NEGATIVE_EPS, "training": True, "momentum": momentum}
    move(norm(wanted[0], None, None, **options), mean[300:], variance[300:], statistics[-1])
    move(norm(wanted[1], None, None, **options),
         torch.cat([mean[:300], of.negative_bias.double()]),
         torch.cat([variance[:300], share * of.negative_weight.double().square()]), statistics[-1])
    for mine, exact in zip((*got[0], *got[1]), (*wanted[0], *wanted[1]), strict=True):
        assert (mine is None) == (exact is None)
        if exact is not None:
            assert mine.dtype == exact.dtype
            # In half precision the definition rounds each term and the sum; the kernel, the sum.
            half = {"rtol": 2e-3, "atol": 2e-3} if mine.dtype == torch.float16 else {}
            torch.testing.assert_close(mine, exact, **half)


@runs_kernels
def test_a_norm_may_keep_no_statistics():
    state = running(6)
    before = copies(*state)
    leni_forward.leni_running_statistics(normal(13).square(), None, None, None, None, None, 0.1, *state, 0.1, 1e-5)
    assert not torch.equal(state[1], before[1])
    leni_forward.leni_running_statistics(normal(13).square(), None, None, None, None, None, None, None, None, None,
                                         None, 1e-5)


@runs_kernels
@pytest.mark.parametrize("momentum", [0.1, None])
def test_reborn_s_running_statistics_move_as_those_of_the_norm(momentum):
    statistics, state = normal(11).square() + 2, running(5, torch.float64)
    wanted = copies(*state)
    reborn_forward.reborn_running_statistics(statistics, *state, momentum)
    move(norm(wanted, None, None, 1e-5, training=True, momentum=momentum), statistics[:5], statistics[5:10],
         statistics[10])
    for mine, exact in zip(state, wanted, strict=True):
        torch.testing.assert_close(mine, exact)


# ---- Reborn ------------------------------------------------------------------------------------------------


@runs_kernels
@layouts
@dtypes
@pytest.mark.parametrize("groups", [1, 2])
def test_a_step_of_reborn_is_the_definition_s(dtype, groups, channels_last):
    x, grad = (normal(2, 6, 4, 6, dtype=dtype, channels_last=channels_last) for _ in range(2))
    of = block(6, dtype, groups=groups)._replace(fusion_weight=None, fusion_bias=None)
    composed = truth(of, x, grad, True, dtype) if dtype == torch.float16 else None
    assert_close(reborn_step(of, x, grad, channels_last), truth(of, x, grad, True), TOLERANCES[dtype], composed)


@runs_kernels
def test_reborn_over_several_blocks():
    x, grad = (normal(1, 130, 3, 8, dtype=torch.float32) for _ in range(2))
    of = block(130, torch.float32, groups=130)._replace(fusion_weight=None, fusion_bias=None)
    assert_close(reborn_step(of, x, grad, False), truth(of, x, grad, True), TOLERANCES[torch.float32])


@runs_kernels
@pytest.mark.parametrize("absent", [("negative_weight", "negative_bias"), ("compress_bias",)], ids=str)
def test_reborn_s_parameters_may_be_absent(absent):
    x, grad = normal(2, 3, 4, 5), normal(2, 3, 4, 5)
    of = block(3, groups=1)._replace(**dict.fromkeys(("fusion_weight", "fusion_bias", *absent)))
    assert_close(reborn_step(of, x, grad, False), truth(of, x, grad, True), 1e-12)


@runs_kernels
def test_reborn_of_few_values():
    x, grad = normal(2, 3, 2, 3, dtype=torch.float32), normal(2, 3, 2, 3, dtype=torch.float32)
    of = block(3, torch.float32, groups=1)._replace(fusion_weight=None, fusion_bias=None)
    assert_close(reborn_step(of, x, grad, False), truth(of, x, grad, True), 1e-7)


@runs_kernels
@layouts
def test_reborn_with_running_statistics(channels_last):
    x, grad = (normal(2, 3, 4, 5, channels_last=channels_last) for _ in range(2))
    of, state = block(3, groups=1)._replace(fusion_weight=None, fusion_bias=None), running(3, torch.float64)
    leaves = Block(*(None if tensor is None else tensor.detach().requires_grad_() for tensor in of))
    leaf = x.detach().requires_grad_()
    y = reborn_reference.reborn(leaf, *layers(leaves, state, None))
    wanted = {"x": leaf, **leaves.given()}
    gradients = torch.autograd.grad(y, list(wanted.values()), grad)
    exact = {"y": y.detach(), **dict(zip(wanted, gradients, strict=True))}
    assert_close(reborn_step(of, x, grad, channels_last, *state[:2]), exact, 1e-12)


@runs_kernels
def test_reborn_computes_what_is_needed():
    x, grad, of = normal(2, 3, 4, 5), normal(2, 3, 4, 5), block(3, groups=1)
    parameters = of.deconv_weight, of.negative_weight, of.negative_bias, of.compress_weight
    common = NEGATIVE_EPS, 1
    y, z, statistics = reborn_forward.reborn_training(x, *parameters, of.compress_bias, None, None, None, *common)
    again, none, _ = reborn_forward.reborn_training(x, *parameters, of.compress_bias, z, *statistics[:-1].chunk(2),
                                                  *common)
    assert none.numel() == 0
    assert relative(again, y) <= 1e-14

    def backward(given, trains, needs):
        return reborn_backward.reborn_training_backward(grad, x, *parameters, z, statistics, given, *common, trains,
                                                     *needs)

    whole = backward(None, True, [True] * 3)
    halves = backward(None, True, [False] * 2 + [True])[2:], backward(whole[-1], True, [True, True, False])
    assert [tensor.numel() for tensor in halves[1][2:]] == [0] * 5
    for mine, exact in zip((*halves[1][:2], *halves[0]), whole, strict=True):
        assert torch.equal(mine, exact)
    for needs in ([True, False, False], [False, True, False], [False, False, True]):
        found = backward(None, False, needs)
        assert [tensor.numel() > 0 for tensor in found] == [*needs[:2], *[needs[2]] * 5]


# ---- launches ----------------------------------------------------------------------------------------------

@layouts
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_a_step_of_leni_is_nine_launches(dtype, channels_last):
    x, grad = (normal(2, 64, 8, 8, dtype=dtype, channels_last=channels_last) for _ in range(2))
    of, options = block(64, dtype), (NEGATIVE_EPS, FUSION_EPS)
    negative, fusion = running(64), running(128)
    with Launches() as found:
        _, statistics = leni_forward.leni_training(x, *of.of_training(), None, *options)
        leni_forward.leni_running_statistics(statistics, of.negative_weight, of.negative_bias, *negative, 0.1, *fusion,
                                             None, NEGATIVE_EPS)
        leni_backward.leni_training_backward(grad, x, *of.of_training()[:-1], statistics, None, *options, True)
    assert found.kernels == [
        "leni_statistics_kernel", "leni_fold_kernel",
        "leni_folded_channels_last_kernel" if channels_last else "leni_folded_contiguous_kernel", "leni_update_kernel",
        "leni_weight_gradient_kernel", "leni_fold_backward_kernel", "leni_negative_gradient_kernel",
        "leni_input_gradient_kernel", "leni_sum_taps_kernel"]
    assert not found.of_torch


@layouts
def test_launches_of_a_group_s_process(channels_last):
    x, of = normal(2, 16, 8, 8, dtype=torch.float32, channels_last=channels_last), block(16, torch.float32)
    options = NEGATIVE_EPS, FUSION_EPS
    statistics, given = (torch.ones(size, dtype=torch.float64, device=DEVICE) for size in (65, 64))
    parameters = of.of_training()
    backward = partial(leni_backward.leni_training_backward, x, x, *parameters[:-1], statistics)
    for launches, run in (
            (2, partial(leni_forward.leni_batch_statistics, x, of.deconv_weight)),
            (2, partial(leni_forward.leni_training, x, *parameters, statistics, *options)),
            (2, partial(backward, None, *options, False)), (4, partial(backward, given, *options, True))):
        with Launches() as found:
            run()
        assert len(found.kernels) == launches
        assert not found.of_torch


@layouts
def test_inference_is_two_launches(channels_last):
    x, of = normal(2, 64, 8, 8, dtype=torch.float16, channels_last=channels_last), block(64, torch.float16)
    negative, fusion = running(64)[:2], running(128)[:2]
    with Launches() as found:
        leni_forward.leni_eval(x, of.deconv_weight, *negative, of.negative_weight, of.negative_bias, *fusion,
                               of.fusion_weight, of.fusion_bias, of.compress_weight, of.compress_bias, NEGATIVE_EPS,
                               FUSION_EPS)
    assert len(found.kernels) == 2
    assert not found.of_torch


@layouts
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_a_folded_module_is_one_launch(channels_last, dtype):
    """After its first call, which lays its parameters out; float16 for the weight's cast and the bias of the mean."""
    module = lk.fold(lk.LENI2d(64).eval()).to(DEVICE)
    x = normal(2, 64, 8, 8, dtype=dtype, channels_last=channels_last)
    kernels: list[str] = []
    with support.launches_noted("sm_90", lambda kernel, *_: kernels.append(kernel.__name__)), \
            lk.use_backend("triton"):
        module(x)
        kernels.clear()
        with torch.profiler.profile() as profile:
            module(x)
    assert kernels == [f"leni_folded_{'channels_last' if channels_last else 'contiguous'}_kernel"]
    of_torch = {event.key.removeprefix("aten::") for event in profile.key_averages() if "aten::" in event.key}
    assert of_torch <= {*FREE, "fill_"}  # the tests' own, of empty memory


LIBRARY = ("clamp", "convolution", "convolution_backward", "flip", "clone")
"""What the library's deconvolution and its gradients are made of: clone is of a flipped weight with groups."""


@layouts
def test_a_step_of_reborn_is_eight_launches_beside_the_library_s(channels_last):
    x, of = normal(2, 16, 8, 8, dtype=torch.float32, channels_last=channels_last), block(16, torch.float32, groups=1)
    parameters = of.deconv_weight, of.negative_weight, of.negative_bias, of.compress_weight
    common = NEGATIVE_EPS, 1
    with Launches() as found:
        _, z, statistics = reborn_forward.reborn_training(x, *parameters, of.compress_bias, None, None, None, *common)
        reborn_forward.reborn_running_statistics(statistics, None, None, None, 0.1)
        reborn_backward.reborn_training_backward(x, x, *parameters, z, statistics, None, *common,
                                                 True, True, True, True)
    assert len(found.kernels) == 8
    assert set(found.of_torch) <= set(LIBRARY)


@pytest.mark.parametrize(("launch", "mutates"), [
    (leni_forward.leni_batch_statistics, ()), (leni_forward.leni_eval, ()), (leni_forward.leni_training, ()),
    (leni_backward.leni_training_backward, ()), (reborn_forward.reborn_training, ()),
    (reborn_backward.reborn_training_backward, ()),
    (leni_forward.leni_running_statistics, ("negative_mean", "negative_variance", "negative_batches", "fusion_mean",
                                            "fusion_variance", "fusion_batches")),
    (reborn_forward.reborn_running_statistics, ("mean", "variance", "batches")),
], ids=lambda value: getattr(value, "__name__", ""))
def test_each_step_can_be_an_operator(launch, mutates):
    assert torch.library.infer_schema(launch, mutates_args=mutates)


@layouts
@pytest.mark.parametrize("mechanism", ["leni", "reborn"])
def test_no_batch_size_is_a_program_of_its_own(mechanism, channels_last):
    """Of a batch whose size is a symbol launches ask only whether it is large: a few ranges of it, and no values."""
    shapes = ShapeEnv()
    of = block(16, torch.float32, groups=16 if mechanism == "leni" else 1)
    x = normal(8, 16, 28, 28, dtype=torch.float32, channels_last=channels_last).cpu()
    with FakeTensorMode(shape_env=shapes) as mode, Launches():
        any_size = StatelessSymbolicContext([DimDynamic.DYNAMIC, *[DimDynamic.STATIC] * 3])
        x = mode.from_tensor(x, symbolic_context=any_size)
        of = Block(*(mode.from_tensor(tensor.cpu(), static_shapes=True) for tensor in of))
        run = step if mechanism == "leni" else reborn_step
        run(of, x, torch.empty_like(x), channels_last)
    assert not shapes.replacements
    size, = x.shape[:1]
    programs = {tuple(bool(guard.expr.subs(size.node.expr, batch)) for guard in shapes.guards)
                for batch in range(2, 1000, 9)}
    assert 1 < len(programs) <= 5


@pytest.mark.skipif(support.interpreting, reason="the interpreter's operator is opaque to tracing")
def test_steps_can_be_traced_without_a_gpu():
    """As torch.compile does: fake tensors on a GPU that need not exist give a graph with each of the kernels in it."""
    options = NEGATIVE_EPS, FUSION_EPS
    with FakeTensorMode() as mode, torch.device("cuda"):
        x = torch.empty(2, 16, 8, 8)
        of = Block(*(mode.from_tensor(tensor.cpu()).cuda() for tensor in block(16, torch.float32)))
        _, *parameters, _ = of.of_training()
        state = torch.empty(16), torch.empty(16), torch.zeros((), dtype=torch.int64)
        statistics, wide = torch.empty(65, dtype=torch.float64), (torch.empty(32), torch.empty(32), None)
        backward = partial(leni_backward.leni_training_backward, x, x, of.deconv_weight, *parameters, statistics, None)
        update = partial(leni_forward.leni_running_statistics, statistics, of.negative_weight, of.negative_bias)
        graphs = [make_fx(lambda x: leni_forward.leni_training(x, *of.of_training(), None, *options))(x),
                  make_fx(lambda: backward(*options, True))(),
                  make_fx(lambda: update(*state, 0.1, *wide, None, NEGATIVE_EPS))()]
    kernels = [sum(node.target is triton_kernel_wrapper_mutation for node in graph.graph.nodes) for graph in graphs]
    assert kernels == [3, 5, 1]
