"""Plots of studies and of the page of results."""

from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from fptt.experiments.configs.config import TrainConfig
from fptt.experiments.studies.finished_run import FinishedRun
from fptt.experiments.studies.labels import what_differs
from fptt.experiments.studies.tables import Row
from fptt.experiments.training.plots import COLORS, save_figure

LOGARITHMIC = ("num_chunks", "alpha", "lr")

STYLES: tuple[Any, ...] = ("-", "--", ":", "-.", (0, (5, 1)), (0, (1, 4)))
"""Of the lines of one method's settings."""


FEW_LINES = 4
"""Names that a legend inside a panel has room for."""


class Panel(NamedTuple):
    """Runs drawn against a column of their metrics.

    Attributes:
        column: `epoch`, `updates` or `seconds`.
        label: Of the axis.
        base: The setting from which the others differ in what tells them apart; None to show them as one.
    """

    column: str
    label: str
    runs: Sequence[FinishedRun]
    title: str = ""
    base: TrainConfig | None = None


def draw_runs(panels: Sequence[Panel], metric: str, path: Path, title: str | None = None) -> None:
    """Draw the validation metric of runs, a thin line a run, a color a method, a style a setting of it."""
    size = (max(4.3 * len(panels), 6.4), 3.8)
    figure, grid = plt.subplots(1, len(panels), figsize=size, squeeze=False, sharey=True, layout="constrained")
    names = {(run.config.method, _name(run, panel.base)) for panel in panels for run in panel.runs}
    # the same in all panels; a method itself comes before what differs from it
    styles = {
        method: dict(zip(sorted(n for m, n in names if m == method), cycle(STYLES), strict=False)) for method in COLORS
    }
    for axis, panel in zip(grid[0], panels, strict=True):
        labels = set()
        for run in sorted(panel.runs, key=lambda run: list(COLORS).index(run.config.method)):
            method, label = run.config.method, _name(run, panel.base)
            xs, ys = ([row[name] for row in run.metrics] for name in (panel.column, f"validation_{metric}"))
            axis.plot(
                xs,
                ys,
                linestyle=styles[method][label],
                color=COLORS[method],
                linewidth=0.8,
                alpha=0.8,
                marker="." if len(xs) < 3 else None,  # a line of one point is invisible
                label=None if label in labels else label,
            )
            labels.add(label)
        axis.set(xlabel=panel.label, title=panel.title)
        _style(axis, metric)
    grid[0][0].set_ylabel(f"validation {metric}")
    if len(names) <= FEW_LINES:
        grid[0][-1].legend(fontsize="small")
    else:
        figure.legend(*grid[0][-1].get_legend_handles_labels(), fontsize="small", loc="outside right upper")
    if title is not None:
        figure.suptitle(title)
    save_figure(figure, path)


def _name(run: FinishedRun, base: TrainConfig | None) -> str:
    """Return the name of a run's line."""
    config = run.setting
    words = [f"{config.bptt_losses} losses"] if config.method == "bptt" and config.bptt_losses > 1 else []
    words += [] if base is None else what_differs(config, base)
    return ", ".join([config.method.upper(), *words])


def draw_ablation(
    rows: Sequence[Row], own: Mapping[str, Any], metric: str, heads: Mapping[str, str], path: Path
) -> None:
    """Draw the test metric against the values of each field, a point a run and a line through the means.

    A method to which a field makes no difference is a horizontal line.

    Args:
        rows: As `Ablation.rows` returns them.
        own: The fields, and their value in the panels of the others; None for the mean over all its values.
        metric: Name of the metric.
        heads: Labels of fields, where it is not their name.
        path: The plot.
    """
    num_columns = min(len(own), 4)
    num_lines = -(-len(own) // num_columns)
    size = (1 + 3.2 * num_columns, 0.4 + 3.2 * num_lines)
    figure, grid = plt.subplots(num_lines, num_columns, figsize=size, squeeze=False, sharey=True, layout="constrained")
    axes = list(grid.flat)
    for axis, field in zip(axes, own, strict=False):
        _draw_field(axis, rows, field, own)
        axis.set_xlabel(heads.get(field, field))
        _style(axis, metric)
    for axis in axes[len(own) :]:
        axis.set_visible(False)
    for line in grid:
        line[0].set_ylabel(f"test {metric}")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=3)
    save_figure(figure, path)


def _draw_field(axis: Axes, rows: Sequence[Row], field: str, own: Mapping[str, Any]) -> None:
    found = {method: _values(rows, method, field, own) for method in COLORS}
    values = list(dict.fromkeys(value for points in found.values() for value in points if value is not None))
    names = [value for value in values if isinstance(value, str)]
    values = [*sorted(value for value in values if value not in names), *names]
    is_logarithmic = field in LOGARITHMIC and not names and min(values) > 0
    places = values if is_logarithmic else list(range(len(values)))
    for method, points in found.items():
        means = [sum(tests) / len(tests) for tests in points.values()]
        label, color = method.upper(), COLORS[method]
        # None: the field makes no difference to the method
        if None in points:
            axis.axhline(means[0], color=color, linestyle="--", linewidth=1.2, label=label)
        elif points:
            xs = [places[values.index(value)] for value in points]
            line = sorted(zip(xs, means, strict=True))
            axis.plot(*zip(*line, strict=True), color=color, linewidth=1.2, label=label)
            for x, tests in zip(xs, points.values(), strict=True):
                axis.plot([x] * len(tests), tests, ".", color=color, alpha=0.6)
    if is_logarithmic:
        axis.set_xscale("log")
    axis.set_xticks(places, labels=[str(value) for value in values])
    axis.minorticks_off()
    axis.margins(x=0.2)


def _values(rows: Sequence[Row], method: str, field: str, own: Mapping[str, Any]) -> dict[Any, list[float]]:
    """Return the test metrics of a method for each value of a field, with the others at their own value."""
    points: dict[Any, list[float]] = {}
    for row in rows:
        others = [name for name in own if name != field and own[name] is not None]
        if row["method"] == method and all(row[name] in (None, own[name]) for name in others):
            points.setdefault(row[field], []).extend(row["tests"].values())
    return points


def _style(axis: Axes, metric: str) -> None:
    axis.grid(alpha=0.25)
    if metric == "mse":  # spans decades: from a guess to nearly nothing
        axis.set_yscale("log")
