"""Batches that follow one another in time, and the walk over a stream of them."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from fptt._sequence import Progress, State


class Batch(NamedTuple):
    """Sequences of a batch, or the next time steps of a stream in all its lanes.

    Attributes:
        inputs: (T, B, …), or (B, T, …) with `batch_first`. In a stream T may change from one to the next, B not.
        targets: As the loss wants them: (T, B, …) for a `SequenceLoss`.
        mask: Boolean, (T, B), True at real steps; None if all are real.
        is_first: Boolean, (T, B), True where a new sequence begins; None if all sequences continue.
        progress: Where each lane stands in its sequence, chunk by chunk, from `stagger`; None elsewhere. It says where
            sequences begin, instead of `is_first`; targets of a `TerminalLoss` are then (K, B, …), one a chunk.

    Examples:
        >>> fptt.Batch(torch.zeros(5, 2, 3), torch.zeros(5, 2)).to("cpu").mask is None
        True
    """

    inputs: Tensor
    targets: Tensor
    mask: Tensor | None = None
    is_first: Tensor | None = None
    progress: Progress | None = None

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> "Batch":
        """Return the batch on another device."""
        return tree_map_only(Tensor, lambda tensor: tensor.to(device, non_blocking=non_blocking), self)


class _HasState(Protocol):
    @property
    def state(self) -> State: ...


Result = TypeVar("Result", bound=_HasState)


def walk_stream(
    learn: Callable[[Batch, State], Result], source: Iterable[Any], state: State, batch_dim: int
) -> Iterator[Result]:
    """Learn each chunk of a source from the state after the one before, and yield what that gave.

    No chunk is held while the next is pulled: `enumerate` would.
    """
    number, batch_size = 0, None
    for item in source:
        chunk = as_batch(item, number)
        _check_batch_size(chunk.inputs, batch_size, batch_dim, number)
        try:
            result = learn(chunk, state)
        except Exception as error:
            error.add_note(f"This was chunk {number} of the stream.")
            raise
        number, batch_size, state = number + 1, chunk.inputs.shape[batch_dim], result.state
        del item, chunk
        yield result
        del result


def as_batch(item: Any, number: int) -> Batch:
    """Return an item of a source, the given one of them, as a Batch.

    Raises:
        TypeError: If it is neither a Batch nor a pair.
    """
    if isinstance(item, Batch):
        return item
    if isinstance(item, tuple | list) and len(item) == 2:
        return Batch(*item)
    what = f"{type(item).__name__} of {len(item)}" if isinstance(item, tuple | list) else type(item).__name__
    raise TypeError(f"source must give pairs (inputs, targets) or Batches, got a {what} as chunk {number}.")


def _check_batch_size(inputs: Any, batch_size: int | None, batch_dim: int, number: int) -> None:
    if batch_size is None or not isinstance(inputs, Tensor) or inputs.dim() < 2:
        return  # invalid inputs are rejected in `cut_batch`
    if inputs.shape[batch_dim] != batch_size:
        raise ValueError(
            f"inputs must keep the batch size of the stream, {batch_size} in dim {batch_dim}, "
            f"got {tuple(inputs.shape)} in chunk {number}."
        )
