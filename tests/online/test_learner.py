import datetime
import io
import pickle
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import fptt
from tests.problems import assert_same_weights

T, D, C = 24, 3, 4
LABELS = ["a", "b", "c", "d"]
CHUNKS = pytest.mark.parametrize("length", [1, 4, 5])


def lstm(**options: Any) -> nn.Module:
    torch.manual_seed(1)
    return fptt.nn.LSTM(D, 5, C, **options)


def cross_entropy() -> fptt.SequenceLoss:
    return fptt.SequenceLoss(functional.cross_entropy)


def learner(
    model: nn.Module | None = None, lr: float = 0.05, chunk_length: int = 1, alpha: float = 0.1, **options: Any
) -> fptt.OnlineLearner:
    model = lstm() if model is None else model
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    method = fptt.FPTT(model, optimizer, cross_entropy(), chunk_length=chunk_length, alpha=alpha)
    return fptt.OnlineLearner(method, **{"classes": LABELS, **options})


def stream(seed: int = 0) -> tuple[Tensor, list[str]]:
    generator = torch.Generator().manual_seed(seed)
    numbers = torch.randint(C, (T,), generator=generator)
    return torch.randn(T, D, generator=generator), [LABELS[number] for number in numbers.tolist()]


def learn(online: fptt.OnlineLearner, steps: range = range(T), labels: list[Any] | None = None) -> None:
    inputs, own = stream()
    for step in steps:
        online.learn_one(inputs[step], (own if labels is None else labels)[step])


def test_a_frozen_parameter_of_integers_leaves_steps_and_targets_as_they_are() -> None:
    class Counted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.count = nn.Parameter(torch.tensor(3), requires_grad=False)
            self.rnn = fptt.nn.RNN(1, 4, 1)

        def forward(self, inputs: Tensor, state: Any = None) -> tuple[Tensor, Any]:
            return self.rnn(inputs.float(), state)

    def learned(model: nn.Module, weights: Any) -> list[Tensor]:
        optimizer = torch.optim.SGD(weights.parameters(), lr=0.1)
        method = fptt.TBPTT(model, optimizer, fptt.SequenceLoss(functional.mse_loss), chunk_length=1)
        online = fptt.OnlineLearner(method, classes=None)
        for step in range(5):
            online.learn_one([0.7 * step], 0.9)
        return list(weights.parameters())

    counted, plain = Counted(), fptt.nn.RNN(1, 4, 1)
    plain.load_state_dict(counted.rnn.state_dict())
    assert all(map(torch.equal, learned(counted, counted.rnn), learned(plain, plain)))


@CHUNKS
@pytest.mark.parametrize("alpha", [0, 0.3])
def test_a_stream_is_learned_as_its_chunks_are_by_the_method(length: int, alpha: float) -> None:
    online = learner(chunk_length=length, alpha=alpha)
    learn(online)
    model = lstm()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    method = fptt.FPTT(model, optimizer, cross_entropy(), num_chunks=1, alpha=alpha)
    inputs, labels = stream()
    targets = torch.tensor([[LABELS.index(label)] for label in labels])
    state = None
    for start in range(0, T - length + 1, length):
        part = slice(start, start + length)
        state = method.train_batch(inputs[part, None], targets[part], state).state
    assert_same_weights(online.method.model, model)
    assert (online.steps, online.labels, online.method.updates) == (T, T, T // length)


@CHUNKS
def test_predictions_have_no_side_effect_and_a_chunk_is_its_steps(length: int) -> None:
    silent, asked, at_once = (learner(chunk_length=length) for _ in range(3))
    inputs, labels = stream()
    partly: list[Any] = [None if step % 3 == 1 or 8 <= step < 14 else labels[step] for step in range(T)]
    learn(silent, labels=partly)
    for step in range(T):
        assert asked.predict_one(inputs[step]) == asked.predict_one(inputs[step])
        asked.predict_one(inputs[step] + 1)
        if step % 2:
            asked.predict_many(inputs[step:])
        asked.learn_one(inputs[step], partly[step])
    for start, end in [(0, 1), (1, 3), (3, 12), (12, T)]:
        at_once.predict_many(inputs[start:end])
        at_once.learn_many(inputs[start:end], partly[start:end])
    for other in (asked, at_once):
        assert_same_weights(silent.method.model, other.method.model)
        torch.testing.assert_close(silent.predict_many(inputs), other.predict_many(inputs))


class Writing(nn.Module):
    """Writes its next state into the nest that it is given, or into its tensor, as models of other libraries do."""

    def __init__(self, *, in_place: bool) -> None:
        super().__init__()
        self.cell, self.readout, self.in_place = nn.GRUCell(D, 5), nn.Linear(5, C), in_place

    def forward(self, inputs: Tensor, state: list[Tensor] | None) -> tuple[Tensor, list[Tensor]]:
        state = [inputs.new_zeros(inputs.shape[1], 5)] if state is None else state
        given, hidden = state[0], state[0].clone()
        outputs = []
        for x in inputs:
            hidden = self.cell(x, hidden)
            outputs.append(self.readout(hidden))
        if self.in_place:
            with torch.no_grad():
                given.copy_(hidden)
            return torch.stack(outputs), [hidden]
        state[0] = hidden
        return torch.stack(outputs), state


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("options", [{}, {"window": 10}, {"max_delay": 2}], ids=str)
def test_a_model_that_writes_into_its_state_is_trained_as_by_the_method(in_place: bool, options: Any) -> None:
    """Inference runs ahead of training, on states of its own."""
    models = []
    for _ in range(3):
        torch.manual_seed(3)
        models.append(Writing(in_place=in_place))
    asked, silent = (learner(model, chunk_length=2, **options) for model in models[:2])
    inputs, labels = stream()
    for x, y in zip(inputs, labels, strict=True):
        asked.predict_one(x)
        asked.learn_one(x, y)
        silent.learn_one(x, y)
    optimizer = torch.optim.Adam(models[2].parameters(), lr=0.05)
    method = fptt.FPTT(models[2], optimizer, cross_entropy(), num_chunks=1, alpha=0.1)
    targets, state = torch.tensor([[LABELS.index(label)] for label in labels]), None
    for start in range(0, T, 2):
        state = method.train_batch(inputs[start : start + 2, None], targets[start : start + 2], state).state
    for online in (asked, silent):
        online.flush()
        assert_same_weights(online.method.model, models[2])


class Delayed(nn.Module):
    """Answers with the inputs of the last three steps, which the state has one after the other."""

    def __init__(self) -> None:
        super().__init__()
        self.readout = nn.Linear(D, C)

    def forward(self, inputs: Tensor, state: list[Tensor] | None) -> tuple[Tensor, list[Tensor]]:
        outputs = []
        for x in inputs:
            state = [*(state or []), x][-3:]
            outputs.append(self.readout(torch.stack(state).sum(0)))
        return torch.stack(outputs), state or []


@pytest.mark.parametrize("after", [1, 2, 5])
def test_a_state_that_grows_with_the_first_steps_is_saved_and_loaded(after: int) -> None:
    torch.manual_seed(4)
    saved, loaded = learner(Delayed()), learner(Delayed())
    inputs, labels = stream()
    saved.learn_many(inputs[:after], labels[:after])
    loaded.load_state_dict(reloaded(saved.state_dict()))
    for online in (saved, loaded):
        online.learn_many(inputs[after:], labels[after:])
    assert_same_weights(saved.method.model, loaded.method.model)


def test_steps_without_a_label_do_not_count_and_a_chunk_without_any_makes_no_update() -> None:
    """By hand: the mean over the labeled steps of a chunk, from the state after all steps."""
    model, mirror = lstm().double(), lstm().double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
    online = fptt.OnlineLearner(fptt.FPTT(model, optimizer, cross_entropy(), chunk_length=3, alpha=0), classes=LABELS)
    inputs, labels = stream()
    for step in range(9):
        online.learn_one(inputs[step], labels[step] if step in (1, 2, 6) else None)
    assert (online.method.updates, online.labels) == (2, 3)
    state = None
    for start, counted in ((0, [1, 2]), (3, []), (6, [0])):
        outputs, state = mirror(inputs[start : start + 3, None].double(), fptt.detach_state(state))
        if counted:
            terms = [outputs[n, 0].log_softmax(0)[LABELS.index(labels[start + n])] for n in counted]
            gradients = torch.autograd.grad(-torch.stack(terms).mean(), list(mirror.parameters()))
            with torch.no_grad():
                for param, gradient in zip(mirror.parameters(), gradients, strict=True):
                    param.sub_(0.3 * gradient)
    for one, other in zip(model.parameters(), mirror.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("max_delay", [0, 6])
@CHUNKS
def test_a_prediction_is_made_from_the_state_of_all_steps_before(length: int, max_delay: int) -> None:
    """The weights stand still, so that the whole sequence at once has the same outputs, labels or not."""
    online = learner(lr=0.0, chunk_length=length, max_delay=max_delay, alpha=0)
    inputs, labels = stream()
    outputs = []
    for step in range(T):
        outputs.append(online.predict_many(inputs[step : step + 1])[0])
        online.learn_one(inputs[step], labels[step] if step % 5 else None)
    expected = lstm()(inputs[:, None])[0][:, 0].detach()
    torch.testing.assert_close(torch.stack(outputs), expected)
    online.reset()
    torch.testing.assert_close(online.predict_many(inputs), expected)
    online.learn_many(inputs[:7])
    torch.testing.assert_close(online.predict_many(inputs[7:]), expected[7:])


def test_the_same_step_again_is_predicted_from_another_state() -> None:
    """A row like the one before, with the same weights: only the state tells them apart."""
    online = learner(lr=0.0, chunk_length=5, alpha=0)
    inputs, labels = stream()
    inputs = inputs[:1].expand_as(inputs)
    outputs = []
    for row, label in zip(inputs, labels, strict=True):
        outputs.append(online.predict_many(row[None])[0])
        online.learn_one(row, label)
    torch.testing.assert_close(torch.stack(outputs), lstm()(inputs[:, None])[0][:, 0].detach())


@CHUNKS
@pytest.mark.parametrize("delay", [1, 3, 9])
def test_a_delay_changes_when_a_stream_is_learned_and_not_what(length: int, delay: int) -> None:
    punctual, late = learner(chunk_length=length), learner(chunk_length=length, max_delay=delay)
    inputs, labels = stream()
    learn(punctual)
    punctual.flush()
    for step in range(T):
        late.learn_one(inputs[step])
        assert len(late._trainer) <= length + delay
        if step + 1 >= delay:
            late.learn_delayed(labels[step + 1 - delay], delay)
        assert late.method.updates == max(step + 2 - delay, 0) // length
    for steps_ago in range(delay - 1, 0, -1):
        late.learn_delayed(labels[T - steps_ago], steps_ago)
    late.flush()
    assert_same_weights(punctual.method.model, late.method.model)
    assert late.labels == punctual.labels == T
    torch.testing.assert_close(punctual.predict_many(inputs), late.predict_many(inputs))


def test_predictions_have_no_side_effect_when_a_late_label_comes_before_the_step() -> None:
    silent, asked = (learner(chunk_length=2, max_delay=3) for _ in range(2))
    inputs, labels = stream()
    for step in range(T):
        before = asked.predict_many(inputs[step : step + 1])
        for online in (silent, asked):
            if step >= 3:
                online.learn_delayed(labels[step - 3], 3)
        after = asked.predict_many(inputs[step : step + 1])
        assert torch.equal(before, after) == (step < 4 or step % 2 == 1)  # the weights change with every other label
        for online in (silent, asked):
            online.learn_one(inputs[step])
    assert torch.equal(silent.predict_many(inputs), asked.predict_many(inputs))


def test_a_prediction_then_learned_is_one_forward_pass() -> None:
    online = learner(chunk_length=5)
    inputs, labels = stream()
    calls: list[int] = []
    online.method.model.register_forward_hook(lambda module, *_: calls.append(module.training))
    for step in range(4):
        online.predict_one(inputs[step])
        online.predict_proba_one(inputs[step])
        online.learn_one(inputs[step], labels[step])
    assert calls == [False] * 4


def test_outputs_that_are_written_to_do_not_change_the_next_prediction() -> None:
    online, undisturbed = (learner(chunk_length=4, window=3) for _ in range(2))
    inputs, labels = stream()
    for step in range(T):
        online.predict_many(inputs[step : step + 1]).neg_()
        assert online.predict_one(inputs[step]) == undisturbed.predict_one(inputs[step])
        for own in (online, undisturbed):
            own.learn_one(inputs[step], labels[step])
        assert online.error == undisturbed.error


def test_weights_that_others_change_are_noticed_between_two_predictions() -> None:
    online = learner(chunk_length=3)
    learn(online)
    inputs = stream()[0]
    before = online.predict_many(inputs)
    regularizer = online.method.regularizer
    assert regularizer is not None
    with regularizer.averaged():
        assert not torch.equal(online.predict_many(inputs), before)
    assert torch.equal(online.predict_many(inputs), before)
    online.method.model.load_state_dict(lstm().state_dict())
    assert not torch.equal(online.predict_many(inputs), before)


def test_weights_that_are_replaced_are_noticed_between_two_predictions() -> None:
    """As `nn.utils.vector_to_parameters` does, also where the memory of other weights is used again."""
    online = learner(chunk_length=3)
    inputs = stream()[0]
    params = list(online.method.model.parameters())
    vector = nn.utils.parameters_to_vector(params).detach()
    answers = []
    for factor in range(1, 21):
        for sign in (-1, 1):  # the first are gone before anything is predicted with them
            nn.utils.vector_to_parameters(sign * factor * vector, params)
        answers.append(online.predict_many(inputs))
        fresh = learner(chunk_length=3)
        fresh.method.model.load_state_dict(online.method.model.state_dict())
        assert torch.equal(answers[-1], fresh.predict_many(inputs))
    assert not torch.equal(answers[0], answers[1])


def test_a_chunk_with_a_bad_loss_is_dropped_and_the_stream_goes_on_behind_it() -> None:
    """As if the steps of the chunk, and those passed in the same call after it, had not been."""

    def infinite(output: Tensor, target: Tensor, reduction: str = "none") -> Tensor:
        return functional.cross_entropy(output, target, reduction=reduction) / 0

    one, other = (learner(chunk_length=4) for _ in range(2))
    inputs, labels = stream()
    for online in (one, other):
        online.learn_many(inputs[:4], labels[:4])
    loss = one.method.loss
    assert isinstance(loss, fptt.SequenceLoss)
    function, loss.function = loss.function, fptt.SequenceLoss(infinite).function
    with pytest.raises(FloatingPointError, match="the loss is inf"):
        one.learn_many(inputs[4:14], labels[4:14])
    loss.function = function
    assert (one.steps, one.labels, one.method.updates) == (8, 8, 1)
    for online in (one, other):
        online.learn_many(inputs[14:], labels[14:])
    assert_same_weights(one.method.model, other.method.model)
    assert torch.equal(one.predict_many(inputs), other.predict_many(inputs))


def test_a_label_that_does_not_come_is_not_awaited_for_ever() -> None:
    online = learner(chunk_length=2, max_delay=3)
    inputs, labels = stream()
    for step in range(3):
        online.learn_one(inputs[step])
    online.learn_delayed(labels[1], 2)
    assert online.method.updates == 0  # step 0 may still get its label
    online.learn_one(inputs[3])
    assert online.method.updates == 1
    online.learn_delayed("a", 2)
    for delay in (2, 3):  # told already, learned already
        with pytest.raises(ValueError, match=f"delay must be that of a step without a label, got {delay}"):
            online.learn_delayed("a", delay)
    with pytest.raises(ValueError, match="delay must be from 1 to max_delay = 3 steps, got 4"):
        online.learn_delayed("a", 4)
    with pytest.raises(ValueError, match="y must be a label"):
        online.learn_delayed(None, 1)


SETTINGS: dict[str, dict[str, Any]] = {
    "every-step": {},
    "chunks": {"chunk_length": 5, "standardize": True},
    "late": {"chunk_length": 3, "max_delay": 4, "classes": ()},
}


NUMPY_LABELS = [np.int64(3), np.str_("walk"), np.float64(0.5), (np.bool_(True), np.int32(4))]


def reloaded(state_dict: dict[str, Any]) -> Any:
    """Save and load without pickle's other classes."""
    file = io.BytesIO()
    torch.save(state_dict, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def live(online: fptt.OnlineLearner, steps: range) -> list[Any]:
    """Predict, then learn, and leave out some labels."""
    inputs, labels = stream()
    answers = []
    for step in steps:
        answers.append(online.predict_one(inputs[step]))
        if online.max_delay:
            online.learn_one(inputs[step])
            if step >= 3 and step % 4:
                online.learn_delayed(labels[step - 3], 4)
        else:
            online.learn_one(inputs[step], labels[step] if step % 3 else None)
    return answers


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
@pytest.mark.parametrize("kind", [fptt.nn.LSTM, fptt.nn.GRU])
@pytest.mark.parametrize("after", [0, 1, 7, 12])
def test_saved_and_loaded_resumes_bitwise(settings: dict[str, Any], kind: Callable[..., nn.Module], after: int) -> None:
    def make(seed: int) -> fptt.OnlineLearner:
        torch.manual_seed(seed)
        return learner(kind(D, 5, C), **settings)

    undisturbed, saved, restored = make(0), make(0), make(3)
    answers = live(undisturbed, range(T))
    assert live(saved, range(after)) == answers[:after]
    saved.predict_one(stream()[0][after])
    restored.load_state_dict(reloaded(saved.state_dict()))
    assert live(restored, range(after, T)) == answers[after:]
    assert_same_weights(undisturbed.method.model, restored.method.model)
    assert (restored.steps, restored.labels) == (undisturbed.steps, undisturbed.labels)
    assert torch.equal(undisturbed.predict_many(stream()[0]), restored.predict_many(stream()[0]))


@pytest.mark.parametrize("classes", [(), NUMPY_LABELS], ids=["open", "given"])
def test_labels_and_names_of_numpy_are_saved_as_pythons_own(classes: Any) -> None:
    online = learner(classes=classes)
    names = np.array(["p", "q", "r"])
    for label, x in zip(NUMPY_LABELS, stream()[0].tolist(), strict=False):
        online.learn_one(dict(zip(names, x, strict=True)), label)
    probabilities = online.predict_proba_one({"p": 1, "q": 2, "r": 3})
    assert list(map(type, probabilities)) == [int, str, float, tuple]
    assert list(probabilities) == [3, "walk", 0.5, (True, 4)]
    restored = learner(classes=classes)
    restored.load_state_dict(reloaded(online.state_dict()))
    assert restored.predict_proba_one({"p": 1, "q": 2, "r": 3}) == probabilities
    assert online.state_dict()["targets"] == restored.state_dict()["targets"]


@pytest.mark.parametrize("labels", [["a", "b"], [3, -1], [0.5, 2.5], [True, False], [("a", 1), ("b", (2.5, False))]])
def test_a_saved_learner_is_read_without_pickle(labels: list[Any]) -> None:
    online, restored = learner(classes=(), chunk_length=2), learner(classes=(), chunk_length=2)
    for label, x in zip(labels * 2, stream()[0], strict=False):
        online.learn_one(x, label)
    restored.load_state_dict(reloaded(online.state_dict()))
    assert restored.predict_proba_one(stream()[0][9]) == online.predict_proba_one(stream()[0][9])
    assert list(online.predict_proba_one(stream()[0][9])) == labels


@pytest.mark.parametrize("label", [datetime.date(2026, 1, 2), frozenset("a"), ("a", (1, Fraction(1, 2)))], ids=str)
def test_a_label_that_cannot_be_read_without_pickle_is_named_where_it_is_saved(label: Any) -> None:
    online = learner(classes=())
    online.learn_many(torch.ones(2, D), [("a", (1.5, None, True)), label])
    with pytest.warns(UserWarning, match=rf"will not read the label .*, a {type(label).__name__}: give labels as"):
        saved = online.state_dict()
    with pytest.raises(pickle.UnpicklingError):
        reloaded(saved)
    online.load_state_dict(saved)  # in memory it is a snapshot like any other
    assert list(online.predict_proba_one(torch.ones(D)))[1] == label
    online = learner(classes=())
    online.learn_one(torch.ones(D), ("a", (1.5, None, True)))
    assert reloaded(online.state_dict())["targets"] == {"labels": [("a", (1.5, None, True))]}


def test_a_state_is_a_snapshot_that_any_number_of_learners_go_on_from() -> None:
    saved, copied, other = (learner(chunk_length=2) for _ in range(3))
    inputs, labels = stream()
    saved.learn_many(inputs[:7], labels[:7])
    state_dict, before = saved.state_dict(), saved.predict_many(inputs).clone()
    for online in (copied, other):
        online.load_state_dict(state_dict)
        online.learn_many(inputs[7:], labels[7:])
    saved.learn_many(inputs[7:], labels[7:])  # as if it were the only one: no weights or moments in common
    torch.testing.assert_close(saved.predict_many(inputs), copied.predict_many(inputs), rtol=0, atol=0)
    torch.testing.assert_close(saved.predict_many(inputs), other.predict_many(inputs), rtol=0, atol=0)
    for _ in range(2):  # rolled back, also a second time
        saved.load_state_dict(state_dict)
        assert (saved.steps, saved.method.updates) == (7, 3)
        torch.testing.assert_close(saved.predict_many(inputs), before, rtol=0, atol=0)
        saved.learn_many(inputs[7:], labels[7:])
        torch.testing.assert_close(saved.predict_many(inputs), copied.predict_many(inputs), rtol=0, atol=0)


def test_a_model_without_a_state_is_resumed_in_the_middle_of_a_chunk() -> None:
    class Pointwise(nn.Linear):
        def forward(self, inputs: Tensor, state: None = None) -> tuple[Tensor, None]:  # pyright: ignore
            return super().forward(inputs), state

    torch.manual_seed(2)
    online, restored = (learner(Pointwise(D, C), chunk_length=2, max_delay=2, classes=()) for _ in range(2))
    inputs = stream()[0]
    online.learn_many(inputs[:2])
    restored.load_state_dict(reloaded(online.state_dict()))
    for either in (online, restored):
        either.learn_delayed("a", 2)
        either.learn_delayed("b", 1)
    assert restored.method.updates == 1
    assert_same_weights(online.method.model, restored.method.model)


def test_a_state_dict_of_something_else_is_refused() -> None:
    online = learner()
    with pytest.raises(ValueError, match="state_dict must be that of an OnlineLearner"):
        online.load_state_dict(online.method.state_dict())
    nothing: Any = None
    with pytest.raises(TypeError, match="state_dict must be that of an OnlineLearner, got a NoneType"):
        online.load_state_dict(nothing)
    with pytest.raises(ValueError, match="classes must be those of the saved learner"):
        online.load_state_dict(learner(classes=["d", "c", "b", "a"]).state_dict())
    with pytest.raises(ValueError, match="classes must be those of the saved learner"):
        online.load_state_dict(learner(classes=None).state_dict())


def test_classes_are_numbered_as_they_come() -> None:
    online = learner(classes=(), chunk_length=2)
    x = torch.ones(D)
    assert online.predict_one(x) is None
    assert online.predict_proba_one(x) == {}
    online.learn_one(x, "walk")
    assert online.predict_one(x) == "walk"
    assert online.predict_proba_one(x) == {"walk": 1.0}
    for label in (7, None, (1, 2), "walk", "run"):
        online.learn_one(x, label)
    chances = online.predict_proba_one(x)
    assert list(chances) == ["walk", 7, (1, 2), "run"]
    assert sum(chances.values()) == pytest.approx(1)
    assert max(chances, key=chances.__getitem__) == online.predict_one(x)
    with pytest.raises(ValueError, match=r"y must be one of the classes .* model has 4, got 'fifth'"):
        online.learn_one(x, "fifth")
    with pytest.raises(ValueError, match=r"model has 4, got 0\.5\. Numbers of a regression need classes=None\.$"):
        online.learn_one(x, 0.5)
    with pytest.raises(TypeError, match="y must be a class label that can be hashed"):
        online.learn_one(x, ["walk"])
    assert online.steps == 6


def test_features_may_come_in_any_order() -> None:
    named, bare = learner(), learner()
    inputs, labels = stream()
    for x, y in zip(inputs.tolist(), labels, strict=True):
        pairs = list(zip("pqr", x, strict=True))
        assert named.predict_one(dict(pairs if named.steps % 2 == 0 else reversed(pairs))) == bare.predict_one(x)
        named.learn_one(dict(reversed(pairs) if named.steps else pairs), y)
        bare.learn_one(x, y)
    assert_same_weights(named.method.model, bare.method.model)
    with pytest.raises(ValueError, match=r"\['r'\] missing, \['s'\] unknown"):
        named.learn_one({"p": 1, "q": 2, "s": 3})
    with pytest.raises(FloatingPointError, match=r"x holds NaN or Inf in \['q'\]"):
        named.predict_one({"p": 1, "q": float("nan"), "r": 3})
    with pytest.raises(TypeError, match="x must hold numbers"):
        named.learn_one({"p": 1, "q": "two", "r": 3})
    with pytest.raises(ValueError, match=r"shape \(3,\) as at first, got .* shape \(2,\)"):
        bare.learn_one([1.0, 2.0])
    with pytest.raises(FloatingPointError, match="x holds NaN or Inf"):
        bare.predict_one(torch.full((D,), torch.inf))
    with pytest.raises(ValueError, match="x must be numbers as the first step was"):
        bare.learn_one({"p": 1, "q": 2, "r": 3})
    assert named.steps == bare.steps == T
    mixed = learner()
    mixed.learn_one({"q": 1, 2: 2, None: 3})
    assert torch.equal(mixed.predict_many([{None: 3, "q": 1, 2: 2}]), mixed.predict_many([[1, 2, 3]]))


def test_a_first_step_that_cannot_be_used_decides_nothing() -> None:
    online = learner()
    for x in ({"p": 1, "q": "two"}, {}, {"p": float("inf")}, [], [1.0]):
        with pytest.raises((TypeError, ValueError, FloatingPointError)):
            online.learn_one(x)
    online.learn_one({"u": 1, "v": 2, "w": 3}, "a")
    assert online.steps == 1


def test_memory_that_is_written_again_does_not_change_what_waits() -> None:
    inputs, labels = stream()
    one, other = learner(chunk_length=4), learner(chunk_length=4)
    learn(one)
    memory = torch.empty(D)
    for step in range(T):
        memory.copy_(inputs[step])
        other.predict_one(memory)
        other.learn_one(memory, labels[step])
    assert_same_weights(one.method.model, other.method.model)


def test_inputs_are_standardized_by_the_steps_before() -> None:
    seen: list[Tensor] = []
    online = learner(chunk_length=6, standardize=True)
    inputs = stream()[0] * torch.tensor([1e-3, 1.0, 0.0]) + torch.tensor([5.0, -1e3, 7.0])
    online.method.model.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0][:, 0]))
    online.learn_many(inputs[:10])
    online.learn_many(inputs[10:])
    online.flush()
    scaled = torch.cat([rows for rows in seen if len(rows) == 6])  # those of training
    exact = inputs.double()
    for step in range(T):
        before = exact[:step]
        expected = torch.zeros(D, dtype=torch.float64)
        if step > 1:
            deviation = before.std(0, correction=0)
            expected[:2] = ((exact[step] - before.mean(0)) / deviation)[:2]
        torch.testing.assert_close(scaled[step].double(), expected, rtol=1e-4, atol=1e-4)
    by_ones = learner(chunk_length=6, standardize=True)
    for x in inputs:
        by_ones.learn_one(x)
    assert torch.equal(by_ones.predict_many(inputs), online.predict_many(inputs))
    with pytest.raises(ValueError, match="x must be floating-point numbers with standardize=True"):
        learner(standardize=True).predict_one(torch.tensor([1, 2, 3]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("missing", ["error", "hold"])
def test_digits_that_the_model_does_not_have_are_scaled(dtype: torch.dtype, missing: Any) -> None:
    """The seconds since 1970, which are two minutes apart in float32, have the scale of the seconds since today."""
    near, far = (learner(standardize=True, missing=missing) for _ in range(2))
    for online, begin in ((near, 0.0), (far, 1_700_000_000.0)):
        online.method.model.to(dtype)
        for step in range(12):
            online.learn_one({"time": begin + step % 5, "speed": 0.5 * (step % 3), "pulse": 60.0}, "a")
    probabilities = [
        online.predict_proba_one({"time": begin + 2.5, "speed": 0.0, "pulse": 60.0})
        for online, begin in ((near, 0.0), (far, 1_700_000_000.0))
    ]
    assert probabilities[0] == probabilities[1]
    resumed = learner(standardize=True, missing=missing)
    resumed.method.model.to(dtype)
    resumed.load_state_dict(far.state_dict())
    x = {"time": 1_700_000_001.0, "speed": 1.0, "pulse": 60.0}
    assert resumed.predict_proba_one(x) == far.predict_proba_one(x)
    with pytest.raises(FloatingPointError, match=r"x holds NaN or Inf in \['speed'\]"):
        far.learn_one({**x, "speed": 1e200})  # its square would stay in the scale


def test_a_step_that_is_refused_does_not_move_the_scale() -> None:
    refused, other = (learner(standardize=True) for _ in range(2))
    inputs, labels = stream()
    for online in (refused, other):
        online.learn_many(inputs[:5], labels[:5])
    with pytest.raises(ValueError, match="y must be one of the classes"):
        refused.learn_one(100 * inputs[5], "unknown")
    with pytest.raises(ValueError, match="y must be one of the classes"):
        refused.learn_many(100 * inputs[5:8], [*labels[5:7], "unknown"])
    assert torch.equal(refused.predict_many(inputs[5:]), other.predict_many(inputs[5:]))
    assert (refused.steps, refused.labels) == (5, 5)


def test_a_regression_answers_numbers() -> None:
    model = fptt.nn.GRU(1, 8, 1)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    loss = fptt.SequenceLoss(functional.mse_loss)
    online = fptt.OnlineLearner(fptt.FPTT(model, optimizer, loss, chunk_length=4, max_norm=1.0), classes=None)
    errors = []
    for step in range(1200):  # the next value of a sine
        now, following = torch.sin(torch.tensor([step / 4, (step + 1) / 4])).tolist()
        answer = online.predict_one([now])
        assert isinstance(answer, float)
        errors.append((answer - following) ** 2)
        online.learn_one([now], following)
    assert sum(errors[-200:]) < 0.05 * sum(errors[:200])
    for y, error in (("much", TypeError), (float("nan"), ValueError), ([1.0, 2.0], ValueError)):
        with pytest.raises(error, match="y must be"):
            online.learn_one([0.0], y)
    with pytest.raises(TypeError, match="predict_proba_one needs classes"):
        online.predict_proba_one([0.0])


def test_several_numbers_are_answered_as_a_list() -> None:
    model, loss = lstm(), fptt.SequenceLoss(functional.mse_loss)
    method = fptt.FPTT(model, torch.optim.Adam(model.parameters(), lr=0.05), loss, chunk_length=1)
    online = fptt.OnlineLearner(method, classes=None)
    online.learn_one([0, 1, 2], [1, 2, 3, 4])
    answer = online.predict_one([0, 1, 2])
    assert [type(value) for value in answer] == [float] * C
    assert online.method.updates == 1


def test_a_rule_with_a_memory_is_learned() -> None:
    """The class is the input of two steps ago."""
    generator = torch.Generator().manual_seed(0)
    symbols = torch.randint(3, (3000,), generator=generator).tolist()
    torch.manual_seed(0)
    model = fptt.nn.LSTM(3, 24, 3)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    online = fptt.OnlineLearner(fptt.FPTT(model, optimizer, cross_entropy(), chunk_length=6, max_norm=1.0))
    right = 0
    for step in range(2, len(symbols)):
        x = {str(symbol): float(symbols[step] == symbol) for symbol in range(3)}
        right += step >= 2500 and online.predict_one(x) == symbols[step - 2]
        online.learn_one(x, symbols[step - 2])
    assert right > 450


@pytest.mark.parametrize("kind", [fptt.BPTT, fptt.TBPTT])
def test_a_method_of_ones_own(kind: type[fptt.Method]) -> None:
    model = lstm()
    method = kind(model, torch.optim.Adam(model.parameters(), lr=0.05), cross_entropy(), chunk_length=4)
    online = fptt.OnlineLearner(method, classes=LABELS)
    reference = learner(chunk_length=4, alpha=0)
    learn(online)
    learn(reference)
    assert_same_weights(model, reference.method.model)


@pytest.mark.usefixtures("both_ways")
def test_a_compiled_method() -> None:
    model = lstm()
    method = fptt.FPTT(
        model, torch.optim.Adam(model.parameters(), lr=0.05), cross_entropy(), chunk_length=1, engine="compiled"
    )
    online, reference = fptt.OnlineLearner(method, classes=LABELS), learner()
    inputs = stream()[0]
    for either in (online, reference):
        learn(either)
    torch.testing.assert_close(online.predict_many(inputs), reference.predict_many(inputs), rtol=1e-3, atol=1e-4)
    late = fptt.OnlineLearner(method, classes=LABELS, max_delay=2)
    late.learn_many(inputs[:2])
    before = late.predict_many(inputs[2:])
    late.learn_delayed("a", 2)
    assert not torch.equal(late.predict_many(inputs[2:]), before)  # of the weights after the update


@pytest.mark.parametrize(
    ("settings", "options", "message"),
    [
        ({"num_chunks": 4}, {}, "method must have a chunk_length"),
        ({"chunk_length": 2, "batch_first": True}, {}, "method must .* be time-major"),
        ({"chunk_length": 2, "num_duals": 4}, {}, "num_duals must be 1"),
        ({"chunk_length": 2}, {"max_delay": -1}, "max_delay must be a number of steps"),
        ({"chunk_length": 2}, {"classes": ["a", "a"]}, "classes must be distinct"),
    ],
)
def test_methods_and_arguments_that_do_not_fit_a_stream_are_refused(
    settings: dict[str, Any], options: dict[str, Any], message: str
) -> None:
    model = nn.GRU(D, C, batch_first=settings.get("batch_first", False))
    method = fptt.FPTT(model, torch.optim.Adam(model.parameters()), cross_entropy(), **settings)
    with pytest.raises(ValueError, match=message):
        fptt.OnlineLearner(method, **options)


def test_a_model_and_a_loss_of_the_whole_sequence_are_refused() -> None:
    model: Any = lstm()
    with pytest.raises(TypeError, match="method must be an FPTT, TBPTT or BPTT, got a LSTM"):
        fptt.OnlineLearner(model)
    terminal = fptt.TerminalLoss(functional.cross_entropy)
    method = fptt.TBPTT(model, torch.optim.Adam(model.parameters()), terminal, chunk_length=2)
    with pytest.raises(ValueError, match="loss must be a SequenceLoss"):
        fptt.OnlineLearner(method)


def test_what_does_not_fit_the_model_is_refused() -> None:
    with pytest.raises(ValueError, match="classes must be at most 4"):
        learner(classes=range(5)).predict_one([0, 1, 2])
    with pytest.raises(ValueError, match="one output per step"):
        learner(lstm(last_only=True)).predict_many(torch.zeros(2, D))
    x: Any
    for x, shape in (([0.0, 1.0], "2,"), (1.5, "")):
        message = rf"x must be a step that the model takes, .* got one of shape \({shape}\): inputs must .* D = 3"
        for call in (learner().predict_one, learner().learn_one):
            with pytest.raises(ValueError, match=message):
                call(x)
    with pytest.raises(ValueError, match="targets must be one for each of 2 steps, got 1"):
        learner().learn_many(torch.zeros(2, D), ["a"])


def test_predictions_are_made_without_dropout_and_every_module_stays_in_its_mode() -> None:
    torch.manual_seed(1)
    model = fptt.nn.Recurrent(nn.GRU(D, 6), nn.Sequential(nn.Dropout(0.5), nn.Linear(6, C)))
    model.readout[1].eval()  # pyright: ignore
    online = learner(model)
    inputs = stream()[0]
    before = torch.get_rng_state()
    assert torch.equal(online.predict_many(inputs), online.predict_many(inputs.clone()))
    assert torch.equal(before, torch.get_rng_state())
    assert [module.training for module in model.modules()] == [True, True, True, True, False]


def test_tokens_stay_whole_numbers() -> None:
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding, self.rnn = nn.Embedding(5, D), lstm()

        def forward(self, inputs: Tensor, state: Any = None) -> tuple[Tensor, Any]:
            return self.rnn(self.embedding(inputs), state)

    online = learner(Tokens(), chunk_length=2)
    for token in (4, 0, 1):
        online.learn_one(torch.tensor(token), "a")
    assert online.method.updates == 1
    with pytest.raises(ValueError, match=r"x must be torch\.int64 of shape"):
        online.learn_one(1.5)


# -- gaps, regressions, errors -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [1, 4])
@pytest.mark.parametrize("standardize", [False, True])
def test_a_held_gap_is_the_value_before(length: int, standardize: bool) -> None:
    """NaN, None and a missing name; step by step and in one call; 0 before the first value, and after a reset."""
    inputs, labels = stream()
    gaps = torch.rand(T, D, generator=torch.Generator().manual_seed(7)) < 0.4
    filled = inputs.clone()
    for step in range(T):
        before = filled[step - 1] if step else torch.zeros(D)
        filled[step] = torch.where(gaps[step], before, inputs[step])
    assert gaps[0].any()
    settings: dict[str, Any] = {"chunk_length": length, "standardize": standardize}
    whole = learner(**settings)
    whole.learn_many(filled, labels)
    at_once, by_step, by_name, plain = (learner(missing="hold", **settings) for _ in range(4))
    at_once.learn_many(inputs.masked_fill(gaps, torch.nan), labels)
    plain.learn_many(filled, labels)
    for step in range(T):
        x = [None if gap else value for gap, value in zip(gaps[step].tolist(), inputs[step].tolist(), strict=True)]
        by_step.predict_one([None] * D)  # has no side effect on what is held
        by_step.learn_one(x, labels[step])
        names = dict(zip("abc", x, strict=True))
        by_name.learn_one({name: own for name, own in names.items() if step == 0 or own is not None}, labels[step])
    for other in (at_once, by_step, by_name, plain):
        assert_same_weights(whole.method.model, other.method.model)
    answer = by_step.predict_many(torch.full((1, D), torch.nan))
    assert torch.equal(answer, whole.predict_many(filled[-1:]))
    resumed = learner(missing="hold", **settings)
    buffer = io.BytesIO()
    torch.save(by_step.state_dict(), buffer)
    buffer.seek(0)
    resumed.load_state_dict(torch.load(buffer, weights_only=True))
    assert torch.equal(resumed.predict_many(torch.full((1, D), torch.nan)), answer)
    by_step.reset()
    whole.reset()
    assert torch.equal(by_step.predict_many(torch.full((1, D), torch.nan)), whole.predict_many(torch.zeros(1, D)))


def test_gaps_are_errors_unless_they_are_held() -> None:
    for online, message in ((learner(), "holds NaN or Inf"), (learner(missing="hold"), "holds NaN or Inf")):
        online.learn_one([0.0, 1.0, 2.0], "a")
        with pytest.raises(FloatingPointError, match=message):
            online.learn_one([0.0, float("inf"), 2.0], "a")
    with pytest.raises(FloatingPointError, match="holds NaN"):
        learner().learn_one([0.0, float("nan"), 2.0], "a")
    online = learner()
    online.learn_one({"a": 0, "b": 1, "c": 2}, "a")
    with pytest.raises(ValueError, match=r"\['b'\] missing, \[\] unknown. missing='hold' keeps the values before"):
        online.learn_one({"a": 0, "c": 1}, "a")
    held = learner(missing="hold")
    held.learn_one({"a": 0, "b": 1, "c": 2}, "a")
    with pytest.raises(ValueError, match=r"\['d'\] unknown"):
        held.learn_one({"a": 0, "d": 1}, "a")
    with pytest.raises(TypeError, match=r"x must hold numbers, got \['1.5', .*: text, which float\(\) may convert"):
        learner().learn_one({"a": "1.5", "b": "2", "c": "3"}, "a")
    with pytest.raises(TypeError, match=r"x must hold numbers, got \[0.0, None, 2.0\]: a gap, .* missing='hold' keeps"):
        learner().learn_one([0.0, None, 2.0], "a")
    with pytest.raises(ValueError, match="missing must be one of 'error', 'hold', got 'skip'"):
        learner(missing="skip")
    with pytest.raises(ValueError, match="window must be a positive integer, got 0"):
        learner(window=0)


@pytest.mark.parametrize("loss", [functional.mse_loss, nn.L1Loss(), functional.cross_entropy, nn.CrossEntropyLoss()])
def test_a_loss_of_torch_tells_a_regression(loss: Any) -> None:
    model = fptt.nn.GRU(2, 4, 1 if loss in (functional.mse_loss,) or isinstance(loss, nn.L1Loss) else 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    online = fptt.OnlineLearner(fptt.FPTT(model, optimizer, fptt.SequenceLoss(loss), chunk_length=1))
    online.learn_one([0.0, 1.0], 20.5)
    online.learn_one([0.0, 1.0], 20.25)
    answer = online.predict_one([0.0, 1.0])
    if model(torch.zeros(1, 1, 2))[0].shape[-1] == 3:  # two classes, named by numbers
        assert answer in (20.5, 20.25)
    else:
        assert answer not in (20.5, 20.25)
        assert online.method.updates == 2


@pytest.mark.parametrize(
    ("loss", "classes"),
    [
        (functional.binary_cross_entropy_with_logits, ()),
        (nn.BCELoss(), ()),
        (nn.SoftMarginLoss(), [False]),
        (functional.mse_loss, ["a"]),
    ],
)
def test_a_loss_that_takes_no_labels_is_not_given_any(loss: Any, classes: Any) -> None:
    model = fptt.nn.GRU(2, 4, 1)
    method = fptt.FPTT(model, torch.optim.SGD(model.parameters(), lr=0.1), fptt.SequenceLoss(loss), chunk_length=1)
    name = getattr(loss, "__name__", type(loss).__name__)
    with pytest.raises(ValueError, match=rf"classes must be None with {name}, .* two of a binary one, got classes=\["):
        fptt.OnlineLearner(method, classes=classes)
    online = fptt.OnlineLearner(method, classes=None)
    with pytest.raises(TypeError, match="predict_proba_one needs classes, got a learner of numbers"):
        online.predict_proba_one([0.0, 1.0])
    assert (online.has_classes, learner().has_classes) == (False, True)


def test_marks_are_learned_as_numbers() -> None:
    """log(1 + e⁰) at a logit of 0 has the gradient ½ − 1 for a bias: a step of 0.1 · 0.5."""
    model = fptt.nn.GRU(2, 4, 1)
    readout = list(model.readout.parameters())
    for param in readout:
        nn.init.zeros_(param)
    loss = fptt.SequenceLoss(functional.binary_cross_entropy_with_logits)
    method = fptt.TBPTT(model, torch.optim.SGD(model.parameters(), lr=0.1), loss, chunk_length=1)
    fptt.OnlineLearner(method, classes=None).learn_one([0.0, 1.0], True)
    assert readout[-1].item() == pytest.approx(0.05)


@CHUNKS
@pytest.mark.parametrize("max_delay", [0, 3])
def test_the_error_is_that_of_the_predictions_before_learning(length: int, max_delay: int) -> None:
    """Of `predict_one`, in a window, with labels at once, late, or not at all; classes as they come."""
    inputs, labels = stream()
    online = learner(chunk_length=length, max_delay=max_delay, classes=(), window=7)
    assert online.error is None
    wrong: list[bool] = []
    waiting: list[tuple[int, Any]] = []
    for step in range(T):
        answer = online.predict_one(inputs[step])
        if step % 5 == 3:  # without a label
            online.learn_one(inputs[step])
        elif max_delay and step % 2:
            online.learn_one(inputs[step])
            waiting.append((step, answer))
        else:
            online.learn_one(inputs[step], labels[step])
            wrong.append(answer != labels[step])
        if waiting and step - waiting[0][0] == max_delay - 1:
            late, answer = waiting.pop(0)
            online.learn_delayed(labels[late], max_delay)
            wrong.append(answer != labels[late])
        assert online.error == (sum(wrong[-7:]) / len(wrong[-7:]) if wrong else None)
    assert 0 < sum(wrong) < len(wrong)
    resumed = learner(chunk_length=length, max_delay=max_delay, classes=(), window=7)
    resumed.load_state_dict(online.state_dict())
    assert resumed.error == online.error
    silent = learner(chunk_length=length, max_delay=max_delay, classes=())
    silent.load_state_dict(online.state_dict())
    assert silent.error is None
    assert_same_weights(silent.method.model, online.method.model)


def test_a_state_without_predictions_forgets_those_of_the_stream_before() -> None:
    measured, silent = learner(max_delay=2, window=5), learner(max_delay=2)
    inputs, labels = stream()
    for online in (measured, silent):
        online.learn_one(inputs[0], labels[0])
        online.learn_one(inputs[1])
    assert measured.error is not None
    measured.load_state_dict(silent.state_dict())
    assert measured.error is None
    measured.learn_delayed(labels[1], 1)
    assert measured.error is None  # the prediction of that step is not known


def test_the_error_of_a_regression_is_the_mean_absolute_one() -> None:
    model, loss = lstm(), fptt.SequenceLoss(functional.mse_loss)
    method = fptt.FPTT(model, torch.optim.SGD(model.parameters(), lr=0.05), loss, chunk_length=2)
    online = fptt.OnlineLearner(method, window=3)
    inputs, _ = stream()
    targets = torch.randn(T, C)
    errors = []
    for start in range(0, T, 2):
        answers = online.predict_many(inputs[start : start + 2])
        errors += (answers - targets[start : start + 2]).abs().mean(1).tolist()
        online.learn_many(inputs[start : start + 2], targets[start : start + 2])
        assert online.error == pytest.approx(np.mean(errors[-3:]), rel=1e-5)


def test_errors_of_one_call_are_those_of_many() -> None:
    """Of classes that are numbered as they come: a later chunk of a call can predict what an earlier one showed."""
    inputs, labels = stream()
    errors = []
    for size in (T, 5, 1):
        online = learner(chunk_length=5, classes=(), window=T)
        for start in range(0, T, size):
            online.learn_many(inputs[start : start + size], labels[start : start + size])
        errors.append(online.error)
    assert errors[0] == errors[1]
    assert errors[0] < 1


# -- labels, arguments and states that cannot be -----------------------------------------------------------------------


class NotAvailable:
    """A missing value whose comparisons have no truth, as pandas' NA."""

    def __eq__(self, other: object) -> Any:
        return self

    __ne__ = __eq__

    def __hash__(self) -> int:
        return 0

    def __bool__(self) -> bool:
        raise TypeError("boolean value of NA is ambiguous")


MISSING = [
    float("nan"),
    np.float64("nan"),
    torch.tensor(torch.nan),
    np.datetime64("NaT"),
    NotAvailable(),
    ("a", np.nan),
]


@pytest.mark.parametrize("label", MISSING, ids=lambda label: type(label).__name__)
def test_a_missing_label_is_no_class(label: Any) -> None:
    online = learner(classes=())
    with pytest.raises(ValueError, match="y must be a class label, or None where there is none"):
        online.learn_one(torch.ones(D), label)
    assert (online.steps, online.predict_proba_one(torch.ones(D))) == (0, {})
    with pytest.raises(ValueError, match="y must be a class label, or None where there is none"):
        learner(classes=["a", label])


@pytest.mark.parametrize("label", [torch.tensor([1]), np.array([1]), (torch.tensor([1]), 2), torch.tensor(1j)], ids=str)
def test_a_label_of_several_numbers_is_no_class(label: Any) -> None:
    with pytest.raises(TypeError, match=r"y must be a class label, one number or text, got .*1"):
        learner(classes=()).learn_one(torch.ones(D), label)


def test_the_labels_of_a_refused_call_are_forgotten() -> None:
    online = learner(classes=())
    inputs = stream()[0]
    online.learn_many(inputs[:2], ["a", "b"])
    for last, error in (("e", ValueError), (["e"], TypeError)):
        with pytest.raises(error, match="y must be"):
            online.learn_many(inputs[:4], ["b", "c", "d", last])
        assert list(online.predict_proba_one(inputs[0])) == ["a", "b"]
    online.learn_many(inputs[:2], ["d", "c"])
    assert list(online.predict_proba_one(inputs[0])) == ["a", "b", "d", "c"]


@pytest.mark.parametrize(
    "settings", [{"standardize": True}, {"missing": "hold"}, {"max_delay": 2}, {"chunk_length": 3}], ids=str
)
def test_a_learner_with_other_settings_is_not_loaded(settings: dict[str, Any]) -> None:
    (name,) = settings
    saved, other = learner(**settings), learner()
    saved.learn_many(stream()[0][:5], stream()[1][:5])
    with pytest.raises(ValueError, match=f"{name} must be that of the saved learner"):
        other.load_state_dict(saved.state_dict())
    earlier = learner(**settings).state_dict()
    del earlier["settings"]  # as a version without them saved it
    learner(**settings).load_state_dict(earlier)


def test_a_state_that_cannot_be_loaded_changes_nothing() -> None:
    def running() -> fptt.OnlineLearner:
        online = learner(classes=(), chunk_length=3, max_delay=4)
        live(online, range(7))
        return online

    undisturbed, refusing = running(), running()
    torch.manual_seed(5)
    wider = learner(fptt.nn.LSTM(D, 6, C), classes=(), chunk_length=3, max_delay=4)
    wider.learn_many(stream()[0], [*"wxyz"] * (T // 4))
    with pytest.raises(RuntimeError, match="size mismatch"):
        refusing.load_state_dict(wider.state_dict())
    no_counters = running().state_dict() | {"counters": {}}
    no_counters["model"] = lstm().state_dict()
    with pytest.raises(KeyError):
        refusing.load_state_dict(no_counters)
    assert live(refusing, range(7, T)) == live(undisturbed, range(7, T))
    assert_same_weights(undisturbed.method.model, refusing.method.model)
    assert list(refusing.predict_proba_one(stream()[0][0])) == list(undisturbed.predict_proba_one(stream()[0][0]))


def test_names_are_not_taken_for_labels() -> None:
    pandas = pytest.importorskip("pandas")
    online = learner(classes=())
    targets: Any
    for targets in (pandas.DataFrame({"target": [1]}), {"a": 1}, "a", 0):
        name = type(targets).__name__
        with pytest.raises(TypeError, match=f"targets must be a list of labels, .*, got a {name}"):
            online.learn_many(torch.ones(1, D), targets)
    for targets in (pandas.Series(["a"], index=[7]), ("a",), iter("a")):
        online.learn_many(torch.ones(1, D), targets)
    assert list(online.predict_proba_one(torch.ones(D))) == ["a"]


def test_arguments_of_another_kind_are_named() -> None:
    classes: Any
    for classes in (3, "ab", b"ab"):
        with pytest.raises(TypeError, match=f"classes must be a list of all labels, got {classes!r}"):
            learner(classes=classes)
    late = learner(max_delay=2)
    late.learn_one(torch.ones(D))
    delay: Any = 1.0
    with pytest.raises(TypeError, match=r"delay must be a whole number of steps, got 1\.0"):
        late.learn_delayed("a", delay)
    late.learn_delayed("a", np.int64(1))  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match=r"x must hold numbers of torch\.float32, got one that is too large"):
        late.learn_one([0, 10**400, 0], "a")
    model = fptt.nn.LSTM(D, 5, 1)
    method = fptt.TBPTT(
        model, torch.optim.Adam(model.parameters()), fptt.SequenceLoss(functional.mse_loss), chunk_length=1
    )
    with pytest.raises(ValueError, match="y must be numbers of float64, got one that is too large"):
        fptt.OnlineLearner(method).learn_one([0, 1, 2], 10**400)
