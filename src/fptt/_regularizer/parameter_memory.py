"""What the regularizer remembers of every parameter: groups, averages, duals; swapping them in; saving and loading."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fptt._checks import check_positive


class ParameterState(NamedTuple):
    """What the regularizer remembers of one parameter, in its shape, dtype and device; several duals in a dim 0."""

    average: Tensor
    dual: Tensor


class ParameterMemory:
    """Average and dual of each parameter, beside the optimizer and keyed by parameter; they begin at its first step.

    Attributes:
        param_groups: `{"params": [...], "alpha": ...}` each; alpha may be changed while training, None opts out.
        state: The `ParameterState` of every parameter that has taken a step.
    """

    form: str
    coupling: str
    previous_gradient: str
    beta: float
    mu: float
    num_duals: int
    turn: int

    def __init__(self, params: Iterable[Tensor] | Iterable[dict[str, Any]], alpha: float) -> None:
        check_positive("alpha", alpha)
        self.alpha = alpha
        self.param_groups: list[dict[str, Any]] = []
        self.state: dict[Tensor, ParameterState] = {}
        self._evaluating = False
        self._add_groups(params)

    def _add_groups(self, params: Iterable[Tensor] | Iterable[dict[str, Any]]) -> None:
        if isinstance(params, Tensor):
            raise TypeError("params must be an iterable of tensors or groups, got a single tensor.")
        entries: list[Any] = list(params)
        if not entries:
            raise ValueError("params must hold at least one parameter, got an empty list.")
        groups = entries if isinstance(entries[0], dict) else [{"params": entries}]
        for group in groups:
            self.add_param_group(group)

    def add_param_group(self, group: dict[str, Any]) -> None:
        """Add parameters later, for example of a layer that is thawed; their average starts at the next step.

        Args:
            group: `{"params": tensors}`, with a `"fptt_alpha"` of its own if wanted (None opts out).

        Raises:
            ValueError: If a parameter is in a group already, or alpha is not positive.
            TypeError: If a parameter is no tensor.
        """
        params = group["params"]
        unique = list(dict.fromkeys([params] if isinstance(params, Tensor) else params))
        for param in unique:
            if not isinstance(param, Tensor):
                raise TypeError(f"params must hold tensors, got a {type(param).__name__}.")
        known = {param for existing in self.param_groups for param in existing["params"]}
        if known.intersection(unique):
            raise ValueError("params must not repeat a parameter in more than one group.")
        alpha = group.get("fptt_alpha", self.alpha)
        if alpha is not None:
            check_positive("fptt_alpha", alpha)
        self.param_groups.append({"params": unique, "alpha": alpha})

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Swap the averages W̄ into the model, in place, and always restore the weights W, also after an exception."""
        params = list(self.state)
        outer = self._evaluating
        with torch.no_grad():
            weights = [param.detach().clone() for param in params]
            for param, (average, _) in self.state.items():
                param.copy_(average)
        self._evaluating = True
        try:
            yield
        finally:
            self._evaluating = outer
            with torch.no_grad():
                for param, weight in zip(params, weights, strict=True):
                    param.copy_(weight)

    def reset(self) -> None:
        """Forget averages and duals: the next step starts again with W̄ = W and λ = 0."""
        self.state.clear()

    def state_dict(self) -> dict[str, Any]:
        """Return averages, duals and settings, with parameters numbered in order; loads with `weights_only=True`."""
        numbers = {param: number for number, param in enumerate(self._params())}
        groups = [
            {"alpha": group["alpha"], "params": [numbers[param] for param in group["params"]]}
            for group in self.param_groups
        ]
        state = {numbers[param]: entry._asdict() for param, entry in self.state.items()}
        return {**self._settings(), "param_groups": groups, "state": state}

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what `state_dict` returned; nothing changes if it does not fit.

        Args:
            state_dict: Of a regularizer with the same groups, parameter shapes, form, coupling and previous gradient.
                Its alpha, beta and mu replace those of this one.

        Raises:
            ValueError: If a key is missing, or groups, shapes or settings differ.
        """
        params = self._params()
        _check_state_dict(state_dict, self.state_dict(), [self._shapes(param) for param in params])
        for group, saved in zip(self.param_groups, state_dict["param_groups"], strict=True):
            group["alpha"] = saved["alpha"]
        self.beta, self.mu = state_dict["beta"], state_dict["mu"]
        self.state = {params[number]: _copy_of(entry, params[number]) for number, entry in state_dict["state"].items()}

    def begin(self, params: Iterable[Tensor]) -> None:
        """Let averages and duals begin, W̄ = W and λ = 0, for those parameters that have none yet."""
        for param in params:
            if param not in self.state:
                average = param.detach().clone()
                dual = torch.zeros_like(average) if self.num_duals == 1 else param.new_zeros(self._dual_shape(param))
                self.state[param] = ParameterState(average, dual)

    def named_tensors(self) -> dict[str, Tensor]:
        """Return averages and duals, named by the number of their parameter."""
        numbers = {param: number for number, param in enumerate(self._params())}
        found = sorted((numbers[param], entry) for param, entry in self.state.items())
        return {f"{name} {number}": tensor for number, entry in found for name, tensor in entry._asdict().items()}

    def _entry(self, param: Tensor) -> ParameterState:
        """Return average and dual of the step to come; the dual as a view, if there are several."""
        entry = self.state[param]
        return entry if self.num_duals == 1 else entry._replace(dual=entry.dual[self.turn])

    def _dual_shape(self, param: Tensor) -> tuple[int, ...]:
        return tuple(param.shape) if self.num_duals == 1 else (self.num_duals, *param.shape)

    def _shapes(self, param: Tensor) -> dict[str, tuple[int, ...]]:
        return {"average": tuple(param.shape), "dual": self._dual_shape(param)}

    def _params(self) -> list[Tensor]:
        return [param for group in self.param_groups for param in group["params"]]

    def _settings(self) -> dict[str, Any]:
        names = ("form", "coupling", "previous_gradient", "beta", "mu", "num_duals")
        return {name: getattr(self, name) for name in names}

    def __repr__(self) -> str:
        settings = ", ".join(f"{name}={value!r}" for name, value in self._settings().items())
        groups = "".join(
            f"\n  group {number}: {len(group['params'])} parameters, alpha={group['alpha']}"
            for number, group in enumerate(self.param_groups)
        )
        return f"DynamicRegularizer({settings}{groups}\n)"


def _copy_of(entry: dict[str, Tensor], param: Tensor) -> ParameterState:
    return ParameterState(*(entry[name].to(param, copy=True) for name in ParameterState._fields))


def _check_state_dict(saved: Any, own: dict[str, Any], shapes: list[dict[str, tuple[int, ...]]]) -> None:
    """Raise ValueError, naming the key, unless `saved` has the keys, settings, groups and shapes of `own`."""
    if not isinstance(saved, dict):
        raise ValueError(f"state_dict must be a dict, got a {type(saved).__name__}.")
    missing = sorted(own.keys() - saved.keys())
    if missing:
        raise ValueError(f"state_dict lacks the keys {missing}.")
    for name in ("form", "coupling", "previous_gradient", "num_duals"):
        if saved[name] != own[name]:
            raise ValueError(f"state_dict was saved with {name}={saved[name]!r}, the regularizer has {own[name]!r}.")
    saved_groups, own_groups = ([group["params"] for group in groups["param_groups"]] for groups in (saved, own))
    if saved_groups != own_groups:
        raise ValueError(f"state_dict has parameter groups {saved_groups}, the regularizer has {own_groups}.")
    for number, entry in saved["state"].items():
        _check_entry(number, entry, shapes)


def _check_entry(number: int, entry: dict[str, Any], shapes: list[dict[str, tuple[int, ...]]]) -> None:
    for name in ("average", "dual"):
        found = tuple(entry[name].shape) if name in entry else None
        expected = shapes[number][name] if 0 <= number < len(shapes) else "no such parameter"
        if found != expected:
            raise ValueError(f"state_dict has {name} {number} of shape {found}, expected {expected}.")
