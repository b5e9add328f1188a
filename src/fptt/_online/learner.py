"""Learner of a stream that predicts and learns one step after another, for as long as the stream lasts."""

import copy
import warnings
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor

from fptt._checks import check_choice, check_count, check_type, first_weight
from fptt._losses.chunk_loss import SequenceLoss
from fptt._losses.elementwise import name_of
from fptt._methods.method import Method
from fptt._online.forward import Forward
from fptt._online.inputs import Features, Missing, RunningMoments, standardize
from fptt._online.score import RunningScore
from fptt._online.targets import Classes, Numbers, Targets
from fptt._online.trainer import Trainer
from fptt._sequence import State, flatten_state


class OnlineLearner:
    """Learn from a stream that never ends, step by step: `predict_one(x)`, then `learn_one(x, y)`.

    `predict_one` has no side effect; `learn_one` advances the stream by one step. The hidden state is carried from step
    to step: a prediction is made from the state after all steps before, in evaluation mode. Weights change when a chunk
    is full: what is learned is what the method's `train_batch` makes of one chunk after another, with the state
    carried. Memory is that of `chunk_length + max_delay` steps.

    A label may come late: pass the step to `learn_one(x)` without it, and the label to `learn_delayed` when it comes. A
    chunk is learned when each of its steps has its label, or has waited `max_delay` steps for it; a step without a
    label does not count in the loss, but the state goes through it. Training then follows behind the predictions, with
    a hidden state of its own, and learns what it would without the delay, only later.

    Args:
        method: An `FPTT`, `TBPTT` or `BPTT` with a `chunk_length`, the number of steps of an update, a `SequenceLoss`
            and time-major data, eager or compiled. Its model is called as `model(inputs, state) -> (outputs, state)`
            with inputs (T, 1, …) and one output per step, (T, 1, C).
        classes: All class labels, any that can be hashed but NaN; empty to number them as they come, up to C; None for
            a regression, which a loss of torch that is one, as `mse_loss`, tells by itself, and for the outputs of
            `binary_cross_entropy` as numbers: two classes are two outputs and `cross_entropy`. `torch.load(…,
            weights_only=True)` reads those of a saved learner if they are numbers, bool, text, or tuples of these.
        max_delay: Steps that a label may be late: it is awaited until so many steps have followed.
        standardize: Scale every input by mean and deviation of the steps before it, also those before a `reset`, in
            float64, whatever the dtype of the model.
        missing: What a gap is, that is NaN, None, or a name that a mapping lacks: an `error`, or `hold`, the value
            before it, 0 before the first. Steps to skip need no call at all.
        window: Measure every prediction when its label comes, and let `error` be of the last `window` labels; None
            for no measure.

    Attributes:
        method: The `Method` that makes the updates, with its counters.
        steps, labels: Number of steps and labels so far.

    Raises:
        ValueError: If the method has no `chunk_length`, is batch-first, has a loss that is not per step, or several
            duals; `classes` are given with a loss of torch that takes no labels; or another argument is out of range.
        TypeError: If `method` is not a `Method`, or `classes` is no collection of labels.

    Examples:
        >>> model = fptt.nn.LSTM(2, 8, 3)
        >>> optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
        >>> loss = fptt.SequenceLoss(nn.functional.cross_entropy)
        >>> method = fptt.FPTT(model, optimizer, loss, chunk_length=2)
        >>> learner = fptt.OnlineLearner(method, classes=["rest", "walk", "run"])
        >>> for step in range(5):
        ...     x = {"speed": 0.1 * step, "pulse": 60.0 + step}
        ...     prediction = learner.predict_one(x)
        ...     learner.learn_one(x, "walk")
        >>> prediction in ("rest", "walk", "run"), learner.steps, learner.method.updates
        (True, 5, 2)
        >>> learner = fptt.OnlineLearner(method, classes=["rest", "walk", "run"], missing="hold", window=100)
        >>> for speed in (0.1, None, 0.3):
        ...     learner.learn_one({"speed": speed, "pulse": 60.0}, "walk")
        >>> learner.error in (0, 1 / 3, 2 / 3, 1)
        True
    """

    def __init__(
        self,
        method: Method,
        *,
        classes: Iterable[Hashable] | None = (),
        max_delay: int = 0,
        standardize: bool = False,
        missing: Missing = "error",
        window: int | None = None,
    ) -> None:
        check_type("method", method, Method, "an FPTT, TBPTT or BPTT")
        self.method, self.max_delay, self.standardize = method, max_delay, standardize
        self.steps = self.labels = 0
        check_choice("missing", missing, ("error", "hold"))
        if window is not None:
            check_count("window", window)
        self._features = Features(first_weight(method.model), missing, is_exact=standardize)
        self._moments: RunningMoments | None = None
        self._targets = _targets_for(method, classes)
        self._forward = Forward(method)
        self._trainer = Trainer(method, self._forward, self._targets, max_delay)
        self._inferred_state: State = None
        self._score = None if window is None else RunningScore(self._targets, window, max_delay)

    @property
    def has_classes(self) -> bool:
        """Whether labels are classes, and not the numbers of a regression."""
        return isinstance(self._targets, Classes)

    @property
    def error(self) -> float | None:
        """Mean error of the predictions of the last `window` labeled steps, made before each was learned.

        The part that was wrong, of classes; the mean absolute error of a regression; None without a window or a label.
        Predictions are those of `predict_one`; within `learn_many` those of `predict_many` for the steps of a chunk.
        """
        return None if self._score is None else self._score.error

    @property
    def _state(self) -> State:
        """The state after all steps: by inference through those that wait, by training where none does."""
        return self._inferred_state if len(self._trainer) else self._trainer.state

    def predict_one(self, x: Any) -> Any:
        """Return the prediction of the next step: a class, or None while none is known; a number of a regression.

        Args:
            x: A mapping of names to numbers, the same names at every step; or a tensor, array or sequence of numbers.

        Raises:
            ValueError: If x does not fit the model or the first step.
            TypeError: If x holds something that is not a number.
            FloatingPointError: If x holds NaN or Inf.
        """
        return self._targets.decode(self._predict(self._features.row(x))[0])

    def predict_proba_one(self, x: Any) -> dict[Any, float]:
        """Return the probability of each class that is known; see `predict_one`.

        Raises:
            TypeError: If this is a regression.
        """
        if not isinstance(self._targets, Classes):
            raise TypeError(
                "predict_proba_one needs classes, got a learner of numbers: classes=None, or the loss of a regression."
            )
        return self._targets.probabilities(self._predict(self._features.row(x))[0])

    def predict_many(self, inputs: Any) -> Tensor:
        """Return the model's outputs, (n, C), for the next n steps, with the weights as they are now.

        Args:
            inputs: A tensor or array, (n, …), or a sequence of steps as of `predict_one`.
        """
        return self._predict(self._features.rows(inputs)).clone()  # the caller may write to them, not to the cache

    def _predict(self, rows: Tensor) -> Tensor:
        return self._infer(self._standardized(rows)[0])[0]

    def _standardized(self, rows: Tensor) -> tuple[Tensor, RunningMoments | None]:
        """Return rows as the model sees them, and the moments after them."""
        if not self.standardize:
            return rows, None
        scaled, moments = standardize(rows, self._moments)
        return scaled.to(self._features.like.dtype), moments

    def _infer(self, rows: Tensor) -> tuple[Tensor, State]:
        """Return outputs, (n, C), of the next steps and the state after them."""
        outputs, state = self._forward.cached(rows, self._state)
        self._targets.check(outputs.shape[-1])
        self._features.fix()
        return outputs, state

    def learn_one(self, x: Any, y: Any = None) -> None:
        """Advance by one step, and learn if that fills a chunk.

        Args:
            x: As of `predict_one`.
            y: Its class, or number; None, not NaN, if there is no label, or not yet.

        Raises:
            ValueError: If x does not fit the model or the first step, or y is not one of the classes.
            TypeError: If x or y is of another kind.
            FloatingPointError: If x is NaN or Inf: the step is refused; or loss or gradient are: the chunk is dropped.
        """
        self._advance(self._features.row(x), [y])

    def learn_many(self, inputs: Any, targets: Sequence[Any] | Tensor | None = None) -> None:
        """Advance by n steps: what `learn_one` does for each, in fewer calls.

        With a `max_delay`, chunks whose labels are passed here are learned a little later than by `learn_one`. After a
        FloatingPointError of a chunk, `steps` is the number of steps entered.

        Args:
            inputs: As of `predict_many`.
            targets: n labels, None where there is none; None for no label at all.
        """
        rows = self._features.rows(inputs)
        labels = [None] * len(rows) if targets is None else _to_list(targets)
        if len(labels) != len(rows):
            raise ValueError(f"targets must be one for each of {len(rows)} steps, got {len(labels)}.")
        self._advance(rows, labels)

    def _advance(self, rows: Tensor, labels: list[Any]) -> None:
        if self._forward.num_outputs is None:
            self._predict(rows)  # shows how many outputs the model has, thus which labels it can learn
        # All of them before anything changes: a label that is refused must not leave half of a call behind.
        targets, known = [], []
        num_before = self._targets.num_labels
        try:
            for y in labels:
                known.append(self._targets.num_labels)
                targets.append(None if y is None else self._encode(y))
        except Exception:
            self._targets.forget(num_before)
            raise
        while targets:
            num_labels = known[0]  # a prediction is one of those known before its chunk
            count = self._trainer.num_free  # no update can come in between, so that one run of inference serves all
            part, moments = self._standardized(rows[:count])
            if self._score is not None or self.max_delay or len(part) < count:
                outputs, self._inferred_state = self._infer(part)
                if self._score is not None:
                    for output, y in zip(outputs, labels[:count], strict=True):
                        self._score.step(self._targets.decode(output, num_labels), y)
            # Else these steps complete the chunk of which nothing waits any longer: training gives the state.
            self._moments = moments
            self._features.advance(rows[len(part) - 1])
            self.steps += len(part)
            self.labels += len(part) - targets[:count].count(None)
            self._trainer.enter(part, targets[:count])
            rows, labels, targets, known = rows[count:], labels[count:], targets[count:], known[count:]

    def _encode(self, y: Any) -> Any:
        return self._targets.encode(y, self._forward.num_outputs or 0)

    def learn_delayed(self, y: Any, delay: int) -> None:
        """Add the label of a step that came without one, and learn if a chunk waited for it.

        Args:
            y: Its class, or number.
            delay: Steps since that step, 1 for the last one; at most `max_delay`.

        Raises:
            ValueError: If that step does not wait for a label, or y is not one of the classes.
            TypeError: If y is of another kind, or the delay is no whole number.
        """
        if y is None:
            raise ValueError("y must be a label, got None.")
        self._trainer.check_waits(delay)
        target = self._encode(y)
        if self._score is not None:
            self._score.label(delay, y)
        self.labels += 1
        self._trainer.label(delay, target)

    def flush(self) -> None:
        """Learn all steps that wait, the last ones as a shorter chunk: no label of theirs will come any more."""
        self._trainer.flush()

    def reset(self) -> None:
        """Begin another stream: forget hidden state, held values, steps that wait; `flush` before it learns those."""
        self._trainer.reset()
        self._features.reset()
        if self._score is not None:
            self._score.reset()

    def state_dict(self) -> dict[str, Any]:
        """Return all that the learner needs to resume: weights, optimizer, method, states, waiting steps, counters.

        A snapshot: what is learned afterwards, here or by a learner that loaded it, does not change it.
        `torch.load(…, weights_only=True)` reads it, if labels and names of features are numbers, text or tuples of
        these; those of NumPy have become Python's own. It warns of a label that is something else, as a date.
        """
        label = self._targets.unreadable()
        if label is not None:
            warnings.warn(
                f"torch.load(…, weights_only=True) will not read the label {label!r}, a {type(label).__name__}: give "
                "labels as numbers, text or tuples of these, as isoformat() of a date, or load with weights_only=False "
                "what you trust.",
                stacklevel=2,
            )
        return self._snapshot()

    def _snapshot(self) -> dict[str, Any]:
        inferred_state = self._inferred_state if len(self._trainer) else None
        live = {  # of the very tensors that training writes to
            "model": self.method.model.state_dict(),
            "optimizer": self.method.optimizer.state_dict(),
            "method": self.method.state_dict(),
        }
        return {
            **copy.deepcopy(live),
            "features": self._features.state_dict(),
            "targets": self._targets.state_dict(),
            "moments": None if self._moments is None else tuple(self._moments),
            "trainer": self._trainer.state_dict(),
            "inferred_state": None if inferred_state is None else flatten_state(inferred_state),
            "counters": {"steps": self.steps, "labels": self.labels},
            "score": None if self._score is None else self._score.state_dict(),
            "settings": self._settings(),
        }

    def _settings(self) -> dict[str, Any]:
        """Return what decides how steps and their labels are read and cut."""
        return {
            "chunk_length": self._trainer.chunk_length,
            "max_delay": self.max_delay,
            "standardize": self.standardize,
            "missing": self._features.missing,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what `state_dict` returned; the learner resumes bitwise, but for random numbers (dropout).

        After an error the learner is what it was.

        Raises:
            ValueError: If a key is missing, or it was saved by a learner with other classes, another method, or another
                `chunk_length`, `max_delay`, `standardize` or `missing`.
            TypeError: If it is no mapping.
            RuntimeError: If it was saved with another model.
        """
        check_type("state_dict", state_dict, Mapping, "that of an OnlineLearner")
        before = self._snapshot()
        missing = before.keys() - state_dict.keys() - {"score", "settings"}  # which earlier versions did not have
        if missing:
            raise ValueError(f"state_dict must be that of an OnlineLearner, got one without {sorted(missing)}.")
        for name, saved in state_dict.get("settings", {}).items():
            own = self._settings()[name]
            if saved != own:
                raise ValueError(f"{name} must be that of the saved learner, {saved!r}, got {own!r}.")
        try:
            self._restore(state_dict)
        except Exception:  # torch, too, loads the weights that fit before it refuses others
            self._restore(before)
            raise

    def _restore(self, state_dict: dict[str, Any]) -> None:
        self._targets.load_state_dict(state_dict["targets"])
        self._features.load_state_dict(state_dict["features"])
        self.method.model.load_state_dict(state_dict["model"])
        # A copy, since torch's optimizers take the tensors themselves, and then write to them.
        self.method.optimizer.load_state_dict(copy.deepcopy(state_dict["optimizer"]))
        self.method.load_state_dict(state_dict["method"])
        moments = state_dict["moments"]
        self._moments = None if moments is None else RunningMoments(*moments).to(self._features.like.device)
        # Tensors alone are saved, since a NamedTuple would not be read; the model shows again how they are nested.
        example = self._features.example
        self._trainer.load_state_dict(state_dict["trainer"], example)
        self._inferred_state = self._forward.restored(state_dict["inferred_state"], example)
        self.steps, self.labels = (state_dict["counters"][name] for name in ("steps", "labels"))
        if self._score is not None:  # without a score in the state nothing is known of its stream
            self._score.load_state_dict(state_dict.get("score") or {"errors": [], "predictions": []})


def _targets_for(method: Method, classes: Iterable[Hashable] | None) -> Targets:
    """Return how labels are read, as classes or as numbers, which a loss of torch may decide.

    Raises:
        ValueError: If they are classes, and the loss takes no labels.
    """
    if classes is None:
        return Numbers()
    targets = Classes(classes)
    if not isinstance(method.loss, SequenceLoss) or not method.loss.function.is_without_labels:
        return targets
    if targets.is_open and method.loss.function.is_of_numbers:
        return Numbers()
    raise ValueError(
        f"classes must be None with {name_of(method.loss.function.function)}, which takes no labels, for the outputs "
        "as numbers, or the loss be cross_entropy, with one output for each class, two of a binary one, got "
        f"classes={targets.labels!r}."
    )


def _to_list(targets: Any) -> list[Any]:
    """Return labels as a list.

    Raises:
        TypeError: If they are none, as a data frame or a mapping, whose names would be taken for the labels.
    """
    if hasattr(targets, "tolist"):
        return targets.tolist()
    if isinstance(targets, str | Mapping) or hasattr(targets, "columns") or not isinstance(targets, Iterable):
        raise TypeError(
            f"targets must be a list of labels, a tensor, an array or a Series, got a {type(targets).__name__}."
        )
    return list(targets)
