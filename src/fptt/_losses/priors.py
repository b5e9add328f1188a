"""Q, the prediction to which the terminal loss holds the early chunks."""

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor, nn

from fptt._checks import check_unit_interval


class Prior(nn.Module, ABC):
    """A distribution Q over C classes for every sample."""

    @abstractmethod
    def forward(self, output: Tensor, targets: Tensor) -> Tensor:
        """Return Q, broadcastable to (B, C), for outputs (B, C) and labels (B,)."""

    def observe(
        self,
        output: Tensor,
        targets: Tensor,
        ended: Tensor,
        reduce: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        """Learn from the outputs (B, C) of the samples that have ended, (B,); see `ChunkLoss.observe`."""


class UniformPrior(Prior):
    """Q(c) = 1/C."""

    def forward(self, output: Tensor, targets: Tensor) -> Tensor:  # noqa: ARG002
        """Return 1/C for every class, (1, C)."""
        if output.dim() != 2:
            raise ValueError(f"divergence needs one label a sample, outputs (B, C), got {tuple(output.shape)}.")
        if output.shape[-1] < 2:
            raise ValueError(f"divergence needs the outputs of at least 2 classes, got {output.shape[-1]}.")
        return output.new_full((1, output.shape[-1]), 1 / output.shape[-1])


class RunningPrior(Prior):
    """A running estimate of the model's own final prediction for each class, uniform at the start.

        Q_y ← decay · Q_y + (1 − decay) · mean of softmax(ŷ_K) over the samples of class y in the batch

    The paper's Q is the prediction of the last epoch; a decay of d remembers about 1/(1 − d) batches.

    Args:
        num_classes: C ≥ 2; labels are 0 … C − 1.
        decay: In [0, 1).

    Raises:
        ValueError: If an argument is out of range.

    Examples:
        >>> prior = fptt.RunningPrior(num_classes=2, decay=0.75)
        >>> prior.observe(torch.tensor([[0.0, 100.0]]), torch.tensor([1]), torch.tensor([True]))
        >>> prior(torch.zeros(2, 2), torch.tensor([0, 1]))
        tensor([[0.5000, 0.5000],
                [0.3750, 0.6250]])
    """

    probabilities: Tensor

    def __init__(self, num_classes: int, decay: float = 0.99) -> None:
        super().__init__()
        if num_classes < 2:
            raise ValueError(f"num_classes must be at least 2, got {num_classes}.")
        check_unit_interval("decay", decay, closed=False)
        self.decay = decay
        self.register_buffer("probabilities", torch.full((num_classes, num_classes), 1 / num_classes))

    def forward(self, output: Tensor, targets: Tensor) -> Tensor:
        """Return the row of each label, (B, C)."""
        self._check(output, targets)
        return self.probabilities.to(output.device)[targets.long()].to(output.dtype)  # uint8 would be a mask

    @torch.no_grad()
    def observe(
        self,
        output: Tensor,
        targets: Tensor,
        ended: Tensor,
        reduce: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        """Move the row of each class in the batch towards the mean prediction of its samples."""
        self._check(output, targets)
        self.probabilities = probabilities = self.probabilities.to(output.device)
        # in the estimate's own precision: 1 − decay is below what bfloat16 can add to a probability
        output = output.to(probabilities.dtype)
        classes = torch.arange(len(probabilities), device=output.device)
        members = (ended[:, None] & (targets[:, None] == classes)).to(output.dtype)  # (B, C)
        with torch.autocast(output.device.type, enabled=False):
            # a product, not `index_add`: on a GPU that sums in no fixed order, and a run would not resume bitwise;
            # `where`: in a product the NaN of a sample that has not ended would reach every class
            sums = members.T @ torch.where(ended[:, None], output.softmax(-1), 0.0)
        counts = members.sum(0)
        if reduce is not None:
            # sums and counts, not means: processes may hold different numbers of a class; in one message
            sums, counts = reduce(torch.cat([sums, counts[:, None]], dim=1)).split([len(counts), 1], dim=1)
            counts = counts[:, 0]
        means = sums / counts.clamp(min=1)[:, None]
        moved = torch.lerp(probabilities, means, 1 - self.decay)
        probabilities.copy_(torch.where(counts[:, None] > 0, moved, probabilities))

    def _check(self, output: Tensor, targets: Tensor) -> None:
        num_classes = len(self.probabilities)
        if output.shape[-1] != num_classes or targets.dim() != 1 or targets.is_floating_point():
            raise ValueError(
                f"a RunningPrior of {num_classes} classes needs as many outputs and one whole label a sample, "
                f"got {output.shape[-1]} outputs and targets {targets.dtype} of shape {tuple(targets.shape)}."
            )

    def extra_repr(self) -> str:
        """Show the settings."""
        return f"num_classes={len(self.probabilities)}, decay={self.decay}"


def cross_entropy_to(prior: Tensor, output: Tensor) -> Tensor:
    """Return −Σ_c Q(c) log softmax(ŷ)_c of each sample, (B,)."""
    return -(prior * output.log_softmax(-1)).sum(-1)
