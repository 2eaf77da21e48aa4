"""The numbers to reach, and where a run stands against them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from harness.blocks import every
from harness.report import geometric_mean

Row = dict[str, Any]


class Bar(NamedTuple):
    """One number to reach: where and how it is found in the results, the first bar and the moonshot."""

    work: str
    what: str
    dtype: str
    ratio: str
    over: Callable[[Row], bool]
    combine: Callable[[Iterable[float]], float | None]
    first: float
    moonshot: float | None
    at_most: bool

    def measured(self, results: Mapping[str, Sequence[Row]]) -> float | None:
        """The number as measured; None if a case it needs has no time."""
        values = [row["ratios"].get(self.ratio) for row in results.get(self.work, ())
                  if row["dtype"] == self.dtype and self.over(row)]
        return None if not values or None in values else self.combine(values)

    def reached(self, value: float, bar: float) -> bool:
        return value <= bar if self.at_most else value >= bar


def _channels(least: int, most: int) -> Callable[[Row], bool]:
    return lambda row: least <= row["channels"] <= most


WORDS = {"leni_inference": "inference", "leni_training": "training step",
         "conv_relu_inference": "inference", "conv_relu_training": "training step"}


def _slowest(what: str, dtype: str, over: Callable[[Row], bool], first: float, moonshot: float,
             work: str = "leni_inference") -> Bar:
    return Bar(work, f"{WORDS[work]}, slowest case, {what}: time / L", dtype, "ours/L", over, max, first,
               moonshot, at_most=True)


def _faster_than(peer: str, ratio: str, dtype: str, first: float, work: str = "leni_inference") -> Bar:
    return Bar(work, f"{WORDS[work]}, times faster than {peer}, geometric mean, C ≤ 256", dtype, ratio,
               _channels(0, 256), geometric_mean, first, None, at_most=False)


EAGER, COMPILED = "the composed block", "the hand-folded block under `torch.compile`"
LENI_INFERENCE_CPU = (
    _slowest("64 ≤ C ≤ 256", "float32", _channels(64, 256), 1.5, 1.15),
    _slowest("C < 64", "float32", _channels(0, 63), 2.2, 1.15),
    _faster_than(EAGER, "eager/ours", "float32", 3.0),
    _faster_than(COMPILED, "compiled/ours", "float32", 1.4),
    _slowest("C ≤ 256", "bfloat16", _channels(0, 256), 2.5, 1.3),
    _faster_than(EAGER, "eager/ours", "bfloat16", 4.0),
    _faster_than(COMPILED, "compiled/ours", "bfloat16", 1.4),
)
LENI_TRAINING_CPU = (
    _slowest("C ≤ 128", "float32", _channels(0, 128), 2.2, 1.4, "leni_training"),
    _faster_than("the better of the composed block and, where measured, its compiled form", "best/ours",
                 "float32", 3.0, "leni_training"),
)


def _conv_relu(work: str, dtype: str, first: float, moonshot: float) -> Bar:
    return Bar(work, f"ConvReLU, {WORDS[work]}, slowest case: time / conv(relu(x))", dtype, "ours/relu_conv", every,
               max, first, moonshot, at_most=True)


CONV_RELU_CPU = (
    _conv_relu("conv_relu_inference", "float32", 1.5, 1.05),
    _conv_relu("conv_relu_inference", "bfloat16", 1.5, 1.05),
    *(Bar("conv_relu_inference", "ConvReLU, inference, times faster than composed, slowest case", dtype,
          "composed/ours", every, min, 5.0, None, at_most=False) for dtype in ("float32", "bfloat16")),
    _conv_relu("conv_relu_training", "float32", 2.0, 1.3),
)


REBORN_CPU = (
    Bar("reborn_training", "Reborn, training step, times faster than the composed block, slowest case", "float32",
        "composed/ours", every, min, 2.0, None, at_most=False),
)


def _pointwise(name: str, work: str, first: float, moonshot: float | None) -> Bar:
    return Bar("pointwise", f"{name}, {work}, slowest case: time / ReLU", "float32", f"{name}/ReLU",
               lambda row: row["work"] == work, max, first, moonshot, at_most=True)


POINTWISE_CPU = tuple(_pointwise(name, work, *goals) for name in ("AdaReLU", "FPReLU")
                      for work, goals in (("forward", (1.1, None)), ("step", (1.8, 1.2))))


def _first_layers(row: Row) -> bool:
    return row["channels"] <= 64 and row["layout"] == "channels_last"


LENI_INFERENCE_GPU = (
    Bar("leni_inference", "inference, slowest case, channels-last, C ≤ 64: time / `torch.relu`", "bfloat16",
        "ours/relu", _first_layers, max, 1.4, 1.1, at_most=True),
    Bar("leni_inference", f"inference, times faster than {COMPILED}, channels-last, C ≤ 64, slowest case",
        "bfloat16", "compiled/ours", _first_layers, min, 3.0, None, at_most=False),
)


def _of_launches(subject: str, first: float) -> Bar:
    return Bar("gpu_launches", f"{subject}: kernels launched", "bfloat16", "launches",
               lambda row: row["subject"] == subject, max, first, None, at_most=True)


def _channels_last(row: Row) -> bool:
    return row["layout"] == "channels_last"


GPU = (
    *LENI_INFERENCE_GPU,
    Bar("leni_training", "training step, times faster than the better of eager and compiled, slowest case, "
        "channels-last", "bfloat16", "best/ours", _channels_last, min, 2.5, None, at_most=False),
    *(Bar(work, f"ConvReLU, {WORDS[work]}, slowest case, channels-last: time / conv(relu(x))", "bfloat16",
          "ours/relu_conv", _channels_last, max, *goals, at_most=True)
      for work, goals in (("conv_relu_inference", (1.5, 1.05)), ("conv_relu_training", (2.0, 1.3)))),
    Bar("gpu_networks", "whole network, LENI in layer 1, images/s lost in %", "bfloat16", "loss", every, max, 3.0, None,
        at_most=True),
    _of_launches("LENI step", 8), _of_launches("LENI in eval mode", 2), _of_launches("LENI folded", 1),
)
"""``gpu_`` marks what only ``gpu_check.py`` measures."""


def _overhead(what: str, work: str, first: float, of: str, *subjects: str) -> Bar:
    """For the slowest of the ``subjects``, by default the one called ``what``."""
    return Bar("overhead", f"{what}, {work}, tiny input: time / {of}", "float32", "ours/peer",
               lambda row: row["work"] == work and row["subject"] in (subjects or (what,)), max, first, None,
               at_most=True)


POINTWISE = ("AdaReLU", "FullyParametricReLU", "CReLU")
OVERHEAD = (
    _overhead("LENI2d", "inference", 0.45, "composed"), _overhead("LENI2d", "step", 0.55, "composed"),
    _overhead("folded LENI", "inference", 0.25, "composed"),
    _overhead("Reborn2d", "inference", 0.5, "composed"), _overhead("Reborn2d", "step", 0.6, "composed"),
    _overhead("ConvReLU2d", "inference", 2.0, "conv(relu(x))"), _overhead("ConvReLU2d", "step", 1.8, "conv(relu(x))"),
    _overhead("pointwise, slowest", "inference", 1.8, "PReLU", *POINTWISE),
    _overhead("pointwise, slowest", "step", 1.2, "PReLU", *POINTWISE),
    Bar("overhead", "LENI2d, step, tiny input: operator calls", "float32", "calls",
        lambda row: (row["subject"], row["work"]) == ("LENI2d", "step"), max, 15, None, at_most=True),
)
"""What only ``overhead.py`` measures, on any device."""


def of_device(device: str) -> tuple[Bar, ...]:
    """The bars for a device type."""
    if device == "cuda":
        return GPU
    return LENI_INFERENCE_CPU + LENI_TRAINING_CPU + CONV_RELU_CPU + REBORN_CPU + POINTWISE_CPU
