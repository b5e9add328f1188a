"""How long a run is, and its learning rate on the way."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from torch import optim

from fptt.experiments.config import TrainConfig

FACTORS: dict[str, Callable[[float], float]] = {
    "constant": lambda fraction: 1.0,  # noqa: ARG005
    "cosine": lambda fraction: 0.5 * (1 + math.cos(math.pi * fraction)),
    "trapezoid": lambda fraction: min(1.0, 10 * (1 - fraction)),
}
"""The learning rate, as a part of the first one, when a fraction of the run is over."""


@dataclass(frozen=True)
class Budget:
    """Epochs, updates or seconds of training: a run ends when the first of those given is spent."""

    config: TrainConfig

    def fraction(self, epochs: float, updates: int, seconds: float) -> float:
        """Return the part of the budget that is spent, from 0 to 1."""
        limits = (self.config.epochs, self.config.max_updates, self.config.max_seconds)
        parts = [spent / limit for spent, limit in zip((epochs, updates, seconds), limits, strict=True) if limit]
        return min(max(parts), 1.0)

    def is_spent(self, epochs: float, updates: int, seconds: float) -> bool:
        """Tell whether the run is over."""
        return self.fraction(epochs, updates, seconds) >= 1.0

    def set_rate(self, optimizer: optim.Optimizer, fraction: float) -> None:
        """Set the learning rate for this part of the run."""
        factor = FACTORS[self.config.schedule](fraction)
        for group in optimizer.param_groups:
            group["lr"] = self.config.lr * factor
