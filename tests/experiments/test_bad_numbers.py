"""The three policies of a run that meets NaN."""

from pathlib import Path

import pytest

from fptt.experiments.checkpoints import read_checkpoint
from fptt.experiments.cli import run
from fptt.experiments.run import Run
from fptt.experiments.run_folder import RunFolder
from fptt.experiments.tasks.batches import Batch
from tests.experiments.test_resume import QUICK

COMMAND = ["train", *QUICK, "--batch-size", "16", "--checkpoint-updates", "24", "--schedule", "constant"]
"""8 batches of 8 updates an epoch, and a checkpoint after every third batch."""


@pytest.fixture
def poisoned(monkeypatch: pytest.MonkeyPatch) -> dict[int, int]:
    """Batches, by their number, and how often they come with NaN."""
    times: dict[int, int] = {}
    train_batch = Run.train_batch

    def poison(self: Run, batch: Batch) -> None:
        number = self.method.batches
        if times.get(number, 0) > 0:
            times[number] -= 1
            inputs = batch[0].clone()
            inputs[..., -1] = float("nan")
            batch = (inputs, *batch[1:])
        train_batch(self, batch)

    monkeypatch.setattr(Run, "train_batch", poison)
    return times


def test_raise_tells_and_completes_the_folder(
    poisoned: dict[int, int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    poisoned[10] = 1
    assert run([*COMMAND, "--out", str(tmp_path / "run")]) == 2
    assert "of batch 10" in capsys.readouterr().err
    summary = RunFolder(tmp_path / "run").read_summary()
    assert (summary["status"], summary["batches"]) == ("failed", 10)


def test_skip_counts_and_goes_on(poisoned: dict[int, int], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The last pixel lies in the last chunk of each batch."""
    poisoned.update({3: 1, 10: 1})
    assert run([*COMMAND, "--on-bad-number", "skip", "--out", str(tmp_path / "run")]) == 0
    output = capsys.readouterr().out
    assert "skipped a chunk" in output
    assert "2 skipped  loss" in output
    summary = RunFolder(tmp_path / "run").read_summary()
    assert (summary["skipped"], summary["updates"], summary["rollbacks"]) == (2, 16 * 8 - 2, 0)


def test_rollback_goes_back_to_the_checkpoint_with_a_smaller_rate(
    poisoned: dict[int, int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Checkpoints are made before batches 0, 3, 6, 9, …; batch 10 is bad twice."""
    poisoned[10] = 2
    options = ["--on-bad-number", "rollback", "--rollback-factor", "0.25", "--lr", "0.008"]
    assert run([*COMMAND, *options, "--out", str(tmp_path / "run")]) == 0
    output = capsys.readouterr().out
    assert "Rollback 1: on from batch 9 with the learning rate × 0.25" in output
    assert "Rollback 2: on from batch 9 with the learning rate × 0.0625" in output
    folder = RunFolder(tmp_path / "run")
    summary = folder.read_summary()
    assert (summary["rollbacks"], summary["batches"], summary["updates"], summary["status"]) == (2, 16, 128, "finished")
    assert [row["lr"] for row in folder.read_metrics()] == [0.008, 0.0005]


def test_rollback_gives_up(poisoned: dict[int, int], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What is left can be gone on with: its checkpoint is from before the bad batch, and knows the rollbacks."""
    poisoned[4] = 100
    options = ["--on-bad-number", "rollback", "--max-rollbacks", "2"]
    assert run([*COMMAND, *options, "--out", str(tmp_path / "run")]) == 2
    assert "of batch 4" in capsys.readouterr().err
    assert poisoned[4] == 97
    folder = RunFolder(tmp_path / "run")
    state = read_checkpoint(folder.checkpoints.files()[0])
    assert (state["method"]["batches"], state["schedule"]["rollbacks"]) == (3, 2)
    assert all(weight.isfinite().all() for weight in state["model"].values())
    poisoned[4] = 0
    assert run(["train", "--resume", "--out", str(folder.path)]) == 0
    assert folder.read_summary()["rollbacks"] == 2
