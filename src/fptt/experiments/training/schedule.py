"""How long a run is, its learning rate on the way, and when it ends early."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import optim

from fptt.experiments.configs.config import TrainConfig

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


class Schedule:
    """The learning rate over a run, which may wait for validation.

    Attributes:
        waited: Epochs since validation was last better, or since the rate fell on a plateau.
        drops: How often the rate fell on a plateau.
        stale: Epochs since validation was last better.
        rollbacks: How often the run went back to a checkpoint; each made the rate smaller.
    """

    def __init__(self, config: TrainConfig) -> None:
        self.config = config
        self.waited = self.drops = self.stale = self.rollbacks = 0

    def factor(self, fraction: float) -> float:
        """Return the learning rate, as a part of the first one, when a fraction of the run is over."""
        config = self.config
        if config.schedule == "plateau":
            return config.lr_factor**self.drops
        if config.schedule == "steps":
            return config.lr_factor ** sum(fraction >= milestone for milestone in config.milestones)
        return FACTORS[config.schedule](fraction)

    def set_rate(self, optimizer: optim.Optimizer, fraction: float) -> None:
        """Set the learning rate for this part of the run."""
        for group in optimizer.param_groups:
            group["lr"] = self.config.lr * self.factor(fraction) * self.config.rollback_factor**self.rollbacks

    def observe(self, *, is_better: bool) -> None:
        """Take in whether the validation of an epoch was better than all before it."""
        self.stale = 0 if is_better else self.stale + 1
        self.waited = 0 if is_better else self.waited + 1
        if self.config.schedule == "plateau" and self.waited >= self.config.plateau_epochs:
            self.drops, self.waited = self.drops + 1, 0

    @property
    def has_given_up(self) -> bool:
        """Whether validation has not been better for as long as the run may wait."""
        patience = self.config.early_stopping
        return patience is not None and self.stale >= patience

    def state_dict(self) -> dict[str, Any]:
        """Return what has been observed."""
        return {"waited": self.waited, "drops": self.drops, "stale": self.stale, "rollbacks": self.rollbacks}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go back to what `state_dict` returned."""
        self.waited, self.drops, self.stale = state["waited"], state["drops"], state["stale"]
        self.rollbacks = state["rollbacks"]
