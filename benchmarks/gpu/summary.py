"""One screen: what failed, what was left out, and the numbers against those to reach."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from harness import bars
from harness.report import number

from . import plan, records
from .records import Record

Found = dict[str, dict[str, Record]]
"""The records of each step, by the names of its cases."""

WIDTH, LINES = 140, 45
MOST_FAILURES = 18


def lines(results: dict[str, Any]) -> list[str]:
    """The summary of a run: at most :data:`LINES` lines."""
    found: Found = results["steps"]
    head = [_title(results), *_steps(results)]
    numbers = [*_bars(found), *_ceilings(found), *_kernels(found), *_networks(found)]
    failed = [f"{step}: {record['case']}: {'; '.join(record.get('failures', ['no reason is known']))}"
              for step, cases in found.items() for record in cases.values() if record["status"] == records.FAILED]
    room = min(MOST_FAILURES, LINES - len(head) - len(numbers) - 2)
    told = failed[:room] + ([f"… and {len(failed) - room} more, in the JSON file"] if len(failed) > room else [])
    heading = f"FAILED: {len(failed)}" if failed else "Nothing failed."
    heading += "" if results["complete"] else " Interrupted: not everything was run."
    text = (heading, *told, *head, *numbers)
    return [line if len(line) <= WIDTH else f"{line[:WIDTH - 1]}…" for line in text][:LINES]


def _title(results: dict[str, Any]) -> str:
    gpu = results["machine"].get("gpu")
    where = gpu["name"] if gpu else "a rehearsal in Triton's interpreter: its times mean nothing"
    versions = results["versions"]
    commit = results["commit"] or "unknown"
    return (f"{where}, torch {versions['torch']}, Triton {versions['triton']}, commit {commit}, "
            f"{results['date'][:16]}, {results['seconds']:.0f} s of {plan.TOTAL}")


def _steps(results: dict[str, Any]) -> Iterator[str]:
    for step in plan.STEPS:
        cases = results["steps"].get(step.name)
        if cases is None:
            continue
        counts = {status: sum(record["status"] == status for record in cases.values())
                  for status in (records.PASSED, records.FAILED, records.LEFT_OUT)}
        text = ", ".join(f"{count} {status}" for status, count in counts.items() if count)
        seconds = results["step_seconds"][step.name]
        compiled = _of_compiling(cases) if step.name == "ahead" else (
            f"; {results['step_kernels'][step.name]} kernels compiled in it")
        yield f"{step.name}: {text or 'no case was run'}; {seconds:.0f} of {step.seconds} s{compiled}"


def _of_compiling(cases: dict[str, Record]) -> str:
    total = cases.get("in all")
    if total is None:
        return ""
    scaled = next(value for name, value in total.items() if name.startswith("seconds_on_"))
    return (f"; {total['kernels']} kernels for {total['architecture']} took {total['cpu_seconds']:.0f} s of a core, "
            f"{total['seconds']:.0f} s on {total['cores']} cores: {scaled:.0f} s on 16")


# ---- against the numbers to reach --------------------------------------------------------------------------


def rows(found: Found) -> dict[str, list[Record]]:
    """The rows of the measurements by the name of their work, as :mod:`bars` looks for them."""
    merged: dict[tuple[Any, ...], Record] = {}
    for record in _measured(found):
        if record["work"] == "ceilings" or record["kind"] == "small":
            continue
        key = tuple(record[name] for name in ("work", "what", "channels", "size", "layout", "dtype"))
        known = merged.get(key, record)["ratios"]
        best = {"best/ours": min(known["best/ours"], record["ratios"]["best/ours"])} if "best/ours" in known else {}
        merged[key] = {**merged.get(key, record), "ratios": {**record["ratios"], **known, **best}}
    by_work: dict[str, list[Record]] = {}
    for record in merged.values():
        by_work.setdefault(record["work"], []).append(record)
    networks = (record for record in found.get("whole", {}).values() if "ours" in record.get("change_percent", {}))
    launches = (record for record in found.get("behaviour", {}).values() if "launches" in record)
    return {**by_work, "gpu_networks": [{**record, "ratios": {"loss": -record["change_percent"]["ours"]}}
                                        for record in networks],
            "gpu_launches": [{**record, "dtype": "bfloat16", "ratios": {"launches": record["launches"]}}
                             for record in launches]}


def _measured(found: Found) -> list[Record]:
    return [record for record in found.get("speed", {}).values() if record["status"] == records.PASSED]


def _bars(found: Found) -> Iterator[str]:
    measured = rows(found)
    if not any(measured.values()):
        return
    yield "Against the numbers to reach (next bar, moonshot):"
    for bar in bars.of_device("cuda"):
        value = bar.measured(measured)
        sign = "≤" if bar.at_most else "≥"
        moonshot = f", {sign} {bar.moonshot}" if bar.moonshot else ""
        reached = "not measured" if value is None else (
            "moonshot" if bar.moonshot and bar.reached(value, bar.moonshot) else
            "reached" if bar.reached(value, bar.first) else "not reached")
        yield f"  {number(value)} ({sign} {bar.first}{moonshot}) {reached}: {bar.what}, {bar.dtype}"


def _ceilings(found: Found) -> Iterator[str]:
    speed = _measured(found)
    ceilings = next((record for record in speed if record["work"] == "ceilings"), None)
    if ceilings is None:
        return
    bandwidth, rate = ceilings["bytes_per_second"], ceilings["flops_per_second"]
    yield (f"A copy moves {bandwidth / 1e12:.2f} TB/s, a bfloat16 product does {rate / 1e12:.0f} TFLOP/s; "
           "of these, ours in bfloat16:")
    for work, layout in dict.fromkeys((record["work"], record.get("layout")) for record in speed if "bytes" in record):
        chosen = [record for record in speed if (record["work"], record.get("layout")) == (work, layout)
                  and record["dtype"] == "bfloat16" and record["kind"] == "large" and "ours" in record["milliseconds"]]
        if chosen:
            yield f"  {work}, {layout}: " + "; ".join(_shares(chosen, bandwidth, rate))


def _shares(chosen: Iterable[Record], bandwidth: float, rate: float) -> Iterator[str]:
    for record in chosen:
        seconds = record["milliseconds"]["ours"] / 1e3
        name = record["what"] if record["work"] == "pointwise" else f"{record['channels']}×{record['size']}²"
        yield f"{name} {record['bytes'] / seconds / bandwidth:.0%} {record['flops'] / seconds / rate:.0%}"


def _kernels(found: Found) -> Iterator[str]:
    """Of the training steps at the commonest shape, what the GPU spends in which kernel; wrong results are left out."""
    for record in found.get("kernels", {}).values():
        timed = found.get("speed", {}).get(record["case"], {})
        if (record["status"] != records.PASSED or timed.get("status") == records.FAILED
                or not record["work"].endswith("training")
                or (record["channels"], record["size"], record["layout"]) != (64, 56, "channels_last")):
            continue
        whole = timed.get("milliseconds", {}).get("ours")
        of = "" if whole is None else f" of {number(1e3 * whole, 0)}"
        parts = ", ".join(f"{row['name']} {number(row['microseconds'], 0)}" for row in record["kernels"])
        spent = number(record["microseconds"], 0)
        yield f"  {record['work']} {record['what'] or '64×56²'}: {spent}{of} µs in kernels: {parts}"


def _networks(found: Found) -> Iterator[str]:
    for record in found.get("whole", {}).values():
        if record.get("images_per_second"):
            speeds = ", ".join(f"{name} {number(value, 0)}" for name, value in record["images_per_second"].items())
            changes = ", ".join(f"{name} {value:+.1f} %" for name, value in record["change_percent"].items())
            yield f"  {record['case']}: {speeds} images/s ({changes})"


