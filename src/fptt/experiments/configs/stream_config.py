"""What `fptt stream` is asked for."""

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

from fptt.experiments.process.errors import UserError


@dataclass(frozen=True, kw_only=True)
class StreamConfig:
    """A stream, and the learner that is sent through it."""

    task: Literal["hapt"] = "hapt"
    """What streams: the continuous recordings of HAPT, a label for most steps."""
    data: str | None = None
    """Local folder of Parquet files, or hub id."""
    split: Literal["all", "train", "test"] = "all"
    """Recordings that are streamed; all: those of train, then those of test."""
    limit: int | None = None
    """Stop after this many steps."""
    delay: int = 0
    """Steps by which every label is late: that of step t is told after the answer to step t + delay."""
    baselines: bool = False
    """Send River's logistic regression through the stream too; it takes minutes."""

    method: Literal["tbptt", "fptt"] = "fptt"
    """tbptt or fptt."""
    cell: Literal["lstm", "gru", "rnn"] = "gru"
    """Recurrent layer."""
    hidden_size: int = 64
    """Width of the recurrent state."""
    num_layers: int = 1
    """Recurrent layers."""
    chunk_length: int = 50
    """Steps of an update. The answers of a chunk are given with the weights before it."""
    lr: float = 1e-2
    """Learning rate of Adam."""
    max_norm: float | None = 1.0
    """Clip the norm of the gradient; None for no clipping."""
    alpha: float = 0.1
    """Strength of FPTT's penalty."""
    beta: float = 0.5
    """Weight of the new parameters in FPTT's average, in (0, 1]."""
    form: Literal["paper", "released"] = "paper"
    """Form of the penalty: the printed formula or the authors' code."""
    coupling: Literal["coupled", "decoupled"] = "decoupled"
    """Add the penalty to the gradient, or take it off the weights after the optimizer's step."""

    checkpoint_steps: int | None = 100_000
    """Save all that the stream needs to go on, after every so many steps; Ctrl-C saves it too."""
    window: int = 10_000
    """Labeled steps of the rolling accuracy."""
    seed: int = 0
    """Seed of the weights, below 2³¹."""
    threads: int | None = 1
    """CPU threads; None for all cores."""

    def __post_init__(self) -> None:
        """Check ranges."""
        for name in _POSITIVE:
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise UserError(f"{name} must be positive, got {value}.")
        if self.delay < 0:
            raise UserError(f"delay must not be negative, got {self.delay}.")
        if not 0 < self.beta <= 1:
            raise UserError(f"beta must be in (0, 1], got {self.beta}.")
        if not 0 <= self.seed < 2**31:
            raise UserError(f"seed must be in [0, 2³¹), got {self.seed}.")

    def to_dict(self) -> dict[str, Any]:
        """Return every field."""
        return dataclasses.asdict(self)


_POSITIVE = (
    "limit",
    "hidden_size",
    "num_layers",
    "chunk_length",
    "lr",
    "max_norm",
    "alpha",
    "window",
    "threads",
    "checkpoint_steps",
)
