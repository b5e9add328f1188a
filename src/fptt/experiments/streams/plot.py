"""The plot of a stream: the rolling metric of a learner and its baselines."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fptt.experiments.configs.config import StreamConfig

BASELINE_COLORS = {
    "last_label": "tab:green",
    "majority_class": "tab:gray",
    "mean": "tab:gray",
    "river_softmax": "tab:orange",
}


def draw_rolling(rows: Sequence[Mapping[str, Any]], config: StreamConfig, metric: str, path: Path) -> None:
    """Draw the rolling metric of a learner and its baselines against the steps of the stream."""
    from fptt.experiments.training.plots import COLORS, plt, save_figure  # seconds of loading, and only here

    figure, axis = plt.subplots(figsize=(9, 3.8), layout="constrained")
    steps = [row["step"] for row in rows]
    for name in (name for name in rows[0] if name != "step"):
        label = config.method.upper() if name == "learner" else name.replace("_", " ")
        color = COLORS[config.method] if name == "learner" else BASELINE_COLORS[name]
        axis.plot(steps, [row[name] for row in rows], color=color, linewidth=1.2, alpha=0.85, label=label)
    axis.set(xlabel="steps", ylabel=f"{metric} of the last {config.window:,} labeled steps")
    axis.set_ylim(0, 1.02 if metric == "accuracy" else None)
    axis.set_title(f"{config.task}, labels {config.delay} steps late, chunks of {config.chunk_length}")
    axis.grid(alpha=0.25)
    axis.legend()
    save_figure(figure, path)
