"""What processes that train one model tell each other about a batch before they learn it."""

from typing import NamedTuple

from torch import Tensor

NOTHING, BAD_NUMBERS, ANYTHING = 0.0, 1.0, 2.0
"""What can be wrong with a batch."""


class OtherProcessError(FloatingPointError):
    """A process has met NaN or Inf, and all of them know of it."""


class Report(NamedTuple):
    """What the processes tell each other about a batch before they learn it.

    Attributes:
        error: What is wrong with it: `NOTHING`, `BAD_NUMBERS` or `ANYTHING`.
        num_chunks: K.
        num_counted: What the mean of its loss is over.
        has_gaps: Whether a chunk has nothing that counts, or bad inputs.
        num_timesteps: T · B.
    """

    error: float
    num_chunks: float = 0.0
    num_counted: float = 0.0
    has_gaps: float = 0.0
    num_timesteps: float = 0.0


def check_reports(reports: Tensor, *, allow_empty: bool) -> None:
    """Raise unless all processes can learn their batches together; `reports` has a row for each."""
    errors, num_chunks = reports[:, 0], reports[:, 1].long().tolist()
    if errors.any():
        number = int(errors.argmax())
        kind = RuntimeError if errors[number] == ANYTHING else OtherProcessError
        raise kind(f"process {number} cannot learn its batch; its own error says why.")
    if len(set(num_chunks)) > 1:
        raise ValueError(f"inputs must be cut into as many chunks in every process, got {num_chunks} of them.")
    if not allow_empty and not reports[:, 2].any():
        raise ValueError("mask must have at least one real step in one of the processes, got none.")
