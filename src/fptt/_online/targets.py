"""Encoding of labels as targets and decoding of outputs as predictions: classes, or numbers."""

import math
from abc import ABC, abstractmethod
from collections.abc import Hashable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor


def to_python(value: Any) -> Any:
    """Return a scalar of NumPy or torch as Python's own int, float, bool or str, also inside a tuple.

    It is equal to what it was and hashes alike, and `torch.load(…, weights_only=True)` reads it.
    """
    if type(value) is tuple:
        return tuple(map(to_python, value))
    # Neither library is named: NumPy is not imported here. Times, of which `item` makes numbers, are left alone.
    if getattr(value, "ndim", None) == 0 and hasattr(value, "item"):
        plain = value.item()
        return plain if isinstance(plain, int | float | str | bytes) and plain == value else value
    return value


def _is_plain(label: Any) -> bool:
    """Return whether `torch.load(…, weights_only=True)` reads a label: a number, text, or a tuple of such."""
    if type(label) is tuple:
        return all(map(_is_plain, label))
    return label is None or type(label) in (bool, int, float, complex, str, bytes)


def _check_label(y: Any) -> None:
    """Raise an error for a value that is never equal to another one of its kind: each would be a class of its own.

    Raises:
        TypeError: If it is a tensor or an array, or a tuple with one.
        ValueError: If it is NaN, NaT or NA, or a tuple with one.
    """
    if type(y) is tuple:
        for part in y:
            _check_label(part)
        return
    has_dims = getattr(y, "ndim", 0) > 0
    try:
        is_missing = not has_dims and bool(y != y)  # noqa: PLR0124
    except TypeError:  # pandas' NA, whose comparisons have no truth
        is_missing = True
    if has_dims or (isinstance(y, Tensor) and not is_missing):  # tensors are hashed by identity
        raise TypeError(f"y must be a class label, one number or text, got {y!r}.")
    if is_missing:
        raise ValueError(f"y must be a class label, or None where there is none, got {y!r}.")


class Targets(ABC):
    """Encode labels as targets of a loss, and decode outputs as predictions."""

    @abstractmethod
    def check(self, num_outputs: int) -> None:
        """Raise ValueError if the model has too few outputs."""

    @abstractmethod
    def encode(self, y: Any, num_outputs: int) -> Any:
        """Return the target of a label: a class number, or a list of numbers.

        Raises:
            ValueError: If the model has no output for the label.
            TypeError: If it is of another kind.
        """

    @property
    def num_labels(self) -> int:
        """Labels known so far; 0 of numbers."""
        return 0

    @abstractmethod
    def forget(self, num_labels: int) -> None:
        """Forget the labels that came after so many."""

    @abstractmethod
    def decode(self, output: Tensor, num_labels: int | None = None) -> Any:
        """Return the prediction for an output, (C,); one of the first labels, where their number is given."""

    @abstractmethod
    def error(self, prediction: Any, y: Any) -> float:
        """Return how wrong a prediction is."""

    @abstractmethod
    def tensor(self, targets: Sequence[Any], num_outputs: int, like: Tensor) -> Tensor:
        """Return targets as the loss takes them, (n, 1, …), on the device of a tensor; zeros for None."""

    def state_dict(self) -> dict[str, Any]:
        """Return what was learned about the labels."""
        return {"labels": None}

    def unreadable(self) -> Any:
        """Return a label that `torch.load(…, weights_only=True)` does not read; None if there is none."""
        return None

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what `state_dict` returned.

        Raises:
            ValueError: If it was saved for other classes, or for a regression and this is a classification, or the
                other way round.
        """
        if state_dict["labels"] is not None:
            raise ValueError(f"classes must be those of the saved learner, {state_dict['labels']}, got None.")


class Classes(Targets):
    """Any hashable labels, numbered in their order; labels of NumPy become Python's own.

    Args:
        labels: All labels; none to number them as they come.

    Raises:
        ValueError: If two are equal, or one is NaN.
        TypeError: If they are no collection of labels.
    """

    def __init__(self, labels: Iterable[Hashable]) -> None:
        if isinstance(labels, str | bytes) or not isinstance(labels, Iterable):
            raise TypeError(f"classes must be a list of all labels, got {labels!r}.")
        self.labels = [to_python(label) for label in labels]
        for label in self.labels:
            _check_label(label)
        self.numbers = {label: number for number, label in enumerate(self.labels)}
        self.is_open = not self.labels
        if len(self.numbers) < len(self.labels):
            raise ValueError(f"classes must be distinct, got {self.labels}.")

    def check(self, num_outputs: int) -> None:
        """Raise ValueError if there are more classes than outputs."""
        if len(self.labels) > num_outputs:
            raise ValueError(
                f"classes must be at most {num_outputs}, as many as the model has outputs, got {len(self.labels)}."
            )

    def encode(self, y: Any, num_outputs: int) -> int:
        """Return the number of a label; number a new one, if classes are numbered as they come."""
        y = to_python(y)
        _check_label(y)
        try:
            number = self.numbers.get(y)
        except TypeError as error:
            raise TypeError(f"y must be a class label that can be hashed, got {y!r}.") from error
        return self._add(y, num_outputs) if number is None else number

    def _add(self, y: Hashable, num_outputs: int) -> int:
        if not self.is_open or len(self.labels) >= num_outputs:
            hint = " Numbers of a regression need classes=None." if self.is_open and isinstance(y, float) else ""
            raise ValueError(
                f"y must be one of the classes {self.labels}, of which the model has {num_outputs}, got {y!r}.{hint}"
            )
        self.labels.append(y)
        self.numbers[y] = len(self.labels) - 1
        return self.numbers[y]

    @property
    def num_labels(self) -> int:
        """Labels known so far."""
        return len(self.labels)

    def forget(self, num_labels: int) -> None:
        """Forget the labels that came after so many."""
        for label in self.labels[num_labels:]:
            del self.numbers[label]
        del self.labels[num_labels:]

    def decode(self, output: Tensor, num_labels: int | None = None) -> Any:
        """Return the most likely of the labels known so far, or of the first ones; None without any."""
        num_labels = len(self.labels) if num_labels is None else num_labels
        return self.labels[int(output[:num_labels].argmax())] if num_labels else None

    def error(self, prediction: Any, y: Any) -> float:
        """Return 0 for the label itself, and 1 for another."""
        return float(prediction != to_python(y))

    def probabilities(self, output: Tensor) -> dict[Any, float]:
        """Return the probability of each label known so far."""
        return dict(zip(self.labels, output[: len(self.labels)].double().softmax(0).tolist(), strict=True))

    def tensor(self, targets: Sequence[int | None], num_outputs: int, like: Tensor) -> Tensor:  # noqa: ARG002
        """Return class numbers, (n, 1)."""
        return torch.tensor([[target or 0] for target in targets], device=like.device)  # masked where there is none

    def state_dict(self) -> dict[str, Any]:
        """Return the labels in the order of their numbers."""
        return {"labels": list(self.labels)}

    def unreadable(self) -> Any:
        """Return the first label that is no number, no text, and no tuple of these; None if there is none."""
        return next((label for label in self.labels if not _is_plain(label)), None)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what `state_dict` returned; labels given beforehand must be the same."""
        labels = state_dict["labels"]
        if labels is None or (not self.is_open and labels != self.labels):
            raise ValueError(f"classes must be those of the saved learner, {labels}, got {self.labels}.")
        self.labels, self.numbers = list(labels), {label: number for number, label in enumerate(labels)}


class Numbers(Targets):
    """A number, or as many as the model has outputs."""

    def check(self, num_outputs: int) -> None:
        """Accept any number of outputs."""

    def forget(self, num_labels: int) -> None:
        """Do nothing: numbers are no labels."""

    def encode(self, y: Any, num_outputs: int) -> list[float]:
        """Return the numbers."""
        try:
            values = torch.as_tensor(y, dtype=torch.float64).flatten().tolist()
        except OverflowError as error:
            raise ValueError("y must be numbers of float64, got one that is too large.") from error
        except (TypeError, ValueError, RuntimeError) as error:
            raise TypeError(f"y must be a number, or {num_outputs}, got {y!r}.") from error
        if len(values) != num_outputs or not all(map(math.isfinite, values)):
            raise ValueError(f"y must be {num_outputs} finite number(s), as many as the model has outputs, got {y!r}.")
        return values

    def decode(self, output: Tensor, num_labels: int | None = None) -> float | list[float]:  # noqa: ARG002
        """Return the number, or a list of several."""
        return output.item() if len(output) == 1 else output.tolist()

    def error(self, prediction: float | list[float], y: Any) -> float:
        """Return the absolute error, of several numbers the mean."""
        predicted = prediction if isinstance(prediction, list) else [prediction]
        numbers = self.encode(y, len(predicted))
        return math.fsum(abs(own - number) for own, number in zip(predicted, numbers, strict=True)) / len(numbers)

    def tensor(self, targets: Sequence[list[float] | None], num_outputs: int, like: Tensor) -> Tensor:
        """Return numbers, (n, 1, C)."""
        rows = [[[0.0] * num_outputs if target is None else target] for target in targets]
        return torch.tensor(rows, device=like.device, dtype=like.dtype)
