"""Which parameters lie in which flat group, and whether that is still so."""

from collections.abc import Hashable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from fptt._checks import are_finite, check_positive
from fptt._engine.compiled.compiler import EAGER_INSTEAD, CompilationError
from fptt._engine.compiled.flat import PARAM, FlatGroup, make_groups, memberships
from fptt._regularizer.regularizer import DynamicRegularizer


class Layout:
    """The flat groups of a model and its loss.

    Parameters that are updated alike lie in one group: usually all of them. Those of another parameter group, or which
    not every step uses, lie in others.

    Attributes:
        groups: The flat groups.
        usage: The names of the parameters that get a gradient, of each compiled step.
    """

    def __init__(self, module: nn.Module, optimizer: Optimizer, memory: DynamicRegularizer | None) -> None:
        self.module, self.optimizer, self.memory = module, optimizer, memory
        self.groups: list[FlatGroup] = []
        self.usage: dict[Hashable, frozenset[str]] = {}
        self._lasting: dict[str, tuple[Any, ...]] = {}

    def refresh(self) -> bool:
        """Gather everything anew if groups or tensors were changed from outside.

        Returns:
            Whether the groups have another structure, which no compiled step fits any more.
        """
        named = dict(self.module.named_parameters())
        found = memberships(named, self.optimizer, self.memory, list(self.usage.values()))
        if any(own.dtype.is_complex for own in found.values()):
            raise CompilationError(f"engine='compiled' has no rules for complex parameters. {EAGER_INSTEAD}")
        lasting = {name: (*own[:4], own.dtype, own.device) for name, own in found.items()}
        if lasting == self._lasting and all(group.is_current() for group in self.groups):
            return False
        before = [group.structure for group in self.groups]
        self.groups = make_groups(named, found, self.optimizer, self.memory)
        self._lasting = lasting
        return before != [group.structure for group in self.groups]

    def publish(self) -> None:
        """Show what lies in the buffers to optimizer and regularizer."""
        for group in self.groups:
            group.publish()

    def has_finite_weights(self) -> bool:
        """Tell whether no weight is NaN or Inf."""
        return are_finite(group.buffers[PARAM] for group in self.groups)

    def groups_of(self, key: Hashable) -> list[FlatGroup]:
        """Return the groups that a step updates."""
        number = list(self.usage).index(key)
        return [group for group in self.groups if group.membership.used_in[number]]

    def module_tensors(self, key: Hashable) -> dict[str, Tensor]:
        """Return the parameters and buffers that a step only reads, or that the model changes by itself."""
        trained = {name for group in self.groups_of(key) for name in group.names}
        named = {**dict(self.module.named_parameters()), **dict(self.module.named_buffers())}
        return {name: tensor.detach() for name, tensor in named.items() if name not in trained}

    def numbers(self, makes_update: Tensor, device: torch.device) -> dict[int, list[Tensor]]:
        """Return, for each group, a row of numbers for every chunk, (K,) of them, from now on.

        Args:
            makes_update: Whether each chunk makes an update, (K,).
            device: Where the rows shall lie.
        """
        return {id(group): _rows(group, makes_update, device) for group in self.groups}


def _rows(group: FlatGroup, makes_update: Tensor, device: torch.device) -> list[Tensor]:
    steps = (group.num_steps + makes_update.double().cumsum(0)).clamp(min=1)  # a chunk without an update uses none
    columns = group.rule.numbers(steps)
    if group.memory is not None:
        check_positive("alpha", group.alpha)
        columns.append(group.alpha)
    table = torch.stack([torch.as_tensor(column, dtype=torch.float64).expand(len(steps)) for column in columns], dim=1)
    return list(table.to(device, torch.promote_types(group.membership.dtype, torch.float32)).unbind())
