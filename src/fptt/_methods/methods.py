"""The three ways to train a recurrent network: BPTT, TBPTT and FPTT."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from fptt._batches.cut import Chunk
from fptt._checks import check_positive
from fptt._engine.bad_numbers import bad_losses
from fptt._losses.chunk_loss import ChunkLoss
from fptt._methods.chunked import ChunkedMethod, Engine
from fptt._methods.method import Method
from fptt._regularizer.regularizer import Coupling, DynamicRegularizer, Form, PreviousGradient
from fptt._regularizer.step_hooks import gradient_norm
from fptt._sequence import State

OF_FPTT = ("alpha", "beta", "form", "coupling", "mu", "previous_gradient", "num_duals")
"""Settings of `FPTT` that the other methods do not have."""


class BPTT(Method):
    """Back-propagate through the whole sequence and update once.

    With `num_chunks` above 1 the loss stands at the end of each chunk, as for the other two, but the graph is not cut:
    the control that separates the losses from the updates.

    Args:
        model: See `TBPTT`.
        optimizer: See `TBPTT`.
        loss: See `TBPTT`.
        num_chunks: Number of chunk losses; 1, the default, is plain BPTT.
        chunk_length: Longest chunk in time steps, instead of `num_chunks`.
        **options: `max_norm`, `batch_first`, `check_finite`, `on_bad_number`, `backward`, `step`, `parallel`; see
            `TBPTT`. The chunk that is skipped is the whole batch.

    Examples:
        >>> model = nn.LSTM(3, 5)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> method = fptt.BPTT(model, optimizer, fptt.TerminalLoss(nn.functional.cross_entropy))
        >>> method.train_batch(torch.randn(12, 4, 3), torch.tensor([0, 1, 2, 3])).updates
        1
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        loss: ChunkLoss,
        *,
        num_chunks: int | None = None,
        chunk_length: int | None = None,
        **options: Any,
    ) -> None:
        if num_chunks is None and chunk_length is None:
            num_chunks = 1
        super().__init__(model, optimizer, loss, num_chunks=num_chunks, chunk_length=chunk_length, **options)

    def train_stream(self, source: Any, state: State = None) -> NoReturn:  # noqa: ARG002
        """Refuse: a stream has no end to wait for, and BPTT of its chunks one by one is `TBPTT`.

        Raises:
            TypeError: Always.
        """
        raise TypeError("train_stream needs an update after every chunk, thus TBPTT or FPTT: BPTT waits for the end.")

    def _walk(self, chunks: list[Chunk], state: State) -> tuple[list[Tensor], list[Tensor], State]:
        learned = self._skipping.attempt(lambda: self._learn(chunks, state))
        self.processes.after_chunk()
        return learned or (bad_losses(chunks, self.model), [], state)

    def _learn(self, chunks: list[Chunk], state: State) -> tuple[list[Tensor], list[Tensor], State]:
        outputs, losses = [], []
        for chunk in chunks:
            output, loss, state = self._forward(chunk, state)
            outputs.append(output.detach())
            losses.append(loss)
        norms = self._update(torch.stack(losses).mean(), chunks[-1])
        for output, chunk in zip(outputs, chunks, strict=True):
            self.loss.observe(output, chunk.part)
        return [loss.detach() for loss in losses], norms, state


class TBPTT(ChunkedMethod):
    """Cut the sequence into chunks, back-propagate inside each, and update after each.

    The state goes on from chunk to chunk, detached: memory is that of one chunk.

    Args:
        model: Called as `model(inputs, state) -> (outputs, state)`; state None is the model's own beginning.
        optimizer: Any `torch.optim` optimizer over the model's parameters. Gains step hooks, until `close()`.
        loss: A `TerminalLoss` or `SequenceLoss`.
        num_chunks: K, the number of chunks of every sequence.
        chunk_length: Longest chunk in time steps, instead of `num_chunks`.
        engine: `eager`, or `compiled`, the whole chunk step as machine code, for many small updates.
        **options: `max_norm` (clip the gradient inside `step()`), `batch_first` (inputs, outputs, targets of steps and
            masks are (B, T, …)), `check_finite` (notice NaN or Inf in inputs, loss, gradient and weights; True),
            `on_bad_number` (`raise` stops; `skip` puts weights, moments, averages, duals, buffers, recurrent state and
            torch's random numbers back as they were before the chunk, counts it, logs it and goes on, for the time and
            memory of a copy of all of them), `parallel` (a `DataParallel`), `backward` (called with each loss instead
            of `loss.backward()`, for example `fabric.backward`), `step` (called with the optimizer instead of
            `optimizer.step()`; whoever scales the loss in `backward` unscales here, as with
            `lambda optimizer: (scaler.step(optimizer), scaler.update())`).

    Raises:
        ValueError: If a setting is out of range, or not exactly one of `num_chunks` and `chunk_length` is given.
        TypeError: If `loss` is a plain function: it does not say whether targets belong to the sequence or its steps.
        RuntimeError: If the optimizer has the hooks of another method or regularizer.

    Examples:
        >>> model = nn.LSTM(3, 5)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> method = fptt.TBPTT(model, optimizer, fptt.SequenceLoss(nn.functional.mse_loss), chunk_length=5)
        >>> method.train_batch(torch.randn(12, 4, 3), torch.zeros(12, 4, 5)).updates
        3
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        loss: ChunkLoss,
        *,
        num_chunks: int | None = None,
        chunk_length: int | None = None,
        engine: Engine = "eager",
        **options: Any,
    ) -> None:
        chunking = {"num_chunks": num_chunks, "chunk_length": chunk_length}
        super().__init__(model, optimizer, loss, engine=engine, **chunking, **options)


class FPTT(TBPTT):
    """TBPTT with FPTT's dynamic regularizer: every update also minds the losses of the chunks before.

        W_{t+1} = W_t − η ∇(ℓ_t + R_t)(W_t),   R_t(W) = (α/2) ‖W − W̄_t − λ_t/(2α)‖²

    (Kag & Saligrama 2021, Algorithm 1; see `DynamicRegularizer` for the recurrences of W̄ and λ, which go on from batch
    to batch.) One chunk a time step is plain FPTT, K chunks are FPTT-K; K ≈ √T is said to work best.

    Args:
        model: See `TBPTT`.
        optimizer: See `TBPTT`.
        loss: See `TBPTT`.
        num_chunks: K, the number of chunks of every sequence.
        chunk_length: Longest chunk in time steps, instead of `num_chunks`.
        engine: See `TBPTT`.
        alpha: Strength of the penalty, ≥ 0; 0 is exactly TBPTT.
        beta: See `DynamicRegularizer`.
        form: See `DynamicRegularizer`.
        coupling: See `DynamicRegularizer`.
        mu: See `DynamicRegularizer`.
        num_duals: See `DynamicRegularizer`: 1, or as many as chunks, so that each has a dual of its own; eager only.
        previous_gradient: See `DynamicRegularizer`. A recomputed gradient costs a second forward and backward pass a
            chunk, from the same incoming state and with the same random numbers; normalization layers with running
            statistics see the chunk twice.
        regularizer: A `DynamicRegularizer` of your own over the optimizer's parameters, instead of these settings.
            Without one, the parameters that the optimizer has now are regularized; for those it gets later, call
            `method.regularizer.add_param_group`.
        **options: See `TBPTT`. `max_norm` clips the sum of loss gradient and coupled penalty gradient.

    Examples:
        >>> model = nn.LSTM(3, 5)
        >>> optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
        >>> loss = fptt.TerminalLoss(nn.functional.cross_entropy, divergence="uniform")
        >>> method = fptt.FPTT(model, optimizer, loss, num_chunks=4)
        >>> result = method.train_batch(torch.randn(12, 4, 3), torch.tensor([0, 1, 2, 3]))
        >>> result.updates, result.chunk_losses.shape
        (4, torch.Size([4]))
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        loss: ChunkLoss,
        *,
        num_chunks: int | None = None,
        chunk_length: int | None = None,
        engine: Engine = "eager",
        alpha: float = 0.1,
        beta: float = 0.5,
        form: Form = "paper",
        coupling: Coupling = "decoupled",
        mu: float = 1.0,
        previous_gradient: PreviousGradient = "dual",
        num_duals: int = 1,
        regularizer: DynamicRegularizer | None = None,
        **options: Any,
    ) -> None:
        if alpha != 0:
            check_positive("alpha", alpha)
        elif regularizer is not None:
            raise ValueError("alpha must not be 0 with a regularizer of your own: 0 is TBPTT.")
        if regularizer is None and alpha:
            regularizer = DynamicRegularizer(
                optimizer.param_groups,
                alpha,
                beta=beta,
                form=form,
                coupling=coupling,
                mu=mu,
                previous_gradient=previous_gradient,
                num_duals=num_duals,
            )
        self._regularizer = regularizer
        chunking = {"num_chunks": num_chunks, "chunk_length": chunk_length}
        super().__init__(model, optimizer, loss, engine=engine, **chunking, **options)

    @property
    def regularizer(self) -> DynamicRegularizer | None:
        """The regularizer, or None when alpha is 0."""
        return self._regularizer

    def _learn(self, chunk: Chunk, state: State) -> tuple[Tensor, Tensor, list[Tensor], State]:
        regularizer = self._regularizer
        if regularizer is not None:
            regularizer.turn = chunk.number % regularizer.num_duals
        if regularizer is None or regularizer.previous_gradient == "dual":
            return super()._learn(chunk, state)
        random_state = _random_state(chunk.inputs.device)
        learned = super()._learn(chunk, state)
        if learned[2]:
            with _replay(random_state, chunk.inputs.device):
                self._recompute_gradient(chunk, state, regularizer)
        return learned

    def _recompute_gradient(self, chunk: Chunk, state: State, regularizer: DynamicRegularizer) -> None:
        """Advance the average with ∇ℓ_t(W_{t+1}), of the same chunk from the same incoming state.

        The loss is not scaled here, whatever `backward` does: λ is in the unit of the gradient.
        """
        try:
            self._take_gradient(self._forward(chunk, state)[1], chunk, Tensor.backward)
            norm = gradient_norm([param for group in self.optimizer.param_groups for param in group["params"]])
            if self.check_finite and not torch.isfinite(norm):
                raise FloatingPointError(f"it has norm {norm.item()}.")
        except FloatingPointError as error:
            raise self._bad_recomputation(chunk) from error
        regularizer.update()


def _random_state(device: torch.device) -> Tensor:
    return torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()


@contextmanager
def _replay(random_state: Tensor, device: torch.device) -> Iterator[None]:
    """Draw the same random numbers again, for dropout, and go on afterwards as if nothing had been drawn."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        if device.type == "cuda":
            torch.cuda.set_rng_state(random_state, device)
        else:
            torch.set_rng_state(random_state)
        yield
