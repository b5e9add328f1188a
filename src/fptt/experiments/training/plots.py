"""Plots of one run, and what all plots share: colors, and files."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from fptt.experiments.configs.config import TrainConfig
from fptt.experiments.process.files import writing
from fptt.experiments.tasks.registry import CHANCE
from fptt.experiments.training.folder import RunFolder

COLORS = {"bptt": "tab:gray", "tbptt": "tab:blue", "fptt": "tab:red"}


def draw_curves(folder: RunFolder, config: TrainConfig, metric: str) -> None:
    """Draw loss and validation metric of one run against its epochs, into the folder."""
    rows = folder.read_metrics()
    epochs = [row["epoch"] for row in rows]
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    _line(left, epochs, [row["train_loss"] for row in rows], COLORS[config.method])
    _line(right, epochs, [row[f"validation_{metric}"] for row in rows], COLORS[config.method])
    draw_chance(right, config.task, metric)
    left.set(xlabel="epoch", ylabel="mean chunk loss")
    right.set(xlabel="epoch", ylabel=f"validation {metric}")
    for axis in (left, right):
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    if right.get_legend_handles_labels()[1]:
        figure.legend(loc="outside right upper", fontsize="small", frameon=False)
    figure.suptitle(f"{config.task}, {config.method}, seed {config.seed}")
    save_figure(figure, folder.curves_file)


def _line(axis: Axes, xs: Sequence[float], ys: Sequence[float], color: str) -> None:
    axis.plot(xs, ys, color=color, linewidth=1.2, alpha=0.85, marker="." if len(xs) < 3 else None)
    axis.grid(alpha=0.25)


def draw_chance(axis: Axes, task: str, metric: str) -> None:
    """Draw what a guess reaches as a dotted line, if it is known."""
    if (level := CHANCE.get((task, metric))) is not None:
        axis.axhline(level, color="black", linewidth=0.8, linestyle=(0, (1, 2)), label="chance")


def save_figure(figure: Any, path: Path) -> None:
    """Write a plot and forget the figure.

    Raises:
        UnwritableError: If it cannot be written.
    """
    try:
        with writing(path):
            figure.savefig(path, dpi=120)
    finally:
        plt.close(figure)
