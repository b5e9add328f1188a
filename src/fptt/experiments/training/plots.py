"""Plots of one run, and what all plots share: colors, and files."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from fptt.experiments.configs.config import TrainConfig
from fptt.experiments.process.files import writing
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


def _line(axis: Axes, xs: Sequence[float], ys: Sequence[float], color: str) -> None:
    axis.plot(xs, ys, color=color, linewidth=1.2, alpha=0.85, marker="." if len(xs) < 3 else None)
    axis.grid(alpha=0.25)


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
