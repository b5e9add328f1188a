"""The table and the figure of the paper's tasks: what was published, replicated and reached here, side by side."""

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from fptt.experiments.configs.config import TrainConfig
from fptt.experiments.studies.differences import direction, matched_pairs, paired_difference
from fptt.experiments.studies.references import Reference, References
from fptt.experiments.studies.tables import NONE, Cells, Row, number
from fptt.experiments.tasks.registry import CHANCE
from fptt.experiments.training.plots import COLORS, save_figure

PAPER_EXPLANATION = (
    "Of each task the training here with most updates of FPTT over all its seeds (in brackets) and a control, beside "
    "TBPTT and BPTT with the same settings and epochs; of several the one in which FPTT or TBPTT reached the best "
    "validation. The section behind the name of a task has the command and the sources of what was published and "
    "replicated. Differences are paired by seed, with 95 % intervals where there are two seeds. †: inputs not "
    "standardized as in the published settings. ‡: on another device or in another precision than FPTT."
)

HARDWARE = ("accelerator", "precision")
"""Fields in which a control may differ from FPTT where there is none that does not; it is marked."""

HEADS = (
    "task",
    "published: BPTT",
    "FPTT",
    "replicated: TBPTT",
    "FPTT",
    "here: BPTT",
    "TBPTT",
    "FPTT",
    "FPTT − TBPTT",
    "FPTT − BPTT",
    "K",
    "epochs",
    "updates of FPTT, TBPTT; BPTT",
)


class PaperTask(NamedTuple):
    """A task of the paper.

    Attributes:
        name: In words.
        metric: In words, with its unit.
        is_task: Whether a run is of this task.
        recipe: The one with its published setting, which the results of others belong to; None where there are none.
        scale: What a metric is multiplied by for the table: 100 for percent.
    """

    name: str
    metric: str
    is_task: Callable[[TrainConfig], bool]
    recipe: str | None
    scale: float = 1.0


class PaperRow(NamedTuple):
    """What was reached on a task of the paper.

    Attributes:
        task: Which.
        experiment: The folder below the results.
        ours: The row of each method that has one.
        others: Results of others, by method.
    """

    task: PaperTask
    experiment: str
    ours: Mapping[str, Row]
    others: Mapping[str, Reference]


def _mnist(*, permuted: bool, lanes: str | None = None) -> Callable[[TrainConfig], bool]:
    """Return whether a run is of the pixels of MNIST, in chunks; with lanes, in these and with an update at each."""

    def is_task(config: TrainConfig) -> bool:
        of_lanes = config.num_chunks < 784 if lanes is None else (config.num_chunks, config.lanes) == (784, lanes)
        return (config.task, config.by, config.permuted) == ("mnist", "pixel", permuted) and of_lanes

    return is_task


def _of_length(task: str, length: int) -> Callable[[TrainConfig], bool]:
    return lambda config: config.task == task and config.length == length


PAPER_TASKS = (
    PaperTask("S-MNIST", "accuracy, %", _mnist(permuted=False), "smnist", 100),
    PaperTask("S-MNIST, K = T", "accuracy, %", _mnist(permuted=False, lanes="together"), "smnist-per-step", 100),
    PaperTask("S-MNIST, K = T, staggered lanes", "accuracy, %", _mnist(permuted=False, lanes="staggered"), None, 100),
    PaperTask("permuted S-MNIST", "accuracy, %", _mnist(permuted=True), "psmnist", 100),
    PaperTask("permuted S-MNIST, K = T", "accuracy, %", _mnist(permuted=True, lanes="together"), None, 100),
    PaperTask(
        "permuted S-MNIST, K = T, staggered lanes", "accuracy, %", _mnist(permuted=True, lanes="staggered"), None, 100
    ),
    PaperTask("sequential CIFAR-10", "accuracy, %", lambda config: config.task == "cifar10", "cifar10", 100),
    PaperTask("PTB, words, T = 300", "perplexity", _of_length("ptb-word", 300), "ptb-300"),
    PaperTask("PTB, characters, T = 150", "bits per character", _of_length("ptb-char", 150), None),
    *(
        PaperTask(f"adding, T = {length:,}", "mean squared error", _of_length("adding", length), None)
        for length in (200, 500, 750, 1000)
    ),
)


def paper_rows(experiments: Mapping[str, Sequence[Row]], references: References) -> list[PaperRow]:
    """Return a row for each task of the paper of which there are runs.

    Args:
        experiments: By name, the rows of each, as the page of results has them.
        references: Results of others.
    """
    contests = [contest for name, rows in experiments.items() for contest in _contests(name, rows)]
    found = (_largest(task, contests, references) for task in PAPER_TASKS)
    return [row for row in found if row is not None]


class _Contest(NamedTuple):
    """The row of FPTT in an experiment, and those of its controls."""

    experiment: str
    row: Row
    controls: Mapping[str, Row]

    def rank(self) -> tuple[bool, bool, float, float]:
        """Return what is compared: inputs as published before others, with a control before without, then updates.

        Those of all seeds: one seed that was trained a little longer says less than three. Of as many the one with the
        best validation: of FPTT or TBPTT, so that neither is shown at the rate that suits the other alone. NaN, of a
        seed that diverged, is the worst.
        """
        metric = self.row["metric"]
        sign = 1 if direction(metric) == "higher" else -1
        cut = [self.row, *(own for method, own in self.controls.items() if method == "tbptt")]
        validations = [sign * own[f"validation_{metric}_mean"] for own in cut]
        return (
            self.row["config"].standardization == "published",
            "tbptt" in self.controls,
            self.row["updates"] * self.row["num_seeds"],
            max(-math.inf if math.isnan(value) else value for value in validations),
        )


def _contests(experiment: str, rows: Sequence[Row]) -> list[_Contest]:
    # BPTT as published has one loss: with those of the chunks it is another control, and would hide that one
    groups, losses = {"", "equal-epochs"}, {None, 1}
    chosen = [row for row in rows if row["group"] in groups and row["config"].value("bptt_losses") in losses]
    pairs = [*matched_pairs(chosen, HARDWARE), *matched_pairs(chosen)] if chosen else []
    return [
        # the last ones count: those of the same hardware
        _Contest(experiment, row, {theirs["method"]: theirs for ours, theirs in pairs if ours is row})
        for row in chosen
        if row["method"] == "fptt"
    ]


def _largest(task: PaperTask, contests: Sequence[_Contest], references: References) -> PaperRow | None:
    """Return the experiment whose FPTT has made the most updates on a task, over all seeds, with its controls."""
    candidates = [contest for contest in contests if task.is_task(contest.row["config"])]
    if not candidates:
        return None
    largest = max(candidates, key=_Contest.rank)
    others = {method: references.get((task.recipe or "", method)) for method in ("bptt", "tbptt", "fptt")}
    ours = {"fptt": largest.row, **largest.controls}
    return PaperRow(task, largest.experiment, ours, {method: own for method, own in others.items() if own is not None})


# -- the table ---------------------------------------------------------------------------------------------------------


def paper_cells(rows: Sequence[PaperRow], page: str = "") -> Cells:
    """Return the table, the heads first; with the address of the page of results where it stands elsewhere."""
    return [HEADS, *(_cells(row, page) for row in rows)]


def _cells(row: PaperRow, page: str) -> list[str]:
    scale, fptt = row.task.scale, row.ours["fptt"]
    chunked = ("fptt", "tbptt")
    none = Reference(None, None, "")
    published = [row.others.get(method, none).published for method in ("bptt", "fptt")]
    replicated = [row.others.get(method, none).replicated for method in ("tbptt", "fptt")]
    mark = "" if fptt["config"].standardization == "published" else " †"
    return [
        f"[{row.task.name}]({page}#{_anchor(row.experiment)}) ({row.task.metric}){mark}",
        *(NONE if value is None else f"{value * scale:.6g}" for value in (*published, *replicated)),
        *(_reached(row, method) for method in ("bptt", "tbptt", "fptt")),
        *(_difference(row, method) for method in ("tbptt", "bptt")),
        str(fptt["num_chunks"]),
        _spent(row, "epochs", chunked),
        f"{_spent(row, 'updates', chunked)}; {_spent(row, 'updates', ('bptt',))}",
    ]


def _spent(row: PaperRow, cost: str, methods: Sequence[str]) -> str:
    """Return the epochs or updates of methods, once where they are the same: early stopping may part them."""
    means = [row.ours[method][cost] for method in methods if method in row.ours]
    return " and ".join(dict.fromkeys(f"{round(mean, 1):,.10g}" for mean in means)) or NONE


def _anchor(title: str) -> str:
    """Return the address of a section within its page, as GitHub and MkDocs make it."""
    return re.sub(r"\s+", "-", re.sub(r"[^\w\s-]", "", title).strip().lower())


def _digits(row: PaperRow) -> str:
    """Return the format of a task's numbers: two digits where they are above 10, four otherwise."""
    return ".2f" if max(abs(_mean(own)) for own in row.ours.values()) * row.task.scale >= 10 else ".4f"


def _mean(row: Row) -> float:
    return row[f"test_{row['metric']}_mean"]


def _reached(row: PaperRow, method: str) -> str:
    if method not in row.ours:
        return NONE
    own, form = row.ours[method], _digits(row)
    sd = own[f"test_{own['metric']}_sd"]
    spread = f" ± {number(sd * row.task.scale, form)}" if math.isfinite(sd) else ""
    fptt = row.ours["fptt"]["config"]
    mark = "" if all(getattr(own["config"], name) == getattr(fptt, name) for name in HARDWARE) else " ‡"
    return f"{number(_mean(own) * row.task.scale, form)}{spread} ({own['num_seeds']}){mark}"


def _difference(row: PaperRow, method: str) -> str:
    if method not in row.ours:
        return NONE
    found, form = paired_difference(row.ours["fptt"]["tests"], row.ours[method]["tests"]), f"+{_digits(row)}"
    text = number(found.mean * row.task.scale, form)
    if found.interval is None:
        return text
    low, high = (number(end * row.task.scale, form) for end in found.interval)
    return f"{text} [{low}, {high}]"


# -- the figure --------------------------------------------------------------------------------------------------------

OFFSETS = {"fptt": 0.22, "tbptt": 0.0, "bptt": -0.22}
"""How far above the line of its task each method stands, so that equal results do not hide one another."""

PANELS = {"accuracy, %": "linear", "perplexity": "linear", "bits per character": "linear", "mean squared error": "log"}
"""The scale of the axis of each metric."""


def draw_paper(rows: Sequence[PaperRow], path: Path) -> None:
    """Draw a panel a metric, with a line for each task.

    On it: what was reached here, dots, small ones for each seed where there are several, and published, diamonds.
    """
    panels = [(metric, own) for metric in PANELS if (own := [row for row in rows if row.task.metric == metric])]
    heights = [len(own) for _, own in panels]
    figure, axes = plt.subplots(
        len(panels),
        1,
        figsize=(8.5, 0.9 * len(panels) + 0.5 * sum(heights)),
        height_ratios=[height + 0.6 for height in heights],
        layout="constrained",
        squeeze=False,
    )
    for axis, (metric, own) in zip(axes[:, 0], panels, strict=True):
        _draw_panel(axis, metric, own)
    handles: dict[str, Any] = {}
    for axis in axes[:, 0]:
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=4, fontsize="small")
    save_figure(figure, path)


def _draw_panel(axis: Axes, metric: str, rows: Sequence[PaperRow]) -> None:
    for place, row in enumerate(reversed(rows)):
        axis.axhline(place, color="0.92", zorder=0)
        for kind, method, value in _points(row):
            marker, face = ("o", COLORS[method]) if kind == "here" else ("D", "none")
            height, label = place + OFFSETS[method], f"{method.upper()}, {kind}"
            axis.plot([value], [height], marker, markerfacecolor=face, markeredgecolor=COLORS[method], label=label)
        for method, own in row.ours.items():
            if own["num_seeds"] > 1:
                seeds = [value * row.task.scale for value in own["tests"].values()]
                heights = [place + OFFSETS[method]] * len(seeds)
                axis.scatter(seeds, heights, s=9, color=COLORS[method], alpha=0.45, label="its seeds")
    axis.set_yticks(range(len(rows)), [row.task.name for row in reversed(rows)])
    axis.set(xscale=PANELS[metric], ylim=(-0.6, len(rows) - 0.4))
    better = "right" if metric == "accuracy, %" else "left"
    axis.set_xlabel(f"{metric}: {better} is better", fontsize="small")
    if metric == "mean squared error":
        axis.axvline(CHANCE["adding", "mse"], color="black", linestyle=":", label="chance")
    axis.grid(alpha=0.25, axis="x")


def _points(row: PaperRow) -> Iterator[tuple[str, str, float]]:
    for method, own in row.ours.items():
        yield "here", method, _mean(own) * row.task.scale
    for method, reference in row.others.items():
        if reference.published is not None:
            yield "published", method, reference.published * row.task.scale
