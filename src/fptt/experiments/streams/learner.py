"""A learner that goes through a stream: every step is predicted before it is learned."""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

import fptt
from fptt.experiments.configs.config import StreamConfig
from fptt.experiments.streams.source import NO_CLASS, Piece, Source, is_labeled
from fptt.nn.models import CELLS


def make_learner(
    config: StreamConfig, num_inputs: int, num_outputs: int, classes: Iterable[Any] | None
) -> fptt.OnlineLearner:
    """Return the learner of a config, which standardizes its inputs by itself.

    Args:
        config: Model, method and delay.
        num_inputs: D.
        num_outputs: C.
        classes: All labels; none to number them as they come; None for a regression.
    """
    torch.manual_seed(config.seed)
    model = CELLS[config.cell](num_inputs, config.hidden_size, num_outputs, num_layers=config.num_layers)
    names = ("chunk_length", "max_norm", "beta", "form", "coupling")
    method = fptt.FPTT(
        model,
        torch.optim.Adam(model.parameters(), lr=config.lr),
        fptt.SequenceLoss(functional.mse_loss if classes is None else functional.cross_entropy),
        alpha=config.alpha if config.method == "fptt" else 0.0,
        **{name: getattr(config, name) for name in names},
    )
    return fptt.OnlineLearner(method, classes=classes, max_delay=config.delay, standardize=True)


class RunningScale:
    """Mean and deviation of the numbers so far (Welford 1962).

    Examples:
        >>> scale = RunningScale()
        >>> [scale.add(number) for number in (4.0, 8.0)], scale.mean, scale.deviation
        ([0.0, 1.0], 6.0, 2.0)
    """

    def __init__(self) -> None:
        self.count, self.mean, self.squares = 0, 0.0, 0.0

    def add(self, number: float) -> float:
        """Add a number, and return it in units of the deviation from the mean, of all including itself."""
        offset = number - self.mean
        self.count += 1
        self.mean += offset / self.count
        self.squares += offset * (number - self.mean)
        return (number - self.mean) / self.deviation

    @property
    def deviation(self) -> float:
        """The deviation; 1 where all numbers are the same."""
        return math.sqrt(self.squares / self.count) if self.squares > 0 else 1.0

    def state_dict(self) -> dict[str, float]:
        """Return count, mean and sum of squares."""
        return dict(vars(self))

    def load_state_dict(self, state_dict: dict[str, float]) -> None:
        """Restore what `state_dict` returned."""
        self.count = int(state_dict["count"])
        self.mean, self.squares = float(state_dict["mean"]), float(state_dict["squares"])


class StreamLearner:
    """Predicts the steps of each piece of a stream, and then learns it, from labels that are late.

    The label of step t is learned after the prediction of step t + delay; those of the last steps at the end of the
    recording. The numbers of a regression are learned in units of their deviation from the mean, both of the labels
    that are known by then. A class of which no label is known yet is not predicted; while none is, it is `NO_CLASS`.

    Attributes:
        learner: The `OnlineLearner`.
        waiting: The targets of the latest steps, at most `delay`, that are not known yet; None where there is none.
    """

    def __init__(self, config: StreamConfig, source: Source) -> None:
        self.delay = config.delay
        self.learner = make_learner(config, source.num_inputs, source.num_outputs, source.classes)
        self.waiting: list[Any] = []
        self.num_classes = len(source.classes or ())
        self.scale = RunningScale()

    def step(self, piece: Piece) -> Tensor:
        """Predict the steps of a piece, learn them, and return the predictions, (n,): classes, or numbers."""
        length = len(piece.targets)
        if piece.is_first:
            self.learner.reset()
        predictions = torch.zeros(length, dtype=piece.targets.dtype)
        if length:
            predictions = self._decoded(self.learner.predict_many(piece.signal), piece)
            labeled = zip(piece.targets.tolist(), is_labeled(piece.targets).tolist(), strict=True)
            own = [target if has_label else None for target, has_label in labeled]
            num_late = len(self.waiting)
            num_known = max(num_late + length - self.delay, 0)  # the oldest of those that wait and of its own
            self._learn_late(self.waiting[:num_known], piece)
            known = [self._label(target, piece) for target in own[: max(num_known - num_late, 0)]]
            self.learner.learn_many(piece.signal, known + [None] * (length - len(known)))
            self.waiting = (self.waiting + own)[num_known:]
        if piece.is_last:
            self._learn_late(self.waiting, piece)
            self.waiting = []
            self.learner.flush()
        return predictions

    def _decoded(self, outputs: Tensor, piece: Piece) -> Tensor:
        """Return the predictions of outputs (n, C)."""
        if piece.targets.is_floating_point():
            return self.scale.mean + self.scale.deviation * outputs[:, 0].double()
        if not self.num_classes:
            return torch.full((len(outputs),), NO_CLASS)
        return outputs[:, : self.num_classes].argmax(1)

    def _learn_late(self, targets: list[Any], piece: Piece) -> None:
        """Learn the first targets of those that wait."""
        for number, target in enumerate(targets):
            label = self._label(target, piece)
            if label is not None:
                self.learner.learn_delayed(label, len(self.waiting) - number)

    def _label(self, target: Any, piece: Piece) -> Any:
        """Return what the learner is told of a target, now that it is known."""
        if target is None:
            return None
        if piece.targets.is_floating_point():
            return self.scale.add(target)
        self.num_classes = max(self.num_classes, target + 1)
        return piece.names[target]

    def state_dict(self) -> dict[str, Any]:
        """Return all that the rest of the stream depends on, as tensors and plain values."""
        return {
            "learner": self.learner.state_dict(),
            "waiting": list(self.waiting),
            "num_classes": self.num_classes,
            "scale": self.scale.state_dict(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.learner.load_state_dict(state_dict["learner"])
        self.waiting, self.num_classes = list(state_dict["waiting"]), int(state_dict["num_classes"])
        self.scale.load_state_dict(state_dict["scale"])
