"""A batch of sequences, checked and cut into chunks, before a method walks over it."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from fptt._checks import all_finite
from fptt._losses import ChunkLoss
from fptt._sequence import State, chunk_lengths, flatten_state


class Chunk(NamedTuple):
    """Chunk k of a batch: its inputs, in the layout in which they came, and its part of the targets."""

    number: int
    inputs: Tensor
    part: Any
    has_steps: bool


class Chunking(NamedTuple):
    """How a method cuts: K or the longest chunk, and the time dimension of inputs, targets of steps and masks."""

    num_chunks: int | None
    chunk_length: int | None
    batch_first: bool

    @property
    def time_dim(self) -> int:
        """Return 1 for batch-first tensors, else 0."""
        return int(self.batch_first)

    def time_major(self, tensor: Tensor) -> Tensor:
        """Return a view with time in dim 0 and the batch in dim 1."""
        return tensor.transpose(0, 1) if self.batch_first else tensor


def cut_batch(inputs: Tensor, targets: Tensor, mask: Tensor | None, loss: ChunkLoss, chunking: Chunking) -> list[Chunk]:
    """Return the chunks of a batch.

    Raises:
        ValueError: If inputs, targets or mask do not fit together, or there are fewer time steps than chunks.
    """
    _check_tensors(inputs=inputs, targets=targets, mask=mask)
    if inputs.dim() < 2 or inputs.numel() == 0:
        layout = "(B, T, …)" if chunking.batch_first else "(T, B, …)"
        raise ValueError(f"inputs must be a non-empty tensor of shape {layout}, got shape {tuple(inputs.shape)}.")
    num_steps, batch_size = chunking.time_major(inputs).shape[:2]
    lengths = chunk_lengths(num_steps, chunking.num_chunks, chunking.chunk_length)
    if mask is not None:
        mask = chunking.time_major(mask).to(inputs.device) if mask.dim() == 2 else mask
        _check_mask(mask, (num_steps, batch_size))
    if loss.per_step and targets.dim() >= 2:
        targets = chunking.time_major(targets)
    parts = loss.split(targets, mask, lengths, batch_size)
    pieces = zip(inputs.split(lengths, chunking.time_dim), parts, _have_steps(parts), strict=True)
    return [Chunk(index, *piece) for index, piece in enumerate(pieces)]


def _have_steps(parts: list[Any]) -> list[bool]:
    """Tell which chunks have something that counts, with one synchronization for all."""
    counted = [getattr(part, "counted", None) for part in parts]
    distinct = {id(counts): counts.any() for counts in counted if counts is not None}  # often one for all chunks
    if not distinct:
        return [True] * len(parts)
    found = dict(zip(distinct, torch.stack(list(distinct.values())).tolist(), strict=True))
    return [found.get(id(counts), True) for counts in counted]


def _check_tensors(**values: Any) -> None:
    for name, value in values.items():
        if not isinstance(value, Tensor) and not (name == "mask" and value is None):
            raise TypeError(f"{name} must be a tensor, got a {type(value).__name__}.")


def _check_mask(mask: Tensor, expected: tuple[int, int]) -> None:
    if mask.dtype != torch.bool or tuple(mask.shape) != expected:
        raise ValueError(f"mask must be boolean with T, B = {expected}, got {mask.dtype} of {tuple(mask.shape)}.")
    if not mask.any():
        raise ValueError("mask must have at least one real step, got none.")


def check_inputs(inputs: Tensor, chunks: list[Chunk], batch: int) -> None:
    """Raise FloatingPointError, naming batch and chunk, if an input is NaN or Inf."""
    for chunk in [] if all_finite(inputs) else chunks:
        if not all_finite(chunk.inputs):
            raise FloatingPointError(
                f"inputs hold NaN or Inf in chunk {chunk.number} of batch {batch}; no weight was changed."
            )


def check_same_state(given: State, returned: State) -> None:
    """Raise ValueError unless the state that came back has the tensors and shapes of the one that went in."""
    if describe_state(given) != describe_state(returned):
        raise ValueError(f"state must match the model's own, {describe_state(returned)}, got {describe_state(given)}.")


def describe_state(state: State) -> str:
    """Return the shapes of the tensors of a state."""
    return "tensors of shapes " + ", ".join(str(tuple(tensor.shape)) for tensor in flatten_state(state))
