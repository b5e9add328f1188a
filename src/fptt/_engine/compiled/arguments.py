"""The tensors that a chunk step takes, and the nests of a loss and a state that they are put into."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from fptt._sequence import State, map_state

HAS_STEPS, MAX_NORM = 0, 1
"""Where the row of a chunk tells whether it makes an update, and the norm to clip at; the floats of its part follow."""


class Arguments(NamedTuple):
    """The tensors of a step.

    Attributes:
        buffers: Of each flat group; changed in place.
        module: Buffers, and parameters that no step trains, of model and loss; buffers are changed in place.
        alive: Whether all numbers so far are finite, a boolean scalar; changed in place.
        numbers: Of the optimizer's rule and the strength of the penalty, of each flat group.
        row: What `HAS_STEPS` and `MAX_NORM` say, and the floats of the part.
        inputs: Of the chunk.
        part: The tensors of the part.
        state: The tensors of the incoming state.
    """

    buffers: list[list[Tensor]]
    module: list[Tensor]
    alive: Tensor
    numbers: list[Tensor]
    row: Tensor
    inputs: Tensor
    part: list[Tensor]
    state: list[Tensor]

    def flat(self) -> list[Tensor]:
        """Return all tensors one after the other."""
        buffers = [tensor for own in self.buffers for tensor in own]
        return [*buffers, *self.module, self.alive, *self.numbers, self.row, self.inputs, *self.part, *self.state]

    def filled(self, tensors: Sequence[Tensor]) -> "Arguments":
        """Return other tensors, in the order of `flat`, in the places of these."""
        following = iter(tensors)

        def some(places: Sequence[Tensor]) -> list[Tensor]:
            return [next(following) for _ in places]

        buffers, module, alive = [some(own) for own in self.buffers], some(self.module), next(following)
        numbers, row, inputs = some(self.numbers), next(following), next(following)
        return Arguments(buffers, module, alive, numbers, row, inputs, some(self.part), some(self.state))


def fill_state(nest: State, tensors: Sequence[Tensor]) -> State:
    """Return the nest of a state with other tensors."""
    following = iter(tensors)
    return map_state(lambda _: next(following), nest)


def fill_part(nest: Any, tensors: Iterator[Tensor], floats: Iterator[Tensor]) -> Any:
    """Return a part with other tensors in the place of its tensors and of its floats."""
    if isinstance(nest, Tensor):
        return next(tensors)
    if isinstance(nest, float):
        return next(floats)
    if isinstance(nest, tuple) and hasattr(nest, "_fields"):
        return type(nest)(*(fill_part(value, tensors, floats) for value in nest))
    if isinstance(nest, tuple | list):
        return type(nest)(fill_part(value, tensors, floats) for value in nest)
    if isinstance(nest, dict):
        return {key: fill_part(value, tensors, floats) for key, value in nest.items()}
    return nest


def part_leaves(nest: Any) -> list[Any]:
    """Return the leaves of a part in the order in which `fill_part` visits them."""
    if isinstance(nest, tuple | list):
        return [leaf for value in nest for leaf in part_leaves(value)]
    if isinstance(nest, dict):
        return [leaf for value in nest.values() for leaf in part_leaves(value)]
    return [nest]
