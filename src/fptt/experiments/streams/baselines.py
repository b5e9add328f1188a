"""Baselines of a learner on a stream: predictions without a model, and River's linear model."""

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor

from fptt.experiments.process.errors import UserError
from fptt.experiments.tasks.scores import IGNORED


class Baseline(ABC):
    """Predicts every step of a stream, like a learner that gets the label of a step `delay` steps later.

    At the end of a recording it gets all labels that are left.

    Args:
        delay: Steps by which labels are late, ≥ 0.
        num_classes: C.
    """

    def __init__(self, delay: int, num_classes: int) -> None:
        self.delay, self.num_classes = delay, num_classes

    @abstractmethod
    def predictions(self, signal: Tensor, classes: np.ndarray) -> np.ndarray:
        """Return the predictions of all steps of the next recording, (T,): classes, 0 while nothing is known.

        Args:
            signal: (T, D).
            classes: (T,), IGNORED where there is none.
        """

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """Return what the baseline has learned so far, as plain values."""

    @abstractmethod
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what `state_dict` returned, between two recordings."""


class WithoutModel(Baseline):
    """A baseline that looks at the labels alone."""

    current = 0

    def predictions(self, signal: Tensor, classes: np.ndarray) -> np.ndarray:  # noqa: ARG002
        """Return the predictions of all steps of the next recording, (T,)."""
        informed = self._after(classes)
        early = np.full(min(self.delay + 1, len(classes)), self.current)  # no label of this recording is known yet
        self.current = int(informed[-1])
        return np.concatenate([early, informed[: len(classes) - len(early)]])

    @abstractmethod
    def _after(self, classes: np.ndarray) -> np.ndarray:
        """Return the predictions after each step if labels were not late, (T,)."""

    def state_dict(self) -> dict[str, Any]:
        """Return the current prediction."""
        return {"current": self.current}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.current = int(state_dict["current"])


class LastLabel(WithoutModel):
    """Predicts the latest known label ("persistence")."""

    def _after(self, classes: np.ndarray) -> np.ndarray:
        latest = np.maximum.accumulate(np.where(classes != IGNORED, np.arange(len(classes)), -1))
        return np.where(latest < 0, self.current, classes[latest])


class MajorityClass(WithoutModel):
    """Predicts the most frequent class so far."""

    def __init__(self, delay: int, num_classes: int) -> None:
        super().__init__(delay, num_classes)
        self.counts = np.zeros(num_classes, dtype=np.int64)

    def _after(self, classes: np.ndarray) -> np.ndarray:
        counts = self.counts + (classes[:, None] == np.arange(self.num_classes)).cumsum(0)
        self.counts = counts[-1]
        return counts.argmax(1)

    def state_dict(self) -> dict[str, Any]:
        """Return the current prediction and the counts of the classes."""
        return {**super().state_dict(), "counts": self.counts.tolist()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        super().load_state_dict(state_dict)
        self.counts = np.array(state_dict["counts"], dtype=np.int64).reshape(self.num_classes)


class RiverSoftmax(Baseline):
    """River's multi-class logistic regression on the standardized signals of each step, with River's own settings.

    Raises:
        UserError: If River is not installed.
    """

    def __init__(self, delay: int, num_classes: int) -> None:
        super().__init__(delay, num_classes)
        try:
            from river import linear_model, preprocessing
        except ImportError as error:
            raise UserError(f"baselines need River ({error}): pip install 'fptt[experiments]'") from error
        self.scaler, self.regression = preprocessing.StandardScaler(), linear_model.SoftmaxRegression()
        self.model = self.scaler | self.regression
        self.waiting: deque[tuple[dict, int]] = deque()

    def predictions(self, signal: Tensor, classes: np.ndarray) -> np.ndarray:
        """Return the predictions of all steps of the next recording, (T,); those without a label are not predicted."""
        predictions = np.zeros(len(classes), dtype=np.int64)
        for step, (row, label) in enumerate(zip(signal.tolist(), classes.tolist(), strict=True)):
            x = dict(enumerate(row))
            if label != IGNORED:
                predictions[step] = self.model.predict_one(x) or 0
            self.waiting.append((x, label))
            self._learn(self.delay)
        self._learn(0)
        return predictions

    def _learn(self, num_waiting: int) -> None:
        while len(self.waiting) > num_waiting:
            x, label = self.waiting.popleft()
            if label != IGNORED:
                self.model.learn_one(x, label)

    def state_dict(self) -> dict[str, Any]:
        """Return moments and weights; the rate of River's optimizer is constant."""
        moments = {name: _plain(getattr(self.scaler, name)) for name in _MOMENTS}
        return {**moments, "weights": {label: _plain(weights) for label, weights in self.regression.weights.items()}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        for name in _MOMENTS:
            getattr(self.scaler, name).update(state_dict[name])
        for label, weights in state_dict["weights"].items():
            self.regression.weights[label].update(weights)


_MOMENTS = ("counts", "means", "vars")


def _plain(values: Mapping[Any, Any]) -> dict[int, float]:
    """Return numbers by feature, in their order, on which a sum depends."""
    return {feature: float(value) for feature, value in values.items()}
