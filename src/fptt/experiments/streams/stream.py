"""Progressive validation of a learner and its baselines on a stream, resumed bitwise: `fptt stream`."""

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from fptt._random import RandomState
from fptt.experiments.configs.config import StreamConfig
from fptt.experiments.process.console import make_display, say
from fptt.experiments.process.errors import UnreadableError, UnwritableError, UserError
from fptt.experiments.process.files import replace_text, replaced
from fptt.experiments.process.machine import Clock, MemoryMeter, environment, prepare_process
from fptt.experiments.process.signals import Interruption
from fptt.experiments.streams.baselines import Baseline, LastLabel, MajorityClass, RiverSoftmax
from fptt.experiments.streams.learner import gathered, make_learner, predict_and_learn
from fptt.experiments.streams.recordings import Recordings
from fptt.experiments.streams.scores import ROLLING, StreamScores
from fptt.experiments.tasks.hapt import Recording
from fptt.experiments.training.checkpoints import Checkpoints, load_field
from fptt.experiments.training.folder import RunFolder

STEPS_A_ROW = 1000
WARM_UP = 0.1
"""Part of the stream after which memory should not grow any more."""
CPU = torch.device("cpu")
CHECKPOINT_VERSION = 1


# -- the folder ------------------------------------------------------------------------------------------------------


class StreamFolder:
    """Summary, rolling accuracies, plot, the learner as it was at the end, and until then checkpoints."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.summary_file = path / "summary.json"
        self.rolling_file = path / ROLLING
        self.plot_file = path / "rolling.png"
        self.learner_file = path / "learner.pt"
        self.checkpoints = Checkpoints(path)

    @property
    def resume_command(self) -> str:
        """The command that resumes the stream."""
        return f"fptt stream --resume --out {self.path}"

    def create(self, *, overwrite: bool) -> None:
        """Make the folder, and remove an earlier stream from it.

        Raises:
            UserError: If it holds something and may not be overwritten, or cannot be written.
        """
        if not overwrite:
            RunFolder(self.path).check_free()
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            for file in (self.summary_file, self.rolling_file, self.plot_file, self.learner_file):
                file.unlink(missing_ok=True)
            self.checkpoints.remove()
        except OSError as error:
            raise UserError(f"out {self.path} cannot be written: {error}.") from error

    def write(self, summary: Mapping[str, Any], rolling: Sequence[Mapping[str, Any]], learner: Mapping) -> None:
        """Write all but the plot.

        Raises:
            UnwritableError: If a file cannot be written.
        """
        with replaced(self.rolling_file) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rolling[0]) if rolling else ["step"])
            writer.writeheader()
            writer.writerows(rolling)
        with replaced(self.learner_file) as temporary, temporary.open("wb") as file:
            torch.save(dict(learner), file)
        replace_text(self.summary_file, json.dumps(summary, indent=2) + "\n")


BASELINE_COLORS = {"last_label": "tab:green", "majority_class": "tab:gray", "river_softmax": "tab:orange"}


def draw_rolling(rows: Sequence[Mapping[str, Any]], config: StreamConfig, path: Path) -> None:
    """Draw the rolling accuracies of a learner and its baselines against the steps of the stream."""
    from fptt.experiments.training.plots import COLORS, plt, save_figure  # seconds of loading, and only here

    figure, axis = plt.subplots(figsize=(9, 3.8), layout="constrained")
    steps = [row["step"] for row in rows]
    for name in (name for name in rows[0] if name != "step"):
        label = config.method.upper() if name == "learner" else name.replace("_", " ")
        color = COLORS[config.method] if name == "learner" else BASELINE_COLORS[name]
        axis.plot(steps, [row[name] for row in rows], color=color, linewidth=1.2, alpha=0.85, label=label)
    axis.set(xlabel="steps", ylabel=f"accuracy of the last {config.window:,} labeled steps", ylim=(0, 1.02))
    axis.set_title(f"{config.task}, labels {config.delay} steps late, chunks of {config.chunk_length}")
    axis.grid(alpha=0.25)
    axis.legend()
    save_figure(figure, path)


# -- the stream ------------------------------------------------------------------------------------------------------


class Streaming:
    """A learner and its baselines on their way through the recordings of a config.

    Attributes:
        num_recordings: Recordings completed.
        start: The next step of the current recording.
        given: The predictions of the baselines for all of that recording; empty before it.
    """

    def __init__(self, config: StreamConfig, folder: StreamFolder) -> None:
        prepare_process(config.threads)
        self.config, self.folder = config, folder
        self.recordings = Recordings(config.data, config.split, config.limit)
        self.num_steps, self.digest = self.recordings.survey()
        num_classes = self.recordings.num_classes
        self.learner = make_learner(config, self.recordings.num_inputs, num_classes)
        kinds: dict[str, type[Baseline]] = {"last_label": LastLabel, "majority_class": MajorityClass}
        kinds |= {"river_softmax": RiverSoftmax} if config.baselines else {}
        self.baselines = {name: kind(config.delay, num_classes) for name, kind in kinds.items()}
        self.scores = StreamScores(["learner", *kinds], num_classes, config.window)
        self.num_recordings = self.start = 0
        self.given: dict[str, Tensor] = {}
        self.environment, self.clock, self.seconds = environment(CPU), Clock(CPU), 0.0
        self.interruption = Interruption()
        self.memory: MemoryMeter | None = None
        self.began_at = self.saved_at = 0

    # -- the loop ----------------------------------------------------------------------------------------------------

    def run(self, console: Console) -> None:
        """Go through all recordings that are left."""
        with closing(make_display(console)) as display, self.interruption:
            for recording in islice(self._read(), self.num_recordings, None):
                for _ in self._go_through(recording):
                    display.show(self.scores.steps / self.num_steps, self._progress())
                    self._save_if_due()
                    self._watch_memory()
                self.num_recordings, self.start, self.given = self.num_recordings + 1, 0, {}
            display.epoch(1.0, self._progress())
        if self.memory is not None:
            self.memory.stop()

    def _read(self) -> Iterator[Recording]:
        """Read the recordings; if one cannot be read any more, save what was learned from those before."""
        try:
            yield from self.recordings
        except UnreadableError:
            self.save()
            raise

    def _go_through(self, recording: Recording) -> Iterator[None]:
        """Answer and learn a recording, and count what is right; pause every thousand steps."""
        self.given = self.given or self._predictions(recording)
        outputs = predict_and_learn(self.learner, recording, self.config, self.start)
        for piece in gathered(self._timed(outputs), STEPS_A_ROW):
            part = slice(self.start, self.start + len(piece))
            predictions = {"learner": piece, **{name: own[part] for name, own in self.given.items()}}
            self.scores.add(predictions, recording.classes[part])
            self.start = part.stop
            yield

    def _predictions(self, recording: Recording) -> dict[str, Tensor]:
        """Return the predictions of the baselines for all steps of a recording, (T,) each."""
        classes = recording.classes.numpy()
        predictions = {
            name: baseline.predictions(recording.signal, classes) for name, baseline in self.baselines.items()
        }
        return {name: torch.from_numpy(own) for name, own in predictions.items()}

    def _timed(self, outputs: Iterator[Tensor]) -> Iterator[Tensor]:
        """Add up the seconds of the learner alone: those of the baselines and of reading are not its own."""
        while True:
            start = self.clock.now()
            output = next(outputs, None)
            self.seconds += self.clock.now() - start
            if output is None:
                return
            yield output

    def _watch_memory(self) -> None:
        # a stream is endless: memory that still grows after the warm-up would end it some day
        if self.memory is None and self.scores.steps - self.began_at >= WARM_UP * self.num_steps:
            self.memory = MemoryMeter(CPU)
            self.memory.start()

    def _progress(self) -> str:
        scores = self.scores
        speed = scores.steps / max(self.seconds, 1e-9)
        rolling = "  ".join(f"{name} {rolling.accuracy:.4f}" for name, rolling in scores.rolling.items())
        return f"{scores.steps:,} steps  {speed:,.0f} steps/s  accuracy of the last {self.config.window:,}: {rolling}"

    # -- checkpoints -------------------------------------------------------------------------------------------------

    def _save_if_due(self) -> None:
        every, is_asked = self.config.checkpoint_steps, self.interruption.is_asked
        if is_asked or (every is not None and self.scores.steps - self.saved_at >= every):
            self.save()
        if is_asked:
            raise KeyboardInterrupt

    def save(self) -> None:
        """Write a checkpoint between two chunks."""
        self.folder.checkpoints.write(self.state_dict())
        self.saved_at = self.scores.steps

    def state_dict(self) -> dict[str, Any]:
        """Return everything that the rest of the stream depends on: a nest of tensors and plain values."""
        return {
            "command": "stream",
            "version": CHECKPOINT_VERSION,
            "config": self.config.to_dict(),
            "data": self.digest,
            "learner": self.learner.state_dict(),
            "baselines": {name: baseline.state_dict() for name, baseline in self.baselines.items()},
            "scores": self.scores.state_dict(),
            "place": {"recordings": self.num_recordings, "start": self.start, "given": self.given},
            "seconds": self.seconds,
            "random": RandomState.capture(CPU, include_others=True).state_dict(),
        }

    @classmethod
    def of(cls, state: dict[str, Any], folder: StreamFolder) -> "Streaming":
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
        streaming = cls(load_field(state, "config", lambda values: StreamConfig(**values)), folder)
        if load_field(state, "data", str) != streaming.digest:
            raise UserError(f"the labels in {streaming.config.data} are not those that the stream began with.")
        streaming.load_state_dict(state)
        return streaming

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the place of a state; see `of`."""
        for name, baseline in self.baselines.items():
            load_field(state, "baselines", lambda saved, name=name, own=baseline: own.load_state_dict(saved[name]))
        load_field(state, "learner", self.learner.load_state_dict)
        load_field(state, "scores", self.scores.load_state_dict)
        load_field(state, "place", self._load_place)
        self.seconds = load_field(state, "seconds", float)
        load_field(state, "random", lambda saved: RandomState.from_state_dict(saved, CPU).restore())
        self.began_at = self.saved_at = self.scores.steps

    def _load_place(self, place: dict[str, Any]) -> None:
        self.num_recordings, self.start = int(place["recordings"]), int(place["start"])
        self.given = dict(place["given"])
        if self.given and self.given.keys() != self.baselines.keys():
            raise ValueError(f"there are predictions of {', '.join(self.given)}")

    # -- the end -----------------------------------------------------------------------------------------------------

    def finish(self, status: str) -> dict[str, Any]:
        """Write summary, rolling accuracies, plot and learner, and return the summary."""
        summary = self.summary(status)
        self.folder.write(summary, self.scores.rows, self.learner.state_dict())
        if self.scores.rows:
            draw_rolling(self.scores.rows, self.config, self.folder.plot_file)
        if status == "finished":
            self.folder.checkpoints.remove()
        return summary

    def summary(self, status: str) -> dict[str, Any]:
        """Return the content of summary.json."""
        scores, metrics = self.scores, self.scores.metrics()
        return {
            "command": "stream",
            **{name: value for name, value in self.config.to_dict().items() if name != "data"},  # where it lies
            **metrics.pop("learner"),
            "baselines": metrics,
            "status": status,
            "recordings": self.num_recordings,
            "steps": scores.steps,
            "labeled_steps": scores.labels,
            "updates": self.learner.method.updates,
            "seconds": round(self.seconds, 3),
            "seconds_clock": self.clock.kind,
            "steps_per_second": round(scores.steps / max(self.seconds, 1e-9), 1),
            **self._memory_growth(),
            "num_parameters": sum(param.numel() for param in self.learner.method.model.parameters()),
            **self.environment,
        }

    def _memory_growth(self) -> dict[str, Any]:
        """Return the memory after the warm-up, the peak from then on, and how much higher that is."""
        if self.memory is None or not self.memory.peak:
            return {"warm_memory_bytes": None, "peak_memory_bytes": None, "memory_growth_percent": None}
        before, peak = self.memory.before, self.memory.peak
        growth = round(100 * (peak / before - 1), 2)
        return {"warm_memory_bytes": before, "peak_memory_bytes": peak, "memory_growth_percent": growth}


# -- the command -----------------------------------------------------------------------------------------------------


def stream(config: StreamConfig, folder: StreamFolder, console: Console, *, overwrite: bool = False) -> dict[str, Any]:
    """Send a learner through the stream of a config, and return the summary.

    Ctrl-C ends it after some hundred steps: a checkpoint is saved, the folder is completed with what there is, its
    status is `interrupted`, and the KeyboardInterrupt is raised in the caller.

    Raises:
        UserError: If data or settings are not usable, or the learning diverges.
    """
    with _hint_at_resuming(folder):
        streaming = Streaming(config, folder)
        folder.create(overwrite=overwrite)
        streaming.save()
        return _to_the_end(streaming, console)


def resume(folder: StreamFolder, console: Console) -> dict[str, Any]:
    """Resume the stream in a folder from its checkpoint, and return the summary; see `stream`.

    Raises:
        UserError: If there is no checkpoint, or it is damaged or of other data; see also `stream`.
    """
    with _hint_at_resuming(folder):
        streaming = folder.checkpoints.restore(
            lambda state: Streaming.of(state, folder), lambda text: say(console, text)
        )
        return _to_the_end(streaming, console)


@contextmanager
def _hint_at_resuming(folder: StreamFolder) -> Iterator[None]:
    """Add the command that resumes the stream to errors that the user can mend."""
    try:
        yield
    except (UnreadableError, UnwritableError) as error:
        hint = f"To resume when that is mended: {folder.resume_command}." if folder.checkpoints.files() else ""
        raise UserError(f"{error} {hint}".strip()) from error


def _to_the_end(streaming: Streaming, console: Console) -> dict[str, Any]:
    """Go through the rest of the stream, and complete the folder whatever happens, as long as it can be written."""
    status, can_write = "failed", True
    try:
        streaming.run(console)
        status = "finished"
    except KeyboardInterrupt:
        status = "interrupted"
        folder = streaming.folder
        say(
            console,
            f"interrupted; completing {folder.path} (again to stop at once)\nto resume: {folder.resume_command}",
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
