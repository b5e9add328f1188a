"""The picture of the stream of HAPT in docs/streams.md, from results/hapt-stream: this file writes it anew."""

from pathlib import Path

import pandas as pd

from fptt.experiments.streams.scores import ROLLING
from fptt.experiments.training.plots import COLORS, plt, save_figure

RESULTS = Path(__file__).parents[2] / "results" / "hapt-stream"
BASELINES = {"river_softmax": "River's SoftmaxRegression", "last_label": "last label"}
STYLES = {"river_softmax": "-", "last_label": "--"}


def main() -> None:
    """Write the picture: both methods and the baselines, with labels 500 steps late."""
    figure, axis = plt.subplots(figsize=(9.4, 3.8), layout="constrained")
    rows = {method: pd.read_csv(RESULTS / f"{method}-500" / ROLLING) for method in ("fptt", "tbptt")}
    for name, label in BASELINES.items():
        axis.plot(rows["fptt"]["step"], rows["fptt"][name], STYLES[name], color="0.45", linewidth=1, label=label)
    for method, found in rows.items():
        axis.plot(found["step"], found["learner"], color=COLORS[method], linewidth=1.3, label=method.upper())
    axis.axhline(1 / 12, color="black", linewidth=0.8, linestyle=(0, (1, 2)), label="chance")
    axis.set(xlabel="steps", ylabel="rolling accuracy", ylim=(0, 1.02))
    axis.xaxis.set_major_formatter("{x:,.0f}")
    axis.grid(alpha=0.25)
    handles, labels = axis.get_legend_handles_labels()
    figure.legend(handles[::-1], labels[::-1], loc="outside right upper", fontsize="small", frameon=False)
    save_figure(figure, Path(__file__).with_name("hapt-stream.png"))


if __name__ == "__main__":
    main()
