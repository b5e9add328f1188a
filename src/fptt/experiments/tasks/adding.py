"""The adding task (Hochreiter & Schmidhuber 1997): add the two marked numbers of a long sequence."""

import torch
from torch import Tensor

from fptt.experiments.configs.config import Setting
from fptt.experiments.process.errors import UserError
from fptt.experiments.tasks.batches import check_held_out, generated_parts, samples_an_epoch
from fptt.experiments.tasks.registry import CHANCE
from fptt.experiments.tasks.task import Task

NUM_HELD_OUT = 2000


def load(setting: Setting, seed: int) -> Task:
    """Make the task for T = `setting.length`: fresh training data from the seed, fixed validation and test data.

    An epoch is 100 batches, or `setting.limit` samples. The mean squared error of a guess is 1/6.
    """
    length = setting.length or 200
    if length < 2:
        raise UserError(f"length must be at least 2 for the adding task, got {length}.")
    check_held_out(NUM_HELD_OUT, length)
    train, validation, test = generated_parts(
        lambda count, generator: draw_samples(count, length, generator), samples_an_epoch(setting), NUM_HELD_OUT, seed
    )
    return Task(
        name="adding",
        kind="regression",
        train=train,
        validation=validation,
        test=test,
        to_sequences=lambda batch: batch.transpose(0, 1),
        input_size=2,
        output_size=1,
        chance=CHANCE["adding", "mse"],
    )


def draw_samples(count: int, length: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return sequences (count, length, 2) of numbers in [0, 1) and marks, and their sums (count, 1).

    One mark falls into each half of the sequence.
    """
    numbers = torch.rand(count, length, generator=generator)
    half = length // 2
    first = torch.randint(0, half, (count,), generator=generator)
    second = torch.randint(half, length, (count,), generator=generator)
    rows = torch.arange(count)
    marks = torch.zeros(count, length)
    marks[rows, first] = marks[rows, second] = 1.0
    return torch.stack([numbers, marks], dim=-1), (numbers * marks).sum(1, keepdim=True)
