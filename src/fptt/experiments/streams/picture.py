"""The picture of a stream."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fptt.experiments.configs.stream_config import StreamConfig
from fptt.experiments.training.plots import COLORS, plt, save_figure

OTHERS = {"last_label": "tab:green", "majority_class": "tab:gray", "river_softmax": "tab:orange"}


def draw_rolling(rows: Sequence[Mapping[str, Any]], config: StreamConfig, path: Path) -> None:
    """Draw the rolling accuracies of a learner and its baselines against the steps of the stream."""
    figure, axis = plt.subplots(figsize=(9, 3.8), layout="constrained")
    steps = [row["step"] for row in rows]
    for name in (name for name in rows[0] if name != "step"):
        label = config.method.upper() if name == "learner" else name.replace("_", " ")
        color = COLORS[config.method] if name == "learner" else OTHERS[name]
        axis.plot(steps, [row[name] for row in rows], color=color, linewidth=1.2, alpha=0.85, label=label)
    axis.set(xlabel="steps", ylabel=f"accuracy of the last {config.window:,} labeled steps", ylim=(0, 1.02))
    axis.set_title(f"{config.task}, labels {config.delay} steps late, chunks of {config.chunk_length}")
    axis.grid(alpha=0.25)
    axis.legend()
    save_figure(figure, path)
