import io
from collections.abc import Callable
from typing import Any

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


def learner(model: nn.Module | None = None, lr: float = 0.05, **options: Any) -> fptt.OnlineLearner:
    model = lstm() if model is None else model
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    return fptt.OnlineLearner(model, optimizer, cross_entropy(), **{"classes": LABELS, **options})


def stream(seed: int = 0) -> tuple[Tensor, list[str]]:
    generator = torch.Generator().manual_seed(seed)
    numbers = torch.randint(C, (T,), generator=generator)
    return torch.randn(T, D, generator=generator), [LABELS[number] for number in numbers.tolist()]


def learn(online: fptt.OnlineLearner, steps: range = range(T), labels: list[Any] | None = None) -> None:
    inputs, own = stream()
    for step in steps:
        online.learn_one(inputs[step], (own if labels is None else labels)[step])


# -- what is learned -------------------------------------------------------------------------------------------------


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
def test_asking_changes_nothing_and_a_chunk_is_its_steps(length: int) -> None:
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


def test_steps_without_a_label_do_not_count_and_a_chunk_without_any_makes_no_update() -> None:
    """By hand: the mean over the labeled steps of a chunk, from the state after all steps."""
    model, mirror = lstm().double(), lstm().double()
    loss = cross_entropy()
    online = fptt.OnlineLearner(
        model, torch.optim.SGD(model.parameters(), lr=0.3), loss, chunk_length=3, alpha=0, classes=LABELS
    )
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


@CHUNKS
@pytest.mark.parametrize("delay", [1, 3, 9])
def test_a_delay_changes_when_a_stream_is_learned_and_not_what(length: int, delay: int) -> None:
    punctual, late = learner(chunk_length=length), learner(chunk_length=length, max_delay=delay)
    inputs, labels = stream()
    learn(punctual)
    punctual.flush()
    for step in range(T):
        late.learn_one(inputs[step])
        assert len(late._waiting) <= length + delay
        if step + 1 >= delay:
            late.learn_delayed(labels[step + 1 - delay], delay)
        assert late.method.updates == max(step + 2 - delay, 0) // length
    for steps_ago in range(delay - 1, 0, -1):
        late.learn_delayed(labels[T - steps_ago], steps_ago)
    late.flush()
    assert_same_weights(punctual.method.model, late.method.model)
    assert late.labels == punctual.labels == T
    torch.testing.assert_close(punctual.predict_many(inputs), late.predict_many(inputs))


def test_asking_changes_nothing_when_a_late_label_comes_between_asking_and_telling() -> None:
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


# -- restarts --------------------------------------------------------------------------------------------------------

SETTINGS: dict[str, dict[str, Any]] = {
    "every-step": {},
    "chunks": {"chunk_length": 5, "standardize": True},
    "late": {"chunk_length": 3, "max_delay": 4, "classes": ()},
}


def live(online: fptt.OnlineLearner, steps: range) -> list[Any]:
    """Ask and tell, and leave out some labels."""
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
def test_saved_and_loaded_goes_on_bit_for_bit(
    settings: dict[str, Any], kind: Callable[..., nn.Module], after: int
) -> None:
    def make(seed: int) -> fptt.OnlineLearner:
        torch.manual_seed(seed)
        return learner(kind(D, 5, C), **settings)

    undisturbed, saved, restored = make(0), make(0), make(3)
    answers = live(undisturbed, range(T))
    assert live(saved, range(after)) == answers[:after]
    saved.predict_one(stream()[0][after])
    file = io.BytesIO()
    torch.save(saved.state_dict(), file)
    file.seek(0)
    restored.load_state_dict(torch.load(file, weights_only=True))
    assert live(restored, range(after, T)) == answers[after:]
    assert_same_weights(undisturbed.method.model, restored.method.model)
    assert (restored.steps, restored.labels) == (undisturbed.steps, undisturbed.labels)
    assert torch.equal(undisturbed.predict_many(stream()[0]), restored.predict_many(stream()[0]))


def test_a_state_dict_of_something_else_is_refused() -> None:
    online = learner()
    with pytest.raises(ValueError, match="state_dict must be that of an OnlineLearner"):
        online.load_state_dict(online.method.state_dict())
    with pytest.raises(ValueError, match="classes must be those of the saved learner"):
        online.load_state_dict(learner(classes=["d", "c", "b", "a"]).state_dict())
    with pytest.raises(ValueError, match="classes must be those of the saved learner"):
        online.load_state_dict(learner(classes=None).state_dict())


# -- labels and features ---------------------------------------------------------------------------------------------


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
    with pytest.raises(ValueError, match="x must be floating-point numbers with standardize=True"):
        learner(standardize=True).predict_one(torch.tensor([1, 2, 3]))


# -- regression, methods, models -------------------------------------------------------------------------------------


def test_a_regression_answers_numbers() -> None:
    model = fptt.nn.GRU(1, 8, 1)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    loss = fptt.SequenceLoss(functional.mse_loss)
    online = fptt.OnlineLearner(model, optimizer, loss, chunk_length=4, classes=None, max_norm=1.0)
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
    online = learner(classes=None)
    online.method.loss = fptt.SequenceLoss(functional.mse_loss)
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
    online = fptt.OnlineLearner(model, optimizer, cross_entropy(), chunk_length=6, max_norm=1.0)
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
    online = fptt.OnlineLearner.from_method(method, classes=LABELS)
    reference = learner(chunk_length=4, alpha=0)
    learn(online)
    learn(reference)
    assert_same_weights(model, reference.method.model)


@pytest.mark.machine_code
def test_a_compiled_method() -> None:
    model = lstm()
    method = fptt.FPTT(
        model, torch.optim.Adam(model.parameters(), lr=0.05), cross_entropy(), chunk_length=1, engine="compiled"
    )
    online, reference = fptt.OnlineLearner.from_method(method, classes=LABELS), learner()
    inputs = stream()[0]
    for either in (online, reference):
        learn(either)
    torch.testing.assert_close(online.predict_many(inputs), reference.predict_many(inputs), rtol=1e-3, atol=1e-4)


def test_methods_that_do_not_fit_a_stream_are_refused() -> None:
    model = lstm()
    optimizer = torch.optim.Adam(model.parameters())
    terminal = fptt.TerminalLoss(functional.cross_entropy)
    with pytest.raises(ValueError, match="loss must be a SequenceLoss"):
        fptt.OnlineLearner(model, optimizer, terminal)
    with pytest.raises(ValueError, match="num_duals must be 1"):
        fptt.OnlineLearner(model, optimizer, cross_entropy(), num_duals=4)
    with pytest.raises(ValueError, match="max_delay must be"):
        fptt.OnlineLearner(model, optimizer, cross_entropy(), max_delay=-1)
    with pytest.raises(ValueError, match="classes must be distinct"):
        fptt.OnlineLearner(model, optimizer, cross_entropy(), classes=["a", "a"])
    method = fptt.TBPTT(model, optimizer, cross_entropy(), num_chunks=4)  # the hooks of the others are gone
    with pytest.raises(ValueError, match="method must have a chunk_length"):
        fptt.OnlineLearner.from_method(method)
    with pytest.raises(ValueError, match="classes must be at most 4"):
        learner(classes=range(5)).predict_one([0, 1, 2])
    with pytest.raises(ValueError, match="one output per step"):
        learner(lstm(last_only=True)).predict_many(torch.zeros(2, D))
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
