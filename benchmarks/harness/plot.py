"""The picture of a run: every contender in multiples of the limit, shape by shape."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from . import files

INK, GRID = "#24292f", "#d8dee4"
COLOURS = {"eager": "#9aa4af", "compiled": "#4c8dd6", "ours": "#d6453d"}
BAR_COLOURS = {"relu": GRID, "composed": COLOURS["eager"], "ours": COLOURS["ours"]}
LABELS = {
    "eager": "composed of PyTorch layers",
    "ours": "leni_kernels",
}
TITLES = {"channels_first": "NCHW", "channels_last": "channels-last"}


def draw(path: Path, rows: Sequence[dict[str, Any]], heading: str, subheading: str,
         compiled: str) -> None:
    """Draw the rows of LENI blocks into a PNG: one panel for each dtype and layout.

    ``compiled`` says what the compiled contender is.

    Raises:
        ImportError: if matplotlib is not installed.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    panels = list(dict.fromkeys((row["dtype"], row["layout"]) for row in rows))
    dtypes, layouts = (list(dict.fromkeys(panel[axis] for panel in panels)) for axis in (0, 1))
    size = (5.6 * len(layouts), 0.9 + 3.3 * len(dtypes))
    figure = Figure(figsize=size, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(dtypes), len(layouts), sharex=True, sharey=True, squeeze=False)
    for dtype, layout in panels:
        panel = axes[dtypes.index(dtype)][layouts.index(layout)]
        _panel(panel, [row for row in rows if (row["dtype"], row["layout"]) == (dtype, layout)],
               {**LABELS, "compiled": compiled})
        panel.set_title(f"{dtype}, {TITLES[layout]}", loc="left", fontsize=10.5, color=INK)
    for row in axes:
        row[0].set_ylabel("time / L", color=INK)
    for panel in axes[-1]:
        panel.set_xlabel("channels C, and the plane", fontsize=9, color=INK)
    figure.suptitle(f"{heading}\n\n", x=0.01, ha="left", fontsize=14, fontweight="bold", color=INK)
    figure.text(0.01, 0.985 - 0.32 / size[1], subheading, ha="left", va="top", fontsize=9.5, color=INK)
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False, labelcolor=INK)
    with files.whole(path) as partial:
        figure.savefig(partial, dpi=150)


def _panel(axes: Any, rows: Sequence[dict[str, Any]], labels: dict[str, str]) -> None:
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    axes.set_yscale("log", base=2)
    axes.axhline(1, color=INK, linewidth=1.2, linestyle=(0, (4, 3)), label="the limit L", zorder=1)
    for place, row in enumerate(rows):
        found = [row["ratios"][f"{name}/L"] for name in COLOURS if f"{name}/L" in row["ratios"]]
        axes.plot([place] * len(found), sorted(found), color=GRID, linewidth=3, zorder=2)
    for name, colour in COLOURS.items():
        heights = [row["ratios"].get(f"{name}/L", float("nan")) for row in rows]
        size, order = (62, 4) if name == "ours" else (40, 3)
        axes.scatter(range(len(rows)), heights, s=size, color=colour, edgecolor="white", linewidth=0.8,
                     label=labels[name], zorder=order)
    axes.set_xticks(range(len(rows)), [f"{row['channels']}\n{row['size']}²" for row in rows], fontsize=9)
    axes.yaxis.set_major_locator(FixedLocator([0.5, 1, 2, 4, 8, 16, 32]))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}×"))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.grid(axis="y", color=GRID, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(length=0, colors=INK)
    for side in axes.spines.values():
        side.set_visible(False)


def draw_bars(path: Path, groups: Sequence[tuple[str, dict[str, float]]], labels: dict[str, str],
              heading: str, subheading: str) -> None:
    """Draw horizontal bars into a PNG: a panel for each group, in which a bar for each name in ``labels``.

    Raises:
        ImportError: if matplotlib is not installed.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11.2, 1.3 + 0.85 * len(groups)), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(groups), 1, squeeze=False)[:, 0]
    for axes, (title, values) in zip(panels, groups, strict=True):
        names = [name for name in labels if name in values]
        heights = [values[name] for name in names]
        colours = [BAR_COLOURS[name] for name in names]
        axes.bar_label(axes.barh([labels[name] for name in names], heights, color=colours, height=0.8),
                       fmt="%.1f", padding=4, fontsize=9, color=INK)
        axes.set_title(title, loc="left", fontsize=10.5, color=INK)
        axes.set_xlim(0, 1.12 * max(heights, default=1))
        axes.set_xticks([])
        axes.invert_yaxis()
        axes.tick_params(length=0, colors=INK, labelsize=9)
        for side in axes.spines.values():
            side.set_visible(False)
    figure.suptitle(f"{heading}\n{subheading}", x=0.01, ha="left", fontsize=11, color=INK)
    with files.whole(path) as partial:
        figure.savefig(partial, dpi=150)
