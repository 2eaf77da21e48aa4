"""Whether the C++ kernels are right on a case: what they give, the truth in float64, and the error that is allowed.

Most operations are sums of products, whose rounding errors are bounded, element by element, by a few units in the last
place times the same sum over absolute values. That sum is had from the definition itself: with parameters of the
signs that make every term positive, it computes the sum of absolute values, and so do its gradients.

A block whose norm takes the batch's statistics has no such bound, nor has one of half-precision layers with large
running means. There the same block, layer by layer in the same dtype, is the measure: the kernels may err four times as
much.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache, cached_property
from types import CodeType
from typing import NamedTuple

import torch
from cases import BUFFERS, Case, Operand, Values, call, shapes, strides
from tensors import strided, values
from torch import Tensor

import leni_kernels as lk

FACTOR, FACTOR_OF_LARGE_MEANS = 4, 20
"""How much more the kernels may err than layers; where a mean in float32 is large against the deviations from it, what
goes through the statistics is a difference of larger numbers than theirs."""
LEAST = {torch.float32: 2**-17, torch.bfloat16: 2**-4, torch.float16: 2**-7}
"""What they may err in any case, as a part of a result's largest value."""
WINOGRAD = 4
"""How much more that is where a dense 3×3 deconvolution in float32 goes through Winograd's transforms."""
CANCELLED = 1 / 2
"""How much of that part of the largest gradient is for gradients that norms cancel, to rounding errors of others."""
NEIGHBOURS = 8
"""The cases like the one at hand on which layers are tried too, before the kernels' error is called larger."""
REFUSALS = ("x has stride 1 neither", "an empty batch has no statistics", "the deconvolution has groups",
            "x has fewer sites than channels", "x has no channels or no sites")

Tensors = dict[str, Tensor]


class Verdict(NamedTuple):
    """``outcome`` is "right", "refused" (by the backend), "skipped" (no memory), or what is wrong, in a word or two."""

    outcome: str
    detail: str = ""

    @property
    def failed(self) -> bool:
        return self.outcome not in ("right", "refused", "skipped")


def judge(case: Case) -> Verdict:
    """Run a case on the C++ kernels and compare."""
    try:
        tensors = build(case)
    except RuntimeError as error:
        if "allocate memory" in str(error):
            return Verdict("skipped", str(error))
        raise
    exact = exactly(case, tensors)
    torch.set_num_threads(case.threads)
    try:
        ours = step(case, "cpp", tensors)
    except lk.BackendUnavailableError as error:
        expected = any(reason in str(error) for reason in REFUSALS)
        return Verdict("refused" if expected else "refused without need", str(error))
    except Exception as error:  # whatever it is, it is the finding
        return Verdict(f"raises {type(error).__name__}", str(error))
    finally:
        torch.set_num_threads(1)
    truth = step(case, "reference", exact)
    if "dx" in truth and case.mechanism in ("leni", "leni_folded", "reborn"):
        truth["dx"] = truth["dx"].masked_fill(exact["x"].isnan(), math.nan)  # a NaN has no sign, hence no gradient
    return compare(case, tensors, exact, ours, truth)


# ---- running a case ------------------------------------------------------------------------------------------


def build(case: Case) -> Tensors:
    """The case's tensors."""
    return {name: tensor_of(case, name, shape) for name, shape in shapes(case).items()}


def tensor_of(case: Case, name: str, shape: tuple[int, ...]) -> Tensor:
    how, layout = case.operands[name].values, case.operands[name].layout
    tensor = values(shape, how.kind, how.scale, how.mean, how.specials, how.seed).to(dtype_of(case, name))
    wanted = strides(shape, layout)
    return tensor if wanted == tensor.stride() and not layout.offset else strided(tensor, wanted, layout.offset)


def dtype_of(case: Case, name: str) -> torch.dtype:
    """The dtype of one of the tensors; parameters are float32 under autocast, and y's gradient has y's."""
    if name == "grad" and half_precision(case):
        return half_precision(case)
    return torch.float32 if case.autocast and name not in ("x", "grad") else getattr(torch, case.dtype)


def half_precision(case: Case) -> torch.dtype | None:
    """The dtype of y if it is one of half precision: autocast leaves the pointwise functions alone."""
    if case.autocast and case.mechanism not in ("ada_relu", "fully_parametric_relu", "crelu"):
        return torch.bfloat16
    return getattr(torch, case.dtype) if case.dtype in ("bfloat16", "float16") else None


def exactly(case: Case, tensors: Tensors) -> Tensors:
    """Dense float64 copies; of x as autocast rounds it."""
    exact = {name: tensor.to(torch.float64, copy=True).contiguous() for name, tensor in tensors.items()}
    if case.autocast and half_precision(case):
        exact["x"] = exact["x"].to(half_precision(case)).double()
    return exact


@cache
def compiled(text: str) -> CodeType:
    return compile(text, "<call>", "exec")


def step(case: Case, backend: str, tensors: Tensors) -> Tensors:
    """y, the gradients asked for (d…) and the running statistics that one call leaves behind."""
    double = tensors["x"].dtype == torch.float64
    leaves = {name: tensor.detach().requires_grad_(name in case.needs) for name, tensor in tensors.items()}
    known = {"lk": lk, **leaves}
    with lk.use_backend(backend), torch.autocast("cpu", torch.bfloat16, enabled=case.autocast and not double):
        exec(compiled(call(case)), known)
    y = known["y"]
    results = {"y": y.detach()}
    needs = [name for name in case.needs if name in leaves]
    if needs:
        gradients = torch.autograd.grad(y, [leaves[name] for name in needs], tensors["grad"].to(y.dtype))
        results.update({f"d{name}": gradient for name, gradient in zip(needs, gradients, strict=True)})
    if case.problem.get("form") == "training":
        results.update({name: leaves[name] for name in BUFFERS if name in leaves})
    return results


# ---- what is compared ----------------------------------------------------------------------------------------


def compare(case: Case, tensors: Tensors, exact: Tensors, ours: Tensors, truth: Tensors) -> Verdict:
    """The first of the results that is wrong."""
    layers = Layers(case, truth)
    if case.problem.get("form") == "training" and not truth["y"].isfinite().all():
        return Verdict("right")  # the batch's statistics spread it, all over or as far as tiles reach
    if has_infinite_variance(case):
        return Verdict("right")  # of layers y is then finite, and wrong
    magnitudes = None if is_measured(case) else magnitudes_of(case, exact)
    for name, wanted in truth.items():
        got = ours[name]
        if got.shape != wanted.shape:
            return Verdict("wrong shape", f"{name} {tuple(got.shape)}, not {tuple(wanted.shape)}")
        right_dtype = expected_dtype(case, name, tensors)
        if got.dtype != right_dtype:
            return Verdict("wrong dtype", f"{name} {got.dtype}, not {right_dtype}")
        if not wanted.numel():
            continue
        verdict = compare_kinds(case, name, got.double(), wanted.to(got.dtype).double(), layers)
        if not verdict.failed and magnitudes is None:
            verdict = compare_with_layers(case, name, got, wanted, layers, exact)
        elif not verdict.failed:
            verdict = compare_with_bound(case, name, got, wanted, magnitudes[name], exact)
        if verdict.failed:
            return verdict
    return Verdict("right")


def is_transformed(case: Case) -> bool:
    problem = case.problem
    return (case.mechanism, case.dtype, problem.get("kernel"), problem.get("groups")) == ("reborn", "float32", 3, 1)


def has_large_means(case: Case) -> bool:
    return any(label in ("x-large-mean", "x-constant") for label in case.labels)


def has_little_variance(case: Case) -> bool:
    """Whether norms may divide rounding errors, the truth's own too, by next to nothing."""
    return any(label in ("tiny-batch", "x-zeros", "x-constant", "x-expanded") for label in case.labels)


def has_infinite_variance(case: Case) -> bool:
    """Whether a separable block's statistics may be larger than numbers of its dtype; they are NaN then."""
    return (case.problem.get("form") == "training" and case.problem.get("separable", False)
            and case.dtype in ("float32", "bfloat16") and "x-huge" in case.labels)


def is_measured(case: Case) -> bool:
    """Whether the error of layers is the measure."""
    form = case.problem.get("form")
    return form == "training" or (form == "eval" and half_precision(case) is not None)


class Layers:
    """A case layer by layer in x's dtype, and how much that errs there and on cases like it; run when asked for."""

    def __init__(self, case: Case, truth: Tensors) -> None:
        self.case, self.truth = case, truth
        self.errors: list[dict[str, float]] = []
        self.largest_gradient = 0.0
        self.moved: Tensors | None = None

    @cached_property
    def results(self) -> Tensors:
        return self._run(self.case)

    def error(self, name: str, cases: int) -> float:
        """The largest error of a result on the cases tried, which are at least so many."""
        while len(self.errors) < cases:
            neighbour = neighbours(self.case)[len(self.errors)]
            self.errors.append(self._errors(neighbour))
        return max(errors[name] for errors in self.errors)

    def sensitivity(self, name: str) -> float:
        """How far the truth moves when x moves by its last bits: no method in x's dtype can be asked for more."""
        if self.moved is None:
            exact = exactly(self.case, build(self.case))
            most = 4 if self.case.dtype == "float64" else 1  # whose last bit is what the truth itself is rounded to
            bits = torch.linspace(-most, most, exact["x"].numel(), dtype=torch.float64).reshape(exact["x"].shape)
            exact["x"] = exact["x"] * (1 + torch.finfo(getattr(torch, self.case.dtype)).eps * bits)
            self.moved = step(self.case, "reference", exact)
        return float((self.moved[name] - self.truth[name]).abs().nan_to_num(0.0, 0.0, 0.0).max())

    @staticmethod
    def _run(case: Case) -> Tensors:
        return step(case, "reference", {name: tensor.clone() for name, tensor in build(case).items()})

    def _errors(self, case: Case) -> dict[str, float]:
        is_own = case is self.case
        truth = self.truth if is_own else step(case, "reference", exactly(case, build(case)))
        results = self.results if is_own else self._run(case)
        gradients = {name: tensor for name, tensor in truth.items() if name.startswith("d")}
        self.largest_gradient = max(self.largest_gradient, largest_of_all(gradients))
        errors = {name: (results[name].double() - wanted).abs() for name, wanted in truth.items()}
        return {name: float(error.nan_to_num(nan=0.0, posinf=0.0).max()) if error.numel() else 0.0
                for name, error in errors.items()}


def expected_dtype(case: Case, name: str, tensors: Tensors) -> torch.dtype:
    if name == "y":
        return half_precision(case) or tensors["x"].dtype
    return tensors[name.removeprefix("d") if name.removeprefix("d") in tensors else name].dtype


def kinds(tensor: Tensor) -> Tensor:
    """0 for finite, 1 for NaN, 2 and 3 for the infinities."""
    return tensor.isnan() + 2 * tensor.isposinf() + 3 * tensor.isneginf()


def compare_kinds(case: Case, name: str, got: Tensor, wanted: Tensor, layers: Layers) -> Verdict:
    """What is finite has to be; in y, NaN and the infinities have to be what they are, unless PyTorch's own layers in
    the same dtype make something else of them."""
    true, found = kinds(wanted), kinds(got)
    form = case.problem.get("form")
    if case.mechanism == "reborn" and form == "eval" and half_precision(case) == torch.bfloat16:
        # The deconvolution is the library's, which spreads infinities in bfloat16.
        differ = (true != 0) & (found == 0) & (name == "y")
    elif name != "y" or form == "training":
        differ = (true == 0) & (found != 0)
    elif (case.mechanism == "reborn" and form == "fold") or case.problem.get("separable"):
        # It sums the products of both weights before they meet x, where layers have ∞ − ∞.
        differ = (true == 0) != (found == 0)
    else:
        differ = true != found
    if not differ.any():
        return Verdict("right")
    differ &= kinds(layers.results[name].double()) == true
    if not differ.any():
        return Verdict("right")
    place = tuple(differ.nonzero()[0].tolist())
    return Verdict("not finite" if true[place] == 0 else "finite or another infinity",
                   f"{name}{list(place)} is {got[place]:.6g}, not {wanted[place]:.6g}")


def magnitudes_of(case: Case, exact: Tensors) -> Tensors:
    """Of each result, the sum of its terms' absolute values."""
    negated = ("deconv_weight", "taps", "negative_mean", "fusion_mean")  # these meet min(x, 0) or are subtracted
    kept = ("x", "threshold", "negative_var", "fusion_var")
    absolute = {name: tensor if name in kept else -tensor.abs() if name in negated else tensor.abs()
                for name, tensor in exact.items()}
    sums = step(case, "reference", absolute)
    if case.mechanism == "conv_relu":
        # Here terms are w·f with an f of either sign: |f| = 2·max(f, 0) − f, and max(f, 0) has a threshold above 0.
        absolute["threshold"] = exact["threshold"].clamp(min=0).nan_to_num(nan=0.0, posinf=math.inf)
        positive = step(case, "reference", absolute)
        sums.update({name: 2 * positive[name] - sums[name] for name in ("y", "dweight") if name in sums})
    return {name: tensor.abs() for name, tensor in sums.items()}


def compare_with_bound(case: Case, name: str, got: Tensor, wanted: Tensor, magnitude: Tensor,
                       exact: Tensors) -> Verdict:
    """Element by element, against the bound of sums of products."""
    length = max(tensor.numel() for tensor in (*exact.values(), got))
    accuracy = torch.finfo(torch.float64 if case.dtype == "float64" else torch.float32).eps
    # Equal terms one after the other err by their number rather than its root, as the truth's own sums may.
    equal = case.operands["grad"].values.kind == "one value" or any(case.operands["grad"].layout.expanded)
    growth = length if case.dtype == "float64" else max(length**0.5, length / 8 if equal else 0)
    # What is rounded last is the result, which may be larger than a sum of terms of which some are NaN.
    allowed = (8 + growth) * accuracy * torch.maximum(magnitude.nan_to_num(nan=0.0), wanted.abs())
    allowed += smallest(case, exact)
    if half_precision(case):
        rounding = torch.finfo(half_precision(case)).eps / 2
        allowed += roundings(case) * rounding * magnitude + 1.01 * rounding * wanted.abs()
    return worst(name, got, wanted, allowed.nan_to_num(nan=math.inf), "")


def roundings(case: Case) -> int:
    """How often the factors of a product are rounded to half precision on the way, which only bfloat16's are."""
    if half_precision(case) == torch.float16:
        return 0
    if case.mechanism in ("leni", "leni_folded", "reborn"):
        return 3
    return 2 if case.autocast else 0


def smallest(case: Case, exact: Tensors) -> float:
    """An error of so much may come from what is too small for the dtype."""
    tiny = torch.finfo(torch.float64 if case.dtype == "float64" else torch.float32).tiny
    factors = [float(tensor[tensor.isfinite()].abs().amax()) if tensor.isfinite().any() else 0.0
               for name, tensor in exact.items() if name != "x"]
    of_terms = 64 * tiny * math.prod(max(1.0, factor) for factor in factors) * max(t.numel() for t in exact.values())
    return of_terms + (2**-25 if half_precision(case) == torch.float16 else 0.0)


def worst(name: str, got: Tensor, wanted: Tensor, allowed: Tensor, comparison: str) -> Verdict:
    """The element that is farthest over what is allowed, if one is."""
    error = (got.double() - wanted).abs()
    over = torch.where(wanted.isfinite() & got.isfinite(), error - allowed, -1.0)
    if not (over > 0).any():
        return Verdict("right")
    place = tuple(torch.unravel_index(over.argmax(), over.shape))
    where = [int(index) for index in place]
    limit = float(allowed.expand(wanted.shape)[place])
    return Verdict("wrong", f"{name}{where} is {got[place]:.9g}, not {wanted[place]:.9g}: the error {error[place]:.3g} "
                            f"is {error[place] / limit:.3g} times what is allowed{comparison}")


def compare_with_layers(case: Case, name: str, got: Tensor, wanted: Tensor, layers: Layers,
                        exact: Tensors) -> Verdict:
    """Against the error of the same block layer by layer in the same dtype."""
    comparable = wanted.isfinite() & layers.results[name].isfinite() & got.isfinite()
    if not comparable.any():
        return Verdict("right")
    largest = float(wanted[comparable].abs().max())
    error = float((got.double() - wanted)[comparable].abs().max())
    factor = FACTOR_OF_LARGE_MEANS if case.dtype == "float32" and has_large_means(case) else FACTOR
    size = max(1.0, largest_of_all({"x": exact["x"]}))  # the first norm's bias is as large where x is 0
    terms = exact["x"].numel() * size * largest_of_all({"grad": exact["grad"]})
    if case.dtype == "float64":  # the truth has the same layers' rounding errors
        of_layers, least = layers.sensitivity(name), 2**-32 * largest_of_all(layers.truth)
        least += (2**-30 if has_little_variance(case) else 2**-44) * terms
        if error <= factor * of_layers + least:
            return Verdict("right")
    else:
        dtype = half_precision(case) or got.dtype
        for cases in (1, 1 + NEIGHBOURS):
            of_layers = layers.error(name, cases)
            if cases > 1 and case.dtype == "float32" and not case.autocast:
                of_layers = max(of_layers, layers.sensitivity(name))
            cancelled = CANCELLED * layers.largest_gradient if name.startswith("d") else 0.0
            least = LEAST[dtype] * (WINOGRAD if is_transformed(case) else 1) * (largest + cancelled)
            least += smallest(case, exact)
            if dtype == torch.float32 and name.startswith("d"):
                least += 2**-22 * terms
            if error <= factor * of_layers + least:
                return Verdict("right")
    allowed = factor * of_layers + least
    return worst(name, got, torch.where(comparable, wanted, math.nan), torch.full_like(wanted, allowed),
                 f" (layers err {of_layers:.3g}; the largest value is {largest:.3g})")


def largest_of_all(results: Tensors) -> float:
    sizes = [float(tensor.nan_to_num(0.0, 0.0, 0.0).abs().max()) for tensor in results.values() if tensor.numel()]
    return max(sizes, default=0.0)


def neighbours(case: Case) -> list[Case]:
    """The case and others of the same structure, each tensor's values scaled a little: one rounding may be lucky.

    A gradient of y that is one value all over a channel comes to 0 behind a norm, for layers without any rounding
    error; the other cases have a gradient that varies.
    """
    found = [case]
    for number in range(NEIGHBOURS):
        operands = {}
        for index, (name, operand) in enumerate(case.operands.items()):
            factor, old = 1 + ((7 * number + 3 * index) % 11 - 5) / 40, operand.values
            operands[name] = replace(operand, values=replace(old, scale=old.scale * factor, mean=old.mean * factor))
        grad = case.operands["grad"]
        if grad.values.kind == "one value" or any(grad.layout.expanded):
            operands["grad"] = Operand(Values("positive", 2.0, 1.0, seed=number))
        found.append(replace(case, operands=operands))
    return found
