"""ReLUs fused into the convolutions that read them: ConvReLU."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from torch import nn

from ...common.hooks import hooked
from ..forwards import alike, readers_at
from .call_sites import CONVOLUTIONS, Site, activation
from .observed import Observation
from .operations import Operation, settled
from .past import ActivationPast, read_past

OPTIONS = frozenset({"threshold_init"})


class Fusion:
    """The convolutions that read a ReLU take it in, of those sites that are ``within_reach``; for others it stays."""

    def __init__(self, observation: Observation, within_reach: Collection[str], options: Mapping[str, Any]) -> None:
        self._observation, self._options = observation, options
        self._paths = {module: name for name, module in observation.model.named_modules()}
        self._every = {site.name for site in observation.sites if not site.changed} & set(within_reach)

    def obstacle(self, site: Site) -> str | None:
        if site.sort == "hardswish":
            return "Hardswish is no ReLU of anything that a convolution could read"
        if site.changed:
            return "its input or output is changed in place"
        if not self._fusible(site, self._every):
            readers = [*site.convolutions, *site.readers]
            return f"read by {listed(readers) or 'nobody'}, and by no convolution that can be fused"
        return None

    def operations(self, sites: Sequence[Site]) -> dict[str, Operation]:
        chosen = {site.name for site in sites}
        fusible = {site.name: self._fusible(site, chosen) for site in sites}
        noted = self._noted(sites, fusible)
        new = {conv: CONVOLUTIONS[type(conv)].from_conv(conv, **self._options)
               for convolutions in fusible.values() for conv in convolutions.values()}
        for conv, fused in new.items():
            if any(site.name in noted for site in sites if conv in fusible[site.name].values()):
                fused.register_forward_pre_hook(read_past)
        operations, added = {}, set()
        for site in sites:
            if not fusible[site.name]:  # a convolution of it reads others too, which were not chosen
                continue
            swaps = {self._paths[conv]: new[conv] for conv in fusible[site.name].values() if conv not in added}
            added |= set(fusible[site.name].values())
            others = [name for name in site.convolutions if name not in fusible[site.name]]
            others += dict.fromkeys(site.readers)
            note = f"fused into {', '.join(fusible[site.name])}" + (f"; stays for {listed(others)}" if others else "")
            # ReLU6 is a ReLU of min(x, 6), which is a Hardtanh without its lower bound.
            block = (ActivationPast(activation(site.sort)) if site.name in noted else
                     nn.Hardtanh(-math.inf, 6.0) if site.sort == "relu6" else nn.Identity())
            block = settled(self._observation.model, site, block)
            operations[site.name] = Operation(site, block, block, note, convolutions=swaps, parameters=sum(
                fused.threshold.numel() for fused in swaps.values()))
        return operations

    def _fusible(self, site: Site, chosen: Collection[str]) -> dict[str, nn.Module]:
        """The convolutions that read the site, and all of whose calls read one of the chosen."""
        return {name: conv for name, conv in site.convolutions.items()
                if not hooked(conv) and conv in self._paths and self._observation.reads[conv] <= set(chosen)}

    def _noted(self, sites: Sequence[Site], fusible: Mapping[str, Mapping[str, nn.Module]]) -> set[str]:
        """The sites whose activation stays for others, on paths that the example does not take too as far as a caller's
        source shows them, and those that share a spot or a convolution with one."""
        noted = {site.name for site in sites if site.readers or _may_be_read_by_others(site)
                 or len(fusible[site.name]) < len(site.convolutions)
                 or any(self._may_read_others(conv) for conv in site.convolutions.values())}
        links = [{site.name for site in sites if conv in fusible[site.name].values()}
                 for conv in {conv for each in fusible.values() for conv in each.values()}]
        links += [{site.name for site in sites if site.spot == spot} for spot in {site.spot for site in sites}]
        while reached := {name for link in links if link & noted for name in link} - noted:
            noted |= reached
        return noted

    def _may_read_others(self, conv: nn.Module) -> bool:
        spots = self._observation.spots[conv]
        return any(spot._replace(place=place) not in spots for spot in spots for place in alike(*spot))


def _may_be_read_by_others(site: Site) -> bool:
    readers = readers_at(*site.spot) if site.placed else 1
    return readers is None or readers > len(site.convolutions)


def listed(names: Sequence[str]) -> str:
    """The first few names."""
    return ", ".join(names if len(names) < 5 else (*names[:3], f"and {len(names) - 3} more"))
