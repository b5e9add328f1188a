"""What the default recipes must reach; minutes each, so run by `make test-all`."""

import math
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


@pytest.mark.parametrize("batch_size", [64, 24])
@pytest.mark.parametrize("divergence", ["uniform", "none"])
def test_the_training_loss_leaves_idle_lanes_out(divergence: str, batch_size: int, tmp_path: Path) -> None:
    """A model that is hardly trained holds all ten classes for as likely, wherever in a sequence a lane stands."""
    options = ["--limit", "64", "--epochs", "1", "--lr", "1e-9", "--hidden-size", "8", "--threads", "1"]
    options += ["--lanes", "staggered", "--batch-size", str(batch_size), "--divergence", divergence]
    assert run(["train", "--task", "digits", "--method", "tbptt", *options, "--out", str(tmp_path)]) == 0
    (row,) = RunFolder(tmp_path).read_metrics()
    whole = 1 if divergence == "uniform" else 9 / 16  # the mean of k/8, the weight of the label, over the chunks
    assert row["train_loss"] == pytest.approx(whole * math.log(10), rel=0.05 if divergence == "uniform" else 0.2)
