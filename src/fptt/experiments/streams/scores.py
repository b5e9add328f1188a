"""Metrics of the predictions of a stream: over all steps, and over the latest ones."""

import math
from collections import deque
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from fptt.experiments.streams.source import Kind, is_labeled
from fptt.experiments.tasks.scores import RegressionScore, class_metrics

ROLLING = "rolling.csv"
"""The file of the rolling metrics, which only the folder of a stream has."""

MAX_ROWS = 20_000
"""Rows of rolling metrics that are kept."""

METRICS: dict[Kind, str] = {"classes": "accuracy", "regression": "mse"}
"""The metric that is followed, by what the targets are."""


class Rolling:
    """The mean of a metric over the latest labeled steps.

    Args:
        window: How many, at least, once there are as many; they come and go in pieces.
    """

    def __init__(self, window: int) -> None:
        self.window = window
        self.pieces: deque[tuple[float, int]] = deque()
        self.count = 0

    def add(self, total: float, count: int) -> None:
        """Add a piece: how many labeled steps it has, and the sum of the metric over them."""
        self.pieces.append((total, count))
        self.count += count
        while self.count - self.pieces[0][1] >= self.window:
            self.count -= self.pieces.popleft()[1]  # whole pieces: single steps would take memory of the window's size

    def state_dict(self) -> list[tuple[float, int]]:
        """Return the pieces."""
        return list(self.pieces)

    def load_state_dict(self, pieces: list[tuple[float, int]]) -> None:
        """Restore what `state_dict` returned."""
        self.pieces = deque((total + 0, int(count)) for total, count in pieces)
        self.count = sum(count for _, count in self.pieces)

    @property
    def mean(self) -> float:
        """The mean; NaN before the first labeled step."""
        # an exact sum, which does not depend on what has come and gone: a resumed stream has the same
        return math.fsum(total for total, _ in self.pieces) / self.count if self.count else float("nan")


class PredictionScore:
    """Accuracy and macro-averaged F1 of predicted classes.

    `NO_CLASS` is wrong: it lowers the recall of the class that is right, and the precision of none.

    Args:
        num_classes: C.

    Examples:
        >>> score = PredictionScore(2)
        >>> score.add(torch.tensor([-1, 0, 1]), torch.tensor([0, 0, 1]))
        >>> {name: round(value, 4) for name, value in score.metrics().items()}
        {'accuracy': 0.6667, 'macro_f1': 0.8333}
    """

    def __init__(self, num_classes: int) -> None:
        # [target, prediction]; the last column, which is that of index −1, is of `NO_CLASS`
        self.confusion = torch.zeros(num_classes, num_classes + 1, dtype=torch.long)

    def add(self, predictions: Tensor, targets: Tensor) -> None:
        """Add predictions and targets, (n,) both."""
        self.confusion.index_put_((targets, predictions), torch.ones_like(targets), accumulate=True)

    def metrics(self) -> dict[str, float]:
        """Return accuracy and macro-averaged F1 of everything so far."""
        return class_metrics(self.confusion)


class StreamScores:
    """The metrics of a learner and of its baselines on the same stream.

    Args:
        names: Of the learner and its baselines.
        kind: What the targets are.
        num_outputs: C.
        window: Labeled steps of the rolling metric.

    Attributes:
        steps, labels: Steps so far, and those of them that have a label.
        rows: The rolling metrics after each part of the stream.
    """

    def __init__(self, names: Iterable[str], kind: Kind, num_outputs: int, window: int) -> None:
        self.kind: Kind = kind
        self.totals = {name: PredictionScore(num_outputs) if kind == "classes" else RegressionScore() for name in names}
        self.rolling = {name: Rolling(window) for name in self.totals}
        self.steps = self.labels = 0
        self.rows: list[dict[str, Any]] = []

    def add(self, predictions: Mapping[str, Tensor], targets: Tensor) -> None:
        """Add the predictions of the next steps, (n,): classes or numbers, and what is right, (n,)."""
        self.steps += len(targets)
        labeled = is_labeled(targets)
        count = int(labeled.sum())
        if not count:
            return
        self.labels += count
        targets = targets[labeled]
        for name, given in predictions.items():
            own, total = given[labeled], self.totals[name]
            if isinstance(total, PredictionScore):
                total.add(own, targets)
                self.rolling[name].add(int((own == targets).sum()), count)
            else:
                total.add(own[:, None], targets[:, None])
                self.rolling[name].add((own - targets).square().sum().item(), count)
        means = {name: _rounded(rolling.mean, self.kind) for name, rolling in self.rolling.items()}
        if len(self.rows) >= MAX_ROWS:  # a stream is endless: the older half gets coarser
            self.rows = self.rows[1::2]
        self.rows.append({"step": self.steps, **means})

    def metrics(self) -> dict[str, dict[str, float]]:
        """Return accuracy and macro-averaged F1 of each, or its mean squared error."""
        return {name: total.metrics() for name, total in self.totals.items()}

    def state_dict(self) -> dict[str, Any]:
        """Return everything so far, as tensors and plain values."""
        totals = {name: dict(vars(total)) for name, total in self.totals.items()}
        rolling = {name: rolling.state_dict() for name, rolling in self.rolling.items()}
        return {"totals": totals, "rolling": rolling, "steps": self.steps, "labels": self.labels, "rows": self.rows}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        for name, total in self.totals.items():
            saved = state_dict["totals"][name]
            if isinstance(total, PredictionScore):
                total.confusion.copy_(saved["confusion"].view_as(total.confusion))
            else:
                total.total, total.count = float(saved["total"]), int(saved["count"])
            self.rolling[name].load_state_dict(state_dict["rolling"][name])
        self.steps, self.labels = int(state_dict["steps"]), int(state_dict["labels"])
        self.rows = [dict(row) for row in state_dict["rows"]]


def _rounded(value: float, kind: Kind) -> float:
    """Return six decimals of an accuracy, six digits of an error."""
    return round(value, 6) if kind == "classes" else float(f"{value:.6g}")
