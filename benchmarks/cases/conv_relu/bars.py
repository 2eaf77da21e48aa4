"""The numbers to reach."""

from __future__ import annotations

from harness import bars


def _slowest(part: str, words: str, dtype: str, first: float, moonshot: float) -> bars.Bar:
    return bars.slowest(f"conv_relu_{part}", f"ConvReLU, {words}, slowest case: time / conv(relu(x))", dtype,
                        "ours/relu_conv", first, moonshot)


CPU = (
    _slowest("inference", "inference", "float32", 1.5, 1.05),
    _slowest("inference", "inference", "bfloat16", 1.5, 1.05),
    *(bars.least("conv_relu_inference", "ConvReLU, inference, times faster than composed, slowest case", dtype,
                 "composed/ours", 5.0) for dtype in ("float32", "bfloat16")),
    _slowest("training", "training step", "float32", 2.0, 1.3),
)

GPU = tuple(
    bars.slowest(f"conv_relu_{part}", f"ConvReLU, {words}, slowest case, channels-last: time / conv(relu(x))",
                 "bfloat16", "ours/relu_conv", *goals, bars.channels_last)
    for part, words, goals in (("inference", "inference", (1.5, 1.05)), ("training", "training step", (2.0, 1.3))))

OVERHEAD = (
    bars.overhead("ConvReLU2d", "inference", 2.0, "conv(relu(x))"),
    bars.overhead("ConvReLU2d", "step", 1.8, "conv(relu(x))"),
)
