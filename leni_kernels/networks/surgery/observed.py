"""What the example shows of a model: its activations in eval and in training mode."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from ..examples import Arguments, ExampleError, first_line, run
from .call_sites import Observer, Site, Spot


@dataclass
class Observation:
    """A model, and what a run of the example shows of it in each mode.

    Attributes:
        sites: the calls of activations in eval mode, with what holds in training mode as well.
        only_in_training: those that eval mode does not make.
        calls: how often each module ran in eval mode.
        reads: for each convolution, the names of the sites that its calls in both modes read; None for anything else.
        spots: where each convolution is called, in both modes.
        in_training: how often training mode comes to each :attr:`Site.key`.
        note: why the example does not run in that.
    """

    model: nn.Module
    sites: list[Site]
    calls: Counter[nn.Module]
    reads: dict[nn.Module, set[str | None]]
    spots: dict[nn.Module, set[Spot]]
    only_in_training: list[Site] = field(default_factory=list)
    in_training: Counter[Any] = field(default_factory=Counter)
    note: str = ""


def observe(model: nn.Module, arguments: Arguments) -> Observation:
    """Run a model, which may be another afterwards, in both modes."""
    observer = _observer(model, arguments, training=False)
    reads = {conv: {site and site.name for site in read} for conv, read in observer.reads.items()}
    seen = Observation(model, observer.sites, observer.calls, reads, observer.spots)
    try:
        trained = _observer(model, arguments, training=True)
    except ExampleError as error:
        seen.note = f"in training mode it does not run on the example, and was not compared ({first_line(error)})"
        return seen
    seen.in_training = trained.visits
    by_visit = {(site.key, site.visit): site for site in seen.sites}
    names = {}
    for site in trained.sites:
        other = by_visit.get((site.key, site.visit))
        names[site.name] = other.name if other else f"{site.name} in training mode"
        if other is None:
            seen.only_in_training.append(site)
        else:
            _add_reading(other, site)
    for conv, read in trained.reads.items():
        seen.reads.setdefault(conv, set()).update(site and names[site.name] for site in read)
        seen.spots[conv] |= trained.spots[conv]
    return seen


def _observer(model: nn.Module, arguments: Arguments, training: bool) -> Observer:
    with Observer() as observer:
        observer.returned(run(model, arguments, training))
    return observer


def _add_reading(site: Site, other: Site) -> None:
    """What another mode does with the same site's output holds too."""
    site.reread = max(site.reread, other.reread, key=("", "caller", "elsewhere").index)
    site.changed |= other.changed
    # A convolution that is called elsewhere in the other mode is another call; ``reads`` says that it does not fit.
    known = set(site.convolutions.values())
    site.convolutions |= {name: conv for name, conv in other.convolutions.items() if conv not in known}
    site.readers = list(dict.fromkeys((*site.readers, *other.readers)))
