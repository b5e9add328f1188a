"""The steps that wait to be learned: for their chunk to be full, or for their labels."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


class WaitingSteps:
    """The latest steps and their targets, None where there is no label, at most chunk_length + max_delay of them.

    Args:
        chunk_length: Steps of an update.
        max_delay: Steps that a label may be late.

    Raises:
        ValueError: If the delay is no number of steps.
    """

    def __init__(self, chunk_length: int, max_delay: int) -> None:
        if isinstance(max_delay, bool) or not isinstance(max_delay, int) or max_delay < 0:
            raise ValueError(f"max_delay must be a number of steps, 0 or more, got {max_delay!r}.")
        self.chunk_length, self.max_delay = chunk_length, max_delay
        self.rows: list[Tensor] = []
        self.targets: list[Any] = []

    def __len__(self) -> int:
        return len(self.targets)

    @property
    def num_free(self) -> int:
        """How many steps can come before the oldest chunk must be learned."""
        return self.chunk_length + self.max_delay - len(self)

    @property
    def is_chunk_ready(self) -> bool:
        """Whether every step of the oldest chunk has its label, or has waited for it long enough."""
        num_settled = max(len(self) - self.max_delay, 0)
        return len(self) >= self.chunk_length and None not in self.targets[num_settled : self.chunk_length]

    def extend(self, rows: Tensor, targets: Sequence[Any]) -> None:
        """Add the rows of steps, (n, …), and their targets."""
        self.rows.extend(rows.unbind(0))
        self.targets.extend(targets)

    def check_waits(self, delay: int) -> None:
        """Raise ValueError unless the step so many steps ago, the last one being 1 step ago, waits for its label."""
        if not 1 <= delay <= self.max_delay:
            raise ValueError(f"delay must be from 1 to max_delay = {self.max_delay} steps, got {delay!r}.")
        if delay > len(self) or self.targets[-delay] is not None:
            raise ValueError(f"delay must be that of a step without a label, got {delay}: that step waits for none.")

    def label(self, delay: int, target: Any) -> None:
        """Give the step so many steps ago its target."""
        self.targets[-delay] = target

    def take(self, num_steps: int) -> tuple[Tensor, list[Any]]:
        """Take the oldest steps out: rows, (n, …), and targets."""
        rows, targets = torch.stack(self.rows[:num_steps]), self.targets[:num_steps]
        del self.rows[:num_steps], self.targets[:num_steps]
        return rows, targets

    def clear(self) -> None:
        """Forget all steps."""
        self.rows, self.targets = [], []

    def state_dict(self) -> dict[str, Any]:
        """Return rows, (n, …) or None without any, and targets."""
        return {"rows": torch.stack(self.rows) if self.rows else None, "targets": list(self.targets)}

    def load_state_dict(self, state_dict: dict[str, Any], device: torch.device) -> None:
        """Restore what `state_dict` returned."""
        rows = state_dict["rows"]
        self.rows = [] if rows is None else list(rows.to(device).unbind(0))
        self.targets = list(state_dict["targets"])
