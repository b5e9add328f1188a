"""Any torch loss as a function that returns one value per element, so that masks and weights can be applied."""

import copy
import functools
import inspect
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

LossFunction = Callable[[Tensor, Tensor], Tensor]


class Elementwise(nn.Module):
    """A loss of (output (N, …), target (N, …)) with a value per element, (N,): a mean over other dims.

    A torch module is copied with reduction="none"; a function that has the argument gets it. Anything else must return
    one value per element by itself.

    Raises:
        ValueError: If the loss asks for another reduction than "mean" or "none".
        TypeError: If it cannot be called.
    """

    def __init__(self, function: LossFunction) -> None:
        super().__init__()
        if not callable(function):
            raise TypeError(f"function must be a loss that can be called with (output, target), got {function!r}.")
        reduction = _argument(function, "reduction")
        if reduction not in (None, "mean", "none"):
            raise ValueError(
                f"function must have reduction 'mean' or 'none', got {reduction!r}: real steps are averaged."
            )
        self.function = _without_reduction(function)

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        """Return one value per element, (N,)."""
        _check_shapes(output, target)
        values = self.function(output, target)
        if values.shape not in ((len(output),), target.shape, output.shape):
            raise ValueError(
                f"function must return one value per element for outputs {tuple(output.shape)} and targets "
                f"{tuple(target.shape)}, got {tuple(values.shape)}; targets of a regression have the outputs' shape."
            )
        return values.flatten(1).mean(1) if values.dim() > 1 else values


def ignored_index(function: LossFunction) -> int | None:
    """Return the target that a torch loss ignores (`ignore_index`), or None if it has no such argument."""
    value = _argument(function, "ignore_index")
    return value if isinstance(value, int) else None


def _without_reduction(function: LossFunction) -> LossFunction:
    if isinstance(function, nn.Module):
        if not hasattr(function, "reduction"):
            return function
        unreduced = copy.copy(function)
        unreduced.reduction = "none"  # pyright: ignore
        return unreduced
    if not _has_argument(function, "reduction"):
        return function
    return functools.partial(function, reduction="none")  # pyright: ignore[reportCallIssue]


def _has_argument(function: LossFunction, name: str) -> bool:
    try:
        return name in inspect.signature(function).parameters
    except ValueError:  # a built-in without a signature
        return False


def _argument(function: LossFunction, name: str) -> Any:
    """Return the value of a module's attribute or of a function's default, or None."""
    if isinstance(function, nn.Module):
        return getattr(function, name, None)
    return inspect.signature(function).parameters[name].default if _has_argument(function, name) else None


def _check_shapes(output: Tensor, target: Tensor) -> None:
    """A floating target of another shape would be broadcast by torch to a wrong loss without an error."""
    if target.is_floating_point() and target.shape != output.shape:
        raise ValueError(
            f"targets of a regression must have the shape of the outputs, got {tuple(target.shape[1:])} for "
            f"{tuple(output.shape[1:])} per element."
        )
