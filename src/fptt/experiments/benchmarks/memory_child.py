"""One measurement of `fptt bench memory`, in a process of its own: `python -m …memory_child REQUEST`, both in JSON.

Prints one JSON object a line: `{"fraction": …}` now and then, and at the end the figures.
"""

import json
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional

import fptt
from fptt.experiments.benchmarks.sequence_file import SequenceFile
from fptt.experiments.process.machine import MemoryMeter, prepare_process

HIDDEN_SIZE = 128
LR = 1e-3
MAX_NORM = 1.0
CHUNKS_A_SLICE = 10
SECONDS_BETWEEN_REPORTS = 1.0


@dataclass(frozen=True, kw_only=True)
class Request:
    """What to measure.

    Attributes:
        method: `bptt`, the whole sequence at once; or `fptt`, slice by slice, the state going on.
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
        """Return what `from_json` reads."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Request":
        """Return the request that `to_json` wrote."""
        return cls(**json.loads(text))


def measure(request: Request) -> dict[str, Any]:
    """Train through the sequence once; return updates, seconds, peak memory, and how far that is above the start."""
    prepare_process(request.threads)
    device = torch.device(request.device)
    _load_code(request, device)
    sequence = SequenceFile(Path(request.path), request.sequence_length, request.batch_size)
    method = _make_method(request, device)
    length = request.sequence_length if request.method == "bptt" else CHUNKS_A_SLICE * request.chunk_length
    memory = MemoryMeter(device)
    memory.start()
    start = told = time.perf_counter()
    state = None
    for inputs, targets in sequence.slices(length):
        state = method.train_batch(inputs.to(device), targets.to(device), state).state
        fraction = method.timesteps / (request.sequence_length * request.batch_size)
        if fraction < 1 and time.perf_counter() - told > SECONDS_BETWEEN_REPORTS:
            told = time.perf_counter()
            _tell({"fraction": fraction})
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    seconds = time.perf_counter() - start
    memory.stop()
    return {**memory.figures(), "seconds": seconds, "updates": method.updates}


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
    """Let everything be loaded that a step needs, by two steps of another model: it is no memory of training."""
    steps = torch.zeros(2, request.batch_size, 1, device=device)
    _make_method(request, device).train_batch(steps, steps)


def _tell(message: dict[str, Any]) -> None:
    print(json.dumps(message), flush=True)


if __name__ == "__main__":
    _tell(measure(Request.from_json(sys.argv[1])))
