"""What the three methods share: a batch is cut, its chunks are walked over, updates are made and counted."""

from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence
from torch.optim import Optimizer

from fptt._batches.batch import Batch, walk_stream
from fptt._batches.cut import (
    BatchResult,
    Chunk,
    Chunking,
    check_inputs,
    check_model,
    cut_batch,
    mark_bad_inputs,
    unpack,
)
from fptt._checks import check_choice, check_iterable, check_keys
from fptt._engine.bad_numbers import OnBadNumber, Skipping, Snapshot
from fptt._engine.learning import Learning
from fptt._losses.chunk_loss import ChunkLoss
from fptt._parallel.data_parallel import DataParallel
from fptt._parallel.replicas import Alone, Together
from fptt._regularizer.regularizer import DynamicRegularizer
from fptt._regularizer.step_hooks import StepHooks
from fptt._sequence import State, check_chunking, detach_state


def step_optimizer(optimizer: Optimizer) -> Any:
    """Call `optimizer.step()`."""
    return optimizer.step()


class Method(Learning):
    """What the three methods share: they cut a batch, walk over its chunks, and count.

    Args:
        model: Called as `model(inputs, state) -> (outputs, state)`; state None is the model's own beginning.
        optimizer: Any `torch.optim` optimizer over the model's parameters. Gains step hooks; see `close`.
        loss: A `TerminalLoss` or `SequenceLoss`.
        num_chunks: K, the number of chunks of every sequence.
        chunk_length: Longest chunk in time steps, instead of `num_chunks`.
        max_norm: Largest norm of the gradient; it is clipped inside `step()`. None for no clipping.
        batch_first: Whether inputs, outputs, targets of steps and masks are (B, T, …) instead of (T, B, …).
        check_finite: Notice NaN or Inf in inputs, loss, gradient and weights; a synchronization each a chunk on an
            accelerator.
        on_bad_number: `raise` a FloatingPointError, or `skip` the chunk: see `TBPTT`.
        backward: Called with each loss instead of `loss.backward()`, for example `fabric.backward`.
        step: Called with the optimizer instead of `optimizer.step()`, for example with a GradScaler.
        parallel: The processes that train the model, each on its part of every batch; None for this one alone.

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
        on_bad_number: OnBadNumber = "raise",
        backward: Callable[[Tensor], Any] = Tensor.backward,
        step: Callable[[Optimizer], Any] = step_optimizer,
        parallel: DataParallel | None = None,
    ) -> None:
        if not isinstance(loss, ChunkLoss):
            raise TypeError(
                f"loss must be a TerminalLoss or a SequenceLoss, got a {type(loss).__name__}: "
                "wrap it to say whether the targets belong to the sequence or to its steps."
            )
        check_chunking(num_chunks, chunk_length)
        check_choice("on_bad_number", on_bad_number, ("raise", "skip") if check_finite else ("raise",))
        check_model(model, optimizer, batch_first)
        self.model, self.optimizer, self.loss = model, optimizer, loss
        self.chunking = Chunking(num_chunks, chunk_length, batch_first)
        self.max_norm, self.check_finite, self.backward, self.step = max_norm, check_finite, backward, step
        self.batches = self.updates = self.timesteps = 0
        self._skipping = Skipping(on_bad_number, self._snapshot)
        self.processes = Alone()
        if parallel is not None:
            self.processes = Together(parallel, model, loss, optimizer, self.regularizer)
        self._hooks: StepHooks | None = self._attach()

    @property
    def skipped(self) -> int:
        """Chunks that were skipped so far."""
        return self._skipping.num_skipped

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
                chunks before stay; the weights are as they were before the bad chunk. Also if an update has made the
                weights NaN or Inf, which cannot be undone here.
        """
        batch = Batch(inputs, targets, mask, is_first)  # pyright: ignore[reportArgumentType]  # may be packed
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
            source: Any iterable of `Batch`s or pairs `(inputs, targets)`, as for `train_batch`; their lengths may
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

    def _train(self, batch: Batch, state: State, *, allow_empty: bool = False) -> BatchResult:
        hooks = self._open_hooks()
        chunks = self.processes.agree(partial(self._cut, batch), allow_empty=allow_empty)
        before, skipped = hooks.num_steps, self.skipped
        try:
            losses, norms, state = self._walk(chunks, detach_state(state))
        except FloatingPointError as error:
            self.processes.tell(error)
            raise
        finally:
            updates = hooks.num_steps - before
            self.updates += updates
        self.batches += 1
        self.timesteps += self.processes.num_timesteps
        chunk_losses = torch.stack(losses)
        norm = torch.stack(norms).mean() if norms else chunk_losses.new_zeros(())
        with torch.no_grad():
            penalty = chunk_losses.new_zeros(()) if self.regularizer is None else self.regularizer.penalty()
            chunk_losses, norm, penalty = self.processes.total(chunk_losses, norm, penalty)
        skipped = self.skipped - skipped
        loss = chunk_losses.nanmean() if skipped else chunk_losses.mean()
        return BatchResult(loss, chunk_losses, penalty, updates, norm, detach_state(state), skipped)

    def _cut(self, batch: Batch, *, allow_empty: bool) -> list[Chunk]:
        inputs, targets, mask, is_first = batch
        chunks = cut_batch(inputs, targets, mask, self.loss, self.chunking, is_first=is_first, allow_empty=allow_empty)
        if self._skipping.is_on:
            return mark_bad_inputs(inputs, chunks)
        if self.check_finite:
            check_inputs(inputs, chunks, self.batches)
        return chunks

    @abstractmethod
    def _walk(self, chunks: list[Chunk], state: State) -> tuple[list[Tensor], list[Tensor], State]:
        """Return the chunk losses, the gradient norm of each update, and the final state."""

    def _snapshot(self) -> Snapshot:
        return Snapshot((self.model, self.loss), self.optimizer, self.regularizer, self._open_hooks())

    def _attach(self) -> StepHooks:
        return StepHooks(
            self.optimizer, regularizer=self.regularizer, max_norm=self.max_norm, check_finite=self.check_finite
        )

    def sync(self) -> None:
        """Average weights, averages and duals over the processes now, between two batches; see `DataParallel`."""
        self.processes.sync()

    def close(self) -> None:
        """Take the method's hooks off the optimizer; the method cannot train any more."""
        if self._hooks is not None:
            self._hooks.remove()
        self._hooks = None

    def state_dict(self) -> dict[str, Any]:
        """Return counters, the loss's running estimates and the regularizer; model and optimizer have their own."""
        regularizer = None if self.regularizer is None else self.regularizer.state_dict()
        counters = {name: getattr(self, name) for name in ("batches", "updates", "timesteps")}
        counters |= {"num_unsynced": self.processes.num_unsynced, "skipped": self.skipped}
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
        self.processes.num_unsynced = state_dict["num_unsynced"]
        self._skipping.num_skipped = state_dict["skipped"]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_hooks": self._hooks is not None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)  # pyright: ignore[reportAttributeAccessIssue]
        self._hooks = self._attach() if state["_hooks"] else None
