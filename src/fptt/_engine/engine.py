"""The interface of the engines: the chunks of a batch and a state in, losses and the next state out."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from torch import Tensor
from torch.optim import Optimizer

from fptt._batches.cut import Chunk
from fptt._engine.bad_numbers import BadNumber
from fptt._losses.chunk_loss import ChunkLoss
from fptt._regularizer.regularizer import DynamicRegularizer
from fptt._sequence import State


class Skipped(NamedTuple):
    """An update that was skipped.

    Attributes:
        bad: The reason.
        updates: Updates made in the same batch before it: the next one with as many follows on it.
    """

    bad: BadNumber
    updates: int


@dataclass
class Walked:
    """The outcome of learning the chunks of a batch in order.

    Attributes:
        state: Recurrent state after the last chunk that was learned.
        losses: ℓ_k of each chunk, at the weights before its update; NaN where the chunk was skipped.
        norms: Norm of the loss gradient at each update, before penalty and clipping.
        skipped: The updates that were skipped.
        bad: The reason to stop: from that chunk on nothing was learned. None where all chunks were.
    """

    state: State
    losses: list[Tensor] = field(default_factory=list)
    norms: list[Tensor] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)
    bad: BadNumber | None = None


class Engine(Protocol):
    """An executor of updates: eager, the reference, or compiled.

    It updates model, optimizer state and regularizer in place and counts updates in the step hooks, so that they are
    right also after an exception, for example of the user's own model in the middle of a batch.
    """

    def walk(self, chunks: Sequence[Chunk], state: State) -> Walked:
        """Learn all chunks in order, beginning at a detached state."""
        ...


def trained_tensors(optimizer: Optimizer, regularizer: DynamicRegularizer | None, loss: ChunkLoss) -> list[Tensor]:
    """Return weights, averages, duals and running estimates of the loss: what replicas average after local updates."""
    memory: list[Tensor] = []
    if regularizer is not None:
        # begun for all parameters: a replica that has not updated one yet must send as many numbers as the others
        groups = [group for group in regularizer.param_groups if group["fptt_alpha"] is not None]
        regularizer.begin(param for group in groups for param in group["params"] if param.requires_grad)
        memory = list(regularizer.named_tensors().values())
    params = [param.detach() for group in optimizer.param_groups for param in group["params"]]
    return [*params, *memory, *(buffer for buffer in loss.buffers() if buffer.is_floating_point())]
