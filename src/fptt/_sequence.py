"""The layout of a sequence and its cuts, the progress of lanes over the chunks, and the recurrent state at a cut."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from torch.utils._pytree import tree_flatten, tree_unflatten

from fptt._checks import check_count, check_tensors

State = Any
"""A nest of tensors, or None for the model's own initial state.

Nests are those of `torch.utils._pytree`: tuples, NamedTuples, lists, dicts, OrderedDicts, defaultdicts, deques, and
classes that were registered there; None may stand in the place of a tensor. It is no recursive type: a model returns a
nest that its user knows, and indexes.
"""

WRAPPERS = (nn.parallel.DistributedDataParallel, nn.DataParallel, AveragedModel)
"""Modules of torch that run the one inside, `.module`, and do not hand on its attributes."""


class Progress(NamedTuple):
    """How far the sequence of every lane is, in each of K chunks; tensors (K, B), whole numbers.

    Attributes:
        position: k + 1 of the chunk in its lane's sequence: 1 where the sequence begins, 0 in an idle lane.
        num_chunks: Chunks of the lane's sequence; 1 in an idle lane.
        num_steps: Real steps of the lane's sequence that count; 1 in an idle lane.
    """

    position: Tensor
    num_chunks: Tensor
    num_steps: Tensor


def chunk_lengths(length: int, num_chunks: int | None = None, chunk_length: int | None = None) -> list[int]:
    """Split a number of time steps into chunks whose lengths differ by at most one.

    A remainder is spread over the first chunks, so that no chunk is tiny. With `chunk_length` no chunk is longer than
    asked: that bounds the memory.

    Args:
        length: Time steps in the sequence, T ≥ 1.
        num_chunks: Number of chunks, 1 ≤ K ≤ T. Exactly one of `num_chunks` and `chunk_length` is given.
        chunk_length: Longest chunk, in time steps, ≥ 1; more than T gives one chunk.

    Returns:
        The K lengths, which sum to `length`.

    Raises:
        ValueError: If both or neither are given, or one is out of range.

    Examples:
        >>> fptt.chunk_lengths(784, num_chunks=10)
        [79, 79, 79, 79, 78, 78, 78, 78, 78, 78]
        >>> fptt.chunk_lengths(10, chunk_length=4)
        [4, 3, 3]
    """
    check_chunking(num_chunks, chunk_length)
    check_count("length", length)
    count = num_chunks if num_chunks is not None else -(-length // (chunk_length or 1))
    if count > length:
        raise ValueError(f"num_chunks must be at most the sequence length {length}, got {count}.")
    base, remainder = divmod(length, count)
    return [base + 1] * remainder + [base] * (count - remainder)


def check_chunking(num_chunks: int | None, chunk_length: int | None) -> None:
    """Raise ValueError unless exactly one of the two is given and is a positive integer."""
    if (num_chunks is None) == (chunk_length is None):
        raise ValueError(
            "give exactly one of num_chunks and chunk_length, "
            f"got num_chunks={num_chunks}, chunk_length={chunk_length}."
        )
    name, value = ("num_chunks", num_chunks) if num_chunks is not None else ("chunk_length", chunk_length)
    check_count(name, value)  # pyright: ignore[reportArgumentType]


def check_layout(model: Any, *, batch_first: bool) -> None:
    """Raise ValueError if a model says by its own `batch_first` that its layout is another one."""
    layout = model_attribute(model, "batch_first", batch_first)
    if layout != batch_first:
        raise ValueError(f"batch_first must be that of the model, {layout}, got {batch_first}.")


def check_reads_forward(model: nn.Module) -> None:
    """Raise ValueError if a layer of a model is bidirectional: its outputs in chunks are other ones."""
    for name, module in model.named_modules():
        # the backward half of a chunk would begin at the chunk's end, not at the sequence's
        if isinstance(module, nn.RNNBase) and module.bidirectional:
            raise ValueError(
                f"model must read forward in time, got the bidirectional {type(module).__name__} {name or 'itself'!r}: "
                "its outputs in chunks are not those of the whole sequence."
            )


def split_sequence(
    *tensors: Tensor, num_chunks: int | None = None, chunk_length: int | None = None, dim: int = 0
) -> Iterator[tuple[Tensor, ...]]:
    """Cut sequences of equal length along time and yield the chunks in order, as views.

    Args:
        *tensors: Sequences, (T, B, …) by default, with the same number of steps in `dim`.
        num_chunks: Number of chunks, 1 ≤ K ≤ T.
        chunk_length: Longest chunk in time steps, instead of `num_chunks`.
        dim: The time dimension: 0 for time-major tensors, 1 for batch-first ones.

    Returns:
        An iterator of K tuples, one view of each tensor.

    Raises:
        TypeError: If one is no tensor.
        ValueError: If no tensor is given, one lacks dimension `dim`, the lengths differ, or the chunking is out of
            range (see `chunk_lengths`).

    Examples:
        >>> inputs, targets = torch.randn(20, 4, 3), torch.randn(20, 4)
        >>> [tuple(x.shape) for x, y in fptt.split_sequence(inputs, targets, num_chunks=3)]
        [(7, 4, 3), (7, 4, 3), (6, 4, 3)]
    """
    if not tensors:
        raise ValueError("tensors must hold at least one sequence, got none.")
    for number, tensor in enumerate(tensors):
        check_tensors(**{f"tensors[{number}]": tensor})
        if not -tensor.dim() <= dim < tensor.dim():
            raise ValueError(f"tensors[{number}] must have dim {dim}, the time, got shape {tuple(tensor.shape)}.")
    steps = [tensor.shape[dim] for tensor in tensors]
    if len(set(steps)) > 1:
        raise ValueError(f"tensors must have the same number of time steps in dim {dim}, got {steps}.")
    lengths = chunk_lengths(steps[0], num_chunks, chunk_length)
    return zip(*(tensor.split(lengths, dim) for tensor in tensors), strict=True)


def length_mask(lengths: Tensor | Sequence[int], num_steps: int) -> Tensor:
    """Return the mask of sequences that are padded at their ends.

    Args:
        lengths: Real steps of each sequence, (B,), integers in 0 … `num_steps`.
        num_steps: T, the steps with padding.

    Returns:
        Boolean, (T, B), True at real steps, on the device of `lengths`.

    Raises:
        ValueError: If the lengths are no row of integers, or one is out of range.

    Examples:
        >>> fptt.length_mask([3, 1], num_steps=3).int().tolist()
        [[1, 1], [1, 0], [1, 0]]
    """
    check_count("num_steps", num_steps)
    lengths = torch.as_tensor(lengths)
    if lengths.dim() != 1 or lengths.numel() == 0 or lengths.is_floating_point() or lengths.dtype == torch.bool:
        raise ValueError(f"lengths must be integers of shape (B,), got {lengths.dtype} of {tuple(lengths.shape)}.")
    if lengths.min() < 0 or lengths.max() > num_steps:
        raise ValueError(f"lengths must be in 0 … num_steps = {num_steps}, got {lengths.tolist()}.")
    return torch.arange(num_steps, device=lengths.device)[:, None] < lengths


def last_output(outputs: Tensor, mask: Tensor | None = None, *, batch_first: bool = False) -> Tensor:
    """Return the output of each sequence at its last real step: its prediction, after training with a `TerminalLoss`.

    Args:
        outputs: (T, B, …), of all steps.
        mask: Boolean, (T, B), True at real steps; None if all are real. Steps after the last real one do not matter.
        batch_first: Whether outputs and mask are (B, T, …) instead.

    Returns:
        (B, …).

    Raises:
        TypeError: If outputs or mask are no tensor.
        ValueError: If the mask is not boolean or not of the outputs' T and B, or a sequence has no real step.

    Examples:
        >>> outputs = torch.arange(6.0).reshape(3, 2)
        >>> fptt.last_output(outputs, fptt.length_mask([1, 3], num_steps=3)).tolist()
        [0.0, 5.0]
    """
    check_tensors(outputs=outputs)
    if outputs.dim() < 2:
        raise ValueError(f"outputs must have shape (T, B, …), got {tuple(outputs.shape)}.")
    outputs = outputs.transpose(0, 1) if batch_first else outputs
    if mask is None:
        return outputs[-1]
    hint = "; outputs must be those of all steps (last_only=False)"
    mask = time_major_flags("mask", mask, outputs.shape[:2], batch_first=batch_first, hint=hint)
    if not mask.any(0).all():
        raise ValueError("mask must have at least one real step for every sequence, got a sequence without one.")
    return outputs[last_true(mask).to(outputs.device), torch.arange(outputs.shape[1], device=outputs.device)]


def time_major_flags(name: str, flags: Tensor, expected: Sequence[int], *, batch_first: bool, hint: str = "") -> Tensor:
    """Return flags of steps, (T, B) or (B, T), as (T, B).

    Raises:
        TypeError: If they are no tensor.
        ValueError: If they are not boolean or not of the expected T and B; the message ends in the hint.
    """
    check_tensors(**{name: flags})
    flags = flags.transpose(0, 1) if batch_first and flags.dim() == 2 else flags
    if flags.dtype != torch.bool or flags.shape != tuple(expected):
        raise ValueError(
            f"{name} must be boolean with T, B = {tuple(expected)}, got {flags.dtype} of {tuple(flags.shape)}{hint}."
        )
    return flags


def last_true(mask: Tensor) -> Tensor:
    """Return the index of the last True in dim 0 of a (T, B) mask, (B,); T − 1 where there is none."""
    return len(mask) - 1 - mask.flip(0).int().argmax(0)


def map_state(function: Callable[[Tensor], Any], state: State) -> State:
    """Apply a function to every tensor of a nest and keep the nest's own types.

    Raises:
        TypeError: If the nest holds something else than tensors.
    """
    # tuples by hand, nested ones too: this runs at every chunk, and pytree takes five times as long
    if isinstance(state, Tensor):
        return function(state)
    if state is None:
        return None
    if _is_tuple(state):
        mapped = [map_state(function, part) for part in state]
        return type(state)(*mapped) if hasattr(state, "_fields") else tuple(mapped)
    leaves, spec = tree_flatten(state)
    return tree_unflatten([None if leaf is None else function(leaf) for leaf in _checked(leaves)], spec)


def copied_nest(state: State) -> State:
    """Return a nest of its own with the same tensors: a model may write its next state into the one it is given."""
    return state if _is_fixed(state) else map_state(lambda tensor: tensor, state)


def flatten_state(state: State) -> list[Tensor]:
    """Return the tensors of a nest in the order in which `map_state` visits them."""
    if isinstance(state, Tensor):
        return [state]
    if _is_tuple(state):
        return [tensor for part in state for tensor in flatten_state(part)]
    return [leaf for leaf in _checked(tree_flatten(state)[0]) if leaf is not None]


def refill_state(like: State, tensors: Sequence[Tensor]) -> State:
    """Return the nest of a state with other tensors, in the order of `flatten_state`, with its dtypes and devices."""
    following = iter(tensors)
    return map_state(lambda own: next(following).to(own), like)


def describe_state(state: State) -> str:
    """Return the shapes of the tensors of a state."""
    return "tensors of shapes " + ", ".join(str(tuple(tensor.shape)) for tensor in flatten_state(state))


def _is_tuple(state: State) -> bool:
    return type(state) is tuple or (isinstance(state, tuple) and hasattr(state, "_fields"))


def _is_fixed(state: State) -> bool:
    """Return whether a nest has tuples only, in which no other tensor can be put."""
    return state is None or isinstance(state, Tensor) or (_is_tuple(state) and all(map(_is_fixed, state)))


def _checked(leaves: list[Any]) -> list[Tensor | None]:
    """Return the leaves of a nest; pytree takes whatever it does not know for one."""
    for leaf in leaves:
        if leaf is not None and not isinstance(leaf, Tensor):
            raise TypeError(
                f"state must be a nest of tensors (tuple, NamedTuple, list, dict), got a {type(leaf).__name__} in it."
            )
    return leaves


def detach_state(state: State) -> State:
    """Cut the graph: return the same nest with every tensor detached, sharing memory.

    Args:
        state: Any nest of tensors, or None.

    Raises:
        TypeError: If the nest holds something else than tensors.

    Examples:
        >>> weight = torch.ones(2, requires_grad=True)
        >>> fptt.detach_state({"h": weight * 2})["h"].requires_grad
        False
    """
    return map_state(Tensor.detach, state)


def reset_state(state: State, is_first: Tensor, initial: State = None, *, batch_dim: int = -2) -> State:
    """Start single samples of a batch again, in mid-sequence, and leave the others alone.

    Args:
        state: Any nest of tensors with a batch dimension, (…, B, H). Not mutated.
        is_first: Boolean, (B,), True where a new sequence begins.
        initial: The nest to start from, of the same shapes or broadcastable; zeros by default.
        batch_dim: The batch dimension of every tensor; -2 fits (B, H) and (num_layers, B, H).

    Returns:
        A new nest of the same types and shapes.

    Raises:
        TypeError: If `is_first` is no tensor, or a nest holds something else than tensors.
        ValueError: If `is_first` is not boolean or not of the batch size of the state, `initial` does not fit, or a
            tensor has no dimension `batch_dim`.

    Examples:
        >>> fptt.reset_state(torch.ones(3, 2), torch.tensor([True, False, True])).sum().item()
        2.0
    """
    check_tensors(is_first=is_first)
    if is_first.dtype != torch.bool or is_first.dim() != 1:
        raise ValueError(
            f"is_first must be a boolean tensor of shape (B,), got {is_first.dtype} of {tuple(is_first.shape)}."
        )
    tensors, initials = flatten_state(state), flatten_state(initial)
    if initials and len(initials) != len(tensors):
        raise ValueError(f"initial must have {len(tensors)} tensors as the state has, got {len(initials)}.")
    replacements = iter(initials)

    def restart(tensor: Tensor) -> Tensor:
        if not -tensor.dim() <= batch_dim < tensor.dim():
            raise ValueError(
                f"state must have dim {batch_dim}, the batch, got a tensor of shape {tuple(tensor.shape)}."
            )
        if tensor.shape[batch_dim] != len(is_first):
            raise ValueError(
                f"is_first must have one entry for each of the {tensor.shape[batch_dim]} samples in dim {batch_dim} "
                f"of a state tensor of shape {tuple(tensor.shape)}, got {len(is_first)}."
            )
        shape = [1] * tensor.dim()
        shape[batch_dim] = len(is_first)
        fresh = next(replacements).to(tensor) if initials else tensor.new_zeros(())
        try:
            fresh = fresh.expand_as(tensor)
        except RuntimeError as error:
            expected, found = tuple(tensor.shape), tuple(fresh.shape)
            raise ValueError(f"initial must have shape {expected} or one that expands to it, got {found}.") from error
        return torch.where(is_first.to(tensor.device).view(shape), fresh, tensor)

    return map_state(restart, state)


def state_batch_dim(module: Any) -> int:
    """Return which dimension of every tensor of a module's state is the batch, -2 if it does not say."""
    return model_attribute(module, "state_batch_dim", -2)


def initial_state(module: Any, inputs: Tensor) -> State:
    """Return where sequences begin, by the module's own `initial_state(inputs)`; None, for zeros, if it has none.

    Raises:
        TypeError: If the module has something else of that name.
    """
    begin = model_attribute(module, "initial_state", None)
    if begin is not None and not callable(begin):
        raise TypeError(f"initial_state must be a method, initial_state(inputs), got a {type(begin).__name__}.")
    return None if begin is None else begin(inputs)


def model_attribute(module: Any, name: str, default: Any) -> Any:
    """Return what a module says of its layout or state, from within the wrappers of torch if they have it not."""
    # a wrapper that is compiled, which is its `_orig_mod`, hands on what that one has
    while not hasattr(module, name) and isinstance(getattr(module, "_orig_mod", module), WRAPPERS):
        module = module.module
    return getattr(module, name, default)
