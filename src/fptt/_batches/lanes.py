"""Sequences of unequal length, laid end to end in lanes without padding."""

import heapq
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fptt._batches.arrays import as_tensor
from fptt._batches.batch import Batch
from fptt._checks import check_count, check_iterable, check_position


class Packed(NamedTuple):
    """The next steps of all lanes, as `LanePacker` gives them.

    Attributes:
        tensors: (T, B, …), of each tensor of the sequences; zeros where a lane is idle.
        mask: Boolean, (T, B), True where a lane has a sequence.
        is_first: Boolean, (T, B), True at its first step.
    """

    tensors: tuple[Tensor, ...]
    mask: Tensor
    is_first: Tensor


class LanePacker(Iterator[Packed]):
    """Sequences laid end to end in lanes: a lane takes the next one at the step where its own ends.

    The lane that is free first takes the next sequence, whatever the length of a chunk.

    Args:
        sequences: Tuples of tensors (T_i, …), T_i ≥ 1 the same in all tensors of one; pulled when a lane is free.
        batch_size: B, the lanes.
        chunk_length: T, the steps of every chunk.
        delays: The step at which each lane takes its first sequence; 0 for all by default.
    """

    def __init__(
        self,
        sequences: Iterator[tuple[Tensor, ...]],
        batch_size: int,
        chunk_length: int,
        delays: Sequence[int] | None = None,
    ) -> None:
        self.batch_size, self.chunk_length = batch_size, chunk_length
        self._sequences = sequences
        self._placed: list[_Placed] = []
        # a heap: the step at which each lane is free
        self._free = [(step, lane) for lane, step in enumerate(delays or [0] * batch_size)]
        heapq.heapify(self._free)
        self._taken = self._step = 0

    def __next__(self) -> Packed:
        """Return the next chunk."""
        start, end = self._step, self._step + self.chunk_length
        while self._free[0][0] < end and (tensors := next(self._sequences, None)) is not None:
            begin, lane = self._free[0]
            self._placed.append(_Placed(self._taken, tensors, lane, begin))
            self._taken += 1
            heapq.heapreplace(self._free, (self._placed[-1].end, lane))
        if not self._placed:
            raise StopIteration
        chunk = _cut(self._placed, self.batch_size, start, end)
        self._step, self._placed = end, [sequence for sequence in self._placed if sequence.end > end]
        return chunk

    @property
    def skip(self) -> int:
        """The number of sequences before the first that lies open, or waits."""
        return min((sequence.number for sequence in self._placed), default=self._taken)

    def state_dict(self) -> dict[str, Any]:
        """Return the position: sequences to skip, sequences taken, those that lie open, and where each lane is free."""
        places = [[sequence.number, sequence.lane, sequence.start, sequence.length] for sequence in self._placed]
        return {
            "skip": self.skip,
            "taken": self._taken,
            "step": self._step,
            "open": places,
            "free": [step for _, step in sorted((lane, step) for step, lane in self._free)],
            "batch_size": self.batch_size,
            "chunk_length": self.chunk_length,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from where `state_dict` was taken; pulls the sequences that lay open, and those between them.

        Raises:
            ValueError: If it was saved with other lanes or chunks, a chunk was taken already, or the sequences are not
                those that follow on the skipped ones.
        """
        own = self.state_dict()
        if own["taken"]:
            raise ValueError(f"state_dict must be loaded before the first chunk, got {own['taken']} sequences taken.")
        check_position(state_dict, own, ("batch_size", "chunk_length"))
        places = {number: place for number, *place in state_dict["open"]}
        self._placed = list(self._open_again(places, state_dict["skip"], state_dict["taken"]))
        self._free = [(step, lane) for lane, step in enumerate(state_dict["free"])]
        heapq.heapify(self._free)
        self._taken, self._step = state_dict["taken"], state_dict["step"]

    def _open_again(self, places: dict[int, list[int]], skip: int, taken: int) -> Iterator["_Placed"]:
        """Pull the sequences from `skip` to `taken`, and put those that lay open back into their places."""
        for number in range(skip, taken):
            tensors = next(self._sequences, None)
            lane, start, length = places.get(number, (0, 0, None))
            if tensors is None or length not in (None, len(tensors[0])):
                found = "the end" if tensors is None else f"one of {len(tensors[0])} steps"
                raise ValueError(
                    f"sequences must be those of the state_dict without the first {skip}: number {number} must have "
                    f"{length or 'some'} steps, got {found}."
                )
            if length is not None:
                yield _Placed(number, tensors, lane, start)


class _Placed(NamedTuple):
    """A sequence and its number, its lane, and its first step in the stream."""

    number: int
    tensors: tuple[Tensor, ...]
    lane: int
    start: int

    @property
    def length(self) -> int:
        return len(self.tensors[0])

    @property
    def end(self) -> int:
        return self.start + self.length


def _cut(placed: list[_Placed], batch_size: int, start: int, end: int) -> Packed:
    """Return the steps from start to end of what is placed in the lanes."""
    shape = (end - start, batch_size)
    tensors = tuple(tensor.new_zeros(shape + tensor.shape[1:]) for tensor in placed[0].tensors)
    mask, is_first = torch.zeros(shape, dtype=torch.bool), torch.zeros(shape, dtype=torch.bool)
    for sequence in placed:
        first, last = max(sequence.start, start), min(sequence.end, end)
        here, own = slice(first - start, last - start), slice(first - sequence.start, last - sequence.start)
        for lanes, tensor in zip(tensors, sequence.tensors, strict=True):
            lanes[here, sequence.lane] = tensor[own]
        mask[here, sequence.lane] = True
        is_first[first - start, sequence.lane] = first == sequence.start
    return Packed(tensors, mask, is_first)


class PackedLanes(Iterator[Batch]):
    """The chunks of `pack_lanes`, and the position, from which packing resumes bitwise.

    The position is a few numbers and holds no data: the sequences that lie open in the lanes are read again. To resume,
    give `pack_lanes` the same sequences without the first `state_dict()["skip"]`, and load the position before the
    first chunk is taken and before `prefetch` is put around it.

    Examples:
        >>> sequences = [(torch.full((n,), float(n)), torch.zeros(n)) for n in (3, 1, 2, 2)]
        >>> chunks = fptt.pack_lanes(sequences, batch_size=2, chunk_length=2)
        >>> position = (next(chunks), chunks.state_dict())[1]
        >>> others = fptt.pack_lanes(sequences[position["skip"] :], batch_size=2, chunk_length=2)
        >>> others.load_state_dict(position)
        >>> torch.equal(next(others).inputs, next(chunks).inputs)
        True
    """

    def __init__(self, sequences: Iterable[Any], batch_size: int, chunk_length: int, *, batch_first: bool) -> None:
        self.batch_first = batch_first
        self._packer = LanePacker(_checked(sequences), batch_size, chunk_length)

    def __next__(self) -> Batch:
        """Return the next chunk."""
        (inputs, targets), *flags = next(self._packer)
        chunk = [tensor.transpose(0, 1) if self.batch_first else tensor for tensor in (inputs, targets, *flags)]
        return Batch(chunk[0], chunk[1], mask=chunk[2], is_first=chunk[3])

    def state_dict(self) -> dict[str, Any]:
        """Return the position: sequences to skip, sequences taken, those that lie open, and where each lane is free."""
        return self._packer.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from where `state_dict` was taken; pulls the sequences that lay open, and those between them.

        Raises:
            ValueError: If it was saved with other lanes or chunks, a chunk was taken already, or the sequences are not
                those that follow on the skipped ones.
        """
        self._packer.load_state_dict(state_dict)


def pack_lanes(
    sequences: Iterable[Any], *, batch_size: int, chunk_length: int, batch_first: bool = False
) -> PackedLanes:
    """Lay sequences of any lengths end to end in lanes, and yield chunks for `train_stream`.

    A lane takes the next sequence at the step where its own ends, so that no step is padding while sequences last; at
    the very end the mask is False where lanes have run out. Which lane gets which does not depend on `chunk_length`.

    A checkpoint holds `state_dict()` of what is returned, that of the `prefetch` around it if there is one, beside the
    recurrent state of the last result. To resume, skip `state_dict["skip"]` sequences; see `PackedLanes`.

    Args:
        sequences: Any iterable of pairs, inputs (T_i, …) and targets (T_i, …), T_i ≥ 1; pulled when a lane is free.
        batch_size: B, the lanes.
        chunk_length: T, the time steps of every chunk.
        batch_first: Whether chunks are (B, T, …) instead of (T, B, …).

    Returns:
        An iterator of `Batch`s with `mask` and `is_first`.

    Raises:
        ValueError: If a number is out of range, or a sequence is empty or not like the first.
        TypeError: If `sequences` is not iterable, does not give pairs, or one has something else than numbers.

    Examples:
        >>> sequences = [(torch.full((n,), float(n)), torch.zeros(n)) for n in (3, 1, 2, 2)]
        >>> [chunk.inputs.T.tolist() for chunk in fptt.pack_lanes(sequences, batch_size=2, chunk_length=3)]
        [[[3.0, 3.0, 3.0], [1.0, 2.0, 2.0]], [[2.0, 2.0, 0.0], [0.0, 0.0, 0.0]]]
    """
    check_iterable("sequences", sequences)
    check_count("batch_size", batch_size)
    check_count("chunk_length", chunk_length)
    return PackedLanes(sequences, batch_size, chunk_length, batch_first=batch_first)


def _checked(sequences: Iterable[Any]) -> Iterator[tuple[Tensor, Tensor]]:
    expected = None
    for number, pair in enumerate(sequences):
        if not isinstance(pair, tuple | list) or len(pair) != 2:
            raise TypeError(f"sequences must give pairs (inputs, targets), got a {type(pair).__name__} at {number}.")
        inputs, targets = (
            as_tensor(f"{name} of sequence {number}", part)
            for name, part in zip(("inputs", "targets"), pair, strict=True)
        )
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
