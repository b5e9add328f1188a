"""Modules that keep their recurrent state inside, as modules that are given a state and return it."""

import copy
from collections import OrderedDict, defaultdict, deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from fptt._engine.compiled.constants import is_made_by_hook
from fptt._random_state import RandomState
from fptt._sequence import State, flatten_state, map_state

OF_TORCH = frozenset(vars(nn.Module()))
"""Attributes that every module has: its parameters, buffers, submodules and hooks, and whether it trains."""
BUFFERS = "_buffers"
PLAIN = (bool, int, float, complex, str, bytes, type(None))
DICTS = (dict, OrderedDict, defaultdict)
CONTAINERS = (*DICTS, list, tuple, deque)


class _Place(NamedTuple):
    """Where a module keeps a value: in an attribute, a buffer, or an entry of a dict that is an attribute.

    Attributes:
        owner: Name of the submodule; empty for the module itself.
        holder: Name of the dict, `_buffers` for buffers; empty for attributes.
        key: Name of the attribute, buffer or entry.
    """

    owner: str
    holder: str
    key: str

    def __str__(self) -> str:
        return ".".join(str(part) for part in self if part not in {"", BUFFERS})

    def container(self, module: nn.Module) -> dict[str, Any]:
        """Return the dict that has the value."""
        attributes = vars(module.get_submodule(self.owner))
        return attributes[self.holder] if self.holder else attributes


class _Held(NamedTuple):
    """The attributes of a submodule, its buffers, or a dict that is an attribute, and what was in it."""

    owner: str
    holder: str
    container: dict[str, Any]
    before: dict[str, Any]

    def is_holder(self, value: Any) -> bool:
        """Return whether a value is a dict whose entries are places of their own."""
        return not self.holder and type(value) in DICTS

    def values(self) -> Iterator[tuple[_Place, Any]]:
        """Yield what is in it now, but for weights that torch computes from parameters before each call."""
        is_hooked = not self.holder and self.container["_forward_pre_hooks"]
        params = self.container["_parameters"] if is_hooked else {}
        for key in _keys(self.holder, self.container):
            if params and is_made_by_hook(key, params):
                continue
            yield _Place(self.owner, self.holder, key), self.container[key]

    def put_back(self) -> None:
        """Make it what it was, the order of its entries too."""
        for key in _keys(self.holder, self.container):
            del self.container[key]
        self.container.update(self.before)


@dataclass
class _Found:
    """What the forward pass of a module changes.

    Attributes:
        state: Places of tensors, by their names.
        late: Names of those that may change for the first time after the first chunk, such as a threshold that rises
            with a spike: a state may lack them.
        plain: Values that are no tensors, as they are after the first pass, such as a flag that there is a state.
    """

    state: dict[str, _Place] = field(default_factory=dict)
    late: set[str] = field(default_factory=set)
    plain: dict[_Place, Any] = field(default_factory=dict)


@dataclass
class _Findings:
    """By whether the module trains: dropout may keep its mask then. An object, which the compiled engine looks past.

    Attributes:
        by_mode: What the last sequence that began has changed, and the tensors that were changed in earlier ones.
        begin_late: Whether something begins with the second step, which a first chunk of one step does not show.
    """

    by_mode: dict[bool, _Found] = field(default_factory=dict)
    begin_late: dict[bool, bool] = field(default_factory=dict)


_Installed = dict[_Place, tuple[Any, list[tuple[Any, Any]]]]
"""What was in each place before a run, and its contents then, see `_contents`."""


class Explicit(nn.Module):
    """A module that keeps its state inside, as `(inputs, state) -> (outputs, state)`.

    For networks of SpikingJelly, of snnTorch with `init_hidden=True`, and of your own: of no library in particular. The
    state is whatever tensors a forward pass puts in the place of attributes, buffers and entries of dicts, or changes
    there in place, also within lists, tuples, deques and dicts at any depth, by their names. Each call puts the given
    state in, runs the module, takes the new state out, and puts back what was there. So a sequence begins, with state
    None, as the module stands: give it fresh, or reset. What training alone keeps, such as a mask of dropout, goes
    through inference as it is. Parameters, statistics that are changed in place (`nn.BatchNorm1d`), weights that torch
    computes before each call (`nn.utils.prune`) and constants are left alone.

    Args:
        module: Called with the inputs alone. Not copied: its weights are those of the adapter.
        each_step: Whether it takes one step, (B, …), and is called for each; or else all of them, (T, B, …).
        output: Which of its outputs, where it returns a tuple of them.
        state_batch_dim: Which dimension of every tensor of the state is the batch: 0 in modules of one step. Where
            `is_first` begins single lanes, those are taken along it: for the state of an `nn.GRU` of torch,
            (num_layers, B, H), give 1. A wrong one is an error unless that dimension happens to be as long as the
            batch: then other parts of the state would begin again.

    Raises:
        ValueError: On a call, if a state is none of this module; if the module changes a number at every step,
            tensors in an object or a mixed container, or a buffer in place with a graph, which no state can carry. The
            message names it.
        TypeError: On a call, if the module returns something else than a tensor.

    Examples:
        >>> from fptt.integrations.stateful import Explicit
        >>> class Leaky(nn.Module):
        ...     v = 0.0
        ...     def forward(self, x):
        ...         self.v = 0.5 * self.v + x
        ...         return self.v
        >>> model = Explicit(nn.Sequential(Leaky()))
        >>> _, state = model(torch.ones(1, 2, 3))
        >>> outputs, state = model(torch.ones(2, 2, 3), state)
        >>> outputs[:, 0, 0].tolist(), list(state), model.module[0].v
        ([1.5, 1.75], ['0.v'], 0.0)
    """

    batch_first = False

    def __init__(
        self, module: nn.Module, *, each_step: bool = True, output: int | None = None, state_batch_dim: int = 0
    ) -> None:
        super().__init__()
        self.module, self.each_step, self.output = module, each_step, output
        self.state_batch_dim = state_batch_dim
        self._findings = _Findings()

    def forward(self, inputs: Tensor, state: State = None) -> tuple[Tensor, State]:
        """Return outputs, (T, B, …), and the next state, a dict, for inputs (T, B, …); state None begins as it is."""
        if state is None and len(inputs) == 1 and self._begins_late(inputs):
            state = self.initial_state(inputs)
        return self._begin(inputs) if state is None else self._go_on(inputs, state)

    @torch.no_grad()
    def initial_state(self, inputs: Tensor) -> State:
        """Return the state that None stands for, as tensors of the shapes that states for these inputs have.

        Numbers and smaller tensors are spread over the batch. What begins with nothing, None or a tensor without
        entries, begins with zeros. That is checked by running a step both ways, and so is a flag that the first step
        changes, which has its later value with every state.

        Raises:
            ValueError: If something begins with nothing and not with zeros, or a flag makes the first step another one.
        """
        first = _twice(inputs)
        with self._trying(inputs):
            outputs, after = self._begin(first)
        found = self._known(inputs)
        state, unknown, flags = {}, [], [str(place) for place in found.plain]
        for name, place in found.state.items():
            now = place.container(self.module).get(place.key)
            state[name] = map_state(torch.zeros_like, after[name]) if _is_nothing(now) else _spread(now, after[name])
            unknown += [name] if _is_nothing(now) else []
        if unknown or flags:
            with self._trying(inputs):
                others, also = self._go_on(first, state)
            pairs = zip([outputs, *flatten_state(after)], [others, *flatten_state(also)], strict=True)
            if not all(torch.allclose(one, other, equal_nan=True) for one, other in pairs):
                names, told = ", ".join(unknown or state or flags), f", as {', '.join(flags)} tells it" if flags else ""
                raise ValueError(
                    f"{names} of the {type(self.module).__name__} must begin with zeros, or with what the module holds "
                    f"beforehand as a number or tensor, got something else that it makes by itself{told}."
                )
        return state

    def _begin(self, inputs: Tensor) -> tuple[Tensor, dict[str, State]]:
        """Run from what the module holds, find out what that changes, and put it back."""
        held = list(_held(self.module))
        try:
            installed = _install(self.module, held, {})
            outputs = self._run(inputs)
            found, state = self._changes(held, installed)
            earlier = self._findings.by_mode.get(self.training, _Found())
            for name, place in earlier.state.items():
                value = place.container(self.module).get(place.key)
                if name not in state and _is_nest(value):  # as it stands: it may change in a later chunk
                    found.state[name], state[name] = place, value
                    found.late.add(name)
        finally:
            for own in held:
                own.put_back()
        self._findings.by_mode[self.training] = found
        return outputs, state

    def _changes(self, held: list[_Held], installed: _Installed) -> tuple[_Found, dict[str, State]]:
        """Return what a run has changed, and the state that it has left.

        Raises:
            ValueError: If no state can carry it.
        """
        found, state = _Found(), {}
        for holder, place, value in ((own, *pair) for own in held for pair in own.values()):
            old, contents = installed.get(place, (_ABSENT, []))
            if value is old and (
                type(value) in PLAIN or holder.is_holder(value) or _are_same(_contents(value), contents)
            ):
                continue
            name = str(place)
            if value is old and place.holder == BUFFERS:
                _check_statistics(name, value)
            elif _is_nest(value):
                found.state[name], state[name] = place, value
            elif value is not old and _is_equal(value, old):
                continue
            elif any(isinstance(part, Tensor) for part, _ in _contents(value)):
                raise ValueError(
                    f"{name} of the {type(self.module).__name__} must be a tensor, or a list, tuple, deque or dict "
                    f"of nothing but tensors, for the state to have them, got a changed {type(value).__name__}."
                )
            else:
                found.plain[place] = value  # the same list may have other entries
        return found, state

    def _go_on(self, inputs: Tensor, state: State) -> tuple[Tensor, dict[str, State]]:
        """Run from a given state, and put back what was there.

        The state may be of the other mode: what that one alone keeps goes through, and what it lacks begins.
        """
        found = self._known(inputs)
        modes = self._findings.by_mode.values()
        known = {name for own in modes for name in own.state}
        least = [own.state.keys() - own.late for own in modes]
        if not isinstance(state, dict) or state.keys() - known or not any(state.keys() >= names for names in least):
            kept = ", ".join(found.state) or "nothing"
            got = f"one of {', '.join(state) or 'nothing'}" if isinstance(state, dict) else f"a {type(state).__name__}"
            raise ValueError(f"state must be a dict of {kept}, as the {type(self.module).__name__} keeps, got {got}.")
        held = list(_held(self.module))
        try:
            given = {place: _copied(value, {}) for place, value in found.plain.items()}
            for name, place in found.state.items():
                if name in state:  # copies: the module may write into them, if not in this chunk then in another
                    given[place] = map_state(Tensor.clone, state[name])
            installed = _install(self.module, held, given)
            outputs = self._run(inputs)
            changed, late = self._changes(held, installed)
            for place, now in changed.plain.items():
                value = found.plain[place] if place in found.plain else _before(held, place)
                if not _is_equal(now, value):
                    raise ValueError(
                        f"{place} of the {type(self.module).__name__} must stay as it is after the first step, for a "
                        f"state has tensors only, got {now!r} after {value!r}."
                    )
            after = {name: place.container(self.module).get(place.key) for name, place in found.state.items()}
        finally:
            for own in held:
                own.put_back()
        found.late |= late.keys() - found.state.keys()
        found.state |= changed.state
        return outputs, {**state, **after, **late}

    def _known(self, inputs: Tensor) -> _Found:
        """Return what a forward pass changes; a copy of the adapter, or one in another mode, has to try."""
        if self.training not in self._findings.by_mode:
            with self._trying(inputs):
                self._begin(_twice(inputs))
        return self._findings.by_mode[self.training]

    def _begins_late(self, inputs: Tensor) -> bool:
        """Return whether a second step changes more than the first one: a state of one step would not have it."""
        if self.training not in self._findings.begin_late:
            with self._trying(inputs):
                changed: list[set[Any]] = []
                for steps in (inputs, _twice(inputs)):
                    self._begin(steps)
                    found = self._findings.by_mode[self.training]
                    changed.append({*found.state.values(), *found.plain})
            self._findings.begin_late[self.training] = changed[0] != changed[1]
        return self._findings.begin_late[self.training]

    def _run(self, inputs: Tensor) -> Tensor:
        if not self.each_step:
            return self._taken(self.module(inputs))
        return torch.stack([self._taken(self.module(step)) for step in inputs])

    def _taken(self, outputs: Any) -> Tensor:
        """Return the output that was asked for.

        Raises:
            TypeError: If it is no tensor.
        """
        taken = outputs[self.output] if self.output is not None and isinstance(outputs, tuple | list) else outputs
        if not isinstance(taken, Tensor):
            hint = ": say by `output` which of its outputs" if isinstance(taken, tuple | list) else ""
            raise TypeError(f"module must return a tensor, got a {type(taken).__name__}{hint}.")
        return taken

    @contextmanager
    def _trying(self, inputs: Tensor) -> Iterator[None]:
        """Let the module run without a gradient, and without a trace in random numbers and buffers."""
        copies = [(buffer, buffer.clone()) for buffer in self.module.buffers()]
        try:
            with RandomState.capture(inputs.device).replay(), torch.no_grad():
                yield
        finally:
            for buffer, values in copies:
                buffer.data.copy_(values)  # as it was: a graph that has saved it does not mind


_ABSENT: Any = object()


def _twice(inputs: Tensor) -> Tensor:
    """Return the first step twice: some states, such as a trace of the step before, begin with the second."""
    return inputs[:1].expand(2, *inputs.shape[1:])


def _held(module: nn.Module) -> Iterator[_Held]:
    """Yield everything that a module and its submodules hold beside parameters."""
    for owner, submodule in module.named_modules():
        attributes = vars(submodule)
        holders = {"": attributes, BUFFERS: attributes[BUFFERS]}
        holders |= {key: attributes[key] for key in _keys("", attributes) if type(attributes[key]) in DICTS}
        for holder, container in holders.items():
            yield _Held(owner, holder, container, {key: container[key] for key in _keys(holder, container)})


def _install(module: nn.Module, held: list[_Held], given: dict[_Place, Any]) -> _Installed:
    """Put what is given in its places, and copies in all others, so that a change in place leaves the originals."""
    installed: _Installed = {}
    copies: dict[int, Any] = {}
    for place, value in given.items():
        place.container(module)[place.key] = value
    for own in held:
        for place, value in own.values():
            is_holder = own.is_holder(value)  # a dict has places of its own
            if not is_holder and place.holder != BUFFERS and place not in given:
                own.container[place.key] = value = _copied(value, copies)  # noqa: PLW2901
            installed[place] = value, [] if is_holder or type(value) in PLAIN else _contents(value)
    return installed


def _before(held: list[_Held], place: _Place) -> Any:
    """Return what was in a place, None if there was nothing."""
    return next(own.before.get(place.key) for own in held if place[:2] == own[:2])


def _keys(holder: str, container: dict[str, Any]) -> list[str]:
    return [key for key in container if holder or key not in OF_TORCH]


def _copied(value: Any, copies: dict[int, Any]) -> Any:
    """Return a value with its tensors and containers copied, at any depth.

    Args:
        value: Of any type; other objects are themselves.
        copies: By the id of a value and of its copy, so that what is shared stays shared. Their owner keeps the values.
    """
    if type(value) in PLAIN:
        return value
    if id(value) in copies:
        return copies[id(value)]
    if isinstance(value, Tensor):
        own = value.clone()
    elif type(value) in DICTS:
        own = copy.copy(value)
        own.update({key: _copied(entry, copies) for key, entry in value.items()})
    elif type(value) in (list, deque):
        own = copy.copy(value)
        own.clear()
        own.extend(_copied(entry, copies) for entry in value)
    elif type(value) is tuple:
        own = tuple(_copied(entry, copies) for entry in value)
    elif isinstance(value, tuple) and hasattr(value, "_fields"):
        own = type(value)(*(_copied(entry, copies) for entry in value))
    else:
        return value
    copies[id(value)] = copies[id(own)] = own
    return own


def _contents(value: Any, seen: set[int] | None = None) -> list[tuple[Any, Any]]:
    """Return the parts of a value at any depth, each with the number of its changes in place.

    Of objects that are no containers only the tensors: what else they hold is their own affair. The parts themselves
    and not their ids, which are used again.
    """
    seen = set() if seen is None else seen
    if isinstance(value, Tensor):
        return [(value, None if value.is_inference() else value._version)]
    if isinstance(value, (*PLAIN, type, ModuleType, nn.Module)) or id(value) in seen:
        return [(value, None)]
    seen.add(id(value))
    if isinstance(value, CONTAINERS):
        entries = [part for pair in value.items() for part in pair] if isinstance(value, dict) else value
        return [(value, None), *(pair for entry in entries for pair in _contents(entry, seen))]
    inside = [pair for entry in _attributes(value) for pair in _contents(entry, seen)]
    return [(value, None), *((part, changes) for part, changes in inside if isinstance(part, Tensor))]


def _attributes(value: Any) -> list[Any]:
    """Return what an object of one's own holds, or the members of a set."""
    if isinstance(value, set | frozenset):
        return list(value)
    slots = [getattr(value, name, None) for name in getattr(type(value), "__slots__", ())]
    return [*getattr(value, "__dict__", {}).values(), *slots]


def _are_same(contents: list[tuple[Any, Any]], others: list[tuple[Any, Any]]) -> bool:
    return len(contents) == len(others) and all(
        part is other and changes == before for (part, changes), (other, before) in zip(contents, others, strict=True)
    )


def _is_nest(value: Any) -> bool:
    """Return whether a value is a tensor, or a nest that has some and nothing else."""
    try:
        return bool(flatten_state(value))
    except TypeError:
        return False


def _is_equal(value: Any, other: Any) -> bool:
    """Return whether two values are the same object, or equal numbers or texts, or containers of such."""
    if isinstance(value, CONTAINERS) and type(value) is type(other) and len(value) == len(other):
        pairs = (value.items(), other.items()) if isinstance(value, dict) else (value, other)
        return all(map(_is_equal, *pairs))
    return value is other or (isinstance(value, PLAIN) and type(value) is type(other) and value == other)


def _is_nothing(value: Any) -> bool:
    if isinstance(value, CONTAINERS):
        return all(map(_is_nothing, tree_leaves(value)))
    return value is None or value is _ABSENT or (isinstance(value, Tensor) and not value.numel())


def _spread(value: Any, like: State) -> State:
    """Return a number, or a nest of numbers and tensors, in the shapes and types of a nest."""
    if isinstance(value, PLAIN):
        return map_state(lambda tensor: torch.full_like(tensor, value), like)  # pyright: ignore[reportArgumentType]
    own = (torch.as_tensor(leaf) for leaf in tree_leaves(value) if leaf is not None)
    return map_state(lambda tensor: next(own).to(tensor).expand_as(tensor).clone(), like)


def _check_statistics(name: str, buffer: Tensor) -> None:
    """Raise ValueError if a buffer that was changed in place is no statistic but has a graph."""
    if buffer.grad_fn is not None:
        raise ValueError(
            f"{name} must be no buffer that is changed in place with a graph, which cannot be put back: "
            "assign another tensor to it instead, got one."
        )
