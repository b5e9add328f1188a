"""The picture of chunks, W and W̄ on the home page, of a training run: python docs/figures/chunks.py writes it anew."""

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
from matplotlib.axes import Axes
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch
from torch import Tensor

import fptt

K = 5
STEPS = 4  # time steps of a chunk
TARGETS = (1.6, -0.6, 1.4, 0.0, 1.1)  # what the chunks' losses ½ (w - target)² ask for, in turn
DASHES = (0, (2, 1.5))
BLUE, RED, ORANGE, GRAY, INK = "#3f51b5", "#c62828", "#ef6c00", "#9e9e9e", "#424242"


def trajectory() -> tuple[list[float], list[float]]:
    """Return one weight and its average before the first and after each chunk, as SGD trains it on the chunks' losses.

    The third sequence, where the first steps from a bad start are over.
    """
    weight = torch.nn.Parameter(torch.tensor([-1.0]))
    optimizer = torch.optim.SGD([weight], lr=0.4)
    regularizer = fptt.DynamicRegularizer([weight], alpha=0.3).attach(optimizer)
    weights, averages = [], []
    for target in TARGETS * 3:
        optimizer.zero_grad()
        loss: Tensor = 0.5 * (weight - target).square().sum()
        loss.backward()
        optimizer.step()
        weights.append(weight.item())
        with regularizer.averaged():
            averages.append(weight.item())
    return weights[-K - 1 :], averages[-K - 1 :]


def draw_sequence(axis: Axes) -> None:
    """Draw the chunks, the state that goes through them, and the gradient, which stays inside."""
    for k in range(K):
        box = FancyBboxPatch(
            (k + 0.06, 0.06), 0.88, 0.82, boxstyle="round,pad=0,rounding_size=0.06", facecolor="#e8eaf6", edgecolor=BLUE
        )
        axis.add_patch(box)
        axis.text(k + 0.5, 0.97, f"chunk {k + 1}", ha="center", va="bottom", color=BLUE, fontsize=10)
        xs = [k + 0.17 + 0.22 * step for step in range(STEPS)]
        axis.scatter(xs, [0.56] * STEPS, s=120, color="white", edgecolor=INK, zorder=3, linewidth=1.1)
        for step, x in enumerate(xs):
            axis.text(x, 0.2, f"$x_{{{k * STEPS + step + 1}}}$", ha="center", va="center", color=INK, fontsize=9)
            arrow(axis, (x, 0.29), (x, 0.47), color=INK, linewidth=0.9, shrinkA=0, shrinkB=0)
            if k or step:
                # dashed: the value goes on, and no gradient comes back
                before, dash = (x - 0.22, "-") if step else (x - 0.34, DASHES)
                arrow(axis, (before, 0.56), (x, 0.56), color=INK, linewidth=1.1, shrinkA=6, shrinkB=6, linestyle=dash)
        arrow(axis, (xs[-1], 0.76), (xs[0], 0.76), color=RED, linewidth=1.8, shrinkA=0, shrinkB=0)
    axis.set(xlim=(-0.06, K + 0.06), ylim=(0, 1.12))
    axis.axis("off")


def arrow(axis: Axes, start: tuple[float, float], end: tuple[float, float], **look: Any) -> None:
    """Draw an arrow."""
    axis.add_patch(FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=9, zorder=2, **look))


def draw_weights(axis: Axes) -> None:
    """Draw the weight, its average, and what the loss of each chunk asks for."""
    weights, averages = trajectory()
    places = list(range(K + 1))
    for k in range(1, K + 1):
        axis.axvline(k, color="#e0e0e0", linewidth=1, zorder=0)
    axis.hlines(TARGETS, [k + 0.06 for k in range(K)], [k + 0.94 for k in range(K)], color=GRAY, linewidth=3, alpha=0.6)
    axis.plot(places, weights, "o-", color=BLUE, linewidth=2, markersize=6)
    axis.plot(places, averages, "s-", color=ORANGE, linewidth=2, markersize=5)
    axis.set(xlim=(-0.06, K + 0.06), xticks=places[1:], xticklabels=[f"update {k}" for k in places[1:]], yticks=[])
    axis.tick_params(length=0, labelcolor=INK, pad=5)
    axis.get_xticklabels()[-1].set_horizontalalignment("right")
    for side in ("top", "right", "left"):
        axis.spines[side].set_visible(False)
    axis.spines["bottom"].set_color(GRAY)
    axis.set_ylabel("one weight", color=INK)


def main() -> None:
    """Write the picture."""
    # the same bytes every time: no date, and names of its parts that are not random
    with plt.rc_context({"svg.hashsalt": "fptt", "font.family": "DejaVu Sans"}):
        figure, (above, below) = plt.subplots(
            2, 1, figsize=(9.4, 4.6), height_ratios=(1.0, 1.25), layout="constrained", facecolor="white"
        )
        draw_sequence(above)
        draw_weights(below)
        lines = {
            "gradient, inside a chunk": {"color": RED},
            "state, carried on as a value": {"color": INK, "linewidth": 1.1, "linestyle": DASHES},
            "what the chunk's loss asks for": {"color": GRAY, "linewidth": 3, "alpha": 0.6},
            "weight W": {"color": BLUE, "marker": "o"},
            "its running average W̄": {"color": ORANGE, "marker": "s"},
        }
        figure.legend(
            [plt.Line2D([], [], **style) for style in lines.values()],
            list(lines),
            loc="outside lower center",
            ncols=len(lines),
            frameon=False,
            fontsize=8.5,
            columnspacing=1.4,
        )
        figure.savefig(Path(__file__).with_name("chunks.svg"), metadata={"Date": None, "Creator": None})


if __name__ == "__main__":
    main()
