"""Metrics of outputs, accumulated batch by batch."""

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor
from torch.nn import functional

IGNORED = -100
"""The target of a step that does not count, as `torch.nn.functional.cross_entropy` has it."""

HIGHER_IS_BETTER = {
    "accuracy": True,
    "macro_f1": True,
    "mse": False,
    "cross_entropy": False,
    "perplexity": False,
    "bits_per_character": False,
}
"""Every metric, and its direction."""


def metric_form(metric: str, value: float) -> str:
    """Return the format of a metric: four decimals, or four digits, of a squared error below 1e-4 and from 1e9 on.

    Examples:
        >>> [format(value, metric_form("mse", value)) for value in (0.25, 1.23456e-7, 1.23456e300)]
        ['0.2500', '1.235e-07', '1.235e+300']
    """
    is_tiny = metric.endswith("mse") and 0 < abs(value) < 1e-4
    return ".4g" if is_tiny or abs(value) >= 1e9 else ".4f"


class Score(ABC):
    """Accumulates the metrics of a data set.

    Attributes:
        metric: The metric by which models are selected.
    """

    metric: str

    @abstractmethod
    def add(self, outputs: Tensor, targets: Tensor) -> None:
        """Add outputs (…, C) and targets (…), or (…, C) of a regression: of a batch, or of some of its steps."""

    @abstractmethod
    def metrics(self) -> dict[str, float]:
        """Return the metrics of everything so far, that of selection first."""


class ClassScore(Score):
    """Accuracy, macro-averaged F1 and mean cross entropy (nats) of everything that is not ignored.

    The macro average is over the classes that occur among targets or predictions.

    Args:
        num_classes: C.

    Examples:
        >>> score = ClassScore(2)
        >>> score.add(torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]]), torch.tensor([0, 1, 0]))
        >>> {name: round(value, 4) for name, value in score.metrics().items()}
        {'accuracy': 0.6667, 'macro_f1': 0.6667, 'cross_entropy': 0.6466}
    """

    metric = "accuracy"

    def __init__(self, num_classes: int) -> None:
        self.confusion = torch.zeros(num_classes, num_classes, dtype=torch.long)  # [target, prediction]
        self.entropy = 0.0

    def add(self, outputs: Tensor, targets: Tensor) -> None:
        """Add outputs (…, C) and classes (…)."""
        outputs, targets = outputs.flatten(0, -2), targets.flatten()
        counted = targets != IGNORED
        outputs, targets = outputs[counted], targets[counted]
        num_classes = len(self.confusion)
        pairs = torch.bincount(targets * num_classes + outputs.argmax(-1), minlength=num_classes**2)
        self.confusion += pairs.view(num_classes, num_classes).cpu()
        self.entropy += functional.cross_entropy(outputs.double(), targets, reduction="sum").item()

    def recalls(self) -> list[float | None]:
        """Return for each class the part of its targets that was predicted; None if there was no such target."""
        correct, actual = self.confusion.diag().tolist(), self.confusion.sum(1).tolist()
        return [found / total if total else None for found, total in zip(correct, actual, strict=True)]

    def metrics(self) -> dict[str, float]:
        """Return accuracy, macro-averaged F1 and cross entropy."""
        return {
            **class_metrics(self.confusion),
            "cross_entropy": self.entropy / max(self.confusion.sum().item(), 1),
        }


def class_metrics(confusion: Tensor) -> dict[str, float]:
    """Return accuracy and macro-averaged F1.

    Args:
        confusion: Counts of [target, prediction], (C, C); or (C, C + 1), with those for which none was predicted last.
    """
    correct, actual, predicted = confusion.diag(), confusion.sum(1), confusion.sum(0)[: len(confusion)]
    occurs = actual + predicted > 0
    # 2 · true positives / (2 · true positives + false positives + false negatives)
    f1 = 2 * correct[occurs] / (actual + predicted)[occurs]
    return {
        "accuracy": correct.sum().item() / max(confusion.sum().item(), 1),
        "macro_f1": f1.double().mean().item(),
    }


class RegressionScore(Score):
    """Mean squared error.

    Args:
        unit: Of targets and outputs, where they are standardized: the error is that of the numbers themselves.
    """

    metric = "mse"

    def __init__(self, unit: float = 1.0) -> None:
        self.unit, self.total, self.count = unit, 0.0, 0

    def add(self, outputs: Tensor, targets: Tensor) -> None:
        """Add outputs and targets, (…, C) both."""
        self.total += (outputs.double() - targets).square().mean(-1).sum().item()
        self.count += outputs[..., 0].numel()

    def metrics(self) -> dict[str, float]:
        """Return the mean squared error; NaN of nothing."""
        return {"mse": self.unit**2 * self.total / self.count if self.count else math.nan}


class TokenScore(Score):
    """Perplexity or bits a character of predicted tokens, and their accuracy.

    Args:
        metric: `perplexity`, exp of the mean cross entropy, or `bits_per_character`, that entropy in bits.
    """

    def __init__(self, metric: str) -> None:
        self.metric = metric
        self.entropy, self.correct, self.count = 0.0, 0, 0

    def add(self, outputs: Tensor, targets: Tensor) -> None:
        """Add outputs (…, C) and the tokens that came next, (…)."""
        outputs, targets = outputs.flatten(0, -2), targets.flatten()
        losses = functional.cross_entropy(outputs, targets, reduction="none")
        self.entropy += losses.double().sum().item()
        self.correct += (outputs.argmax(-1) == targets).sum().item()
        self.count += len(targets)

    def metrics(self) -> dict[str, float]:
        """Return the metric and the accuracy."""
        nats = self.entropy / max(self.count, 1)
        value = _exp(nats) if self.metric == "perplexity" else nats / math.log(2)
        return {self.metric: value, "accuracy": self.correct / max(self.count, 1)}


def _exp(value: float) -> float:
    """Return exp of a number, infinite where a float cannot hold it."""
    try:
        return math.exp(value)
    except OverflowError:
        return math.inf
