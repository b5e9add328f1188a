"""The batches of a data set, in an order that can be interrupted anywhere and taken up again."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, RandomSampler, TensorDataset

Samples = tuple[Tensor, ...]
"""Inputs and targets."""

EVALUATION_BATCH_SIZE = 256

BATCHES_AN_EPOCH = 100
"""Of generated data, where no limit is given."""
HELD_OUT_SEED = 2**31
"""Of generated validation and test data; no run has it."""


class Batches(ABC):
    """The training batches of epoch after epoch.

    Iterating goes on from `position` to the end of the epoch; the next iteration is the next epoch.

    Attributes:
        position: Batches of this epoch that have been given out.
        carries_state: Whether each batch goes on where the one before it stopped, so that the state is carried over.
    """

    carries_state = False

    def __init__(self) -> None:
        self.position = 0

    @abstractmethod
    def __len__(self) -> int:
        """Return the batches of an epoch."""

    def __iter__(self) -> Iterator[Samples]:
        """Yield the batches that are left of this epoch."""
        self._begin(is_new=self.position == 0)
        while self.position < len(self):
            self.position += 1  # before the batch is trained on: a checkpoint after it has it behind
            yield self._batch(self.position - 1)
        self.position = 0

    @abstractmethod
    def _batch(self, number: int) -> Samples: ...

    @abstractmethod
    def _begin(self, *, is_new: bool) -> None:
        """Prepare a new epoch, or one that is taken up again."""

    def state_dict(self) -> dict[str, Any]:
        """Return where the order stands."""
        return {"position": self.position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go back to where `state_dict` stood."""
        self.position = state["position"]


class ShuffledBatches(Batches):
    """Independent samples, shuffled anew every epoch.

    Args:
        dataset: Indexed by a list of numbers; returns a `Samples`.
        batch_size: Samples a batch; the last one may have fewer.
        seed: Of the orders.
    """

    def __init__(self, dataset: Dataset[Samples], batch_size: int, seed: int) -> None:
        super().__init__()
        self.dataset, self.batch_size = dataset, batch_size
        self.generator = torch.Generator().manual_seed(seed)
        self.before_epoch = self.generator.get_state()
        self.order: list[int] = []

    def __len__(self) -> int:
        """Return the batches of an epoch."""
        return math.ceil(num_samples(self.dataset) / self.batch_size)

    def _begin(self, *, is_new: bool) -> None:
        if is_new:
            self.before_epoch = self.generator.get_state()
        self.generator.set_state(self.before_epoch)
        self.order = list(RandomSampler(self.dataset, generator=self.generator))  # pyright: ignore[reportArgumentType]

    def _batch(self, number: int) -> Samples:
        return self.dataset[self.order[number * self.batch_size : (number + 1) * self.batch_size]]

    def state_dict(self) -> dict[str, Any]:
        """Return where the order and, if samples are generated, their random numbers stand."""
        own = self.dataset.generator.get_state() if isinstance(self.dataset, FreshSamples) else None
        return {**super().state_dict(), "before_epoch": self.before_epoch, "samples": own}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go back to where `state_dict` stood."""
        super().load_state_dict(state)
        self.before_epoch = state["before_epoch"]
        self.generator.set_state(self.before_epoch)
        if isinstance(self.dataset, FreshSamples):
            self.dataset.generator.set_state(state["samples"])


class WindowBatches(Batches):
    """The full windows of a stream, in order: the state goes on from one to the next within an epoch.

    A shorter window at the end, which might not have a step for every chunk, is for evaluation only.
    """

    carries_state = True

    def __init__(self, stream: "TokenWindows") -> None:
        super().__init__()
        self.stream = stream

    def __len__(self) -> int:
        """Return the full windows of the stream, or 1."""
        return max(1, self.stream.num_steps // self.stream.length)

    def _begin(self, *, is_new: bool) -> None: ...

    def _batch(self, number: int) -> Samples:
        return self.stream[number]


class FreshSamples(Dataset[Samples]):
    """Generated training data: every read draws new samples from one seeded stream."""

    def __init__(self, draw: Callable[[int, torch.Generator], Samples], size: int, seed: int) -> None:
        self.draw, self.size = draw, size
        self.generator = torch.Generator().manual_seed(seed)

    def __len__(self) -> int:
        """Return the samples that one epoch draws."""
        return self.size

    def __getitem__(self, index: Sequence[int]) -> Samples:
        """Return as many new samples as there are numbers."""
        return self.draw(len(index), self.generator)


def generated_parts(
    draw: Callable[[int, torch.Generator], Samples], num_training: int, num_held_out: int, seed: int
) -> tuple[FreshSamples, TensorDataset, TensorDataset]:
    """Return fresh training data from a seed, and validation and test data that are the same for every seed."""
    held_out = torch.Generator().manual_seed(HELD_OUT_SEED)
    validation, test = (TensorDataset(*draw(num_held_out, held_out)) for _ in range(2))
    return FreshSamples(draw, num_training, seed), validation, test


class TokenWindows(Dataset[Samples]):
    """A stream of tokens in B columns of equal length, read in windows of T steps; the targets are the next tokens.

    What does not fill all columns is left out at the end; the last window may be shorter.

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
        """Return inputs and targets of one window, (T, B) each."""
        start = number * self.length
        stop = min(start + self.length, self.num_steps)
        return self.columns[start:stop], self.columns[start + 1 : stop + 1]


def num_samples(dataset: Dataset[Samples]) -> int:
    """Return the length of a data set."""
    return len(dataset)  # pyright: ignore[reportArgumentType]
