"""BPTT: back-propagation through time."""

from typing import Any, ClassVar, NoReturn, Unpack

from torch import nn
from torch.optim import Optimizer

from fptt._losses.chunk_loss import ChunkLoss
from fptt._methods.method import Method, MethodOptions, check_options
from fptt._sequence import State


class BPTT(Method):
    """Back-propagate through the whole sequence and update once (Werbos 1990).

        W ← W − η ∇ (1/K) Σ_k ℓ_k(W),   the graph uncut

    With `num_chunks` above 1 the loss stands at the end of each chunk, as for TBPTT and FPTT, but there is still one
    graph and one update: the control that separates what the losses do from what the updates do. Memory grows with the
    length of the sequence.

    Args:
        model: Called as `model(inputs, state) -> (outputs, state)`; state None is the model's own initial state.
        optimizer: Any `torch.optim` optimizer over the model's parameters. Gains step hooks, until `close()`.
        loss: A `TerminalLoss` or `SequenceLoss`.
        num_chunks: K, the number of chunk losses; 1, the default, is plain BPTT.
        chunk_length: Longest chunk in time steps, instead of `num_chunks`.
        **options: See `TBPTT`. What NaN or Inf skips is the whole batch.

    Raises:
        ValueError: If a setting is out of range, or both `num_chunks` and `chunk_length` are given.
        TypeError: If `loss` is a plain function: it does not say whether targets belong to the sequence or its steps;
            or if there is no such option.
        RuntimeError: If the optimizer has the hooks of another method or regularizer.

    Examples:
        >>> model = nn.LSTM(3, 5)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> method = fptt.BPTT(model, optimizer, fptt.TerminalLoss(nn.functional.cross_entropy))
        >>> method.train_batch(torch.randn(12, 4, 3), torch.tensor([0, 1, 2, 3])).updates
        1
    """

    updates_each_chunk: ClassVar[bool] = False

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        loss: ChunkLoss,
        *,
        num_chunks: int | None = None,
        chunk_length: int | None = None,
        **options: Unpack[MethodOptions],
    ) -> None:
        check_options(self, options)
        if num_chunks is None and chunk_length is None:
            num_chunks = 1
        super().__init__(model, optimizer, loss, num_chunks=num_chunks, chunk_length=chunk_length, **options)

    def train_stream(self, source: Any, state: State = None) -> NoReturn:  # noqa: ARG002
        """Refuse: a stream has no end to wait for, and BPTT of its chunks one by one is `TBPTT`.

        Raises:
            TypeError: Always.
        """
        raise TypeError("train_stream needs an update after every chunk, thus TBPTT or FPTT: BPTT waits for the end.")
