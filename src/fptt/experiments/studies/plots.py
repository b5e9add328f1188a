"""Plots of studies and of the page of results."""

from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import TABLEAU_COLORS, to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fptt.experiments.configs.config import TrainConfig
from fptt.experiments.studies.finished_run import FinishedRun
from fptt.experiments.studies.labels import what_differs
from fptt.experiments.studies.tables import Row
from fptt.experiments.training.plots import COLORS, draw_chance, save_figure

TAB10 = tuple(map(to_rgb, TABLEAU_COLORS))

LOGARITHMIC = ("num_chunks", "alpha", "lr")

STYLES = {"fptt": "-", "tbptt": "--", "bptt": ":"}
"""Of the lines of the methods, where color is something else."""


AXES = {
    "epochs": ("epoch", "epochs"),
    "updates": ("updates", "updates"),
    "seconds": ("seconds", "seconds of training"),
}
"""Column of the metrics, and label of the axis, by the budget that is drawn."""


class Panel(NamedTuple):
    """Runs drawn against a column of their metrics.

    Attributes:
        column, label: Of `AXES`.
        base: The setting from which the others differ in what tells them apart; None to show them as one.
        varied: The field whose values have the colors; None for colors of the methods, and of what differs from them.
    """

    column: str
    label: str
    runs: Sequence[FinishedRun]
    title: str = ""
    base: TrainConfig | None = None
    varied: str | None = None

    def name(self, run: FinishedRun) -> str:
        """Return the name of a run's line, the same for all seeds."""
        config = run.setting
        if self.varied is not None:
            value = config.value(self.varied)
            return config.method.upper() + ("" if value is None else f", {value}")
        words = [f"{config.bptt_losses} losses"] if config.method == "bptt" and config.bptt_losses > 1 else []
        if self.base is not None:
            num_chunks = config.value("num_chunks")
            words += [] if num_chunks in (None, self.base.num_chunks) else [f"K = {num_chunks}"]
            words += what_differs(config, self.base)
        return ", ".join([config.method.upper(), *words])


def draw_runs(panels: Sequence[Panel], metric: str, path: Path, title: str | None = None) -> None:
    """Draw the validation metric of runs: a line for the mean of all seeds, in a band from the lowest to the highest.

    Color is what is varied: the method; in a method with several settings, the setting; in a panel of a field, its
    value, with a style for each method. Where seeds have lines of unequal lengths, the mean ends with the shortest, and
    the rest of the others is thin.
    """
    num_columns = min(len(panels), 3)
    figure, axes = _grid(len(panels), num_columns, f"validation {metric}")
    figure.set_size_inches(max(4.3 * num_columns, 6.4) + 1.6, 3.6 * len(axes) / num_columns)
    tasks = {run.config.task for panel in panels for run in panel.runs}
    shared = _looks_of_settings(panels)
    for axis, panel in zip(axes, panels, strict=False):
        looks = shared if panel.varied is None else _looks_of_values(panel, panel.varied)
        for name, (color, style) in looks.items():
            if runs := [run for run in panel.runs if panel.name(run) == name]:
                _draw_seeds(axis, runs, panel.column, f"validation_{metric}", label=name, color=color, linestyle=style)
        axis.set(xlabel=panel.label, title=panel.title)
        _style(axis, metric)
        if panel.column == "epoch":
            axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        if len(tasks) == 1:
            draw_chance(axis, next(iter(tasks)), metric)
        if panel.varied is not None:
            axis.legend(fontsize="x-small", loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=2, frameon=False)
    if any(panel.varied is None for panel in panels):
        entries = {label: line for axis in axes for line, label in zip(*axis.get_legend_handles_labels(), strict=True)}
        figure.legend(entries.values(), entries, fontsize="small", loc="outside right upper", frameon=False)
    if title is not None:
        figure.suptitle(title)
    save_figure(figure, path)


def _looks_of_settings(panels: Sequence[Panel]) -> dict[str, tuple[Any, str]]:
    """Return color and style of the lines of all panels, by name: the first of a method has the method's color."""
    methods = {panel.name(run): run.config.method for panel in panels for run in panel.runs}
    # a method itself comes before what differs from it
    names = sorted(methods, key=lambda name: (list(COLORS).index(methods[name]), name))
    has_settings = len(set(methods.values())) < len(names)
    others = cycle(color for color in TAB10 if color not in map(to_rgb, COLORS.values()))
    looks, seen = {}, set()
    for name in names:
        color = next(others) if methods[name] in seen else COLORS[methods[name]]
        looks[name] = (color, STYLES[methods[name]] if has_settings else "-")
        seen.add(methods[name])
    return looks


def _looks_of_values(panel: Panel, field: str) -> dict[str, tuple[Any, str]]:
    """Return color and style of the lines of a panel, by name: a color a value of the field, a style a method."""
    values = {run.setting: run.setting.value(field) for run in panel.runs}
    own = list(dict.fromkeys(value for value in values.values() if value is not None))
    numbers = sorted(value for value in own if isinstance(value, int | float))
    ordered = [*numbers, *sorted(value for value in own if value not in numbers)]
    # numbers have an order, and so have their colors
    several = plt.get_cmap("viridis")([0.9 * place / max(len(ordered) - 1, 1) for place in range(len(ordered))])
    colors = dict(zip(ordered, several if len(numbers) > 2 else TAB10, strict=False))
    order = [None, *ordered]
    runs = sorted(
        panel.runs, key=lambda run: (list(COLORS).index(run.config.method), order.index(run.setting.value(field)))
    )
    return {
        panel.name(run): (colors.get(run.setting.value(field), COLORS[run.config.method]), STYLES[run.config.method])
        for run in runs
    }


def _draw_seeds(axis: Axes, runs: Sequence[FinishedRun], column: str, key: str, **look: Any) -> None:
    """Draw the mean of runs and the band that they fill; see `draw_runs`."""
    length = min(len(run.metrics) for run in runs)
    xs = np.mean([[row[column] for row in run.metrics[:length]] for run in runs], axis=0)
    ys = np.array([[row[key] for row in run.metrics[:length]] for run in runs])
    with np.errstate(invalid="ignore"):  # a diverged seed
        axis.plot(xs, ys.mean(axis=0), linewidth=1.3, marker="." if length < 3 else None, **look)
    if len(runs) > 1:
        axis.fill_between(xs, ys.min(axis=0), ys.max(axis=0), color=look["color"], alpha=0.15, linewidth=0)
    for run in runs:
        if rest := run.metrics[length:]:
            rest = [run.metrics[length - 1], *rest]
            axis.plot([r[column] for r in rest], [r[key] for r in rest], color=look["color"], linewidth=0.6, alpha=0.6)


def draw_ablation(
    rows: Sequence[Row], fields: Sequence[str], metric: str, heads: Mapping[str, str], path: Path
) -> None:
    """Draw the test metric against the values of each field, a point a run and a line through the means.

    A method to which a field makes no difference is a horizontal line.

    Args:
        rows: As `Ablation.rows` returns them.
        fields: Those with a panel; of a grid each has the means over all values of the others.
        metric: Name of the metric.
        heads: Labels of fields, where it is not their name.
        path: The plot.
    """
    num_columns = min(len(fields), 4)
    figure, axes = _grid(len(fields), num_columns, f"test {metric}")
    figure.set_size_inches(1 + 3.2 * num_columns, 0.4 + 3.2 * len(axes) / num_columns)
    for axis, field in zip(axes, fields, strict=False):
        _draw_field(axis, rows, field)
        axis.set_xlabel(heads.get(field, field))
        _style(axis, metric)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=3)
    save_figure(figure, path)


def _draw_field(axis: Axes, rows: Sequence[Row], field: str) -> None:
    found = {method: _values(rows, method, field) for method in COLORS}
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


def _values(rows: Sequence[Row], method: str, field: str) -> dict[Any, list[float]]:
    """Return the test metrics of a method for each value of a field that is varied."""
    points: dict[Any, list[float]] = {}
    for row in rows:
        if row["method"] == method and field in row["varied"]:
            points.setdefault(row["values"][field], []).extend(row["tests"].values())
    return points


def _grid(num_panels: int, num_columns: int, label: str) -> tuple[Figure, list[Axes]]:
    """Return a figure and its axes, line by line, all with the same y axis; those beyond the panels are not shown."""
    num_lines = -(-num_panels // num_columns)
    figure, grid = plt.subplots(num_lines, num_columns, squeeze=False, sharey=True, layout="constrained")
    axes = list(grid.flat)
    for axis in axes[::num_columns]:
        axis.set_ylabel(label)
    for axis in axes[num_panels:]:
        axis.set_visible(False)
    return figure, axes


def _style(axis: Axes, metric: str) -> None:
    axis.grid(alpha=0.25)
    if metric == "mse":  # spans decades: from a guess to nearly nothing
        axis.set_yscale("log")
