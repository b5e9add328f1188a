"""The commands about many runs: `fptt compare`, `fptt ablate`, `fptt report`, `fptt recipes`."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro
from pydantic.dataclasses import dataclass as checked_dataclass
from rich.console import Console
from rich.table import Table

from fptt.experiments.commands.defaults import (
    GROUPED,
    Grouped,
    Origin,
    check_folder,
    check_use,
    starting_setting,
    with_absolute_data,
)
from fptt.experiments.configs.checked import STRICT, Checked, Count, Workers
from fptt.experiments.configs.config import Setting
from fptt.experiments.configs.recipes import RECIPES
from fptt.experiments.process.console import say
from fptt.experiments.process.errors import UserError


@checked_dataclass(frozen=True, kw_only=True, config=STRICT)
class _Study(Origin, Checked):
    """Options of all studies."""

    setting: Grouped[Setting]
    seeds: Count = 3
    """Number of seeds, from 0."""
    jobs: Workers = 1
    """Runs at a time, which share the cores. More than one disturbs the time of runs with several threads."""
    overwrite: bool = False
    """Replace finished runs of other settings in the folder."""


@checked_dataclass(frozen=True, kw_only=True, config=STRICT)
class Compare(_Study):
    """Train with several methods and seeds and compare them at equal epochs, equal updates and equal time.

    Every run has a process and a folder of its own. A second call continues where the first one stopped. At equal
    updates and at equal time the other methods train until they have made as many updates, or trained for as many
    seconds, as the run of the same seed of FPTT (without it of TBPTT). BPTT has one loss, at the end of the sequence,
    unless --bptt-losses asks for more; the method bptt-losses has one at the end of every chunk. The differences
    between FPTT and each of the others are paired by seed, with 95 % intervals and p values corrected by Holm's method.

    fptt compare --recipe adding-200 --seeds 3 --out results/adding-200

    fptt compare --task digits --seeds 5 --controls rate=0.9,0.8,0.5,bptt-small-batches
    """

    methods: str = "bptt,tbptt,fptt"
    """Comma-separated methods; bptt-losses is BPTT with a loss at the end of every chunk: with as many losses as FPTT,
    but one update a sequence."""
    controls: str | None = None
    """Comma-separated controls beside FPTT. rate=0.9,0.8,0.5: TBPTT at these parts of the learning rate, to see whether
    the regularizer does more than a smaller rate. bptt-small-batches: BPTT with a loss at the end of every chunk and
    batches smaller by --num-chunks, so with the losses and the number of updates of FPTT, and an uncut gradient."""
    budgets: str = "epochs,updates,seconds"
    """Comma-separated budgets at which the methods are compared; epochs is always one of them. With --early-stopping
    the others need the schedule constant or plateau."""
    out: Path | None = None
    """Folder for all runs, table (compare.md) and plot; out/compare-TASK by default, or -RECIPE where one is given."""

    def __call__(self, console: Console) -> None:
        """Run what is not finished, and report."""
        from fptt.experiments.studies.comparison import Comparison, parse_budgets
        from fptt.experiments.studies.contenders import parse_controls, parse_methods

        out = self.out or Path("out") / f"compare-{self.recipe or self.setting.task}"
        check_folder(out)
        comparison = Comparison(
            with_absolute_data(self.setting),
            [*parse_methods(self.methods), *([] if self.controls is None else parse_controls(self.controls))],
            range(self.seeds),
            out,
            parse_budgets(self.budgets),
        )
        comparison.run(console, self.jobs, overwrite=self.overwrite)
        comparison.report(console)


@checked_dataclass(frozen=True, kw_only=True, config=STRICT)
class Ablate(_Study):
    """Vary some settings of a recipe, one at a time or all together, with TBPTT and BPTT beside them.

    A second call continues where the first one stopped.

    fptt ablate --over num_chunks=4:8:16,alpha,form,coupling --seeds 3 --out out/ablate
    """

    over: str = tyro.MISSING
    """Comma-separated settings, any that are a choice or a number, each with values of its own (num_chunks=4:8:16) or
    the usual ones (alpha)."""
    grid: bool = False
    """Every combination, instead of one setting at a time."""
    out: Path | None = None
    """Folder for all runs, table (ablation.md) and plot; out/ablate-TASK by default, or -RECIPE where one is given."""

    def __call__(self, console: Console) -> None:
        """Run what is not finished, and report."""
        from fptt.experiments.studies.ablation import Ablation, parse_axes

        out = self.out or Path("out") / f"ablate-{self.recipe or self.setting.task}"
        check_folder(out)
        setting = with_absolute_data(self.setting)
        ablation = Ablation(setting, parse_axes(self.over), range(self.seeds), out, grid=self.grid)
        ablation.run(console, self.jobs, overwrite=self.overwrite)
        ablation.report(console)


@dataclass(frozen=True, kw_only=True)
class Report:
    """Make the page of results from the summaries of all finished runs in a folder."""

    results: Path = Path("results")
    """Folder of folders, one an experiment."""
    out: Path | None = None
    """Folder for results.md and figures/. By default the folder report in that of the results; but for results it is
    docs, and README.md then gets the table of the paper's tasks too, if it has the marks for it."""

    def __call__(self, console: Console) -> None:
        """Write the page."""
        from fptt.experiments.studies.page import write_report
        from fptt.experiments.studies.references import REFERENCES

        is_own = self.results == Path("results")  # of the project itself, in its folder
        out = self.out or (Path("docs") if is_own else self.results / "report")
        if out.suffix == ".md":
            raise UserError(f"out must be a folder, for results.md and figures/, got {str(out)!r}.")
        readme = Path("README.md") if is_own and out == Path("docs") else None
        page = write_report(self.results, out, self.results.parent / "runs", REFERENCES, readme)
        say(console, f"results: {page}")


@dataclass(frozen=True, kw_only=True)
class Recipes:
    """List the recipes: what each shows, the minutes of one run on two cores, and the test metric."""

    def __call__(self, console: Console) -> None:
        """Print them."""
        table = Table(title="fptt train --recipe NAME", title_justify="left")
        for column in ("name", "what", "minutes", "metric with FPTT"):
            table.add_column(column, justify="right" if column == "minutes" else "left")
        for name, entry in RECIPES.items():
            minutes = "" if entry.minutes is None else f"{entry.minutes:,g}"
            table.add_row(name, entry.about, minutes, entry.result or "not measured yet")
        console.print(table)


def parse(name: str, arguments: Sequence[str]) -> Compare | Ablate | Report | Recipes:
    """Return what the arguments of a command ask for."""
    prog = f"fptt {name}"
    match name:
        case "compare":
            start = starting_setting(arguments)
            compare = tyro.cli(Compare, args=arguments, prog=prog, default=Compare(setting=start), registry=GROUPED)
            check_use(compare.setting, start)
            return compare
        case "ablate":
            default = Ablate(setting=starting_setting(arguments))
            return tyro.cli(Ablate, args=arguments, prog=prog, default=default, registry=GROUPED)
        case "report":
            return tyro.cli(Report, args=arguments, prog=prog)
        case _:
            return tyro.cli(Recipes, args=arguments, prog=prog)
