"""What the three methods share: a batch is cut, its chunks are walked over, updates are made and counted."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence
from torch.optim import Optimizer

from fptt._batch import Chunk, Chunking, check_inputs, check_same_state, cut_batch, unpack
from fptt._checks import all_finite, check_iterable, check_keys
from fptt._losses import ChunkLoss
from fptt._regularizer import DynamicRegularizer
from fptt._segments import run_segments
from fptt._sequence import State, check_chunking, describe_state, detach
from fptt._step_hooks import StepHooks
from fptt._stream import StreamChunk, walk_stream


def step_optimizer(optimizer: Optimizer) -> Any:
    """Call `optimizer.step()`."""
    return optimizer.step()


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
        step: Called with the optimizer instead of `optimizer.step()`, for example with a GradScaler.

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
        step: Callable[[Optimizer], Any] = step_optimizer,
    ) -> None:
        if not isinstance(loss, ChunkLoss):
            raise TypeError(
                f"loss must be a TerminalLoss or a SequenceLoss, got a {type(loss).__name__}: "
                "wrap it to say whether the targets belong to the sequence or to its steps."
            )
        check_chunking(num_chunks, chunk_length)
        _check_model(model, optimizer, batch_first)
        self.model, self.optimizer, self.loss = model, optimizer, loss
        self.chunking = Chunking(num_chunks, chunk_length, batch_first)
        self.max_norm, self.check_finite, self.backward, self.step = max_norm, check_finite, backward, step
        self.batches = self.updates = self.timesteps = 0
        self._hooks: StepHooks | None = self._attach()

    @property
    def regularizer(self) -> DynamicRegularizer | None:
        """The regularizer, if the method has one."""
        return None

    def train_batch(
        self,
        inputs: Tensor | PackedSequence,
        targets: Tensor | PackedSequence,
        state: State = None,
        mask: Tensor | None = None,
        is_first: Tensor | None = None,
    ) -> BatchResult:
        """Train on one batch of sequences.

        Args:
            inputs: (T, B, …), or (B, T, …) with `batch_first`; or packed, then padded here, with the mask of its
                lengths. The order is that before packing, also of states and targets.
            targets: (B, …) for a `TerminalLoss`, (T, B, …) for a `SequenceLoss`, or packed as the inputs are.
            state: State to begin with, any nest of tensors, detached here; None for the model's own beginning.
            mask: Boolean, (T, B), True at real steps. It weighs the loss; the model still sees every step, and the
                final state is that after the padding. A chunk without a real step makes no update.
            is_first: Boolean, (T, B), True where a new sequence begins in a lane: its state starts again there, at the
                model's `initial_state(inputs)` if it has one, else at zeros, and no gradient crosses. The model is
                called once from one such step to the next. State tensors are (…, B, H) unless the model has another
                `state_batch_dim`. `SequenceLoss` and `engine="eager"` only.

        Returns:
            A `BatchResult`.

        Raises:
            ValueError: If the arguments do not fit together or the model.
            TypeError: If an argument is no tensor, or the model does not return outputs and state.
            RuntimeError: If the method was closed.
            FloatingPointError: If inputs, loss or gradient are NaN or Inf, with batch and chunk. The updates of the
                chunks before stay; the weights are as they were before the bad chunk.
        """
        batch = StreamChunk(inputs, targets, mask, is_first)  # pyright: ignore[reportArgumentType]  # may be packed
        return self._train(unpack(batch, self.loss, self.chunking), state)

    def train_stream(self, source: Iterable[Any], state: State = None) -> Iterator[BatchResult]:
        """Train on chunks as they come, for as long as they come, and yield the result of each.

        A chunk is pulled when the result before has been taken, learned as a batch of its own that goes on from the
        last state, and let go: memory is that of one. `num_chunks` and `chunk_length` cut each further, with an update
        after every piece; `num_chunks=1` is one update a chunk. Every chunk weighs alike, however many real steps it
        has; without one it makes no update. With `num_duals` above 1 the duals count the pieces within each chunk that
        is pulled: its first piece has dual 0. What the source raises comes through between two chunks, when all results
        so far are out: go on with `state=result.state` of the last.

        Args:
            source: Any iterable of `StreamChunk`s or pairs `(inputs, targets)`, as for `train_batch`; their lengths may
                differ, the batch size not.
            state: State to begin with; None for the model's own beginning.

        Returns:
            An iterator of one `BatchResult` a chunk; nothing is trained before it is asked.

        Raises:
            TypeError: If the source is not iterable, or gives something else; also for `BPTT`, which would have to
                wait for the end.
            ValueError: If the batch size changes; see also `train_batch`.

        Examples:
            >>> model = nn.LSTM(3, 5)
            >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            >>> method = fptt.FPTT(model, optimizer, fptt.SequenceLoss(nn.functional.mse_loss), num_chunks=1)
            >>> chunks = ((torch.randn(steps, 4, 3), torch.zeros(steps, 4, 5)) for steps in (8, 8, 2))
            >>> sum(result.updates for result in method.train_stream(chunks))
            3
        """
        check_iterable("source", source)
        return walk_stream(partial(self._train, allow_empty=True), source, state, 1 - self.chunking.time_dim)

    def _train(self, batch: StreamChunk, state: State, *, allow_empty: bool = False) -> BatchResult:
        inputs, targets, mask, is_first = batch
        chunks = cut_batch(inputs, targets, mask, self.loss, self.chunking, is_first=is_first, allow_empty=allow_empty)
        if self.check_finite:
            check_inputs(inputs, chunks, self.batches)
        hooks = self._open_hooks()
        before = hooks.num_steps
        try:
            losses, norms, state = self._walk(chunks, detach(state))
        finally:
            updates = hooks.num_steps - before
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
        torch.clear_autocast_cache()  # it holds the weights before the last update
        call = partial(self._call_model, is_given=chunk.number == 0 and state is not None)
        output, next_state = run_segments(
            call, self.model, chunk.inputs, state, starts=chunk.starts, time_dim=self.chunking.time_dim
        )
        output = self.chunking.time_major(output)
        loss = self.loss(output, chunk.part)
        if self.check_finite and not all_finite(loss):
            raise FloatingPointError(f"the loss is {loss.item()} {self._place(chunk)}")
        return output, loss, next_state

    def _call_model(self, inputs: Tensor, state: State, *, is_given: bool) -> tuple[Tensor, State]:
        """Call the model; where the user gave the state, say so if it does not fit."""
        try:
            result = self.model(inputs, state)
        except (AttributeError, IndexError, RuntimeError, TypeError, ValueError) as error:
            if is_given:
                raise ValueError(f"state must fit the model, got {describe_state(state)}: {error}") from error
            raise
        if not isinstance(result, tuple) or len(result) != 2:
            raise TypeError(f"model must return (outputs, state), got a {type(result).__name__}.")
        if is_given and state is not None:
            check_same_state(state, result[1])
        return result

    def _update(self, loss: Tensor, chunk: Chunk) -> list[Tensor]:
        """Make one update and return the norm of its gradient, if the optimizer stepped."""
        self.optimizer.zero_grad()
        self.backward(loss)
        hooks = self._open_hooks()
        hooks.gradient_norm = None
        try:
            self.step(self.optimizer)
        except FloatingPointError as error:
            raise FloatingPointError(f"the gradient is NaN or Inf {self._place(chunk)}") from error
        return [] if hooks.gradient_norm is None else [hooks.gradient_norm]

    def _place(self, chunk: Chunk) -> str:
        return f"in chunk {chunk.number} of batch {self.batches}; the weights are as before that chunk."

    def _attach(self) -> StepHooks:
        return StepHooks(
            self.optimizer, regularizer=self.regularizer, max_norm=self.max_norm, check_finite=self.check_finite
        )

    def close(self) -> None:
        """Take the method's hooks off the optimizer; the method cannot train any more."""
        if self._hooks is not None:
            self._hooks.remove()
        self._hooks = None

    def _open_hooks(self) -> StepHooks:
        if self._hooks is None:
            raise RuntimeError("the method is closed: make a new one to train on.")
        return self._hooks

    def state_dict(self) -> dict[str, Any]:
        """Return counters, the loss's running estimates and the regularizer; model and optimizer have their own."""
        regularizer = None if self.regularizer is None else self.regularizer.state_dict()
        counters = {name: getattr(self, name) for name in ("batches", "updates", "timesteps")}
        return {**counters, "loss": self.loss.state_dict(), "regularizer": regularizer}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what `state_dict` returned.

        Raises:
            ValueError: If a key is missing, or it was saved by a method with another regularizer or loss.
        """
        check_keys("state_dict", state_dict, self.state_dict())
        check_keys("state_dict['loss']", state_dict["loss"], self.loss.state_dict())
        if (state_dict["regularizer"] is None) != (self.regularizer is None):
            raise ValueError("state_dict must come from a method that has a regularizer if and only if this one has.")
        if self.regularizer is not None:
            self.regularizer.load_state_dict(state_dict["regularizer"])
        self.loss.load_state_dict(state_dict["loss"])
        for name in ("batches", "updates", "timesteps"):
            setattr(self, name, state_dict[name])

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_hooks": self._hooks is not None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)  # pyright: ignore[reportAttributeAccessIssue]
        self._hooks = self._attach() if state["_hooks"] else None


def _check_model(model: nn.Module, optimizer: Optimizer, batch_first: bool) -> None:
    """Raise ValueError if model and data have another layout, or the optimizer does not train the model."""
    layout = getattr(model, "batch_first", batch_first)
    if layout != batch_first:
        raise ValueError(f"batch_first must be that of the model, {layout}, got {batch_first}.")
    held = {param for group in optimizer.param_groups for param in group["params"]}
    if held.isdisjoint(model.parameters()):
        raise ValueError("optimizer must hold parameters of the model, got none of them.")
