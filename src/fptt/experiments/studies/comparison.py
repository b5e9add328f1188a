"""Several methods and seeds on one task at equal epochs, equal updates and equal time: `fptt compare`."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from fptt.experiments.configs.config import MethodName, Setting, TrainConfig
from fptt.experiments.process.console import say
from fptt.experiments.process.errors import UserError
from fptt.experiments.studies.finished_run import METHODS, FinishedRun
from fptt.experiments.studies.plots import Panel, draw_runs
from fptt.experiments.studies.study import Study
from fptt.experiments.studies.tables import Row, console_table, costs, markdown_table, number, seed_rows, with_sd

BUDGETS = ("epochs", "updates", "seconds")

CONTENDERS: dict[str, MethodName] = {"bptt": "bptt", "tbptt": "tbptt", "fptt": "fptt", "bptt-losses": "bptt"}
"""The contenders and their methods: each method itself, and BPTT with a loss at the end of each of `num_chunks` chunks.

The latter has FPTT's chunk losses but one update a sequence: the control that separates the effect of more losses from
that of more updates.
"""


class Comparison(Study):
    """The runs of a comparison, in one folder.

    The reference is the method with the most updates in the same epochs: FPTT if it is there. At equal updates every
    other method trains until it has made as many as the reference of the same seed, at equal time as long as that.

    Args:
        setting: Of all runs.
        contenders: Names in `CONTENDERS`.
        seeds: Seeds of each.
        out: The folder.
        budgets: Of `BUDGETS`.

    Raises:
        UserError: If the setting has other limits than epochs.
    """

    table_file, plot_file = "compare.md", "curves.png"

    def __init__(
        self,
        setting: Setting,
        contenders: Sequence[str],
        seeds: Sequence[int],
        out: Path,
        budgets: Sequence[str] = BUDGETS,
    ) -> None:
        super().__init__(out)
        if setting.epochs is None or setting.max_updates is not None or setting.max_seconds is not None:
            raise UserError("a comparison needs epochs, and neither max_updates nor max_seconds: it sets those itself.")
        if "bptt-losses" in contenders and setting.num_chunks == setting.bptt_losses:
            raise UserError(f"bptt-losses is the same as bptt, which has {setting.bptt_losses} chunk losses already.")
        self.setting, self.contenders, self.seeds, self.budgets = setting, contenders, seeds, budgets
        self.reference = min(contenders, key=lambda name: METHODS.index(CONTENDERS[name]))

    def stages(self) -> Iterator[Mapping[Path, TrainConfig]]:
        """Yield the runs at equal epochs, then those whose limits are the updates and seconds of the reference."""
        yield {
            self._path("epochs", name, seed): self._config(name, seed)
            for seed in self.seeds
            for name in self.contenders
        }
        limited = {}
        for seed in self.seeds:
            reference = self._run("epochs", self.reference, seed).summary
            for name in self.contenders:
                own = self._run("epochs", name, seed).summary
                for budget in self.budgets:
                    is_same = budget == "updates" and own["updates"] == reference["updates"]
                    if budget == "epochs" or name == self.reference or is_same:
                        continue
                    # early stopping counts epochs, and would end the run before its budget
                    limits = {"epochs": None, "early_stopping": None, f"max_{budget}": reference[budget]}
                    limited[self._path(budget, name, seed)] = self._config(name, seed, **limits)
        yield limited

    def _config(self, contender: str, seed: int, **limits: Any) -> TrainConfig:
        losses = {"bptt_losses": self.setting.num_chunks} if contender == "bptt-losses" else {}
        return TrainConfig.of(self.setting, method=CONTENDERS[contender], seed=seed, **losses, **limits)

    def _path(self, budget: str, contender: str, seed: int) -> Path:
        return self.out / f"equal-{budget}" / f"{contender}-seed-{seed}"

    def _run(self, budget: str, contender: str, seed: int) -> FinishedRun:
        return self.runs[self._path(budget, contender, seed)]

    def _all_runs(self) -> list[FinishedRun]:
        runs = list(self.runs.values())
        return [*runs, *stand_ins(runs, {f"equal-{budget}" for budget in self.budgets})]

    def rows(self) -> list[dict[str, Any]]:
        """Return a row for each budget and contender."""
        runs = self._all_runs()
        found = seed_rows(runs, [(run.group, run.contender) for run in runs])
        order = [self._config(name, 0).method for name in self.contenders]
        rows = []
        for (group, (method, num_losses)), row in found.items():
            num_chunks = num_losses or self.setting.num_chunks
            rows.append({"budget": group.removeprefix("equal-"), "method": method, "num_chunks": num_chunks, **row})
        return sorted(rows, key=lambda row: (self.budgets.index(row["budget"]), order.index(row["method"])))

    def show(self, rows: Sequence[Row], console: Console) -> None:
        """Print a table for each budget, and how far the reference is from each other contender."""
        scale, unit = (100, "points") if self.metric == "accuracy" else (1, self.metric)
        for budget in self.budgets:
            chosen = [row for row in rows if row["budget"] == budget]
            heads = ["method", f"test {self.metric}", "epochs", "updates", "seconds", "memory"]
            cells = [heads, *(self._cells(row) for row in chosen)]
            console.print(console_table(cells, f"at equal {budget}", num_left=1))
            first = next(row for row in chosen if row["method"] == CONTENDERS[self.reference])
            for row in chosen:
                if row is not first:
                    distance = first[f"test_{self.metric}_mean"] - row[f"test_{self.metric}_mean"]
                    label = _label(row) if row["method"] == "bptt" else row["method"].upper()
                    say(console, f"{self.reference.upper()} − {label}: {number(scale * distance, '+.4g')} {unit}")

    def markdown(self, rows: Sequence[Row]) -> str:
        """Return the rows of all budgets as one table."""
        heads = ["at equal", "method", f"test {self.metric} (mean ± sd)", "epochs", "updates", "seconds"]
        cells = [[row["budget"], *self._cells(row)] for row in rows]
        return markdown_table([[*heads, "memory of training"], *cells], num_left=2)

    def _cells(self, row: Row) -> list[str]:
        memory = f"{row['training_memory_bytes'] / 2**20:.0f} MiB"
        return [_label(row), with_sd(row, f"test_{self.metric}"), *costs(row), memory]

    def draw(self, rows: Sequence[Row], path: Path) -> None:  # noqa: ARG002
        """Draw the validation metric of every run, a panel for each budget."""
        runs = self._all_runs()
        panels = []
        for budget in self.budgets:
            column = {"epochs": "epoch"}.get(budget, budget)
            label = {"seconds": "seconds of training"}.get(budget, budget)
            chosen = [run for run in runs if run.group == f"equal-{budget}"]
            panels.append(Panel(column, label, chosen, title=f"at equal {budget}"))
        draw_runs(panels, self.metric, path)


def stand_ins(runs: Sequence[FinishedRun], groups: Collection[str]) -> Iterator[FinishedRun]:
    """Yield the runs at equal epochs that are the same at equal updates or time: a comparison does not repeat them.

    Those are the runs of the reference, and at equal updates those with as many as the reference. `Comparison` lays
    them out so, and the page of results finds them again by the same rule.

    Args:
        runs: Of one study or experiment.
        groups: Those that are wanted, such as `equal-updates`; only where the comparison has runs with that budget.
    """
    found = {(run.group, run.contender, run.config.seed) for run in runs}
    equal_epochs = [run for run in runs if run.group.rpartition("/")[2] == "equal-epochs"]
    for run in equal_epochs:
        beside = [other for other in equal_epochs if (other.group, other.config.seed) == (run.group, run.config.seed)]
        methods = {other.config.method for other in equal_epochs if other.group == run.group}
        # the one with the most updates, as in `Comparison`
        reference = min(methods, key=METHODS.index)
        goals = [other.summary["updates"] for other in beside if other.config.method == reference]
        for budget in BUDGETS[1:]:
            group = run.group.removesuffix("epochs") + budget
            is_same = run.config.method == reference or (budget == "updates" and run.summary["updates"] in goals)
            if group in groups and is_same and (group, run.contender, run.config.seed) not in found:
                yield replace(run, group=group)


def _label(row: Row) -> str:
    return row["method"].upper() + (f"-{row['num_chunks']}" if row["num_chunks"] > 1 else "")


def parse_methods(text: str) -> list[str]:
    """Return the contenders of a comma-separated list.

    Raises:
        UserError: If one is unknown or repeated; lists those that exist.
    """
    names = [name.strip() for name in text.split(",")]
    for name in names:
        if name not in CONTENDERS:
            raise UserError(f"unknown method {name!r}; there are {', '.join(CONTENDERS)}.")
    if len(set(names)) < len(names):
        raise UserError(f"methods must not repeat, got {text}.")
    return names


def parse_budgets(text: str) -> list[str]:
    """Return the budgets of a comma-separated list, in their usual order, `epochs` among them.

    Raises:
        UserError: If one is unknown; lists those that exist.
    """
    names = [name.strip() for name in text.split(",")]
    for name in names:
        if name not in BUDGETS:
            raise UserError(f"unknown budget {name!r}; there are {', '.join(BUDGETS)}.")
    return [name for name in BUDGETS if name == "epochs" or name in names]
