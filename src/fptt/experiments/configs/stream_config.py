"""The settings of `fptt stream`."""

import dataclasses
from typing import Any, Literal

from pydantic.dataclasses import dataclass

from fptt.experiments.configs.checked import (
    STRICT,
    Address,
    Checked,
    Count,
    Depth,
    Natural,
    Positive,
    Seed,
    Weight,
    Width,
    Workers,
)


@dataclass(frozen=True, kw_only=True, config=STRICT)
class StreamConfig(Checked):
    """A stream, and the learner that is sent through it."""

    task: Literal["hapt"] = "hapt"
    """What streams: the continuous recordings of HAPT, a label for most steps."""
    data: Address | None = None
    """Local folder of Parquet files, or hub id."""
    split: Literal["all", "train", "test"] = "all"
    """Recordings that are streamed; all: those of train, then those of test."""
    limit: Count | None = None
    """Stop after this many steps."""
    delay: Natural = 0
    """Steps by which every label is late: that of step t is told after the answer to step t + delay."""
    baselines: bool = False
    """Send River's logistic regression through the stream too; it takes minutes."""

    method: Literal["tbptt", "fptt"] = "fptt"
    """tbptt or fptt."""
    cell: Literal["lstm", "gru", "rnn"] = "gru"
    """Recurrent layer."""
    hidden_size: Width = 64
    """Width of the recurrent state."""
    num_layers: Depth = 1
    """Recurrent layers."""
    chunk_length: Count = 50
    """Steps of an update. The answers of a chunk are given with the weights before it."""
    lr: Positive = 1e-2
    """Learning rate of Adam."""
    max_norm: Positive | None = 1.0
    """Clip the norm of the gradient; None for no clipping."""
    alpha: Positive = 0.1
    """Strength of FPTT's penalty."""
    beta: Weight = 0.5
    """Weight of the new parameters in FPTT's average, in (0, 1]."""
    form: Literal["paper", "released"] = "paper"
    """Form of the penalty: the printed formula or the authors' code."""
    coupling: Literal["coupled", "decoupled"] = "decoupled"
    """Add the penalty to the gradient, or take it off the weights after the optimizer's step."""

    checkpoint_steps: Count | None = 100_000
    """Save all that the stream needs to go on, after every so many steps; Ctrl-C saves it too."""
    window: Count = 10_000
    """Labeled steps of the rolling accuracy."""
    seed: Seed = 0
    """Seed of the weights, below 2³¹."""
    threads: Workers | None = 1
    """CPU threads; None for all cores."""

    def to_dict(self) -> dict[str, Any]:
        """Return every field."""
        return dataclasses.asdict(self)
