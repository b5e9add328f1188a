"""A chunk step in pieces, between which the processes that train one model add up their gradients."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fptt._engine.compiled.arguments import HAS_STEPS, MAX_NORM, Arguments
from fptt._engine.compiled.compiler import compile_step
from fptt._engine.compiled.flat import PARAM
from fptt._engine.compiled.step import ChunkStep, norm_of, write
from fptt._sequence import State

Share = Callable[[dict[Tensor, Tensor], Tensor], Tensor]
"""Puts the sums over all processes in the place of gradients, by parameter, and returns the loss of all."""


class _Taken(NamedTuple):
    """What a process has worked out of a chunk; loss and gradients are those of all.

    Attributes:
        own_loss: Of this process.
        loss: Of all.
        gradients: Of each flat group.
        output: Time-major.
        moved: What the forward pass has made of the buffers that it changes.
        state: The tensors of the next state.
    """

    own_loss: Tensor
    loss: Tensor
    gradients: list[Tensor]
    output: Tensor
    moved: list[Tensor]
    state: list[Tensor]


class SplitStep:
    """Takes the gradient, lets it be added up, and makes the update; called with the tensors of `Arguments`.

    It returns what `ChunkStep` does; of a chunk whose numbers are bad, the loss of all. After every chunk it looks
    whether the numbers are good, for all processes must stop at the same one.

    Args:
        step: The step of these chunks.
        arguments: Examples; they are not changed.
        part: What the loss gets of such a chunk.
        state: Of the kind that such a chunk begins with.
        share: See `Share`.
    """

    def __init__(self, step: ChunkStep, arguments: Arguments, part: Any, state: State, share: Share) -> None:
        self.step, self.arguments, self.part, self.state, self.share = step, arguments, part, state, share
        self.moving = [number for number, name in enumerate(step.module_names) if name in step.moving]
        flat = arguments.flat()
        self.take = compile_step(self._take, flat, step.risk)
        with torch.random.fork_rng(), torch.no_grad():
            loss, _, *rest = self.take(*(tensor.clone() for tensor in flat))
        examples = [*flat, loss, *rest[: len(step.groups)]]
        self.advance = compile_step(self._advance, examples, step.risk)
        self.recompute = compile_step(self._recompute, examples, step.risk) if step.update.recomputes else None

    def __call__(self, *flat: Tensor) -> list[Tensor]:
        """Make the step."""
        arguments = self.arguments.filled(flat)
        taken = self._shared(flat)
        (norm,) = self.advance(*flat, taken.loss, *taken.gradients)
        checks, moved = [], taken.moved
        if self.recompute is not None:
            self._move(arguments, moved)
            again = self._shared(flat)
            checks, moved = list(self.recompute(*flat, again.loss, *again.gradients)), again.moved
        if not arguments.alive:
            return [taken.loss, norm, *checks, *taken.state]
        self._move(arguments, moved)
        _, part, _ = self.step.inputs_of(arguments, self.part, self.state)
        self.step.risk.loss.observe(taken.output, part)
        return [taken.own_loss, norm, *checks, *taken.state]

    def _shared(self, flat: Sequence[Tensor]) -> _Taken:
        """Take the gradient and add it up."""
        loss, _, *rest = self.take(*flat)
        groups = self.step.groups
        gradients, (output, *rest) = rest[: len(groups)], rest[len(groups) :]
        named: dict[Tensor, Tensor] = {}
        for group, gradient in zip(groups, gradients, strict=True):
            named.update(zip(group.params, group.split(gradient), strict=True))
        total = self.share(named, loss)
        return _Taken(loss, total, gradients, output, rest[: len(self.moving)], rest[len(self.moving) :])

    def _move(self, arguments: Arguments, moved: Sequence[Tensor]) -> None:
        for number, tensor in zip(self.moving, moved, strict=True):
            arguments.module[number].copy_(tensor)

    # -- the pieces, to be traced ------------------------------------------------------------------------------------

    def _take(self, *flat: Tensor) -> list[Tensor]:
        """Return the loss, the norm of its gradient, the gradients, and all else that `_Taken` holds."""
        step, arguments = self.step, self.arguments.filled(flat)
        module, inputs = step.module_of(arguments), step.inputs_of(arguments, self.part, self.state)
        weights = [own[PARAM] for own in step.buffers_of(arguments)]
        output, loss, gradients, state = step.gradients(weights, module, inputs)
        moved = [module[step.module_names[number]] for number in self.moving]
        return [loss, norm_of(gradients), *gradients, output, *moved, *step.keep_state(state)]

    def _advance(self, *flat: Tensor) -> list[Tensor]:
        """Make the update of the gradients of all; return their norm."""
        step, (arguments, loss, gradients) = self.step, self._filled(flat)
        buffers, numbers, row = step.buffers_of(arguments), step.numbers_of(arguments), arguments.row.unbind()
        norm, updates = norm_of(gradients), row[HAS_STEPS] > 0
        alive = step.still_alive(arguments.alive, loss, norm, updates)
        write(buffers, step.advance(buffers, gradients, norm, numbers, row[MAX_NORM]), alive & updates)
        arguments.alive.copy_(alive)
        return [norm]

    def _recompute(self, *flat: Tensor) -> list[Tensor]:
        """Make the gradients at the new weights the duals; return whether they are finite."""
        step, (arguments, loss, gradients) = self.step, self._filled(flat)
        buffers, numbers, updates = (
            step.buffers_of(arguments),
            step.numbers_of(arguments),
            arguments.row[HAS_STEPS] > 0,
        )
        check = step.is_finite(loss, gradients) | ~updates
        alive = arguments.alive & check
        weights = [own[PARAM] for own in buffers]
        write(buffers, step.recomputed(buffers, weights, gradients, numbers), alive & updates)
        arguments.alive.copy_(alive)
        return [check]

    def _filled(self, flat: Sequence[Tensor]) -> tuple[Arguments, Tensor, list[Tensor]]:
        num_arguments = len(flat) - 1 - len(self.step.groups)
        return self.arguments.filled(flat[:num_arguments]), flat[num_arguments], list(flat[num_arguments + 1 :])
