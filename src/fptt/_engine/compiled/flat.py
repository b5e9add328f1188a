"""Parameters, moments, averages and duals in one flat buffer each: the model's own tensors become views of them."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from fptt._engine.compiled.rules import Rule, make_rule
from fptt._regularizer.regularizer import DynamicRegularizer, ParameterState

PARAM, AVERAGE, DUAL = "param", "average", "dual"


class Membership(NamedTuple):
    """What the parameters of one flat group have in common; the first four say whether a group is still what it was."""

    optimizer_group: int
    memory_group: int | None
    used_in: tuple[bool, ...]
    flags: tuple[Any, ...]
    kept: tuple[str, ...]
    num_steps: int
    dtype: torch.dtype
    device: torch.device


class FlatGroup:
    """Parameters that are updated alike, and everything that is kept of them, each as one flat buffer.

    Attributes:
        names: Of the parameters, in the model.
        rule: Of their optimizer.
        buffers: `param`, the moments of the rule and, if they are regularized, `average` and `dual`, (N,) each.
        num_steps: Updates so far.
    """

    def __init__(
        self,
        params: dict[str, nn.Parameter],
        membership: Membership,
        optimizer: Optimizer,
        memory: DynamicRegularizer | None,
    ) -> None:
        self.names, self.params = list(params), list(params.values())
        self.membership, self.optimizer = membership, optimizer
        self.memory = None if membership.memory_group is None else memory
        self.rule: Rule = make_rule(optimizer, optimizer.param_groups[membership.optimizer_group])
        self.num_steps = membership.num_steps
        self.sizes = [param.numel() for param in self.params]
        self.buffers = self._gather()
        self._views = {name: self.split(buffer) for name, buffer in self.buffers.items()}
        for param, view in zip(self.params, self._views[PARAM], strict=True):
            param.data = view

    @torch.no_grad()
    def _gather(self) -> dict[str, Tensor]:
        """Copy everything into flat buffers; what is not there yet begins as at the first step of eager training."""
        weights = [param.detach() for param in self.params]
        tensors = {PARAM: weights}
        for name in self.rule.moments:
            tensors[name] = [self._kept_moment(param, name) for param in self.params]
        if self.memory is not None:
            states = [self.memory.state.get(param) for param in self.params]
            begun = zip(states, weights, strict=True)
            tensors[AVERAGE] = [weight if state is None else state.average for state, weight in begun]
            begun = zip(states, weights, strict=True)
            tensors[DUAL] = [torch.zeros_like(weight) if state is None else state.dual for state, weight in begun]
        return {name: torch.cat([tensor.reshape(-1) for tensor in parts]) for name, parts in tensors.items()}

    def _kept_moment(self, param: Tensor, name: str) -> Tensor:
        kept = self.optimizer.state.get(param, {}).get(name)
        return torch.zeros_like(param) if kept is None else kept

    def split(self, flat: Tensor) -> list[Tensor]:
        """Return the part of each parameter in a flat tensor, in its shape."""
        parts = flat.split(self.sizes)
        return [part.view(param.shape) for part, param in zip(parts, self.params, strict=True)]

    @property
    def alpha(self) -> float:
        """Strength of the penalty, as it is now."""
        assert self.memory is not None
        assert self.membership.memory_group is not None
        return self.memory.param_groups[self.membership.memory_group]["fptt_alpha"]

    @property
    def structure(self) -> tuple[Any, ...]:
        """What a compiled step takes as given."""
        shapes = tuple(tuple(param.shape) for param in self.params)
        flags = tuple(self.rule.flags.items())
        return (*self.names, shapes, type(self.rule), flags, self.memory is not None, self.membership.dtype)

    @torch.no_grad()
    def publish(self) -> None:
        """Show the moments to the optimizer and averages and duals to the regularizer, once a step has been made."""
        if not self.num_steps:
            return
        for number, param in enumerate(self.params):
            if self.rule.has_step:
                step = self.optimizer.state[param].setdefault("step", torch.zeros((), dtype=_step_dtype()))
                step.fill_(self.num_steps)
            if self.rule.moments:
                self.optimizer.state[param].update({name: self._views[name][number] for name in self.rule.moments})
            if self.memory is not None:
                views = (self._views[name][number] for name in (AVERAGE, DUAL))
                self.memory.state[param] = ParameterState(*views)

    def is_current(self) -> bool:
        """Tell whether model, optimizer and regularizer still hold what lies in the buffers."""
        return all(self._is_current(number, param) for number, param in enumerate(self.params))

    def _is_current(self, number: int, param: nn.Parameter) -> bool:
        if not _is_same(param, self._views[PARAM][number]):
            return False
        state = self.optimizer.state.get(param, {})
        if any(not _is_same(state.get(name), self._views[name][number]) for name in self._kept_now()):
            return False
        if self.rule.has_step and num_steps(state) != self.num_steps:
            return False
        if self.memory is None:
            return True
        kept = self.memory.state.get(param)
        if kept is None or not self.num_steps:
            return kept is None and not self.num_steps
        return all(_is_same(kept[k], self._views[name][number]) for k, name in enumerate((AVERAGE, DUAL)))

    def _kept_now(self) -> tuple[str, ...]:
        return self.rule.moments if self.num_steps else ()


def _is_same(tensor: Tensor | None, view: Tensor) -> bool:
    if tensor is None or tensor.data_ptr() != view.data_ptr():
        return False
    return (tensor.shape, tensor.stride(), tensor.dtype) == (view.shape, view.stride(), view.dtype)


def num_steps(state: dict[str, Any]) -> int:
    """Return the steps that an optimizer has made for a parameter; 1 if it has made some and does not count them."""
    if "step" in state:
        return int(state["step"])
    return int(any(value is not None for value in state.values()))


def _step_dtype() -> torch.dtype:
    return torch.float64 if torch.get_default_dtype() == torch.float64 else torch.float32


def memberships(
    params: dict[str, nn.Parameter],
    optimizer: Optimizer,
    memory: DynamicRegularizer | None,
    usage: Sequence[frozenset[str]],
) -> dict[str, Membership]:
    """Return what each parameter that the optimizer trains and a step uses belongs to.

    Args:
        params: Of the model and the loss, by name.
        optimizer: Their optimizer.
        memory: The regularizer, if there is one.
        usage: The names of the parameters that get a gradient, of every compiled step.
    """
    groups = dict(_numbered(optimizer.param_groups))
    regularized = {} if memory is None else {p: n for p, n in _numbered(memory.param_groups) if _is_on(memory, n)}
    flags = [_flags(optimizer, group) for group in optimizer.param_groups]
    found = {}
    for name, param in params.items():
        used_in = tuple(name in used for used in usage)
        if param in groups and param.requires_grad and any(used_in):
            state = optimizer.state.get(param, {})
            kept = [key for key, value in state.items() if value is not None]
            if memory is not None and param in memory.state:
                kept.append(AVERAGE)
            found[name] = Membership(
                groups[param],
                regularized.get(param),
                used_in,
                flags[groups[param]],
                tuple(sorted(kept)),
                num_steps(state),
                param.dtype,
                param.device,
            )
    return found


def _flags(optimizer: Optimizer, group: dict[str, Any]) -> tuple[Any, ...]:
    """Return the identity of a group, which a loaded state dict replaces, and what changes its formula."""
    return id(group), *make_rule(optimizer, group).flags.items()


def _is_on(memory: DynamicRegularizer, number: int) -> bool:
    return memory.param_groups[number]["fptt_alpha"] is not None


def _numbered(param_groups: list[dict[str, Any]]) -> Iterator[tuple[Tensor, int]]:
    return ((param, number) for number, group in enumerate(param_groups) for param in group["params"])


def make_groups(
    params: dict[str, nn.Parameter],
    found: dict[str, Membership],
    optimizer: Optimizer,
    memory: DynamicRegularizer | None,
) -> list[FlatGroup]:
    """Return the flat groups of all parameters that belong somewhere."""
    return [
        FlatGroup(
            {name: params[name] for name, own in found.items() if own == membership}, membership, optimizer, memory
        )
        for membership in dict.fromkeys(found.values())
    ]
