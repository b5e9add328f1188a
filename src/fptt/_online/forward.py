"""Cached inference on the next steps of a stream."""

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fptt._checks import check_result
from fptt._methods.method import Method
from fptt._sequence import State, flatten_state, map_state, refill_state
from fptt.nn.prediction import evaluating


class _Run(NamedTuple):
    """Inference on rows (n, …) from a state: all that it depends on, then outputs (n, C) and the state after it.

    The weights are held, so that no others come to lie where they are, which would look the same.
    """

    rows: Tensor
    state: State
    weights: tuple[int, ...]
    held: list[Tensor]
    outputs: Tensor
    next_state: State


class Forward:
    """Run a method's model over the steps of one stream, in evaluation mode and without a graph.

    Attributes:
        num_outputs: C; None before the first run.
    """

    def __init__(self, method: Method) -> None:
        self.method = method
        self.num_outputs: int | None = None
        self._last: _Run | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Return what a copy has: not the last run, since its weights lie elsewhere."""
        return {**vars(self), "_last": None}

    @torch.no_grad()
    def run(self, rows: Tensor, state: State) -> tuple[Tensor, State]:
        """Return outputs, (n, C), and next state for rows (n, …).

        Raises:
            TypeError: If the model does not return outputs and state.
            ValueError: If it does not return one output per step, or does not take the first ones.
        """
        torch.clear_autocast_cache()  # it holds the weights before the last update
        own = map_state(Tensor.clone, state)  # a model may write into it, and training goes on from what it was
        with evaluating(self.method.model):
            try:
                result = self.method.model(rows.unsqueeze(1), own)  # a batch of one lane
            except (RuntimeError, ValueError) as error:
                if self.num_outputs is not None:  # steps of this shape have been taken before
                    raise
                raise ValueError(
                    "x must be a step that the model takes, a mapping or a sequence of numbers, got one of shape "
                    f"{tuple(rows.shape[1:])}: {error}"
                ) from error
        check_result(result)
        outputs, state = result
        if outputs.dim() != 3 or outputs.shape[:2] != (len(rows), 1):
            raise ValueError(
                f"model must return one output per step, (T, 1, C) with T = {len(rows)}, got {tuple(outputs.shape)}."
            )
        self.num_outputs = outputs.shape[-1]
        return outputs[:, 0], state

    def cached(self, rows: Tensor, state: State) -> tuple[Tensor, State]:
        """Return what `run` returns, and run only if rows, state or weights are not those of the last call.

        `predict_one(x)`, then `learn_one(x, y)` is one forward pass.
        """
        last = self._last
        # A state is never written to, so that it is the same if it is the same object.
        if (
            last is None
            or last.state is not state
            or last.weights != self._weights()
            or not torch.equal(last.rows, rows)
        ):
            outputs, next_state = self.run(rows, state)
            held = [tensor.detach() for tensor in self._tensors()]
            last = self._last = _Run(rows, state, self._weights(), held, outputs, next_state)
        return last.outputs, last.next_state

    def _weights(self) -> tuple[int, ...]:
        """Return a version of the weights: it changes with every update of the method, and with the writes by others.

        Torch counts the writes to each tensor, those of an optimizer, of `load_state_dict` and of `averaged()` too. It
        does not see the compiled engine's, which writes to flat buffers: hence the method's own counter. Nor does it
        see another tensor put in by `.data = …`, as by `nn.utils.vector_to_parameters`: hence where each one lies. A
        write in place to a `.data`, as `.data.copy_(…)`, is the one that is not noticed.
        """
        places = (tensor.data_ptr() for tensor in self._tensors() if tensor.layout == torch.strided)
        return (self.method.updates, *(tensor._version for tensor in self._tensors()), *places)

    def _tensors(self) -> Iterator[Tensor]:
        return chain(self.method.model.parameters(), self.method.model.buffers())

    def restored(self, tensors: Sequence[Tensor] | None, example: Tensor | None) -> State:
        """Return the state with these tensors, in the nest that the model makes of an example step.

        The nest may grow with the first steps, as that of a model with a delay: they are then as many as it takes.

        Raises:
            ValueError: If that has another number of tensors, as where the model keeps some in training alone.
        """
        if example is None:
            return None
        like = self.run(example.unsqueeze(0), None)[1]  # a model without a state shows its outputs, too
        if tensors is None:
            return None
        for _ in tensors:
            if len(flatten_state(like)) < len(tensors):
                like = self.run(example.unsqueeze(0), like)[1]
        own = len(flatten_state(like))
        if len(tensors) != own:
            raise ValueError(
                f"state must have {own} tensors, as the model keeps in evaluation mode, got {len(tensors)}."
            )
        return refill_state(like, tensors)
