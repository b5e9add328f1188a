"""The command about streams: `fptt stream`."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import tyro
from rich.console import Console

from fptt.experiments.commands.runs import with_absolute_data
from fptt.experiments.configs.stream_config import StreamConfig
from fptt.experiments.process.console import say
from fptt.experiments.process.errors import UserError

Flat = tyro.conf.OmitArgPrefixes


@dataclass(frozen=True, kw_only=True)
class Stream:
    """Learn from a stream as it comes: every step is answered, then learned (progressive validation).

    The recordings come one after another, each once, and none is kept; the hidden state begins anew with each. The
    answers of a chunk are given before its labels are used, with the weights at its start. Labels follow one another so
    closely that the last label is a very good answer: a --delay makes the comparison mean something.

    fptt stream --data FOLDER --limit 50000            a first look

    fptt stream --data FOLDER --delay 500 --baselines  labels 500 steps late, beside River's logistic regression

    fptt stream --resume --out out/hapt                a stream that was interrupted, to its end
    """

    stream: Flat[StreamConfig]
    out: Path | None = None
    """Folder for summary, rolling accuracies, plot and learner; out/stream-TASK-METHOD-SEED by default."""
    overwrite: bool = False
    """Replace what is in the folder."""
    resume: bool = False
    """Resume the interrupted stream in the folder --out, bitwise as if it had never stopped."""

    def __call__(self, console: Console) -> None:
        """Stream, and say where everything is."""
        config = with_absolute_data(self.stream)
        path = self.out or Path("out") / f"stream-{config.task}-{config.method}-{config.seed}"
        what = "going on" if self.resume else f"{config.method.upper()} on the stream {config.task}, seed {config.seed}"
        say(console, f"{what}, into {path}")
        from fptt.experiments.streams.stream import (  # seconds of loading, after a sign of life
            StreamFolder,
            resume,
            stream,
        )

        folder = StreamFolder(path)
        summary = resume(folder, console) if self.resume else stream(config, folder, console, overwrite=self.overwrite)
        baselines = ", ".join(
            f"{name.replace('_', ' ')} {metrics['accuracy']:.4f}" for name, metrics in summary["baselines"].items()
        )
        say(
            console,
            f"progressive accuracy {summary['accuracy']:.4f}, macro F1 {summary['macro_f1']:.4f} ({baselines}) on "
            f"{summary['labeled_steps']:,} labeled of {summary['steps']:,} steps\n"
            f"{summary['updates']:,} updates in {summary['seconds']:.1f} s of learning, "
            f"{summary['steps_per_second']:,.0f} steps/s; memory grew by {_percent(summary['memory_growth_percent'])}\n"
            f"plot: {folder.plot_file}\nsummary: {folder.summary_file}",
        )


def _percent(value: float | None) -> str:
    return "an unknown amount" if value is None else f"{value:.1f} % after the warm-up"


def parse_stream(arguments: Sequence[str]) -> Stream:
    """Return what `fptt stream` is asked to do."""
    command = tyro.cli(Stream, args=arguments, prog="fptt stream", default=Stream(stream=StreamConfig()))
    if command.resume and command.out is None:
        raise UserError("resume needs the folder of the stream: give it by --out.")
    if command.resume and replace(command, out=None) != Stream(stream=StreamConfig(), resume=True):
        raise UserError("resume goes on with the stream's own settings: give --out and no other option.")
    return command
