"""Conversion of steps to rows of a tensor, their gaps, and their running standardization."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, Self

import torch
from torch import Tensor

from fptt._batches.arrays import in_own_order
from fptt._checks import all_finite
from fptt._online.targets import to_python

Missing = Literal["error", "hold"]

ROUNDING = 1e-12
"""A variance below this fraction of the mean square is taken for rounding error."""


class Features:
    """Convert steps to rows of one shape and dtype, which the first step decides.

    Args:
        like: Decides dtype and device of the rows.
        missing: Whether a gap, NaN, None or a name that lacks, is an error, or has the value before it: 0 before the
            first.
        is_exact: Whether rows are float64, for `standardize`, which may need more digits than the model has: float32
            does not tell the seconds of a day apart in the time since 1970.

    Attributes:
        names: The features in their order, if steps are mappings: sorted, if they can be, else as in the first one.
        example: A row of zeros as the model sees it; None before the first step.
    """

    def __init__(self, like: Tensor, missing: Missing = "error", *, is_exact: bool = False) -> None:
        self.like, self.missing, self.is_exact = like, missing, is_exact
        self._last: Tensor | None = None  # the row before the next step, (…)
        self.names: list[Any] | None = None
        self.example: Tensor | None = None
        self._are_fixed = False

    def fix(self) -> None:
        """Keep names, shape and dtype for good: the model has accepted a row.

        Until then each call of `row` or `rows` decides for itself, so that a refused first step decides nothing.
        """
        self._are_fixed = True

    def row(self, x: Any) -> Tensor:
        """Return the row of one step, (1, …); raises as `rows` does."""
        self._forget_refused()
        return self._checked(self._to_row(x).unsqueeze(0))

    def rows(self, inputs: Any) -> Tensor:
        """Return the rows of several steps, (n, …), from a tensor or array (n, …) or a sequence of steps.

        A row of a data frame is a mapping of its columns' names.

        Raises:
            ValueError: If there is none, or one has another shape or other features than the first step had.
            TypeError: If something is not a number.
            FloatingPointError: If a number is NaN or Inf.
        """
        self._forget_refused()
        inputs = inputs.to_dict("records") if hasattr(inputs, "columns") else inputs
        if not isinstance(inputs, Tensor) and not hasattr(inputs, "__array__"):
            steps = [self._to_row(step) for step in inputs]
            if len({step.shape for step in steps}) > 1:
                raise ValueError(f"inputs must hold steps of one shape, got {[tuple(step.shape) for step in steps]}.")
            inputs = torch.stack(steps) if steps else self.like.new_zeros(0)
        inputs = self._to_tensor(inputs)
        if inputs.dim() < 1 or not len(inputs):
            raise ValueError(f"inputs must hold at least one step, (n, …), got shape {tuple(inputs.shape)}.")
        return self._checked(inputs)

    def _forget_refused(self) -> None:
        if not self._are_fixed:
            self.names = self.example = None

    def _to_row(self, x: Any) -> Tensor:
        x = x.to_dict() if hasattr(x, "to_dict") and hasattr(x, "index") else x  # the row of a data frame has names
        return self._to_tensor(self._values(x) if isinstance(x, Mapping) else x)

    def _values(self, x: Mapping[Any, Any]) -> Sequence[Any]:
        """Return the values of a mapping in the order of the names."""
        if self.names is None:
            if self.example is not None or not x:
                raise ValueError(f"x must be numbers as the first step was, and not empty, got {dict(x)!r}.")
            self.names = [to_python(name) for name in _sorted_if_possible(x)]
        missing = [name for name in self.names if name not in x]
        unknown = [name for name in x if name not in self.names]
        if unknown or (missing and self.missing == "error"):
            hint = " missing='hold' keeps the values before." if not unknown else ""
            raise ValueError(f"x must have the features of the first step: {missing} missing, {unknown} unknown.{hint}")
        return [x.get(name) for name in self.names]

    def _to_tensor(self, values: Any) -> Tensor:
        if self.missing == "hold" and isinstance(values, list | tuple):
            values = [math.nan if value is None else value for value in values]
        # Integer tensors keep their dtype, since they are tokens of an embedding; Python's integers are measurements.
        if isinstance(values, Tensor) and not values.is_floating_point():
            return values.detach().to(self.like.device)
        dtype = torch.promote_types(self.like.dtype, torch.float64) if self.is_exact else self.like.dtype
        try:
            if not isinstance(values, Tensor) and hasattr(values, "__array__"):
                values = in_own_order(values)
            return torch.as_tensor(values, dtype=dtype, device=self.like.device).detach()
        except OverflowError as error:  # an integer of Python
            raise ValueError(f"x must hold numbers of {dtype}, got one that is too large.") from error
        except (TypeError, ValueError, RuntimeError) as error:
            is_text = isinstance(values, list | tuple) and any(isinstance(value, str) for value in values)
            is_gap = isinstance(values, list | tuple) and any(value is None for value in values)
            told = "text, which float() may convert" if is_text else error
            told = "a gap, in place of which missing='hold' keeps the value before" if is_gap else told
            raise TypeError(f"x must hold numbers, got {values!r}: {told}.") from error

    def _checked(self, rows: Tensor) -> Tensor:
        dtype = self.like.dtype if rows.is_floating_point() else rows.dtype  # as the model sees it
        if self.example is not None and (rows.shape[1:] != self.example.shape or dtype != self.example.dtype):
            raise ValueError(
                f"x must be {self.example.dtype} of shape {tuple(self.example.shape)} as at first, "
                f"got {dtype} of shape {tuple(rows.shape[1:])}."
            )
        if self.missing == "hold" and rows.is_floating_point():
            rows = self._held(rows)
        counted = rows.square() if self.is_exact and rows.is_floating_point() else rows  # their sum is kept
        if not all_finite(counted):
            where = "" if self.names is None else f" in {self._bad_names(counted)}"
            raise FloatingPointError(f"x holds NaN or Inf{where}; nothing was learned from it.")
        if self.example is None:
            self.example = torch.zeros_like(rows[0], dtype=dtype)
        # The caller may write the next step into the same memory, while this one still waits to be learned.
        return rows.clone()

    def _held(self, rows: Tensor) -> Tensor:
        """Return rows (n, …) with the last value before it in the place of every NaN."""
        last = torch.zeros_like(rows[0]) if self._last is None else self._last
        filled = torch.cat([last.unsqueeze(0), rows])
        # the number of the last row, up to each, that has a value
        numbers = torch.arange(len(filled), device=rows.device).view(-1, *[1] * (rows.dim() - 1)).expand(filled.shape)
        return filled.gather(0, numbers.masked_fill(filled.isnan(), 0).cummax(0).values)[1:]

    def advance(self, row: Tensor) -> None:
        """Keep a row, (…), whose values stand for gaps of the next step."""
        if self.missing == "hold":
            self._last = row.clone()

    def reset(self) -> None:
        """Forget the values of the last step."""
        self._last = None

    def _bad_names(self, rows: Tensor) -> list[Any]:
        is_bad = (~torch.isfinite(rows)).any(0).tolist()
        return [name for name, bad in zip(self.names or [], is_bad, strict=True) if bad]

    def state_dict(self) -> dict[str, Any]:
        """Return names, example, and the row before the next step."""
        return {"names": self.names, "example": self.example, "last": self._last}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        example = state_dict["example"]
        self.names = state_dict["names"]
        self.example = None if example is None else example.to(self.like.device)
        last = state_dict.get("last")  # which a version before gaps did not have
        self._last = None if last is None else last.to(self.like.device)
        self._are_fixed = example is not None


def _sorted_if_possible(names: Iterable[Any]) -> list[Any]:
    try:
        return sorted(names)
    except TypeError:  # names of several types have no order
        return list(names)


class RunningMoments(NamedTuple):
    """Number of steps, the first of them, and sums of x − first and of its square, (…) each, in float64.

    Differences from the first step keep their digits where x is far from zero: a feature that stands still has a
    variance of exactly 0, whatever its value.
    """

    num_steps: int
    first: Tensor
    total: Tensor
    squares: Tensor

    def to(self, device: torch.device) -> Self:
        """Return the same on a device."""
        return type(self)(self.num_steps, *(tensor.to(device) for tensor in self[1:]))


def standardize(rows: Tensor, moments: RunningMoments | None) -> tuple[Tensor, RunningMoments]:
    """Return rows (n, …) with zero mean and unit deviation over the steps before each, and the moments after them.

    A feature that has not varied so far is 0; the first step of a stream is 0 altogether.

    Raises:
        ValueError: If the rows are integers.
    """
    if not rows.is_floating_point():
        raise ValueError(f"x must be floating-point numbers with standardize=True, got {rows.dtype}.")
    exact = rows.double()
    if moments is None:
        moments = RunningMoments(0, exact[0], torch.zeros_like(exact[0]), torch.zeros_like(exact[0]))
    offsets = exact - moments.first
    totals = torch.cat([moments.total.unsqueeze(0), offsets]).cumsum(0)  # (n + 1, …): before each row, and after all
    squares = torch.cat([moments.squares.unsqueeze(0), offsets.square()]).cumsum(0)
    counts = torch.arange(moments.num_steps, moments.num_steps + len(rows), device=rows.device).clamp(min=1)
    counts = counts.view(-1, *[1] * (rows.dim() - 1))
    # Row i is scaled by the sums before it: a prediction must not depend on what it could not have seen.
    mean, mean_square = totals[:-1] / counts, squares[:-1] / counts
    # The difference of two large numbers. After very many steps at one value its last digits are noise, and division
    # by their root would blow the feature up.
    variance = mean_square - mean.square()
    varies = variance > ROUNDING * mean_square
    scaled = torch.where(varies, (offsets - mean) / torch.where(varies, variance, 1.0).sqrt(), 0.0)
    after = RunningMoments(moments.num_steps + len(rows), moments.first, totals[-1].clone(), squares[-1].clone())
    return scaled.to(rows.dtype), after
