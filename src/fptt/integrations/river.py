"""Online learners as estimators of River (riverml.xyz): `pip install 'fptt[river]'`."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import fptt
from fptt._checks import check_type

try:
    from river import base
except ModuleNotFoundError as error:
    raise ImportError(f"fptt.integrations.river needs {error.name}: pip install 'fptt[river]'") from error

MakeLearner = Callable[[int], fptt.OnlineLearner]
"""From the number of features to a new learner."""


class _Estimator:
    """The base of classifier and regressor: a learner, built at the first step.

    Without a `max_delay`, `predict_one` has no side effect and `learn_one` advances the stream. With one, the order is
    River's for late labels: `predict_one` advances the stream, and `learn_one` labels the oldest step without a label.
    It cannot look for the step by its x, which a pipeline may have scaled differently since then.
    """

    _has_classes: ClassVar[bool]

    def __init__(self, make_learner: MakeLearner) -> None:
        if not callable(make_learner):
            raise TypeError(
                "make_learner must be a function that is called with the number of features and returns an "
                f"OnlineLearner, got a {type(make_learner).__name__}."
            )
        self.make_learner = make_learner
        self._learner: fptt.OnlineLearner | None = None
        self._num_unlabeled = 0

    @contextmanager
    def _learner_for(self, x: dict[Any, Any]) -> Iterator[fptt.OnlineLearner]:
        """Give the learner; a new one that refuses its first step is not kept: the next may have other features."""
        learner = self._make(len(x)) if self._learner is None else self._learner
        try:
            yield learner
        except Exception:
            self._learner = learner if learner.steps else self._learner
            raise
        self._learner = learner

    def _make(self, num_features: int) -> fptt.OnlineLearner:
        """Return a new learner.

        Raises:
            TypeError: If `make_learner` returns something else.
            ValueError: If it is one of numbers for a classifier, or of classes for a regressor.
        """
        learner = self.make_learner(num_features)
        check_type("what make_learner returns", learner, fptt.OnlineLearner, "an OnlineLearner")
        if learner.has_classes != self._has_classes:
            wanted, found = ("classes", "numbers") if self._has_classes else ("numbers", "classes")
            raise ValueError(
                f"make_learner must return a learner of {wanted} for a {type(self).__name__}, got one of {found}, by "
                "its classes and its loss."
            )
        return learner

    @contextmanager
    def _predicting(self, x: dict[Any, Any]) -> Iterator[fptt.OnlineLearner]:
        """Give the learner, and advance by the step afterwards if its label comes late."""
        with self._learner_for(x) as learner:
            yield learner
            if learner.max_delay:
                num_before = learner.steps
                try:
                    learner.learn_one(x)
                finally:  # a chunk with a bad loss raises an error after the step is entered
                    self._num_unlabeled += learner.steps - num_before

    def predict_one(self, x: dict[Any, Any], **_: Any) -> Any:
        """Return the prediction of the next step: a number, or a class, None while no class is known."""
        with self._predicting(x) as learner:
            return learner.predict_one(x)

    def learn_one(self, x: dict[Any, Any], y: Any) -> None:
        """Learn from a step and its class or number."""
        with self._learner_for(x) as learner:
            if self._num_unlabeled:
                num_before = learner.labels
                try:
                    learner.learn_delayed(y, self._num_unlabeled)
                finally:  # as above; a label that is refused is not taken
                    self._num_unlabeled -= learner.labels - num_before
            else:
                learner.learn_one(x, y)


class RiverClassifier(_Estimator, base.Classifier):
    """A classifier of River around a `fptt.OnlineLearner`, for any number of classes.

    `clone()` returns an untrained one, as River expects. Labels that come late by `delay` steps, as in
    `river.evaluate.progressive_val_score(…, delay=delay)`, need a learner with at least that `max_delay`; they must
    come in order, one for every step predicted.

    Args:
        make_learner: Called with the number of features at the first step; returns a new learner.

    Examples:
        >>> from river import preprocessing
        >>> def make_learner(num_features):
        ...     model = fptt.nn.GRU(num_features, 8, 3)
        ...     optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
        ...     loss = fptt.SequenceLoss(nn.functional.cross_entropy)
        ...     return fptt.OnlineLearner(fptt.FPTT(model, optimizer, loss, chunk_length=1))
        >>> model = preprocessing.StandardScaler() | RiverClassifier(make_learner)
        >>> for step in range(4):
        ...     model.learn_one({"speed": step, "pulse": 60 + step}, "walk")
        >>> model.predict_one({"speed": 4, "pulse": 64})
        'walk'
    """

    _has_classes = True

    @property
    def _multiclass(self) -> bool:
        return True

    def predict_proba_one(self, x: dict[Any, Any], **_: Any) -> dict[Any, float]:
        """Return the probability of each class known so far."""
        with self._predicting(x) as learner:
            return learner.predict_proba_one(x)


class RiverRegressor(_Estimator, base.Regressor):
    """A regressor of River around a `fptt.OnlineLearner` with `classes=None`; see `RiverClassifier`."""

    _has_classes = False
