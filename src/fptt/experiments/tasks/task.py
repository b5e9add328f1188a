"""The interface of tasks: data in three parts, the shape of their sequences, the metrics."""

import math
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple

from torch import Tensor
from torch.utils.data import Dataset

import fptt
from fptt.experiments.tasks.batches import (
    EVALUATION_BATCH_SIZE,
    FreshSamples,
    PaddedSamples,
    Samples,
    ShuffledBatches,
    StaggeredBatches,
    TokenStream,
    num_samples,
)
from fptt.experiments.tasks.interface import Interface
from fptt.experiments.tasks.scores import HIGHER_IS_BETTER, ClassScore, RegressionScore, Score


class Scaling(NamedTuple):
    """Mean and deviation of the inputs, D numbers each, and of the target of a regression."""

    input_mean: tuple[float, ...]
    input_deviation: tuple[float, ...]
    target_mean: float = 0.0
    target_deviation: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Task:
    """A task: inputs, targets, and how outputs are scored.

    Attributes:
        name: As on the command line.
        kind: Whether the outputs are scores of classes or numbers.
        has_step_targets: Whether every step has a target, (T, B), instead of every sequence one, (B, …). Steps with
            the target -100 do not count.
        train, validation, test: Data sets of independent samples, indexed by a list of numbers, which return inputs
            (B, …) and targets, (B, …) or batch-major (B, T); or token streams, indexed by the number of a window.
        to_sequences: Turns a batch of inputs into sequences: floats (T, B, D), or tokens (T, B).
        input_size: D, or the number of tokens.
        output_size: Classes, or width of the target.
        vocabulary: The tokens, if the inputs are tokens.
        class_names, input_names: Of outputs and inputs, where the data have names.
        time_name: Of the column by which steps are ordered, where the data have one.
        scaling: Of inputs and targets, where the data are standardized by those of training.
        about: A line on the data, for the user.
        metric: The first of the metrics of `score`: models are selected by it.
        score: Returns an empty score of the task; by default that of its kind.
        chance: The metric of a guess, if it is known.
    """

    name: str
    kind: Literal["classes", "regression"]
    train: Dataset[Samples]
    validation: Dataset[Samples]
    test: Dataset[Samples]
    input_size: int
    output_size: int
    to_sequences: Callable[[Tensor], Tensor] = lambda inputs: inputs
    has_step_targets: bool = False
    vocabulary: tuple[str, ...] | None = None
    score: Callable[[], Score] | None = None
    chance: float | None = None
    class_names: tuple[str | int, ...] | None = None
    input_names: tuple[str, ...] | None = None
    time_name: str | None = None
    scaling: Scaling | None = None
    about: str | None = None

    @property
    def is_ragged(self) -> bool:
        """Whether sequences have lengths of their own, and are padded."""
        return isinstance(self.train, PaddedSamples)

    @cached_property
    def interface(self) -> Interface:
        """What goes into a model of the task, and what comes out."""
        scaling = {} if self.scaling is None else self.scaling._asdict()
        names = ("kind", "input_size", "output_size", "has_step_targets", "class_names", "input_names", "time_name")
        return Interface(**{name: getattr(self, name) for name in names}, **scaling)

    @property
    def is_stream(self) -> bool:
        """Whether the data are a stream, over which the state is carried."""
        return isinstance(self.train, TokenStream)

    @cached_property
    def fingerprint(self) -> str:
        """Checksums of the stored training, test and validation data; generated data are those of their seed.

        Those of validation are last: earlier versions have them not.
        """
        parts = (self.train, self.test, self.validation)
        return "-".join("generated" if isinstance(part, FreshSamples) else self._checksum(part) for part in parts)

    def _checksum(self, part: Dataset[Samples]) -> str:
        checksum = 0
        for batch in self.evaluation_batches(part):
            for tensor in batch:
                checksum = zlib.crc32(tensor.contiguous().numpy().tobytes(), checksum)
        return f"{checksum:08x}"

    def make_score(self) -> Score:
        """Return an empty score."""
        if self.score is not None:
            return self.score()
        return ClassScore(self.output_size) if self.kind == "classes" else RegressionScore()

    @property
    def metric(self) -> str:
        """Name of the metric."""
        return self.make_score().metric

    def is_at_least_as_good(self, metric: float, other: float) -> bool:
        """Return whether a metric is at least as good as another; anything is better than NaN."""
        if math.isnan(other):
            return True
        return metric >= other if HIGHER_IS_BETTER[self.metric] else metric <= other

    def training_batches(
        self, batch_size: int, seed: int, *, staggered: int | None = None
    ) -> ShuffledBatches | StaggeredBatches | fptt.ArrayChunks:
        """Return the training batches, an epoch an iteration; those of a stream have the size it was loaded with.

        Args:
            batch_size: Samples a batch.
            seed: Of their order.
            staggered: K, chunks a sequence, if the lanes are to be staggered; then batches are sequences already.
        """
        if isinstance(self.train, TokenStream):
            return self.train.chunks()
        batches = ShuffledBatches(self.train, batch_size, seed)
        if staggered is None:
            return batches
        return StaggeredBatches(
            batches,
            self.sequences,
            num_chunks=staggered,
            num_steps=self.training_length(),
            per_step=self.has_step_targets,
        )

    def evaluation_batches(self, part: Dataset[Samples]) -> Iterator[Samples]:
        """Yield the batches of a part in order, as they are stored."""
        count = num_samples(part)
        if isinstance(part, TokenStream):
            yield from (part[number] for number in range(count))
            return
        for start in range(0, count, EVALUATION_BATCH_SIZE):
            yield part[list(range(start, min(start + EVALUATION_BATCH_SIZE, count)))]

    def sequences(self, batch: Samples | fptt.Batch) -> Samples:
        """Return time-major inputs and targets of a batch as it is stored."""
        inputs, targets, *_ = batch
        is_batch_major = self.has_step_targets and not self.is_stream
        return self.to_sequences(inputs), targets.transpose(0, 1) if is_batch_major else targets

    def batch(self, stored: Samples | fptt.Batch) -> fptt.Batch:
        """Return a batch as it is stored as sequences, with a mask where they are padded."""
        inputs, targets = self.sequences(stored)
        lengths = stored[2] if self.is_ragged else None
        return fptt.Batch(inputs, targets, None if lengths is None else fptt.length_mask(lengths, len(inputs)))

    def training_length(self) -> int:
        """Return T of the training sequences."""
        return len(self.sample_inputs())

    def sample_inputs(self) -> Tensor:
        """Return training inputs, (T, B, …), without taking random numbers from generated data."""
        if isinstance(self.train, TokenStream):
            return self.sequences(self.train[0])[0]
        if not isinstance(self.train, FreshSamples):
            return self.sequences(self.train[[0]])[0]
        before = self.train.generator.get_state()
        sample = self.train[[0]]
        self.train.generator.set_state(before)
        return self.sequences(sample)[0]
