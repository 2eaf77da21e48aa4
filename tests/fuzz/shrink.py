"""Makes a failing case simpler: fewer and smaller sizes, plainer options, values and strides, as long as it fails."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from typing import Any

from cases import Case, Layout, Operand, Values, shapes, valid


def shrunk(case: Case, fails: Callable[[Case], bool], attempts: int) -> Case:
    """The simplest case found, in so many attempts, on which ``fails`` is still true."""
    seen = [case]
    simpler = True
    while simpler:
        simpler = False
        for candidate in candidates(case):
            if candidate in seen or not valid(candidate):
                continue
            if len(seen) > attempts:
                return tidied(case)
            seen.append(candidate)
            if fails(candidate):
                case, simpler = candidate, True
                break
    return tidied(case)


def candidates(case: Case) -> Iterator[Case]:
    """Cases that are simpler in one thing each, the largest steps first."""
    for changes in ({"threads": 1}, {"autocast": False}, {"needs": ()}, {"dtype": "float32"}):
        if any(getattr(case, name) != value for name, value in changes.items()):
            yield replace(case, **changes)
    yield from _with_plain_operands(case)
    if case.problem.get("padding") == "same":
        yield replace(case, problem={**case.problem, "padding": (0,) * len(case.problem["plane"])})
    for name, value in case.problem.items():
        for smaller in _smaller(name, value):
            yield replace(case, problem={**case.problem, name: smaller})
    for name in case.needs:
        yield replace(case, needs=tuple(other for other in case.needs if other != name))


def _with_plain_operands(case: Case) -> Iterator[Case]:
    names = [name for name in shapes(case) if case.operands[name] != Operand()]
    plain = {name: replace(case.operands[name], layout=Layout()) for name in names}
    yield replace(case, operands={**case.operands, **plain})
    for name in names:
        for simpler in _simpler(case.operands[name]):
            yield replace(case, operands={**case.operands, name: simpler})


def _simpler(operand: Operand) -> Iterator[Operand]:
    if operand.layout != Layout():
        yield replace(operand, layout=Layout())
        for field in fields(Layout):
            if getattr(operand.layout, field.name) != field.default:
                yield replace(operand, layout=replace(operand.layout, **{field.name: field.default}))
        for flags in ("steps", "gaps", "expanded"):
            for less in _one_less(getattr(operand.layout, flags), flags):
                yield replace(operand, layout=replace(operand.layout, **{flags: less}))
    values = operand.values
    for field in fields(Values):
        if field.name != "seed" and getattr(values, field.name) != field.default:
            yield replace(operand, values=replace(values, **{field.name: field.default}))
    if len(values.specials) > 1:
        for special in values.specials:
            yield replace(operand, values=replace(values, specials=(special,)))
    for place, value in values.specials:
        if place:
            yield replace(operand, values=replace(values, specials=((0, value),)))


def _one_less(entries: tuple[Any, ...], field: str) -> Iterator[tuple[Any, ...]]:
    """The tuple with one entry at its least."""
    least = {"steps": 1, "gaps": 0, "expanded": False}[field]
    for index, entry in enumerate(entries):
        if entry != least:
            yield (*entries[:index], least, *entries[index + 1:])


def _smaller(name: str, value: Any) -> Iterator[Any]:
    """Plainer values of an entry of the problem."""
    if isinstance(value, tuple):
        for index, size in enumerate(value):
            for smaller in _smaller(name, size):
                yield (*value[:index], smaller, *value[index + 1:])
    elif isinstance(value, int) and not isinstance(value, bool):
        least = 0 if name == "padding" else 1
        halves = {least, value // 2, value - 2, value - 1}
        yield from sorted(size for size in halves if least <= size < value)
    elif name in ("affine", "bias") and value:
        yield False


def tidied(case: Case) -> Case:
    """Without the tensors that the problem no longer has."""
    names = shapes(case)
    return replace(case, operands={name: operand for name, operand in case.operands.items() if name in names},
                   needs=tuple(name for name in case.needs if name in names))
