"""How good the predictions of a stream were, over the last labels."""

from collections import deque
from typing import Any

from fptt._online.targets import Targets


class RunningScore:
    """Mean error of the predictions that were made before their labels were learned: progressive validation.

    Args:
        targets: Decodes outputs, and measures the error of a prediction.
        window: Labels that count, the last ones.
        max_delay: Steps that a label may be late.

    Attributes:
        errors: Of the last `window` labeled steps, in their order.
    """

    def __init__(self, targets: Targets, window: int, max_delay: int) -> None:
        self.targets = targets
        self.errors: deque[float] = deque(maxlen=window)
        self._predictions: deque[Any] = deque(maxlen=max_delay)  # of the last steps, whose labels may yet come

    def step(self, prediction: Any, y: Any) -> None:
        """Take in the prediction of a step and its label, None if there is none, or not yet."""
        if y is not None:
            self.errors.append(self.targets.error(prediction, y))
        self._predictions.append(prediction)

    def label(self, delay: int, y: Any) -> None:
        """Take in the label of the step so many steps ago, the last one being 1 step ago."""
        if delay <= len(self._predictions):  # else a step from before a state without predictions was loaded
            self.errors.append(self.targets.error(self._predictions[-delay], y))

    @property
    def error(self) -> float | None:
        """The mean error of the last labels; None before the first."""
        return sum(self.errors) / len(self.errors) if self.errors else None

    def reset(self) -> None:
        """Forget the steps that wait for a label."""
        self._predictions.clear()

    def state_dict(self) -> dict[str, Any]:
        """Return the errors, and the predictions of steps whose labels may yet come."""
        return {"errors": list(self.errors), "predictions": list(self._predictions)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what `state_dict` returned, as far as window and delay reach."""
        self.errors.clear()
        self.errors.extend(state_dict["errors"])
        self._predictions.clear()
        self._predictions.extend(state_dict["predictions"])
