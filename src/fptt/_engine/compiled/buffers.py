"""Flat buffers: parameters, moments, averages and duals, one tensor each, and which parameter lies in which."""

from collections.abc import Hashable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from fptt._checks import are_finite
from fptt._engine.compiled.compiler import EAGER_INSTEAD, CompilationError
from fptt._engine.compiled.rules import Rule, make_rule
from fptt._regularizer.regularizer import DynamicRegularizer, ParameterState

PARAM, AVERAGE, DUAL = "param", "average", "dual"


class Membership(NamedTuple):
    """The properties that the parameters of one flat group share, since one kernel updates them all.

    Attributes:
        optimizer_group: Number of their group in the optimizer.
        penalty_group: Number of their group in the regularizer; None without a penalty.
        used_in: Numbers of the compiled steps in which they get a gradient.
        flags: Identity and formula of the optimizer's group; see `_flags`.
        kept: Names of what is kept of them so far.
        num_steps: Updates so far.
        dtype, device: Theirs.
    """

    optimizer_group: int
    penalty_group: int | None
    used_in: frozenset[int]
    flags: tuple[Any, ...]
    kept: tuple[str, ...]
    num_steps: int
    dtype: torch.dtype
    device: torch.device

    @property
    def lasting(self) -> tuple[Any, ...]:
        """The properties that training itself does not change: others mean that something came from outside."""
        return (*self[:4], self.dtype, self.device)


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
        regularizer: DynamicRegularizer | None,
    ) -> None:
        self.names, self.params = list(params), list(params.values())
        self.membership, self.optimizer = membership, optimizer
        self.regularizer = None if membership.penalty_group is None else regularizer
        self.rule: Rule = make_rule(optimizer, optimizer.param_groups[membership.optimizer_group])
        self.num_steps = membership.num_steps
        self.sizes = [param.numel() for param in self.params]
        self.buffers = self._gather()
        self._views = {name: self.split(buffer) for name, buffer in self.buffers.items()}
        # the model trains on the buffer itself: whoever holds the parameter, such as an optimizer or a tied layer, sees
        # every update, and nothing is copied back after a step
        for param, view in zip(self.params, self._views[PARAM], strict=True):
            param.data = view

    @torch.no_grad()
    def _gather(self) -> dict[str, Tensor]:
        """Copy everything into flat buffers; what is not there yet begins as at the first step of eager training."""
        weights = [param.detach() for param in self.params]
        tensors = {PARAM: weights}
        for name in self.rule.moments:
            tensors[name] = [self._kept_moment(param, name) for param in self.params]
        if self.regularizer is not None:
            # not begun yet: W̄ = W and λ = 0, so that the first step is the optimizer's own
            states = [
                self.regularizer.state.get(param) or ParameterState(weight, torch.zeros_like(weight))
                for param, weight in zip(self.params, weights, strict=True)
            ]
            tensors[AVERAGE] = [state.average for state in states]
            tensors[DUAL] = [state.dual for state in states]
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
        assert self.regularizer is not None
        assert self.membership.penalty_group is not None
        return self.regularizer.param_groups[self.membership.penalty_group]["fptt_alpha"]

    @property
    def structure(self) -> tuple[Any, ...]:
        """What a compiled step takes as given."""
        shapes = tuple(tuple(param.shape) for param in self.params)
        flags = tuple(self.rule.flags.items())
        return (*self.names, shapes, type(self.rule), flags, self.regularizer is not None, self.membership.dtype)

    @torch.no_grad()
    def publish(self) -> None:
        """Show the moments to the optimizer and averages and duals to the regularizer, once a step has been made."""
        if not self.num_steps:
            return  # an optimizer that has not stepped has no state, and a checkpoint of it must not have any
        for number, param in enumerate(self.params):
            if self.rule.has_step:
                # torch counts steps in a tensor of each parameter; here there is one count for the group
                step = self.optimizer.state[param].setdefault("step", torch.zeros((), dtype=_step_dtype()))
                step.fill_(self.num_steps)
            if self.rule.moments:
                self.optimizer.state[param].update({name: self._views[name][number] for name in self.rule.moments})
            if self.regularizer is not None:
                views = (self._views[name][number] for name in (AVERAGE, DUAL))
                self.regularizer.state[param] = ParameterState(*views)

    def is_current(self) -> bool:
        """Return whether model, optimizer and regularizer still hold what lies in the buffers."""
        return all(self._is_current(number, param) for number, param in enumerate(self.params))

    def _is_current(self, number: int, param: nn.Parameter) -> bool:
        if not _is_same(param, self._views[PARAM][number]):
            return False
        state = self.optimizer.state.get(param, {})
        kept_names = self.rule.moments if self.num_steps else ()
        if any(not _is_same(state.get(name), self._views[name][number]) for name in kept_names):
            return False
        if self.rule.has_step and num_steps(state) != self.num_steps:
            return False
        if self.regularizer is None:
            return True
        kept = self.regularizer.state.get(param)
        # a regularizer that was reset has forgotten its state, and so must the buffers
        if kept is None or not self.num_steps:
            return kept is None and not self.num_steps
        return all(_is_same(kept[k], self._views[name][number]) for k, name in enumerate((AVERAGE, DUAL)))

    def numbers(self, makes_update: Tensor, device: torch.device) -> list[Tensor]:
        """Return the row of numbers of every chunk, from now on: those of the rule, and α if there is a penalty.

        Learning rate, bias corrections and α change from update to update: as inputs of the compiled step they do not
        need another step, and one copy moves those of all chunks to the device.

        Args:
            makes_update: Whether each chunk makes an update, (K,).
            device: The device of the rows.
        """
        steps = (self.num_steps + makes_update.double().cumsum(0)).clamp(min=1)  # a chunk without an update uses none
        columns = self.rule.numbers(steps)
        if self.regularizer is not None:
            self.regularizer.check_strength("fptt_alpha", self.alpha, self.params)  # it may be changed while training
            columns.append(self.alpha)
        # in float64 until here: 1 − β₂ᵗ of the first steps has few digits in float32
        columns = [torch.as_tensor(column, dtype=torch.float64).expand(len(steps)) for column in columns]
        wide = torch.promote_types(self.membership.dtype, torch.float32)
        return list(torch.stack(columns, dim=1).to(device, wide).unbind())


def _is_same(tensor: Tensor | None, view: Tensor) -> bool:
    # by address: an optimizer wraps what is loaded into tensors of its own, and `is` would call every view another
    if tensor is None or tensor.data_ptr() != view.data_ptr():
        return False
    return (tensor.shape, tensor.stride(), tensor.dtype) == (view.shape, view.stride(), view.dtype)


def num_steps(state: dict[str, Any]) -> int:
    """Return the steps that an optimizer has made for a parameter; 1 if it has made some and does not count them."""
    if "step" in state:
        return int(state["step"])
    # SGD counts none, but its first step is another: the momentum buffer begins as the gradient
    return int(any(value is not None for value in state.values()))


def _step_dtype() -> torch.dtype:
    # as torch.optim has it, so that both engines leave the same checkpoints
    return torch.float64 if torch.get_default_dtype() == torch.float64 else torch.float32


def memberships(
    params: dict[str, nn.Parameter],
    optimizer: Optimizer,
    regularizer: DynamicRegularizer | None,
    usage: Mapping[int, frozenset[str]],
) -> dict[str, Membership]:
    """Return the membership of each parameter that the optimizer trains and a compiled step uses.

    Args:
        params: Of the model and the loss, by name.
        optimizer: Their optimizer.
        regularizer: The regularizer, if there is one.
        usage: The names of the parameters that get a gradient, by the number of the compiled step.
    """
    groups = dict(_numbered(optimizer.param_groups))
    penalized = [] if regularizer is None else regularizer.param_groups
    regularized = {p: n for p, n in _numbered(penalized) if penalized[n]["fptt_alpha"] is not None}
    flags = [_flags(optimizer, group) for group in optimizer.param_groups]
    found = {}
    for name, param in params.items():
        # by use: a parameter that a step has no gradient for must keep its moments, as `optimizer.step()` skips it
        used_in = frozenset(number for number, used in usage.items() if name in used)
        if param in groups and param.requires_grad and used_in:
            state = optimizer.state.get(param, {})
            kept = [key for key, value in state.items() if value is not None]
            if regularizer is not None and param in regularizer.state:
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


def _numbered(param_groups: list[dict[str, Any]]) -> Iterator[tuple[Tensor, int]]:
    return ((param, number) for number, group in enumerate(param_groups) for param in group["params"])


class Layout:
    """The flat groups of a model and its loss.

    Parameters that are updated alike lie in one group: usually all of them. Those of another parameter group, or that
    not every compiled step uses, lie in others.

    Attributes:
        groups: The flat groups.
    """

    def __init__(self, module: nn.Module, optimizer: Optimizer, regularizer: DynamicRegularizer | None) -> None:
        self.module, self.optimizer, self.regularizer = module, optimizer, regularizer
        self.groups: list[FlatGroup] = []
        self._numbers: dict[Hashable, int] = {}  # of the compiled steps, by their keys
        self._usage: dict[int, frozenset[str]] = {}
        self._lasting: dict[str, tuple[Any, ...]] = {}

    def add_step(self, key: Hashable, used: frozenset[str]) -> None:
        """Add a compiled step, in which the parameters of these names get a gradient."""
        number = self._numbers.setdefault(key, len(self._numbers))
        self._usage[number] = used

    def refresh(self) -> bool:
        """Gather everything anew if groups or tensors were changed from outside.

        Loaded weights, another learning rate's group, moments of an eager step in between: whatever no longer is a view
        of the buffers is copied into new ones.

        Returns:
            Whether the groups have another structure, which no compiled step fits any more.
        """
        named = dict(self.module.named_parameters())
        if self.regularizer is not None:
            self.regularizer.forget_opted_out()
        found = memberships(named, self.optimizer, self.regularizer, self._usage)
        if any(own.dtype.is_complex for own in found.values()):
            raise CompilationError(f"engine='compiled' has no rules for complex parameters. {EAGER_INSTEAD}")
        lasting = {name: own.lasting for name, own in found.items()}
        if lasting == self._lasting and all(group.is_current() for group in self.groups):
            return False
        before = [group.structure for group in self.groups]
        # dict.fromkeys keeps the order of the parameters, so that the same model has the same buffers in every process
        self.groups = [
            FlatGroup(
                {name: named[name] for name, own in found.items() if own == membership},
                membership,
                self.optimizer,
                self.regularizer,
            )
            for membership in dict.fromkeys(found.values())
        ]
        self._lasting = lasting
        return before != [group.structure for group in self.groups]

    def publish(self) -> None:
        """Let optimizer and regularizer hold views of the buffers."""
        for group in self.groups:
            group.publish()

    def has_finite_weights(self) -> bool:
        """Return whether no weight is NaN or Inf."""
        return are_finite(group.buffers[PARAM] for group in self.groups)

    def groups_of(self, key: Hashable) -> list[FlatGroup]:
        """Return the groups that a compiled step updates."""
        number = self._numbers[key]
        return [group for group in self.groups if number in group.membership.used_in]

    def module_tensors(self, key: Hashable) -> dict[str, Tensor]:
        """Return the parameters and buffers that a step only reads, or that the model changes by itself."""
        trained = {name for group in self.groups_of(key) for name in group.names}
        named = {**dict(self.module.named_parameters()), **dict(self.module.named_buffers())}
        return {name: tensor.detach() for name, tensor in named.items() if name not in trained}
