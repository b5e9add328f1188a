"""The recurrences of `_recurrences`, over lists of tensors at once and in place: the fast twin of the reference."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fptt._regularizer.recurrences import DUAL_WEIGHTS


class Parameters(NamedTuple):
    """Parameters of one strength, each with its average and its dual."""

    params: list[Tensor]
    averages: list[Tensor]
    duals: list[Tensor]
    alpha: float


def penalty_gradients(group: Parameters, *, form: str, mu: float) -> list[Tensor]:
    """Return ∇R = μα (W − W̄) − c λ of every parameter, as new tensors."""
    gradients = list(torch._foreach_sub(group.params, group.averages))
    torch._foreach_mul_(gradients, mu * group.alpha)
    torch._foreach_add_(gradients, group.duals, alpha=-DUAL_WEIGHTS[form])
    return gradients


def advance_duals_(group: Parameters) -> None:
    """Set λ ← λ − α (W⁺ − W̄) in place."""
    torch._foreach_add_(group.duals, torch._foreach_sub(group.params, group.averages), alpha=-group.alpha)


def advance_averages_(group: Parameters, *, beta: float) -> None:
    """Set W̄ ← (1 − β) W̄ + β W⁺ − (β/α) λ⁺ in place."""
    torch._foreach_lerp_(group.averages, group.params, beta)
    torch._foreach_add_(group.averages, group.duals, alpha=-beta / group.alpha)


def add_(tensors: Sequence[Tensor], others: Sequence[Tensor], sign: int = 1) -> None:
    """Add to (or, with sign −1, take from) each tensor its partner, in place."""
    if tensors:
        torch._foreach_add_(list(tensors), list(others), alpha=sign)
