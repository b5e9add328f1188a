"""`fptt bench memory`: peak memory against the length of the sequence, for FPTT and BPTT."""

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from statistics import linear_regression
from typing import Any

import torch
from rich.console import Console

from fptt.experiments.benchmarks.memory_child import (
    CHUNKS_A_SLICE,
    HIDDEN_SIZE,
    LR,
    MAX_NORM,
    Request,
    SequenceFile,
)
from fptt.experiments.process.console import make_display
from fptt.experiments.process.errors import UserError
from fptt.experiments.process.machine import environment

BATCH_SIZE = 4
PROBE_LENGTH = 1000
"""Steps for which BPTT runs without a prediction of its memory."""

CHILD = (sys.executable, "-m", "fptt.experiments.benchmarks.memory_child")


class MemoryBench:
    """Measures both methods at every length and collects a report: environment, settings, rows, fits, notes.

    Args:
        sequence_lengths: T, ascending.
        chunk_length: Of FPTT, in time steps.
        engine: Of FPTT.
        limit_bytes: BPTT stops before the length whose predicted peak is above.
        threads: CPU threads; all cores if None.
        device: Where.
    """

    def __init__(
        self,
        sequence_lengths: Sequence[int],
        *,
        chunk_length: int,
        engine: str,
        limit_bytes: float,
        threads: int | None,
        device: torch.device,
    ) -> None:
        self.sequence_lengths, self.chunk_length, self.engine = sequence_lengths, chunk_length, engine
        self.limit_bytes, self.threads, self.device = limit_bytes, threads, device
        self.notes: list[str] = []
        self.environment = environment(device)

    def run(self, console: Console) -> dict[str, Any]:
        """Measure everything and return the report."""
        with tempfile.TemporaryDirectory() as folder:
            rows = [*self._fptt_rows(Path(folder), console), *self._bptt_rows(Path(folder), console)]
        return {
            "environment": self.environment,
            "settings": self._settings(),
            "rows": rows,
            "fits": fits(rows),
            "fptt_growth_percent": growth_percent(rows, "fptt"),
            "notes": self.notes,
        }

    def _fptt_rows(self, folder: Path, console: Console) -> Iterator[dict[str, Any]]:
        if self.engine == "compiled":  # fills the compiler's cache: compiling takes memory of its own
            self._measure("fptt", self.sequence_lengths[0], folder, console)
        for length in self.sequence_lengths:
            yield self._measure("fptt", length, folder, console)

    def _bptt_rows(self, folder: Path, console: Console) -> Iterator[dict[str, Any]]:
        """Yield rows of ascending lengths while each fits, by the memory of the one before and in fact."""
        lengths = list(self.sequence_lengths)
        if lengths[0] > PROBE_LENGTH:
            lengths.insert(0, PROBE_LENGTH)
        last: dict[str, Any] | None = None
        for length in lengths:
            if last is not None and (predicted := predict(last, length)) > self.limit_bytes:
                self.notes.append(
                    f"no row for BPTT from T = {length:,} on: {predicted / 2**30:.1f} GiB predicted, more than the "
                    f"limit of {self.limit_bytes / 2**30:.3g} GiB"
                )
                return
            try:
                last = self._measure("bptt", length, folder, console)
            except UserError as error:  # what was measured before, for an hour perhaps, is not lost
                self.notes.append(f"no row for BPTT from T = {length:,} on: {error}")
                return
            if length in self.sequence_lengths:
                yield last

    def _measure(self, method: str, length: int, folder: Path, console: Console) -> dict[str, Any]:
        """Make the sequence, measure in a process of its own, and return a row.

        Raises:
            UserError: If the process fails, or the system does not tell its memory, as Windows.
        """
        sequence = SequenceFile(folder / "sequence.bin", length, BATCH_SIZE)
        sequence.write(seed=0)
        request = Request(
            method=method,
            path=str(sequence.path),
            sequence_length=length,
            batch_size=BATCH_SIZE,
            chunk_length=self.chunk_length,
            engine=self.engine,
            threads=self.threads,
            device=str(self.device),
        )
        name = f"{method.upper()}, T = {length:,}"
        with closing(make_display(console)) as display:
            display.show(0.0, name)
            measured = run_child(request, folder, lambda fraction: display.show(fraction, name))
            if not measured["peak_memory_bytes"]:
                raise UserError("bench memory needs a system that tells the memory of a process: Linux or macOS.")
            peak = f"peak {measured['peak_memory_bytes'] / 2**20:.0f} MiB"
            display.epoch(1.0, f"{name}: {peak}, {measured['seconds']:.1f} s")
        return {"method": method, "sequence_length": length, **measured}

    def _settings(self) -> dict[str, Any]:
        return {
            "model": f"LSTM, 1 → {HIDDEN_SIZE} → 1",
            "loss": "mean squared error of the next step",
            "optimizer": "adam",
            "lr": LR,
            "max_norm": MAX_NORM,
            "batch_size": BATCH_SIZE,
            "chunk_length": self.chunk_length,
            "slice_length": CHUNKS_A_SLICE * self.chunk_length,
            "engine": self.engine,
            "limit_bytes": self.limit_bytes,
        }


def run_child(request: Request, folder: Path, show: Callable[[float], None]) -> dict[str, Any]:
    """Measure in a process of its own and return its measurements.

    Raises:
        UserError: If the process fails, for lack of memory for example.
    """
    log_file = folder / "errors.txt"
    message: dict[str, Any] = {}
    with (
        log_file.open("w", encoding="utf-8") as log,
        subprocess.Popen(
            [*CHILD, request.to_json()], stdout=subprocess.PIPE, stderr=log, encoding="utf-8", errors="replace"
        ) as child,
    ):
        try:
            assert child.stdout is not None
            for line in child.stdout:
                message = json.loads(line)
                if "fraction" in message:
                    show(message["fraction"])
            code = child.wait()
        except BaseException:  # Ctrl-C among them: no child outlives this process
            child.kill()
            raise
    if code != 0:
        lines = log_file.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        last = lines[-1:] or ["was there too little memory?"]
        raise UserError(
            f"{request.method} at sequence length {request.sequence_length} failed with exit code {code}: {last[0]}"
        )
    return message


def predict(row: dict[str, Any], length: int) -> float:
    """Return the peak at a longer T, if the memory of training grows in proportion to T."""
    return row["peak_memory_bytes"] + row["training_memory_bytes"] * (length / row["sequence_length"] - 1)


def fits(rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Return the line of least squares through the peaks of each method that has more than one row."""
    lines = {}
    for method in dict.fromkeys(row["method"] for row in rows):
        points = [(row["sequence_length"], row["peak_memory_bytes"]) for row in rows if row["method"] == method]
        if len(points) > 1:
            slope, intercept = linear_regression(*zip(*points, strict=True))
            lines[method] = {"bytes_per_step": slope, "intercept_bytes": intercept}
    return lines


def growth_percent(rows: Sequence[dict[str, Any]], method: str) -> float:
    """Return how much higher the peak of a method is at its longest sequence than at its shortest."""
    peaks = {row["sequence_length"]: row["peak_memory_bytes"] for row in rows if row["method"] == method}
    return 100 * (peaks[max(peaks)] / peaks[min(peaks)] - 1)
