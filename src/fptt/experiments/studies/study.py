"""A study: runs of several settings and seeds in one folder, and the report on them."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, ClassVar

from rich.console import Console

from fptt.experiments.configs.config import DataSetting, TrainConfig
from fptt.experiments.process.console import say
from fptt.experiments.process.errors import UserError, one_line
from fptt.experiments.process.files import replace_text
from fptt.experiments.studies.finished_run import FinishedRun, read_run
from fptt.experiments.studies.launcher import run_all
from fptt.experiments.studies.tables import Row, origins
from fptt.experiments.tasks.registry import load_task
from fptt.experiments.tasks.task import Task
from fptt.experiments.training.build import check_parts
from fptt.experiments.training.folder import check_has_no_run, locked

OF_THE_DATA = ("batch_size", "seed", *(field.name for field in fields(DataSetting)))
"""Fields of which the data of a run depend; a text is cut by the size of a batch."""


class Study(ABC):
    """Runs in one folder, each in a folder of its own, which is the only place where its results are.

    Args:
        out: The folder.

    Attributes:
        limits_of_others: Fields that the study takes from the result of another run: when that is made again, so is
            the run with the limit before.
        runs: The finished runs by their folders.

    Raises:
        UserError: If the folder is that of a run or stream.
    """

    table_file: ClassVar[str]
    plot_file: ClassVar[str]
    limits_of_others: ClassVar[tuple[str, ...]] = ()

    def __init__(self, out: Path) -> None:
        check_has_no_run(out)
        self.out = out
        self.runs: dict[Path, FinishedRun] = {}

    @abstractmethod
    def stages(self) -> Iterator[Mapping[Path, TrainConfig]]:
        """Yield the configs of runs by their folders; those of a later stage may depend on the runs of earlier ones."""

    @abstractmethod
    def rows(self) -> list[dict[str, Any]]:
        """Return a row for each setting, over its seeds."""

    @abstractmethod
    def show(self, rows: Sequence[Row], console: Console) -> None:
        """Print the rows."""

    @abstractmethod
    def markdown(self, rows: Sequence[Row]) -> str:
        """Return the rows as Markdown."""

    @abstractmethod
    def draw(self, rows: Sequence[Row], path: Path) -> None:
        """Draw the plot."""

    @property
    def metric(self) -> str:
        """Name of the metric."""
        return next(iter(self.runs.values())).metric

    def run(self, console: Console, num_jobs: int, *, overwrite: bool = False) -> None:
        """Make every run that is not finished, and read all of them.

        Raises:
            UserError: If another process is at the study, or a run fails, or its results are impossible; see also
                `run_all`.
        """
        for configs in self.stages():
            if configs:
                with locked(self.out):  # a second study here would begin the logs of the runs under way anew
                    run_all(configs, console, num_jobs, overwrite=overwrite, replaceable=self.limits_of_others)
            for path in configs:
                try:
                    self.runs[path] = read_run(path, path.relative_to(self.out).parent.as_posix())
                except UserError as error:
                    raise UserError(f"run {path}: {error}") from error

    def report(self, console: Console) -> None:
        """Print the tables, and write them and the plot."""
        rows = self.rows()
        self.show(rows, console)
        for name, found in origins(rows).items():
            if len(found) > 1:
                say(console, f"warning: these runs are of more than one {name}: {', '.join(found)}")
        replace_text(self.out / self.table_file, self.markdown(rows))
        self.draw(rows, self.out / self.plot_file)
        say(console, f"plot: {self.out / self.plot_file}")


def check_buildable(configs: Mapping[str, TrainConfig]) -> None:
    """Raise UserError, with its name, if a run cannot be built: better than after the start of a process, or of all.

    Args:
        configs: The configs of runs by their names.
    """
    tasks: dict[tuple[Any, ...], Task] = {}
    for name, config in configs.items():
        try:
            data = tuple(getattr(config, field) for field in OF_THE_DATA)
            if data not in tasks:
                tasks[data] = load_task(config, config.seed)
            check_parts(config, tasks[data])
        except (UserError, ValueError, RuntimeError) as error:
            raise UserError(f"{name}: {one_line(error)}") from error
