import math
from typing import Any

import numpy as np
import pytest

from fptt.experiments.configs.config import TrainConfig
from fptt.experiments.studies.differences import (
    BOOTSTRAP_SEEDS,
    Difference,
    difference_cells,
    holm,
    matched_pairs,
    paired_difference,
    pairs_with_base,
)
from tests.experiments.studies.runs import SMALL

INF, NAN = math.inf, math.nan


def by_seed(*values: float) -> dict[int, float]:
    return dict(enumerate(values))


def test_the_interval_of_three_seeds_by_hand() -> None:
    """Differences 1, 2, 3 tenths: mean 0.2, sd 0.1, t₂(97.5 %) = 4.3027, t = 2√3, p = 1 − t/√(t² + 2)."""
    found = paired_difference(by_seed(0.3, 0.5, 0.7), by_seed(0.2, 0.3, 0.4))
    assert found.mean == pytest.approx(0.2)
    assert found.interval == pytest.approx((0.2 - 4.302653 * 0.1 / 3**0.5, 0.2 + 4.302653 * 0.1 / 3**0.5))
    assert found.p == pytest.approx(1 - math.sqrt(12 / 14))
    assert (found.num_seeds, found.left_out, found.lacking) == (3, [], "")


def test_the_interval_of_two_seeds_by_hand() -> None:
    """With one degree of freedom, t is Cauchy: its 97.5 % is tan(0.475 π), and p = 1 − 2/π · atan t."""
    found = paired_difference(by_seed(0.1, 0.2), by_seed(0.2, 0.5))
    half = 0.1 * math.tan(0.475 * math.pi)
    assert found.interval == pytest.approx((-0.2 - half, -0.2 + half))
    assert found.p == pytest.approx(1 - 2 / math.pi * math.atan(2))


def test_values_are_paired_by_seed_and_those_of_one_side_left_out() -> None:
    found = paired_difference({7: 0.5, 2: 0.75, 1: 0.125}, {2: 0.5, 9: 0.0, 7: 0.375})
    assert (found.mean, found.num_seeds, found.left_out) == (pytest.approx(0.1875), 2, [1, 9])


@pytest.mark.parametrize(
    ("ours", "theirs", "mean", "lacking"),
    [
        ((0.5,), (0.25,), 0.25, "one seed: no interval"),
        ((), (0.25,), NAN, "no common seed"),
        ((0.5, INF), (0.25, 1.0), INF, "a seed diverged: no interval"),
        ((0.5, INF), (0.25, INF), NAN, "a seed diverged: no interval"),
        ((0.5, NAN, 1.0), (0.25, 1.0, 1.0), NAN, "a seed diverged: no interval"),
        ((1e200, 1.0), (1.0, 1.0), 5e199, "a seed diverged: no interval"),  # its square is infinite
        ((INF,), (1.0,), INF, "one seed: no interval"),
        ((0.3, 0.4, 0.5), (0.1, 0.2, 0.3), 0.2, "the same for all seeds: no interval"),  # but for rounding
        ((0.3, 0.4), (0.3, 0.4), 0.0, "the same for all seeds: no interval"),
    ],
)
def test_what_allows_no_interval_is_said(
    ours: tuple[float, ...], theirs: tuple[float, ...], mean: float, lacking: str
) -> None:
    found = paired_difference(by_seed(*ours), by_seed(*theirs))
    assert (found.interval, found.p, found.lacking) == (None, None, lacking)
    assert found.mean == pytest.approx(mean, nan_ok=True)


def test_many_seeds_have_the_interval_of_a_bootstrap() -> None:
    """Of ±1 … ±10 the mean of resamples has the sd √(38.5/20) = 1.387; t with the sample's own sd would be wider."""
    deltas = [float(sign * size) for size in range(1, 11) for sign in (1, -1)]
    ours = by_seed(*(0.5 + delta for delta in deltas))
    found = paired_difference(ours, by_seed(*[0.5] * 20))
    assert found.interval == pytest.approx((-1.96 * 1.387, 1.96 * 1.387), abs=0.09)  # 2.72; t: 2.98
    resampled = np.random.default_rng(1).choice(deltas, (20_000, 20)).mean(1)
    assert found.interval == pytest.approx(tuple(np.percentile(resampled, [2.5, 97.5])), abs=0.11)
    assert paired_difference(ours, by_seed(*[0.5] * 20)) == found
    assert found.p == pytest.approx(1.0)


def test_the_bootstrap_begins_at_twenty_seeds() -> None:
    """Of 0, …, 0, 1 no resample has a mean below 0, where t's interval ends."""
    lower = {}
    for count in (BOOTSTRAP_SEEDS - 1, BOOTSTRAP_SEEDS):
        interval = paired_difference(by_seed(*[0.0] * (count - 1), 1.0), by_seed(*[0.0] * count)).interval
        lower[count] = interval[0] if interval else NAN
    assert lower[19] < 0 <= lower[20]


def test_p_values_are_corrected_by_hand() -> None:
    """Four of them: 0.005 · 4, 0.01 · 3, 0.03 · 2, and 0.04 · 1, which must not be less than the one before it."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([0.04]) == [0.04]
    assert holm([0.02, 0.02]) == [0.04, 0.04]
    assert holm([]) == []


def row(tests: dict[int, float], **changes: Any) -> dict[str, Any]:
    return {"config": TrainConfig.of(SMALL, **changes), "tests": tests}


BETTER, WORSE = by_seed(0.5, 0.6, 0.7), by_seed(0.1, 0.21, 0.3)


def test_what_is_better_depends_on_the_metric_and_the_corrected_p() -> None:
    rows = [row(BETTER), row(WORSE, method="tbptt"), row(by_seed(0.4, 0.65, 0.6), method="bptt")]
    for metric, above, verdict in (("accuracy", "above", "better"), ("mse", "below", "worse")):
        head, tbptt, bptt = difference_cells(pairs_with_base(rows), SMALL, metric)
        assert head[2] == f"in test {metric} ({above} 0 is better)"
        assert (head[-1], tbptt[-1], bptt[-1]) == ("FPTT is", verdict, "undecided")
        assert tbptt[:4] == ["FPTT-4 − TBPTT-4", "3", "+0.3967", "[+0.3823, +0.4110]"]
        assert (tbptt[4], tbptt[5]) == ("< 0.001", "< 0.001")
        assert (bptt[4], bptt[5]) == ("0.423", "0.423")  # differences 0.1, −0.05, 0.1: t = 1, p = 1 − 1/√3
    reverse = [row(WORSE), row(BETTER, method="tbptt")]
    assert difference_cells(pairs_with_base(reverse), SMALL, "accuracy")[1][-1] == "worse"
    assert difference_cells([], SMALL, "accuracy") == []


def test_a_difference_that_the_correction_leaves_open_is_undecided() -> None:
    """p = 0.036 alone; with another comparison 0.072."""
    near = row(by_seed(0.45, 0.5, 0.62), method="tbptt")
    (_, alone) = difference_cells([(row(BETTER), near)], SMALL, "accuracy")
    (_, first, _) = difference_cells(
        [(row(BETTER), near), (row(BETTER), row(BETTER, method="bptt", lr=1.0))], SMALL, "mse"
    )
    assert alone[4] == alone[5] == first[4] == first[5]  # no p of the second: one comparison only
    assert alone[-1] == "better"
    third = row(by_seed(0.4, 0.65, 0.6), method="bptt")
    (_, corrected, _) = difference_cells([(row(BETTER), near), (row(BETTER), third)], SMALL, "accuracy")
    assert float(corrected[5]) == pytest.approx(2 * float(alone[4]), abs=0.001)
    assert corrected[-1] == "undecided"


def test_one_seed_and_seeds_of_one_side_are_said_in_the_table() -> None:
    cells = difference_cells([(row({0: 0.5}), row({0: 0.25, 1: 0.5, 3: 0.5}, method="bptt"))], SMALL, "accuracy")
    line = ["FPTT-4 − BPTT", "1 (without seeds 1, 3)", "+0.2500", "one seed: no interval", "–", "–", "–"]
    assert cells[1] == line
    cells = difference_cells([(row({0: 0.5}), row({1: 0.25}, method="bptt"))], SMALL, "accuracy")
    assert cells[1][1:4] == ["0 (without seeds 0, 1)", "–", "no common seed"]


def test_controls_of_an_ablation_are_those_with_the_same_setting() -> None:
    """Fields that one of the two methods does not have may differ."""
    rows = [
        row({}, num_chunks=8, alpha=0.5),
        row({}, num_chunks=8, form="released", lr=1.0),
        row({}, method="tbptt", num_chunks=8, bptt_losses=2),
        row({}, method="tbptt", num_chunks=16),
        row({}, method="tbptt", num_chunks=8, lr=1.0),
        row({}, method="bptt", num_chunks=3, bptt_losses=8),
    ]
    places = {id(each): place for place, each in enumerate(rows)}
    found = [(places[id(ours)], places[id(theirs)]) for ours, theirs in matched_pairs(rows)]
    assert found == [(0, 2), (0, 5), (1, 4)]


def test_a_difference_is_a_value() -> None:
    assert paired_difference({0: 1.0}, {0: 0.5}) == Difference(1, [], 0.5, lacking="one seed: no interval")
