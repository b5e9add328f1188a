"""Online learners as estimators of River (riverml.xyz): in its pipelines, and under its evaluation."""

from collections.abc import Callable
from typing import Any

from river import base

import fptt

MakeLearner = Callable[[int], fptt.OnlineLearner]
"""From the number of features to a new learner."""


class _Estimator:
    """What classifier and regressor share: a learner, made at the first step.

    Without a `max_delay`, asking changes nothing and telling enters the step. With one, the order is River's for late
    labels: asking enters a step, and telling labels the oldest one that was only asked, since a pipeline may have
    changed x since then.
    """

    def __init__(self, make_learner: MakeLearner) -> None:
        self.make_learner = make_learner
        self._learner: fptt.OnlineLearner | None = None
        self._num_unanswered = 0

    def _ready(self, x: dict[Any, Any]) -> fptt.OnlineLearner:
        if self._learner is None:
            self._learner = self.make_learner(len(x))
        return self._learner

    def _asked(self, x: dict[Any, Any], answer: Any) -> Any:
        learner = self._ready(x)
        if learner.max_delay:
            learner.learn_one(x)
            self._num_unanswered += 1
        return answer

    def _told(self, x: dict[Any, Any], y: Any) -> None:
        learner = self._ready(x)
        if self._num_unanswered:
            learner.learn_delayed(y, self._num_unanswered)
            self._num_unanswered -= 1
        else:
            learner.learn_one(x, y)


class RiverClassifier(_Estimator, base.Classifier):
    """A classifier of River around a `fptt.OnlineLearner`, for any number of classes.

    `clone()` gives an untrained one, as River expects. Labels that come late by `delay` steps, as in
    `river.evaluate.progressive_val_score(…, delay=delay)`, need a learner with at least that `max_delay`; they must
    come in order, and every step that is asked must be told.

    Args:
        make_learner: Called with the number of features at the first step; returns a new learner.

    Examples:
        >>> from river import preprocessing
        >>> def make_learner(num_features):
        ...     model = fptt.nn.GRU(num_features, 8, 3)
        ...     optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
        ...     return fptt.OnlineLearner(model, optimizer, fptt.SequenceLoss(nn.functional.cross_entropy))
        >>> model = preprocessing.StandardScaler() | RiverClassifier(make_learner)
        >>> for step in range(4):
        ...     model.learn_one({"speed": step, "pulse": 60 + step}, "walk")
        >>> model.predict_one({"speed": 4, "pulse": 64})
        'walk'
    """

    @property
    def _multiclass(self) -> bool:
        return True

    def learn_one(self, x: dict[Any, Any], y: Any) -> None:
        """Learn from a step and its class."""
        self._told(x, y)

    def predict_one(self, x: dict[Any, Any], **_: Any) -> Any:
        """Return the class of the next step, None while no class is known."""
        return self._asked(x, self._ready(x).predict_one(x))

    def predict_proba_one(self, x: dict[Any, Any], **_: Any) -> dict[Any, float]:
        """Return the probability of each class known so far."""
        return self._asked(x, self._ready(x).predict_proba_one(x))


class RiverRegressor(_Estimator, base.Regressor):
    """A regressor of River around a `fptt.OnlineLearner` with `classes=None`; see `RiverClassifier`."""

    def learn_one(self, x: dict[Any, Any], y: Any) -> None:
        """Learn from a step and its number."""
        self._told(x, y)

    def predict_one(self, x: dict[Any, Any], **_: Any) -> Any:
        """Return the number of the next step."""
        return self._asked(x, self._ready(x).predict_one(x))
