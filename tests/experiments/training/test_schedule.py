from dataclasses import replace

import pytest

from fptt.experiments.configs.recipes import task_config
from fptt.experiments.training.schedule import FACTORS, Schedule, spent_fraction


def test_the_first_limit_ends_a_run() -> None:
    config = task_config("digits")
    assert spent_fraction(config, 15, 10**9, 10**9) == 0.25
    both = type(config).of(config, epochs=10, max_updates=1000)
    assert spent_fraction(both, 1, 700, 0) == 0.7
    assert spent_fraction(both, 1, 1001, 0) == 1
    assert spent_fraction(both, 9.9, 999, 10**9) == 0.999


@pytest.mark.parametrize(
    ("name", "expected"),
    [("constant", [1, 1, 1, 1]), ("cosine", [1, 0.5, 0.14644661, 0]), ("trapezoid", [1, 1, 1, 0])],
)
def test_learning_rates_by_hand(name: str, expected: list[float]) -> None:
    assert [FACTORS[name](fraction) for fraction in (0, 0.5, 0.75, 1)] == pytest.approx(expected, abs=1e-8)
    config = type(task_config("digits")).of(task_config("digits"), schedule=name, lr=0.4)
    assert Schedule(config).rate(0.75) == pytest.approx(0.4 * expected[2])
    halved = replace(config, rollback_factor=0.5)
    assert Schedule(halved).rate(0.75, rollbacks=3) == pytest.approx(0.4 * expected[2] / 8)


def test_steps_fall_at_their_milestones() -> None:
    config = replace(task_config("digits"), schedule="steps", milestones=(0.25, 0.5), lr_factor=0.1)
    assert [Schedule(config).factor(part) for part in (0.2, 0.25, 0.49, 0.5, 1)] == pytest.approx(
        [1, 0.1, 0.1, 0.01, 0.01]
    )


def test_a_plateau_divides_the_rate_and_patience_ends_the_run() -> None:
    config = replace(task_config("digits"), schedule="plateau", lr_factor=0.25, plateau_epochs=2, early_stopping=5)
    schedule = Schedule(config)
    factors = []
    for is_better in (True, False, False, False, True, False, False, False, False):
        schedule.observe(is_better=is_better)
        factors.append(schedule.factor(0.5))
        assert not schedule.is_stopped_early
    assert factors == [1, 1, 0.25, 0.25, 0.25, 0.25, 0.0625, 0.0625, 0.015625]
    schedule.observe(is_better=False)
    assert schedule.is_stopped_early
    again = Schedule(config)
    again.load_state_dict(schedule.state_dict())
    assert again.is_stopped_early
    assert again.factor(0.5) == schedule.factor(0.5)
