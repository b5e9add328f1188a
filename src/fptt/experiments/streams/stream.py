"""A learner and its baselines on their way through a stream, and all of that as a state to go on from bit for bit."""

from collections.abc import Iterator
from contextlib import closing
from itertools import islice
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from fptt.experiments.configs.stream_config import StreamConfig
from fptt.experiments.process.errors import UnreadableError, UserError
from fptt.experiments.process.machine import Clock, MemoryMeter, environment, prepare_process
from fptt.experiments.process.progress import make_display
from fptt.experiments.process.random_state import random_state, set_random_state
from fptt.experiments.process.signals import Interruption
from fptt.experiments.streams.baselines import Baseline, LastLabel, MajorityClass, RiverSoftmax
from fptt.experiments.streams.folder import StreamFolder
from fptt.experiments.streams.learner import answer_and_learn, gathered, make_learner
from fptt.experiments.streams.recordings import Recording, Recordings
from fptt.experiments.streams.scores import StreamScores
from fptt.experiments.training.checkpoints import load_field

STEPS_A_ROW = 1000
WARM_UP = 0.1
"""Part of the stream after which memory should not grow any more."""
CPU = torch.device("cpu")
CHECKPOINT_VERSION = 1


class Streaming:
    """A learner and its baselines on their way through the recordings of a config.

    Attributes:
        num_recordings: Those that are behind.
        start: The next step of the recording under way.
        given: The answers of the baselines to all of that recording; empty before it.
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

    # -- the way -----------------------------------------------------------------------------------------------------

    def run(self, console: Console) -> None:
        """Go through all recordings that are left."""
        with closing(make_display(console)) as display, self.interruption:
            for recording in islice(self._read(), self.num_recordings, None):
                for _ in self._go_through(recording):
                    display.show(self.scores.steps / self.num_steps, self._figures())
                    self._save_if_due()
                    self._watch_memory()
                self.num_recordings, self.start, self.given = self.num_recordings + 1, 0, {}
            display.epoch(1.0, self._figures())
        if self.memory is not None:
            self.memory.stop()

    def _read(self) -> Iterator[Recording]:
        """Read the recordings; when one cannot be read any more, save what was learned of those before."""
        try:
            yield from self.recordings
        except UnreadableError:
            self.save()
            raise

    def _go_through(self, recording: Recording) -> Iterator[None]:
        """Answer and learn a recording, and count what is right; pause every thousand steps."""
        self.given = self.given or self._answers(recording)
        outputs = answer_and_learn(self.learner, recording, self.config, self.start)
        for piece in gathered(self._timed(outputs), STEPS_A_ROW):
            part = slice(self.start, self.start + len(piece))
            answers = {"learner": piece, **{name: own[part] for name, own in self.given.items()}}
            self.scores.add(answers, recording.classes[part])
            self.start = part.stop
            yield

    def _answers(self, recording: Recording) -> dict[str, Tensor]:
        """Return the answers of the baselines to all steps of a recording, (T,) each."""
        classes = recording.classes.numpy()
        answers = {name: baseline.answers(recording.signal, classes) for name, baseline in self.baselines.items()}
        return {name: torch.from_numpy(own) for name, own in answers.items()}

    def _timed(self, outputs: Iterator[Tensor]) -> Iterator[Tensor]:
        """Add up the time that the learner takes."""
        while True:
            start = self.clock.now()
            output = next(outputs, None)
            self.seconds += self.clock.now() - start
            if output is None:
                return
            yield output

    def _watch_memory(self) -> None:
        if self.memory is None and self.scores.steps - self.began_at >= WARM_UP * self.num_steps:
            self.memory = MemoryMeter(CPU)
            self.memory.start()

    def _figures(self) -> str:
        scores = self.scores
        speed = scores.steps / max(self.seconds, 1e-9)
        rolling = "  ".join(f"{name} {rolling.accuracy:.4f}" for name, rolling in scores.rolling.items())
        return f"{scores.steps:,} steps  {speed:,.0f} steps/s  accuracy of the last {self.config.window:,}: {rolling}"

    # -- checkpoints -------------------------------------------------------------------------------------------------

    def _save_if_due(self) -> None:
        every = self.config.checkpoint_steps
        is_due = every is not None and self.scores.steps - self.saved_at >= every
        if is_due or self.interruption.is_asked:
            self.save()
        self.interruption.check()

    def save(self) -> None:
        """Write a checkpoint between two chunks."""
        self.folder.checkpoints.write(self.state_dict())
        self.saved_at = self.scores.steps

    def state_dict(self) -> dict[str, Any]:
        """Return everything that the rest depends on: tensors, plain values, lists and dicts of them only."""
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
            "random": random_state(CPU),
        }

    @classmethod
    def of(cls, state: dict[str, Any], folder: StreamFolder) -> "Streaming":
        """Return what `state_dict` was called on, to go on from there.

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
        """Go to the place of a state; see `of`."""
        for name, baseline in self.baselines.items():
            load_field(state, "baselines", lambda saved, name=name, own=baseline: own.load_state_dict(saved[name]))
        load_field(state, "learner", self.learner.load_state_dict)
        load_field(state, "scores", self.scores.load_state_dict)
        load_field(state, "place", self._load_place)
        self.seconds = load_field(state, "seconds", float)
        load_field(state, "random", lambda saved: set_random_state(saved, CPU))
        self.began_at = self.saved_at = self.scores.steps

    def _load_place(self, place: dict[str, Any]) -> None:
        self.num_recordings, self.start = int(place["recordings"]), int(place["start"])
        self.given = dict(place["given"])
        if self.given and self.given.keys() != self.baselines.keys():
            raise ValueError(f"there are answers of {', '.join(self.given)}")

    # -- the end -----------------------------------------------------------------------------------------------------

    def finish(self, status: str) -> dict[str, Any]:
        """Write everything that stays, and return the summary."""
        summary = self.summary(status)
        self.folder.write(summary, self.scores.rows, self.learner.state_dict())
        if self.scores.rows:
            from fptt.experiments.streams.picture import (
                draw_rolling,  # matplotlib loads when there is something to draw
            )

            draw_rolling(self.scores.rows, self.config, self.folder.picture_file)
        if status == "finished":
            self.folder.checkpoints.remove()
        return summary

    def summary(self, status: str) -> dict[str, Any]:
        """Return what is written at the end."""
        scores = self.scores
        return {
            "command": "stream",
            **{name: value for name, value in self.config.to_dict().items() if name != "data"},  # where it lies
            **scores.figures().pop("learner"),
            "baselines": {name: figures for name, figures in scores.figures().items() if name != "learner"},
            "status": status,
            "recordings": self.num_recordings,
            "steps": scores.steps,
            "labeled_steps": scores.labels,
            "updates": self.learner.method.updates,
            "seconds": round(self.seconds, 3),
            "seconds_clock": self.clock.kind,
            "steps_per_second": round(scores.steps / max(self.seconds, 1e-9), 1),
            **self._memory_figures(),
            "num_parameters": sum(param.numel() for param in self.learner.method.model.parameters()),
            **self.environment,
        }

    def _memory_figures(self) -> dict[str, Any]:
        """Return the memory after the warm-up, the peak from then on, and how much higher that is."""
        if self.memory is None or not self.memory.peak:
            return {"warm_memory_bytes": None, "peak_memory_bytes": None, "memory_growth_percent": None}
        before, peak = self.memory.before, self.memory.peak
        growth = round(100 * (peak / before - 1), 2)
        return {"warm_memory_bytes": before, "peak_memory_bytes": peak, "memory_growth_percent": growth}
