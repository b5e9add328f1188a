"""Progressive validation: a learner goes through a stream, and every step is answered before it is learned."""

from collections.abc import Iterator
from contextlib import closing
from typing import Any

import torch
from rich.console import Console
from torch import Tensor
from torch.nn import functional

import fptt
from fptt.experiments.baselines import Baseline, LastLabel, MajorityClass, RiverSoftmax
from fptt.experiments.components import CELLS
from fptt.experiments.environment import Clock, MemoryMeter, environment, prepare_process
from fptt.experiments.errors import UserError
from fptt.experiments.interruption import Interruption
from fptt.experiments.progress import make_display
from fptt.experiments.recordings import Recording, Recordings
from fptt.experiments.stream_config import StreamConfig
from fptt.experiments.stream_folder import StreamFolder
from fptt.experiments.stream_scores import StreamScores
from fptt.experiments.tasks.scores import IGNORED

STEPS_A_ROW = 1000
WARM_UP = 0.1
"""Part of the stream after which memory should not grow any more."""
CPU = torch.device("cpu")


def stream(config: StreamConfig, folder: StreamFolder, console: Console, *, overwrite: bool = False) -> dict[str, Any]:
    """Send a learner through the stream of a config, and return the summary; Ctrl-C ends it in good order.

    Raises:
        UserError: If data or settings are not usable, or the learning diverges.
    """
    prepare_process(config.threads)
    streaming = Streaming(config)
    folder.create(overwrite=overwrite)
    status = "failed"
    try:
        streaming.run(console)
        status = "finished"
    except KeyboardInterrupt:
        status = "interrupted"
        raise
    except FloatingPointError as error:
        raise UserError(f"{error} Try a smaller lr or max_norm.") from error
    finally:
        summary = streaming.summary(status)
        folder.write(summary, streaming.scores.rows, streaming.learner.state_dict())
        if streaming.scores.rows:
            from fptt.experiments.stream_picture import draw_rolling  # matplotlib loads when there is something to draw

            draw_rolling(streaming.scores.rows, config, folder.picture_file)
    return summary


class Streaming:
    """A learner and its baselines on their way through the recordings of a config."""

    def __init__(self, config: StreamConfig) -> None:
        self.config = config
        self.recordings = Recordings(config.data, config.split, config.limit)
        self.num_steps, self.num_recordings = self.recordings.num_steps(), 0
        num_classes = self.recordings.num_classes
        self.learner = make_learner(config, self.recordings.num_inputs, num_classes)
        kinds: dict[str, type[Baseline]] = {"last_label": LastLabel, "majority_class": MajorityClass}
        kinds |= {"river_softmax": RiverSoftmax} if config.baselines else {}
        self.baselines = {name: kind(config.delay, num_classes) for name, kind in kinds.items()}
        self.scores = StreamScores(["learner", *kinds], num_classes, config.window)
        self.environment, self.clock, self.seconds = environment(CPU), Clock(CPU), 0.0
        self.memory: MemoryMeter | None = None

    def run(self, console: Console) -> None:
        """Go through all recordings."""
        with closing(make_display(console)) as display, Interruption() as interruption:
            for recording in self.recordings:
                for _ in self._go_through(recording):
                    display.show(self.scores.steps / self.num_steps, self._figures())
                    interruption.check()
                    self._watch_memory()
                self.num_recordings += 1
            display.epoch(1.0, self._figures())
        if self.memory is not None:
            self.memory.stop()

    def _go_through(self, recording: Recording) -> Iterator[None]:
        """Answer and learn a recording, and count what is right; pause every thousand steps."""
        classes = recording.classes.numpy()
        given = {
            name: torch.from_numpy(baseline.answers(recording.signal, classes))
            for name, baseline in self.baselines.items()
        }
        start = 0
        for outputs in gathered(self._timed(answer_and_learn(self.learner, recording, self.config)), STEPS_A_ROW):
            part = slice(start, start + len(outputs))
            answers = {"learner": outputs, **{name: own[part] for name, own in given.items()}}
            self.scores.add(answers, recording.classes[part])
            start = part.stop
            yield

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
        if self.memory is None and self.scores.steps >= WARM_UP * self.num_steps:
            self.memory = MemoryMeter(CPU)
            self.memory.start()

    def _figures(self) -> str:
        scores = self.scores
        speed = scores.steps / max(self.seconds, 1e-9)
        rolling = "  ".join(f"{name} {rolling.accuracy:.4f}" for name, rolling in scores.rolling.items())
        return f"{scores.steps:,} steps  {speed:,.0f} steps/s  accuracy of the last {self.config.window:,}: {rolling}"

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


def make_learner(config: StreamConfig, num_inputs: int, num_classes: int) -> fptt.OnlineLearner:
    """Return the learner of a config, which standardizes its inputs by itself."""
    torch.manual_seed(config.seed)
    model = CELLS[config.cell](num_inputs, config.hidden_size, num_classes, num_layers=config.num_layers)
    names = ("chunk_length", "max_norm", "beta", "form", "coupling")
    return fptt.OnlineLearner(
        model,
        torch.optim.Adam(model.parameters(), lr=config.lr),
        fptt.SequenceLoss(functional.cross_entropy),
        alpha=config.alpha if config.method == "fptt" else 0.0,
        classes=range(num_classes),
        max_delay=config.delay,
        standardize=True,
        **{name: getattr(config, name) for name in names},
    )


def answer_and_learn(learner: fptt.OnlineLearner, recording: Recording, config: StreamConfig) -> Iterator[Tensor]:
    """Go through a recording chunk by chunk: yield the outputs for its steps, (n, C), then learn it.

    The label of step t is told after the answer to step t + delay; those of the last steps at the end of the recording.
    """
    labels = [None if label == IGNORED else label for label in recording.classes.tolist()]
    length, delay = len(labels), config.delay
    learner.reset()
    for start in range(0, length, config.chunk_length):
        chunk = recording.signal[start : start + config.chunk_length]
        yield learner.predict_chunk(chunk)
        told = start + len(chunk) - delay  # labels before this step are known by now
        _tell_late(learner, labels, range(max(start - delay, 0), min(start, told)), start)
        known = labels[start:told] if told > start else []
        learner.learn_chunk(chunk, known + [None] * (len(chunk) - len(known)))
    _tell_late(learner, labels, range(max(length - delay, 0), length), length)
    learner.flush()


def _tell_late(learner: fptt.OnlineLearner, labels: list[int | None], steps: range, now: int) -> None:
    for step in steps:
        if labels[step] is not None:
            learner.learn_delayed(labels[step], now - step)


def gathered(outputs: Iterator[Tensor], num_steps: int) -> Iterator[Tensor]:
    """Put outputs (n, C) together until they are of so many steps or more."""
    waiting: list[Tensor] = []
    length = 0
    for output in outputs:
        waiting.append(output)
        length += len(output)
        if length >= num_steps:
            yield torch.cat(waiting)
            waiting, length = [], 0
    if waiting:
        yield torch.cat(waiting)
