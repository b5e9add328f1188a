"""The commands `fptt train`, `fptt evaluate`, `fptt compare` and `fptt bench`."""

import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro
from rich.console import Console

from fptt import __version__
from fptt.experiments.announcements import announcements_on
from fptt.experiments.benchmarks.commands import parse_bench
from fptt.experiments.config import Setting, TrainConfig
from fptt.experiments.errors import UserError
from fptt.experiments.recipes import RECIPES, read_config, recipe

if TYPE_CHECKING:
    from fptt.experiments.run_folder import RunFolder

INTERRUPTED = 130
BROKEN_PIPE = 141

OVERVIEW = f"""\
fptt {__version__}: train recurrent networks forward in time, with FPTT beside BPTT and TBPTT

  fptt train      train one model on one task; leaves a folder with weights, figures and a picture
  fptt evaluate   measure a trained model on the test data again
  fptt compare    train with several methods and seeds; a table at equal epochs, updates and time
  fptt bench      measure the time and memory of the methods on this machine

tasks: {", ".join(RECIPES)}          more: fptt COMMAND --help

first steps:
  fptt train --task digits --method fptt --out out/first
  fptt evaluate out/first
  fptt compare --task digits --methods bptt,tbptt,fptt --seeds 3 --out out/compare
"""

Flat = tyro.conf.OmitArgPrefixes


@dataclass(frozen=True, kw_only=True)
class Train:
    """Train one model with one method on one task.

    The defaults are those of the task's recipe: try `fptt train --task mnist --help`. Memory, time and updates differ
    between methods; for a fair comparison see `fptt compare`.

    fptt train --method tbptt --num-chunks 16                  TBPTT on the digits, 4 pixels a chunk

    fptt train --task mnist --permuted --data FOLDER           PS-MNIST from a folder of Parquet files

    fptt train --config out/digits/config.yaml --seed 1        an earlier run again, with another seed
    """

    run: Flat[TrainConfig]
    out: Path | None = None
    """Folder for weights, figures and picture; out/TASK-METHOD-SEED by default."""
    overwrite: bool = False
    """Replace what is in the folder."""
    config: Path | None = None
    """Start from the config.yaml of another run instead of the recipe; other options still apply."""
    resume: bool = False
    """Go on with the interrupted run in the folder --out, bit for bit as if it had never stopped."""

    def __call__(self, console: Console) -> None:
        """Train, and say where everything is."""
        from fptt.experiments.run_folder import RunFolder

        run = self.run
        if self.resume:
            run = self._interrupted_run(RunFolder(self.out) if self.out else None)
        if run.data is not None and Path(run.data).expanduser().is_dir():
            run = replace(run, data=str(Path(run.data).expanduser().resolve()))
        folder = RunFolder(self.out or Path("out") / f"{run.task}-{run.method}-{run.seed}")
        if not (self.overwrite or self.resume):
            folder.check_free()
        _say(console, f"{run.method.upper()} on {run.task}, seed {run.seed}, into {folder.path}")
        from fptt.experiments.training import train  # seconds of loading, after the first sign of life

        summary = train(run, folder, console, resume=self.resume)
        metric = next(name for name in summary if name.startswith("test_"))
        _say(
            console,
            f"{metric.replace('_', ' ')} {summary[metric]:.4f} (weights of epoch {summary['best_epoch']}, chosen by "
            f"validation), {summary['updates']:,} updates, {summary['seconds']:.1f} s of training",
        )
        _say(console, f"learning curves: {folder.curves_file}\nsummary: {folder.summary_file}")

    def _interrupted_run(self, folder: "RunFolder | None") -> TrainConfig:
        """Return the config of the run to go on with."""
        if folder is None:
            raise UserError("resume needs the run's folder: give it by --out.")
        if self.overwrite or self.config is not None:
            raise UserError("resume goes on with the folder's own config: neither overwrite nor config fits it.")
        return folder.read_config()


@dataclass(frozen=True, kw_only=True)
class Evaluate:
    """Measure the weights of a run folder on the test data again; prints the figure as JSON."""

    folder: tyro.conf.Positional[Path]
    """The run folder."""
    averages: bool = False
    """Measure FPTT's averages instead of the weights."""
    data: str | None = None
    """Where the data are now, if not where the run read them."""

    def __call__(self, console: Console) -> None:
        """Measure and print."""
        from fptt.experiments.evaluation import evaluate_folder

        console.print_json(json.dumps(evaluate_folder(self.folder, averages=self.averages, data=self.data)))


@dataclass(frozen=True, kw_only=True)
class Compare:
    """Train with several methods and seeds and compare them at equal epochs, equal updates and equal time.

    Every run has a process and a folder of its own. A second call goes on where the first one stopped. At equal updates
    and at equal time the other methods go on until they have made as many updates, or trained for as many seconds, as
    the run of the same seed of FPTT (without it of TBPTT). BPTT has one loss, at the end of the sequence, unless
    --bptt-losses says more.
    """

    setting: Flat[Setting]
    methods: str = "bptt,tbptt,fptt"
    """Comma-separated methods."""
    seeds: int = 3
    """Number of seeds, from 0."""
    out: Path | None = None
    """Folder for all runs, rows (compare.json), table (compare.md) and picture; out/compare-TASK by default."""
    jobs: int = 1
    """Runs at a time; the cores are shared out among them. More than one disturbs the time of recipes with threads."""
    overwrite: bool = False
    """Replace finished runs of other settings in the folder."""
    config: Path | None = None
    """Start from the config.yaml of a run instead of the recipe; other options still apply."""

    def __call__(self, console: Console) -> None:
        """Run what is not finished, and report."""
        from fptt.experiments.comparison import Comparison, parse_methods

        for name in ("seeds", "jobs"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} must be at least 1, got {getattr(self, name)}.")
        out = self.out or Path("out") / f"compare-{self.setting.task}"
        comparison = Comparison(self.setting, parse_methods(self.methods), range(self.seeds), out)
        comparison.run(console, self.jobs, overwrite=self.overwrite)
        comparison.report(console)


def _train(arguments: Sequence[str]) -> Train:
    default = Train(run=_starting_point(arguments))
    return tyro.cli(Train, args=arguments, prog="fptt train", default=default)


def _evaluate(arguments: Sequence[str]) -> Evaluate:
    return tyro.cli(Evaluate, args=arguments, prog="fptt evaluate")


def _compare(arguments: Sequence[str]) -> Compare:
    default = Compare(setting=_setting(_starting_point(arguments)))
    return tyro.cli(Compare, args=arguments, prog="fptt compare", default=default)


Command = Callable[[Console], None]

COMMANDS: dict[str, Callable[[Sequence[str]], Command]] = {
    "train": _train,
    "evaluate": _evaluate,
    "compare": _compare,
    "bench": parse_bench,
}
"""What each command makes of its arguments."""


def run(arguments: Sequence[str]) -> int:
    """Run the command line and return its exit code: 0, 2 for a user's slip, 130 after Ctrl-C."""
    console, errors = Console(), Console(stderr=True)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(OVERVIEW)
        return 0
    if arguments[0] == "--version":
        print(__version__)
        return 0
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # both end a run in good order
    try:
        command = _command(arguments[0], arguments[1:])
        with announcements_on(console):
            command(console)
    except UserError as error:
        _say(errors, f"fptt: {error}")
        return 2
    except BrokenPipeError:  # the reader, such as `head`, has gone: nothing is left to tell
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    except KeyboardInterrupt:
        _say(errors, "fptt: interrupted.")
        return INTERRUPTED
    return 0


def _command(name: str, arguments: Sequence[str]) -> Command:
    if name not in COMMANDS:
        raise UserError(f"unknown command {name!r}; there are {', '.join(COMMANDS)}.")
    return COMMANDS[name](arguments)


def _starting_point(arguments: Sequence[str]) -> TrainConfig:
    """Return the config whose values are the defaults: a file's, or the recipe of the task."""
    given = tyro.cli(Start, args=[*arguments], return_unknown_args=True, add_help=False)[0]
    if given.config is not None:
        return read_config(given.config)
    return recipe(given.task, given.engine)


@dataclass(frozen=True)
class Start:
    """The options that decide about the defaults of all others."""

    task: str = "digits"
    engine: str = "eager"
    config: Annotated[Path | None, tyro.conf.arg(help="")] = None


def _setting(config: TrainConfig) -> Setting:
    return Setting(**{field.name: getattr(config, field.name) for field in fields(Setting)})


def _say(console: Console, text: str) -> None:
    console.print(text, highlight=False, soft_wrap=True, markup=False)
