"""Training on a stream, chunk by chunk, from a queue of the steps that wait for it."""

from collections.abc import Sequence
from numbers import Integral
from typing import Any

import torch
from torch import Tensor

from fptt._checks import first_weight
from fptt._methods.method import Method
from fptt._online.forward import Forward
from fptt._online.targets import Targets
from fptt._sequence import State, flatten_state


class Trainer:
    """Queue the steps of a stream, and train on a chunk as soon as its labels are there or will not come any more.

    At most `chunk_length + max_delay` steps wait. Training follows behind the predictions by as many steps as wait,
    with a hidden state of its own.

    Attributes:
        state: The state after all steps trained on.

    Raises:
        ValueError: If the method cannot learn from a stream, or the delay is not a number of steps.
    """

    def __init__(self, method: Method, forward: Forward, targets: Targets, max_delay: int) -> None:
        if isinstance(max_delay, bool) or not isinstance(max_delay, int) or max_delay < 0:
            raise ValueError(f"max_delay must be a number of steps, 0 or more, got {max_delay!r}.")
        self.chunk_length, self.max_delay = _chunk_length(method), max_delay
        self.state: State = None
        self._method, self._forward, self._targets = method, forward, targets
        self._queued_rows: list[Tensor] = []
        self._queued_targets: list[Any] = []  # a target for each row; None without a label, or not yet

    def __len__(self) -> int:
        return len(self._queued_rows)

    @property
    def num_free(self) -> int:
        """The number of steps that can be entered before the oldest chunk is trained on at the latest."""
        return self.chunk_length + self.max_delay - len(self)

    def enter(self, rows: Tensor, targets: Sequence[Any]) -> None:
        """Add the rows of steps, (n, …), and their targets to the queue, and train on the chunks that are ready."""
        self._queued_rows.extend(rows.unbind(0))
        self._queued_targets.extend(targets)
        self._train_ready_chunks()

    def check_waits(self, delay: int) -> None:
        """Raise ValueError unless the step so many steps ago, the last one being 1 step ago, waits for its label.

        Raises:
            TypeError: If it is no whole number.
        """
        if not isinstance(delay, Integral):
            raise TypeError(f"delay must be a whole number of steps, got {delay!r}.")
        if not 1 <= delay <= self.max_delay:
            raise ValueError(f"delay must be from 1 to max_delay = {self.max_delay} steps, got {delay!r}.")
        if delay > len(self) or self._queued_targets[-delay] is not None:
            raise ValueError(f"delay must be that of a step without a label, got {delay}: that step waits for none.")

    def label(self, delay: int, target: Any) -> None:
        """Give the step so many steps ago its target, and train on the chunks that are ready."""
        self._queued_targets[-delay] = target
        self._train_ready_chunks()

    def _train_ready_chunks(self) -> None:
        while self._is_chunk_ready:
            self._train(self.chunk_length)

    @property
    def _is_chunk_ready(self) -> bool:
        """Whether every step of the oldest chunk has its label, or has waited `max_delay` steps for it."""
        num_settled = max(len(self) - self.max_delay, 0)  # no label can come for the oldest steps
        return len(self) >= self.chunk_length and None not in self._queued_targets[num_settled : self.chunk_length]

    def flush(self) -> None:
        """Train on all steps that wait, the last ones as a shorter chunk."""
        while len(self):
            self._train(min(self.chunk_length, len(self)))

    def _train(self, num_steps: int) -> None:
        rows, targets = torch.stack(self._queued_rows[:num_steps]), self._queued_targets[:num_steps]
        # They leave the queue before training, so that a chunk with a bad loss is dropped and not tried for ever.
        del self._queued_rows[:num_steps], self._queued_targets[:num_steps]
        if all(target is None for target in targets):
            self.state = self._forward.run(rows, self.state)[1]
            return
        like = first_weight(self._method.model)
        mask = torch.tensor([[target is not None] for target in targets], device=rows.device)  # (n, 1)
        encoded = self._targets.tensor(targets, self._forward.num_outputs or 0, like)
        result = self._method.train_batch(rows.unsqueeze(1), encoded, self.state, mask if None in targets else None)
        self.state = result.state

    def reset(self) -> None:
        """Forget the state and the steps that wait."""
        self._queued_rows, self._queued_targets, self.state = [], [], None

    def state_dict(self) -> dict[str, Any]:
        """Return the steps that wait, rows (n, …) or None without any, their targets, and the state."""
        return {
            "rows": torch.stack(self._queued_rows) if self._queued_rows else None,
            "targets": list(self._queued_targets),
            "state": None if self.state is None else flatten_state(self.state),
        }

    def load_state_dict(self, state_dict: dict[str, Any], example: Tensor | None) -> None:
        """Restore what `state_dict` returned, with a row as an example of a step."""
        rows = state_dict["rows"]
        device = next(self._method.model.parameters()).device
        self._queued_rows = [] if rows is None else list(rows.to(device).unbind(0))
        self._queued_targets = list(state_dict["targets"])
        self.state = self._forward.restored(state_dict["state"], example)


def _chunk_length(method: Method) -> int:
    length = method.chunking.chunk_length
    if length is None or method.chunking.batch_first:
        raise ValueError(f"method must have a chunk_length and be time-major on a stream, got {method.chunking}.")
    if not method.loss.per_step:
        raise ValueError(f"loss must be a SequenceLoss on a stream, got a {type(method.loss).__name__}.")
    if method.horizon > 1:
        raise ValueError(f"horizon must be 1 on a stream that is learned chunk by chunk, got {method.horizon}.")
    if method.regularizer is not None and method.regularizer.num_duals > 1:
        raise ValueError(f"num_duals must be 1 on a stream, got {method.regularizer.num_duals}.")
    return length
