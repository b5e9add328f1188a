"""The command line with NaN in one batch of one process: `python -m …training.poisoned BATCH PROCESS FOLDER …`.

Each process leaves what its last validation was of, the weights or their average, and the learning rate in a file.
"""

import sys
from pathlib import Path
from typing import Any

import torch

from fptt.experiments.commands.cli import run
from fptt.experiments.training import loop
from fptt.experiments.training.run import Run


def poison(run: Run, batch: Any, times: dict[int, int], process: int = 0) -> None:
    """Put NaN into the last pixel of some batches.

    Args:
        run: The run.
        batch: Its next batch, which is changed in place.
        times: How often the batches of these numbers come with NaN.
        process: Whose part of them.
    """
    number = run.method.batches
    if batch is not None and run.processes.rank == process and times.get(number, 0) > 0:
        times[number] -= 1
        batch[0][..., -1] = float("nan")


if __name__ == "__main__":
    number, process, folder, *arguments = sys.argv[1:]
    times = {int(number): 1}

    def disturb(name: str, run: Run, batch: Any = None) -> None:
        if name == "batch":
            poison(run, batch, times, int(process))
        if name == "validated":
            found = {"lr": run.optimizer.param_groups[0]["lr"], "weights": run.evaluated_model.state_dict()}
            torch.save(found, Path(folder) / f"process-{run.processes.rank}.pt")

    loop.on_event = disturb
    sys.exit(run(arguments))
