"""The benchmark of gradients: exact answers, and the sum that the theory rests on."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional

import fptt
from fptt.experiments.benchmarks import convergence
from fptt.experiments.benchmarks.convergence import Problem, contestants, mean_gradient, measure, problems, slope
from fptt.experiments.commands.cli import run

REGRESSION, LSTM = problems(0)


def last_row(problem: Problem, name: str, num_passes: int) -> dict[str, Any]:
    (contestant,) = (own for own in contestants() if own.name == name)
    return list(measure(problem, contestant, num_passes))[-1]


def test_descent_on_the_mean_arrives_at_the_answer() -> None:
    row = last_row(REGRESSION, "SGD on the mean", 1000)
    assert row["distance"] < 1e-12
    assert row["gradient_norm"] < 1e-12
    assert row["updates"] == 1000


def test_the_answer_is_where_the_mean_gradient_vanishes_and_those_of_chunks_do_not() -> None:
    model, loss = REGRESSION.make_model(), fptt.SequenceLoss(functional.mse_loss)
    assert REGRESSION.answer is not None
    model.weight.data.copy_(REGRESSION.answer)  # pyright: ignore
    for num_chunks in (1, 10):
        assert mean_gradient(REGRESSION, model, loss, num_chunks).norm() < 1e-12
    first = REGRESSION._replace(
        inputs=REGRESSION.inputs[:4].repeat(10, 1, 1), targets=REGRESSION.targets[:4].repeat(10, 1, 1)
    )
    assert mean_gradient(first, model, loss, 1).norm() > 0.1


@pytest.mark.parametrize("problem", [REGRESSION, LSTM], ids=["regression", "lstm"])
def test_the_average_of_the_gradients_is_the_way_from_the_first_weights(problem: Problem) -> None:
    """W_N = W_0 − η Σ ∇ℓ(W_n) for TBPTT, so that the norm of the average is ‖W_0 − W_N‖/(ηN)."""
    row = last_row(problem, "TBPTT", 20)
    model = problem.make_model()
    start = torch.nn.utils.parameters_to_vector(model.parameters()).detach().clone()
    optimizer = torch.optim.SGD(model.parameters(), lr=problem.lr)
    method = fptt.TBPTT(model, optimizer, fptt.SequenceLoss(functional.mse_loss), num_chunks=10)
    for _ in range(20):
        method.train_batch(problem.inputs, problem.targets)
    way = torch.nn.utils.parameters_to_vector(model.parameters()).detach() - start
    assert row["updates"] == 200
    assert row["average_norm"] == pytest.approx(way.norm().item() / (problem.lr * 200), rel=1e-10)


def test_with_chunks_the_average_vanishes_and_the_gradient_at_the_weights_stays() -> None:
    for name in ("TBPTT", "FPTT paper", "FPTT released", "FPTT paper, recomputed"):
        (contestant,) = (own for own in contestants() if own.name == name)
        rows = list(measure(REGRESSION, contestant, 200))
        assert slope(rows, "average_norm") == pytest.approx(-1, abs=0.03)
        assert rows[-1]["gradient_norm"] > 0.02


def test_the_mean_of_cut_gradients_is_not_that_of_bptt() -> None:
    model, loss = LSTM.make_model(), fptt.SequenceLoss(functional.mse_loss)
    cut, whole = mean_gradient(LSTM, model, loss, 10), mean_gradient(LSTM, model, loss, 1)
    method = fptt.TBPTT(model, torch.optim.SGD(model.parameters(), lr=0.0), loss, num_chunks=1)
    method.train_batch(LSTM.inputs, LSTM.targets)
    expected = torch.cat([param.grad.flatten() for param in model.parameters() if param.grad is not None])
    torch.testing.assert_close(whole, expected, rtol=1e-12, atol=1e-14)
    assert (cut - whole).norm() > 0.1 * whole.norm()


def test_slope_of_a_power() -> None:
    rows = [{"passes": passes, "value": 3 * passes**-1.5} for passes in (1, 2, 10, 20, 50, 100)]
    rows[0]["value"] = 1e9  # before the last decade
    assert slope(rows, "value") == pytest.approx(-1.5)


def test_the_command_writes_rows_tables_and_a_plot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convergence, "contestants", lambda: contestants()[:2])
    assert run(["bench", "convergence", "--passes", "10", "--out", str(tmp_path)]) == 0
    report = json.loads((tmp_path / "convergence.json").read_text())
    assert {row["method"] for row in report["rows"]} == {"SGD on the mean", "TBPTT"}
    assert [row["passes"] for row in report["rows"]][:3] == [1, 2, 3]
    assert "| TBPTT | 100 |" in (tmp_path / "convergence.md").read_text()
    assert (tmp_path / "convergence.png").stat().st_size > 10_000


def test_too_few_passes_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["bench", "convergence", "--passes", "9", "--out", str(tmp_path)]) == 2
    assert "passes must be at least 10, got 9" in capsys.readouterr().err
