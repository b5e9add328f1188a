"""The loss of one chunk: of its own steps (sequence to sequence), or of a label that belongs to the whole sequence."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fptt._losses.elementwise import (
    Elementwise,
    LossFunction,
    is_without_softmax,
    name_of,
    num_kept,
    where_kept,
)
from fptt._losses.priors import Prior, UniformPrior, cross_entropy_to
from fptt._sequence import Progress, last_true


class ChunkLoss(nn.Module, ABC):
    """A loss for every chunk of a sequence; the three methods take the same ones.

    `split` turns the targets of a batch into one part per chunk; calling the loss with the outputs of a chunk and its
    part gives a scalar ℓ_k. A boolean tensor `counted` of a part marks the elements that are in the loss; without any,
    the chunk makes no update. Floats and tensors of a part may change from chunk to chunk, anything else is constant.

    Attributes:
        per_step: Whether the targets have a time dimension.
    """

    per_step: bool = False

    @abstractmethod
    def split(self, targets: Tensor, mask: Tensor | None, lengths: Sequence[int], batch_size: int) -> list[Any]:
        """Return the part of the targets of each chunk, of any type.

        Args:
            targets: (T, B, …) for sequence-to-sequence losses, (B, …) for terminal ones.
            mask: Boolean, (T, B), True at real steps; None if all are real.
            lengths: Time steps of each chunk; they sum to T.
            batch_size: B.

        Raises:
            ValueError: If the targets do not have the length of the inputs.
        """

    def split_lanes(
        self,
        targets: Tensor,  # noqa: ARG002
        mask: Tensor | None,  # noqa: ARG002
        lengths: Sequence[int],  # noqa: ARG002
        progress: Progress,  # noqa: ARG002
    ) -> list[Any]:
        """Return the part of the targets of each chunk where every lane has a sequence of its own; see `stagger`.

        A lane's own loss is that of its sequence alone, and the loss of a chunk their mean over all B lanes, in which
        an idle one counts 0: so a term weighs the same wherever it stands.

        Args:
            targets: (T, B, …) for sequence-to-sequence losses, (K, B, …), one a chunk, for terminal ones.
            mask: Boolean, (T, B), True at real steps; None if all are real.
            lengths: Time steps of each chunk; they sum to T.
            progress: Where the lanes stand, chunk by chunk.

        Raises:
            ValueError: If the targets do not have the length of the inputs.
        """
        raise TypeError(f"{type(self).__name__} must define split_lanes to be trained in staggered lanes.")

    @abstractmethod
    def forward(self, output: Tensor, part: Any) -> Tensor:
        """Return the scalar loss of a chunk from its outputs, (T_k, B, …), and its part of the targets."""

    def observe(self, output: Tensor, part: Any, reduce: Callable[[Tensor], Tensor] | None = None) -> None:
        """Learn from the outputs of a chunk after its update; only a loss with a running estimate does.

        Args:
            output: (T_k, B, …).
            part: Its part of the targets.
            reduce: Adds up a tensor over the processes that hold parts of the batch; None for one process.
        """

    def num_counted(self, parts: Sequence[Any]) -> float:  # noqa: ARG002
        """Return the number of elements that the mean is over: the batch's weight beside those of other processes.

        Staggered lanes do not ask: there the mean is over the lanes.
        """
        raise TypeError(f"{type(self).__name__} must define num_counted to be trained in several processes.")


class SequencePart(NamedTuple):
    """The targets of a chunk, and their weights.

    Attributes:
        targets: (T_k, B, …); labels that the mask leaves out are the `ignore_index` of a loss of torch's, numbers that
            it leaves out are those of another step.
        counted: Where they count, (T_k, B); None if all do.
        num_chunks: K; or that of each lane's sequence, (B,).
        num_counted: N, the counted steps of the batch, one of several targets by their share; or, of each lane, B times
            those of its sequence, (B,).
    """

    targets: Tensor
    counted: Tensor | None
    num_chunks: float | Tensor
    num_counted: float | Tensor


class SequenceLoss(ChunkLoss):
    """The mean of a loss over the real steps of a sequence, chunk by chunk.

        ℓ_k = (K/N) Σ ℓ(y_t, ŷ_t) over the real steps t of chunk k,   N real steps in the whole batch

    so that the mean of the ℓ_k is the mean over all real steps, and every real step has the same weight however the
    sequence is cut. With equal chunks and no mask ℓ_k is the chunk's mean. Steps whose target is the function's
    `ignore_index` do not count as real; one with several targets counts by the share of them that are not, so that the
    mean is over all targets that are not ignored, as torch's own (in staggered lanes it counts whole, and an ignored
    target among others as 0). Weights of classes multiply the ℓ(y_t, ŷ_t) and leave N as it is: torch's own mean, over
    the sum of the weights, would give a step another weight in every batch.

    Args:
        function: Any torch loss, such as `torch.nn.functional.cross_entropy` or `torch.nn.MSELoss()`; or a function of
            your own that returns one value per element. Targets that are no whole numbers have the shape of the
            outputs, with a function of your own too: those with weights beside them need a `ChunkLoss` of your own.
            In a function of your own around `cross_entropy` a label of -100 counts as a real step of loss 0: where it
            is not to count, give the function an argument `ignore_index=-100`, or the batch a mask.

    Raises:
        ValueError: If the function has a reduction other than "mean" or "none".

    Examples:
        >>> loss = fptt.SequenceLoss(nn.functional.mse_loss)
        >>> parts = loss.split(torch.zeros(4, 2, 1), None, [3, 1], 2)
        >>> [round(loss(torch.ones(n, 2, 1), part).item(), 6) for n, part in zip([3, 1], parts)]
        [1.5, 0.5]
    """

    per_step = True

    def __init__(self, function: LossFunction) -> None:
        super().__init__()
        self.function = Elementwise(function)
        self.ignore_index = self.function.ignore_index

    def split(
        self, targets: Tensor, mask: Tensor | None, lengths: Sequence[int], batch_size: int
    ) -> list[SequencePart]:
        """Return the targets of each chunk and the weight of its steps; see `ChunkLoss.split`."""
        _check_steps(targets, lengths, batch_size)
        counted = where_kept(targets, self.ignore_index, num_dims=2)
        if mask is not None:
            counted = _where_both(mask, counted)
        total = float(sum(lengths) * batch_size) if counted is None else num_kept(targets, self.ignore_index, counted)
        chunks = self._without_masked(targets, mask).split(list(lengths))
        masks = [None] * len(lengths) if counted is None else counted.split(list(lengths))
        return [SequencePart(*own, float(len(lengths)), total) for own in zip(chunks, masks, strict=True)]

    def split_lanes(
        self, targets: Tensor, mask: Tensor | None, lengths: Sequence[int], progress: Progress
    ) -> list[SequencePart]:
        """Return the targets of each chunk and the weights of the lanes' steps; see `ChunkLoss.split_lanes`."""
        num_lanes = progress.position.shape[1]
        _check_steps(targets, lengths, num_lanes)
        is_busy = (progress.position > 0).repeat_interleave(torch.tensor(lengths, device=targets.device), dim=0)
        mask = _where_both(is_busy, mask)
        counted = _where_both(mask, where_kept(targets, self.ignore_index, num_dims=2))
        pieces = (self._without_masked(targets, mask).split(list(lengths)), counted.split(list(lengths)))
        return [
            SequencePart(*piece)
            for piece in zip(*pieces, progress.num_chunks, progress.num_steps * num_lanes, strict=True)
        ]

    def _without_masked(self, targets: Tensor, mask: Tensor | None) -> Tensor:
        """Return the targets; of those that the mask leaves out, others of numbers, `ignore_index` of labels."""
        if mask is None:
            return targets
        if targets.is_floating_point():
            return _filled(targets, mask)
        if self.ignore_index is None or not self._skips(targets):
            return targets
        return _replaced(targets, mask, self.ignore_index)

    def _skips(self, targets: Tensor) -> bool:
        """Return whether the function itself gives 0, with gradient 0, where a target is `ignore_index`."""
        return self.function.is_of_classes and targets.dtype == torch.int64  # an unsigned label cannot be -100

    def num_counted(self, parts: Sequence[SequencePart]) -> float:
        """Return N, the real steps of the batch, at least a single target."""
        return float(parts[0].num_counted)

    def forward(self, output: Tensor, part: SequencePart) -> Tensor:
        """Return ℓ_k of a chunk."""
        if output.shape[:2] != part.targets.shape[:2]:
            raise ValueError(
                "the model must return one output per step, "
                f"(T_k, B, …) with T_k, B = {tuple(part.targets.shape[:2])}, got {tuple(output.shape)}."
            )
        values = self.function(output.flatten(0, 1), part.targets.flatten(0, 1))
        if part.counted is not None and not self._skips(part.targets):
            # not a product with the mask: a loss of Inf or NaN at padding would stay NaN
            values = torch.where(part.counted.flatten(), values, 0.0)
        wide = _summed_in(values)
        if isinstance(part.num_chunks, Tensor):  # every lane has a sequence of its own
            values = values.unflatten(0, output.shape[:2]).sum(0, dtype=wide)
            return (values * part.num_chunks / part.num_counted).sum()
        return values.sum(dtype=wide) * part.num_chunks / part.num_counted


def _check_steps(targets: Tensor, lengths: Sequence[int], batch_size: int) -> None:
    """Raise ValueError unless there is a target for every step."""
    expected = (sum(lengths), batch_size)
    if tuple(targets.shape[:2]) != expected:
        raise ValueError(f"targets must have shape (T, B, …) with T, B = {expected}, got {tuple(targets.shape)}.")


def _where_both(counted: Tensor, kept: Tensor | None) -> Tensor:
    """Return where both are true; the first alone if there is no second."""
    return counted if kept is None else counted & kept


def _summed_in(values: Tensor) -> torch.dtype:
    """Return the type in which values are added up: a sum in half precision may be Inf where the mean is not."""
    return torch.promote_types(values.dtype, torch.float32)


def _filled(targets: Tensor, counted: Tensor) -> Tensor:
    """Return floating targets, (T, B, …), with the first finite ones that count, (T, B), in place of all that do not.

    Where the loss of a step is dropped, its gradient is zero times what it would be: NaN if the target is.
    """
    # not zeros: they may be outside of what the function takes, as for a logarithm
    is_good = counted & targets.isfinite().reshape(*counted.shape, -1).all(-1)
    first = is_good.flatten().int().argmax().view(1)
    fill = targets.flatten(0, 1).index_select(0, first)
    return _replaced(targets, counted, fill)


def _replaced(targets: Tensor, counted: Tensor, by: int | Tensor) -> Tensor:
    """Return targets with another one in place of those that do not count, of the first dims."""
    return torch.where(counted[(...,) + (None,) * (targets.dim() - counted.dim())], targets, by)


class TerminalPart(NamedTuple):
    """The targets of a chunk of T_k steps, and their weights.

    Attributes:
        targets: (B, …).
        position: k + 1; or that of each lane in its sequence, (B,), 0 in an idle one.
        num_chunks: K, or that of each sample, (B,).
        counted: Where a sample counts, (B,); None if all do.
        num_counted: Samples that count anywhere in the batch, one of several labels by their share; in staggered lanes
            their number, B.
        last: Last real step in the chunk of each sample, (B,); None for the last step.
        num_steps: T_k.
    """

    targets: Tensor
    position: float | Tensor
    num_chunks: float | Tensor
    counted: Tensor | None
    num_counted: int | Tensor
    last: Tensor | None
    num_steps: int


class TerminalLoss(ChunkLoss):
    """The loss of a label for the whole sequence, asked for at the end of every chunk.

        ℓ_k = b · ℓ(y, ŷ_k) + (1 − b) · Div(ŷ_k, Q),   b = (k + 1)/K for chunk k = 0 … K − 1
        Div(ŷ, Q) = −Σ_c Q(c) log softmax(ŷ)_c

    (Kag & Saligrama 2021, with ŷ_k the output at the chunk's last step.) The early, uncertain predictions are held to
    Q instead of the label. With one chunk it is the plain loss of the label. A sequence that ends early, by the mask,
    has a K of its own, the chunk where its last real step lies: there b = 1, and after it there is no term. In every
    chunk the mean is over all B sequences, those that are over included, so that a term weighs 1/B wherever it stands.
    Samples whose label is the function's `ignore_index` do not count, in B neither (but in staggered lanes); one with
    several labels counts by the share of them that is not ignored. Weights of classes multiply the terms and leave B as
    it is.

    Args:
        function: Any torch loss of (output, target), for classes or regression, or a function of your own; see
            `SequenceLoss`. A label of -100 counts as a sample of loss 0 in a function of your own around
            `cross_entropy`, unless that has an argument `ignore_index=-100`.
        divergence: Q: None for none (regression), `"uniform"`, or a `RunningPrior`; for outputs that are the logits of
            classes under a softmax.

    Raises:
        ValueError: If the function has a reduction other than "mean" or "none", or divergence is none of these or does
            not go with the function.

    Examples:
        >>> loss = fptt.TerminalLoss(nn.functional.cross_entropy, divergence="uniform")
        >>> parts = loss.split(torch.tensor([0, 1]), None, [5, 5], 2)
        >>> [round(loss(torch.zeros(5, 2, 4), part).item(), 4) for part in parts]
        [1.3863, 1.3863]
    """

    def __init__(self, function: LossFunction, divergence: str | Prior | None = None) -> None:
        super().__init__()
        if divergence is not None and divergence != "uniform" and not isinstance(divergence, Prior):
            raise ValueError(f"divergence must be None, 'uniform' or a RunningPrior, got {divergence!r}.")
        self.function = Elementwise(function)
        if divergence is not None and is_without_softmax(function):
            raise ValueError(
                f"divergence must be None with {name_of(function)}, whose outputs are no logits of classes under a "
                f"softmax, got {divergence!r}."
            )
        self.ignore_index = self.function.ignore_index
        self.prior = UniformPrior() if isinstance(divergence, str) else divergence
        self.has_classes = self.prior is not None or self.function.is_of_classes

    def split(
        self, targets: Tensor, mask: Tensor | None, lengths: Sequence[int], batch_size: int
    ) -> list[TerminalPart]:
        """Return the targets and the weight b of each chunk; see `ChunkLoss.split`."""
        if targets.dim() == 0 or len(targets) != batch_size:
            raise ValueError(
                f"targets must have shape (B, …) with B = {batch_size}, one per sequence, got {tuple(targets.shape)}."
            )
        kept = where_kept(targets, self.ignore_index, num_dims=1)
        total = len(targets) if kept is None else num_kept(targets, self.ignore_index, kept)
        if mask is None:
            return [
                TerminalPart(targets, float(k + 1), float(len(lengths)), kept, total, None, length)
                for k, length in enumerate(lengths)
            ]
        masks = mask.split(list(lengths))
        counted = torch.stack([chunk.any(0) for chunk in masks])  # (K, B)
        if not counted.any(0).all():
            raise ValueError("mask must have at least one real step for every sequence, got a sequence without one.")
        # not the number of chunks with a real step: a chunk in the middle may have none
        own_chunks = last_true(counted) + 1
        counted = _where_both(counted, kept)
        return [
            TerminalPart(targets, float(k + 1), own_chunks, counted[k], total, last_true(chunk), len(chunk))
            for k, chunk in enumerate(masks)
        ]

    def split_lanes(
        self, targets: Tensor, mask: Tensor | None, lengths: Sequence[int], progress: Progress
    ) -> list[TerminalPart]:
        """Return the targets and the weights b of each chunk and lane; see `ChunkLoss.split_lanes`."""
        shape = tuple(progress.position.shape)
        if tuple(targets.shape[:2]) != shape:
            raise ValueError(
                f"targets must have shape (K, B, …) with K, B = {shape}, one for every chunk and lane, got "
                f"{tuple(targets.shape)}."
            )
        counted = _where_both(progress.position > 0, where_kept(targets, self.ignore_index, num_dims=2))
        targets = _filled(targets, counted) if targets.is_floating_point() else targets
        masks = [None] * len(lengths) if mask is None else mask.split(list(lengths))
        last = [None if chunk is None else last_true(chunk) for chunk in masks]
        columns = (targets, progress.position, progress.num_chunks, counted, [shape[1]] * shape[0], last, lengths)
        return [TerminalPart(*own) for own in zip(*columns, strict=True)]

    def num_counted(self, parts: Sequence[TerminalPart]) -> float:
        """Return the samples of the batch that count, at least a single label."""
        return float(parts[0].num_counted)

    def forward(self, output: Tensor, part: TerminalPart) -> Tensor:
        """Return ℓ_k of a chunk."""
        final = self._final(output, part)
        weight = _label_weight(part, final.dtype)
        values = weight * self.function(final, part.targets)
        if self.prior is not None:
            values = values + (1 - weight) * cross_entropy_to(self.prior(final, self._labels(part)), final)
        if part.counted is not None:
            values = torch.where(part.counted, values, 0.0)
        return values.sum(dtype=_summed_in(values)) / part.num_counted

    def _labels(self, part: TerminalPart) -> Tensor:
        """Return the targets for Q; an ignored label has no row there, and its term does not count."""
        if part.counted is None:
            return part.targets
        return _replaced(part.targets, part.counted, 0)

    @torch.no_grad()
    def observe(self, output: Tensor, part: TerminalPart, reduce: Callable[[Tensor], Tensor] | None = None) -> None:
        """Let a running prior learn from the predictions of the sequences that end in this chunk."""
        if self.prior is not None:
            final = self._final(output, part)
            ended = torch.as_tensor(part.num_chunks == part.position, device=final.device).expand(len(final))
            self.prior.observe(final, self._labels(part), _where_both(ended, part.counted), reduce)

    def _final(self, output: Tensor, part: TerminalPart) -> Tensor:
        """Return the output at the last real step of each sequence in the chunk, (B, …)."""
        has_rows = self.has_classes or part.targets.dim() > 1  # outputs of C numbers, and not a single one a step
        # rather (B, C), or (C, B) of a batch-first model, than (T_k, B)
        is_flat = output.dim() == 2 and (has_rows or len(output) not in (1, part.num_steps))
        if output.dim() < 2 or output.shape[1] != len(part.targets) or is_flat:
            rest = "C, …" if has_rows else "…"
            raise ValueError(
                f"the model must return outputs (T_k, B, {rest}) with T_k, B = {(part.num_steps, len(part.targets))}, "
                f"or those of the last step, (1, B, {rest}), got {tuple(output.shape)}, time-major: the output of the "
                "last step alone keeps its time dimension."
            )
        if part.last is None:
            return output[-1]
        if len(output) != part.num_steps:
            raise ValueError(
                f"a mask needs the outputs of all {part.num_steps} steps, got {len(output)}: use last_only=False."
            )
        return output[part.last, torch.arange(output.shape[1], device=output.device)]


def _label_weight(part: TerminalPart, dtype: torch.dtype) -> float | Tensor:
    """Return b = (k + 1)/K: a number, or (B,) where the samples have ends of their own."""
    own = part.num_chunks
    if isinstance(own, Tensor):
        # a quotient of integers would be of the default type, and one in half precision round 1 − b to 0
        own = own.to(torch.promote_types(dtype, torch.float32))
    return part.position / own
