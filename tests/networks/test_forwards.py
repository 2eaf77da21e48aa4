"""Calls redirected in a module's own forward: wherever they stand, and with all that Python lets a forward be."""

import copy
import functools
import inspect
import linecache
import pickle
import sys
import textwrap

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

import leni_kernels as lk
from leni_kernels.networks import forwards


def x(channels=4):
    return torch.randn(2, channels, 5, 4, dtype=torch.float64)


def doubling(model):
    """The model with slopes of 2 where its ReLUs were, whose output is told from that of ReLUs."""
    result, _ = lk.replace_relu(model, "fully_parametric_relu", example_input=x(), strict=True)
    for module in result.modules():
        if isinstance(module, lk.FullyParametricReLU):
            nn.init.constant_(module.positive_slope, 2.0)
    return result


def twice(x):
    return 2 * F.relu(x)


class Base(nn.Module):
    """Calls no ReLU itself."""

    def __init__(self):
        super().__init__()
        self.relu = nn.ReLU()


class Method(Base):
    def forward(self, x):
        return self._inner(x)

    def _inner(self, x):
        return F.relu(x)


class Inherited(Method):
    pass


class BySuper(Method):
    def forward(self, x):
        return super().forward(x) + 0

    def _inner(self, x):
        return super()._inner(x)


class TwiceBySuper(BySuper):
    def forward(self, x):
        return super().forward(x)


class Decorated(Base):
    @torch.enable_grad()
    def forward(self, x):
        return F.relu(x)


def logged(function):
    @functools.wraps(function)
    def wrapper(*args, **kwargs):
        return function(*args, **kwargs)

    return wrapper


class DecoratedTwice(Base):
    @logged
    @torch.enable_grad()
    def forward(self, x):
        return F.relu(x)


def activated(x):
    return F.relu(x)


def activated_in_turn(x):
    return activated(x)


class ByFunction(Base):
    def forward(self, x):
        return activated(x)


class ByFunctionOfAFunction(Base):
    def forward(self, x):
        return activated_in_turn(x)


class Nested(Base):
    def forward(self, x):
        def inner(y):
            return F.relu(y)

        return inner(x)


class Checkpointed(Base):
    def forward(self, x):
        return checkpoint(self._inner, x, use_reentrant=False)

    def _inner(self, x):
        return F.relu(x)


class Lambda(Base):
    forward = lambda self, x: F.relu(x)  # noqa: E731


class Comprehension(Base):
    def forward(self, x):
        return sum([F.relu(part) for part in (x,)])


class Closure(Base):
    def forward(self, x):
        def inner():
            nonlocal x
            x = F.relu(x)

        inner()
        return x


class Mangled(Base):
    def __scale(self, x):
        return x + 0

    def forward(self, x):
        return self.__scale(F.relu(x))


class Keyword(Base):
    def forward(self, x):
        return self.relu(input=F.relu(input=x) * 0 + x)


class SeveralLines(Base):
    def forward(self, x):
        return F.relu(  # with a comment
            x,
            inplace=False,
        )


class Chain(Base):
    def forward(self, x):
        return (
            (x + 0)
            .relu()
        )


class Within(Base):
    def forward(self, x):
        return F.relu(self.relu(x).relu() * 0 + x)


class Default(Base):
    def forward(self, x, *, scale=1.0):
        """Documented."""
        return scale * F.relu(x)


class Conditional(Base):
    def forward(self, x):
        return F.relu(x) if x.sum() < torch.inf else x


class Assigned(Base):
    def forward(self, x):
        return (y := F.relu(x)) + 0 * y


FORWARDS = [Method, Inherited, BySuper, TwiceBySuper, Decorated, DecoratedTwice, ByFunction,
            ByFunctionOfAFunction, Nested, Checkpointed, Lambda, Comprehension, Closure, Mangled, Keyword, SeveralLines,
            Chain, Default, Conditional, Assigned]
FORWARDS += [Within] if sys.version_info >= (3, 11) else []  # which tell where in a line a call stands


@pytest.mark.parametrize("network", FORWARDS)
def test_a_call_is_redirected_wherever_it_stands(network):
    model, images = network().double(), x()
    result = doubling(model)
    assert isinstance(result, network)
    assert type(result).__name__ == network.__name__
    expected = 2 * torch.relu(images)
    for copied in (result, copy.deepcopy(result), pickle.loads(pickle.dumps(result))):
        torch.testing.assert_close(copied(images), expected)
    torch.testing.assert_close(model(images), torch.relu(images))


def test_two_methods_of_one_module():
    class Both(Method):
        def forward(self, x):
            return F.relu(super().forward(x) * 0 + x)

    result = doubling(Both().double())
    torch.testing.assert_close(result(images := x()), 2 * torch.relu(images))


def test_a_method_is_redirected_for_who_calls_it_directly():
    result = doubling(Method().double())
    torch.testing.assert_close(result._inner(images := x()), 2 * torch.relu(images))


def test_the_source_that_runs_is_shown():
    result = doubling(Default().double())
    text = inspect.getsource(result.forward)
    assert "self.relu_1(x)" in text
    assert "F.relu" not in text
    assert result.forward.__doc__ == "Documented."
    assert inspect.signature(result.forward) == inspect.signature(Default().forward)
    torch.testing.assert_close(result(images := x(), scale=3.0), 6 * torch.relu(images))


def test_classes_are_shared():
    first, second = (lk.replace_relu(nn.Sequential(Method(), Method()).double(), "ada_relu", example_input=x())[0]
                     for _ in range(2))
    assert type(first[0]) is type(first[1]) is type(second[0]) is type(copy.deepcopy(first)[0])


def test_hooks_and_attributes_stay():
    model = Method().double()
    model.note, seen = {"a": 1}, []
    model.register_forward_hook(lambda module, args, output: seen.append(module))
    result = doubling(model)
    result(x())
    assert seen[-1] is result
    assert result.note == {"a": 1}
    assert result.note is not model.note


def from_text(text, tmp_path, name="network"):
    path = tmp_path / f"{name}.py"
    path.write_text(textwrap.dedent(text), encoding="utf-8")
    space = {"nn": nn, "F": F, "__name__": name}
    exec(compile(path.read_text(encoding="utf-8"), str(path), "exec"), space)
    return space["Network"], path


TEXT = """
class Network(nn.Module):
    def forward(self, x):
        return F.relu(x) * 1.0
"""


def test_without_source_calls_stay():
    space = {"nn": nn, "F": F, "__name__": "nowhere"}
    exec(TEXT, space)
    with pytest.raises(ValueError, match=r"relu: the source of Network\.forward cannot be read"):
        lk.replace_relu(space["Network"](), "ada_relu", example_input=x())


def test_a_pickle_of_another_source_is_refused():
    place = forwards.Place(0, "forward", 0, (0,))
    what = forwards.Change((forwards.Redirection(place, "0" * 16, "relu"),))
    with pytest.raises(forwards.UnplacedError, match=r"the source of ByFunction\.forward has changed since"):
        forwards.change(ByFunction(), what)


def test_lines_alone_tell_where_one_call_stands(monkeypatch):
    # As Python 3.10 does, and 3.11 with -X no_debug_ranges.
    monkeypatch.setattr(forwards, "_runs", lambda call, frame: call.lineno <= frame.f_lineno <= call.end_lineno)
    torch.testing.assert_close(doubling(Method().double())(images := x()), 2 * torch.relu(images))

    class Two(Base):
        def forward(self, x):
            return F.relu(x) + F.relu(-x)

    class TwiceInALine(Base):
        def forward(self, x):
            return self.relu(self.relu(x) - 1)

    for network in (Two, TwiceInALine):
        with pytest.raises(ValueError, match=r"several in a line, which Python 3\.10 cannot tell apart"):
            lk.replace_relu(network().double(), "ada_relu", example_input=x())


@pytest.mark.parametrize("scale", [2, 3])
def test_one_of_several_functions_in_a_line(scale):
    forward = {2: lambda self, x: F.relu(x) + x, 3: lambda self, x: F.relu(x) * x}[scale]
    result = doubling(type("Network", (Base,), {"forward": forward})().double())
    relu = torch.relu(images := x())
    torch.testing.assert_close(result(images), 2 * relu + images if scale == 2 else 2 * relu * images)


@pytest.mark.parametrize("change", [("* 1.0", "* 3.0"), ("* 1.0", "+ 1.0"), ("F.relu", "F.relu6")])
def test_source_that_has_changed_is_not_taken(tmp_path, change):
    cls, path = from_text(TEXT, tmp_path)
    path.write_text(TEXT.replace(*change), encoding="utf-8")
    linecache.checkcache()
    with pytest.raises(ValueError, match=r"the source of Network\.forward cannot be read, or is not what runs"):
        lk.replace_relu(cls(), "ada_relu", example_input=x())


def by_local(self, x):
    act = F.relu
    return act(x)


def by_argument(self, x, act=F.relu):
    return act(x)


def by_map(self, x):
    return next(iter(map(F.relu, (x,))))


def by_choice(self, x):
    return (F.relu if x is not None else F.gelu)(x)


@pytest.mark.parametrize(("forward", "reason"), [
    (by_local, "by a name that may mean something else"), (by_argument, "by a name that may mean something else"),
    (by_map, "does not call it by name"), (by_choice, "does not call it by name"),
])
def test_calls_that_cannot_be_told_stay(forward, reason):
    network = type("Network", (nn.Module,), {"forward": forward})
    with pytest.raises(ValueError, match=f"relu: .*{reason}"):
        lk.replace_relu(network(), "ada_relu", example_input=x())
