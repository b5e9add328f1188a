import pytest
import torch

from fptt.experiments.recipes import recipe
from fptt.experiments.schedule import FACTORS, Budget


def test_the_first_limit_ends_a_run() -> None:
    config = recipe("digits")
    assert Budget(config).fraction(15, 10**9, 10**9) == 0.25
    both = type(config).of(config, epochs=10, max_updates=1000)
    assert Budget(both).fraction(1, 700, 0) == 0.7
    assert Budget(both).is_spent(1, 1000, 0)
    assert not Budget(both).is_spent(9.9, 999, 10**9)


@pytest.mark.parametrize(
    ("name", "expected"),
    [("constant", [1, 1, 1, 1]), ("cosine", [1, 0.5, 0.14644661, 0]), ("trapezoid", [1, 1, 1, 0])],
)
def test_learning_rates_by_hand(name: str, expected: list[float]) -> None:
    assert [FACTORS[name](fraction) for fraction in (0, 0.5, 0.75, 1)] == pytest.approx(expected, abs=1e-8)
    config = type(recipe("digits")).of(recipe("digits"), schedule=name, lr=0.4)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=1.0)
    Budget(config).set_rate(optimizer, 0.75)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.4 * expected[2])
