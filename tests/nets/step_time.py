"""A net for refactoring: seconds of a chunk step, eager and compiled, for one sequence and for a batch.

python tests/nets/step_time.py [--rounds N] [--threads N]     to be run in turns with the code before a change
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.nn import functional

import fptt


class Case(NamedTuple):
    """An FPTT that updates K times in T steps."""

    engine: Any
    batch_size: int
    num_steps: int
    num_chunks: int


CASES = {
    "eager-1": Case("eager", 1, 784, 28),
    "eager-128": Case("eager", 128, 112, 4),
    "compiled-1": Case("compiled", 1, 64, 64),
    "compiled-128": Case("compiled", 128, 64, 64),
}
REPETITIONS = {"eager-1": 1, "eager-128": 3, "compiled-1": 20, "compiled-128": 5}
"""Batches that a round times, each by itself; the round's figure is their median."""


def make_step(case: Case) -> Callable[[], Any]:
    """Return what trains one batch, always the same."""
    torch.manual_seed(0)
    model = fptt.nn.LSTM(1, 128, 10, readout_sizes=[256], last_only=True)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    loss = fptt.TerminalLoss(functional.cross_entropy, divergence="uniform")
    method = fptt.FPTT(model, optimizer, loss, num_chunks=case.num_chunks, engine=case.engine, max_norm=1.0)
    inputs = torch.randn(case.num_steps, case.batch_size, 1)
    targets = torch.randint(10, (case.batch_size,))
    return lambda: method.train_batch(inputs, targets)


def seconds(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="each goes through all cases once")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    steps = {name: make_step(case) for name, case in CASES.items()}
    first = {name: seconds(step) for name, step in steps.items()}  # with compilation
    found: dict[str, list[float]] = {name: [] for name in CASES}
    for _ in range(options.rounds):
        for name, step in steps.items():
            times = [seconds(step) for _ in range(REPETITIONS[name])]
            found[name].append(statistics.median(times) / CASES[name].num_chunks)
    micro = {name: [round(1e6 * value, 1) for value in values] for name, values in found.items()}
    report = {
        "microseconds_a_chunk": {name: round(statistics.median(values), 1) for name, values in micro.items()},
        "least": {name: min(values) for name, values in micro.items()},
        "rounds": micro,
        "seconds_of_the_first_batch": {name: round(value, 2) for name, value in first.items()},
        "threads": options.threads,
        "fptt": str(Path(fptt.__file__).parent),
    }
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
