"""Sequences that begin in the middle of a chunk: the model runs from one beginning to the next."""

import itertools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from fptt._batches.cut import Start
from fptt._sequence import State, describe_state, initial_state, reset_state

Call = Callable[[Tensor, State], tuple[Tensor, State]]


def run_segments(
    call: Call, model: nn.Module, inputs: Tensor, state: State, *, starts: Sequence[Start] | None, time_dim: int
) -> tuple[Tensor, State]:
    """Return outputs and state of a chunk, with the state of single lanes started again where they begin.

    Args:
        call: Calls the model on a segment.
        model: Says where sequences begin, by `initial_state` and `state_batch_dim`.
        inputs: (T_k, B, …), or (B, T_k, …).
        state: Of the chunk before.
        starts: Where sequences begin, in order.
        time_dim: The time dimension of inputs and outputs.
    """
    if not starts:
        return call(inputs, state)
    lanes = {start.step: start.lanes for start in starts}
    edges = sorted({0, *lanes})
    lengths = [end - start for start, end in itertools.pairwise([*edges, inputs.shape[time_dim]])]
    outputs: list[Tensor] = []
    for edge, segment in zip(edges, inputs.split(lengths, time_dim), strict=True):
        if edge in lanes:
            state = _restart(model, segment, state, lanes[edge])
        output, state = call(segment, state)
        outputs.append(output)
    return torch.cat(outputs, time_dim), state


def _restart(model: nn.Module, inputs: Tensor, state: State, lanes: Tensor | None) -> State:
    """Return the state with some lanes at their beginning; where all begin, None, the model's own."""
    if lanes is None or state is None:
        return None
    batch_dim = getattr(model, "state_batch_dim", -2)
    initial = initial_state(model, inputs)
    try:
        return reset_state(state, lanes, initial, batch_dim=batch_dim)
    except (IndexError, RuntimeError, ValueError) as error:
        raise ValueError(
            f"is_first needs a state with the batch in dim {batch_dim} of every tensor (state_batch_dim of the model), "
            f"got {describe_state(state)}: {error}"
        ) from error
