"""Accuracy of the predictions of a stream: over all steps, and over the latest ones."""

from collections import deque
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor
from torch.nn import functional

from fptt.experiments.tasks.scores import IGNORED, ClassScore

ROLLING = "rolling.csv"
"""The file of the rolling accuracies, which only the folder of a stream has."""


class Rolling:
    """The accuracy of the latest labeled steps.

    Args:
        window: How many, at least, once there are as many; they come and go in pieces.
    """

    def __init__(self, window: int) -> None:
        self.window = window
        self.pieces: deque[tuple[int, int]] = deque()
        self.right = self.count = 0

    def add(self, right: int, count: int) -> None:
        """Add a piece: how many labeled steps it has, and how many of them were predicted right."""
        self.pieces.append((right, count))
        self.right, self.count = self.right + right, self.count + count
        while self.count - self.pieces[0][1] >= self.window:
            right, count = self.pieces.popleft()  # whole pieces: single steps would take memory of the window's size
            self.right, self.count = self.right - right, self.count - count

    def state_dict(self) -> list[tuple[int, int]]:
        """Return the pieces."""
        return list(self.pieces)

    def load_state_dict(self, pieces: list[tuple[int, int]]) -> None:
        """Restore what `state_dict` returned."""
        self.pieces = deque((int(right), int(count)) for right, count in pieces)
        self.right, self.count = (sum(numbers) for numbers in zip(*self.pieces, strict=True)) if pieces else (0, 0)

    @property
    def accuracy(self) -> float:
        """The accuracy; NaN before the first labeled step."""
        return self.right / self.count if self.count else float("nan")


class StreamScores:
    """The metrics of a learner and of its baselines on the same stream.

    Args:
        names: Of the learner and its baselines.
        num_classes: C.
        window: Labeled steps of the rolling accuracy.

    Attributes:
        steps, labels: Steps so far, and those of them that have a label.
        rows: The rolling accuracies after each piece of the stream.
    """

    def __init__(self, names: Iterable[str], num_classes: int, window: int) -> None:
        self.num_classes = num_classes
        self.totals = {name: ClassScore(num_classes) for name in names}
        self.rolling = {name: Rolling(window) for name in self.totals}
        self.steps = self.labels = 0
        self.rows: list[dict[str, Any]] = []

    def add(self, predictions: Mapping[str, Tensor], classes: Tensor) -> None:
        """Add the predictions of the next steps: outputs (n, C), or classes (n,); and what is right, (n,)."""
        self.steps += len(classes)
        is_labeled = classes != IGNORED
        count = int(is_labeled.sum())
        if not count:
            return
        self.labels += count
        for name, given in predictions.items():
            outputs = given if given.dim() > 1 else functional.one_hot(given, self.num_classes).float()
            self.totals[name].add(outputs, classes)
            self.rolling[name].add(int((outputs.argmax(-1) == classes)[is_labeled].sum()), count)
        accuracies = {name: round(rolling.accuracy, 6) for name, rolling in self.rolling.items()}
        self.rows.append({"step": self.steps, **accuracies})

    def metrics(self) -> dict[str, dict[str, float]]:
        """Return accuracy and macro-averaged F1 of each."""
        return {
            name: {key: total.metrics()[key] for key in ("accuracy", "macro_f1")} for name, total in self.totals.items()
        }

    def state_dict(self) -> dict[str, Any]:
        """Return everything so far, as tensors and plain values."""
        totals = {name: {"confusion": total.confusion, "entropy": total.entropy} for name, total in self.totals.items()}
        rolling = {name: rolling.state_dict() for name, rolling in self.rolling.items()}
        return {"totals": totals, "rolling": rolling, "steps": self.steps, "labels": self.labels, "rows": self.rows}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        for name, total in self.totals.items():
            saved = state_dict["totals"][name]
            total.confusion.copy_(saved["confusion"].view_as(total.confusion))
            total.entropy = float(saved["entropy"])
            self.rolling[name].load_state_dict(state_dict["rolling"][name])
        self.steps, self.labels = int(state_dict["steps"]), int(state_dict["labels"])
        self.rows = [dict(row) for row in state_dict["rows"]]
