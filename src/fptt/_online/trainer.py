"""Training on a stream: chunk by chunk, as far behind the predictions as labels may be late."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fptt._methods.method import Method
from fptt._online.forward import Forward
from fptt._online.targets import Targets
from fptt._online.waiting import WaitingSteps
from fptt._sequence import State


class Trainer:
    """Learns the steps that wait, chunk by chunk, with a hidden state of its own.

    Attributes:
        waiting: The steps entered and not learned.
        state: The state after all steps learned.

    Raises:
        ValueError: If the method cannot learn from a stream, or the delay is no number of steps.
    """

    def __init__(self, method: Method, forward: Forward, targets: Targets, max_delay: int) -> None:
        self.method, self.forward, self.targets = method, forward, targets
        self.waiting = WaitingSteps(_chunk_length(method), max_delay)
        self.state: State = None

    def learn_ready_chunks(self) -> None:
        """Learn the chunks whose labels are there, or will not come."""
        while self.waiting.is_chunk_ready:
            self._learn(self.waiting.chunk_length)

    def flush(self) -> None:
        """Learn everything, the last steps as a shorter chunk."""
        while len(self.waiting):
            self._learn(min(self.waiting.chunk_length, len(self.waiting)))

    def _learn(self, num_steps: int) -> None:
        rows, targets = self.waiting.take(num_steps)
        self.forward.forget()  # what it worked out with the weights before
        if all(target is None for target in targets):
            self.state = self.forward.run(rows, self.state)[1]
        else:
            self.state = self._train(rows, targets)

    def _train(self, rows: Tensor, targets: Sequence[Any]) -> State:
        has_label = [[target is not None] for target in targets]
        mask = torch.tensor(has_label, device=rows.device) if None in targets else None
        like = next(self.method.model.parameters())
        tensor = self.targets.tensor(targets, self.forward.num_outputs or 0, like)
        return self.method.train_batch(rows.unsqueeze(1), tensor, self.state, mask).state

    def reset(self) -> None:
        """Forget the state and the steps that wait."""
        self.waiting.clear()
        self.state = None


def _chunk_length(method: Method) -> int:
    length = method.chunking.chunk_length
    if length is None or method.chunking.batch_first:
        raise ValueError(f"method must have a chunk_length and be time-major on a stream, got {method.chunking}.")
    if not method.loss.per_step:
        raise ValueError(f"loss must be a SequenceLoss on a stream, got a {type(method.loss).__name__}.")
    if method.regularizer is not None and method.regularizer.num_duals > 1:
        raise ValueError(f"num_duals must be 1 on a stream, got {method.regularizer.num_duals}.")
    return length
