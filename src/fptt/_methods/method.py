"""The interface of the training methods: a batch in, its losses and the next state out."""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any, ClassVar, Literal, NamedTuple, TypedDict

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence
from torch.optim import Optimizer

from fptt._batches.batch import Batch, walk_stream
from fptt._batches.cut import Chunk, Chunking, check_horizon, check_no_graph, cut_batch, mark_bad_inputs, unpack
from fptt._checks import check_choice, check_count, check_grad_enabled, check_iterable, check_keys, check_type
from fptt._engine.bad_numbers import BadNumber, OnBadNumber
from fptt._engine.compiled.engine import CompiledEngine
from fptt._engine.eager import EagerEngine
from fptt._engine.engine import Engine, Skipped, trained_tensors
from fptt._losses.chunk_loss import ChunkLoss
from fptt._methods.model_check import check_model
from fptt._parallel.replicas import DataParallel, DistributedReplicas, Replicas, Totals
from fptt._regularizer.regularizer import DynamicRegularizer
from fptt._regularizer.step_hooks import StepHooks
from fptt._sequence import State, check_chunking, describe_state, detach_state

LOGGER = logging.getLogger("fptt")

EngineName = Literal["eager", "compiled"]

MOST_SKIPPED_IN_A_ROW = 100
"""Chunks that `on_bad_number="skip"` leaves out one after the other, at most."""


class BatchResult(NamedTuple):
    """The result of one batch; its tensors stay on the device, so that reading a number is the only synchronization.

    Attributes:
        loss: Mean of the chunk losses, a scalar.
        chunk_losses: ℓ_k at the weights before the update of chunk k, (K,).
        penalty: R after the last update, a scalar; 0 without a regularizer.
        updates: Updates that the optimizer made; with local updates of several processes, in the one with most.
        gradient_norm: Mean norm of the loss gradient over the updates, before penalty and clipping, a scalar.
        state: Final recurrent state, detached: the `state` of the next batch if the sequences continue.
        skipped: Updates that were skipped, in this process: one for each bad chunk, with `BPTT` one for the batch. The
            losses of their chunks are NaN, and `loss` is the mean of the others.
    """

    loss: Tensor
    chunk_losses: Tensor
    penalty: Tensor
    updates: int
    gradient_norm: Tensor
    state: State
    skipped: int = 0

    def __repr__(self) -> str:
        numbers = ", ".join(f"{name}={getattr(self, name).item():.4g}" for name in ("loss", "penalty", "gradient_norm"))
        return (
            f"BatchResult({numbers}, chunk_losses of {len(self.chunk_losses)} chunks, updates={self.updates}, "
            f"skipped={self.skipped}, state of {describe_state(self.state)})"
        )


torch.serialization.add_safe_globals([BatchResult])  # torch.load reads a checkpoint that holds one


class MethodOptions(TypedDict, total=False):
    """Options that all methods have; see `TBPTT` for their meanings.

    Attributes:
        max_norm: Largest norm of the gradient, > 0, clipped inside `step()`; None, the default, for no clipping.
        batch_first: Whether inputs, outputs, targets of steps and masks are (B, T, …) instead of (T, B, …).
        check_finite: Whether to look for NaN and Inf in inputs, loss, gradient and weights; True by default.
        on_bad_number: `raise` a FloatingPointError, the default, or `skip` the update.
        backward: Called with each loss instead of `loss.backward()`, for example `fabric.backward`.
        step: Called with the optimizer instead of `optimizer.step()`, for example with a GradScaler.
        parallel: The processes that train the model, each on its part of every batch; None for this one alone.
        horizon: Chunks that the gradient of an update goes through; 1 by default, and for BPTT.
    """

    max_norm: float | None
    batch_first: bool
    check_finite: bool
    on_bad_number: OnBadNumber
    backward: Callable[[Tensor], Any]
    step: Callable[[Optimizer], Any]
    parallel: DataParallel | None
    horizon: int


SETTINGS = (
    "model",
    "optimizer",
    "loss",
    "regularizer",
    "engine",
    "chunking",
    "max_norm",
    "check_finite",
    "on_bad_number",
    "backward",
    "step",
    "horizon",
)
"""What a method is made with, and hooks, replicas and engine hold too."""


def step_optimizer(optimizer: Optimizer) -> Any:
    """Call `optimizer.step()`."""
    return optimizer.step()


def check_options(method: "Method", options: Mapping[str, Any]) -> None:
    """Raise TypeError unless all options are those that every method has: `Method` itself takes more."""
    known = sorted(MethodOptions.__optional_keys__)
    for name in options:
        if name not in known:
            raise TypeError(f"{type(method).__name__} has no argument {name!r}; its options are {', '.join(known)}.")


def check_makes_steps(optimizer: Optimizer) -> None:
    """Raise RuntimeError if an optimizer of Accelerate holds back `step` and `zero_grad`, without a word."""
    if not getattr(getattr(optimizer, "gradient_state", None), "sync_gradients", True):
        raise RuntimeError(
            "optimizer must make every step, got Accelerate's inside accelerator.accumulate, which holds them back: a "
            "method clears the gradient and steps at every chunk. Train outside of it, or accumulate the gradients of "
            "micro-batches in a loop of your own, with fptt.integrations.accelerate.attach_regularizer."
        )


class Method:
    """A method that trains a model on batches of sequences: `BPTT`, `TBPTT` or `FPTT`.

    Attributes:
        model, optimizer, loss: What the method is made with; read-only, as all settings.
        regularizer: The dynamic regularizer; None for BPTT, TBPTT and FPTT with alpha 0.
        engine: The executor: `eager` or `compiled`.
        chunking: K or the longest chunk, and the layout.
        batches, timesteps: Batches and time steps, T · B each, learned so far.
        skipped: Updates skipped so far.
    """

    updates_each_chunk: ClassVar[bool] = True

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        loss: ChunkLoss,
        *,
        num_chunks: int | None = None,
        chunk_length: int | None = None,
        engine: EngineName = "eager",
        regularizer: DynamicRegularizer | None = None,
        max_norm: float | None = None,
        batch_first: bool = False,
        check_finite: bool = True,
        on_bad_number: OnBadNumber = "raise",
        backward: Callable[[Tensor], Any] = Tensor.backward,
        step: Callable[[Optimizer], Any] = step_optimizer,
        parallel: DataParallel | None = None,
        horizon: int = 1,
    ) -> None:
        check_chunking(num_chunks, chunk_length)
        check_choice("engine", engine, ("eager", "compiled"))
        check_choice("on_bad_number", on_bad_number, ("raise", "skip") if check_finite else ("raise",))
        check_count("horizon", horizon)
        if engine == "compiled" and not self.updates_each_chunk:
            raise ValueError("engine must be 'eager' with BPTT, got 'compiled', whose steps update at every chunk.")
        if horizon > 1 and not self.updates_each_chunk:
            raise ValueError(f"horizon must be 1 with BPTT, whose gradient goes through all chunks, got {horizon}.")
        if num_chunks is not None:
            check_horizon(horizon, num_chunks)
        # the line of the warning: who makes the method, above the constructors of two classes
        check_model(model, loss, optimizer, batch_first=batch_first, stacklevel=4)
        self.model, self.optimizer, self.loss, self.regularizer = model, optimizer, loss, regularizer
        self.engine: EngineName = engine
        self.chunking = Chunking(num_chunks, chunk_length, batch_first)
        self.max_norm, self.check_finite, self.on_bad_number = max_norm, check_finite, on_bad_number
        self.backward, self.step, self.horizon = backward, step, horizon
        self.batches = self.timesteps = self.skipped = 0
        self._skipped_in_a_row = self._updates_before_skipped = 0
        self._replicas = Replicas()
        if parallel is not None:
            check_type("parallel", parallel, DataParallel, "a DataParallel")
            self._replicas = DistributedReplicas(parallel, model, loss, optimizer, regularizer)
        self._hooks = StepHooks(optimizer, regularizer=regularizer, max_norm=max_norm, check_finite=check_finite)
        try:
            self._engine = self._make_engine()
        except ValueError:  # the optimizer goes back to its owner as it was
            self.close()
            raise

    def _make_engine(self) -> Engine:
        shared: dict[str, Any] = {
            "model": self.model,
            "optimizer": self.optimizer,
            "loss": self.loss,
            "regularizer": self.regularizer,
            "hooks": self._hooks,
            "replicas": self._replicas,
            "chunking": self.chunking,
            "horizon": self.horizon,
            "check_finite": self.check_finite,
            "skips": self.on_bad_number == "skip",
        }
        if self.engine == "eager":
            return EagerEngine(
                **shared, updates_each_chunk=self.updates_each_chunk, backward=self.backward, step=self.step
            )
        for name, default in (("backward", Tensor.backward), ("step", step_optimizer)):
            if getattr(self, name) is not default:
                raise ValueError(
                    f"{name} must be left as it is with engine='compiled', which takes gradient and step itself, got "
                    f"{getattr(self, name)!r}."
                )
        return CompiledEngine(**shared, max_norm=self.max_norm)

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute, but no setting.

        Raises:
            AttributeError: If it is one of `SETTINGS`, where another value would change nothing, or half of the method.
        """
        if name in SETTINGS and name in vars(self):
            raise AttributeError(f"{name} is fixed when a method is made: make another one with {name}={value!r}.")
        super().__setattr__(name, value)

    @property
    def updates(self) -> int:
        """Updates that the optimizer made so far."""
        return self._hooks.num_steps

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
            state: Initial state, any nest of tensors, detached here; None for the model's own.
            mask: Boolean, (T, B), True at real steps. It weighs the loss; the model still sees every step, and the
                final state is that after the padding. A chunk without a real step makes no update.
            is_first: Boolean, (T, B), True where a new sequence begins in a lane: its state starts again there, at the
                model's `initial_state(inputs)` if it has one, else at zeros, and no gradient crosses. The model is
                called once from one such step to the next. State tensors are (…, B, H) unless the model has another
                `state_batch_dim`. `SequenceLoss` only, and at first steps of chunks only with `engine="compiled"`.

        Returns:
            A `BatchResult`.

        Raises:
            ValueError: If the arguments do not fit together or the model, or several updates would go through one graph
                of inputs or targets.
            TypeError: If an argument is no tensor, or the model does not return outputs and state.
            RuntimeError: If the method was closed, gradients are off, or `accelerator.accumulate` holds back steps.
            FloatingPointError: If inputs, loss or gradient are NaN or Inf, with batch and chunk. The updates of the
                chunks before stay; the weights are as they were before the bad chunk. Also if an update has made the
                weights NaN or Inf, which cannot be undone here.
        """
        batch = Batch(inputs, targets, mask, is_first)  # pyright: ignore[reportArgumentType]  # may be packed
        return self._train(batch, state)

    def train_stream(self, source: Iterable[Any], state: State = None) -> Iterator[BatchResult]:
        """Train on chunks as they come, for as long as they come, and yield the result of each.

        A chunk is pulled when the result before has been taken, learned as a batch of its own that goes on from the
        last state, and let go: memory is that of one. `num_chunks` and `chunk_length` cut each further, with an update
        after every piece; `num_chunks=1` is one update a chunk. Every chunk weighs alike, however many real steps it
        has; without one it makes no update. With `num_duals` above 1 the duals count the pieces within each chunk that
        is pulled: its first piece has dual 0. What the source raises comes through between two chunks, when all results
        so far are out: go on with `state=result.state` of the last.

        Args:
            source: Any iterable of `Batch`s or pairs of tensors `(inputs, targets)`, as for `train_batch` but not
                packed; their lengths may differ, the batch size not.
            state: Initial state; None for the model's own.

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
        return walk_stream(partial(self._train, is_stream=True), source, state, 1 - self.chunking.time_dim)

    def _train(self, batch: Batch, state: State, *, is_stream: bool = False) -> BatchResult:
        if not self._hooks.are_attached:
            raise RuntimeError("the method is closed: construct a new one to train on.")
        check_grad_enabled("training")
        check_makes_steps(self.optimizer)
        with self._replicas.reporting():  # the others wait for this process, which may fail here alone
            chunks, state = self._cut(batch, is_stream=is_stream), detach_state(state)
        num_lanes = None if batch.progress is None else batch.progress.position.shape[1]
        chunks, num_timesteps = self._replicas.agree(chunks, allow_empty=is_stream, num_lanes=num_lanes)
        updates = self.updates
        walked = self._engine.walk(chunks, state)
        try:
            self._count_skipped(walked.skipped, updates)
        except FloatingPointError:
            self._replicas.report_failure()
            raise
        if walked.bad is not None:
            self._replicas.report_failure()
            raise walked.bad.error(self.batches)
        self.batches += 1
        self.timesteps += num_timesteps
        losses = torch.stack(walked.losses)
        norm = torch.stack(walked.norms).mean() if walked.norms else losses.new_zeros(())
        with torch.no_grad():
            penalty = losses.new_zeros(()) if self.regularizer is None else self.regularizer.penalty()
            own = Totals(losses, norm, penalty, self.updates - updates, len(walked.skipped))
            losses, norm, penalty, updates, skipped = self._replicas.total(own, chunks[0].weight)
        loss = losses.nanmean() if skipped else losses.mean()
        return BatchResult(loss, losses, penalty, updates, norm, detach_state(walked.state), len(walked.skipped))

    def _cut(self, batch: Batch, *, is_stream: bool) -> list[Chunk]:
        """Return the chunks of a batch.

        Raises:
            ValueError: If inputs, targets, masks and chunking do not fit together.
            FloatingPointError: If inputs hold NaN or Inf, and chunks with them are not to be skipped.
        """
        batch = batch if is_stream else unpack(batch, self.loss, self.chunking)
        num_duals = 1 if self.regularizer is None else self.regularizer.num_duals
        if batch.progress is not None and num_duals > 1:
            # a dual belongs to one place of the sequence, and a staggered chunk has all places in it
            raise ValueError(f"num_duals must be 1 with staggered lanes, got {num_duals}.")
        # in a stream, and in one process of several, a batch may have no real step
        allow_empty = is_stream or not self._replicas.needs_steps
        chunks = cut_batch(batch, self.loss, self.chunking, allow_empty=allow_empty)
        if 1 < num_duals < len(chunks):
            raise ValueError(f"num_duals must be 1 or at least the number of chunks, {len(chunks)}, got {num_duals}.")
        if not is_stream:
            check_horizon(self.horizon, len(chunks))
        recomputes = self.regularizer is not None and self.regularizer.previous_gradient == "recomputed"
        if self.updates_each_chunk and (len(chunks) > 1 or recomputes):
            check_no_graph(batch.inputs, batch.targets)
        if not self.check_finite:
            return chunks
        chunks = mark_bad_inputs(chunks, batch, self.chunking)
        for chunk in chunks:
            if chunk.bad_inputs is not None and self.on_bad_number == "raise":
                raise BadNumber(chunk.number, chunk.bad_inputs).error(self.batches)
        return chunks

    def _count_skipped(self, skipped: list[Skipped], updates: int) -> None:
        """Count and log what was skipped in a batch, before which the method had made so many updates.

        Raises:
            FloatingPointError: If nothing but skipped chunks has come for long: training would go nowhere, for ever.
        """
        self.skipped += len(skipped)
        for bad, updates_before in skipped:
            error = bad.error(self.batches, is_undone=True)
            LOGGER.warning("skipped a chunk: %s", error)
            is_next = updates + updates_before == self._updates_before_skipped
            self._skipped_in_a_row = self._skipped_in_a_row + 1 if is_next else 1
            self._updates_before_skipped = updates + updates_before
            if self._skipped_in_a_row >= MOST_SKIPPED_IN_A_ROW:
                raise FloatingPointError(
                    f"on_bad_number='skip' has skipped {self._skipped_in_a_row} chunks in a row without an update; the "
                    f"last one: {error}"
                )

    def sync(self) -> None:
        """Average weights, averages and duals over the processes now, between two batches; see `DataParallel`."""
        self._replicas.sync(trained_tensors(self.optimizer, self.regularizer, self.loss))

    def close(self) -> None:
        """Remove the method's hooks from the optimizer; the method cannot train any more."""
        self._hooks.remove()

    def state_dict(self) -> dict[str, Any]:
        """Return counters, the loss's running estimates and the regularizer; model and optimizer have their own."""
        regularizer = None if self.regularizer is None else self.regularizer.state_dict()
        counters = {name: getattr(self, name) for name in ("batches", "updates", "timesteps", "skipped")}
        counters["num_unsynced"] = self._replicas.num_unsynced
        return {**counters, "loss": self.loss.state_dict(), "regularizer": regularizer}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what `state_dict` returned; nothing changes if it does not fit.

        The beta, mu and alphas that the regularizer was saved with replace those that the method was made with.

        Raises:
            ValueError: If a key is missing, or it was saved by a method with another regularizer or loss, or one whose
                estimates have another size.
        """
        check_keys("state_dict", state_dict, self.state_dict())
        own, saved = self.loss.state_dict(), state_dict["loss"]
        check_keys("state_dict['loss']", saved, own)
        for name, value in own.items():  # here, since torch finds it out after the regularizer is loaded
            shape = getattr(saved[name], "shape", None)
            if isinstance(value, Tensor) and shape != value.shape:
                raise ValueError(f"state_dict['loss'][{name!r}] must have shape {tuple(value.shape)}, got {shape}.")
        if (state_dict["regularizer"] is None) != (self.regularizer is None):
            raise ValueError("state_dict must come from a method that has a regularizer if and only if this one has.")
        if self.regularizer is not None:
            self.regularizer.load_state_dict(state_dict["regularizer"])
        self.loss.load_state_dict(state_dict["loss"])
        for name in ("batches", "timesteps", "skipped"):
            setattr(self, name, state_dict[name])
        self._hooks.num_steps = state_dict["updates"]
        self._replicas.num_unsynced = state_dict["num_unsynced"]

    def __repr__(self) -> str:
        chunks = next((name, value) for name, value in self.chunking._asdict().items() if value is not None)
        settings = [f"{chunks[0]}={chunks[1]}", f"engine={self.engine!r}"]
        if self.regularizer is not None:
            settings += [f"form={self.regularizer.form!r}", f"coupling={self.regularizer.coupling!r}"]
        parts = f"{type(self.model).__name__}, {type(self.optimizer).__name__}, {type(self.loss).__name__}"
        return f"{type(self).__name__}({parts}, {', '.join(settings)}; {self.batches} batches, {self.updates} updates)"
