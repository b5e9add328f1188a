"""`fptt bench speed`: the time of a batch, method by method, all in one process and in turns."""

from collections.abc import Callable, Sequence
from contextlib import closing
from statistics import median
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from fptt.experiments.benchmarks.contestants import (
    ALPHA,
    LR,
    MAX_NORM,
    TrainBatch,
    make_contestant,
    make_data,
    make_model,
    running_kernel,
    warm_up_steps,
)
from fptt.experiments.benchmarks.floor import Floor
from fptt.experiments.benchmarks.grid import HIDDEN_SIZE, INPUT_SIZE, NUM_CLASSES, READOUT_SIZE, Grid, Spec, Workload
from fptt.experiments.benchmarks.timing import Stopwatch, keep_freed_memory, take_turns
from fptt.experiments.process.console import Display, make_display
from fptt.experiments.process.errors import UserError, one_line
from fptt.experiments.process.machine import environment


class SpeedBench:
    """Measures a grid and collects a report: environment, settings, rows, notes.

    Args:
        grid: The workloads, and the methods on each.
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
        """Measure every workload, saving the report after each, and return it."""
        with closing(make_display(console)) as display:
            num_specs = sum(len(self.grid.specs(workload.sequence_length)) for workload in self.grid.workloads())
            progress = _Progress(display, num_specs * (1 + self.repeats))
            for workload in self.grid.workloads():
                self.report["rows"] += self._measure(workload, progress)
                progress.end_of(workload)
                save(self.report)
        return self.report

    def _measure(self, workload: Workload, progress: "_Progress") -> list[dict[str, Any]]:
        specs = self.grid.specs(workload.sequence_length)
        inputs, targets = make_data(workload, self.seed, self.device)
        contestants = [make_contestant(spec, workload, self.seed, self.device) for spec in specs]
        # on a GPU the whole sequence: there a compiled step is recorded for as many chunks as come at once
        on_gpu = self.device.type == "cuda"
        beginnings = [inputs if on_gpu else inputs[: warm_up_steps(spec, workload)] for spec in specs]
        for spec, train_batch, beginning in zip(specs, contestants, beginnings, strict=True):
            progress.show(f"{workload}: warming up {spec}")
            _warm_up(spec, train_batch, beginning, targets)
        num_parameters = sum(param.numel() for param in make_model(workload.cell, self.seed, self.device).parameters())
        floor = Floor(workload, {spec.num_chunks for spec in specs}, num_parameters, self.stopwatch)

        def timed(spec: Spec, train_batch: TrainBatch, beginning: Tensor) -> Callable[[], float]:
            def measure() -> float:
                progress.show(f"{workload}: {spec}")
                train_batch(beginning, targets)  # reclaims the memory that the turns of others have released
                return self.stopwatch.seconds(lambda: train_batch(inputs, targets))

            return measure

        turns = map(timed, specs, contestants, beginnings)
        seconds = take_turns([*turns, floor.measure], self.repeats)[:-1]
        floors = [floor.seconds(spec) for spec in specs]
        kernels = [running_kernel(spec, workload, self.device) for spec in specs]
        return make_rows(workload, specs, seconds, floors, kernels)

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
    workload: Workload,
    specs: Sequence[Spec],
    measured: Sequence[Sequence[float]],
    floors: Sequence[float],
    kernels: Sequence[str],
) -> list[dict[str, Any]]:
    """Return the rows of a workload: medians of the seconds, and their ratios to BPTT and to the literal loop."""
    medians = {spec: median(seconds) for spec, seconds in zip(specs, measured, strict=True)}
    bptt = next(seconds for spec, seconds in medians.items() if spec.method == "bptt")
    rows = []
    for spec, seconds, floor, kernel in zip(specs, measured, floors, kernels, strict=True):
        literal = medians.get(Spec("literal", None, spec.num_chunks, "torch")) if spec.method != "bptt" else None
        rows.append(
            {
                **spec._asdict(),
                **workload._asdict(),
                "kernel": kernel,
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
        """Show the text of the next batch."""
        self.display.show(self.done / self.num_calls, text)
        self.done += 1

    def end_of(self, workload: Workload) -> None:
        """Show that a workload is done."""
        self.display.epoch(self.done / self.num_calls, f"{workload}: done")


def _warm_up(spec: Spec, train_batch: TrainBatch, inputs: Tensor, targets: Tensor) -> None:
    """Train on the start of the sequence: a compiled step is compiled here."""
    try:
        train_batch(inputs, targets)
    except RuntimeError as error:
        if spec.engine != "compiled":
            raise
        raise UserError(f"{one_line(error)} To do without the compiled rows: --engines eager.") from error
