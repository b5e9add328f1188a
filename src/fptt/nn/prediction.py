"""Predictions of a trained model, of sequences of one length and of ragged ones."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pad_packed_sequence, pad_sequence

from fptt._checks import check_count, check_tensors
from fptt._sequence import State, check_layout, check_reads_forward, last_true, length_mask, split_sequence


@torch.no_grad()
def predict(
    model: nn.Module,
    inputs: Tensor | Sequence[Tensor] | PackedSequence,
    mask: Tensor | None = None,
    *,
    per_step: bool = False,
    chunk_length: int = 256,
    batch_first: bool = False,
) -> Tensor | list[Tensor]:
    """Return the output of each sequence at its last real step, or those of all steps, in evaluation mode.

    The sequences are read chunk by chunk, so that memory does not depend on T, but for the outputs of all steps.

    Args:
        model: Called as `model(inputs, state) -> (outputs, state)`, with outputs of every step, (T, B, …). Where no
            sequence is padded, those of the last step of a call will do (`last_only=True`).
        inputs: (T, B, …); or ragged sequences, a list of (T_i, …) or a `PackedSequence`.
        mask: Boolean, (T, B), True at real steps of padded inputs; None if all are real.
        per_step: Return the outputs of all steps.
        chunk_length: Steps of a call, ≥ 1.
        batch_first: Whether model, inputs, mask and outputs are (B, T, …), and T the second dim.

    Returns:
        (B, …). With `per_step` (T, B, …), or a list of (T_i, …) for ragged sequences.

    Raises:
        ValueError: If `batch_first` is not that of the model, a layer of it is bidirectional, there is no sequence, one
            has no step, the mask does not fit, or the model does not return an output for each step, or, where that
            will do, for the last one.

    Examples:
        >>> model = fptt.nn.GRU(3, 8, 2)
        >>> ragged = [torch.randn(5, 3), torch.randn(9, 3)]
        >>> fptt.predict(model, ragged).shape
        torch.Size([2, 2])
        >>> [tuple(outputs.shape) for outputs in fptt.predict(model, ragged, per_step=True)]
        [(5, 2), (9, 2)]
    """
    torch.clear_autocast_cache()  # it may hold casts of earlier weights
    check_count("chunk_length", chunk_length)
    check_layout(model, batch_first=batch_first)
    check_reads_forward(model)
    if not isinstance(inputs, Tensor):
        if mask is not None:
            raise ValueError("mask must be None with ragged sequences, whose lengths say which steps are real.")
        padded, lengths = _padded(inputs)
        padded = padded.transpose(0, 1) if batch_first else padded
        own = length_mask(lengths, int(lengths.max())).to(padded.device)
        own = own.T if batch_first else own
        outputs = predict(model, padded, own, per_step=per_step, chunk_length=chunk_length, batch_first=batch_first)
        if not per_step:
            return outputs
        assert isinstance(outputs, Tensor)
        outputs = outputs if batch_first else outputs.transpose(0, 1)
        return [steps[:length] for steps, length in zip(outputs, lengths.tolist(), strict=True)]
    dim = int(batch_first)
    _check_mask(inputs, mask, dim)
    num_steps = inputs.shape[dim]
    # (B,), the number of the last real step of each sequence; None where that is the last one of all
    last = None if mask is None or mask.all() else last_true(mask.T if batch_first else mask).to(inputs.device)
    state: State = None
    parts: list[Tensor] = []
    found: Tensor | None = None
    start = 0
    with evaluating(model):
        for (chunk,) in split_sequence(inputs, chunk_length=min(chunk_length, num_steps), dim=dim):
            outputs, state = model(chunk, state)
            _check_outputs(outputs, chunk, dim, needs_steps=per_step or last is not None)
            length = chunk.shape[dim]
            if per_step:
                parts.append(outputs)
            elif last is None:
                found = outputs.select(dim, -1)
            else:
                steps = outputs.transpose(0, 1) if batch_first else outputs
                picked = steps.new_zeros(steps.shape[1:]) if found is None else found
                ends = (last >= start) & (last < start + length)
                picked[ends] = steps[last[ends] - start, ends]
                found = picked
            start += length
    if per_step:
        return torch.cat(parts, dim)
    assert found is not None
    return found


def _padded(inputs: Sequence[Tensor] | PackedSequence) -> tuple[Tensor, Tensor]:
    """Return ragged sequences padded, (T, B, …), and their lengths, (B,)."""
    if isinstance(inputs, PackedSequence):
        return pad_packed_sequence(inputs)
    sequences = list(inputs)
    if not sequences or any(not isinstance(own, Tensor) or own.dim() < 1 or not len(own) for own in sequences):
        raise ValueError("inputs must be (T, B, …), or a list of at least one sequence (T_i, …) with T_i ≥ 1.")
    widths = {tuple(own.shape[1:]) for own in sequences}
    if len(widths) > 1:
        raise ValueError(f"inputs must have the same shape a step in every sequence, got {sorted(widths)}.")
    return pad_sequence(sequences), torch.tensor([len(own) for own in sequences])


def _check_mask(inputs: Tensor, mask: Tensor | None, dim: int) -> None:
    if inputs.dim() < 2 or 0 in inputs.shape[:2]:
        raise ValueError(f"inputs must have a T and a B of at least 1, got shape {tuple(inputs.shape)}.")
    if mask is None:
        return
    check_tensors(mask=mask)
    if mask.dtype != torch.bool or mask.shape != inputs.shape[:2]:
        raise ValueError(
            f"mask must be boolean with the first two dims of inputs, {tuple(inputs.shape[:2])}, got {mask.dtype} of "
            f"{tuple(mask.shape)}."
        )
    if not mask.any(dim).all():
        raise ValueError("mask must have at least one real step for every sequence, got a sequence without one.")


def _check_outputs(outputs: Tensor, chunk: Tensor, dim: int, *, needs_steps: bool) -> None:
    """Raise ValueError unless outputs are those of every step of a chunk, or of its last step where that will do."""
    num_steps, batch_size = chunk.shape[dim], chunk.shape[1 - dim]
    if outputs.dim() < 2 or outputs.shape[1 - dim] != batch_size or outputs.shape[dim] not in (num_steps, 1):
        steps, one = ("(B, T, …)", "(B, 1, …)") if dim else ("(T, B, …)", "(1, B, …)")
        raise ValueError(
            f"model must return outputs {steps} with T, B = {(num_steps, batch_size)}, or those of the last step, "
            f"{one}, got {tuple(outputs.shape)}: the output of the last step alone keeps its time dimension."
        )
    if needs_steps and outputs.shape[dim] != num_steps:
        raise ValueError(
            f"model must return an output for each of {num_steps} steps (last_only=False), got shape "
            f"{tuple(outputs.shape)}."
        )


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put every module that is in training mode into evaluation mode, and back.

    `model.eval()` and `model.train()` would not do: they forget which modules a user has frozen in evaluation mode.
    """
    training = [module for module in model.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True
