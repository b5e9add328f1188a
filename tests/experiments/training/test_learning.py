"""What the default recipes must reach; minutes each, so run by `make test-all`."""

from pathlib import Path

import pytest

from fptt.experiments.commands.cli import run
from fptt.experiments.training.folder import RunFolder


@pytest.mark.slow
def test_fptt_learns_the_digits(tmp_path: Path) -> None:
    """Five seeds have a mean of 0.955 and a standard deviation of 0.016, and rounding draws another one of them."""
    accuracies = []
    for seed in range(3):
        out = tmp_path / str(seed)
        assert run(["train", "--task", "digits", "--seed", str(seed), "--out", str(out)]) == 0
        accuracies.append(RunFolder(out).read_summary()["test_accuracy"])
    assert sum(accuracies) / 3 >= 0.935


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_fptt_solves_the_adding_task(seed: int, tmp_path: Path) -> None:
    """The default regularizer does not stall Adam on the plateau: 1,500 batches at T = 200, chance 0.1667."""
    options = ["--task", "adding", "--length", "200", "--threads", "1", "--seed", str(seed)]
    assert run(["train", *options, "--out", str(tmp_path / "run")]) == 0
    summary = RunFolder(tmp_path / "run").read_summary()
    assert summary["batches"] == 1500
    assert summary["alpha"] > 0
    assert summary["test_mse"] < 0.02


@pytest.mark.slow
@pytest.mark.machine_code
def test_an_update_at_every_pixel_learns_the_digits(tmp_path: Path) -> None:
    options = ["--task", "digits", "--num-chunks", "64", "--engine", "compiled"]
    assert run(["train", *options, "--out", str(tmp_path / "run")]) == 0
    summary = RunFolder(tmp_path / "run").read_summary()
    assert summary["updates"] == 64 * summary["batches"]
    assert summary["test_accuracy"] >= 0.93
