"""The recurrences of FPTT, once, as pure functions on tensors: the reference that every faster form must equal.

Kag & Saligrama, "Training Recurrent Neural Networks via Forward Propagation Through Time", ICML 2021, Algorithm 1.
`W` is a parameter, `W̄` its running average, `λ` its dual variable (an estimate of the previous gradient), `α` the
strength of the penalty:

    R(W)  = (α/2) ‖W − W̄ − λ/(2α)‖²              penalty
    λ⁺    = λ − α (W⁺ − W̄)                       dual
    W̄⁺    = (1 − β) W̄ + β W⁺ − (β/α) λ⁺          average, β = ½ in the paper

A *decoupled* penalty uses the same functions with γ = ηα for α and l = ηλ for λ: every term is then in the unit of a
weight update instead of a gradient.
"""

from torch import Tensor

Strength = float | Tensor
"""α, a number or a scalar tensor."""

DUAL_WEIGHTS = {"paper": 0.5, "released": 1.0}
"""`c`, the weight of the dual in the penalty gradient: ½ in the printed formula, 1 in the authors' code."""


def penalty(param: Tensor, average: Tensor, dual: Tensor, *, alpha: Strength, form: str, mu: float = 1.0) -> Tensor:
    """Return the penalty `R` of one parameter, differentiable in `param`.

    `paper`: (α/2) ‖W − W̄ − λ/(2α)‖².  `released`: (μα/2) ‖W − W̄‖² − ⟨λ, W⟩.
    """
    offset = param - average
    if form == "paper":
        return alpha / 2 * (offset - dual / (2 * alpha)).square().sum()
    return mu * alpha / 2 * offset.square().sum() - (dual * param).sum()


def penalty_gradient(
    param: Tensor, average: Tensor, dual: Tensor, *, alpha: Strength, form: str, mu: float = 1.0
) -> Tensor:
    """Return ∇R = μα (W − W̄) − c λ, with `c` from `DUAL_WEIGHTS` and μ = 1 in the paper."""
    return mu * alpha * (param - average) - DUAL_WEIGHTS[form] * dual


def advance_dual(dual: Tensor, param: Tensor, average: Tensor, *, alpha: Strength) -> Tensor:
    """Return λ⁺ = λ − α (W⁺ − W̄), from the weights after the step and the average before it."""
    return dual - alpha * (param - average)


def advance_average(average: Tensor, param: Tensor, dual: Tensor, *, alpha: Strength, beta: float) -> Tensor:
    """Return W̄⁺ = (1 − β) W̄ + β W⁺ − (β/α) λ⁺, from the dual (or the recomputed gradient) after the step."""
    return (1 - beta) * average + beta * param - (beta / alpha) * dual
