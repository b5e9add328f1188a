"""A long recording, in memory or on disk, as a stream of chunks that can be resumed."""

from collections.abc import Iterator
from typing import Any, Protocol

import torch
from torch import Tensor

from fptt._batches.batch import Batch
from fptt._checks import check_count, check_position

_SETTINGS = ("num_steps", "chunk_length", "batch_size")
"""What a position depends on."""


class TimeSteps(Protocol):
    """An array that can be sliced in time: a tensor, a NumPy array or memory map, an HDF5 data set, a list.

    A series or frame of pandas is one, too, by the position of its rows, whatever their index is. Steps of a list are
    numbers, lists of them, or tensors of one shape.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: slice, /) -> Any: ...


class ArrayChunks:
    """Cut one long sequence into parallel lanes, and these into chunks, read from where they are when their turn comes.

    Lane b has the steps bL … (b + 1)L − 1 of the N, with L = ⌊N/B⌋; the N mod B steps at the end are left out. Lengths
    of chunks are those of `chunk_lengths`. Iterating continues from the position, up to the end of the lanes; then the
    position is the beginning again, for the next epoch, with the state None. A checkpoint holds `state_dict()`, that of
    the `prefetch` around it if there is one, beside the recurrent state of the last result.

    Args:
        inputs: (N, …), anything that is sliced in time steps; never read as a whole.
        targets: (N, …), one per step.
        chunk_length: Longest chunk in time steps.
        batch_size: B, the lanes.
        mask: Boolean, (N,), True at real steps.
        is_first: Boolean, (N,), True where a new sequence begins.
        batch_first: Whether chunks are (B, T, …) instead of (T, B, …).

    Raises:
        ValueError: If a number is out of range, lengths differ, or there are fewer steps than lanes.
        TypeError: If one cannot be sliced; on iterating, if it has something else than numbers.

    Examples:
        >>> chunks = fptt.ArrayChunks(torch.arange(20), torch.arange(1, 21), chunk_length=4, batch_size=2)
        >>> [chunk.inputs[:, 1].tolist() for chunk in chunks]
        [[10, 11, 12, 13], [14, 15, 16], [17, 18, 19]]
    """

    def __init__(
        self,
        inputs: TimeSteps,
        targets: TimeSteps,
        *,
        chunk_length: int,
        batch_size: int = 1,
        mask: TimeSteps | None = None,
        is_first: TimeSteps | None = None,
        batch_first: bool = False,
    ) -> None:
        check_count("chunk_length", chunk_length)
        check_count("batch_size", batch_size)
        flags = {"mask": mask, "is_first": is_first}
        given = {name: array for name, array in flags.items() if array is not None}
        self._arrays: dict[str, TimeSteps] = {"inputs": inputs, "targets": targets, **given}
        self.num_steps = _checked_length(self._arrays)
        if self.num_steps < batch_size:
            raise ValueError(f"batch_size must be at most the {self.num_steps} time steps, got {batch_size}.")
        self.chunk_length, self.batch_size, self.batch_first = chunk_length, batch_size, batch_first
        self._lane_length = self.num_steps // batch_size
        self._next = 0

    def __len__(self) -> int:
        """Return the number of chunks of a whole pass."""
        return (self._lane_length - 1) // self.chunk_length + 1

    def __iter__(self) -> Iterator[Batch]:
        while self._next < len(self):
            chunk = self._read(self._next)
            self._next += 1
            yield chunk
            del chunk
        self._next = 0

    def _read(self, number: int) -> Batch:
        base, remainder = divmod(self._lane_length, len(self))  # the lengths of `chunk_lengths`, without the list
        start, end = (k * base + min(k, remainder) for k in (number, number + 1))
        parts: dict[str, Any] = {name: self._lanes(name, array, start, end) for name, array in self._arrays.items()}
        return Batch(**parts)

    def _lanes(self, name: str, array: TimeSteps, start: int, end: int) -> Tensor:
        """Return the same steps of all lanes, (T, B, …) or (B, T, …)."""
        offsets = range(0, self.batch_size * self._lane_length, self._lane_length)
        rows = getattr(array, "iloc", array)  # pandas may slice by the labels of its rows otherwise
        lanes = [as_tensor(name, rows[offset + start : offset + end]) for offset in offsets]
        return torch.stack(lanes, dim=0 if self.batch_first else 1)

    def state_dict(self) -> dict[str, int]:
        """Return the position, the next chunk to be given, and what it depends on."""
        return {"chunk": self._next, **{name: getattr(self, name) for name in _SETTINGS}}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Continue from where `state_dict` was taken; with the recurrent state as well, training resumes bitwise.

        Raises:
            ValueError: If it was saved with other steps, chunks or lanes.
        """
        check_position(state_dict, self.state_dict(), _SETTINGS)
        if not 0 <= state_dict["chunk"] <= len(self):
            raise ValueError(f"state_dict must have chunk in 0 … {len(self)}, got {state_dict['chunk']}.")
        self._next = state_dict["chunk"]


def as_tensor(name: str, piece: Any) -> Tensor:
    """Return a tensor of a slice; what is no tensor is copied, as a memory map may be read-only.

    Raises:
        ValueError: If it is a list of steps of different shapes.
        TypeError: If it has something else than numbers.
    """
    if isinstance(piece, Tensor):
        return piece
    if isinstance(piece, list | tuple) and piece and isinstance(piece[0], Tensor):
        shapes = {tuple(step.shape) for step in piece}
        if len(shapes) > 1:
            raise ValueError(f"a list of tensors must have time steps of one shape, got {sorted(shapes)}.")
        return torch.stack(list(piece))
    try:
        return torch.as_tensor(in_own_order(piece)) if hasattr(piece, "__array__") else torch.tensor(piece)
    except (TypeError, ValueError, RuntimeError) as error:
        kind = ValueError if isinstance(error, ValueError) else TypeError
        raise kind(f"{name} must hold numbers in steps of one shape, got a {type(piece).__name__}: {error}") from error


def in_own_order(array: Any) -> Any:
    """Return a copy of what has `__array__` as torch takes it: without negative strides, bytes in native order."""
    array = array.__array__()
    return array.astype(array.dtype.newbyteorder("="), order="C")


def _checked_length(arrays: dict[str, TimeSteps]) -> int:
    for name, array in arrays.items():
        if not hasattr(array, "__len__") or not hasattr(array, "__getitem__"):
            raise TypeError(f"{name} must be an array that can be sliced in time steps, got a {type(array).__name__}.")
        if len(array) != len(arrays["inputs"]):
            raise ValueError(f"{name} must have the {len(arrays['inputs'])} time steps of inputs, got {len(array)}.")
    return len(arrays["inputs"])
