"""The ConvReLU paper's network for texts, of characters or of words."""

from __future__ import annotations

from itertools import count

import torch
from torch import Tensor, nn

from .plain import Convolution, convolutions, scaled

PLAN = [Convolution(256, kernel=7, pool=3), Convolution(256, kernel=7, pool=3), *[Convolution(256)] * 3,
        Convolution(256, pool=3)]
PLANS = {"text": [step._replace(padded=False) for step in PLAN], "text-words": PLAN}
INPUTS = {"text": (70, 1014), "text-words": (10_000, 64)}
"""The symbols and the size that each has unless told otherwise."""
HIDDEN, EMBEDDING = 1024, 300
SCALE, START = 30.0, 0.1
"""The features of words are so many times parameters, and so learn 900 times as fast: by SGD the rare ones, which are
most, would stay where they start, at deviations of 0.1."""


class OneHot(nn.Module):
    """Symbols ``[N, size]``, int64, as ``[N, symbols, size]``, float32: 1 in the channel of each; of symbol 0 no 1."""

    def __init__(self, symbols: int) -> None:
        super().__init__()
        self.symbols = symbols

    def forward(self, tokens: Tensor) -> Tensor:
        hot = torch.zeros(len(tokens), self.symbols, tokens.shape[1], device=tokens.device)
        hot.scatter_(1, tokens[:, None], 1)
        hot[:, 0] = 0
        return hot


class Embedded(nn.Embedding):
    """Symbols ``[N, size]``, int64, as ``[N, features, size]``, learned; symbol 0 is always 0."""

    def __init__(self, symbols: int, features: int) -> None:
        super().__init__(symbols, features, padding_idx=0)
        with torch.no_grad():
            self.weight.mul_(START / SCALE)

    def forward(self, tokens: Tensor) -> Tensor:
        return SCALE * super().forward(tokens).transpose(1, 2)


def text_network(name: str, activation: str, classes: int, symbols: int | None, width: float, where: str,
                 size: int | None) -> nn.Sequential:
    """The ConvReLU paper's VGG-like network for texts, ``[N, size]``, int64, of so many ``symbols``.

    The paper names six convolutions, three poolings, three linear layers and Zhang, Zhao and LeCun 2015; our reading
    is their small network: 256 features, kernels 7, 7, 3, 3, 3, 3, pooling by 3 behind the first, second and last,
    linear layers of 1,024 with dropout of a half behind each but the last, no batch norms. Characters come one-hot and
    their convolutions are not padded; words come as 300 learned features, as in their networks of words, and are
    padded, so that short texts fit. How weights start is ours. The paper replaces the activations of the first two
    convolutions, which are this network's "first-block".

    Raises:
        ValueError: if nothing is left of texts of this size behind the last pooling, or as :func:`convolutions` does.
    """
    plan = [step._replace(channels=scaled(step.channels, width)) for step in PLANS[name]]
    usual_symbols, usual_size = INPUTS[name]
    symbols, size = symbols or usual_symbols, size or usual_size
    left = _left(plan, size)
    if left < 1:
        least = next(length for length in count(1) if _left(plan, length) > 0)
        raise ValueError(f"{name} reads texts of at least {least} symbols, got size {size}")
    features = symbols if name == "text" else scaled(EMBEDDING, width)
    inputs = OneHot(symbols) if name == "text" else Embedded(symbols, features)
    layers, features = convolutions(plan, features, activation, "first:2" if where == "first-block" else where, 1)
    hidden = scaled(HIDDEN, width)
    network = nn.Sequential(inputs, *layers, nn.Flatten(),
                            nn.Linear(features * left, hidden), nn.ReLU(), nn.Dropout(),
                            nn.Linear(hidden, hidden), nn.ReLU(), nn.Dropout(), nn.Linear(hidden, classes))
    return network.apply(_initialise)


def _initialise(module: nn.Module) -> None:
    """As Glorot and Bengio 2010: without norms, PyTorch's own start loses the texts on their way through."""
    if isinstance(module, (nn.Conv1d, nn.Linear)):
        nn.init.xavier_uniform_(module.weight)
        nn.init.zeros_(module.bias)


def _left(plan: list[Convolution], size: int) -> int:
    """What convolutions and poolings leave of a text."""
    for step in plan:
        size = (size - (0 if step.padded else step.kernel - 1)) // step.pool
    return size
