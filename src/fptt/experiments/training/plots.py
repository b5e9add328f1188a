"""Run folders as pictures and tables."""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from rich.table import Table

from fptt.experiments.configs.config import TrainConfig
from fptt.experiments.process.files import unwritable_told
from fptt.experiments.training.folder import RunFolder

COLORS = {"bptt": "tab:gray", "tbptt": "tab:blue", "fptt": "tab:red"}


def draw_curves(folder: RunFolder, config: TrainConfig, metric: str) -> None:
    """Draw loss and validation metric of one run against its epochs, into the folder."""
    rows = folder.read_metrics()
    epochs = [row["epoch"] for row in rows]
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    _line(left, epochs, [row["train_loss"] for row in rows], COLORS[config.method])
    _line(right, epochs, [row[f"validation_{metric}"] for row in rows], COLORS[config.method])
    left.set(xlabel="epoch", ylabel="mean chunk loss")
    right.set(xlabel="epoch", ylabel=f"validation {metric}")
    figure.suptitle(f"{config.task}, {config.method}, seed {config.seed}")
    save_figure(figure, folder.curves_file)


def draw_comparison(panels: Mapping[str, Mapping[str, Sequence[RunFolder]]], metric: str, path: Path) -> None:
    """Draw the validation metric of several methods, a thin line a seed.

    Args:
        panels: The runs of each method for each budget (epochs, updates, seconds), drawn against that budget.
        metric: Name of the metric.
        path: The picture.
    """
    width = 4.3 * max(len(panels), 1.5)
    figure, grid = plt.subplots(1, len(panels), figsize=(width, 3.8), layout="constrained", sharey=True, squeeze=False)
    axes = grid[0]
    for axis, (budget, methods) in zip(axes, panels.items(), strict=True):
        column = "epoch" if budget == "epochs" else budget
        for method, runs in methods.items():
            for number, run in enumerate(runs):
                rows = run.read_metrics()
                values = [row[f"validation_{metric}"] for row in rows]
                label = method.upper() if number == 0 else None
                _line(axis, [row[column] for row in rows], values, COLORS[method], label)
        axis.set(xlabel="seconds of training" if budget == "seconds" else budget, title=f"at equal {budget}")
    axes[0].set_ylabel(f"validation {metric}")
    axes[-1].legend()
    save_figure(figure, path)


def _line(axis: Axes, xs: Sequence[float], ys: Sequence[float], color: str, label: str | None = None) -> None:
    axis.plot(xs, ys, color=color, linewidth=1.2, alpha=0.85, label=label, marker="." if len(xs) < 3 else None)
    axis.grid(alpha=0.25)


def save_figure(figure: Any, path: Path) -> None:
    """Write a picture and forget the figure.

    Raises:
        UnwritableError: If it cannot be written.
    """
    try:
        with unwritable_told(path):
            figure.savefig(path, dpi=120)
    finally:
        plt.close(figure)


def mean_and_sd(values: Sequence[float]) -> tuple[float, float | None]:
    """Return mean and sample standard deviation, None for a single value."""
    return statistics.mean(values), statistics.stdev(values) if len(values) > 1 else None


def with_sd(row: Mapping[str, Any], name: str) -> str:
    """Return `mean ± sd`, or the mean alone of a single seed."""
    sd = row[f"{name}_sd"]
    return f"{row[f'{name}_mean']:.4f}" + ("" if sd is None else f" ± {sd:.4f}")


def summary_row(summaries: Sequence[Mapping[str, Any]], metric: str) -> dict[str, Any]:
    """Return the figures of the seeds of one setting: mean and sd of the metrics, means of the costs, origins."""
    row: dict[str, Any] = {"num_seeds": len(summaries)}
    for name in (f"test_{metric}", f"validation_{metric}"):
        row[f"{name}_mean"], row[f"{name}_sd"] = mean_and_sd([summary[name] for summary in summaries])
    for name in ("epochs", "updates", "seconds", "peak_memory_bytes", "training_memory_bytes"):
        row[name] = statistics.mean(summary[name] for summary in summaries)
    for name in ("commit", "device", "torch"):
        row[name] = sorted({str(summary[name]) for summary in summaries})
    return row


def comparison_table(rows: Sequence[Mapping[str, Any]], metric: str, title: str) -> Table:
    """Return the rows of one budget as a table for the terminal."""
    table = Table(title=title, title_justify="left")
    table.add_column("method")
    for name in (f"test {metric}", "epochs", "updates", "seconds", "memory"):
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(*_cells(row, metric))
    return table


def comparison_markdown(rows: Sequence[Mapping[str, Any]], metric: str) -> str:
    """Return rows of all budgets as a table in Markdown."""
    lines = [
        f"| at equal | method | test {metric} (mean ± sd) | epochs | updates | seconds | memory of training |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    lines += [f"| {row['budget']} | {' | '.join(_cells(row, metric))} |" for row in rows]
    return "\n".join(lines) + "\n"


def _cells(row: Mapping[str, Any], metric: str) -> list[str]:
    name = row["method"].upper() + (f"-{row['num_chunks']}" if row["num_chunks"] > 1 else "")
    return [
        name,
        with_sd(row, f"test_{metric}"),
        f"{row['epochs']:.1f}",
        f"{row['updates']:,.0f}",
        f"{row['seconds']:.1f}",
        f"{row['training_memory_bytes'] / 2**20:.0f} MiB",
    ]
