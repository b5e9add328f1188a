"""The budget of a run, its learning rate on the way, and early stopping."""

import math
from collections.abc import Callable
from typing import Any

from fptt.experiments.configs.config import TrainConfig

FACTORS: dict[str, Callable[[float], float]] = {
    "constant": lambda _: 1.0,
    "cosine": lambda fraction: 0.5 * (1 + math.cos(math.pi * fraction)),
    "trapezoid": lambda fraction: min(1.0, 10 * (1 - fraction)),
}
"""The learning rate, as a part of the first one, when a fraction of the run is over."""


def spent_fraction(config: TrainConfig, epochs: float, updates: int, seconds: float) -> float:
    """Return the part of a run's budget that is spent, from 0 to 1; the run ends when its first limit is reached."""
    limits = (config.epochs, config.max_updates, config.max_seconds)
    parts = [spent / limit for spent, limit in zip((epochs, updates, seconds), limits, strict=True) if limit]
    # an update or a second may go beyond its limit
    return min(max(parts), 1.0)


class Schedule:
    """The learning rate over a run, which may depend on validation.

    Attributes:
        waited: Epochs since validation last improved, or since the rate fell on a plateau.
        drops: How often the rate fell on a plateau.
        stale: Epochs since validation last improved.
    """

    def __init__(self, config: TrainConfig) -> None:
        self.config = config
        self.waited = self.drops = self.stale = 0

    def factor(self, fraction: float) -> float:
        """Return the learning rate, as a part of the first one, when a fraction of the run is over."""
        config = self.config
        if config.schedule == "plateau":
            return config.lr_factor**self.drops
        if config.schedule == "steps":
            return config.lr_factor ** sum(fraction >= milestone for milestone in config.milestones)
        return FACTORS[config.schedule](fraction)

    def rate(self, fraction: float, rollbacks: int = 0) -> float:
        """Return the learning rate when a fraction of the run is over, after so many rollbacks."""
        return self.config.lr * self.factor(fraction) * self.config.rollback_factor**rollbacks

    def observe(self, *, is_better: bool) -> None:
        """Note whether the validation of an epoch was better than all before it."""
        self.stale = 0 if is_better else self.stale + 1
        self.waited = 0 if is_better else self.waited + 1
        # a drop restarts the wait for the next one, but not the patience of early stopping
        if self.config.schedule == "plateau" and self.waited >= self.config.plateau_epochs:
            self.drops, self.waited = self.drops + 1, 0

    @property
    def is_stopped_early(self) -> bool:
        """Whether validation has not improved for `early_stopping` epochs."""
        patience = self.config.early_stopping
        return patience is not None and self.stale >= patience

    def state_dict(self) -> dict[str, Any]:
        """Return the counters."""
        return {"waited": self.waited, "drops": self.drops, "stale": self.stale}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the counters of `state_dict`."""
        self.waited, self.drops, self.stale = state["waited"], state["drops"], state["stale"]
