"""The numbers to reach."""

from __future__ import annotations

from collections.abc import Callable

from harness import bars
from harness.bars import Row

COMPOSED, COMPILED = "the composed block", "the hand-folded block under `torch.compile`"


def _channels(least: int, most: int) -> Callable[[Row], bool]:
    return lambda row: least <= row["channels"] <= most


def _limit(work: str, what: str, dtype: str, channels: tuple[int, int], first: float, moonshot: float) -> bars.Bar:
    words = {"leni_inference": "inference", "leni_training": "training step"}[work]
    return bars.slowest(work, f"LENI, {words}, slowest case, {what}: time / L", dtype, "ours/L", first, moonshot,
                        _channels(*channels))


def _faster(what: str, peer: str, work: str, dtype: str, ratio: str, first: float) -> bars.Bar:
    return bars.mean(work, f"LENI, {what}, times faster than {peer}, geometric mean, C ≤ 256", dtype, ratio, first,
                     _channels(0, 256))


CPU = (
    _limit("leni_inference", "64 ≤ C ≤ 256", "float32", (64, 256), 1.5, 1.15),
    _limit("leni_inference", "C < 64", "float32", (0, 63), 2.2, 1.15),
    _faster("inference", COMPOSED, "leni_inference", "float32", "eager/ours", 3.0),
    _faster("inference", COMPILED, "leni_inference", "float32", "compiled/ours", 1.4),
    _limit("leni_inference", "C ≤ 256", "bfloat16", (0, 256), 2.5, 1.3),
    _faster("inference", COMPOSED, "leni_inference", "bfloat16", "eager/ours", 4.0),
    _faster("inference", COMPILED, "leni_inference", "bfloat16", "compiled/ours", 1.4),
    _limit("leni_training", "C ≤ 128", "float32", (0, 128), 2.2, 1.4),
    _faster("training step", "the better of the composed block and, where measured, its compiled form",
            "leni_training", "float32", "best/ours", 3.0),
)


def _first_layers(row: Row) -> bool:
    return row["channels"] <= 64 and bars.channels_last(row)


GPU = (
    bars.slowest("leni_inference", "LENI, inference, slowest case, channels-last, C ≤ 64: time / `torch.relu`",
                 "bfloat16", "ours/relu", 1.4, 1.1, _first_layers),
    bars.least("leni_inference", f"LENI, inference, times faster than {COMPILED}, channels-last, C ≤ 64, slowest case",
               "bfloat16", "compiled/ours", 3.0, _first_layers),
    bars.least("leni_training", "LENI, training step, times faster than the better of eager and compiled, slowest "
               "case, channels-last", "bfloat16", "best/ours", 2.5, bars.channels_last),
    bars.launches("LENI step", 8), bars.launches("LENI in eval mode", 2), bars.launches("LENI folded", 1),
)

OVERHEAD = (
    bars.overhead("LENI2d", "inference", 0.45, "composed"), bars.overhead("LENI2d", "step", 0.55, "composed"),
    bars.overhead("folded LENI", "inference", 0.25, "composed"),
    bars.slowest("overhead", "LENI2d, step, tiny input: operator calls", "float32", "calls", 15,
                 over=lambda row: (row["subject"], row["work"]) == ("LENI2d", "step")),
)
