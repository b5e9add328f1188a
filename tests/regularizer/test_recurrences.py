"""Golden numbers worked by hand, all distinct and none 0 or 1; and the identities of the method."""

import numpy as np
import pytest
import torch

from fptt._regularizer import recurrences

W, AVERAGE, DUAL, ALPHA, BETA = 10.0, 2.0, 3.0, 0.25, 0.2


def scalar(value: float) -> torch.Tensor:
    return torch.tensor(value, dtype=torch.float64)


@pytest.mark.parametrize(
    ("form", "mu", "expected"),
    [
        ("paper", 1.0, 0.5),  # ¼ · 8 − ½ · 3
        ("released", 1.0, -1.0),  # ¼ · 8 − 3
        ("released", 2.0, 1.0),  # 2 · ¼ · 8 − 3
        ("released", 3.5, 4.0),  # 3.5 · ¼ · 8 − 3
    ],
)
def test_penalty_gradient_by_hand(form: str, mu: float, expected: float) -> None:
    found = recurrences.penalty_gradient(scalar(W), scalar(AVERAGE), scalar(DUAL), alpha=ALPHA, form=form, mu=mu)
    assert found.item() == expected


@pytest.mark.parametrize(
    ("form", "mu", "expected"),
    [
        ("paper", 1.0, 0.5),  # ⅛ · (8 − 6)²
        ("released", 1.0, -22.0),  # ⅛ · 64 − 30
        ("released", 2.0, -14.0),  # ¼ · 64 − 30
    ],
)
def test_penalty_by_hand(form: str, mu: float, expected: float) -> None:
    found = recurrences.penalty(scalar(W), scalar(AVERAGE), scalar(DUAL), alpha=ALPHA, form=form, mu=mu)
    assert found.item() == expected


def test_advance_by_hand() -> None:
    dual = recurrences.advance_dual(scalar(DUAL), scalar(W), scalar(AVERAGE), alpha=ALPHA)
    assert dual.item() == 1.0  # 3 − ¼ · 8
    average = recurrences.advance_average(scalar(AVERAGE), scalar(W), dual, alpha=ALPHA, beta=BETA)
    assert average.item() == pytest.approx(2.8, abs=1e-15)  # 0.8 · 2 + 0.2 · 10 − 0.8 · 1


@pytest.mark.parametrize(("form", "mu"), [("paper", 1.0), ("released", 1.0), ("released", 2.0)])
def test_penalty_gradient_is_the_gradient_of_the_penalty(form: str, mu: float) -> None:
    average, dual = torch.randn(2, 5, 3, dtype=torch.float64)
    param = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    recurrences.penalty(param, average, dual, alpha=0.37, form=form, mu=mu).backward()
    expected = recurrences.penalty_gradient(param.detach(), average, dual, alpha=0.37, form=form, mu=mu)
    assert param.grad is not None
    torch.testing.assert_close(param.grad, expected, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize(
    ("form", "expected"),
    [
        ("paper", 2.5),  # ½ · |3 + 2i − (1 + i)|²
        ("released", -3.5),  # ½ · |3 + 2i|² − Re (2 − 2i)(4 + i) = 6.5 − 10
    ],
)
def test_penalty_of_a_complex_weight_by_hand(form: str, expected: float) -> None:
    param = torch.tensor(4 + 1j, dtype=torch.complex128, requires_grad=True)
    average, dual = torch.tensor([1 - 1j, 2 + 2j], dtype=torch.complex128)
    found = recurrences.penalty(param, average, dual, alpha=1.0, form=form)
    assert found.item() == expected
    found.backward()
    assert param.grad is not None
    assert param.grad.item() == recurrences.penalty_gradient(param.detach(), average, dual, alpha=1.0, form=form).item()


def test_average_lags_by_the_previous_dual() -> None:
    """β = ½: W̄_{t+1} = W_{t+1} − λ_t/(2α), whatever moves the weights, thus in either form."""
    average = param = torch.randn(7, dtype=torch.float64)
    dual = torch.zeros(7, dtype=torch.float64)
    for _ in range(20):
        param = param + torch.randn(7, dtype=torch.float64)
        previous, dual = dual, recurrences.advance_dual(dual, param, average, alpha=0.3)
        average = recurrences.advance_average(average, param, dual, alpha=0.3, beta=0.5)
        torch.testing.assert_close(average, param - previous / 0.6, rtol=1e-12, atol=1e-12)


def test_dual_is_the_gradient_at_the_minimizer() -> None:
    """At the exact minimizer of ℓ + R in the released form, the advanced dual equals ∇ℓ; ℓ = ½ k (w − 4)²."""
    average, dual, alpha, k = scalar(2.0), scalar(3.0), 0.25, 0.8
    minimizer = (k * 4.0 + alpha * average + dual) / (k + alpha)  # k (w − 4) + α (w − W̄) − λ = 0
    advanced = recurrences.advance_dual(dual, minimizer, average, alpha=alpha)
    assert advanced.item() == pytest.approx((k * (minimizer - 4.0)).item(), abs=1e-14)


@pytest.mark.parametrize(("form", "largest"), [("paper", 2.5), ("released", 5 / 3)])
def test_decoupled_recurrences_are_stable_up_to_the_stated_strength(form: str, largest: float) -> None:
    """With β = ½ and no loss gradient, the linear map of (W, W̄, λ) is stable below `largest` and not above."""

    def spectral_radius(gamma: float) -> float:
        columns = []
        for unit in torch.eye(3, dtype=torch.float64):
            param, average, dual = unit
            after = param - recurrences.penalty_gradient(param, average, dual, alpha=gamma, form=form)
            next_dual = recurrences.advance_dual(dual, after, average, alpha=gamma)
            next_average = recurrences.advance_average(average, after, next_dual, alpha=gamma, beta=0.5)
            columns.append([after.item(), next_average.item(), next_dual.item()])
        return float(np.abs(np.linalg.eigvals(np.array(columns).T)).max())

    assert spectral_radius(0.99 * largest) <= 1 + 1e-9  # the eigenvalue 1 is a shift of all weights
    assert spectral_radius(1.01 * largest) > 1 + 1e-3


def test_the_twins_over_lists_equal_the_reference() -> None:
    shapes = [(4, 3), (5,), ()]
    params, averages, duals = ([torch.randn(shape, dtype=torch.float64) for shape in shapes] for _ in range(3))
    group = recurrences.Parameters(params, [a.clone() for a in averages], [d.clone() for d in duals], 0.35)
    gradients = recurrences.penalty_gradients(group, form="released", mu=2.0)
    recurrences.advance_duals_(group)
    recurrences.advance_averages_(group, beta=0.7)
    for number, (param, average, dual) in enumerate(zip(params, averages, duals, strict=True)):
        expected = recurrences.penalty_gradient(param, average, dual, alpha=0.35, form="released", mu=2.0)
        new_dual = recurrences.advance_dual(dual, param, average, alpha=0.35)
        new_average = recurrences.advance_average(average, param, new_dual, alpha=0.35, beta=0.7)
        torch.testing.assert_close(gradients[number], expected, rtol=1e-13, atol=1e-13)
        torch.testing.assert_close(group.duals[number], new_dual, rtol=1e-13, atol=1e-13)
        torch.testing.assert_close(group.averages[number], new_average, rtol=1e-13, atol=1e-13)
