"""The commands about one run: `fptt train`, `fptt evaluate`, `fptt sample`."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import tyro
from rich.console import Console

from fptt.experiments.commands.defaults import Origin, starting_config
from fptt.experiments.configs.config import TrainConfig
from fptt.experiments.configs.recipes import task_config
from fptt.experiments.process.console import say
from fptt.experiments.process.errors import UserError
from fptt.experiments.process.rank import is_leader
from fptt.experiments.training.folder import RunFolder

Flat = tyro.conf.OmitArgPrefixes


@dataclass(frozen=True, kw_only=True)
class Train(Origin):
    """Train one model with one method on one task.

    The defaults are those of the task's recipe: try `fptt train --task mnist --help`. Memory, time and updates differ
    between methods; for a fair comparison see `fptt compare`.

    fptt train --method tbptt --num-chunks 16                  TBPTT on the digits, 4 pixels a chunk

    fptt train --recipe psmnist-small --data FOLDER            PS-MNIST from a folder of Parquet files

    fptt train --config out/digits/config.yaml --seed 1        an earlier run again, with another seed

    fptt train --resume --out out/digits                       a run that was interrupted, to its end
    """

    run: Flat[TrainConfig]
    out: Path | None = None
    """Folder for weights, figures and picture; out/TASK-METHOD-SEED by default."""
    overwrite: bool = False
    """Replace what is in the folder."""
    resume: bool = False
    """Go on with the interrupted run in the folder --out, bit for bit as if it had never stopped."""

    def __call__(self, console: Console) -> None:
        """Train, and say where everything is."""
        run = self._interrupted_run() if self.resume else with_absolute_data(self.run)
        folder = RunFolder(self.out or Path("out") / f"{run.task}-{run.method}-{run.seed}")
        if is_leader() and not (self.overwrite or self.resume):
            folder.check_free()
        say(console, f"{run.method.upper()} on {run.task}, seed {run.seed}, into {folder.path}")
        from fptt.experiments.training.loop import train  # seconds of loading, after the first sign of life

        summary = train(run, folder, console, resume=self.resume)
        if not summary:  # the first process has it
            return
        metric = next(name for name in summary if name.startswith("test_"))
        say(
            console,
            f"{metric.replace('_', ' ')} {summary[metric]:.4f} (weights of epoch {summary['best_epoch']}, chosen by "
            f"validation), {summary['updates']:,} updates, {summary['seconds']:.1f} s of training",
        )
        say(console, f"learning curves: {folder.curves_file}\nsummary: {folder.summary_file}")

    def _interrupted_run(self) -> TrainConfig:
        """Return the config of the run to go on with."""
        if self.out is None:
            raise UserError("resume needs the run's folder: give it by --out.")
        return RunFolder(self.out).read_config()


@dataclass(frozen=True, kw_only=True)
class Evaluate:
    """Measure the weights of a run folder on the test data again; prints the figures as JSON."""

    folder: tyro.conf.Positional[Path]
    """The run folder."""
    averages: bool = False
    """Measure FPTT's averages instead of the weights."""
    data: str | None = None
    """Where the data are now, if not where the run read them."""

    def __call__(self, console: Console) -> None:
        """Measure and print."""
        from fptt.experiments.training.evaluation import evaluate_folder

        console.print_json(json.dumps(evaluate_folder(self.folder, averages=self.averages, data=self.data)))


@dataclass(frozen=True, kw_only=True)
class Sample:
    """Let a language model write: what it has learned from its text.

    fptt sample out/text-fptt-0 --prompt "ROMEO:" --temperature 0.8
    """

    folder: tyro.conf.Positional[Path]
    """The run folder of a task with a text."""
    prompt: str = "\n"
    """What the text begins with."""
    num_tokens: int = 400
    """Characters, or words, to write."""
    temperature: float = 0.8
    """0 for the most likely token each time; 1 for draws from the model's own distribution; above 1 wilder."""
    seed: int = 0
    """Of the draws."""
    averages: bool = False
    """Use FPTT's averages instead of the weights."""

    def __call__(self, console: Console) -> None:
        """Write and print."""
        from fptt.experiments.training.sampling import sample_text

        names = ("prompt", "num_tokens", "temperature", "seed", "averages")
        say(console, sample_text(self.folder, **{name: getattr(self, name) for name in names}))


def with_absolute_data(setting: Any) -> Any:
    """Return a setting whose local data are named by an absolute path, so that they are found from anywhere."""
    if setting.data is None or not Path(setting.data).expanduser().exists():
        return setting
    return replace(setting, data=str(Path(setting.data).expanduser().resolve()))


def parse_train(arguments: Sequence[str]) -> Train:
    """Return what `fptt train` is asked to do."""
    default = Train(run=starting_config(arguments))
    command = tyro.cli(Train, args=arguments, prog="fptt train", default=default)
    if command.resume and replace(command, run=TrainConfig(), out=None) != Train(run=TrainConfig(), resume=True):
        raise UserError("resume goes on with the folder's own config: no overwrite, config or recipe fits it.")
    if command.resume and command.run != task_config("digits"):
        raise UserError("resume goes on with the folder's own config: give --out and no other option.")
    return command


def parse_evaluate(arguments: Sequence[str]) -> Evaluate:
    """Return what `fptt evaluate` is asked to do."""
    return tyro.cli(Evaluate, args=arguments, prog="fptt evaluate")


def parse_sample(arguments: Sequence[str]) -> Sample:
    """Return what `fptt sample` is asked to do."""
    return tyro.cli(Sample, args=arguments, prog="fptt sample")
