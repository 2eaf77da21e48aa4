"""What a campaign draws: configurations of every mechanism, as plain data.

A :class:`Case` holds the sizes and options of a problem, and for each tensor how its values are drawn and how it lies
in memory. Shapes follow from the problem and strides from shape and layout, so that a case whose sizes are made
smaller is a case again.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, field, fields
from typing import Any


class _Short:
    """Prints as the Python that makes it, without what is as by default."""

    def __repr__(self) -> str:
        told = [field for field in fields(self) if field.compare and getattr(self, field.name) != field.default]
        return f"{type(self).__name__}({', '.join(f'{field.name}={getattr(self, field.name)!r}' for field in told)})"


@dataclass(frozen=True, repr=False)
class Values(_Short):
    """The arguments of :func:`tensors.values`."""

    kind: str = "normal"
    scale: float = 1.0
    mean: float = 0.0
    specials: tuple[tuple[int, float], ...] = ()
    seed: int = 0


@dataclass(frozen=True, repr=False)
class Layout(_Short):
    """How a tensor lies in memory; each tuple is empty or has an entry for each dimension.

    ``order`` lists the dimensions, outermost first. Along a dimension the elements are ``steps`` apart, with ``gaps``
    behind the last; ``expanded`` dimensions have stride 0. ``ones`` is the stride of dimensions of size 1. The stride
    of dimension ``far`` is past 2³¹ elements.
    """

    order: tuple[int, ...] = ()
    steps: tuple[int, ...] = ()
    gaps: tuple[int, ...] = ()
    expanded: tuple[bool, ...] = ()
    ones: int | None = None
    far: int | None = None
    offset: int = 0


@dataclass(frozen=True, repr=False)
class Operand(_Short):
    """One tensor of a case."""

    values: Values = Values()
    layout: Layout = Layout()


@dataclass(frozen=True, repr=False)
class Case(_Short):
    """One configuration; parameters have x's ``dtype``, under autocast float32."""

    mechanism: str
    dtype: str
    problem: dict[str, Any]
    operands: dict[str, Operand]
    needs: tuple[str, ...] = ()
    autocast: bool = False
    threads: int = 1
    labels: tuple[str, ...] = field(default=(), compare=False)


def strides(shape: tuple[int, ...], layout: Layout) -> tuple[int, ...]:
    """The strides of a tensor of this shape and layout."""
    result, reach = [0] * len(shape), 1
    for d in reversed(layout.order or range(len(shape))):
        if layout.expanded and layout.expanded[d]:
            continue
        result[d] = reach * (layout.steps[d] if layout.steps else 1)
        reach = result[d] * max(shape[d], 1) + (layout.gaps[d] if layout.gaps else 0)
    if layout.far is not None:
        result[layout.far] += 2**31
    if layout.ones is not None:
        result = [layout.ones if size == 1 else stride for size, stride in zip(shape, result, strict=True)]
    return tuple(result)


# ---- problems: sizes and options of a mechanism, its tensors, and the call -----------------------------------

_NORMS = {"leni": ("negative", "fusion"), "reborn": ("negative",)}
BUFFERS = ("negative_mean", "negative_var", "fusion_mean", "fusion_var")


def shapes(case: Case) -> dict[str, tuple[int, ...]]:
    """The shape of each tensor; "grad" is y's gradient."""
    p = case.problem
    x = (p["batch"], p["channels"], *p["plane"])
    return {"x": x, **_SHAPES[case.mechanism](p), "grad": _shape_of_y(case.mechanism, p, x)}


def _shape_of_y(mechanism: str, p: dict[str, Any], x: tuple[int, ...]) -> tuple[int, ...]:
    if mechanism == "crelu":
        return (x[0], 2 * x[1], *x[2:])
    if mechanism == "conv_relu":
        return (x[0], p["outputs"], *_sites(p))
    return x


def _sites(p: dict[str, Any]) -> list[int]:
    """The size of ConvReLU's y in each dimension; below 1 where the kernel does not fit."""
    if p["padding"] == "same":
        return list(p["plane"])
    sizes = zip(p["plane"], p["kernel"], p["stride"], p["padding"], p["dilation"], strict=True)
    return [(size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
            for size, kernel, stride, padding, dilation in sizes]


def _norm_shapes(norm: str, p: dict[str, Any]) -> dict[str, tuple[int]]:
    channels = p["channels"] * (2 if norm == "fusion" else 1)
    parts = (*(("mean", "var") if p["running"] else ()), *(("weight", "bias") if p["affine"] else ()))
    return {f"{norm}_{part}": (channels,) for part in parts}


def _compress_shapes(p: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    c = p["channels"]
    return {"compress_weight": (c, 2 * c, 1, 1), **({"compress_bias": (c,)} if p["bias"] else {})}


def _leni_shapes(p: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    pointwise = {"pointwise_weight": (p["channels"], p["channels"], 1, 1)} if p["separable"] else {}
    return {"deconv_weight": (p["channels"], 1, p["kernel"], p["kernel"]), **pointwise, **_norm_shapes("negative", p),
            **_norm_shapes("fusion", p), **_compress_shapes(p)}


def _reborn_shapes(p: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    c = p["channels"]
    return {"deconv_weight": (c, c // p["groups"], p["kernel"], p["kernel"]), **_norm_shapes("negative", p),
            **_compress_shapes(p)}


def _folded_shapes(p: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    c = p["channels"]
    return {"taps": (c, p["kernel"], p["kernel"]), "weight": (c, 2 * c), "bias": (c,)}


def _conv_relu_shapes(p: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    return {"weight": (p["outputs"], p["channels"] // p["groups"], *p["kernel"]),
            "threshold": (p["channels"], *p["kernel"]), **({"bias": (p["outputs"],)} if p["bias"] else {})}


def _ada_relu_shapes(p: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    shared = {"channel": (p["channels"],), "layer": (1,), "scalar": (), "element": (p["channels"], *p["plane"])}
    return {"threshold": shared[p["sharing"]]}


_SHAPES = {
    "leni": _leni_shapes,
    "leni_folded": _folded_shapes,
    "reborn": _reborn_shapes,
    "conv_relu": _conv_relu_shapes,
    "ada_relu": _ada_relu_shapes,
    "fully_parametric_relu": lambda p: {"positive_slope": (p["channels"],), "negative_slope": (p["channels"],)},
    "crelu": lambda p: {},
}
MECHANISMS = tuple(_SHAPES)


def call(case: Case) -> str:
    """The Python that makes y of the tensors, which it knows by their names."""
    p, names = case.problem, set(shapes(case))
    if case.mechanism in _NORMS:
        return (_fold_call if p["form"] == "fold" else _block_call)(case.mechanism, p, names)
    if case.mechanism == "conv_relu":
        bias = "bias" if p["bias"] else "None"
        return (f"y = lk.functional.conv_relu{len(p['plane'])}d(x, weight, threshold, {bias}, {p['stride']}, "
                f"{p['padding']!r}, {p['dilation']}, {p['groups']})")
    return f"y = lk.functional.{case.mechanism}({', '.join(name for name in shapes(case) if name != 'grad')})"


def _block_call(mechanism: str, p: dict[str, Any], names: set[str]) -> str:
    def known(name: str) -> str:
        return name if name in names else "None"

    norms = [f"lk.Norm({', '.join(known(f'{norm}_{part}') for part in ('mean', 'var', 'weight', 'bias'))}, "
             f"training={p['form'] == 'training'}, eps={p['eps']})" for norm in _NORMS[mechanism]]
    option = f"groups={p['groups']}" if mechanism == "reborn" else f"pointwise_weight={known('pointwise_weight')}"
    return (f"y = lk.functional.{mechanism}(x, deconv_weight, {', '.join(norms)}, compress_weight, "
            f"{known('compress_bias')}, {option})")


def _fold_call(mechanism: str, p: dict[str, Any], names: set[str]) -> str:
    option = "groups" if mechanism == "reborn" else "separable"
    block = f"{'Reborn2d' if mechanism == 'reborn' else 'LENI2d'}({p['channels']}, {p['kernel']}, {option}={p[option]}"
    layers = {"deconv": "deconv", "pointwise": "deconv_pointwise", "negative": "bn_negative", "fusion": "bn_fusion",
              "compress": "compress"}
    state = []
    for name in sorted(names - {"x", "grad"}):
        layer, part = name.split("_")
        part = f"running_{part}" if part in ("mean", "var") else part
        state.append(f"'{layers[layer]}.{part}': {name}")
    return (f"block = lk.{block}, eps={p['eps']}).eval()\n"
            f"block.load_state_dict({{{', '.join(state)}}}, strict=False, assign=True)\n"
            "y = lk.fold(block)(x)")


def valid(case: Case) -> bool:
    """Whether the mechanism is defined for such a problem."""
    p = case.problem
    if p["channels"] < 1 or any(size < 1 for size in p["plane"]):
        return False
    if case.mechanism in _NORMS or case.mechanism == "leni_folded":
        trains = p.get("form") == "training"
        return (p["kernel"] % 2 == 1 and p["channels"] % p.get("groups", 1) == 0 and (p.get("running", True) or trains)
                and not (trains and p["batch"] * math.prod(p["plane"]) == 1))
    if case.mechanism == "conv_relu":
        return (p["channels"] % p["groups"] == 0 and p["outputs"] % p["groups"] == 0 and p["outputs"] > 0
                and min((*p["kernel"], *p["stride"], *p["dilation"], *_sites(p))) > 0)
    return True


# ---- drawing -------------------------------------------------------------------------------------------------

CHANNELS = (1, 1, 2, 3, 3, 4, 5, 7, 8, 9, 15, 16, 17, 20, 31, 32, 33, 40, 65)
LENGTHS = (1, 1, 2, 2, 3, 4, 5, 6, 7, 8, 9, 11, 12, 15, 16, 17, 19, 24, 31, 33, 65)
TINY_BATCHES = ((2, (1, 1)), (1, (1, 2)), (1, (3, 1)), (2, (1, 2)), (1, (2, 2)), (5, (1, 1)))
"""Batches and planes of so few values that the norms of training all but fix them."""
MOST_ELEMENTS = 6000
"""Of x, and of what ConvReLU's definition makes of it."""


def draw(seed: int, index: int, without: frozenset[str] = frozenset(), mechanism: str | None = None) -> Case:
    """Configuration ``index`` of a campaign."""
    return _Draw(random.Random(f"{seed}/{index}"), without).case(mechanism)


class _Draw:
    """One draw; ``labels`` collects the names of what is out of the ordinary, by which ``without`` leaves it out."""

    def __init__(self, rng: random.Random, without: frozenset[str]) -> None:
        self.rng, self.without, self.labels = rng, without, set()

    def chance(self, probability: float, label: str = "", role: str = "") -> bool:
        """Whether what has this label comes to pass."""
        happens = self.rng.random() < probability
        names = {label, f"{role}-{label}"}
        if not label or not happens:
            return happens
        if names & self.without:
            return False
        self.labels |= {f"{role}-{label}" if role else label}
        return True

    def case(self, mechanism: str | None) -> Case:
        weights = (5, 3, 5, 8, 2, 2, 1)
        mechanism = mechanism or self.rng.choices(MECHANISMS, weights)[0]
        dtype = self.rng.choices(("float32", "bfloat16", "float16", "float64"), (10, 4, 4, 3))[0]
        # PyTorch's layers mix no float16 with autocast's bfloat16.
        autocast = dtype not in ("float64", "float16") and self.chance(0.12, "autocast")
        problem = self.problem(mechanism)
        case = Case(mechanism, dtype, problem, {}, (), autocast, 2 if self.chance(0.1, "threads") else 1)
        operands = {name: self.operand(case, name, shape) for name, shape in shapes(case).items()}
        trainable = [name for name in operands if name not in ("grad", *BUFFERS)]
        return Case(mechanism, dtype, problem, operands, self.needs(case, trainable), autocast, case.threads,
                    tuple(sorted(self.labels)))

    def needs(self, case: Case, trainable: list[str]) -> tuple[str, ...]:
        if case.problem.get("form") == "fold":
            trainable = ["x"] if case.mechanism == "leni" else []
        roll = self.rng.random()
        if roll < 0.1:
            return ()
        return tuple(name for name in trainable if roll < 0.65 or self.chance(0.4))

    # problems

    def problem(self, mechanism: str) -> dict[str, Any]:
        if mechanism == "conv_relu":
            return self.conv_relu()
        dimensions = 2 if mechanism in ("leni", "leni_folded", "reborn") else self.rng.choice((0, 1, 2, 2, 2, 3))
        problem = self.sizes(dimensions)
        if mechanism in ("leni", "leni_folded"):
            problem["kernel"] = self.rng.choice((3, 3, 5, 7))
        if mechanism in _NORMS:
            self.block(mechanism, problem)
        if mechanism == "ada_relu":
            problem["sharing"] = self.rng.choice(("channel", "layer", "scalar", "element"))
        return problem

    def sizes(self, dimensions: int) -> dict[str, Any]:
        sizes = [self.rng.choice((1, 1, 2, 2, 3, 5)), self.rng.choice(CHANNELS),
                 *(self.rng.choice(LENGTHS) for _ in range(dimensions))]
        while math.prod(sizes) > MOST_ELEMENTS:
            largest = sizes.index(max(sizes))
            sizes[largest] = (sizes[largest] + 1) // 2
        if self.chance(0.01, "empty"):
            sizes[0] = 0
        return {"batch": sizes[0], "channels": sizes[1], "plane": tuple(sizes[2:])}

    def block(self, mechanism: str, problem: dict[str, Any]) -> None:
        form = self.rng.choices(("training", "eval", "fold"), (5, 3, 2))[0]
        values = problem["batch"] * math.prod(problem["plane"])
        if form == "training" and self.chance(0.1, "tiny-batch"):
            problem["batch"], problem["plane"] = self.rng.choice(TINY_BATCHES)
        elif form == "training" and 0 < values < 6:
            problem["batch"], problem["plane"] = 2, (3, 3)
        problem.update(form=form, eps=self.rng.choice((1e-5, 1e-3)), affine=form == "fold" or not self.chance(0.1),
                       bias=form == "fold" or not self.chance(0.1),
                       running=form != "training" or not self.chance(0.1))
        if mechanism == "reborn":
            problem["kernel"] = self.rng.choice((1, 3, 3, 3, 3, 5))
            problem["groups"] = self.divisor(problem["channels"], dense=0.6)
        else:
            problem["separable"] = self.chance(0.3)

    def conv_relu(self) -> dict[str, Any]:
        dimensions = self.rng.choice((1, 2, 2, 2, 3))
        problem = self.sizes(dimensions)
        groups = self.divisor(problem["channels"], dense=0.5)
        same = self.chance(0.25)

        def each(*choices: int) -> tuple[int, ...]:
            return tuple(self.rng.choice(choices) for _ in range(dimensions))

        kernel = each(1, 2, 3, 3, 5) if dimensions < 3 else each(1, 1, 2, 3)
        if self.chance(0.3):
            kernel = (self.rng.choice((1, 3)),) * dimensions
        problem.update(outputs=groups * self.rng.choice((1, 1, 2, 3, 5, 8, 16, 17, 33)), groups=groups, kernel=kernel,
                       stride=(1,) * dimensions if same else each(1, 1, 1, 2, 3), dilation=each(1, 1, 1, 2),
                       padding="same" if same else each(0, 1, 1, 2), bias=self.chance(0.6))
        self.shrink_to_budget(problem)
        return problem

    def shrink_to_budget(self, problem: dict[str, Any]) -> None:
        """Enlarge a plane that its kernel does not fit in, and take from batch and plane what is too much work."""
        if problem["padding"] != "same":
            extents = [d * (k - 1) + 1 - 2 * p for d, k, p in
                       zip(problem["dilation"], problem["kernel"], problem["padding"], strict=True)]
            problem["plane"] = tuple(max(size, extent) for size, extent in zip(problem["plane"], extents, strict=True))
        reads = problem["channels"] * math.prod(problem["kernel"])
        while problem["outputs"] > problem["groups"] and reads * problem["outputs"] > 10 * MOST_ELEMENTS:
            problem["outputs"] = problem["groups"] * (problem["outputs"] // problem["groups"] // 2)
        while problem["batch"] > 1 and problem["batch"] * reads * math.prod(_sites(problem)) > 6 * MOST_ELEMENTS:
            problem["batch"] //= 2

    def divisor(self, channels: int, dense: float) -> int:
        if self.chance(dense):
            return 1
        divisors = [d for d in range(1, channels + 1) if channels % d == 0]
        return channels if self.chance(0.3) else self.rng.choice(divisors)

    # tensors

    def operand(self, case: Case, name: str, shape: tuple[int, ...]) -> Operand:
        if name == "x":
            return Operand(self.values_of_x(case, shape), self.layout_of_x(case, shape))
        if name == "grad":
            return Operand(self.values_of_grad(shape), self.layout("gradient", shape))
        # A buffer is written to, so that no two elements may share memory.
        return Operand(self.values_of_parameter(case, name), self.layout("parameter", shape, name not in BUFFERS))

    def seed(self) -> int:
        return self.rng.randrange(10**6)

    def specials(self, values: tuple[float, ...], most: int) -> tuple[tuple[int, float], ...]:
        """Some values at random places, the ends of the tensor among them."""
        places = [self.rng.choice((0, -1, self.rng.randrange(10**6))) for _ in range(self.rng.randint(1, most))]
        return tuple((place, self.rng.choice(values)) for place in places)

    def values_of_x(self, case: Case, shape: tuple[int, ...]) -> Values:
        kind, scale, mean, specials = "normal", 1.0, 0.0, ()
        if self.chance(0.2, "ties", "x"):
            kind = "grid"
        elif self.chance(0.08, "one-signed", "x"):
            kind = self.rng.choice(("positive", "negative"))
        elif self.chance(0.08, "constant", "x") and len(shape) > 2 and shape[0]:
            kind, mean = "constant channels", self.rng.choice((0.0, 3.0, -300.0))
        elif self.chance(0.02, "zeros", "x"):
            scale = 0.0
        if scale and self.chance(0.07, "huge", "x"):
            scale = 10.0 ** (self.rng.uniform(2, 4) if case.dtype == "float16" else self.rng.uniform(15, 30))
        elif self.chance(0.03, "denormal", "x"):
            scale = {"float64": 1e-310, "float16": 1e-6}.get(case.dtype, 1e-40)
        elif self.chance(0.08, "large-mean", "x"):
            mean = self.rng.choice((-1, 1)) * 10 ** self.rng.uniform(1, 3)
        if self.chance(0.1, "nonfinite", "x"):
            specials = self.specials((math.nan, math.inf, -math.inf), 3)
        return Values(kind, scale, mean, specials, self.seed())

    def values_of_grad(self, shape: tuple[int, ...]) -> Values:
        kind = self.rng.choices(("normal", "one value", "grid", "positive"), (12, 3, 2, 2))[0]
        return Values(kind, 1.0, 1.0 if kind == "one value" else 0.0, seed=self.seed())

    def values_of_parameter(self, case: Case, name: str) -> Values:
        if name.endswith("var"):
            return Values("positive", 1.0, 0.1, seed=self.seed())
        if name == "threshold":
            # Autocast rounds a threshold; one that it changed could lie on the other side of a value of x.
            kind = "grid" if case.autocast or self.chance(0.4) else "normal"
            infinite = case.mechanism == "conv_relu" and self.chance(0.1, "nonfinite", "parameter")
            return Values(kind, 0.0 if self.chance(0.1) else 1.0,
                          specials=self.specials((math.inf, -math.inf, -math.inf, math.nan), 3) if infinite else (),
                          seed=self.seed())
        scale = 0.3 if name in ("deconv_weight", "pointwise_weight", "taps") else 1.0
        mean = 1.0 if name in ("negative_weight", "fusion_weight") else 0.0
        zeros = self.specials((0.0,), 2) if self.chance(0.1) else ()
        return Values("grid" if self.chance(0.1) else "normal", scale, mean, zeros, self.seed())

    # layouts

    def layout_of_x(self, case: Case, shape: tuple[int, ...]) -> Layout:
        dimensions = len(shape)
        if case.mechanism in ("ada_relu", "fully_parametric_relu", "crelu") and self.chance(0.3):
            return self.layout("x", shape)
        order = (0, *range(2, dimensions), 1) if self.chance(0.45) else tuple(range(dimensions))
        # Dimensions that the kernels take with any stride; seldom the last, which they want at stride 1.
        free = order if self.chance(0.05) else order[:-1]
        if self.chance(0.1, "transposed", "x"):
            order = (*self.rng.sample(order[:-1], dimensions - 1), order[-1])
        return self.varied("x", shape, order, free)

    def layout(self, role: str, shape: tuple[int, ...], may_overlap: bool = True) -> Layout:
        dimensions = len(shape)
        order = tuple(range(dimensions))
        if dimensions > 2 and self.chance(0.25):
            order = (0, *range(2, dimensions), 1)
        elif dimensions > 1 and self.chance(0.15, "transposed", role):
            order = tuple(self.rng.sample(order, dimensions))
        return self.varied(role, shape, order, order, may_overlap)

    def varied(self, role: str, shape: tuple[int, ...], order: tuple[int, ...], free: tuple[int, ...],
               may_overlap: bool = True) -> Layout:
        dimensions, plain = len(shape), tuple(range(len(shape)))
        steps = gaps = expanded = ()
        if dimensions and self.chance(0.2, "stepped", role):
            steps = tuple(self.rng.choice((1, 2, 3)) if d in free or shape[d] == 1 else 1 for d in plain)
        if dimensions and self.chance(0.2, "sliced", role):
            gaps = tuple(self.rng.choice((0, 1, 2, 5)) for _ in plain)
        if free and may_overlap and self.chance(0.12, "expanded", role):
            # As sum() gives it, or along some dimensions.
            everything = role == "gradient" and self.chance(0.4)
            chosen = plain if everything else self.rng.sample(free, self.rng.randint(1, min(2, len(free))))
            if self.chance(0.3):  # one of a kind for all, and otherwise as ordinary as can be
                chosen, steps, gaps = free[:1], (), ()
            expanded = tuple(d in chosen for d in plain)
        ones = None
        if 1 in shape and self.chance(0.15, "ones", role):
            ones = self.rng.choice((0, 1, 3, 2**40, 2**62))
        far = None
        if role != "parameter" and self.chance(0.004, "far", role):  # folding copies parameters with all their storage
            far = next((d for d in free if shape[d] == 2 and not (expanded and expanded[d])), None)
        offset = self.rng.randint(1, 7) if self.chance(0.2, "misaligned", role) else 0
        return Layout(() if order == plain else order, steps, gaps, expanded, ones, far, offset)
