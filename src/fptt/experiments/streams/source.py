"""The interface of what a stream comes from."""

from collections.abc import Generator, Sequence
from typing import Any, Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from fptt.experiments.tasks.scores import IGNORED

Kind = Literal["classes", "regression"]

NO_CLASS = -1
"""The prediction of a class while none is known."""


class Piece(NamedTuple):
    """The next steps of a stream: a chunk, or what is left of one.

    Attributes:
        signal: (n, D).
        targets: (n,): numbers of classes, IGNORED where there is no label; or float64, NaN where there is none.
        names: The labels of the classes that are known by then, in the order of their numbers.
        is_first, is_last: Whether it begins, or ends, a recording.
        place: Where the source is after it, as plain values.
        progress: The part of the stream that is over then; 0 where it has no known end.
    """

    signal: Tensor
    targets: Tensor
    names: Sequence[Any]
    is_first: bool
    is_last: bool
    place: dict[str, Any]
    progress: float


class Source(Protocol):
    """Where the pieces of a stream come from."""

    @property
    def kind(self) -> Kind:
        """What the targets are."""
        ...

    @property
    def num_inputs(self) -> int:
        """D."""
        ...

    @property
    def num_outputs(self) -> int:
        """C."""
        ...

    @property
    def num_steps(self) -> int | None:
        """The number of steps, if it is known."""
        ...

    @property
    def classes(self) -> Sequence[Any] | None:
        """The labels, in the order of their numbers; none if they are numbered as they come; None of a regression."""
        ...

    @property
    def about(self) -> str:
        """A line on the data, for the user."""
        ...

    @property
    def start(self) -> dict[str, Any]:
        """Where it begins, as plain values."""
        ...

    def pieces(self, length: int) -> Generator[Piece, None, None]:
        """Return the pieces from `start` on, of so many steps each.

        Raises:
            UserError: If the source is not the one that `start` is a place of.
            UnreadableError: While they are read, if it cannot be read any more, or holds what it must not.
        """
        ...

    def figures(self, place: dict[str, Any]) -> dict[str, Any]:
        """Return what the summary tells about the steps before a place."""
        ...


def is_labeled(targets: Tensor) -> Tensor:
    """Tell which steps have a target, (n,)."""
    return ~torch.isnan(targets) if targets.is_floating_point() else targets != IGNORED
