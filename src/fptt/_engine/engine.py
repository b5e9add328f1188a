"""The interface of the engines: the chunks of a batch and a state in, losses and the next state out."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from torch import Tensor, nn
from torch.optim import Optimizer

from fptt._batches.cut import Chunk, Chunking
from fptt._engine.bad_numbers import BadNumber, Snapshot
from fptt._losses.chunk_loss import ChunkLoss
from fptt._parallel.replicas import Replicas
from fptt._regularizer.regularizer import DynamicRegularizer
from fptt._regularizer.step_hooks import StepHooks
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


@dataclass(kw_only=True, eq=False, repr=False)
class Engine(ABC):
    """An executor of updates: eager, the reference, or compiled.

    It updates model, optimizer state and regularizer in place and counts updates in the step hooks, so that they are
    right also after an exception, for example of the user's own model in the middle of a batch.

    Attributes:
        model: Called as `model(inputs, state) -> (outputs, state)`.
        optimizer: Any optimizer, with the step hooks; the compiled engine takes those in `RULES`.
        loss: The loss of each chunk.
        regularizer: None for BPTT and TBPTT.
        hooks: What runs inside `optimizer.step()`: checks, penalty, clipping, average. A compiled step does not call
            them, and counts its updates there.
        replicas: The processes that train the model.
        chunking: The layout of inputs and outputs.
        horizon: Chunks that the gradient of an update goes through: its own and those before, which run again.
        check_finite: Whether to look for NaN and Inf.
        skips: Whether to undo and skip what NaN or Inf has spoiled, instead of stopping there.
    """

    model: nn.Module
    optimizer: Optimizer
    loss: ChunkLoss
    regularizer: DynamicRegularizer | None
    hooks: StepHooks
    replicas: Replicas
    chunking: Chunking
    horizon: int
    check_finite: bool
    skips: bool

    @abstractmethod
    def walk(self, chunks: Sequence[Chunk], state: State) -> Walked:
        """Learn all chunks in order, beginning at a detached state."""

    def snapshot(self) -> Snapshot:
        """Return copies of everything that an update changes."""
        return Snapshot((self.model, self.loss), self.optimizer, self.regularizer, self.hooks)


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
