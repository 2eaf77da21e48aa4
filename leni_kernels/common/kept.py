"""What is made of a module's tensors, kept for the next call and made again when they change."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .operators import intercepted


class _Entry(NamedTuple):
    sources: tuple[Tensor | None, ...]
    """Aliases, which keep the memory from being given to other tensors."""

    versions: tuple[int, ...]
    made: Any


class Kept:
    """A module's store. It sees every change of a tensor, in place or for another, but for a write through ``.data``.

    Nothing is kept of calls that somebody traces or intercepts, nor of tensors that do not count their changes. On a
    GPU each stream has its own, since another's may not be made yet; a capture makes what it uses, in its graph.
    Copies of it, and what is loaded of it from a file, are empty.
    """

    def __init__(self) -> None:
        self._entries: dict[Any, _Entry] = {}

    def get(self, key: Any, sources: Sequence[Tensor | None], make: Callable[[], Any]) -> Any:
        """What ``make()`` makes of ``sources``; ``key`` tells what is made of the same ones apart."""
        tensors = [source for source in sources if source is not None]
        if any(intercepted(tensor) or tensor.is_inference() for tensor in tensors) or _captured(tensors[0]):
            return make()
        key = key, _stream(tensors[0])
        versions = tuple(tensor._version for tensor in tensors)
        entry = self._entries.get(key)
        if entry is None or entry.versions != versions or not all(map(_same, entry.sources, sources)):
            aliases = tuple(None if source is None else source.detach() for source in sources)
            entry = self._entries[key] = _Entry(aliases, versions, make())
        return entry.made

    def __reduce__(self) -> tuple[type[Kept], tuple[()]]:
        return Kept, ()


def _captured(tensor: Tensor) -> bool:
    return tensor.is_cuda and torch.cuda.is_current_stream_capturing()


def _stream(tensor: Tensor) -> int | None:
    return torch.cuda.current_stream(tensor.device).cuda_stream if tensor.is_cuda else None


def _same(alias: Tensor | None, source: Tensor | None) -> bool:
    if alias is None or source is None:
        return alias is source
    return (alias.data_ptr() == source.data_ptr() and alias.dtype == source.dtype and alias.shape == source.shape
            and alias.stride() == source.stride())
