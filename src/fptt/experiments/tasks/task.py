"""What a task is: data in three parts, the shape of its sequences, and what to measure."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, Dataset, RandomSampler, SequentialSampler

Batch = tuple[Tensor, ...]
"""Inputs and targets."""

EVALUATION_BATCH_SIZE = 256


@dataclass(frozen=True)
class Task:
    """A task with one target for every sequence.

    Attributes:
        kind: `classes` (accuracy, higher is better) or `regression` (mse, lower is better).
        train, validation, test: Data sets that are indexed by a list of numbers and return (inputs, targets).
        to_sequences: Turns a batch of inputs into float sequences (T, B, D).
        input_size: D.
        output_size: Classes, or width of the target.
    """

    name: str
    kind: Literal["classes", "regression"]
    train: Dataset[Batch]
    validation: Dataset[Batch]
    test: Dataset[Batch]
    to_sequences: Callable[[Tensor], Tensor]
    input_size: int
    output_size: int

    @property
    def metric(self) -> str:
        """Name of the metric."""
        return "accuracy" if self.kind == "classes" else "mse"

    def is_better(self, metric: float, other: float) -> bool:
        """Tell whether a metric is at least as good as another; anything is better than NaN."""
        if math.isnan(other):
            return True
        return metric >= other if self.kind == "classes" else metric <= other


class FreshSamples(Dataset[Batch]):
    """Generated training data: every read draws new samples from one seeded stream."""

    def __init__(self, draw: Callable[[int, torch.Generator], Batch], size: int, seed: int) -> None:
        self.draw, self.size = draw, size
        self.generator = torch.Generator().manual_seed(seed)

    def __len__(self) -> int:
        """Return the samples that one epoch draws."""
        return self.size

    def __getitem__(self, index: Sequence[int]) -> Batch:
        """Return as many new samples as there are numbers."""
        return self.draw(len(index), self.generator)


def training_batches(task: Task, batch_size: int, generator: torch.Generator) -> DataLoader[Batch]:
    """Return a loader that shuffles anew every epoch."""
    sampler = RandomSampler(task.train, generator=generator)  # pyright: ignore[reportArgumentType]
    return _loader(task.train, sampler, batch_size)


def evaluation_batches(dataset: Dataset[Batch]) -> Iterator[Batch]:
    """Return the batches of a data set in order."""
    sampler = SequentialSampler(dataset)  # pyright: ignore[reportArgumentType]
    return iter(_loader(dataset, sampler, EVALUATION_BATCH_SIZE))


def _loader(dataset: Dataset[Batch], sampler: RandomSampler | SequentialSampler, batch_size: int) -> DataLoader[Batch]:
    # a sampler of whole batches and batch_size=None: one indexing operation a batch, no collation
    batches = BatchSampler(sampler, batch_size, drop_last=False)
    return DataLoader(dataset, sampler=batches, batch_size=None)
