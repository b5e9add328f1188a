"""All finished runs below a folder as one page: `fptt report`."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, NamedTuple

from fptt.experiments.configs.config import Setting, TrainConfig
from fptt.experiments.process.errors import UserError
from fptt.experiments.streams.folder import ROLLING
from fptt.experiments.studies.ablation import METHODS, UNUSED
from fptt.experiments.studies.comparison import BUDGETS
from fptt.experiments.studies.page import Curves, command_text, draw_results, markdown_table, opening, results_cells
from fptt.experiments.training.folder import RunFolder
from fptt.experiments.training.plots import mean_and_sd, summary_row


class Reference(NamedTuple):
    """What others reached, in the unit of the metric: an accuracy in [0, 1]."""

    published: float | None
    replicated: float | None
    source: str


References = Mapping[tuple[str, str], Reference]
"""Figures of others for an experiment and a method."""


@dataclass(frozen=True)
class FinishedRun:
    """A run that came to its end.

    Attributes:
        name: Its experiment, the first folder below the results.
        group: The folders between that and its own, such as `equal-epochs`; may be empty.
        path: All of them.
        metric: What its model was chosen by.
    """

    name: str
    group: str
    path: str
    metric: str
    config: TrainConfig
    summary: Mapping[str, Any]
    metrics: Sequence[Mapping[str, float]]

    @property
    def method(self) -> str:
        return self.config.method


class Results(NamedTuple):
    """Finished runs of every experiment, and why other folders are left out."""

    experiments: dict[str, list[FinishedRun]]
    left_out: dict[str, str]


def write_report(results: Path, out: Path, runs: Path, references: References) -> Path:
    """Write a page, `results.md`, and a picture of each experiment, `figures/results-NAME.png`.

    Args:
        results: Where the run folders are, as `NAME/…/RUN`; NAME is the experiment.
        out: Where the page goes.
        runs: Where the command files of the experiments are; see `command_text`.
        references: Published and replicated figures for (NAME, method).

    Returns:
        The page.

    Raises:
        UserError: If there is no finished run, or the page cannot be written.
    """
    found = read_results(results)
    page = out / "results.md"
    try:
        (out / "figures").mkdir(parents=True, exist_ok=True)
        page.write_text("\n".join(_sections(found, out, runs, references)), encoding="utf-8")
    except OSError as error:
        raise UserError(f"out {out} cannot be written: {error}.") from error
    return page


# -- reading ---------------------------------------------------------------------------------------------------------


def read_results(results: Path) -> Results:
    """Read all run folders below a folder, at any depth; those of streams are something else.

    Raises:
        UserError: If none of them holds a finished run.
    """
    if not results.is_dir():
        raise UserError(f"results {results} does not exist.")
    found = Results({}, {})
    files = [file for name in ("summary.json", "config.yaml") for file in results.rglob(name)]
    for path in sorted({file.parent for file in files if not (file.parent / ROLLING).exists()}):
        try:
            _add(found.experiments, _read(path, path.relative_to(results)))
        except UserError as error:
            reason = str(error).replace(f"{path}/", "").removeprefix(f"run folder {path} is ")
            found.left_out[path.relative_to(results).as_posix()] = reason
    if not found.experiments:
        raise UserError(f"results {results} has no finished run.")
    return found


def _read(path: Path, relative: Path) -> FinishedRun:
    if not relative.parts:
        raise UserError("it is not in the folder of an experiment.")
    folder = RunFolder(path)
    if not folder.summary_file.exists():
        raise UserError("no summary.json: it did not come to its end.")
    summary = folder.read_summary()
    if summary.get("status") != "finished":
        raise UserError(f"{summary.get('status', 'of unknown status')}.")
    config, metrics = folder.read_config(), folder.read_metrics()
    metric = next((name[5:] for name in summary if name.startswith("test_")), "")
    needed = (f"test_{metric}", f"validation_{metric}", *_COSTS)
    lacking = [name for name in needed if not _is_number(summary.get(name))]
    lacking += [name for name in ("commit", "device", "torch") if name not in summary]
    if lacking:
        raise UserError(f"damaged: summary.json lacks {', '.join(lacking)}.")
    if not metrics or any(name not in metrics[0] for name in ("epoch", "updates", f"validation_{metric}")):
        raise UserError("damaged: metrics.csv lacks rows or columns.")
    group = "/".join(relative.parts[1:-1])
    return FinishedRun(relative.parts[0], group, relative.as_posix(), metric, config, summary, metrics)


_COSTS = ("epochs", "updates", "seconds", "peak_memory_bytes", "training_memory_bytes")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _add(experiments: dict[str, list[FinishedRun]], run: FinishedRun) -> None:
    """Add a run to its experiment, unless it does not belong there."""
    others = experiments.get(run.name, [])
    if others and run.metric != others[0].metric:
        raise UserError(f"its metric is {run.metric}, that of the others {others[0].metric}.")
    for other in others:
        if (other.group, _setting(other), other.config.seed) == (run.group, _setting(run), run.config.seed):
            raise UserError(f"same setting and seed as {other.path}.")
    experiments[run.name] = [*others, run]


def _setting(run: FinishedRun) -> TrainConfig:
    """Return the config without what does not change the result, so that the seeds of a setting have the same."""
    defaults = Setting()
    plain: dict[str, Any] = {name: getattr(defaults, name) for name in (*UNUSED[run.config.method], *_HARMLESS)}
    if run.group.rpartition("/")[2].startswith("equal-"):  # every seed has a limit of its own
        plain.update(epochs=1, max_updates=None, max_seconds=None)
    return replace(run.config, seed=0, **plain)


_HARMLESS = ("threads", "data", "checkpoint_updates")


# -- rows ------------------------------------------------------------------------------------------------------------


def stand_ins(runs: Sequence[FinishedRun]) -> Iterator[FinishedRun]:
    """Yield the runs at equal epochs that are the same at equal updates or time: `Comparison` does not repeat them.

    Those are the runs of the reference, and at equal updates those with as many as the reference; only where the
    comparison has runs of its own with that budget.
    """
    found = {(run.group, run.method, run.config.seed) for run in runs}
    groups = {run.group for run in runs}
    equal_epochs = [run for run in runs if run.group.rpartition("/")[2] == "equal-epochs"]
    updates = {(run.group, run.method, run.config.seed): run.summary["updates"] for run in equal_epochs}
    for run in equal_epochs:
        reference = min((method for group, method, _ in updates if group == run.group), key=METHODS.index)
        goal = updates.get((run.group, reference, run.config.seed))
        for budget in BUDGETS[1:]:
            group = run.group.removesuffix("epochs") + budget
            is_same = run.method == reference or (budget == "updates" and run.summary["updates"] == goal)
            if group in groups and is_same and (group, run.method, run.config.seed) not in found:
                yield replace(run, group=group)


def make_rows(runs: Sequence[FinishedRun], references: References) -> list[dict[str, Any]]:
    """Return a row for each group and setting of an experiment, over its seeds."""
    settings: dict[tuple[str, TrainConfig], list[FinishedRun]] = {}
    for run in [*runs, *stand_ins(runs)]:
        settings.setdefault((run.group, _setting(run)), []).append(run)
    varied = _varied(runs)
    rows = [_row(config, seeds, varied, references) for (_, config), seeds in settings.items()]
    return sorted(rows, key=_place)


def _place(row: Mapping[str, Any]) -> tuple[Any, ...]:
    parent, _, last = row["group"].rpartition("/")
    budget = last.removeprefix("equal-")
    place = BUDGETS.index(budget) if last != budget and budget in BUDGETS else len(BUDGETS)
    return parent, place, last, -METHODS.index(row["method"]), row["num_chunks"], row["differs"]


def _row(
    config: TrainConfig, runs: Sequence[FinishedRun], varied: Sequence[str], references: References
) -> dict[str, Any]:
    run, unused = runs[0], UNUSED[config.method]
    row: dict[str, Any] = {"group": run.group, "method": config.method}
    row["num_chunks"] = config.bptt_losses if config.method == "bptt" else config.num_chunks
    row["engine"] = config.engine
    row.update({name: None if name in unused else getattr(config, name) for name in ("form", "coupling", "alpha")})
    row["differs"] = ", ".join(f"{name} {getattr(config, name)}" for name in varied if name not in unused)
    row.update(summary_row([seed.summary for seed in runs], run.metric))
    for name in other_figures(runs):
        values = [seed.summary[f"test_{name}"] for seed in runs]
        row[f"test_{name}_mean"], row[f"test_{name}_sd"] = mean_and_sd(values)
    reference = references.get((run.name, config.method), Reference(None, None, ""))
    mean = row[f"test_{run.metric}_mean"]
    for name in ("published", "replicated"):
        figure = getattr(reference, name)
        row[name], row[f"to_{name}"] = figure, None if figure is None else mean - figure
    return row


def other_figures(runs: Sequence[FinishedRun]) -> list[str]:
    """Return the names of the test figures that all runs have besides the metric, two at most."""
    names = [name for name in runs[0].summary if name.startswith("test_") and name != f"test_{runs[0].metric}"]
    return [name[5:] for name in names if all(_is_number(run.summary.get(name)) for run in runs)][:2]


_SHOWN = ("method", "seed", "num_chunks", "bptt_losses", "engine", "form", "coupling", "alpha", "epochs", "max_updates")


def _varied(runs: Sequence[FinishedRun]) -> list[str]:
    """Return the fields that differ among the runs of an experiment and have no column of their own."""
    names = [field.name for field in fields(TrainConfig)]
    shown = (*_SHOWN, "max_seconds", *_HARMLESS)
    values = {
        name: {getattr(run.config, name) for run in runs if name not in UNUSED[run.config.method]} for name in names
    }
    return [name for name in names if name not in shown and len(values[name]) > 1]


# -- the page --------------------------------------------------------------------------------------------------------


def _sections(found: Results, out: Path, commands: Path, references: References) -> Iterator[str]:
    num_runs = sum(len(runs) for runs in found.experiments.values())
    yield _INTRODUCTION.format(num_runs=num_runs, num_experiments=len(found.experiments))
    for name, runs in sorted(found.experiments.items()):
        yield from _experiment(name, runs, command_text(name, commands), references)
        picture = out / "figures" / f"results-{name}.png"
        draw_results(_panels(runs), runs[0].metric, name, picture)
        yield f"![Validation {runs[0].metric} of {name}](figures/{picture.name})\n"
    yield "## Left out\n"
    yield "\n".join(f"* `{path}`: {reason}" for path, reason in found.left_out.items()) or "Nothing."
    yield ""


_INTRODUCTION = """\
# Results

Generated by `fptt report` from the summaries of {num_runs} finished runs of {num_experiments} experiments; do not edit.

Test figures are means ± sample standard deviations over the seeds, of the weights with the best validation figure;
epochs, updates and seconds are means. A distance is the figure here minus that of others, in the unit of the metric.
"""


def _experiment(name: str, runs: Sequence[FinishedRun], command: str | None, references: References) -> Iterator[str]:
    rows = make_rows(runs, references)
    metric = runs[0].metric
    yield f"## {name}\n"
    yield f"{opening(_example(runs).config, metric)}\n"
    yield "Command: no command file.\n" if command is None else f"```bash\n{command}\n```\n"
    yield markdown_table(results_cells(rows, metric, other_figures(runs)))
    methods = {(name, run.method) for run in runs}
    for source in dict.fromkeys(reference.source for key, reference in references.items() if key in methods):
        yield f"Figures of others: {source}\n"


def _example(runs: Sequence[FinishedRun]) -> FinishedRun:
    """Return the run whose settings stand for all: one of the reference with a budget of epochs, if there is one."""
    return min(runs, key=lambda run: (run.config.epochs is None, METHODS.index(run.config.method), run.path))


def _panels(runs: Sequence[FinishedRun]) -> dict[str, Curves]:
    """Return what is drawn against epochs and updates: of a comparison the runs at equal ones, otherwise all runs."""
    is_comparison = any(run.group == "equal-epochs" for run in runs)
    chosen = {"epoch": runs, "updates": runs}
    if is_comparison:
        everything = [*runs, *stand_ins(runs)]
        at_equal_updates = any(run.group == "equal-updates" for run in runs)
        groups = {"epoch": "equal-epochs", "updates": "equal-updates" if at_equal_updates else "equal-epochs"}
        chosen = {column: [run for run in everything if run.group == group] for column, group in groups.items()}
    return {
        column: {method: [run.metrics for run in some if run.method == method] for method in reversed(METHODS)}
        for column, some in chosen.items()
    }
