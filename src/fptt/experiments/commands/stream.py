"""The command about streams: `fptt stream`."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro
from rich.console import Console

from fptt.experiments.commands.defaults import check_folder, check_resumption, with_absolute_data
from fptt.experiments.configs.config import StreamConfig
from fptt.experiments.process.console import say


@dataclass(frozen=True, kw_only=True)
class Stream:
    """Learn from a stream, predicting each step before learning it (progressive validation).

    The recordings come one after another, each once, and none is kept; each starts from the initial state. A chunk is
    predicted before its labels are used, with the weights at its start. Consecutive labels are so often equal that the
    last label is a very good prediction: only a --delay makes the comparison meaningful.

    fptt stream --data FOLDER --limit 50000            a first look

    fptt stream --data FOLDER --delay 500 --baselines  labels 500 steps late, beside River's logistic regression

    fptt stream --resume --out out/hapt                a stream that was interrupted, to its end
    """

    stream: tyro.conf.OmitArgPrefixes[StreamConfig]
    out: Path | None = None
    """Folder for summary, rolling accuracies, plot and learner; out/stream-TASK-METHOD-SEED by default."""
    overwrite: bool = False
    """Replace what is in the folder."""
    resume: bool = False
    """Resume the interrupted stream in the folder --out, bitwise as if it had never stopped."""

    def __call__(self, console: Console) -> None:
        """Stream, and print where everything is."""
        config = with_absolute_data(self.stream)
        path = self.out or Path("out") / f"stream-{config.task}-{config.method}-{config.seed}"
        check_folder(path)
        what = "resuming" if self.resume else f"{config.method.upper()} on the stream {config.task}, seed {config.seed}"
        say(console, f"{what}, into {path}")
        from fptt.experiments.streams.stream import (  # seconds of loading, after the first sign of life
            StreamFolder,
            resume,
            stream,
        )

        folder = StreamFolder(path)
        summary = resume(folder, console) if self.resume else stream(config, folder, console, overwrite=self.overwrite)
        baselines = ", ".join(
            f"{name.replace('_', ' ')} {metrics['accuracy']:.4f}" for name, metrics in summary["baselines"].items()
        )
        growth = summary["memory_growth_percent"]
        growth = "an unknown amount" if growth is None else f"{growth:.1f} % after the warm-up"
        say(
            console,
            f"progressive accuracy {summary['accuracy']:.4f}, macro F1 {summary['macro_f1']:.4f} ({baselines}) on "
            f"{summary['labeled_steps']:,} labeled of {summary['steps']:,} steps\n"
            f"{summary['updates']:,} updates in {summary['seconds']:.1f} s of learning, "
            f"{summary['steps_per_second']:,.0f} steps/s; memory grew by {growth}\n"
            f"plot: {folder.plot_file}\nsummary: {folder.summary_file}",
        )


def parse(name: str, arguments: Sequence[str]) -> Stream:
    """Return what the arguments of the command ask for."""
    check_resumption(arguments)
    return tyro.cli(Stream, args=arguments, prog=f"fptt {name}", default=Stream(stream=StreamConfig()))
