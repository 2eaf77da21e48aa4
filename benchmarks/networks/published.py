"""The papers' own numbers, as printed, as far as they are available to us; everything else is None or absent.

LENI: Cai, Peng, Shen 2023 (arXiv 2306.10536). Reborn: Cai, Huang, Peng 2021 (arXiv 2106.07026). ConvReLU: Gao, Cai,
Ji 2020 (AAAI 34(04), 3914-3921). Whoever has the tables adds the numbers here, and every comparison shows them.
"""

from __future__ import annotations

NOT_AVAILABLE = "not available to us"

LENI_SPEED_CHANGE = (-2.6, -0.1)
"""LENI, Table 1: change of images/s in per cent, the lowest and the highest of its rows."""

LENI_LAYER_64 = "+0.010 M"
"""LENI, Table 1: parameters added by LENI in one layer of 64 channels."""

FASHION_MNIST: dict[tuple[str, str], str] = {}
"""Top-1 accuracy on Fashion-MNIST in per cent, by network and activation (Reborn and LENI papers)."""

PARAMETERS: dict[tuple[str, str, str], str] = {}
"""Parameters, by table ("LENI Table 2"), network and activation, with the unit they are printed in ("11.17 M")."""
