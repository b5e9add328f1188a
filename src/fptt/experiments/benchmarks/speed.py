"""`fptt bench speed`: the time of a batch, method by method, all in one process and in turns."""

from collections.abc import Callable, Sequence
from contextlib import closing
from statistics import median
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from fptt.experiments.benchmarks.allocator import keep_freed_memory
from fptt.experiments.benchmarks.contestants import (
    ALPHA,
    LR,
    MAX_NORM,
    Trainer,
    make_data,
    make_model,
    make_trainer,
    warm_up_steps,
)
from fptt.experiments.benchmarks.floor import Floor
from fptt.experiments.benchmarks.grid import HIDDEN_SIZE, INPUT_SIZE, NUM_CLASSES, READOUT_SIZE, Grid, Setting, Spec
from fptt.experiments.benchmarks.timing import Stopwatch, take_turns
from fptt.experiments.process.errors import UserError, one_line
from fptt.experiments.process.machine import environment
from fptt.experiments.process.progress import Display, make_display

Row = dict[str, Any]


class SpeedBench:
    """Measures a grid and collects a report: environment, settings, rows, notes.

    Args:
        grid: What to measure.
        device: Where.
        repeats: Rounds, after a warm-up.
        seed: Of weights and data.
        keep_memory: Whether the process keeps the memory that it frees, where it can.
    """

    def __init__(
        self, grid: Grid, device: torch.device, *, repeats: int, seed: int = 0, keep_memory: bool = False
    ) -> None:
        self.grid, self.device, self.repeats, self.seed = grid, device, repeats, seed
        self.keeps_memory = keep_memory and keep_freed_memory()
        self.stopwatch = Stopwatch(device)
        self.report: dict[str, Any] = {
            "environment": environment(device),
            "settings": self._settings(),
            "rows": [],
            "notes": grid.notes(),
        }

    def run(self, console: Console, save: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
        """Measure every setting, saving the report after each, and return it."""
        with closing(make_display(console)) as display:
            progress = _Progress(display, self._num_calls())
            for setting in self.grid.settings():
                self.report["rows"] += self._measure(setting, progress)
                progress.end_of(setting)
                save(self.report)
        return self.report

    def _measure(self, setting: Setting, progress: "_Progress") -> list[Row]:
        specs = self.grid.specs(setting.sequence_length)
        inputs, targets = make_data(setting, self.seed, self.device)
        trainers = [make_trainer(spec, setting, self.seed, self.device) for spec in specs]
        beginnings = [inputs[: warm_up_steps(spec, setting)] for spec in specs]
        for spec, trainer, beginning in zip(specs, trainers, beginnings, strict=True):
            progress.show(f"{setting}: warming up {spec}")
            _warm_up(spec, trainer, beginning, targets)
        num_parameters = sum(param.numel() for param in make_model(setting.cell, self.seed, self.device).parameters())
        floor = Floor(setting, {spec.num_chunks for spec in specs}, num_parameters, self.stopwatch)

        def timed(spec: Spec, trainer: Trainer, beginning: Tensor) -> Callable[[], float]:
            def measure() -> float:
                progress.show(f"{setting}: {spec}")
                trainer(beginning, targets)  # fetches again the memory that the turns of others let go
                return self.stopwatch.seconds(lambda: trainer(inputs, targets))

            return measure

        contestants = map(timed, specs, trainers, beginnings)
        figures = take_turns([*contestants, floor.measure], self.repeats)[:-1]
        floors = [floor.seconds(spec) for spec in specs]
        return make_rows(setting, specs, figures, floors)

    def _num_calls(self) -> int:
        specs = sum(len(self.grid.specs(setting.sequence_length)) for setting in self.grid.settings())
        return specs * (1 + self.repeats)

    def _settings(self) -> dict[str, Any]:
        return {
            "input_size": INPUT_SIZE,
            "hidden_size": HIDDEN_SIZE,
            "readout_sizes": [READOUT_SIZE],
            "num_classes": NUM_CLASSES,
            "loss": "cross entropy at the end of every chunk, uniform Q",
            "optimizer": "adam",
            "lr": LR,
            "max_norm": MAX_NORM,
            "alpha": ALPHA,
            "form": "paper",
            "coupling": {"fptt": "decoupled", "literal": "coupled, by autograd"},
            "clock": "device" if self.device.type == "cuda" else "wall",
            "freed_memory_kept": self.keeps_memory,
            "repeats": self.repeats,
            "seed": self.seed,
            "longest_compiled_chunk": self.grid.longest_compiled,
        }


def make_rows(
    setting: Setting, specs: Sequence[Spec], figures: Sequence[Sequence[float]], floors: Sequence[float]
) -> list[Row]:
    """Return the rows of a setting: medians of the seconds, and their ratios to BPTT and to the literal loop."""
    medians = {spec: median(seconds) for spec, seconds in zip(specs, figures, strict=True)}
    bptt = next(seconds for spec, seconds in medians.items() if spec.method == "bptt")
    rows = []
    for spec, seconds, floor in zip(specs, figures, floors, strict=True):
        literal = medians.get(Spec("literal", None, spec.num_chunks)) if spec.method != "bptt" else None
        rows.append(
            {
                **spec._asdict(),
                **setting._asdict(),
                "seconds": medians[spec],
                "seconds_min": min(seconds),
                "seconds_max": max(seconds),
                "repeats": len(seconds),
                "updates": spec.num_chunks,
                "floor_seconds": floor,
                "ratio_to_bptt": medians[spec] / bptt,
                "ratio_to_literal": None if literal is None else medians[spec] / literal,
            }
        )
    return rows


class _Progress:
    """Counts the batches trained so far."""

    def __init__(self, display: Display, num_calls: int) -> None:
        self.display, self.num_calls, self.done = display, num_calls, 0

    def show(self, text: str) -> None:
        """Tell what begins now."""
        self.display.show(self.done / self.num_calls, text)
        self.done += 1

    def end_of(self, setting: Setting) -> None:
        """Tell that a setting is done."""
        self.display.epoch(self.done / self.num_calls, f"{setting}: done")


def _warm_up(spec: Spec, trainer: Trainer, inputs: Tensor, targets: Tensor) -> None:
    """Train on the start of the sequence: a compiled step is compiled here."""
    try:
        trainer(inputs, targets)
    except RuntimeError as error:
        if spec.engine != "compiled":
            raise
        raise UserError(f"{one_line(error)} To do without the compiled rows: --engines eager.") from error
