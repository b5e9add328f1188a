"""The commands about one run: `fptt train`, `fptt evaluate`, `fptt predict`, `fptt export`, `fptt sample`."""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import tyro
from pydantic.dataclasses import dataclass as checked_dataclass
from rich.console import Console

from fptt.experiments.commands.defaults import (
    GROUPED,
    Grouped,
    Origin,
    check_file,
    check_folder,
    check_resumption,
    check_use,
    starting_config,
    with_absolute_data,
)
from fptt.experiments.configs.checked import STRICT, Checked, Count, NonNegative, Seed
from fptt.experiments.configs.config import TrainConfig
from fptt.experiments.process.console import say
from fptt.experiments.process.errors import UserError
from fptt.experiments.process.files import replaced
from fptt.experiments.process.rank import is_leader
from fptt.experiments.training.folder import RunFolder
from fptt.experiments.training.loggers import parse_loggers


@dataclass(frozen=True, kw_only=True)
class Train(Origin):
    """Train one model with one method on one task.

    The defaults are those of the task's recipe: try `fptt train --task mnist --help`. Memory, time and updates differ
    between methods; for a fair comparison see `fptt compare`.

    fptt train --method tbptt --num-chunks 16                  TBPTT on the digits, 4 pixels a chunk

    fptt train --recipe psmnist-small --data FOLDER            PS-MNIST from a folder of Parquet files

    fptt train --config out/digits/config.yaml --seed 1        an earlier run again, with another seed

    fptt train --resume --out out/digits                       a run that was interrupted, to its end

    fptt train --resume --out out/digits --accelerator cpu     the same on another machine
    """

    run: Grouped[TrainConfig]
    out: Path | None = None
    """Folder for weights, metrics and plots; out/TASK-METHOD-SEED by default."""
    overwrite: bool = False
    """Replace what is in the folder."""
    resume: bool = False
    """Resume the interrupted run in the folder --out, bitwise as if it had never stopped.
    On another machine --data, --accelerator and --threads may be given beside it."""
    logger: str = "csv"
    """Where the metrics go: csv, tensorboard, wandb, several with commas. metrics.csv there is always; the others need
    pip install 'fptt[tensorboard]' or 'fptt[wandb]'."""
    moved: tyro.conf.Suppress[tuple[str, ...]] = ()
    """Of `MOVABLE`, the options given beside --resume."""

    def __call__(self, console: Console) -> None:
        """Train, and print where everything is."""
        loggers = parse_loggers(self.logger)
        run = with_absolute_data(self.run)
        path = self.out or Path("out") / f"{run.task}-{run.method}-{run.seed}"
        check_folder(path)
        folder = RunFolder(path)
        if self.resume:
            run = replace(folder.read_config(), **{name: getattr(run, name) for name in self.moved})
            # with a checkpoint it may have been killed before the last of its files was written
            if folder.has_finished() and not folder.checkpoints.files():
                raise UserError(f"the run in {path} is finished: there is nothing to resume.")
        elif is_leader() and not self.overwrite:
            folder.check_free()
        say(console, f"{run.method.upper()} on {run.task}, seed {run.seed}, into {folder.path}")
        from fptt.experiments.tasks.scores import metric_form
        from fptt.experiments.training.loop import train  # seconds of loading, after the first sign of life

        summary = train(run, folder, console, resume=self.resume, overwrite=self.overwrite, loggers=loggers)
        if not summary:  # the first process has it
            return
        metric = f"test_{summary['metric']}"
        shown = format(summary[metric], metric_form(metric, summary[metric]))
        say(
            console,
            f"{metric.replace('_', ' ')} {shown} (weights of epoch {summary['best_epoch']}, chosen by "
            f"validation), {summary['updates']:,} updates, {summary['seconds']:.1f} s of training",
        )
        say(console, f"learning curves: {folder.curves_file}\nsummary: {folder.summary_file}")


@dataclass(frozen=True, kw_only=True)
class Evaluate:
    """Measure the weights of a run folder on the test data again; prints the metrics as JSON."""

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
class Predict:
    """Predict new sequences with a trained model.

    Inputs of the task sequences are those of the data, by their names, and are standardized as in training; other tasks
    prepare theirs, as pixels in [0, 1], and this command does not. A target is not needed. The rows are those of the
    sequences, or of the steps where the model has been trained with a target a step.

    fptt predict out/first --data new.csv --out predictions.csv
    """

    folder: tyro.conf.Positional[Path]
    """The run folder."""
    data: Path
    """File of sequences: .npz, .csv or .parquet."""
    out: Path
    """File for the predictions: .csv or .parquet."""
    averages: bool = False
    """Use FPTT's averages instead of the weights."""

    def __call__(self, console: Console) -> None:
        """Predict, and print where the predictions are."""
        if self.out.suffix not in (".csv", ".parquet"):
            raise UserError(f"out must be a file of the kinds .csv, .parquet, got {str(self.out)!r}.")
        check_file(self.out)
        folder = RunFolder(self.folder)
        files = [self.data, *folder.files(), *_local_data(folder.read_config())]
        needed = next((file for file in files if _is_same(file, self.out)), None)
        if needed is not None:
            raise UserError(f"out must be another file than {needed}, which the predictions would replace.")
        from fptt.experiments.training.loaded_run import LoadedRun

        frame = LoadedRun.read(self.folder, averages=self.averages).predict_file(self.data)
        with replaced(self.out) as file:
            frame.to_csv(file, index=False) if self.out.suffix == ".csv" else frame.to_parquet(file, index=False)
        say(console, f"{len(frame):,} predictions: {self.out}")


def _local_data(config: TrainConfig) -> list[Path]:
    """Return the files on this machine that a run was trained on."""
    path = os.path.expanduser(config.data or "")
    if not os.path.isdir(path):
        return [Path(path)]
    from fptt.experiments.tasks.sequences import PARTS  # seconds of loading, and only here

    files = [Path(path, name) for name in os.listdir(path)]
    return [file for file in files if file.stem in PARTS or config.task != "sequences"]


def _is_same(one: Path, other: Path) -> bool:
    """Return whether two paths lead to the same file, perhaps by a link."""
    try:
        return one.samefile(other)
    except (OSError, ValueError):  # one of them is not there, or no system has such a name
        return False


@dataclass(frozen=True, kw_only=True)
class Export:
    """Write one time step of a trained model as a program of torch.export, which needs torch alone to run, or of ONNX.

    It takes inputs (B, D) and a state, at first zeros, and returns the probabilities of the classes, or numbers, and
    the next state. Inputs of the task sequences are those of the data; other tasks prepare theirs, and the program does
    not. Before it is written, it is run beside the model on the same sequences.

    fptt export out/first --out model.pt2

    fptt export out/first --to onnx                  needs: pip install 'fptt[onnx]'
    """

    folder: tyro.conf.Positional[Path]
    """The run folder."""
    to: Literal["pt2", "onnx"] = "pt2"
    """Format."""
    out: Path | None = None
    """The file; model.pt2 or model.onnx in the run folder by default."""
    averages: bool = False
    """Use FPTT's averages instead of the weights."""

    def __call__(self, console: Console) -> None:
        """Export, and print where the program is."""
        out = self.out or self.folder / f"model.{self.to}"
        check_file(out)
        if out.suffix != f".{self.to}":
            raise UserError(f"out must be a .{self.to} file, as --to {self.to} writes it, got {str(out)!r}.")
        from fptt.experiments.training.export import export_step
        from fptt.experiments.training.loaded_run import LoadedRun

        export_step(LoadedRun.read(self.folder, averages=self.averages), out, self.to)
        say(console, f"exported, and compared with the model: {out}")


@checked_dataclass(frozen=True, kw_only=True, config=STRICT)
class Sample(Checked):
    """Generate text with a trained language model.

    fptt sample out/text-fptt-0 --prompt "ROMEO:" --temperature 0.8
    """

    folder: tyro.conf.Positional[Path]
    """The run folder of a task with a text."""
    prompt: str | None = None
    """Start of the text; by default a new line, or the most frequent token where the training text has no lines."""
    num_tokens: Count = 400
    """Characters, or words, to generate."""
    temperature: NonNegative = 0.8
    """0 for the most likely token each time; 1 for draws from the model's own distribution; above 1 wilder."""
    seed: Seed = 0
    """Seed of the draws."""
    averages: bool = False
    """Use FPTT's averages instead of the weights."""

    def __call__(self, console: Console) -> None:
        """Generate and print."""
        from fptt.experiments.training.sampling import sample_text

        names = ("prompt", "num_tokens", "temperature", "seed", "averages")
        say(console, sample_text(self.folder, **{name: getattr(self, name) for name in names}))


def parse(name: str, arguments: Sequence[str]) -> Train | Evaluate | Predict | Export | Sample:
    """Return what the arguments of a command ask for."""
    prog = f"fptt {name}"
    if name == "train":
        moved = check_resumption(arguments, can_move=True)
        start = starting_config(arguments)
        train = tyro.cli(Train, args=arguments, prog=prog, default=Train(run=start, moved=moved), registry=GROUPED)
        check_use(train.run, start)
        return train
    kinds: dict[str, type[Evaluate | Predict | Export | Sample]] = {
        "evaluate": Evaluate,
        "predict": Predict,
        "export": Export,
        "sample": Sample,
    }
    return tyro.cli(kinds[name], args=arguments, prog=prog)
