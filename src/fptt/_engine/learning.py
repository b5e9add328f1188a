"""How one chunk is learned: forward pass, checks, gradient, step."""

from abc import ABC
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from fptt._batches.cut import Chunk, Chunking, call_model
from fptt._batches.segments import run_segments
from fptt._checks import all_finite
from fptt._losses.chunk_loss import ChunkLoss
from fptt._parallel.replicas import Alone
from fptt._regularizer.step_hooks import BadWeightsError, StepHooks
from fptt._sequence import State


class Learning(ABC):
    """The steps from a chunk to an update; see `Method` for the attributes."""

    model: nn.Module
    optimizer: Optimizer
    loss: ChunkLoss
    chunking: Chunking
    processes: Alone
    check_finite: bool
    backward: Callable[[Tensor], Any]
    step: Callable[[Optimizer], Any]
    batches: int
    _hooks: StepHooks | None

    def _forward(self, chunk: Chunk, state: State) -> tuple[Tensor, Tensor, State]:
        """Return outputs, time-major, loss and next state of a chunk."""
        torch.clear_autocast_cache()  # it holds the weights before the last update
        call = partial(call_model, self.model, is_given=chunk.number == 0 and state is not None)
        output, next_state = run_segments(
            call, self.model, chunk.inputs, state, starts=chunk.starts, time_dim=self.chunking.time_dim
        )
        output = self.chunking.time_major(output)
        loss = self.loss(output, chunk.part)
        if chunk.has_bad_inputs:
            loss = loss * float("nan")  # which the model may hide
        if not self.processes.adds_gradients:
            self._check_loss(loss, chunk)
        return output, loss, next_state

    def _check_loss(self, loss: Tensor, chunk: Chunk) -> None:
        if self.check_finite and not all_finite(loss):
            raise FloatingPointError(f"the loss is {loss.item()} {self._place(chunk)}")

    def _update(self, loss: Tensor, chunk: Chunk) -> list[Tensor]:
        """Make one update and return the norm of its gradient, if the optimizer stepped."""
        self._take_gradient(loss, chunk, self.backward)
        hooks = self._open_hooks()
        hooks.gradient_norm = None
        try:
            self.step(self.optimizer)
        except BadWeightsError as error:
            raise self._bad_weights(chunk) from error
        except FloatingPointError as error:
            raise FloatingPointError(f"the gradient is NaN or Inf {self._place(chunk)}") from error
        return [] if hooks.gradient_norm is None else [hooks.gradient_norm]

    def _take_gradient(self, loss: Tensor, chunk: Chunk, backward: Callable[[Tensor], Any]) -> None:
        """Leave the gradient of the loss, which is that of all processes where they make updates together."""
        self.optimizer.zero_grad()
        backward(self.processes.weigh(loss))
        total = self.processes.add_gradients_(loss.detach())
        if self.processes.adds_gradients:
            self._check_loss(total, chunk)

    def _place(self, chunk: Chunk) -> str:
        return f"in chunk {chunk.number} of batch {self.batches}; the weights are as before that chunk."

    def _bad_weights(self, chunk: Chunk) -> BadWeightsError:
        place = f"the update of chunk {chunk.number} of batch {self.batches}"
        return BadWeightsError(f"the weights are NaN or Inf after {place}: go back to a checkpoint.")

    def _open_hooks(self) -> StepHooks:
        if self._hooks is None:
            raise RuntimeError("the method is closed: make a new one to train on.")
        return self._hooks
