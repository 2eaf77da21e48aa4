"""How a threshold starts: the choices of Gao, Cai, Ji 2020, Table 4."""

from __future__ import annotations

import math

from torch import Tensor, nn

CHOICES = ("zeros", "normal", "xavier")
NORMAL_STD = 0.01


def initialise(threshold: Tensor, choice: str, fan_in: int, fan_out: int) -> None:
    """Fill a threshold in place.

    Args:
        threshold: any shape.
        choice: "zeros", a ReLU at the start and the paper's choice; "normal", N(0, 0.01²), where the paper names
            no deviation; "xavier", Glorot's uniform distribution on ±√(6 / (fan_in + fan_out)).
        fan_in, fan_out: for "xavier".

    Raises:
        ValueError: for another choice.
    """
    checked(choice)
    if choice == "zeros":
        nn.init.zeros_(threshold)
    elif choice == "normal":
        nn.init.normal_(threshold, std=NORMAL_STD)
    else:
        bound = math.sqrt(6 / (fan_in + fan_out))
        nn.init.uniform_(threshold, -bound, bound)


def checked(choice: str) -> str:
    """Require one of the choices, before anything is built on it."""
    if choice not in CHOICES:
        raise ValueError(f"threshold_init must be one of {', '.join(CHOICES)}, got {choice!r}")
    return choice
