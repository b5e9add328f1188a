"""The command about streams: `fptt stream`."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro
from rich.console import Console

from fptt.experiments.commands.defaults import GROUPED, check_folder, check_resumption, with_absolute_data
from fptt.experiments.configs.config import StreamConfig
from fptt.experiments.process.console import say
from fptt.experiments.process.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Stream:
    """Learn from a stream, predicting each step before learning it (progressive validation).

    Rows of a table, or recordings, come one after another, each once, and none is kept; each recording starts from the
    initial state. A chunk is predicted before its labels are used, with the weights at its start. Consecutive labels
    are so often equal that the last label is a very good prediction: only a --delay makes the comparison meaningful.

    fptt stream --task table --data FILE.csv --target state        the rows of a CSV or Parquet file

    sensor | fptt stream --task table --data - --target state      rows of CSV as they come, without end

    fptt stream --data FOLDER --delay 500 --baselines              HAPT, labels 500 steps late, beside River's model

    fptt stream --resume --out out/stream                          a stream that was interrupted, to its end
    """

    stream: tyro.conf.OmitArgPrefixes[StreamConfig]
    out: Path | None = None
    """Folder for summary, rolling metrics, plot and learner; out/stream-TASK-METHOD-SEED by default."""
    overwrite: bool = False
    """Replace the stream in the folder."""
    resume: bool = False
    """Resume the interrupted stream in the folder --out, bitwise as if it had never stopped. Standard input must have
    the same rows again; those that were learned from are skipped."""
    next_rows: bool = False
    """With --resume: standard input has the next rows alone, after a header, and not again those learned from."""

    def __call__(self, console: Console) -> None:
        """Stream, and print where everything is."""
        config = with_absolute_data(self.stream)
        path = self.out or Path("out") / f"stream-{config.task}-{config.method}-{config.seed}"
        check_folder(path)
        what = "resuming" if self.resume else f"{config.method.upper()} on the stream {config.task}, seed {config.seed}"
        say(console, f"{what}, into {path}")
        # seconds of loading, after the first sign of life
        from fptt.experiments.streams.folder import StreamFolder
        from fptt.experiments.streams.stream import resume, stream

        folder = StreamFolder(path)
        if self.resume:
            summary = resume(folder, console, next_rows=self.next_rows)
        else:
            summary = stream(config, folder, console, overwrite=self.overwrite)
        metric = "accuracy" if "accuracy" in summary else "mse"
        baselines = ", ".join(
            f"{name.replace('_', ' ')} {_shown(metrics[metric])}" for name, metrics in summary["baselines"].items()
        )
        f1 = f", macro F1 {_shown(summary['macro_f1'])}" if metric == "accuracy" else ""
        growth = summary["memory_growth_percent"]
        growth = "an unknown amount" if growth is None else f"{growth:.1f} % after the warm-up"
        gaps = ""
        if summary.get("gaps"):
            gaps = f"; {summary['gaps']:,} gaps, {summary['skipped_rows']:,} rows skipped"
        say(
            console,
            f"progressive {metric} {_shown(summary[metric])}{f1} ({baselines}) on "
            f"{summary['labeled_steps']:,} labeled of {summary['steps']:,} steps{gaps}\n"
            f"{summary['updates']:,} updates in {summary['seconds']:.1f} s of learning, "
            f"{summary['steps_per_second']:,.0f} steps/s; memory grew by {growth}\n"
            f"plot: {folder.plot_file}\nsummary: {folder.summary_file}",
        )


def _shown(metric: float | None) -> str:
    return "unknown" if metric is None else f"{metric:.4g}"


def parse(name: str, arguments: Sequence[str]) -> Stream:
    """Return what the arguments of the command ask for."""
    others = [argument for argument in arguments if argument not in ("--next-rows", "--next_rows")]  # tyro takes both
    check_resumption(others)
    if len(others) < len(arguments) and "--resume" not in arguments:
        raise UserError("next_rows belongs to --resume.")
    return tyro.cli(
        Stream, args=arguments, prog=f"fptt {name}", default=Stream(stream=StreamConfig()), registry=GROUPED
    )
