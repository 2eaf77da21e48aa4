"""Modules that torch.fx does not look into."""

from __future__ import annotations

from typing import Any

from torch import nn


class Leaf(nn.Module):
    """One layer to whoever traces a network: ``torch.fx.symbolic_trace``, torchvision's ``create_feature_extractor``.

    They look into modules unless ``module.__module__`` is of ``torch.nn``, and there is nothing else to tell them. So
    this attribute of an instance says so; that of the class, by which pickle finds it, is what it was.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.__module__ = f"torch.nn.{type(self).__module__}"
