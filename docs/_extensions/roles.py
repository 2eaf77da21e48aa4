"""An extension of Griffe: roles in docstrings, such as :func:`fold`, become links to the API pages.

Docstrings are read in editors and terminals as well, where roles are what people know. A role whose target is no
public name becomes code.
"""

from __future__ import annotations

import re
from typing import Any

import griffe

ROLE = re.compile(r":(?:class|func|meth|attr|mod|data|exc):`~?(?P<target>[\w.]+)`")


class Roles(griffe.Extension):
    """Rewrites the docstrings of a package, whose public names are in ``__all__`` of it and of the modules there."""

    def on_package(self, *, pkg: griffe.Module, **_: Any) -> None:
        """Called when a package is loaded."""
        public: dict[str, str] = {}
        for module in (pkg["surgery"], pkg["functional"], pkg):
            public |= {str(name): f"{module.path}.{name}" for name in module.exports or ()}
        _rewrite(pkg, public)


def _rewrite(thing: griffe.Object, public: dict[str, str]) -> None:
    def linked(match: re.Match[str]) -> str:
        name = match["target"].rpartition(".")[2]
        return f"[`{name}`][{public[name]}]" if name in public else f"`{name}`"

    if thing.docstring is not None:
        thing.docstring.value = ROLE.sub(linked, thing.docstring.value)
    for member in thing.members.values():
        if not member.is_alias:
            _rewrite(member, public)
