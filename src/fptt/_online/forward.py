"""The model outside training: what it says to the next steps, worked out once."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fptt._sequence import State, refill_state


class _Ahead(NamedTuple):
    """Rows (n, …) of steps that have not been entered yet, the outputs (n, C), and the state after them."""

    rows: Tensor
    outputs: Tensor
    state: State


class Forward:
    """Runs a model over the steps of one stream, in evaluation mode and without a graph.

    Attributes:
        num_outputs: C; None before the first run.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.num_outputs: int | None = None
        self._ahead: _Ahead | None = None

    @torch.no_grad()
    def run(self, rows: Tensor, state: State) -> tuple[Tensor, State]:
        """Return outputs, (n, C), and next state for rows (n, …).

        Raises:
            TypeError: If the model does not return outputs and state.
            ValueError: If it does not return one output per step.
        """
        torch.clear_autocast_cache()  # it holds the weights before the last update
        with _evaluating(self.model):
            result = self.model(rows.unsqueeze(1), state)
        if not isinstance(result, tuple) or len(result) != 2:
            raise TypeError(f"model must return (outputs, state), got a {type(result).__name__}.")
        outputs, state = result
        if outputs.dim() != 3 or outputs.shape[:2] != (len(rows), 1):
            raise ValueError(
                f"model must return one output per step, (T, 1, C) with T = {len(rows)}, got {tuple(outputs.shape)}."
            )
        self.num_outputs = outputs.shape[-1]
        return outputs[:, 0], state

    def ahead(self, rows: Tensor, state: State) -> tuple[Tensor, State]:
        """Return what `run` returns, without another run if it was asked for the same rows and not told to forget."""
        if self._ahead is None or not torch.equal(self._ahead.rows, rows):
            self._ahead = _Ahead(rows, *self.run(rows, state))
        return self._ahead.outputs, self._ahead.state

    def forget(self) -> None:
        """Forget what was worked out ahead: state or weights have changed."""
        self._ahead = None

    def restore(self, tensors: Sequence[Tensor] | None, example: Tensor | None) -> State:
        """Return the state with these tensors, in the nest that the model makes of an example step."""
        if tensors is None or example is None:
            return None
        return refill_state(self.run(example.unsqueeze(0), None)[1], tensors)


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Put every module that is in training mode into evaluation mode, and back."""
    training = [module for module in model.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True
