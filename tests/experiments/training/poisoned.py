"""The command line with NaN in one batch of one process: `python -m …training.poisoned BATCH PROCESS FOLDER …`.

Each process leaves the weights and the learning rate of its last batch in a file.
"""

import sys
from collections.abc import Callable
from pathlib import Path

import torch

from fptt.experiments.commands.cli import run
from fptt.experiments.tasks.batches import Samples
from fptt.experiments.training.run import Run

TrainBatch = Callable[[Run, Samples], None]


def poisoning(train_batch: TrainBatch, times: dict[int, int], process: int = 0) -> TrainBatch:
    """Return `Run.train_batch` with NaN in the last pixel of some batches.

    Args:
        train_batch: As it is.
        times: How often the batches of these numbers come with NaN.
        process: Whose part of them.
    """

    def poison(self: Run, batch: Samples) -> None:
        number = self.method.batches
        if self.ranks.number == process and times.get(number, 0) > 0:
            times[number] -= 1
            inputs = batch[0].clone()
            inputs[..., -1] = float("nan")
            batch = (inputs, *batch[1:])
        train_batch(self, batch)

    return poison


def recording(train_batch: TrainBatch, folder: Path) -> TrainBatch:
    """Return `Run.train_batch` which writes what there is after it."""

    def record(self: Run, batch: Samples) -> None:
        train_batch(self, batch)
        found = {"lr": self.optimizer.param_groups[0]["lr"], "weights": self.model.state_dict()}
        torch.save(found, folder / f"process-{self.ranks.number}.pt")

    return record


if __name__ == "__main__":
    batch, process, folder, *arguments = sys.argv[1:]
    train_batch = poisoning(Run.train_batch, {int(batch): 1}, int(process))
    Run.train_batch = recording(train_batch, Path(folder))  # pyright: ignore[reportAttributeAccessIssue]
    sys.exit(run(arguments))
