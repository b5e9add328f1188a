"""What the three methods share: a batch is cut, its chunks are walked over, updates are made and counted."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from fptt._batch import Chunk, Chunking, check_inputs, check_same_state, cut_batch
from fptt._checks import all_finite
from fptt._losses import ChunkLoss
from fptt._regularizer import DynamicRegularizer
from fptt._sequence import State, check_chunking, detach
from fptt._step_hooks import StepHooks


class BatchResult(NamedTuple):
    """What one batch gave; tensors stay on the device, so that reading a figure is the only synchronization.

    Attributes:
        loss: Mean of the chunk losses, a scalar.
        chunk_losses: ℓ_k at the weights before the update of chunk k, (K,).
        penalty: R after the last update, a scalar; 0 without a regularizer.
        updates: Updates that the optimizer made.
        gradient_norm: Mean norm of the loss gradient over the updates, before penalty and clipping, a scalar.
        state: Final recurrent state, detached: the `state` of the next batch if the sequences go on.
    """

    loss: Tensor
    chunk_losses: Tensor
    penalty: Tensor
    updates: int
    gradient_norm: Tensor
    state: State


class Method(ABC):
    """What the three methods share: they cut a batch, walk over its chunks, and count.

    Args:
        model: Called as `model(inputs, state) -> (outputs, state)`; state None is the model's own beginning.
        optimizer: Any `torch.optim` optimizer over the model's parameters. Gains step hooks; see `close`.
        loss: A `TerminalLoss` or `SequenceLoss`.
        num_chunks: K, the number of chunks of every sequence.
        chunk_length: Longest chunk in time steps, instead of `num_chunks`.
        max_norm: Largest norm of the gradient; it is clipped inside `step()`. None for no clipping.
        batch_first: Whether inputs, outputs, targets of steps and masks are (B, T, …) instead of (T, B, …).
        check_finite: Stop at NaN or Inf in inputs, loss or gradient before a weight changes; one synchronization a
            chunk on an accelerator.
        backward: Called with each loss instead of `loss.backward()`, for example `fabric.backward`.

    Attributes:
        batches, updates, timesteps: What has been done so far; time steps are T · B a batch.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        loss: ChunkLoss,
        *,
        num_chunks: int | None = None,
        chunk_length: int | None = None,
        max_norm: float | None = None,
        batch_first: bool = False,
        check_finite: bool = True,
        backward: Callable[[Tensor], Any] = Tensor.backward,
    ) -> None:
        if not isinstance(loss, ChunkLoss):
            raise TypeError(
                f"loss must be a TerminalLoss or a SequenceLoss, got a {type(loss).__name__}: "
                "wrap it to say whether the targets belong to the sequence or to its steps."
            )
        check_chunking(num_chunks, chunk_length)
        self.model, self.optimizer, self.loss = model, optimizer, loss
        self.chunking = Chunking(num_chunks, chunk_length, batch_first)
        self.max_norm, self.check_finite, self.backward = max_norm, check_finite, backward
        self.batches = self.updates = self.timesteps = 0
        self._hooks = self._attach()

    @property
    def regularizer(self) -> DynamicRegularizer | None:
        """The regularizer, if the method has one."""
        return None

    def train_batch(
        self, inputs: Tensor, targets: Tensor, state: State = None, mask: Tensor | None = None
    ) -> BatchResult:
        """Train on one batch of sequences.

        Args:
            inputs: (T, B, …), or (B, T, …) with `batch_first`.
            targets: (B, …) for a `TerminalLoss`, (T, B, …) for a `SequenceLoss`.
            state: State to begin with, any nest of tensors, detached here; None for the model's own beginning.
            mask: Boolean, (T, B), True at real steps. It weighs the loss; the model still sees every step. A chunk
                without a real step makes no update.

        Returns:
            A `BatchResult`.

        Raises:
            ValueError: If the arguments do not fit together or the model.
            FloatingPointError: If inputs, loss or gradient are NaN or Inf, with batch and chunk. The updates of the
                chunks before stay; the weights are as they were before the bad chunk.
        """
        chunks = cut_batch(inputs, targets, mask, self.loss, self.chunking)
        if self.check_finite:
            check_inputs(chunks, self.batches)
        before = self._hooks.num_steps
        try:
            losses, norms, state = self._walk(chunks, detach(state))
        finally:
            updates = self._hooks.num_steps - before
            self.updates += updates
        self.batches += 1
        self.timesteps += inputs.shape[0] * inputs.shape[1]
        chunk_losses = torch.stack(losses)
        norm = torch.stack(norms).mean() if norms else chunk_losses.new_zeros(())
        with torch.no_grad():
            penalty = chunk_losses.new_zeros(()) if self.regularizer is None else self.regularizer.penalty()
        return BatchResult(chunk_losses.mean(), chunk_losses, penalty, updates, norm, detach(state))

    @abstractmethod
    def _walk(self, chunks: list[Chunk], state: State) -> tuple[list[Tensor], list[Tensor], State]:
        """Return the chunk losses, the gradient norm of each update, and the final state."""

    def _forward(self, chunk: Chunk, state: State) -> tuple[Tensor, Tensor, State]:
        """Return outputs, time-major, loss and next state of a chunk."""
        output, next_state = self.model(chunk.inputs, state)
        if chunk.number == 0 and state is not None:
            check_same_state(state, next_state)
        output = self.chunking.time_major(output)
        loss = self.loss(output, chunk.part)
        if self.check_finite and not all_finite(loss):
            raise FloatingPointError(f"the loss is {loss.item()} {self._place(chunk)}")
        return output, loss, next_state

    def _update(self, loss: Tensor, chunk: Chunk) -> list[Tensor]:
        """Make one update and return the norm of its gradient, if the optimizer stepped."""
        self.optimizer.zero_grad()
        self.backward(loss)
        self._hooks.gradient_norm = None
        try:
            self.optimizer.step()
        except FloatingPointError as error:
            raise FloatingPointError(f"the gradient is NaN or Inf {self._place(chunk)}") from error
        return [] if self._hooks.gradient_norm is None else [self._hooks.gradient_norm]

    def _place(self, chunk: Chunk) -> str:
        return f"in chunk {chunk.number} of batch {self.batches}; the weights are as before that chunk."

    def _attach(self) -> StepHooks:
        return StepHooks(
            self.optimizer, regularizer=self.regularizer, max_norm=self.max_norm, check_finite=self.check_finite
        )

    def close(self) -> None:
        """Take the method's hooks off the optimizer; the method cannot train any more."""
        self._hooks.remove()

    def state_dict(self) -> dict[str, Any]:
        """Return counters, the loss's running estimates and the regularizer; model and optimizer have their own."""
        regularizer = None if self.regularizer is None else self.regularizer.state_dict()
        counters = {name: getattr(self, name) for name in ("batches", "updates", "timesteps")}
        return {**counters, "loss": self.loss.state_dict(), "regularizer": regularizer}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what `state_dict` returned.

        Raises:
            ValueError: If it was saved with a regularizer and this method has none, or the other way.
        """
        if (state_dict["regularizer"] is None) != (self.regularizer is None):
            raise ValueError("state_dict must come from a method that has a regularizer if and only if this one has.")
        if self.regularizer is not None:
            self.regularizer.load_state_dict(state_dict["regularizer"])
        self.loss.load_state_dict(state_dict["loss"])
        for name in ("batches", "updates", "timesteps"):
            setattr(self, name, state_dict[name])

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_hooks": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)  # pyright: ignore[reportAttributeAccessIssue]
        self._hooks = self._attach()
