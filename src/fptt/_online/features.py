"""From what a user passes for a step to a tensor of numbers: the row of the step."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fptt._checks import all_finite


class Features:
    """Turns steps into rows of one shape, which the first step decides.

    Args:
        like: Decides dtype and device of the rows.

    Attributes:
        names: The features in their order, if steps are mappings: sorted, if they can be, else as in the first one.
        example: A row of zeros; None before the first step.
        are_accepted: Whether the model has taken a step.
    """

    def __init__(self, like: Tensor) -> None:
        self.like = like
        self.names: list[Any] | None = None
        self.example: Tensor | None = None
        self.are_accepted = False

    def rows(self, inputs: Any) -> Tensor:
        """Return the rows of several steps, (n, …), from a tensor or array (n, …) or a sequence of steps.

        Raises:
            ValueError: If there is none, or one has another shape or other features than the first step had.
            TypeError: If something is no number.
            FloatingPointError: If a number is NaN or Inf.
        """
        self._forget_refused()
        if not isinstance(inputs, Tensor) and not hasattr(inputs, "__array__"):
            steps = [self._row(step) for step in inputs]
            if len({step.shape for step in steps}) > 1:
                raise ValueError(f"inputs must hold steps of one shape, got {[tuple(step.shape) for step in steps]}.")
            inputs = torch.stack(steps) if steps else self.like.new_zeros(0)
        inputs = self._numbers(inputs)
        if inputs.dim() < 1 or not len(inputs):
            raise ValueError(f"inputs must hold at least one step, (n, …), got shape {tuple(inputs.shape)}.")
        return self._checked(inputs)

    def row(self, x: Any) -> Tensor:
        """Return the row of a step as the only one, (1, …); errors as of `rows`."""
        self._forget_refused()
        return self._checked(self._row(x).unsqueeze(0))

    def _forget_refused(self) -> None:
        """A first step that could not be used decides nothing."""
        if not self.are_accepted:
            self.names = self.example = None

    def _row(self, x: Any) -> Tensor:
        return self._numbers(self._values(x) if isinstance(x, Mapping) else x)

    def _numbers(self, values: Any) -> Tensor:
        """Return a tensor; integer tensors stay what they are, as tokens for an embedding."""
        if isinstance(values, Tensor) and not values.is_floating_point():
            return values.detach().to(self.like.device)
        try:
            return torch.as_tensor(values, dtype=self.like.dtype, device=self.like.device).detach()
        except (TypeError, ValueError, RuntimeError) as error:
            raise TypeError(f"x must hold numbers, got {values!r}: {error}.") from error

    def _values(self, x: Mapping[Any, Any]) -> Sequence[Any]:
        """Return the values of a mapping in the order of the names."""
        if self.names is None:
            if self.example is not None or not x:
                raise ValueError(f"x must be numbers as the first step was, and not empty, got {dict(x)!r}.")
            self.names = _in_order(x)
        if x.keys() != set(self.names):
            missing = [name for name in self.names if name not in x]
            unknown = [name for name in x if name not in self.names]
            raise ValueError(f"x must have the features of the first step: {missing} missing, {unknown} unknown.")
        return [x[name] for name in self.names]

    def _checked(self, rows: Tensor) -> Tensor:
        if self.example is not None and (rows.shape[1:] != self.example.shape or rows.dtype != self.example.dtype):
            raise ValueError(
                f"x must be {self.example.dtype} of shape {tuple(self.example.shape)} as at first, "
                f"got {rows.dtype} of shape {tuple(rows.shape[1:])}."
            )
        if not all_finite(rows):
            where = "" if self.names is None else f" in {self._bad_names(rows)}"
            raise FloatingPointError(f"x holds NaN or Inf{where}; nothing was learned from it.")
        if self.example is None:
            self.example = torch.zeros_like(rows[0])
        return rows.clone()  # whoever passed it may write the next step into the same memory

    def _bad_names(self, rows: Tensor) -> list[Any]:
        is_bad = (~torch.isfinite(rows)).any(0).tolist()
        return [name for name, bad in zip(self.names or [], is_bad, strict=True) if bad]

    def state_dict(self) -> dict[str, Any]:
        """Return names and example."""
        return {"names": self.names, "example": self.example}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        example = state_dict["example"]
        self.names = state_dict["names"]
        self.example = None if example is None else example.to(self.like.device)
        self.are_accepted = example is not None


def _in_order(names: Iterable[Any]) -> list[Any]:
    try:
        return sorted(names)
    except TypeError:  # of several kinds
        return list(names)
