"""Staggered lanes: every lane begins its sequence some chunks after the one before it."""

from collections import deque
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from fptt._batches.batch import Batch, as_batch
from fptt._batches.cut import Chunking
from fptt._batches.lanes import LanePacker
from fptt._checks import check_iterable, check_position
from fptt._losses.elementwise import where_kept
from fptt._sequence import Progress, check_chunking, chunk_lengths, length_mask, time_major_flags


class StaggeredLanes(Iterator[Batch]):
    """The batches of `stagger`, and the position, from which it resumes bitwise.

    The position is a few numbers and holds no data: the sequences that lie open in the lanes are read again. To resume,
    give `stagger` the same batches without the first `state_dict()["skip"]`, and load the position before the first
    batch is taken and before `prefetch` is put around it.

    Examples:
        >>> batches = [(torch.randn(8, 4, 3), torch.arange(4)) for _ in range(3)]
        >>> lanes = fptt.stagger(batches, num_chunks=4)
        >>> position = (next(lanes), next(lanes), lanes.state_dict())[2]
        >>> others = fptt.stagger(batches[position["skip"] :], num_chunks=4)
        >>> others.load_state_dict(position)
        >>> torch.equal(next(others).inputs, next(lanes).inputs)
        True
    """

    def __init__(
        self,
        batches: Iterable[Any],
        num_chunks: int | None,
        chunk_length: int | None,
        *,
        per_step: bool,
        batch_first: bool,
        ignore_index: int,
    ) -> None:
        self.chunking = Chunking(num_chunks, chunk_length, batch_first)
        self.per_step, self.ignore_index = per_step, ignore_index
        self._batches = iter(batches)
        self._next = 0  # batches pulled, with those that were skipped
        self._pulled: deque[tuple[int, int]] = deque()  # the open ones: number, number of their first sample
        self._num_samples = 0
        self._length = 0  # L, steps of a chunk; 0 until the first batch says how long sequences are
        self._packer: LanePacker | None = None
        self._expected: Any = None

    def __next__(self) -> Batch:
        """Return the next chunks of all lanes, as many as a sequence of the first batch has."""
        if self._packer is None:
            self._packer = self._begin()
        (inputs, targets, numbers), *_ = next(self._packer)  # (K, B, L, …), (K, B, …) or (K, B, L, …), (K, B, 3)
        self._forget()
        position, num_steps, num_counted = numbers.unbind(-1)
        is_busy, length = position > 0, self._length
        real = (num_steps - (position - 1) * length).clamp(max=length)  # steps of chunk k in its sequence
        mask = None
        if not (real == length)[is_busy].all():
            steps = torch.arange(length, device=real.device)
            mask = self._in_steps((steps < real.unsqueeze(-1)) & is_busy.unsqueeze(-1))
        progress = Progress(position, num_steps.add(length - 1).div(length, rounding_mode="floor"), num_counted)
        progress = progress._replace(**{name: getattr(progress, name).clamp(min=1) for name in progress._fields[1:]})
        targets = self._in_steps(targets) if self.per_step else targets
        return Batch(self._in_steps(inputs), targets, mask, progress=progress)

    def _in_steps(self, tensor: Tensor) -> Tensor:
        """Return chunks side by side, (K, B, L, …), one after the other, (K · L, B, …) or (B, K · L, …)."""
        is_batch_first = self.chunking.batch_first
        return tensor.transpose(0, 1).flatten(1, 2) if is_batch_first else tensor.transpose(1, 2).flatten(0, 1)

    def _begin(self) -> LanePacker:
        """Return the lanes: as many as the first batch has samples, each delayed by its part of the first sequence."""
        batch = self._pull()
        if batch is None:
            raise StopIteration
        num_steps, batch_size = batch.inputs.shape[:2]
        lengths = chunk_lengths(num_steps, self.chunking.num_chunks, self.chunking.chunk_length)
        self._length = lengths[0]  # no other is longer
        count = -(-num_steps // self._length)
        delays = [lane * count // batch_size for lane in range(batch_size)]
        return LanePacker(self._samples(batch), batch_size, len(lengths), delays)

    # -- samples -----------------------------------------------------------------------------------------------------

    def _samples(self, batch: Batch | None = None) -> Iterator[tuple[Tensor, ...]]:
        """Yield the samples of all batches, that one first, as `_cut` gives them."""
        while (batch := batch or self._pull()) is not None:
            samples = self._cut(batch)
            self._pulled.append((self._next - 1, self._num_samples))
            self._num_samples += len(samples)
            batch = None  # not held beside its samples
            yield from samples

    def _pull(self) -> Batch | None:
        """Return the next batch, checked but for its mask, inputs and targets time-major; None at the end."""
        try:
            item = next(self._batches)  # which may be None, from a collate function without a return
        except StopIteration:
            return None
        batch, number = as_batch(item, self._next), self._next
        if batch.is_first is not None or batch.progress is not None:
            raise ValueError(f"batches must be of whole sequences, without is_first or progress, got batch {number}.")
        for name, tensor in (("inputs", batch.inputs), ("targets", batch.targets)):
            if not isinstance(tensor, Tensor):
                raise TypeError(f"{name} must be a tensor, got a {type(tensor).__name__} in batch {number}.")
        inputs, targets, *_ = batch
        if inputs.dim() < 2 or inputs.numel() == 0:
            raise ValueError(f"inputs must be (T, B, …) and not empty, got {tuple(inputs.shape)} in batch {number}.")
        batch_dim = 1 - self.chunking.time_dim
        expected = tuple(inputs.shape[:2] if self.per_step else inputs.shape[batch_dim : batch_dim + 1])
        if tuple(targets.shape[: len(expected)]) != expected:
            kind = "one a step, with per_step=True" if self.per_step else "one a sequence, with per_step=False"
            raise ValueError(
                f"targets must be {kind}, and begin with the shape {expected}, got {tuple(targets.shape)} in batch "
                f"{number}."
            )
        found = [
            (tuple(tensor.shape[start:]), tensor.dtype) for tensor, start in ((inputs, 2), (targets, len(expected)))
        ]
        self._expected = self._expected or found
        if found != self._expected:
            raise ValueError(f"batches must all be like the first, {self._expected}, got {found} in batch {number}.")
        self._next += 1
        targets = self.chunking.time_major(targets) if self.per_step else targets
        return batch._replace(inputs=self.chunking.time_major(inputs), targets=targets)

    def _cut(self, batch: Batch) -> list[tuple[Tensor, ...]]:
        """Return of each sample the inputs (K_i, L, …), targets (K_i, …) or (K_i, L, …), and three numbers (K_i, 3).

        They are k + 1, the real steps of the sequence, and those of them that count.
        """
        inputs, targets, *_ = batch
        counted = steps = self._real_steps(batch)  # (B,)
        kept = where_kept(targets, self.ignore_index, num_dims=2) if self.per_step else None
        if kept is not None:
            counted = (kept & length_mask(steps, len(kept))).sum(0)
        counts = (-(-steps // self._length)).tolist()
        inputs = self._in_chunks(inputs)
        targets = self._in_chunks(targets) if self.per_step else targets.expand(len(inputs), *targets.shape)
        position = torch.arange(1, len(inputs) + 1, device=steps.device)[:, None].expand(-1, len(steps))
        numbers = torch.stack([position, steps.expand_as(position), counted.expand_as(position)], dim=-1)
        dim = 2 if self.per_step else 1
        lanes = zip(inputs.unbind(2), targets.unbind(dim), numbers.unbind(1), strict=True)
        return [tuple(own[:count] for own in lane) for lane, count in zip(lanes, counts, strict=True)]

    def _in_chunks(self, tensor: Tensor) -> Tensor:
        """Return (T, B, …) as (K, L, B, …), with zeros at the end where L does not divide T."""
        missing = -len(tensor) % self._length
        padded = torch.cat([tensor, tensor.new_zeros(missing, *tensor.shape[1:])]) if missing else tensor
        return padded.unflatten(0, (-1, self._length))

    def _real_steps(self, batch: Batch) -> Tensor:
        """Return the real steps of each sequence, (B,)."""
        num_steps, batch_size = expected = tuple(batch.inputs.shape[:2])
        if batch.mask is None:
            return torch.full((batch_size,), num_steps, device=batch.inputs.device)
        where = f" in batch {self._next - 1}"
        mask = time_major_flags("mask", batch.mask, expected, batch_first=self.chunking.batch_first, hint=where)
        mask = mask.to(batch.inputs.device)
        steps = mask.sum(0)
        if not steps.all() or not torch.equal(mask, length_mask(steps, num_steps)):
            raise ValueError(
                "mask must be True from the first step of every sequence to its last, padding behind, got another one"
                f"{where}."
            )
        return steps

    # -- position ----------------------------------------------------------------------------------------------------

    def _forget(self) -> None:
        """Drop the batches of which no sample lies open in a lane or waits for one."""
        assert self._packer is not None
        while len(self._pulled) > 1 and self._pulled[1][1] <= self._packer.skip:
            self._pulled.popleft()

    def state_dict(self) -> dict[str, Any]:
        """Return the position: batches to skip, and where the samples of the others lie."""
        skip, first = self._pulled[0] if self._pulled else (self._next, self._num_samples)
        return {
            "skip": skip,
            "first_sample": first,
            "length": self._length,
            "lanes": None if self._packer is None else self._packer.state_dict(),
            "num_chunks": self.chunking.num_chunks,
            "chunk_length": self.chunking.chunk_length,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from where `state_dict` was taken; pulls the batches that lay open.

        Raises:
            ValueError: If it was saved with other chunks, a batch was taken already, or the batches are not those that
                follow on the skipped ones.
        """
        if self._packer is not None:
            raise ValueError("state_dict must be loaded before the first batch is taken.")
        check_position(state_dict, self.state_dict(), ("num_chunks", "chunk_length"))
        self._next, self._num_samples = state_dict["skip"], state_dict["first_sample"]
        self._length, lanes = state_dict["length"], state_dict["lanes"]
        if lanes is not None:
            samples = islice(self._samples(), lanes["skip"] - self._num_samples, None)
            packer = LanePacker(samples, lanes["batch_size"], lanes["chunk_length"])
            packer.load_state_dict(lanes)
            self._packer = packer


def stagger(
    batches: Iterable[Any],
    *,
    num_chunks: int | None = None,
    chunk_length: int | None = None,
    per_step: bool = False,
    batch_first: bool = False,
    ignore_index: int = -100,
) -> StaggeredLanes:
    """Let every lane of a batch begin some chunks after the lane before it, for `train_stream`.

    In a batch as published all K updates are made on the same samples, at the same place in their sequences. Here lane
    b of B begins ⌊b·K/B⌋ chunks late, and takes its next sample when its own ends: every update sees all places at
    once. What comes out are batches of K chunks, of which each knows for every lane whether a sequence begins there and
    its position, (k + 1)/K, from which `TerminalLoss` and `SequenceLoss` take their weights. The loss of a chunk is the
    mean over the B lanes of their own losses, each that of its sequence alone; an idle lane counts 0, as at the very
    beginning and the very end. Every sample is learned once and whole.

    All chunks have the same number L = ⌈T/K⌉ of steps, T that of the first batch; the last one of a sequence has a mask
    where it is shorter. A sequence of T_i steps has K_i = ⌈T_i/L⌉ chunks of its own: with `num_chunks=100` and T = 784
    there are 98, of 8 steps. Lanes whose sequence is shorter take the next sample earlier.

    A checkpoint holds `state_dict()` of what is returned, that of the `prefetch` around it if there is one, beside the
    recurrent state of the last result; see `StaggeredLanes`.

    Args:
        batches: Any iterable of pairs `(inputs, targets)` or `Batch`es of whole sequences: inputs (T, B, …), with a
            mask where they are padded at their ends; T may change from batch to batch. B is that of the first batch;
            later ones may be larger or smaller.
        num_chunks: K, as the method that learns them has it.
        chunk_length: Longest chunk in time steps, instead of `num_chunks`, as the method has it.
        per_step: Whether targets are (T, B, …), one a step for a `SequenceLoss`, instead of (B, …), one a sequence.
        batch_first: Whether all of these are (B, T, …) instead of (T, B, …).
        ignore_index: Whole-numbered targets of steps that do not count, as the loss has it.

    Returns:
        An iterator of `Batch`es of K chunks, with their `progress`.

    Raises:
        ValueError: If chunks are out of range, or a batch does not fit (see above) or is not like the first.
        TypeError: If `batches` is not iterable, or gives something else.

    Examples:
        >>> batches = [(torch.arange(4.0)[:, None].expand(4, 2), torch.tensor([0, 1]))] * 2
        >>> lanes = list(fptt.stagger(batches, num_chunks=4))
        >>> [batch.inputs.T.tolist() for batch in lanes[:2]]
        [[[0.0, 1.0, 2.0, 3.0], [0.0, 0.0, 0.0, 1.0]], [[0.0, 1.0, 2.0, 3.0], [2.0, 3.0, 0.0, 1.0]]]
        >>> lanes[0].progress.position.T.tolist(), len(lanes)
        ([[1, 2, 3, 4], [0, 0, 1, 2]], 3)
    """
    check_iterable("batches", batches)
    check_chunking(num_chunks, chunk_length)
    return StaggeredLanes(
        batches, num_chunks, chunk_length, per_step=per_step, batch_first=batch_first, ignore_index=ignore_index
    )
