"""Methods that make an update after every chunk, eagerly or with a compiled step."""

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from fptt._batches.cut import Chunk
from fptt._checks import check_choice
from fptt._engine.bad_numbers import bad_losses
from fptt._engine.compiled.engine import CompiledEngine, Walked
from fptt._losses.chunk_loss import ChunkLoss
from fptt._methods.method import Method, step_optimizer
from fptt._sequence import State, detach_state

Engine = Literal["eager", "compiled"]


class ChunkedMethod(Method):
    """A method that makes an update after every chunk; see `TBPTT` for the arguments."""

    def __init__(
        self, model: nn.Module, optimizer: Optimizer, loss: ChunkLoss, *, engine: Engine = "eager", **options: Any
    ) -> None:
        check_choice("engine", engine, ("eager", "compiled"))
        super().__init__(model, optimizer, loss, **options)
        self._engine: CompiledEngine | None = None
        if engine == "compiled":
            self._engine = self._make_engine()

    @property
    def engine(self) -> Engine:
        """The executor: `eager` or `compiled`."""
        return "eager" if self._engine is None else "compiled"

    def _make_engine(self) -> CompiledEngine:
        for name, default in (("backward", Tensor.backward), ("step", step_optimizer)):
            if getattr(self, name) is not default:
                self.close()
                raise ValueError(
                    f"{name} must be left as it is with engine='compiled', which takes gradient and step itself, got "
                    f"{getattr(self, name)!r}."
                )
        try:
            return CompiledEngine(
                self.model,
                self.optimizer,
                self.loss,
                self.chunking,
                self.regularizer,
                max_norm=self.max_norm,
                check_finite=self.check_finite,
                forward=self._forward,
                after_chunk=self.processes.after_chunk,
                count=self._count,
                share=self.processes.share_ if self.processes.adds_gradients else None,
            )
        except ValueError:
            self.close()
            raise

    def _walk(self, chunks: list[Chunk], state: State) -> tuple[list[Tensor], list[Tensor], State]:
        if self._engine is not None:
            return self._walk_compiled(self._engine, chunks, state)
        losses: list[Tensor] = []
        norms: list[Tensor] = []
        for chunk in chunks:
            loss, norm, state = self._attempt(chunk, detach_state(state))
            losses.append(loss)
            norms.extend(norm)
            self.processes.after_chunk()
        return losses, norms, state

    def _attempt(self, chunk: Chunk, state: State) -> tuple[Tensor, list[Tensor], State]:
        """Return loss, gradient norm if it stepped, and next state; a skipped chunk leaves the state as it is."""
        learned = self._skipping.attempt(lambda: self._learn(chunk, state))
        if learned is None:
            return bad_losses([chunk], self.model)[0], [], state
        output, loss, norm, state = learned
        self.loss.observe(output, chunk.part)
        return loss, norm, state

    def _learn(self, chunk: Chunk, state: State) -> tuple[Tensor, Tensor, list[Tensor], State]:
        """Learn one chunk from its incoming state; return outputs, loss, gradient norm if it stepped, next state."""
        output, loss, next_state = self._forward(chunk, state)
        norm = self._update(loss, chunk) if chunk.has_steps else []
        return output.detach(), loss.detach(), norm, next_state

    def _walk_compiled(
        self, engine: CompiledEngine, chunks: list[Chunk], state: State
    ) -> tuple[list[Tensor], list[Tensor], State]:
        if any(chunk.starts is not None for chunk in chunks):
            raise ValueError(
                "is_first must be None with engine='compiled', whose chunks run whole: use engine='eager'."
            )
        if not self._skipping.is_on:
            walked = self._run_compiled(engine, chunks, state)
            return walked.losses, walked.norms, walked.state
        walked = self._skipping.attempt(lambda: self._run_compiled(engine, chunks, state), is_told=len(chunks) == 1)
        if walked is not None:
            return walked.losses, walked.norms, walked.state
        if len(chunks) == 1:
            return bad_losses(chunks, self.model), [], state
        losses: list[Tensor] = []
        norms: list[Tensor] = []
        for chunk in chunks:  # again, one by one, to leave out the bad ones
            loss, norm, state = self._walk_compiled(engine, [chunk], state)
            losses, norms = [*losses, *loss], [*norms, *norm]
        return losses, norms, state

    def _run_compiled(self, engine: CompiledEngine, chunks: list[Chunk], state: State) -> Walked:
        """Walk over chunks; raise FloatingPointError at the first bad one, whose update was not made."""
        for chunk in chunks:
            if chunk.has_bad_inputs:
                raise FloatingPointError(f"inputs hold NaN or Inf {self._place(chunk)}")
        walked = engine.walk(chunks, state)
        if walked.bad_chunk is None:
            return walked
        chunk, loss = chunks[walked.bad_chunk], walked.losses[walked.bad_chunk]
        if walked.is_recomputation:
            raise self._bad_recomputation(chunk)
        if walked.has_bad_weights:
            raise self._bad_weights(chunk)
        what = "the gradient is NaN or Inf" if torch.isfinite(loss) else f"the loss is {loss.item()}"
        raise FloatingPointError(f"{what} {self._place(chunk)}")

    def _count(self, updates: int) -> None:
        self._open_hooks().num_steps += updates

    def _bad_recomputation(self, chunk: Chunk) -> FloatingPointError:
        """Let averages and duals start again, if the update is not undone, and return what to raise."""
        outcome = "the update is undone."
        if self.regularizer is not None and not self._skipping.is_on:
            self.regularizer.reset()
            outcome = "averages and duals start again."
        return FloatingPointError(
            f"the recomputed gradient is NaN or Inf after the update of chunk {chunk.number} of batch {self.batches}; "
            + outcome
        )
