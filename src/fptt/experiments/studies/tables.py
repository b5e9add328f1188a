"""Tables: one over the seeds of each setting, written for the terminal or as Markdown."""

import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from rich.table import Table

from fptt.experiments.studies.finished_run import COSTS, ORIGINS, FinishedRun, is_number
from fptt.experiments.tasks.scores import metric_form

Row = Mapping[str, Any]
Cells = Sequence[Sequence[str]]
"""Lines of text, the heads first."""

NONE = "–"
"""The content of a cell without a value."""


# -- rows ------------------------------------------------------------------------------------------------------------


def seed_rows(runs: Sequence[FinishedRun], keys: Sequence[Hashable]) -> dict[Any, dict[str, Any]]:
    """Return a row for each key, over its runs: mean and sample standard deviation of the metrics, means of the costs.

    A standard deviation is NaN for a single run, and where a value is infinite or NaN; so is a mean with NaN.

    Args:
        runs: All with the same metric.
        keys: Of each run, which row it belongs to.

    Returns:
        The rows in the order of their first runs: `metric`, the name of the runs' own; `config`, the setting of its
        runs; `num_seeds`, `NAME_mean` and `NAME_sd` of each metric, the costs, of each of `ORIGINS` the sorted values,
        and as `tests` the test metric by seed.
    """
    metrics = [f"{part}_{runs[0].metric}" for part in ("test", "validation")]
    metrics += [f"test_{name}" for name in other_metrics(runs)]
    groups: dict[Any, list[FinishedRun]] = {}
    for key, run in zip(keys, runs, strict=True):
        groups.setdefault(key, []).append(run)
    rows: dict[Any, dict[str, Any]] = {}
    for key, own in groups.items():
        table = pd.DataFrame([{name: float(run.summary[name]) for name in (*metrics, *COSTS)} for run in own])
        # a diverged seed has an infinite loss, or NaN, which pandas itself would leave out
        with np.errstate(invalid="ignore", over="ignore"):
            mean, sd = table.mean(skipna=False).to_dict(), table.std(skipna=False).to_dict()
        rows[key] = {
            "metric": runs[0].metric,
            "config": own[0].setting,
            "num_seeds": len(own),
            **{f"{name}_mean": mean[name] for name in metrics},
            **{f"{name}_sd": sd[name] for name in metrics},
            **{name: mean[name] for name in COSTS},
            **{name: sorted({str(found[name]) for run in own for found in run.environments}) for name in ORIGINS},
            "tests": {run.config.seed: float(run.summary[metrics[0]]) for run in own},
        }
    return rows


def other_metrics(runs: Sequence[FinishedRun]) -> list[str]:
    """Return the names of the test metrics that all runs have besides their own one, two at most."""
    names = [name for name in runs[0].summary if name.startswith("test_") and name != f"test_{runs[0].metric}"]
    return [name[5:] for name in names if all(is_number(run.summary.get(name)) for run in runs)][:2]


def origins(rows: Sequence[Row]) -> dict[str, list[str]]:
    """Return all commits, devices and versions of torch of some rows."""
    return {name: sorted({value for row in rows for value in row[name]}) for name in ORIGINS}


# -- cells -----------------------------------------------------------------------------------------------------------


def number(value: float | None, form: str) -> str:
    """Return a number in a format, shorter from 10⁹ on; infinity by its name, and `NONE` for NaN or None."""
    if value is None or math.isnan(value):
        return NONE
    if abs(value) < 1e9:
        return format(value, form)
    return format(value, "+.4g" if form.startswith("+") else ".4g")


def with_sd(row: Row, name: str) -> str:
    """Return `mean ± sd`, or the mean alone where there is no standard deviation."""
    mean, sd = row[f"{name}_mean"], row[f"{name}_sd"]
    form = metric_form(name, mean)
    return number(mean, form) + (f" ± {number(sd, form)}" if math.isfinite(sd) else "")


def costs(row: Row) -> list[str]:
    """Return the cells of epochs, updates and seconds."""
    return [f"{row['epochs']:.1f}", f"{row['updates']:,.0f}", f"{row['seconds']:.1f}"]


def short_commit(commit: str) -> str:
    """Return the first seven digits of a commit, and whether the source was changed since; – outside a checkout."""
    if commit == "None":
        return NONE
    digits, _, changed = commit.partition("-")
    return digits[:7] + (f"-{changed}" if changed else "")


# -- output ----------------------------------------------------------------------------------------------------------


def markdown_table(cells: Cells, num_left: int | None = None) -> str:
    """Return cells as a table in Markdown, without padding: another number then changes one line of a committed file.

    Args:
        cells: Lines, the heads first.
        num_left: Columns that are aligned to the left, the others to the right; None for no alignment.
    """
    rule = ["---" if num_left is None or place < num_left else "---:" for place in range(len(cells[0]))]
    return "".join(f"| {' | '.join(line)} |\n" for line in (cells[0], rule, *cells[1:]))


def console_table(cells: Cells, title: str | None = None, num_left: int | None = None) -> Table:
    """Return cells as a table for the terminal; see `markdown_table`."""
    table = Table(title=title, title_justify="left")
    for place, head in enumerate(cells[0]):
        table.add_column(head, justify="left" if num_left is None or place < num_left else "right")
    for line in cells[1:]:
        table.add_row(*line)
    return table
