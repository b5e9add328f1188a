"""The recurrences of FPTT: each equation as a pure function, the reference, and beside it the twin that training runs.

Kag & Saligrama, "Training Recurrent Neural Networks via Forward Propagation Through Time", ICML 2021, Algorithm 1.
`W` is a parameter, `W̄` its running average, `λ` its dual variable (an estimate of the previous gradient), `α` the
strength of the penalty:

    R(W)  = (α/2) ‖W − W̄ − λ/(2α)‖²              penalty
    λ⁺    = λ − α (W⁺ − W̄)                       dual
    W̄⁺    = (1 − β) W̄ + β W⁺ − (β/α) λ⁺          average, β = ½ in the paper

A *decoupled* penalty uses the same functions with γ = ηα for α and l = ηλ for λ: every term is then in the unit of a
weight update instead of a gradient.

The pure functions also are what the compiled engine traces. The twins have plural names and take lists: one kernel
over all parameters at once instead of one each, since a step of FPTT is made for every chunk.
"""

from typing import NamedTuple

import torch
from torch import Tensor

Strength = float | Tensor
"""α, a number or a scalar tensor."""

DUAL_WEIGHTS = {"paper": 0.5, "released": 1.0}
"""`c`, the weight of the dual in the penalty gradient: ½ in the printed formula, 1 in the authors' code."""


class Parameters(NamedTuple):
    """Parameters of one strength, each with its average and its dual."""

    params: list[Tensor]
    averages: list[Tensor]
    duals: list[Tensor]
    alpha: float


def penalty(param: Tensor, average: Tensor, dual: Tensor, *, alpha: Strength, form: str, mu: float = 1.0) -> Tensor:
    """Return the penalty `R` of one parameter, differentiable in `param`.

    `paper`: (α/2) ‖W − W̄ − λ/(2α)‖².  `released`: (μα/2) ‖W − W̄‖² − ⟨λ, W⟩. A complex number is two real ones.
    """
    if param.is_complex():  # ‖z‖² is the sum of |z|², not of z², and ⟨λ, W⟩ the real part of the sum of λ* W
        param, average, dual = map(torch.view_as_real, (param, average, dual))
    offset = param - average
    if form == "paper":
        return alpha / 2 * (offset - dual / (2 * alpha)).square().sum()
    # the square of the printed form would halve the dual: the released code adds its full product with W instead
    return mu * alpha / 2 * offset.square().sum() - (dual * param).sum()


def penalty_gradient(
    param: Tensor, average: Tensor, dual: Tensor, *, alpha: Strength, form: str, mu: float = 1.0
) -> Tensor:
    """Return ∇R = μα (W − W̄) − c λ, with `c` from `DUAL_WEIGHTS` and μ = 1 in the paper."""
    return mu * alpha * (param - average) - DUAL_WEIGHTS[form] * dual


def penalty_gradients(group: Parameters, *, form: str, mu: float) -> list[Tensor]:
    """Return ∇R of every parameter, as new tensors; the twin of `penalty_gradient`."""
    gradients = list(torch._foreach_sub(group.params, group.averages))
    torch._foreach_mul_(gradients, mu * group.alpha)
    torch._foreach_add_(gradients, group.duals, alpha=-DUAL_WEIGHTS[form])
    return gradients


def advance_dual(dual: Tensor, param: Tensor, average: Tensor, *, alpha: Strength) -> Tensor:
    """Return λ⁺ = λ − α (W⁺ − W̄), from the weights after the step and the average before it."""
    return dual - alpha * (param - average)


def advance_duals_(group: Parameters) -> None:
    """Set every λ to λ⁺ in place, before the averages are advanced; the twin of `advance_dual`."""
    torch._foreach_add_(group.duals, torch._foreach_sub(group.params, group.averages), alpha=-group.alpha)


def advance_average(average: Tensor, param: Tensor, dual: Tensor, *, alpha: Strength, beta: float) -> Tensor:
    """Return W̄⁺ = (1 − β) W̄ + β W⁺ − (β/α) λ⁺, from the dual (or the recomputed gradient) after the step."""
    return (1 - beta) * average + beta * param - (beta / alpha) * dual


def advance_averages_(group: Parameters, *, beta: float) -> None:
    """Set every W̄ to W̄⁺ in place, when the duals have been advanced; the twin of `advance_average`."""
    torch._foreach_lerp_(group.averages, group.params, beta)  # (1 − β) W̄ + β W⁺
    torch._foreach_add_(group.averages, group.duals, alpha=-beta / group.alpha)
