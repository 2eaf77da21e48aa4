"""What a folded module keeps for the next call is made once, and again after every change that can be seen."""

import copy
import io

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

import leni_kernels as lk
from leni_kernels.common import extension, kept
from leni_kernels.common.kept import Kept
from leni_kernels.leni import reference
from leni_kernels.reborn import reference as reborn_reference

needs_cpp = pytest.mark.skipif(extension.why_missing is not None, reason="the C++ backend is not installed")


class Twice:
    """A store, and how often what it keeps was made: double the source."""

    def __init__(self):
        self.kept, self.count = Kept(), 0

    def __call__(self, source, key="double"):
        def make():
            self.count += 1
            return source.detach() * 2

        return self.kept.get(key, (source, None), make)


def added_to(source):
    source.add_(1)
    return source


def added_to_a_view(source):
    source.view(-1)[0] = 7
    return source


def exchanged(source):
    return source + 1


def given_other_data(source):
    source.data = source.data + 1
    return source


def cast(source):
    return source.double()


def transposed(source):
    return source.t()


def test_it_is_made_once():
    twice, source = Twice(), torch.randn(3, 3)
    assert twice(source) is twice(source)
    assert twice(nn.Parameter(source)) is twice(source.detach())
    assert twice.count == 1


@pytest.mark.parametrize("change", [added_to, added_to_a_view, exchanged, given_other_data, cast, transposed])
def test_it_is_made_again_after_a_change(change):
    twice, source = Twice(), torch.randn(3, 3)
    twice(source)
    changed = change(source)
    assert torch.equal(twice(changed), changed * 2)
    assert twice(changed) is twice(changed)
    assert twice.count == 2


def test_memory_that_is_used_again_is_no_old_source():
    twice = Twice()
    for value in range(20):
        source = torch.full((3, 3), float(value))  # where the last one was, if its memory were free
        assert torch.equal(twice(source), source * 2)


def test_keys_are_apart():
    twice, source = Twice(), torch.randn(3, 3)
    assert twice(source, "one") is not twice(source, "other")
    assert twice.count == 2


def test_each_stream_has_its_own(monkeypatch):
    twice, source = Twice(), torch.randn(3, 3)
    stream = [1]
    monkeypatch.setattr(kept, "_stream", lambda tensor: stream[0])
    first = twice(source)
    stream[0] = 2
    assert twice(source) is not first
    stream[0] = 1
    assert twice(source) is first


def test_a_capture_makes_what_it_uses_itself(monkeypatch):
    twice, source = Twice(), torch.randn(3, 3)
    first = twice(source)
    with monkeypatch.context() as capture:
        capture.setattr(kept, "_captured", lambda tensor: True)
        assert twice(source) is not twice(source)
    assert twice(source) is first


@pytest.mark.filterwarnings("ignore:.*jit.trace:FutureWarning", "ignore:.*jit.trace:DeprecationWarning")
def test_nothing_is_kept_of_what_is_traced_or_does_not_count_its_changes():
    twice, source = Twice(), torch.randn(3, 3)
    with FakeTensorMode(allow_non_fake_inputs=True):
        twice(source)
    made = twice.count
    torch.jit.trace(lambda tensor: twice(tensor), source, check_trace=False)
    assert torch.equal(torch.vmap(twice)(source), source * 2)
    assert twice.count == made + 2
    assert type(twice(source)) is torch.Tensor
    with torch.inference_mode():
        uncounted = torch.randn(3, 3)
        twice(uncounted)
        uncounted.add_(1)
        assert torch.equal(twice(uncounted), uncounted * 2)


def test_a_copy_is_empty():
    twice, source = Twice(), torch.randn(3, 3)
    twice(source)
    again = copy.deepcopy(twice)
    again(source)
    assert (twice.count, again.count) == (1, 2)


@needs_cpp
@pytest.mark.parametrize("make", [lk.LENI2d, lk.Reborn2d])
def test_a_folded_module_follows_its_tensors(make):
    torch.manual_seed(0)
    folded, other, x = (lk.fold(make(8).eval()), lk.fold(make(8).eval()), torch.randn(2, 8, 7, 7))

    def assert_right(module):
        definition = reference.leni_folded if make is lk.LENI2d else reborn_reference.reborn_folded
        rest = () if make is lk.LENI2d else (1,)
        wanted = definition(x, module.taps, module.weight, module.bias, *rest)
        torch.testing.assert_close(module(x), wanted, rtol=1e-4, atol=1e-5)

    assert_right(folded)
    folded.load_state_dict(other.state_dict())
    assert_right(folded)
    with torch.no_grad():
        folded.weight.mul_(2)
    assert_right(folded)
    folded.taps = nn.Parameter(torch.randn_like(folded.taps), requires_grad=False)
    assert_right(folded)
    loaded = io.BytesIO()
    torch.save(folded, loaded)
    loaded.seek(0)
    assert_right(torch.load(loaded, weights_only=False))
    assert_right(copy.deepcopy(folded))


@needs_cpp
def test_folded_reborn_makes_its_dense_weight_once(monkeypatch):
    count, make = [], reborn_reference.reborn_taps
    monkeypatch.setattr(reborn_reference, "reborn_taps", lambda *arguments: count.append(1) or make(*arguments))
    folded, x = lk.fold(lk.Reborn2d(8).eval()), torch.randn(2, 8, 7, 7)
    for _ in range(3):
        folded(x)
    assert len(count) == 1
