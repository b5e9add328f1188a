"""One measurement of `fptt bench memory`, in a process of its own: `python -m …memory_child REQUEST`, both in JSON.

Prints one JSON object a line: `{"fraction": …}` now and then, and at the end the measurements.
"""

import json
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

import fptt
from fptt.experiments.process.machine import MemoryMeter, prepare_process

HIDDEN_SIZE = 128
LR = 1e-3
MAX_NORM = 1.0
CHUNKS_A_SLICE = 10
SECONDS_BETWEEN_REPORTS = 1.0

PERIOD = 50.0
NOISE = 0.1
STEPS_AT_A_TIME = 100_000


@dataclass(frozen=True, kw_only=True)
class Request:
    """The settings of one measurement.

    Attributes:
        method: `bptt`, the whole sequence at once; or `fptt`, slice by slice, with the state of the one before.
        path: The file of the sequence.
        sequence_length: T.
        batch_size: B.
        chunk_length: Of FPTT, in time steps.
        engine: Of FPTT.
        threads: CPU threads; all cores if None.
        device: As torch names it.
    """

    method: str
    path: str
    sequence_length: int
    batch_size: int
    chunk_length: int
    engine: str
    threads: int | None
    device: str

    def to_json(self) -> str:
        """Return the JSON that `from_json` reads."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Request":
        """Return the request that `to_json` wrote."""
        return cls(**json.loads(text))


class SequenceFile:
    """Noisy sines, each sample with a phase of its own, to be predicted one step ahead.

    The file holds T + 1 steps of B numbers: the inputs are all but the last, the targets all but the first.

    Args:
        path: The file.
        length: T.
        batch_size: B.
    """

    def __init__(self, path: Path, length: int, batch_size: int) -> None:
        self.path, self.length, self.batch_size = path, length, batch_size

    def write(self, seed: int) -> None:
        """Make the sequence, a part at a time."""
        generator = np.random.default_rng(seed)
        phases = generator.uniform(0, 2 * np.pi, self.batch_size)
        with self.path.open("wb") as file:
            for start in range(0, self.length + 1, STEPS_AT_A_TIME):
                steps = np.arange(start, min(start + STEPS_AT_A_TIME, self.length + 1))[:, None]
                noise = NOISE * generator.standard_normal((len(steps), self.batch_size))
                file.write((np.sin(2 * np.pi * steps / PERIOD + phases) + noise).astype(np.float32).tobytes())

    def slices(self, length: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield inputs and targets, (S, B, 1) each, of consecutive slices of S ≤ `length` steps."""
        # not by fptt.ArrayChunks, which cuts one recording into lanes: here each sample has its own steps, and equal
        # lengths but the last, so that all slices hold the same number of chunks
        for start in range(0, self.length, length):
            steps = self._read(start, min(length, self.length - start) + 1)
            yield steps[:-1], steps[1:]

    def _read(self, start: int, num_steps: int) -> Tensor:
        # a map of its own for every slice: what one map for all has read stays in the memory of the process
        offset = start * self.batch_size * np.dtype(np.float32).itemsize
        mapped = np.memmap(self.path, np.float32, "r", offset, (num_steps, self.batch_size, 1))
        return torch.from_numpy(np.array(mapped))


def measure(request: Request) -> dict[str, Any]:
    """Train through the sequence once; return updates, seconds, peak memory, and how far that is above the start."""
    prepare_process(request.threads)
    device = torch.device(request.device)
    _load_code(request, device)  # before the meter starts
    sequence = SequenceFile(Path(request.path), request.sequence_length, request.batch_size)
    method = _make_method(request, device)
    length = request.sequence_length if request.method == "bptt" else CHUNKS_A_SLICE * request.chunk_length
    memory = MemoryMeter(device)
    memory.start()
    start = reported = time.perf_counter()
    state = None
    for inputs, targets in sequence.slices(length):
        state = method.train_batch(inputs.to(device), targets.to(device), state).state
        fraction = method.timesteps / (request.sequence_length * request.batch_size)
        if fraction < 1 and time.perf_counter() - reported > SECONDS_BETWEEN_REPORTS:
            reported = time.perf_counter()
            _report({"fraction": fraction})
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    seconds = time.perf_counter() - start
    memory.stop()
    return {**memory.sizes(), "seconds": seconds, "updates": method.updates}


def _make_method(request: Request, device: torch.device) -> fptt.Method:
    torch.manual_seed(0)
    model = fptt.nn.LSTM(1, HIDDEN_SIZE, 1).to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=LR)
    loss = fptt.SequenceLoss(functional.mse_loss)
    if request.method == "bptt":
        return fptt.BPTT(model, optimizer, loss, max_norm=MAX_NORM)
    chunking: dict[str, Any] = {"chunk_length": request.chunk_length, "engine": request.engine}
    return fptt.FPTT(model, optimizer, loss, max_norm=MAX_NORM, **chunking)


def _load_code(request: Request, device: torch.device) -> None:
    """Load all code that a step needs, by two steps of another model: it is no memory of training."""
    steps = torch.zeros(2, request.batch_size, 1, device=device)
    _make_method(request, device).train_batch(steps, steps)


def _report(message: dict[str, Any]) -> None:
    print(json.dumps(message), flush=True)


if __name__ == "__main__":
    _report(measure(Request.from_json(sys.argv[1])))
