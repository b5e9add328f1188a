"""Differences between two settings, paired by seed, with intervals and corrected p values."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import PurePosixPath

import numpy as np
from scipy import stats

from fptt.experiments.configs.config import UNUSED, TrainConfig
from fptt.experiments.studies.finished_run import METHODS
from fptt.experiments.studies.labels import label
from fptt.experiments.studies.tables import NONE, Cells, Row, number
from fptt.experiments.tasks.scores import HIGHER_IS_BETTER, metric_form

LEVEL = 0.95
"""Of the intervals; a difference is called better or worse where Holm's p is below 1 − LEVEL."""

BOOTSTRAP_SEEDS = 20
"""Seeds from which on the interval is a bootstrap's: with fewer, resampling them is narrower than it says."""

NUM_RESAMPLES = 9999

EXPLANATION = (
    "Differences are paired by seed: the mean over the seeds that both have. 95 % intervals: paired t, from "
    f"{BOOTSTRAP_SEEDS} seeds on a paired bootstrap (BCa, {NUM_RESAMPLES:,} resamples). p: paired t test; p, Holm: "
    "corrected for all comparisons of its table that have a p (Holm 1979), and below 0.05 where one is called better "
    "or worse."
)


@dataclass(frozen=True)
class Difference:
    """The mean of ours − theirs over the seeds of both.

    Attributes:
        num_seeds: Seeds that both have.
        left_out: Seeds that only one has.
        mean: NaN without a common seed.
        interval: Of the mean; None where the seeds allow none.
        p: That the true mean is 0; None without an interval.
        lacking: Why there is no interval; empty if there is one.
    """

    num_seeds: int
    left_out: Sequence[int]
    mean: float
    interval: tuple[float, float] | None = None
    p: float | None = None
    lacking: str = ""


def paired_difference(ours: Mapping[int, float], theirs: Mapping[int, float]) -> Difference:
    """Return the difference between the values of two settings, each by its seed."""
    seeds = sorted(ours.keys() & theirs.keys())
    left_out = sorted(ours.keys() ^ theirs.keys())
    if not seeds:
        return Difference(0, left_out, math.nan, lacking="no common seed")
    pair = np.array([[values[seed] for seed in seeds] for values in (ours, theirs)])
    with np.errstate(invalid="ignore", over="ignore"):  # a diverged seed has an infinite loss, or nearly
        deltas = pair[0] - pair[1]
        mean = float(deltas.mean())
        is_finite = np.isfinite(deltas @ deltas)
    if len(seeds) == 1:
        return Difference(1, left_out, mean, lacking="one seed: no interval")
    if not is_finite:
        return Difference(len(seeds), left_out, mean, lacking="a seed diverged: no interval")
    # a spread of rounding errors would make any difference certain
    if np.ptp(deltas) <= 1e-12 * np.abs(pair).max():
        return Difference(len(seeds), left_out, mean, lacking="the same for all seeds: no interval")
    test = stats.ttest_rel(*pair)
    found = test.confidence_interval(LEVEL)
    if len(seeds) >= BOOTSTRAP_SEEDS:
        found = stats.bootstrap(
            tuple(pair),
            lambda a, b, axis: np.mean(a - b, axis=axis),
            paired=True,
            confidence_level=LEVEL,
            n_resamples=NUM_RESAMPLES,
            rng=np.random.default_rng(0),
        ).confidence_interval
    return Difference(len(seeds), left_out, mean, (float(found.low), float(found.high)), float(test.pvalue))


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p values corrected for their number by Holm's step-down method (Holm 1979).

    The i-th smallest of m, from 0, is multiplied by m − i; none becomes smaller than the one before it, or exceeds 1.

    Examples:
        >>> holm([0.01, 0.5, 0.02])
        [0.03, 0.5, 0.04]
    """
    corrected, largest = [0.0] * len(p_values), 0.0
    for place, index in enumerate(sorted(range(len(p_values)), key=lambda index: p_values[index])):
        largest = max(largest, min(1.0, (len(p_values) - place) * p_values[index]))
        corrected[index] = largest
    return corrected


def direction(metric: str) -> str:
    """Return which values of a metric are better: `higher` or `lower`."""
    return "higher" if HIGHER_IS_BETTER.get(metric, True) else "lower"


# -- pairs and tables ------------------------------------------------------------------------------------------------


def base_row(rows: Sequence[Row]) -> Row:
    """Return the row beside which the others stand: the first one of the method with the most machinery.

    Args:
        rows: With the `config` of each, as `FinishedRun.setting` is, and perhaps its `group`.
    """
    return min(rows, key=lambda row: (METHODS.index(row["config"].method), row.get("group", "")))


SHARED = ("data", "epochs")
"""Fields that all settings of a comparison have in common."""


def pairs_with_base(rows: Sequence[Row]) -> list[tuple[Row, Row]]:
    """Return that row beside each of the others that are of the same data and epochs: what a comparison compares."""
    base = base_row(rows)
    return [
        (base, row)
        for row in rows
        if row is not base and all(getattr(row["config"], name) == getattr(base["config"], name) for name in SHARED)
    ]


def matched_pairs(rows: Sequence[Row], besides: Sequence[str] = ()) -> list[tuple[Row, Row]]:
    """Return each row of the method with the most machinery beside its controls: what an ablation compares.

    Those are the rows of other methods with the same setting: all fields are equal, but for those that make no
    difference to one of the two methods, and those named besides. Of a control that several folders hold it is the
    nearest: of two ablations side by side each has its own.
    """
    first = base_row(rows)["config"].method
    pairs = [
        (ours, theirs)
        for ours in rows
        for theirs in rows
        if ours["config"].method == first != theirs["config"].method
        and _agree(ours["config"], theirs["config"], besides)
    ]
    least: dict[tuple[int, TrainConfig], int] = {}
    for ours, theirs in pairs:
        control, distance = (id(ours), theirs["config"]), _distance(ours, theirs)
        least[control] = min(least.get(control, distance), distance)
    return [(ours, theirs) for ours, theirs in pairs if _distance(ours, theirs) == least[id(ours), theirs["config"]]]


def _distance(ours: Row, theirs: Row) -> int:
    """Return how many folders lie between the groups of two rows, up from one and down to the other."""
    groups = [PurePosixPath(row.get("group", "")) for row in (ours, theirs)]
    one, other = ({group, *group.parents} for group in groups)
    return len(one ^ other)


def _agree(config: TrainConfig, other: TrainConfig, besides: Sequence[str]) -> bool:
    free = {"method", *UNUSED[config.method], *UNUSED[other.method], *besides}
    names = [field.name for field in fields(TrainConfig) if field.name not in free]
    return all(getattr(config, name) == getattr(other, name) for name in names)


def difference_cells(pairs: Sequence[tuple[Row, Row]], base: TrainConfig, metric: str) -> Cells:
    """Return a table of the differences in a test metric, corrected for their number; without pairs an empty one.

    What has the same settings and the same values as a pair before is the same comparison, and stands there once.

    Args:
        pairs: Of rows with a `config`, and the metric by seed as `tests`; and perhaps a `group`, which stands beside
            those that have the same label.
        base: The config from which labels tell what differs.
        metric: Its name.
    """
    if not pairs:
        return []
    once: dict[tuple[TrainConfig, str], Row] = {}
    for row in (row for pair in pairs for row in pair):
        once.setdefault(_content(row), row)
    names = _names(list(once.values()), base)
    pairs = [(once[ours], once[theirs]) for ours, theirs in dict.fromkeys(tuple(map(_content, pair)) for pair in pairs)]
    is_higher_better = direction(metric) == "higher"
    found = [paired_difference(ours["tests"], theirs["tests"]) for ours, theirs in pairs]
    corrected = iter(holm([difference.p for difference in found if difference.p is not None]))
    heads = [
        "difference",
        "seeds",
        f"in test {metric} ({'above' if is_higher_better else 'below'} 0 is better)",
        "95 % interval",
        "p",
        "p, Holm",
        f"{pairs[0][0]['config'].method.upper()} is",
    ]
    lines = []
    for (ours, theirs), difference in zip(pairs, found, strict=True):
        adjusted = None if difference.p is None else next(corrected)
        smallest = min(abs(float(np.mean(list(row["tests"].values())))) for row in (ours, theirs))
        form = f"+{metric_form(metric, smallest)}"
        verdict = NONE if adjusted is None else "undecided"
        if adjusted is not None and adjusted < 1 - LEVEL:
            verdict = "better" if (difference.mean > 0) is is_higher_better else "worse"
        lines.append(
            [
                f"{names[id(ours)]} − {names[id(theirs)]}",
                _seeds(difference),
                number(difference.mean, form),
                difference.lacking or f"[{', '.join(number(end, form) for end in difference.interval or ())}]",
                _probability(difference.p),
                _probability(adjusted),
                verdict,
            ]
        )
    return [heads, *lines]


def _content(row: Row) -> tuple[TrainConfig, str]:
    """Return the setting of a row and its values by seed, as text, in which NaN is the same as NaN."""
    return row["config"], repr(sorted(row["tests"].items()))


def _names(rows: Sequence[Row], base: TrainConfig) -> dict[int, str]:
    """Return the label of each row, by its id, with its group where those of another group have the same."""
    groups: dict[str, set[str]] = {}
    for row in rows:
        groups.setdefault(label(row["config"], base), set()).add(row.get("group", ""))
    names = {}
    for row in rows:
        name, group = label(row["config"], base), row.get("group", "")
        names[id(row)] = f"{name} ({group})" if group and len(groups[name]) > 1 else name
    return names


def _seeds(difference: Difference) -> str:
    left_out = ", ".join(map(str, difference.left_out))
    word = "seed" if len(difference.left_out) == 1 else "seeds"
    return f"{difference.num_seeds}" + (f" (without {word} {left_out})" if left_out else "")


def _probability(p: float | None) -> str:
    return "< 0.001" if p is not None and p < 0.001 else number(p, ".3f")
