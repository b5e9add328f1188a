"""Several methods and seeds on one task at equal epochs, equal updates and equal time: `fptt compare`."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from fptt.experiments.configs.config import Setting, TrainConfig
from fptt.experiments.configs.lists import parse_names
from fptt.experiments.process.console import say
from fptt.experiments.process.errors import UserError
from fptt.experiments.studies.contenders import Contender
from fptt.experiments.studies.differences import EXPLANATION, base_row, difference_cells, direction, pairs_with_base
from fptt.experiments.studies.finished_run import METHODS, FinishedRun
from fptt.experiments.studies.labels import label
from fptt.experiments.studies.plots import AXES, Panel, draw_runs
from fptt.experiments.studies.study import Study, check_buildable
from fptt.experiments.studies.tables import Cells, Row, console_table, costs, markdown_table, seed_rows, with_sd
from fptt.experiments.training.folder import RunFolder

BUDGETS = ("epochs", "updates", "seconds")


class Comparison(Study):
    """The runs of a comparison, in one folder.

    The reference is the method with the most updates in the same epochs: FPTT if it is there. At equal updates every
    other method trains until it has made as many as the reference of the same seed, at equal time as long as that.

    Args:
        setting: Of all runs.
        contenders: Methods and controls.
        seeds: Seeds of each.
        out: The folder.
        budgets: Of `BUDGETS`.

    Raises:
        UserError: If the setting has other limits than epochs, or early stopping would give the runs of a budget other
            schedules; if a control is without FPTT, or a contender is the same as another one.
    """

    table_file, plot_file = "compare.md", "curves.png"
    limits_of_others = ("max_updates", "max_seconds")

    def __init__(
        self,
        setting: Setting,
        contenders: Sequence[Contender],
        seeds: Sequence[int],
        out: Path,
        budgets: Sequence[str] = BUDGETS,
    ) -> None:
        super().__init__(out)
        if setting.epochs is None or setting.max_updates is not None or setting.max_seconds is not None:
            raise UserError("a comparison needs epochs, and neither max_updates nor max_seconds: it sets those itself.")
        beyond = [budget for budget in budgets if budget != "epochs"]
        # stopped early, the reference has hardly begun to lower its rate; runs with its updates would do so to the end
        if beyond and setting.early_stopping is not None and setting.schedule not in ("constant", "plateau"):
            raise UserError(
                f"budgets must be epochs alone, or schedule constant or plateau, with early_stopping "
                f"{setting.early_stopping}, got budgets {','.join(budgets)} with schedule {setting.schedule}: the "
                f"learning rates at equal {' and '.join(beyond)} would not be those of the run that stopped early."
            )
        for contender in contenders:
            contender.check(setting)
        self.setting, self.contenders, self.seeds, self.budgets = setting, contenders, seeds, budgets
        self.reference = min(contenders, key=lambda contender: METHODS.index(contender.method))
        if self.reference.method != "fptt" and (controls := [each.name for each in contenders if each.is_control]):
            raise UserError(f"controls stand beside fptt: methods must have it, got controls {', '.join(controls)}.")

    def stages(self) -> Iterator[Mapping[Path, TrainConfig]]:
        """Yield the runs at equal epochs, then those whose limits are the updates and seconds of the reference.

        Raises:
            UserError: If a run cannot be built.
        """
        configs, unfinished = {}, {}
        for seed in self.seeds:
            for contender in self.contenders:
                path, config = self._path("epochs", contender, seed), contender.config(self.setting, seed)
                configs[path] = config
                # what is finished needs no data any more
                if contender.name not in unfinished and not RunFolder(path).has_finished(config):
                    unfinished[contender.name] = config
        check_buildable(unfinished)
        yield configs
        limited = {}
        for seed in self.seeds:
            reference = self._run("epochs", self.reference, seed).summary
            for contender in self.contenders:
                own = self._run("epochs", contender, seed).summary
                for budget in self.budgets:
                    is_same = budget == "updates" and own["updates"] == reference["updates"]
                    if budget == "epochs" or contender == self.reference or is_same:
                        continue
                    # early stopping counts epochs, and would end the run before its budget
                    limits = {"epochs": None, "early_stopping": None, f"max_{budget}": reference[budget]}
                    limited[self._path(budget, contender, seed)] = contender.config(self.setting, seed, **limits)
        yield limited

    def _path(self, budget: str, contender: Contender, seed: int) -> Path:
        return self.out / f"equal-{budget}" / f"{contender.name}-seed-{seed}"

    def _run(self, budget: str, contender: Contender, seed: int) -> FinishedRun:
        return self.runs[self._path(budget, contender, seed)]

    def _all_runs(self) -> list[FinishedRun]:
        runs = list(self.runs.values())
        return [*runs, *stand_ins(runs, {f"equal-{budget}" for budget in self.budgets})]

    def rows(self) -> list[dict[str, Any]]:
        """Return a row for each budget and contender."""
        runs = self._all_runs()
        order = [contender.name for contender in self.contenders]
        keys = [(run.group.removeprefix("equal-"), _contender_of(run)) for run in runs]
        rows = [
            {
                "budget": budget,
                "contender": name,
                "method": row["config"].method,
                "num_chunks": row["config"].chunk_losses,
                **row,
            }
            for (budget, name), row in seed_rows(runs, keys).items()
        ]
        return sorted(rows, key=lambda row: (self.budgets.index(row["budget"]), order.index(row["contender"])))

    def show(self, rows: Sequence[Row], console: Console) -> None:
        """Print a table for each budget, and how far the reference is from each other contender."""
        for budget in self.budgets:
            chosen = [row for row in rows if row["budget"] == budget]
            heads = ["method", self._metric_head(), "epochs", "updates", "seconds", "memory"]
            cells = [heads, *(self._cells(row, chosen) for row in chosen)]
            console.print(console_table(cells, f"at equal {budget}", num_left=1))
            if differences := self._differences(chosen):
                console.print(console_table(differences, f"paired differences at equal {budget}", num_left=1))
        if len(self.contenders) > 1:
            say(console, EXPLANATION)

    def markdown(self, rows: Sequence[Row]) -> str:
        """Return the rows of all budgets as one table, and a table of the differences for each budget."""
        heads = ["at equal", "method", self._metric_head(), "epochs", "updates", "seconds", "memory of training"]
        by_budget = {budget: [row for row in rows if row["budget"] == budget] for budget in self.budgets}
        cells = [[row["budget"], *self._cells(row, by_budget[row["budget"]])] for row in rows]
        parts = [markdown_table([heads, *cells], num_left=2)]
        for budget, chosen in by_budget.items():
            if differences := self._differences(chosen):
                parts.append(f"Paired differences at equal {budget}:\n\n{markdown_table(differences, num_left=1)}")
        if len(parts) > 1:
            parts.append(f"{EXPLANATION}\n")
        return "\n".join(parts)

    def _metric_head(self) -> str:
        return f"test {self.metric} (mean ± sd; {direction(self.metric)} is better)"

    def _cells(self, row: Row, rows: Sequence[Row]) -> list[str]:
        memory = f"{row['training_memory_bytes'] / 2**20:.0f} MiB"
        return [
            label(row["config"], base_row(rows)["config"]),
            with_sd(row, f"test_{self.metric}"),
            *costs(row),
            memory,
        ]

    def _differences(self, rows: Sequence[Row]) -> Cells:
        return difference_cells(pairs_with_base(rows), base_row(rows)["config"], self.metric)

    def draw(self, rows: Sequence[Row], path: Path) -> None:  # noqa: ARG002
        """Draw the validation metric of every run, a panel for each budget."""
        runs = self._all_runs()
        reference = self._run("epochs", self.reference, self.seeds[0])
        panels = []
        for budget in self.budgets:
            chosen = [run for run in runs if run.group == f"equal-{budget}"]
            base = replace(reference, group=f"equal-{budget}").setting
            panels.append(Panel(*AXES[budget], chosen, title=f"at equal {budget}", base=base))
        draw_runs(panels, self.metric, path)


def _contender_of(run: FinishedRun) -> str:
    """Return the name of the contender in whose folder a run is."""
    return run.path.name.removesuffix(f"-seed-{run.config.seed}")


def stand_ins(runs: Sequence[FinishedRun], groups: Collection[str]) -> Iterator[FinishedRun]:
    """Yield the runs at equal epochs that are the same at equal updates or time: a comparison does not repeat them.

    Those are the runs of the reference, and at equal updates those with as many as the reference. `Comparison` lays
    them out so, and the page of results finds them again by the same rule.

    Args:
        runs: Of one study or experiment.
        groups: Those that are wanted, such as `equal-updates`; only where the comparison has runs with that budget.
    """
    found = {(run.group, run.setting, run.config.seed) for run in runs}
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
            stand_in = replace(run, group=group)  # whose setting is without the limits of its own
            if group in groups and is_same and (group, stand_in.setting, run.config.seed) not in found:
                yield stand_in


def parse_budgets(text: str) -> list[str]:
    """Return the budgets of a comma-separated list, in their usual order, `epochs` among them.

    Raises:
        UserError: If one is unknown or repeated; lists those that exist.
    """
    names = parse_names("budgets", text, BUDGETS)
    return [name for name in BUDGETS if name == "epochs" or name in names]
