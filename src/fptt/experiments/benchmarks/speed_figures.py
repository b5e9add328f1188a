"""Pictures of `fptt bench speed`."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from fptt.experiments.training.plots import COLORS, save_figure

LITERAL_COLOR = "tab:orange"
FLOOR_COLOR = "black"
STYLES = {"eager": "-", "compiled": "--", None: "-"}

Row = Any


def draw_time_against_chunks(rows: Sequence[Row], path: Path) -> None:
    """Draw the seconds of a batch against K: a panel for each cell, length and batch size."""

    def draw(axis: Axes, panel: list[Row]) -> None:
        bptt = next(row["seconds"] for row in panel if row["method"] == "bptt")
        axis.axhline(bptt, color=COLORS["bptt"], linewidth=1.2, label="BPTT")
        _draw_lines(axis, [row for row in panel if row["method"] != "bptt"], "num_chunks")

    _draw_panels(rows, ("cell", "sequence_length"), "K, chunks a sequence", draw, path)


def draw_time_against_length(rows: Sequence[Row], path: Path) -> None:
    """Draw the seconds of a batch against T, with the most chunks measured: a panel for each cell and batch size."""
    most: dict[int, int] = {}
    for row in rows:
        most[row["sequence_length"]] = max(row["num_chunks"], most.get(row["sequence_length"], 0))
    chosen = [row for row in rows if row["method"] == "bptt" or row["num_chunks"] == most[row["sequence_length"]]]

    def draw(axis: Axes, panel: list[Row]) -> None:
        _draw_lines(axis, panel, "sequence_length")

    _draw_panels(chosen, ("cell",), "T, time steps", draw, path)


def _draw_panels(
    rows: Sequence[Row], names: tuple[str, ...], x_label: str, draw: Callable[[Axes, list[Row]], None], path: Path
) -> None:
    """Draw a grid of panels: batch sizes from left to right, the values of the named columns from top to bottom."""
    sides, batch_sizes = _distinct(rows, *names), _distinct(rows, "batch_size")
    size = (2.4 + 3.4 * len(batch_sizes), 0.6 + 3.2 * len(sides))
    figure, axes = plt.subplots(len(sides), len(batch_sizes), figsize=size, layout="constrained", squeeze=False)
    for line, side in zip(axes, sides, strict=True):
        for axis, (batch_size,) in zip(line, batch_sizes, strict=True):
            place = dict(zip((*names, "batch_size"), (*side, batch_size), strict=True))
            draw(axis, [row for row in rows if place.items() <= row.items()])
            title = ", ".join(value if isinstance(value, str) else f"T = {value}" for value in side)
            axis.set(xlabel=x_label, title=f"{title}, batch {batch_size}", yscale="log")
            axis.grid(alpha=0.25, which="both")
        line[0].set_ylabel("seconds a batch")
    figure.legend(*axes[0][0].get_legend_handles_labels(), loc="outside right upper", fontsize="small")
    save_figure(figure, path)


def _draw_lines(axis: Axes, rows: Sequence[Row], x: str) -> None:
    """Draw a line for each method and engine, and the floor of FPTT."""
    for method, engine in _distinct(rows, "method", "engine"):
        line = sorted((r for r in rows if (r["method"], r["engine"]) == (method, engine)), key=lambda r: r[x])
        label = method if method == "literal" else method.upper() + (f", {engine}" if method != "bptt" else "")
        color = COLORS.get(method, LITERAL_COLOR)
        _draw_line(axis, line, x, "seconds", color=color, linestyle=STYLES[engine], marker=".", label=label)
    floors = {row[x]: row for row in rows if row["method"] == "fptt"}
    line = [floors[value] for value in sorted(floors)]
    _draw_line(axis, line, x, "floor_seconds", color=FLOOR_COLOR, linestyle=":", label="floor of FPTT")
    values = sorted({row[x] for row in rows})
    axis.set_xscale("log")
    axis.set_xticks(values, [f"{value:,}" for value in values])
    axis.set_xticks([], minor=True)


def _draw_line(axis: Axes, rows: Sequence[Row], x: str, y: str, **style: Any) -> None:
    axis.plot([row[x] for row in rows], [row[y] for row in rows], linewidth=1.2, alpha=0.85, **style)


def _distinct(rows: Sequence[Row], *names: str) -> list[tuple[Any, ...]]:
    """Return the values of some columns that occur, in order."""
    return list(dict.fromkeys(tuple(row[name] for name in names) for row in rows))
