"""Checks of arguments; each error names the argument, the value and the expectation."""

import cmath
import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn


def check_choice(name: str, value: Any, choices: Iterable[str]) -> None:
    """Raise ValueError unless the value is one of the named choices."""
    if value not in tuple(choices):
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}.")


def check_positive(name: str, value: float) -> None:
    """Raise ValueError unless the value is a finite number above 0."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise ValueError(f"{name} must be a positive number, got {value!r}.")


def check_count(name: str, value: Any, kind: type = int) -> None:
    """Raise ValueError unless the value is an integer of at least 1; of NumPy's too, if the kind is `Integral`."""
    if isinstance(value, bool) or not isinstance(value, kind) or value < 1:
        raise ValueError(f"{name} must be a positive integer, got {value!r}.")


def check_unit_interval(name: str, value: float, *, closed: bool) -> None:
    """Raise ValueError unless the value is in (0, 1], or in [0, 1) when `closed` is False."""
    inside = isinstance(value, int | float) and (0 < value <= 1 if closed else 0 <= value < 1)
    if not inside:
        raise ValueError(f"{name} must be in {'(0, 1]' if closed else '[0, 1)'}, got {value!r}.")


def all_finite(tensor: Tensor) -> bool:
    """Return whether a tensor holds neither NaN nor Inf; always true for integers."""
    if not tensor.is_floating_point() and not tensor.is_complex():
        return True
    # a loss or a norm, several at every update: torch's isfinite is five operations
    return cmath.isfinite(tensor.item()) if tensor.numel() == 1 else bool(torch.isfinite(tensor).all())


@torch.no_grad()
def are_finite(tensors: Iterable[Tensor]) -> bool:
    """Return whether no tensor holds NaN or Inf, by the sum of each, with one synchronization if none does."""
    filled = [tensor for tensor in tensors if tensor.numel() and (tensor.is_floating_point() or tensor.is_complex())]
    if not filled:
        return True
    # a sum with NaN or Inf is never finite; it takes a fifteenth of the time of a maximum, and no tensor of booleans
    sums = [tensor.sum().abs() if tensor.is_complex() else tensor.sum() for tensor in filled]
    if all_finite(torch.stack([total.to(sums[0]) for total in sums]).sum()):
        return True
    return all(map(all_finite, filled))  # finite numbers can add up to Inf


def first_weight(model: nn.Module) -> Tensor:
    """Return the first parameter that is real or complex, whose dtype inputs have: one of integers may be frozen."""
    return next(param for param in model.parameters() if param.is_floating_point() or param.is_complex())


def check_grad_enabled(what: str) -> None:
    """Raise RuntimeError where gradients are off."""
    if not torch.is_grad_enabled():
        raise RuntimeError(f"{what} needs gradients: leave torch.no_grad() or torch.inference_mode().")


def check_result(result: Any) -> None:
    """Raise TypeError unless a model returned (outputs, state), of which outputs are a tensor."""
    if not isinstance(result, tuple) or len(result) != 2:
        found = f" of {len(result)}" if isinstance(result, tuple) else ""
        raise TypeError(f"model must return (outputs, state), got a {type(result).__name__}{found}.")
    if not isinstance(result[0], Tensor):
        raise TypeError(f"model must return (outputs, state), outputs a tensor, got a {type(result[0]).__name__}.")


def check_type(name: str, value: Any, kind: type, expected: str) -> None:
    """Raise TypeError unless the value is of a class, which is named as `expected`."""
    if not isinstance(value, kind):
        raise TypeError(f"{name} must be {expected}, got a {type(value).__name__}.")


def check_tensors(**values: Any) -> None:
    """Raise TypeError unless all values are tensors."""
    for name, value in values.items():
        check_type(name, value, Tensor, "a tensor")


def check_sequences(inputs: Any, size: int, *, name: str = "D", batch_first: bool = False) -> None:
    """Raise an error unless inputs are sequences, (T, B, D) or (B, T, D), of a width and of at least one step.

    Raises:
        TypeError: If they are no tensor, as a `PackedSequence` is none.
        ValueError: If they have another shape.
    """
    check_tensors(inputs=inputs)
    if inputs.dim() != 3 or inputs.shape[-1] != size:
        layout = f"(B, T, {name})" if batch_first else f"(T, B, {name})"
        raise ValueError(f"inputs must have shape {layout} with {name} = {size}, got {tuple(inputs.shape)}.")
    if not inputs.shape[int(batch_first)]:
        raise ValueError(f"inputs must have at least one time step, got shape {tuple(inputs.shape)}.")


def check_dtype(name: str, tensor: Tensor, weight: Tensor) -> None:
    """Raise ValueError unless a tensor has the dtype of the weights, or autocast converts both."""
    if tensor.dtype != weight.dtype and not torch.is_autocast_enabled(tensor.device.type):
        raise ValueError(f"{name} must have the dtype of the weights, {weight.dtype}, got {tensor.dtype}.")


def check_iterable(name: str, value: Any) -> None:
    """Raise TypeError unless the value can be iterated over."""
    if not hasattr(value, "__iter__") and not hasattr(value, "__getitem__"):
        raise TypeError(f"{name} must be iterable, got a {type(value).__name__}.")


def check_keys(name: str, saved: Any, own: dict[str, Any]) -> None:
    """Raise ValueError unless a saved state is a dict with the same keys as `own`."""
    if not isinstance(saved, dict) or saved.keys() != own.keys():
        found = sorted(saved) if isinstance(saved, dict) else type(saved).__name__
        raise ValueError(f"{name} must have the keys {sorted(own)}, got {found}.")


def check_position(saved: Any, own: dict[str, Any], settings: Iterable[str]) -> None:
    """Raise ValueError unless the saved position of a source has the keys of its own, and the same settings."""
    check_keys("state_dict", saved, own)
    for name in settings:
        if saved[name] != own[name]:
            raise ValueError(f"state_dict must have {name}={own[name]} as here, got {saved[name]}.")
