"""Strings aⁿbⁿ (Gers & Schmidhuber 2001): predict the next symbol, for longer n than in training."""

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.data import TensorDataset

from fptt.experiments.configs.config import Setting
from fptt.experiments.tasks.batches import FreshSamples, Samples, check_held_out, samples_an_epoch
from fptt.experiments.tasks.scores import IGNORED, ClassScore
from fptt.experiments.tasks.task import Task

MARKER, A, B = range(3)
"""The symbols: start or end of a string, a, b."""


class StringScore(ClassScore):
    """The metrics of `ClassScore`, and the part of the strings that are right at every counted step."""

    def __init__(self) -> None:
        super().__init__(num_classes=3)
        self.strings, self.right = 0, 0
        self.has_erred = torch.zeros(0, dtype=torch.bool)

    def add(self, outputs: Tensor, targets: Tensor) -> None:
        """Add outputs (T, B, C) and symbols (T, B) of a chunk; a string may continue in the next chunk."""
        super().add(outputs, targets)
        errors = ((outputs.argmax(-1) != targets) & (targets != IGNORED)).cpu()
        ends = (targets == MARKER).cpu()
        if len(self.has_erred) != targets.shape[1]:
            self.has_erred = torch.zeros(targets.shape[1], dtype=torch.bool)
        for erred, ended in zip(errors, ends, strict=True):
            self.has_erred = self.has_erred | erred
            self.strings += ended.sum().item()
            self.right += (ended & ~self.has_erred).sum().item()
            self.has_erred = self.has_erred & ~ended  # the next batch begins without errors

    def metrics(self) -> dict[str, float]:
        """Return the metrics of the steps, and that of the strings."""
        return {**super().metrics(), "strings": self.right / max(self.strings, 1)}


def load(setting: Setting, seed: int) -> Task:
    """Make the task for N = `setting.length`: fresh training data from the seed, n uniform in 1 … N.

    Validation has every n in 1 … N once, test every n in N + 1 … 2N, longer than any in training. An epoch is 100
    batches, or `setting.limit` samples.
    """
    largest = setting.length or 10
    check_held_out(largest, 4 * largest + 1)  # of the test, the longer ones

    def draw(count: int, generator: torch.Generator) -> Samples:
        drawn = torch.randint(1, largest + 1, (count,), generator=generator)
        return strings(drawn.tolist(), largest)

    return Task(
        name="anbn",
        kind="classes",
        train=FreshSamples(draw, samples_an_epoch(setting), seed),
        validation=TensorDataset(*strings(range(1, largest + 1), largest)),
        test=TensorDataset(*strings(range(largest + 1, 2 * largest + 1), 2 * largest)),
        to_sequences=one_hot,
        input_size=3,
        output_size=3,
        has_step_targets=True,
        score=StringScore,
    )


def strings(numbers: Iterable[int], largest: int) -> tuple[Tensor, Tensor]:
    """Return inputs and targets, (count, 2 · largest + 1) both, of aⁿbⁿ for every number n.

    Inputs are a marker, n a's, n b's. What follows the marker or an a cannot be known, and is ignored; what follows a b
    is: n − 1 b's, then the marker. Shorter strings are padded by markers with ignored targets.
    """
    n, step = torch.tensor(list(numbers)).unsqueeze(1), torch.arange(2 * largest + 1)
    is_padding = step > 2 * n
    inputs = torch.where(step <= n, A, B).masked_fill(is_padding | (step == 0), MARKER)
    targets = torch.where(step < 2 * n, B, MARKER).masked_fill(is_padding | (step <= n), IGNORED)
    return inputs, targets


def one_hot(batch: Tensor) -> Tensor:
    """Return symbols, (B, T), as sequences of one-hot vectors, (T, B, 3)."""
    return functional.one_hot(batch.T, 3).float()
