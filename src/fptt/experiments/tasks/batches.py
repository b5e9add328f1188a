"""Training batches, in an order that can be interrupted anywhere and resumed."""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, RandomSampler, TensorDataset

import fptt
from fptt.experiments.configs.config import Setting

Samples = tuple[Tensor, ...]
"""Inputs and targets."""

EVALUATION_BATCH_SIZE = 256

BATCHES_AN_EPOCH = 100
"""Of generated data without a limit; see `samples_an_epoch`."""
HELD_OUT_SEED = 2**31
"""Of generated validation and test data: above the seeds of runs, so that none trains on the draws it is tested on."""


class ShuffledBatches:
    """Independent samples, in a new order every epoch.

    Iteration starts at `position` and ends with the epoch; the next one is the next epoch.

    Args:
        dataset: Indexed by a list of numbers; returns a `Samples`.
        batch_size: Samples a batch; the last one may have fewer.
        seed: Of the orders.

    Attributes:
        position: Batches of this epoch that have been given out.
    """

    def __init__(self, dataset: Dataset[Samples], batch_size: int, seed: int) -> None:
        self.dataset, self.batch_size = dataset, batch_size
        self.position = 0
        self.generator = torch.Generator().manual_seed(seed)
        self.before_epoch = self.generator.get_state()

    def __len__(self) -> int:
        """Return the batches of an epoch."""
        return math.ceil(num_samples(self.dataset) / self.batch_size)

    def __iter__(self) -> Iterator[Samples]:
        """Yield the batches that are left of this epoch."""
        if not self.position:
            self.before_epoch = self.generator.get_state()
        self.generator.set_state(self.before_epoch)  # in the middle of an epoch, its order is drawn once more
        order = list(RandomSampler(self.dataset, generator=self.generator))  # pyright: ignore[reportArgumentType]
        while self.position < len(self):
            start = self.position * self.batch_size
            self.position += 1  # before the batch is trained on: a checkpoint after it includes it
            yield self.dataset[order[start : start + self.batch_size]]
        self.position = 0

    def state_dict(self) -> dict[str, Any]:
        """Return the position, and the states of the generators of the order and of generated samples."""
        own = self.dataset.generator.get_state() if isinstance(self.dataset, FreshSamples) else None
        return {"position": self.position, "before_epoch": self.before_epoch, "samples": own}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.position = state["position"]
        self.before_epoch = state["before_epoch"]
        self.generator.set_state(self.before_epoch)
        if isinstance(self.dataset, FreshSamples):
            self.dataset.generator.set_state(state["samples"])


class FreshSamples(Dataset[Samples]):
    """Generated training data: every access draws new samples from one seeded generator."""

    def __init__(self, draw: Callable[[int, torch.Generator], Samples], size: int, seed: int) -> None:
        self.draw, self.size = draw, size
        self.generator = torch.Generator().manual_seed(seed)

    def __len__(self) -> int:
        """Return the samples that one epoch draws."""
        return self.size

    def __getitem__(self, index: Sequence[int]) -> Samples:
        """Return as many new samples as there are numbers."""
        return self.draw(len(index), self.generator)


def samples_an_epoch(setting: Setting) -> int:
    """Return the samples that an epoch of a generated task draws."""
    return setting.limit or BATCHES_AN_EPOCH * setting.batch_size


def generated_parts(
    draw: Callable[[int, torch.Generator], Samples], num_training: int, num_held_out: int, seed: int
) -> tuple[FreshSamples, TensorDataset, TensorDataset]:
    """Return fresh training data from a seed, and validation and test data that are the same for every seed."""
    held_out = torch.Generator().manual_seed(HELD_OUT_SEED)
    validation, test = (TensorDataset(*draw(num_held_out, held_out)) for _ in range(2))
    return FreshSamples(draw, num_training, seed), validation, test


class TokenStream(Dataset[Samples]):
    """Tokens in B columns of equal length, read in windows of T steps; the targets are the next tokens.

    The state is carried from one window to the next. What does not fill all columns is left out at the end.

    Args:
        tokens: (N,), whole numbers.
        batch_size: B.
        length: T.

    Raises:
        ValueError: If there are fewer tokens than one step of all columns needs.
    """

    def __init__(self, tokens: Tensor, batch_size: int, length: int) -> None:
        height = len(tokens) // batch_size
        if height < 2:
            raise ValueError(f"the stream must have at least {2 * batch_size} tokens for {batch_size} columns.")
        self.columns = tokens[: height * batch_size].view(batch_size, height).T.contiguous()  # (N/B, B)
        self.length = length

    @property
    def num_steps(self) -> int:
        """Steps that have a next token."""
        return len(self.columns) - 1

    def __len__(self) -> int:
        """Return the windows."""
        return math.ceil(self.num_steps / self.length)

    def __getitem__(self, number: int) -> Samples:
        """Return inputs and targets of a window, (T, B) each; the last one may be shorter."""
        start = number * self.length
        stop = min(start + self.length, self.num_steps)
        return self.columns[start:stop], self.columns[start + 1 : stop + 1]

    def chunks(self) -> fptt.ArrayChunks:
        """Return the full windows as chunks for training.

        A shorter window at the end, which might not have a step for every chunk of a method, is for evaluation only.
        """
        length = min(self.length, self.num_steps)
        num_steps = self.num_steps // length * length  # so that all chunks have the same length
        inputs, targets = (part[:num_steps].T.flatten() for part in (self.columns[:-1], self.columns[1:]))
        return fptt.ArrayChunks(inputs, targets, chunk_length=length, batch_size=self.columns.shape[1])


def num_samples(dataset: Dataset[Samples]) -> int:
    """Return the length of a data set."""
    return len(dataset)  # pyright: ignore[reportArgumentType]
