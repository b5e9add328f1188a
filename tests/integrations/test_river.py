import contextlib
import copy
import itertools
import math
import pickle
from collections.abc import Hashable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
from torch.nn import functional

import fptt

river = pytest.importorskip("river", reason="River is not installed: pip install 'fptt[river]'")

from river import checks, datasets, evaluate, metrics, preprocessing  # noqa: E402

from fptt.integrations.river import RiverClassifier, RiverRegressor  # noqa: E402


def make_classifier(num_features: int, chunk_length: int = 1, max_delay: int = 0) -> fptt.OnlineLearner:
    torch.manual_seed(0)
    model = fptt.nn.GRU(num_features, 8, 7)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    loss = fptt.SequenceLoss(functional.cross_entropy)
    method = fptt.FPTT(model, optimizer, loss, chunk_length=chunk_length, max_norm=1.0)
    return fptt.OnlineLearner(method, max_delay=max_delay)


def make_chunked_classifier(num_features: int) -> fptt.OnlineLearner:
    return make_classifier(num_features, chunk_length=4)


def make_late_classifier(num_features: int) -> fptt.OnlineLearner:
    return make_classifier(num_features, max_delay=3)


def make_regressor(num_features: int) -> fptt.OnlineLearner:
    torch.manual_seed(0)
    model = fptt.nn.GRU(num_features, 8, 1)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    loss = fptt.SequenceLoss(functional.mse_loss)
    return fptt.OnlineLearner(fptt.FPTT(model, optimizer, loss, chunk_length=4, max_norm=1.0), classes=None)


def cycle(num_steps: int) -> Iterator[tuple[dict[Hashable, Any], Any]]:
    """The class is that of the step before, so that a model without a state cannot know it."""
    symbols = torch.randint(3, (num_steps + 1,), generator=torch.Generator().manual_seed(0)).tolist()
    for before, symbol in itertools.pairwise(symbols):
        yield {"size": 10.0 * symbol, "flag": float(symbol == 1)}, "abc"[before]


def test_a_pipeline_learns_what_needs_a_state_under_rivers_evaluation() -> None:
    model = preprocessing.StandardScaler() | RiverClassifier(make_chunked_classifier)
    evaluate.progressive_val_score(cycle(600), model, metrics.Accuracy())
    score = evaluate.progressive_val_score(list(cycle(800))[600:], model, metrics.Accuracy())
    assert score.get() > 0.9


def test_rivers_evaluation_is_the_loop_by_hand() -> None:
    model, by_hand, right = RiverClassifier(make_classifier), make_classifier(2), 0
    for x, y in cycle(100):
        right += by_hand.predict_one(x) == y
        by_hand.learn_one(x, y)
    score = evaluate.progressive_val_score(cycle(100), model, metrics.Accuracy())
    assert score.get() == pytest.approx(right / 99)  # River leaves out the first answer, None
    entropy = evaluate.progressive_val_score(cycle(50), model.clone(), metrics.CrossEntropy())
    assert 0 < entropy.get() < 2


@pytest.mark.parametrize("delay", [1, 3])
def test_late_labels_of_rivers_evaluation_go_to_the_steps_predicted(delay: int) -> None:
    model, by_hand, right = RiverClassifier(make_late_classifier), make_late_classifier(2), 0
    score = evaluate.progressive_val_score(cycle(100), model, metrics.Accuracy(), delay=delay)
    answers, labels = [], [y for _, y in cycle(100)]
    for step, (x, _) in enumerate(cycle(100)):
        if step >= delay:
            by_hand.learn_delayed(labels[step - delay], delay)
        answers.append(by_hand.predict_one(x))
        by_hand.learn_one(x)
    right = sum(answer == y for answer, y in zip(answers, labels, strict=True))
    assert score.get() == pytest.approx(right / (100 - answers.count(None)))
    assert model._learner is not None
    assert (model._learner.steps, model._learner.labels) == (100, 100)


def test_a_regressor_in_a_pipeline() -> None:
    model = preprocessing.StandardScaler() | RiverRegressor(make_regressor)
    data: list[tuple[dict[Hashable, Any], Any]] = [({"now": math.sin(n / 4)}, math.cos(n / 4)) for n in range(900)]
    early = evaluate.progressive_val_score(data[:200], model, metrics.MAE()).get()
    evaluate.progressive_val_score(data[200:700], model, metrics.MAE())
    assert evaluate.progressive_val_score(data[700:], model, metrics.MAE()).get() < early / 3


CHECKS = [
    "check_learn_one",
    "check_pickling",
    "check_shuffle_features_no_impact",
    "check_predict_one_pure",
    "check_predict_one_before_any_learn",
    "check_no_state_aliasing_with_input",
    "check_clone_is_independent",
    "check_predict_proba_one",
    "check_classifier_tracks_seen_labels",
    "check_clone_same_class",
    "check_repr",
    "check_str",
    "check_get_params_matches_signature",
]


@pytest.mark.parametrize("name", CHECKS)
def test_rivers_own_checks(name: str) -> None:
    """Those of features that come and go are left out: a recurrent model has fixed inputs, and says so."""
    model = RiverClassifier(make_classifier)
    found = [check for check in checks.yield_checks(model) if check.__name__ == name]
    assert found
    check = found[-1]
    if "dataset" in getattr(check, "keywords", {}):
        data = list(datasets.ImageSegments().take(12))
        check = type(check)(check.func, dataset=data)  # pyright: ignore  # shorter
    check(model.clone())


def test_a_clone_has_learned_nothing_and_a_copy_everything() -> None:
    model = RiverClassifier(make_classifier)
    for x, y in cycle(20):
        model.learn_one(x, y)
    x = {"size": 10.0, "flag": 1.0}
    assert model.clone().predict_one(x) is None
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert other.predict_proba_one(x) == model.predict_proba_one(x)
        for again, y in cycle(5):
            other.learn_one(again, y)
        assert other.predict_proba_one(x) != model.predict_proba_one(x)


def test_a_first_step_that_is_refused_does_not_decide_how_many_features_there_are() -> None:
    for call in ("learn_one", "predict_one", "predict_proba_one"):
        model = RiverClassifier(make_classifier)
        with pytest.raises(TypeError, match="x must hold numbers"):
            getattr(model, call)({"size": 1.0, "flag": 0.0, "color": "red"}, *["a"][: call == "learn_one"])
        assert model.predict_one({"size": 1.0, "flag": 0.0}) is None
        kept = model._learner
        assert model.predict_one({"size": 2.0, "flag": 0.0}) is None
        assert model._learner is kept


def test_a_learner_of_the_other_kind_is_refused() -> None:
    for model, message in (
        (RiverClassifier(make_regressor), "learner of classes for a RiverClassifier, got one of numbers"),
        (RiverRegressor(make_classifier), "learner of numbers for a RiverRegressor, got one of classes"),
    ):
        for call in (partial(model.predict_one, {"size": 1.0}), partial(model.learn_one, {"size": 1.0}, 1.0)):
            with pytest.raises(ValueError, match=f"make_learner must return a {message}"):
                call()


def test_what_makes_no_learner_is_named() -> None:
    made: Any = make_classifier(2)
    with pytest.raises(TypeError, match=r"make_learner must be a function .* got a OnlineLearner"):
        RiverClassifier(made)
    with pytest.raises(TypeError, match="what make_learner returns must be an OnlineLearner, got a FPTT"):
        RiverClassifier(lambda _: made.method).predict_one({"size": 1.0, "flag": 0.0})


def test_late_labels_go_on_after_a_label_that_cannot_be_learned() -> None:
    def make(num_features: int) -> fptt.OnlineLearner:
        torch.manual_seed(0)
        model = fptt.nn.GRU(num_features, 4, 1)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        loss = fptt.SequenceLoss(functional.mse_loss)
        return fptt.OnlineLearner(fptt.FPTT(model, optimizer, loss, chunk_length=1), classes=None, max_delay=3)

    model, by_hand = RiverRegressor(make), make(1)
    for step in range(12):
        if step >= 3:
            y = 1e30 if step == 6 else 0.1 * step  # its square is infinite in float32
            for learn in (partial(model.learn_one, {"x": 0.1 * (step - 3)}, y), partial(by_hand.learn_delayed, y, 3)):
                with pytest.raises(FloatingPointError) if step == 6 else contextlib.nullcontext():
                    learn()
        expected = by_hand.predict_one([0.1 * step])
        by_hand.learn_one([0.1 * step])
        assert model.predict_one({"x": 0.1 * step}) == expected
    assert by_hand.labels == 9
