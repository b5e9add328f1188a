"""Sequences of unequal length, laid end to end in lanes without padding."""

import heapq
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fptt._arrays import as_tensor
from fptt._checks import check_count, check_iterable
from fptt._stream import StreamChunk


def pack_sequences(
    sequences: Iterable[Any], batch_size: int, chunk_length: int, *, batch_first: bool = False
) -> Iterator[StreamChunk]:
    """Lay sequences of any lengths end to end in lanes, and yield chunks for `train_stream`.

    A lane takes the next sequence at the step where its own ends, so that no step is padding while sequences last; at
    the very end the mask is False where lanes have run out. Which lane gets which does not depend on `chunk_length`.

    Args:
        sequences: Any iterable of pairs, inputs (T_i, …) and targets (T_i, …), T_i ≥ 1; pulled when a lane is free.
        batch_size: B, the lanes.
        chunk_length: T, the time steps of every chunk.
        batch_first: Whether chunks are (B, T, …) instead of (T, B, …).

    Returns:
        An iterator of `StreamChunk`s with `mask` and `is_first`.

    Raises:
        ValueError: If a number is out of range, or a sequence is empty or not like the first.
        TypeError: If `sequences` is not iterable or does not give pairs.

    Examples:
        >>> sequences = [(torch.full((n,), float(n)), torch.zeros(n)) for n in (3, 1, 2, 2)]
        >>> [chunk.inputs.T.tolist() for chunk in fptt.pack_sequences(sequences, batch_size=2, chunk_length=3)]
        [[[3.0, 3.0, 3.0], [1.0, 2.0, 2.0]], [[2.0, 2.0, 0.0], [0.0, 0.0, 0.0]]]
    """
    check_iterable("sequences", sequences)
    check_count("batch_size", batch_size)
    check_count("chunk_length", chunk_length)
    chunks = _pack(_checked(sequences), batch_size, chunk_length)
    return (StreamChunk(*(tensor.transpose(0, 1) for tensor in chunk)) for chunk in chunks) if batch_first else chunks  # pyright: ignore


class _Placed(NamedTuple):
    """A sequence, its lane, and its first step in the stream."""

    inputs: Tensor
    targets: Tensor
    lane: int
    start: int

    @property
    def end(self) -> int:
        return self.start + len(self.inputs)


def _pack(sequences: Iterator[tuple[Tensor, Tensor]], batch_size: int, chunk_length: int) -> Iterator[StreamChunk]:
    free = [(0, lane) for lane in range(batch_size)]  # a heap: the step at which each lane is free
    placed: list[_Placed] = []
    start, end = 0, chunk_length
    while True:
        while free[0][0] < end and (pair := next(sequences, None)) is not None:
            begin, lane = free[0]
            placed.append(_Placed(*pair, lane, begin))
            heapq.heapreplace(free, (placed[-1].end, lane))
        placed = [sequence for sequence in placed if sequence.end > start]
        if not placed:
            return
        yield _cut(placed, batch_size, start, end)
        start, end = end, end + chunk_length


def _cut(placed: list[_Placed], batch_size: int, start: int, end: int) -> StreamChunk:
    """Return the steps from start to end of what is placed in the lanes."""
    shape = (end - start, batch_size)
    inputs, targets = (tensor.new_zeros(shape + tensor.shape[1:]) for tensor in placed[0][:2])
    mask, is_first = torch.zeros(shape, dtype=torch.bool), torch.zeros(shape, dtype=torch.bool)
    for sequence in placed:
        first, last = max(sequence.start, start), min(sequence.end, end)
        here, own = slice(first - start, last - start), slice(first - sequence.start, last - sequence.start)
        inputs[here, sequence.lane] = sequence.inputs[own]
        targets[here, sequence.lane] = sequence.targets[own]
        mask[here, sequence.lane] = True
        is_first[first - start, sequence.lane] = first == sequence.start
    return StreamChunk(inputs, targets, mask, is_first)


def _checked(sequences: Iterable[Any]) -> Iterator[tuple[Tensor, Tensor]]:
    expected = None
    for number, pair in enumerate(sequences):
        if not isinstance(pair, tuple | list) or len(pair) != 2:
            raise TypeError(f"sequences must give pairs (inputs, targets), got a {type(pair).__name__} at {number}.")
        inputs, targets = map(as_tensor, pair)
        if inputs.dim() == 0 or len(inputs) == 0 or targets.shape[:1] != inputs.shape[:1]:
            raise ValueError(
                "sequences must have inputs (T_i, …) and targets (T_i, …) of at least one step, "
                f"got {tuple(inputs.shape)} and {tuple(targets.shape)} at {number}."
            )
        found = [(tuple(tensor.shape[1:]), tensor.dtype, tensor.device) for tensor in (inputs, targets)]
        expected = expected or found
        if found != expected:
            raise ValueError(f"sequences must all have steps like the first, {expected}, got {found} at {number}.")
        yield inputs, targets
