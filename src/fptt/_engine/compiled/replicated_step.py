"""The chunk step of replicas: in two pieces, between which the processes add up their gradients."""

from typing import Any

import torch
from torch import Tensor

from fptt._engine.compiled.compiler import compile_step
from fptt._engine.compiled.step import Arguments, ChunkStep, norm_of
from fptt._parallel.replicas import DistributedReplicas
from fptt._sequence import State


class ReplicatedStep:
    """Takes the gradient, adds it up over the replicas, and makes the update; called as `ChunkStep` is when compiled.

    A message between processes cannot be part of a compiled graph on every backend, so the graph is cut there. After
    every chunk the caller must look whether the numbers are good, since all processes must stop at the same one.

    Args:
        step: The step of these chunks.
        arguments: Examples; they are not changed.
        part: The nest of the part of such a chunk.
        state: The nest of the state with which such a chunk begins.
        replicas: The processes.
    """

    def __init__(
        self, step: ChunkStep, arguments: Arguments, part: Any, state: State, replicas: DistributedReplicas
    ) -> None:
        self.step, self.arguments, self.part, self.state, self.replicas = step, arguments, part, state, replicas
        flat = arguments.flat()
        self.take = compile_step(self._take, flat, step.risk)
        with torch.random.fork_rng(), torch.no_grad():
            loss, _, *rest = self.take(*(tensor.clone() for tensor in flat))
        self.advance = compile_step(self._advance, [*flat, loss, *rest[: len(step.groups)]], step.risk)

    def __call__(self, *flat: Tensor, weight: float) -> list[Tensor]:
        """Make the step.

        Args:
            flat: The tensors of `Arguments`.
            weight: Of this process's loss in that of all.

        Returns:
            What `ChunkStep` returns; of a chunk whose numbers are bad, the loss of all.
        """
        arguments = self.arguments.filled(flat)
        own_loss, _, *rest = self.take(*flat)
        num_groups, num_moving = len(self.step.groups), len(self.step.moving)
        gradients, output, moved = rest[:num_groups], rest[num_groups], rest[num_groups + 1 :][:num_moving]
        next_states = rest[num_groups + 1 + num_moving :]
        named: dict[Tensor, Tensor] = {}
        for group, gradient in zip(self.step.groups, gradients, strict=True):
            named.update(zip(group.params, group.split(gradient), strict=True))
        loss = self.replicas.add_(named, own_loss, weight)  # in place: views of the flat gradients
        (norm,) = self.advance(*flat, loss, *gradients)
        if not arguments.alive:  # nothing may change any more, not even buffers
            return [loss, norm, *next_states]
        for name, tensor in zip(self.step.moving, moved, strict=True):
            arguments.module[name].copy_(tensor)
        part = self.step.flow_of(arguments, self.part, self.state).part
        # not in a piece: a running estimate is of all processes
        self.step.risk.loss.observe(output, part, self.replicas.reduce)
        return [own_loss, norm, *next_states]

    # -- the pieces, to be traced ------------------------------------------------------------------------------------

    def _take(self, *flat: Tensor) -> list[Tensor]:
        """Return loss, norm, gradient of each group, outputs, what the forward pass has changed, and next states."""
        step, arguments = self.step, self.arguments.filled(flat)
        module = {name: tensor.clone() for name, tensor in arguments.module.items()}
        flow = step.flow_of(arguments, self.part, self.state)
        output, loss, gradients, *states = step.gradients(arguments.buffers, module, flow)
        moved = [module[name] for name in step.moving]
        return [loss, norm_of(gradients), *gradients, output, *moved, *step.keep_states(*states)]

    def _advance(self, *flat: Tensor) -> list[Tensor]:
        """Make the update with the gradients of all; return their norm."""
        num_arguments = len(flat) - 1 - len(self.step.groups)
        arguments, (loss, *gradients) = self.arguments.filled(flat[:num_arguments]), flat[num_arguments:]
        return [self.step.update_(arguments, loss, list(gradients))]
