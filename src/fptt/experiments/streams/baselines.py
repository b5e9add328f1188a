"""Baselines of a learner on a stream: predictions without a model, and River's linear model."""

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fptt.experiments.process.errors import UserError
from fptt.experiments.streams.source import Kind, Piece, is_labeled
from fptt.experiments.tasks.scores import IGNORED


class Baseline(ABC):
    """Predicts every step of a stream, like a learner that gets the label of a step `delay` steps later.

    At the end of a recording it gets all labels that are left.

    Args:
        delay: Steps by which labels are late, ≥ 0.
        num_outputs: C.
        initial: What is predicted while no label is known: a class, `NO_CLASS`, or a number.
    """

    def __init__(self, delay: int, num_outputs: int, initial: int = 0) -> None:
        self.delay, self.num_outputs, self.initial = delay, num_outputs, initial

    @abstractmethod
    def predictions(self, piece: Piece) -> Tensor:
        """Return the predictions of the steps of the next piece, (n,): classes or numbers."""

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """Return what the baseline has learned so far, as plain values."""

    @abstractmethod
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what `state_dict` returned, between two pieces."""


class WithoutModel(Baseline):
    """A baseline that looks at the labels alone."""

    def __init__(self, delay: int, num_outputs: int, initial: int = 0) -> None:
        super().__init__(delay, num_outputs, initial)
        self.current: float = initial
        self.waiting: Tensor | None = None

    def predictions(self, piece: Piece) -> Tensor:
        """Return the predictions of the steps of the next piece, (n,)."""
        targets = piece.targets if self.waiting is None else torch.cat([self.waiting, piece.targets])
        num_known = max(len(targets) - self.delay, 0)  # at the end of the piece: one more with every step of it
        informed = self._informed(targets[:num_known])
        early = np.full(len(piece.targets) - num_known + 1, self.current)  # steps before which none more is known
        predictions = np.concatenate([early, informed])[:-1].astype(piece.targets.numpy().dtype)
        self._keep(informed)
        self.waiting = targets[num_known:]
        if piece.is_last:
            self._keep(self._informed(self.waiting))
            self.waiting = None
        return torch.from_numpy(predictions)

    def _keep(self, informed: np.ndarray) -> None:
        if len(informed):
            self.current = informed[-1].item()

    @abstractmethod
    def _informed(self, targets: Tensor) -> np.ndarray:
        """Return the predictions after each of the next labels, (n,)."""

    def state_dict(self) -> dict[str, Any]:
        """Return the current prediction, and the labels that wait."""
        return {"current": self.current, "waiting": self.waiting}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.current, waiting = state_dict["current"] + 0, state_dict["waiting"]
        self.waiting = None if waiting is None else waiting.clone()


class LastLabel(WithoutModel):
    """Predicts the latest known label ("persistence")."""

    def _informed(self, targets: Tensor) -> np.ndarray:
        latest = np.maximum.accumulate(np.where(is_labeled(targets).numpy(), np.arange(len(targets)), -1))
        return np.where(latest < 0, self.current, targets.numpy()[latest] if len(targets) else 0)


class MajorityClass(WithoutModel):
    """Predicts the most frequent class so far."""

    def __init__(self, delay: int, num_outputs: int, initial: int = 0) -> None:
        super().__init__(delay, num_outputs, initial)
        self.counts = np.zeros(num_outputs, dtype=np.int64)

    def _informed(self, targets: Tensor) -> np.ndarray:
        counts = self.counts + (targets.numpy()[:, None] == np.arange(self.num_outputs)).cumsum(0)
        self.counts = counts[-1] if len(counts) else self.counts
        return np.where(counts.any(1), counts.argmax(1), self.initial)

    def state_dict(self) -> dict[str, Any]:
        """Return the counts of the classes too."""
        return {**super().state_dict(), "counts": self.counts.tolist()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        super().load_state_dict(state_dict)
        self.counts = np.array(state_dict["counts"], dtype=np.int64).reshape(self.num_outputs)


class MeanNumber(WithoutModel):
    """Predicts the mean of all numbers so far."""

    count, total = 0, 0.0

    def _informed(self, targets: Tensor) -> np.ndarray:
        known = is_labeled(targets).numpy()
        counts = self.count + known.cumsum()
        totals = np.concatenate([[self.total], np.where(known, targets.numpy(), 0.0)]).cumsum()[1:]
        if len(counts):
            self.count, self.total = int(counts[-1]), float(totals[-1])
        return np.where(counts > 0, totals / np.maximum(counts, 1), self.initial)

    def state_dict(self) -> dict[str, Any]:
        """Return count and sum of the numbers too."""
        return {**super().state_dict(), "count": self.count, "total": self.total}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        super().load_state_dict(state_dict)
        self.count, self.total = int(state_dict["count"]), float(state_dict["total"])


class RiverSoftmax(Baseline):
    """River's multi-class logistic regression on the standardized signals of each step, with River's own settings.

    Raises:
        UserError: If River is not installed.
    """

    def __init__(self, delay: int, num_outputs: int, initial: int = 0) -> None:
        super().__init__(delay, num_outputs, initial)
        try:
            from river import linear_model, preprocessing
        except ImportError as error:
            raise UserError(f"baselines need River ({error}): pip install 'fptt[experiments]'") from error
        self.scaler, self.regression = preprocessing.StandardScaler(), linear_model.SoftmaxRegression()
        self.model = self.scaler | self.regression
        self.waiting: deque[tuple[list[float], int]] = deque()

    def predictions(self, piece: Piece) -> Tensor:
        """Return the predictions of the steps of the next piece, (n,); those without a label are not predicted."""
        predictions = torch.zeros(len(piece.targets), dtype=torch.long)
        for step, (row, label) in enumerate(zip(piece.signal.tolist(), piece.targets.tolist(), strict=True)):
            if label != IGNORED:
                given = self.model.predict_one(dict(enumerate(row)))
                predictions[step] = self.initial if given is None else given
            self.waiting.append((row, label))
            self._learn(self.delay)
        if piece.is_last:
            self._learn(0)
        return predictions

    def _learn(self, num_waiting: int) -> None:
        while len(self.waiting) > num_waiting:
            row, label = self.waiting.popleft()
            if label != IGNORED:
                self.model.learn_one(dict(enumerate(row)), label)

    def state_dict(self) -> dict[str, Any]:
        """Return moments, weights and the steps that wait; the rate of River's optimizer is constant."""
        moments = {name: _plain(getattr(self.scaler, name)) for name in _MOMENTS}
        weights = {label: _plain(weights) for label, weights in self.regression.weights.items()}
        return {**moments, "weights": weights, "waiting": list(self.waiting)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        for name in _MOMENTS:
            getattr(self.scaler, name).update(state_dict[name])
        for label, weights in state_dict["weights"].items():
            self.regression.weights[label].update(weights)
        self.waiting = deque((list(row), label) for row, label in state_dict["waiting"])


_MOMENTS = ("counts", "means", "vars")


def _plain(values: Mapping[Any, Any]) -> dict[int, float]:
    """Return numbers by feature, in their order, on which a sum depends."""
    return {feature: float(value) for feature, value in values.items()}


BASELINES: dict[Kind, dict[str, type[Baseline]]] = {
    "classes": {"last_label": LastLabel, "majority_class": MajorityClass},
    "regression": {"last_label": LastLabel, "mean": MeanNumber},
}
"""Those that cost next to nothing, by what the targets are."""
