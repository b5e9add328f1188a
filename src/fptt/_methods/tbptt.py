"""TBPTT: truncated back-propagation through time."""

from typing import Unpack

from torch import nn
from torch.optim import Optimizer

from fptt._losses.chunk_loss import ChunkLoss
from fptt._methods.method import EngineName, Method, MethodOptions, check_options


class TBPTT(Method):
    """Cut the sequence into chunks, back-propagate inside each, and update after each (Williams & Peng 1990).

        W_{t+1} = W_t − η ∇ℓ_t(W_t),   the state of the chunk before a constant

    The state goes on from chunk to chunk, detached: memory is that of one chunk.

    With a `horizon` of h chunks there is an update after every chunk all the same, but its gradient goes back through
    the h − 1 chunks before as well (k2 > k1 of Williams & Peng 1990): they run again, with the weights as they are now,
    from the state that was kept before them. That takes h times the arithmetic and the memory of h chunks, and
    normalization layers with running statistics see a chunk each time it runs, up to h times. It does not go back over
    the beginning of a batch, nor of an item of a stream. With h = K the last chunk of a sequence has the gradient of
    BPTT.

    Args:
        model: Called as `model(inputs, state) -> (outputs, state)`; state None is the model's own initial state.
        optimizer: Any `torch.optim` optimizer over the model's parameters. Gains step hooks, until `close()`.
        loss: A `TerminalLoss` or `SequenceLoss`.
        num_chunks: K, the number of chunks of every sequence.
        chunk_length: Longest chunk in time steps, instead of `num_chunks`.
        engine: `eager`, or `compiled`, the whole chunk step as machine code, for many small updates.
        **options: `max_norm` (largest norm of the gradient, clipped inside `step()`; None), `batch_first` (inputs,
            outputs, targets of steps and masks are (B, T, …); False), `check_finite` (look for NaN and Inf in inputs,
            loss, gradient and weights, a synchronization each a chunk on an accelerator; True), `on_bad_number` (at NaN
            or Inf `raise`, or `skip`: weights, moments, averages, duals, buffers, recurrent state and torch's random
            numbers become what they were before the chunk, it is counted and logged, and the next chunk is learned, up
            to 100 in a row; that costs time and memory of a copy of all of them), `parallel` (a `DataParallel`; None),
            `backward` (called with each loss instead of `loss.backward()`, for example `fabric.backward`), `step`
            (called with the optimizer instead of `optimizer.step()`; whoever scales the loss in `backward` unscales
            here, `try: scaler.step(optimizer)`, `finally: scaler.update()`, since a bad gradient raises inside; whoever
            steps another optimizer, too, clears its gradients here), `horizon` (h, chunks that the gradient of an
            update goes through, 1; see above).

    Raises:
        ValueError: If a setting is out of range, or not exactly one of `num_chunks` and `chunk_length` is given.
        TypeError: If `loss` is a plain function: it does not say whether targets belong to the sequence or its steps;
            or if there is no such option.
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
        engine: EngineName = "eager",
        **options: Unpack[MethodOptions],
    ) -> None:
        check_options(self, options)
        super().__init__(
            model, optimizer, loss, num_chunks=num_chunks, chunk_length=chunk_length, engine=engine, **options
        )
