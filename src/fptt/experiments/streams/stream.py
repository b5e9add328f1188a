"""Progressive validation of a learner and its baselines on a stream, resumed bitwise: `fptt stream`."""

import time
from collections.abc import Generator
from contextlib import closing, nullcontext
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from fptt._methods.fptt import OF_FPTT
from fptt._random_state import RandomState
from fptt.experiments.configs.config import StreamConfig
from fptt.experiments.process.console import make_display, say
from fptt.experiments.process.errors import UnreadableError, UnwritableError, UserError
from fptt.experiments.process.machine import Clock, MemoryMeter, environment, prepare_process
from fptt.experiments.process.signals import Interruption
from fptt.experiments.streams.baselines import BASELINES, RiverSoftmax
from fptt.experiments.streams.folder import StreamFolder
from fptt.experiments.streams.learner import StreamLearner
from fptt.experiments.streams.plot import draw_rolling
from fptt.experiments.streams.recordings import Recordings
from fptt.experiments.streams.scores import METRICS, StreamScores
from fptt.experiments.streams.source import NO_CLASS, Piece, Source
from fptt.experiments.streams.table import STANDARD_INPUT, Table
from fptt.experiments.training.checkpoints import SECONDS_BETWEEN_CHECKPOINTS, load_field
from fptt.experiments.training.folder import locked

STEPS_A_ROW = 1000
WARM_UP = 0.1
"""Part of the stream after which memory should not grow any more."""
WARM_UP_STEPS = 20_000
"""The same, where the length of the stream is not known."""
CPU = torch.device("cpu")
CHECKPOINT_VERSION = 3


# -- the stream ------------------------------------------------------------------------------------------------------


class Streaming:
    """A learner and its baselines on their way through the stream of a config.

    Args:
        config: The stream and the learner.
        folder: Where to write.
        place: Where the stream begins: after a piece of an earlier process. None for its beginning.
        next_rows: Standard input has only what comes after that place.

    Attributes:
        pending: The predictions and targets of the steps that are not scored yet, fewer than a row's.
    """

    def __init__(
        self,
        config: StreamConfig,
        folder: StreamFolder,
        place: dict[str, Any] | None = None,
        *,
        next_rows: bool = False,
    ) -> None:
        _check_options(config)
        prepare_process(config.threads)
        self.config, self.folder = config, folder
        self.source: Source = (
            Recordings(config, place) if config.task == "hapt" else Table(config, place, next_rows=next_rows)
        )
        kind, num_outputs = self.source.kind, self.source.num_outputs
        self.metric = METRICS[kind]
        self.learner = StreamLearner(config, self.source)
        kinds = dict(BASELINES[kind])
        if config.baselines:
            if kind == "regression":
                raise UserError("baselines are of classes, got a regression.")
            kinds["river_softmax"] = RiverSoftmax
        # the first of classes that are numbered as they come would be right without any knowledge
        initial = NO_CLASS if kind == "classes" and not self.source.classes else 0
        self.baselines = {name: baseline(config.delay, num_outputs, initial) for name, baseline in kinds.items()}
        self.scores = StreamScores(["learner", *kinds], kind, num_outputs, config.window)
        self.place = self.source.start
        self.pending: list[dict[str, Tensor]] = []
        self.environment, self.clock, self.seconds = environment(CPU), Clock(CPU), 0.0
        self.interruption = Interruption()
        self.memory: MemoryMeter | None = None
        self.began_at = self.saved_at = 0
        self.saved_time = time.monotonic()
        self.pieces: Generator[Piece, None, None] | None = None

    # -- the loop ----------------------------------------------------------------------------------------------------

    def run(self, console: Console) -> None:
        """Go through all that is left of the stream."""
        progress = 0.0
        say(console, self.source.about)
        with closing(make_display(console)) as display, self.interruption, closing(self._read()) as pieces:
            for piece in pieces:
                self._go_through(piece)
                self.place, progress = piece.place, piece.progress
                is_row = piece.is_last or sum(len(own["targets"]) for own in self.pending) >= STEPS_A_ROW
                if is_row:
                    self._score()
                    display.show(progress, self._progress())
                    self._watch_memory()
                self._save_if_due()
            display.epoch(1.0, self._progress())
        if self.memory is not None:
            self.memory.stop()

    def _read(self) -> Generator[Piece, None, None]:
        """Read the pieces; if nothing can be read any more, or will not be, save what was learned from those before."""
        with closing(self.pieces or self.source.pieces(self.config.chunk_length)) as pieces:
            while True:
                try:
                    with self.interruption.waiting():
                        piece = next(pieces, None)
                except (UnreadableError, KeyboardInterrupt):
                    self.save()
                    raise
                if piece is None:
                    return
                yield piece

    def _go_through(self, piece: Piece) -> None:
        """Predict and learn a piece."""
        given = {name: baseline.predictions(piece) for name, baseline in self.baselines.items()}
        start = self.clock.now()
        predictions = self.learner.step(piece)
        self.seconds += self.clock.now() - start  # of the learner alone: those of the others are not its own
        self.pending.append({"learner": predictions, **given, "targets": piece.targets})

    def _score(self) -> None:
        """Count what is right of the steps that are not scored yet."""
        if self.pending:
            pending = {name: torch.cat([own[name] for own in self.pending]) for name in self.pending[0]}
            targets = pending.pop("targets")
            self.scores.add(pending, targets)
            self.pending = []

    def _watch_memory(self) -> None:
        # a stream is endless: memory that still grows after the warm-up would end it some day
        num_steps = self.source.num_steps
        warm_up = WARM_UP_STEPS if num_steps is None else WARM_UP * num_steps
        if self.memory is None and self.scores.steps - self.began_at >= warm_up:
            self.memory = MemoryMeter(CPU)
            self.memory.start()

    def _progress(self) -> str:
        scores = self.scores
        speed = scores.steps / max(self.seconds, 1e-9)
        rolling = "  ".join(f"{name} {rolling.mean:.4g}" for name, rolling in scores.rolling.items())
        return (
            f"{scores.steps:,} steps  {speed:,.0f} steps/s  {self.metric} of the last {self.config.window:,}: {rolling}"
        )

    # -- checkpoints -------------------------------------------------------------------------------------------------

    def _save_if_due(self) -> None:
        every, is_asked = self.config.checkpoint_steps, self.interruption.is_asked
        # by the clock too: a sensor may take a day for that many steps
        is_due = every is not None and (
            self.scores.steps - self.saved_at >= every
            or time.monotonic() - self.saved_time >= SECONDS_BETWEEN_CHECKPOINTS
        )
        if is_due or is_asked:
            self.save()
        if is_asked:
            raise KeyboardInterrupt

    def save(self) -> None:
        """Write a checkpoint between two chunks."""
        self.folder.checkpoints.write(self.state_dict())
        self.saved_at, self.saved_time = self.scores.steps, time.monotonic()

    def state_dict(self) -> dict[str, Any]:
        """Return everything that the rest of the stream depends on: a nest of tensors and plain values."""
        return {
            "command": "stream",
            "version": CHECKPOINT_VERSION,
            "config": self.config.to_dict(),
            "learner": self.learner.state_dict(),
            "baselines": {name: baseline.state_dict() for name, baseline in self.baselines.items()},
            "scores": self.scores.state_dict(),
            "place": self.place,
            "pending": list(self.pending),
            "seconds": self.seconds,
            "random": RandomState.capture(CPU, include_others=True).state_dict(),
        }

    @classmethod
    def of(cls, state: dict[str, Any], folder: StreamFolder, *, next_rows: bool = False) -> "Streaming":
        """Return the stream whose `state_dict` this is, at its place.

        Raises:
            UserError: If it is of something else, of another version, or of other data.
            DamagedCheckpointError: If a field is missing or does not fit.
        """
        if (state.get("command"), state.get("version")) != ("stream", CHECKPOINT_VERSION):
            raise UserError(
                f"the checkpoint in {folder.path} must be of a stream, version {CHECKPOINT_VERSION}, got "
                f"{state.get('command', 'a run of fptt train')}, version {state.get('version')!r}."
            )
        config = load_field(state, "config", lambda values: StreamConfig(**values))
        if next_rows and config.data != STANDARD_INPUT:
            raise UserError(f"next_rows are those of standard input, got a stream of {config.data}.")
        streaming = load_field(state, "place", lambda place: cls(config, folder, dict(place), next_rows=next_rows))
        streaming.load_state_dict(state)
        return streaming

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the place of a state; see `of`."""
        for name, baseline in self.baselines.items():
            load_field(state, "baselines", lambda saved, name=name, own=baseline: own.load_state_dict(saved[name]))
        load_field(state, "learner", self.learner.load_state_dict)
        load_field(state, "scores", self.scores.load_state_dict)
        self.pending = load_field(state, "pending", lambda saved: [dict(own) for own in saved])
        self.seconds = load_field(state, "seconds", float)
        load_field(state, "random", lambda saved: RandomState.from_state_dict(saved, CPU).restore())
        self.began_at = self.saved_at = self.scores.steps
        # last of all: what standard input has can be read once
        self.pieces = load_field(state, "place", lambda _: self.source.pieces(self.config.chunk_length))

    # -- the end -----------------------------------------------------------------------------------------------------

    def finish(self, status: str) -> dict[str, Any]:
        """Write summary, rolling metrics, plot and learner, and return the summary."""
        self._score()
        summary = self.summary(status)
        self.folder.write(summary, self.scores.rows, self.learner.learner.state_dict())
        if self.scores.rows:
            draw_rolling(self.scores.rows, self.config, self.metric, self.folder.plot_file)
        if status == "finished":
            self.folder.checkpoints.remove()
        return summary

    def summary(self, status: str) -> dict[str, Any]:
        """Return the content of summary.json; without any label its metrics are None."""
        scores, metrics = self.scores, self.scores.metrics()
        if not scores.labels:
            metrics = {name: dict.fromkeys(own) for name, own in metrics.items()}
        settings = self.config.to_dict()
        del settings["data"]  # where it lies
        if self.config.method != "fptt":  # as in the summary of a run
            settings |= {name: None for name in OF_FPTT if name in settings}
        return {
            "command": "stream",
            **settings,
            **metrics.pop("learner"),
            "baselines": metrics,
            "status": status,
            **self.source.figures(self.place),
            "steps": scores.steps,
            "labeled_steps": scores.labels,
            "updates": self.learner.learner.method.updates,
            "seconds": round(self.seconds, 3),
            "seconds_clock": self.clock.kind,
            "steps_per_second": round(scores.steps / max(self.seconds, 1e-9), 1),
            **self._memory_growth(),
            "num_parameters": sum(param.numel() for param in self.learner.learner.method.model.parameters()),
            **self.environment,
        }

    def _memory_growth(self) -> dict[str, Any]:
        """Return the memory after the warm-up, the peak from then on, and how much higher that is."""
        if self.memory is None or not self.memory.peak:
            return {"warm_memory_bytes": None, "peak_memory_bytes": None, "memory_growth_percent": None}
        before, peak = self.memory.before, self.memory.peak
        growth = round(100 * (peak / before - 1), 2)
        return {"warm_memory_bytes": before, "peak_memory_bytes": peak, "memory_growth_percent": growth}


OPTIONS = {
    "hapt": ("split",),
    "table": ("target", "inputs", "time", "missing", "kind", "max_classes"),
}
"""Options that only one task has."""


def _check_options(config: StreamConfig) -> None:
    """Raise UserError if an option, or a file, is of the other task."""
    for task, names in OPTIONS.items():
        for name in names:
            if task != config.task and getattr(config, name) != getattr(StreamConfig, name):
                raise UserError(f"{name} belongs to the task {task!r}, got it with the task {config.task!r}.")
    data = config.data
    if config.task == "hapt" and data is not None and (data == STANDARD_INPUT or Path(data).expanduser().is_file()):
        raise UserError(f"data {data!r} is a table: give --task table with it.")


# -- the command -----------------------------------------------------------------------------------------------------


def stream(config: StreamConfig, folder: StreamFolder, console: Console, *, overwrite: bool = False) -> dict[str, Any]:
    """Send a learner through the stream of a config, and return the summary.

    Ctrl-C ends it after some hundred steps: a checkpoint is saved, the folder is completed with what there is, its
    status is `interrupted`, and the KeyboardInterrupt is raised in the caller.

    Raises:
        UserError: If folder, data or settings are not usable, or the learning diverges.
    """
    folder.check(overwrite=overwrite)  # before the first rows are read, which standard input would not give again
    streaming = Streaming(config, folder)
    with folder.hinting_at_resuming(), locked(folder.path):
        folder.check(overwrite=overwrite)  # another stream may have begun, and ended, since the first row was awaited
        folder.clear()
        streaming.save()
        return _to_the_end(streaming, console)


def resume(folder: StreamFolder, console: Console, *, next_rows: bool = False) -> dict[str, Any]:
    """Resume the stream in a folder from its checkpoint, and return the summary; see `stream`.

    Args:
        folder: Where its checkpoints are.
        console: Where to print.
        next_rows: Standard input has the next rows alone, and not those again that were learned from.

    Raises:
        UserError: If the folder holds no stream, or a finished one; or there is no checkpoint, or it is damaged or of
            other data; see also `stream`.
    """
    folder.check_resumable()
    # without a checkpoint there is nothing to lock
    lock = locked(folder.path) if folder.checkpoints.files() else nullcontext()
    with folder.hinting_at_resuming(), lock:
        streaming = folder.checkpoints.restore(
            lambda state: Streaming.of(state, folder, next_rows=next_rows), lambda text: say(console, text)
        )
        return _to_the_end(streaming, console)


def _to_the_end(streaming: Streaming, console: Console) -> dict[str, Any]:
    """Go through the rest of the stream, and complete the folder whatever happens, as long as it can be written."""
    status, can_write = "failed", True
    try:
        streaming.run(console)
        status = "finished"
    except KeyboardInterrupt:
        status = "interrupted"
        folder = streaming.folder
        again = ""
        if streaming.config.data == STANDARD_INPUT:
            count = streaming.place["rows"]
            again = f"  (with the same rows again, or with --next-rows those after the first {count:,})"
        say(
            console,
            f"interrupted; completing {folder.path} (again to stop at once)\nto resume: {folder.resume_command}{again}",
        )
        raise
    except UnwritableError:
        can_write = False
        raise
    except FloatingPointError as error:
        raise UserError(f"{error} Try a smaller lr or max_norm.") from error
    finally:
        summary = streaming.finish(status) if can_write else {}
    return summary
