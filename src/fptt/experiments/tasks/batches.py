"""Training batches, in an order that can be interrupted anywhere and resumed."""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset, RandomSampler, TensorDataset

import fptt
from fptt.experiments.configs.config import Setting
from fptt.experiments.process.errors import UserError

Samples = tuple[Tensor, ...]
"""Inputs and targets."""

EVALUATION_BATCH_SIZE = 256

BATCHES_AN_EPOCH = 100
"""Of generated data without a limit; see `samples_an_epoch`."""
MAX_SAMPLES = 10**8
"""Of an epoch of generated data, whose order is drawn as a whole."""
MAX_STEPS = 10**9
"""Of generated validation data, and of test data: each is drawn as a whole."""
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
        before_epoch = self.before_epoch if self.position else self.generator.get_state()  # of the epoch to come
        return {"position": self.position, "before_epoch": before_epoch, "samples": own}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.position = state["position"]
        self.before_epoch = state["before_epoch"]
        self.generator.set_state(self.before_epoch)
        if isinstance(self.dataset, FreshSamples):
            self.dataset.generator.set_state(state["samples"])


class StaggeredBatches:
    """Independent samples in staggered lanes, in a new order every epoch; see `fptt.stagger`.

    An epoch begins and ends with idle lanes: every sample is in it once and whole.

    Args:
        batches: The batches that are staggered.
        to_sequences: Turns one of them into time-major inputs and targets.
        num_chunks: K.
        num_steps: T.
        per_step: Whether the targets are (T, B, …).
    """

    def __init__(
        self,
        batches: ShuffledBatches,
        to_sequences: Callable[[Samples], Samples],
        *,
        num_chunks: int,
        num_steps: int,
        per_step: bool,
    ) -> None:
        self.batches, self.to_sequences = batches, to_sequences
        self.num_chunks, self.num_steps, self.per_step = num_chunks, num_steps, per_step
        self._lanes: fptt.StaggeredLanes | None = None  # of the epoch under way
        self._resumed: dict[str, Any] | None = None
        # the states of the batches before each of those that lie open in the lanes, by number
        self._before: dict[int, dict[str, Any]] = {}

    @property
    def num_lanes(self) -> int:
        """B, the samples of the first batch."""
        return min(self.batches.batch_size, num_samples(self.batches.dataset))

    def __len__(self) -> int:
        """Return the batches of an epoch: of the samples, and those in which the last lanes come to their ends."""
        length = fptt.chunk_lengths(self.num_steps, self.num_chunks)[0]
        own_chunks = -(-self.num_steps // length)  # fewer than K where ⌈T/K⌉ steps a chunk need fewer
        num_last = num_samples(self.batches.dataset) - (len(self.batches) - 1) * self.batches.batch_size
        delay = (num_last - 1) * own_chunks // self.num_lanes
        return math.ceil((len(self.batches) * own_chunks + delay) / self.num_chunks)

    def __iter__(self) -> Iterator[fptt.Batch]:
        """Yield the batches that are left of this epoch."""
        resumed, self._resumed = self._resumed, None
        pulled = self._pull(0 if resumed is None else resumed["skip"])
        self._lanes = fptt.stagger(pulled, num_chunks=self.num_chunks, per_step=self.per_step)
        if resumed is not None:
            self._lanes.load_state_dict(resumed)
        yield from self._lanes
        self._lanes = None
        self._before.clear()

    def _pull(self, number: int) -> Iterator[Samples]:
        """Yield the batches of samples from the given one on."""
        samples = iter(self.batches)
        while True:
            self._before[number] = self.batches.state_dict()
            batch = next(samples, None)
            if batch is None:
                return
            number += 1
            yield self.to_sequences(batch)

    def state_dict(self) -> dict[str, Any]:
        """Return where the lanes are, and the state of the batches before the first that is to be read again."""
        if self._lanes is None:
            return {"lanes": self._resumed, "batches": self.batches.state_dict()}
        position = self._lanes.state_dict()
        self._before = {number: state for number, state in self._before.items() if number >= position["skip"]}
        return {"lanes": position, "batches": self._before.get(position["skip"], self.batches.state_dict())}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned, also in the middle of an epoch."""
        self._lanes, self._resumed = None, state["lanes"]  # after a rollback it is saved again before it goes on
        self.batches.load_state_dict(state["batches"])


class FreshSamples(Dataset[Samples]):
    """Generated training data: every access draws new samples from one seeded generator.

    Raises:
        UserError: If an epoch has too many of them.
    """

    def __init__(self, draw: Callable[[int, torch.Generator], Samples], size: int, seed: int) -> None:
        if size > MAX_SAMPLES:
            raise UserError(
                f"an epoch of generated data must have at most {MAX_SAMPLES:,} samples, got {size:,}: give a smaller "
                "limit or batch_size."
            )
        self.draw, self.size = draw, size
        self.generator = torch.Generator().manual_seed(seed)

    def __len__(self) -> int:
        """Return the samples that one epoch draws."""
        return self.size

    def __getitem__(self, index: Sequence[int]) -> Samples:
        """Return as many new samples as there are numbers."""
        return self.draw(len(index), self.generator)


class PaddedSamples(Dataset[Samples]):
    """Ragged sequences, padded with zeros: inputs (B, T, D), targets (B, …) or (B, T, …), lengths (B,).

    Args:
        inputs: (ΣT_i, D), the steps of all sequences one after another.
        targets: (N, …), or (ΣT_i, …) if there is one a step.
        lengths: (N,).
        per_step: Whether there is a target a step.
        num_steps: T; None for that of the longest sequence of a batch.
        padding: Target of the steps that are padding.
    """

    def __init__(
        self,
        inputs: Tensor,
        targets: Tensor,
        lengths: Tensor,
        *,
        per_step: bool,
        num_steps: int | None = None,
        padding: float = 0.0,
    ) -> None:
        self.inputs = inputs.split(lengths.tolist())
        self.targets = targets
        self.step_targets = targets.split(lengths.tolist()) if per_step else None
        self.lengths, self.num_steps, self.padding = lengths, num_steps, padding

    def __len__(self) -> int:
        """Return the sequences."""
        return len(self.lengths)

    def __getitem__(self, index: Sequence[int]) -> Samples:
        """Return a batch of sequences."""
        lengths = self.lengths[index]
        inputs = self._padded(self.inputs, index, 0.0)
        if self.step_targets is None:
            return inputs, self.targets[index], lengths
        return inputs, self._padded(self.step_targets, index, self.padding), lengths

    def _padded(self, sequences: Sequence[Tensor], index: Sequence[int], value: float) -> Tensor:
        padded = pad_sequence([sequences[number] for number in index], batch_first=True, padding_value=value)
        if self.num_steps is None:
            return padded
        missing = padded.new_full((len(index), self.num_steps - padded.shape[1], *padded.shape[2:]), value)
        return torch.cat([padded, missing], dim=1)


def samples_an_epoch(setting: Setting) -> int:
    """Return the samples that an epoch of a generated task draws."""
    return setting.limit or BATCHES_AN_EPOCH * setting.batch_size


def check_held_out(num_sequences: int, num_steps: int) -> None:
    """Raise UserError if generated validation or test data have too many steps."""
    if num_sequences * num_steps > MAX_STEPS:
        raise UserError(
            f"generated validation and test data must have at most {MAX_STEPS:,} steps each, got {num_sequences:,} "
            f"sequences of {num_steps:,}: give a smaller length."
        )


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
