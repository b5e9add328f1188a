"""A batch of sequences, checked, unpacked and cut into chunks."""

import itertools
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pad_packed_sequence
from torch.utils._pytree import tree_leaves

from fptt._batches.batch import Batch
from fptt._checks import all_finite, check_tensors
from fptt._losses.chunk_loss import ChunkLoss
from fptt._sequence import Progress, State, chunk_lengths, length_mask, time_major_flags


class Start(NamedTuple):
    """A step of a chunk at which new sequences begin, and their lanes, boolean, (B,); None for all lanes."""

    step: int
    lanes: Tensor | None


class Chunk(NamedTuple):
    """Chunk k of a batch: its inputs, in the layout in which they came, and its part of the targets.

    Attributes:
        number: k.
        inputs: (T_k, B, …), or (B, T_k, …).
        part: What the loss needs of the targets.
        has_steps: Whether something in it counts.
        starts: Where sequences begin in it; None without `is_first`.
        bad_inputs: Where its inputs hold NaN or Inf: in real steps, or only in the padding; None if they do not.
        weight: Of this process's loss in that of all that train the model.
    """

    number: int
    inputs: Tensor
    part: Any
    has_steps: bool
    starts: tuple[Start, ...] | None
    bad_inputs: Literal["inputs", "padding"] | None = None
    weight: float = 1.0


class Window(NamedTuple):
    """The chunks before the next one that its gradient goes back through, by running them again.

    Attributes:
        chunks: At most one fewer than the horizon.
        state: Before the first of them, or before the next chunk if there are none; detached.
    """

    chunks: tuple[Chunk, ...]
    state: State

    def moved_on(self, chunk: Chunk, after_first: State, horizon: int) -> "Window":
        """Return the window before the chunk that follows on one that was learned.

        Args:
            chunk: The one that was learned.
            after_first: The state after the first chunk that was run for it, here or in the window, detached. The one
                of this run and not of the chunk's first: the weights have changed since.
            horizon: Chunks that a gradient goes through at most.
        """
        chunks = (*self.chunks, chunk)
        return Window(chunks[1:], after_first) if len(chunks) == horizon else Window(chunks, self.state)


class Chunking(NamedTuple):
    """The settings of a cut: K or the longest chunk, and the time dimension of inputs, targets of steps and masks."""

    num_chunks: int | None
    chunk_length: int | None
    batch_first: bool

    @property
    def time_dim(self) -> int:
        """Return 1 for batch-first tensors, else 0."""
        return int(self.batch_first)

    def time_major(self, tensor: Tensor) -> Tensor:
        """Return a view with time in dim 0 and the batch in dim 1; a tensor of one dim as it is, to be refused."""
        return tensor.transpose(0, 1) if self.batch_first and tensor.dim() > 1 else tensor


def unpack(batch: Batch, loss: ChunkLoss, chunking: Chunking) -> Batch:
    """Return a batch as padded tensors, its sequences in the order in which they were given before packing.

    Raises:
        ValueError: If there is a mask beside packed inputs, or packed targets do not belong to their steps.
    """
    inputs, targets, mask, is_first, _ = batch
    if not isinstance(inputs, PackedSequence):
        return batch
    if mask is not None:
        raise ValueError("mask must be None with a PackedSequence, whose lengths say which steps are real.")
    padded, lengths = pad_packed_sequence(inputs, chunking.batch_first)
    if isinstance(targets, PackedSequence):
        if not loss.per_step:
            raise ValueError("targets must be one per sequence, (B, …), for this loss, got a PackedSequence of steps.")
        targets, own = pad_packed_sequence(targets, chunking.batch_first)
        if not torch.equal(lengths, own):
            raise ValueError(f"targets must have the lengths of inputs, {lengths.tolist()}, got {own.tolist()}.")
    mask = chunking.time_major(length_mask(lengths, int(lengths.max())))
    return Batch(padded, targets, mask, is_first)


def cut_batch(batch: Batch, loss: ChunkLoss, chunking: Chunking, *, allow_empty: bool = False) -> list[Chunk]:
    """Return the chunks of a batch; with `allow_empty`, also of one without a real step.

    Raises:
        ValueError: If inputs, targets, mask, flags or progress do not fit together, or there are fewer time steps than
            chunks.
    """
    inputs, targets, mask, is_first, progress = batch
    check_tensors(inputs=inputs, targets=targets)
    if inputs.dim() < 2 or inputs.numel() == 0:
        layout = "(B, T, …)" if chunking.batch_first else "(T, B, …)"
        raise ValueError(f"inputs must be a non-empty tensor of shape {layout}, got shape {tuple(inputs.shape)}.")
    num_steps, batch_size = expected = tuple(chunking.time_major(inputs).shape[:2])
    lengths = chunk_lengths(num_steps, chunking.num_chunks, chunking.chunk_length)
    if mask is not None:
        mask = time_major_flags("mask", mask, expected, batch_first=chunking.batch_first).to(inputs.device)
        if not allow_empty and not mask.any():
            raise ValueError("mask must have at least one real step, got none.")
    if is_first is not None:
        is_first = time_major_flags("is_first", is_first, expected, batch_first=chunking.batch_first)
        if not loss.per_step:
            raise ValueError("is_first needs a loss of every step, a SequenceLoss: a label has a single sequence.")
    if loss.per_step:
        targets = chunking.time_major(targets)
    if progress is None:
        parts, starts = loss.split(targets, mask, lengths, batch_size), _find_starts(is_first, lengths)
    else:
        _check_progress(progress, is_first, lengths, batch_size)
        if loss.per_step and batch.targets.shape[:2] == progress.position.shape != expected:
            raise ValueError(
                f"targets must have shape (T, B, …) with T, B = {expected}, got {tuple(batch.targets.shape)}, one for "
                "every chunk: give stagger per_step=True."
            )
        parts = loss.split_lanes(targets, mask, lengths, progress)
        # also where no lane begins: a compiled step is the same for all chunks
        starts = [(Start(0, lanes),) for lanes in (progress.position == 1).unbind()]
    pieces = zip(inputs.split(lengths, chunking.time_dim), parts, _have_steps(parts), starts, strict=True)
    return [Chunk(index, *piece) for index, piece in enumerate(pieces)]


def _check_progress(progress: Progress, is_first: Tensor | None, lengths: Sequence[int], batch_size: int) -> None:
    if is_first is not None:
        raise ValueError("is_first must be None in a batch with progress, which says where sequences begin.")
    found = [tuple(tensor.shape) for tensor in progress]
    if set(found) != {(len(lengths), batch_size)}:
        raise ValueError(
            f"progress must be of the K, B = {(len(lengths), batch_size)} that the method cuts, got {found[0]}: give "
            "the method the num_chunks or chunk_length of stagger."
        )


def _find_starts(is_first: Tensor | None, lengths: Sequence[int]) -> list[tuple[Start, ...] | None]:
    """Return the starts in each chunk, from flags (T, B), with one synchronization for all."""
    if is_first is None:
        return [None] * len(lengths)
    counts, batch_size = is_first.sum(1).tolist(), is_first.shape[1]
    starts: list[tuple[Start, ...] | None] = []
    begin = 0
    for length in lengths:
        steps = [step for step in range(begin, begin + length) if counts[step]]
        starts.append(tuple(Start(t - begin, None if counts[t] == batch_size else is_first[t]) for t in steps))
        begin += length
    return starts


def _have_steps(parts: list[Any]) -> list[bool]:
    """Return which chunks have something that counts, with one synchronization for all."""
    counted = [getattr(part, "counted", None) for part in parts]
    by_shape: dict[torch.Size, dict[int, Tensor]] = {}  # often one tensor for all chunks, nearly always one shape
    for counts in counted:
        if counts is not None:
            by_shape.setdefault(counts.shape, {})[id(counts)] = counts
    if not by_shape:
        return [True] * len(parts)
    # a few operations for all chunks, not one for each: on a GPU that would take longer than to learn them
    found = torch.cat(
        [torch.stack(list(alike.values())).unsqueeze(-1).flatten(1).any(1) for alike in by_shape.values()]
    ).tolist()
    have = dict(zip(itertools.chain(*by_shape.values()), found, strict=True))
    return [counts is None or have[id(counts)] for counts in counted]


def mark_bad_inputs(chunks: list[Chunk], batch: Batch, chunking: Chunking) -> list[Chunk]:
    """Return the chunks of a batch, those with NaN or Inf in their inputs marked."""
    if all_finite(batch.inputs):  # one synchronization a batch, nearly always
        return chunks
    lengths = [chunk.inputs.shape[chunking.time_dim] for chunk in chunks]
    masks = [None] * len(chunks) if batch.mask is None else batch.mask.split(lengths, chunking.time_dim)
    return [
        chunk._replace(bad_inputs=_where_bad(chunk.inputs, mask)) for chunk, mask in zip(chunks, masks, strict=True)
    ]


def _where_bad(inputs: Tensor, mask: Tensor | None) -> Literal["inputs", "padding"] | None:
    """Return where inputs of a chunk hold NaN or Inf: in real steps, or only in the padding; None if they do not."""
    if all_finite(inputs):
        return None
    return "padding" if mask is not None and all_finite(inputs[mask.to(inputs.device)]) else "inputs"


def check_horizon(horizon: int, num_chunks: int) -> None:
    """Raise ValueError if a gradient is to go through more chunks than a sequence has."""
    if horizon > num_chunks:
        raise ValueError(f"horizon must be at most the number of chunks of a sequence, {num_chunks}, got {horizon}.")


def check_no_graph(inputs: Tensor, targets: Any) -> None:
    """Raise ValueError if inputs or targets, a nest of tensors, were computed: one gradient uses up their graph.

    A view of a leaf may go through several updates: its graph keeps nothing that could be used up.
    """
    for name, nest in (("inputs", inputs), ("targets", targets)):
        for tensor in tree_leaves(nest):
            if not isinstance(tensor, Tensor) or tensor.grad_fn is None:
                continue
            if not tensor._is_view() or not tensor._base.is_leaf:  # pyright: ignore[reportOptionalMemberAccess]
                raise ValueError(
                    f"{name} must not have a graph, which would serve one update alone, got {tensor.grad_fn.name()}: "
                    "put the module that computes them into the model, or detach them."
                )
