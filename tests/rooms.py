"""Something else in the place of what Triton's launches take, in every room that has it."""

from __future__ import annotations

from typing import Any

from gpu import rooms


def replace(monkeypatch: Any, mechanism: str, name: str, value: Any) -> None:
    """Put ``value`` in the place of ``name`` in each room of a mechanism that has it, of which there must be one."""
    found = [room for room in rooms.of(mechanism) if hasattr(room, name)]
    assert found, f"no room of {mechanism} has a {name}"
    for room in found:
        monkeypatch.setattr(room, name, value)
