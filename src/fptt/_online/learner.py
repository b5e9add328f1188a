"""A learner that is asked and told, one step after another, for as long as the stream lasts."""

from collections.abc import Hashable, Iterable, Sequence
from typing import Any, Self

from torch import Tensor, nn
from torch.optim import Optimizer

from fptt._losses.chunk_loss import ChunkLoss
from fptt._methods.fptt import FPTT
from fptt._methods.method import Method
from fptt._online.features import Features
from fptt._online.forward import Forward
from fptt._online.scale import Moments, standardize
from fptt._online.targets import Classes, Numbers, Targets
from fptt._online.trainer import Trainer
from fptt._sequence import State, flatten_state


class OnlineLearner:
    """Learn from a stream that never ends, step by step: `predict_one(x)`, then `learn_one(x, y)`.

    The hidden state goes on from step to step. Asking changes nothing, telling enters one step: a prediction is made
    from the state after all steps entered before, and a step that is asked and then told is one step. Weights change
    when a chunk is full: what is learned is what the method's `train_batch` makes of one chunk after another, the state
    going on. Memory is that of `chunk_length + max_delay` steps.

    A label may come late: enter the step by `learn_one(x)`, and tell its label by `learn_delayed`. A chunk is learned
    when each of its steps has its label, or has waited `max_delay` steps for it; a step without one does not count in
    the loss, but the state goes through it. Training then follows behind the predictions, with a hidden state of its
    own, and learns what it would without the delay, only later.

    Args:
        model: Called as `model(inputs, state) -> (outputs, state)` with inputs (T, 1, …) and one output a step,
            (T, 1, C). Predictions are made in evaluation mode.
        optimizer: See `TBPTT`.
        loss: A `SequenceLoss`.
        chunk_length: Steps of an update; 1 for an update at every step.
        alpha: Strength of FPTT's penalty; 0 is TBPTT.
        classes: All class labels, any that can be hashed; empty to number them as they come, up to C; None for a
            regression.
        max_delay: Steps that a label may be late: it is awaited until so many others have been entered.
        standardize: Scale every input by mean and deviation of the steps before it, also those before a `reset`.
        **options: See `FPTT`.

    Attributes:
        method: The `Method` that makes the updates, with its counters.
        steps, labels: Steps entered, and labels told, so far.

    Raises:
        ValueError: If an argument is out of range or does not fit; see also `from_method`.

    Examples:
        >>> model = fptt.nn.LSTM(2, 8, 3)
        >>> optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
        >>> loss = fptt.SequenceLoss(nn.functional.cross_entropy)
        >>> learner = fptt.OnlineLearner(model, optimizer, loss, chunk_length=2, classes=["rest", "walk", "run"])
        >>> for step in range(5):
        ...     x = {"speed": 0.1 * step, "pulse": 60.0 + step}
        ...     answer = learner.predict_one(x)
        ...     learner.learn_one(x, "walk")
        >>> answer in ("rest", "walk", "run"), learner.steps, learner.method.updates
        (True, 5, 2)
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        loss: ChunkLoss,
        *,
        chunk_length: int = 1,
        alpha: float = 0.1,
        classes: Iterable[Hashable] | None = (),
        max_delay: int = 0,
        standardize: bool = False,
        **options: Any,
    ) -> None:
        method = FPTT(model, optimizer, loss, chunk_length=chunk_length, alpha=alpha, **options)
        try:
            self._begin(method, classes, max_delay, standardize)
        except ValueError:
            method.close()
            raise

    @classmethod
    def from_method(
        cls,
        method: Method,
        *,
        classes: Iterable[Hashable] | None = (),
        max_delay: int = 0,
        standardize: bool = False,
    ) -> Self:
        """Return a learner around a method of your own, such as a compiled one; the other arguments are the same.

        Raises:
            ValueError: If the method has no `chunk_length`, is batch-first, has a loss that is not per step, or several
                duals; or another argument is out of range.
        """
        learner = cls.__new__(cls)
        learner._begin(method, classes, max_delay, standardize)
        return learner

    def _begin(self, method: Method, classes: Iterable[Hashable] | None, max_delay: int, standardize: bool) -> None:
        self.method, self.max_delay, self.standardize = method, max_delay, standardize
        self.steps = self.labels = 0
        self._features = Features(like=next(method.model.parameters()))
        self._targets: Targets = Numbers() if classes is None else Classes(classes)
        self._forward = Forward(method.model)
        self._trainer = Trainer(method, self._forward, self._targets, max_delay)
        self._waiting = self._trainer.waiting
        self._moments: Moments | None = None
        self._state: State = None  # after all steps entered; that of the trainer is after all steps learned

    # -- asking ------------------------------------------------------------------------------------------------------

    def predict_one(self, x: Any) -> Any:
        """Return the answer to the next step: a class, or None while none is known; a number of a regression.

        Args:
            x: A mapping of names to numbers, the same names at every step; or a tensor, array or sequence of numbers.

        Raises:
            ValueError: If x does not fit the model or the first step.
            TypeError: If x holds something else than numbers.
            FloatingPointError: If x holds NaN or Inf.
        """
        return self._targets.decode(self._outputs(self._features.row(x))[0])

    def predict_proba_one(self, x: Any) -> dict[Any, float]:
        """Return the probability of each class that is known; see `predict_one`.

        Raises:
            TypeError: If this is a regression.
        """
        if not isinstance(self._targets, Classes):
            raise TypeError("predict_proba_one needs classes, got the classes=None of a regression.")
        return self._targets.probabilities(self._outputs(self._features.row(x))[0])

    def predict_many(self, inputs: Any) -> Tensor:
        """Return the model's outputs, (n, C), for the next n steps, with the weights as they are now.

        Args:
            inputs: A tensor or array, (n, …), or a sequence of steps as of `predict_one`.
        """
        return self._outputs(self._features.rows(inputs))

    def _outputs(self, rows: Tensor) -> Tensor:
        return self._look_ahead(self._scaled(rows)[0])[0]

    def _scaled(self, rows: Tensor) -> tuple[Tensor, Moments | None]:
        return standardize(rows, self._moments) if self.standardize else (rows, None)

    def _look_ahead(self, rows: Tensor) -> tuple[Tensor, State]:
        outputs, state = self._forward.ahead(rows, self._state)
        self._targets.check(outputs.shape[-1])
        self._features.are_accepted = True
        return outputs, state

    # -- telling -----------------------------------------------------------------------------------------------------

    def learn_one(self, x: Any, y: Any = None) -> None:
        """Enter a step and learn, if that fills a chunk.

        Args:
            x: As of `predict_one`.
            y: Its class, or number; None if there is no label, or not yet.

        Raises:
            ValueError: If x does not fit the model or the first step, or y is not one of the classes.
            TypeError: If x or y is of another kind.
            FloatingPointError: If x is NaN or Inf: it is not entered; or loss or gradient are: the chunk is dropped.
        """
        self._tell(self._features.row(x), [y])

    def learn_many(self, inputs: Any, targets: Sequence[Any] | Tensor | None = None) -> None:
        """Enter n steps: what `learn_one` does for each, in fewer calls.

        With a `max_delay`, chunks whose labels are told here are learned a little later than by `learn_one`.

        Args:
            inputs: As of `predict_many`.
            targets: n labels, None where there is none; None for no label at all.
        """
        rows = self._features.rows(inputs)
        labels = [None] * len(rows) if targets is None else _as_list(targets)
        if len(labels) != len(rows):
            raise ValueError(f"targets must be one for each of {len(rows)} steps, got {len(labels)}.")
        self._tell(rows, labels)

    def learn_delayed(self, y: Any, delay: int) -> None:
        """Tell the label of a step that was entered without one.

        Args:
            y: Its class, or number.
            delay: How many steps ago it was entered, the last one being 1 step ago; at most `max_delay`.

        Raises:
            ValueError: If that step does not wait for a label, or y is not one of the classes.
        """
        if y is None:
            raise ValueError("y must be a label, got None.")
        self._waiting.check_waits(delay)
        self._waiting.label(delay, self._encode(y))
        self.labels += 1
        self._learn_ready_chunks()

    def _encode(self, y: Any) -> Any:
        return self._targets.encode(y, self._forward.num_outputs or 0)

    def _tell(self, rows: Tensor, labels: list[Any]) -> None:
        rows, moments = self._scaled(rows)
        if self._forward.num_outputs is None:
            self._look_ahead(rows)
        targets = [None if y is None else self._encode(y) for y in labels]
        self._moments = moments
        self.labels += len(targets) - targets.count(None)
        while targets:  # as far as the weights are sure to stay
            count = self._waiting.num_free
            self._enter(rows[:count], targets[:count])
            rows, targets = rows[count:], targets[count:]

    def _enter(self, rows: Tensor, targets: list[Any]) -> None:
        ends_a_chunk = not self.max_delay and len(rows) == self._waiting.num_free
        if not ends_a_chunk:  # else the state comes from training
            self._state = self._look_ahead(rows)[1]
        self._forward.forget()
        self._waiting.extend(rows, targets)
        self.steps += len(rows)
        self._learn_ready_chunks()

    def _learn_ready_chunks(self) -> None:
        self._trainer.learn_ready_chunks()
        self._catch_up()

    def _catch_up(self) -> None:
        if not len(self._waiting):
            self._state = self._trainer.state

    def flush(self) -> None:
        """Learn all steps that wait, the last ones as a shorter chunk: no label of theirs will come any more."""
        self._trainer.flush()
        self._catch_up()

    def reset(self) -> None:
        """Begin another stream: forget the hidden state, and the steps that wait; `flush` before it learns those."""
        self._trainer.reset()
        self._forward.forget()
        self._state = None

    # -- restarts ----------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return all that the learner needs to go on: weights, optimizer, method, states, waiting steps, counters.

        `torch.load(…, weights_only=True)` reads it, if labels and names of features are plain Python values.
        """
        return {
            "model": self.method.model.state_dict(),
            "optimizer": self.method.optimizer.state_dict(),
            "method": self.method.state_dict(),
            "features": self._features.state_dict(),
            "targets": self._targets.state_dict(),
            "moments": None if self._moments is None else tuple(self._moments),
            "waiting": self._waiting.state_dict(),
            "states": [_flat(self._state), _flat(self._trainer.state)],
            "counters": {"steps": self.steps, "labels": self.labels},
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what `state_dict` returned; the learner goes on bit for bit, but for random numbers (dropout).

        Raises:
            ValueError: If a key is missing, or it was saved by a learner with other classes or another method.
        """
        missing = self.state_dict().keys() - state_dict.keys()
        if missing:
            raise ValueError(f"state_dict must be that of an OnlineLearner, got one without {sorted(missing)}.")
        self._targets.load_state_dict(state_dict["targets"])
        self._features.load_state_dict(state_dict["features"])
        self._waiting.load_state_dict(state_dict["waiting"], self._features.like.device)
        self.method.model.load_state_dict(state_dict["model"])
        self.method.optimizer.load_state_dict(state_dict["optimizer"])
        self.method.load_state_dict(state_dict["method"])
        moments = state_dict["moments"]
        self._moments = None if moments is None else Moments(*moments).to(self._features.like.device)
        self._forward.forget()
        restored = [self._forward.restore(tensors, self._features.example) for tensors in state_dict["states"]]
        self._state, self._trainer.state = restored
        self.steps, self.labels = (state_dict["counters"][name] for name in ("steps", "labels"))


def _as_list(targets: Sequence[Any] | Tensor) -> list[Any]:
    return targets.tolist() if hasattr(targets, "tolist") else list(targets)  # pyright: ignore


def _flat(state: State) -> list[Tensor] | None:
    return None if state is None else flatten_state(state)
