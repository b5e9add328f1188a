"""Markdown and pictures of ablations and of the page of all results."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from fptt.experiments.configs.config import TrainConfig
from fptt.experiments.tasks.scores import HIGHER_IS_BETTER
from fptt.experiments.training.plots import COLORS, save_figure, with_sd

Row = Mapping[str, Any]
Curves = Mapping[str, Sequence[Sequence[Mapping[str, float]]]]
"""The rows of the metrics of each run of each method."""

COLUMNS = {"num_chunks": "K", "alpha": "α or γ"}
LOGARITHMIC = ("num_chunks", "alpha", "lr")
ORIGINS = ("commit", "device", "torch")


def markdown_table(cells: Sequence[Sequence[str]]) -> str:
    """Return lines of cells, the heads first, as a table in Markdown."""
    head, *lines = [f"| {' | '.join(line)} |" for line in cells]
    return "\n".join([head, f"| {' | '.join(['---'] * len(cells[0]))} |", *lines]) + "\n"


# -- ablations -------------------------------------------------------------------------------------------------------


def ablation_cells(rows: Sequence[Row], metric: str) -> list[list[str]]:
    """Return the table of an ablation, the heads first; the fields are what stands between method and num_seeds."""
    names = list(rows[0])
    fields = names[1 : names.index("num_seeds")]
    metrics = [f"{part}_{metric}" for part in ("validation", "test")]
    heads = [COLUMNS.get(field, field) for field in fields]
    lines = [
        [
            row["method"].upper(),
            *("–" if row[field] is None else str(row[field]) for field in fields),
            *(with_sd(row, name) for name in metrics),
            *(f"{row['epochs']:.1f}", f"{row['updates']:,.0f}", f"{row['seconds']:.1f}"),
        ]
        for row in rows
    ]
    return [["method", *heads, *(name.replace("_", " ") for name in metrics), "epochs", "updates", "seconds"], *lines]


def ablation_markdown(rows: Sequence[Row], metric: str, seeds: Sequence[int]) -> str:
    """Return the table of an ablation, and where its figures come from."""
    found = {name: ", ".join(values) for name, values in origins(rows).items()}
    return (
        f"{markdown_table(ablation_cells(rows, metric))}\n"
        f"Mean ± sample standard deviation of the seeds {', '.join(map(str, seeds))}. Commit {found['commit']}; "
        f"{found['device']}; torch {found['torch']}.\n"
    )


def origins(rows: Sequence[Row]) -> dict[str, list[str]]:
    """Return all commits, devices and versions of torch of some rows."""
    return {name: sorted({value for row in rows for value in row[name]}) for name in ORIGINS}


def draw_ablation(rows: Sequence[Row], own: Mapping[str, Any], metric: str, path: Path) -> None:
    """Draw the test metric against the values of each field, a point a run and a line through the means.

    A method to which a field makes no difference is a horizontal line.

    Args:
        rows: As `Ablation.rows` returns them.
        own: The fields, and their value in the panels of the others; None for the mean over all its values.
        metric: Name of the metric.
        path: The picture.
    """
    num_columns = min(len(own), 4)
    num_lines = -(-len(own) // num_columns)
    size = (1 + 3.2 * num_columns, 0.4 + 3.2 * num_lines)
    figure, grid = plt.subplots(num_lines, num_columns, figsize=size, squeeze=False, sharey=True, layout="constrained")
    axes = list(grid.flat)
    for axis, field in zip(axes, own, strict=False):
        _draw_field(axis, rows, field, own)
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
    axis.set_xlabel(COLUMNS.get(field, field))
    axis.margins(x=0.2)


def _values(rows: Sequence[Row], method: str, field: str, own: Mapping[str, Any]) -> dict[Any, list[float]]:
    """Return the test metrics of a method for each value of a field, with the others at their own value."""
    points: dict[Any, list[float]] = {}
    for row in rows:
        others = [name for name in own if name != field and own[name] is not None]
        if row["method"] == method and all(row[name] in (None, own[name]) for name in others):
            points.setdefault(row[field], []).extend(row["tests"])
    return points


def _style(axis: Axes, metric: str) -> None:
    axis.grid(alpha=0.25)
    if metric == "mse":  # spans decades: from a guess to nearly nothing
        axis.set_yscale("log")


# -- the page --------------------------------------------------------------------------------------------------------


def opening(config: TrainConfig, metric: str) -> str:
    """Return what the section of an experiment begins with: its settings, and which way the metric points."""
    return f"{settings_line(config)} {_direction(metric).capitalize()}"


def settings_line(config: TrainConfig) -> str:
    """Return task and most important settings in a line."""
    layers = f", {config.num_layers} layers" if config.num_layers > 1 else ""
    parts = [
        f"Task `{config.task}`" + (" (permuted)" if config.permuted else ""),
        "inputs in [0, 1]" if config.standardization == "none" else None,
        None if config.length is None else f"T = {config.length}",
        None if config.limit is None else f"limited to {config.limit:,} samples",
        f"{config.cell.upper()}-{config.hidden_size}{layers}",
        f"batches of {config.batch_size}",
        f"{config.optimizer} {config.lr:g} ({config.schedule})",
        None if config.epochs is None else f"{config.epochs} epochs",
        None if config.max_updates is None else f"{config.max_updates:,} updates",
        None if config.max_seconds is None else f"{config.max_seconds:g} seconds",
    ]
    return ", ".join(part for part in parts if part) + "."


def command_text(name: str, commands: Path) -> str | None:
    """Return the command file of an experiment: `NAME.sh`, or the first that writes to `results/NAME`."""
    own = commands / f"{name}.sh"
    if own.is_file():
        return own.read_text(encoding="utf-8").strip()
    texts = [file.read_text(encoding="utf-8").strip() for file in sorted(commands.glob("*.sh"))]
    return next((text for text in texts if f"results/{name}" in text.split()), None)


def results_cells(rows: Sequence[Row], metric: str, others: Sequence[str]) -> list[list[str]]:
    """Return the table of an experiment, the heads first."""
    settings = ["group", "method", "K", "engine", "form", "coupling", "α or γ"]
    differs = ["differs in"] if any(row["differs"] for row in rows) else []
    tests = [f"test {metric} (seeds)", *(f"test {name}" for name in others)]
    references = ["published", "to published", "replicated", "to replicated"]
    head = [*settings, *differs, *tests, "epochs", "updates", "seconds", *references, "hardware", "torch", "commit"]
    return [head, *(_result_line(row, metric, others, bool(differs)) for row in rows)]


def _result_line(row: Row, metric: str, others: Sequence[str], has_differs: bool) -> list[str]:
    settings = [row["group"].replace("equal-", "equal ") or "–", row["method"].upper()]
    settings += ["–" if row[name] is None else str(row[name]) for name in ("num_chunks", "engine", "form", "coupling")]
    distances = [row["to_published"], row["to_replicated"]]
    figures = ["–" if row[name] is None else f"{row[name]:g}" for name in ("published", "replicated")]
    signed = ["–" if distance is None else f"{distance:+.4f}" for distance in distances]
    return [
        *settings,
        "–" if row["alpha"] is None else f"{row['alpha']:g}",
        *([row["differs"] or "–"] if has_differs else []),
        f"{with_sd(row, f'test_{metric}')} ({row['num_seeds']})",
        *(with_sd(row, f"test_{name}") if row.get(f"test_{name}_mean") is not None else "–" for name in others),
        *(f"{row['epochs']:.1f}", f"{row['updates']:,.0f}", f"{row['seconds']:.1f}"),
        *(figures[0], signed[0], figures[1], signed[1]),
        *(", ".join(row["device"]), ", ".join(row["torch"]), ", ".join(map(_short, row["commit"]))),
    ]


def _short(commit: str) -> str:
    """Return the first seven digits of a commit, and whether the source was changed since; – outside a checkout."""
    if commit == "None":
        return "–"
    digits, _, changed = commit.partition("-")
    return digits[:7] + (f"-{changed}" if changed else "")


def _direction(metric: str) -> str:
    """Return which way a metric points."""
    return f"{metric}: {'higher' if HIGHER_IS_BETTER.get(metric, True) else 'lower'} is better."


def draw_results(panels: Mapping[str, Curves], metric: str, title: str, path: Path) -> None:
    """Draw the validation metric of an experiment against epochs and updates, a thin line a run.

    Args:
        panels: The runs that are drawn against a column of their metrics.
        metric: Name of the metric.
        title: Above it.
        path: The picture.
    """
    figure, axes = plt.subplots(1, len(panels), figsize=(10, 3.6), squeeze=False, sharey=True, layout="constrained")
    for axis, (column, methods) in zip(axes[0], panels.items(), strict=True):
        for method, runs in methods.items():
            for number, rows in enumerate(runs):
                xs, ys = ([row[name] for row in rows] for name in (column, f"validation_{metric}"))
                marker, label = "." if len(rows) < 3 else None, method.upper() if number == 0 else None
                axis.plot(xs, ys, color=COLORS[method], linewidth=0.8, alpha=0.8, marker=marker, label=label)
        axis.set_xlabel({"epoch": "epochs"}.get(column, column))
        _style(axis, metric)
    axes[0][0].set_ylabel(f"validation {metric}")
    axes[0][-1].legend(fontsize="small")
    figure.suptitle(title)
    save_figure(figure, path)
