"""The three policies of a run that meets NaN, in one process or in one of two."""

import itertools
import math
import os
import signal
import sys
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch

import fptt
from fptt.experiments.commands.cli import INTERRUPTED, run
from fptt.experiments.process.machine import Clock
from fptt.experiments.training import loop
from fptt.experiments.training.checkpoints import read_checkpoint
from fptt.experiments.training.folder import RunFolder
from fptt.experiments.training.run import EpochTotals, Run
from tests import forks
from tests.experiments.training.poisoned import poison
from tests.experiments.training.test_precision import distance
from tests.experiments.training.test_resume import QUICK, assert_same_end

COMMAND = ["train", *QUICK, "--batch-size", "16", "--checkpoint-updates", "24", "--schedule", "constant"]
"""8 batches of 8 updates an epoch, and a checkpoint after every third batch."""
ROLLBACK = ["--on-bad-number", "rollback", "--rollback-factor", "0.25", "--lr", "0.008"]
ROOT = Path(__file__).parents[3]


@pytest.fixture
def poisoned(monkeypatch: pytest.MonkeyPatch) -> dict[int, int]:
    """Batches, by their number, and how often they come with NaN."""
    times: dict[int, int] = {}

    def disturb(name: str, run: Run, batch: Any = None) -> None:
        poison(run, batch, times)

    monkeypatch.setattr(loop, "on_event", disturb)
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


@pytest.mark.parametrize("method", ["fptt", "bptt"])
def test_a_batch_that_is_skipped_whole_is_not_in_the_means_of_its_epoch(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of eight batches all but the first are bad; of one epoch of BPTT all: a hundred chunks in a row end a run."""
    good: list[fptt.BatchResult] = []
    add = EpochTotals.add

    def added(totals: EpochTotals, result: fptt.BatchResult, progress: fptt.Progress | None) -> None:
        good.extend([result] if result.updates else [])
        add(totals, result, progress)

    monkeypatch.setattr(EpochTotals, "add", added)
    bad = {*range(1, 8), *range(8 if method == "bptt" else 9, 16)}

    def disturb(name: str, run: Run, batch: Any = None) -> None:
        if name == "batch" and run.method.batches in bad:
            batch[0].fill_(math.nan)

    monkeypatch.setattr(loop, "on_event", disturb)
    options = ["--method", method, "--on-bad-number", "skip", "--out", str(tmp_path)]
    assert run([*COMMAND, *options]) == 0
    found = [(row["train_loss"], row["gradient_norm"]) for row in RunFolder(tmp_path).read_metrics()]
    expected = [(result.loss.item(), result.gradient_norm.item()) for result in good]
    assert found[: len(good)] == expected
    assert all(map(math.isnan, itertools.chain(*found[len(good) :])))


def test_a_run_all_of_whose_chunks_are_skipped_is_an_error(
    poisoned: dict[int, int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """BPTT has one chunk a batch: 16 in two epochs."""
    poisoned.update(dict.fromkeys(range(16), 1))
    command = [*COMMAND, "--method", "bptt", "--on-bad-number", "skip", "--out", str(tmp_path / "run")]
    for options in (command, ["train", "--resume", "--out", str(tmp_path / "run")]):
        assert run(options) == 2
        assert "nothing was learned: all 16 chunks were skipped" in " ".join(capsys.readouterr().err.split())
    assert not RunFolder(tmp_path / "run").summary_file.exists()


def test_rollback_goes_back_to_the_checkpoint_with_a_smaller_rate(
    poisoned: dict[int, int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Checkpoints are made before batches 0, 3, 6, 9, …; batch 10 is bad twice."""
    poisoned[10] = 2
    assert run([*COMMAND, *ROLLBACK, "--out", str(tmp_path / "run")]) == 0
    output = capsys.readouterr().out
    assert "Rollback 1: on from batch 9 with the learning rate × 0.25" in output
    assert "Rollback 2: on from batch 9 with the learning rate × 0.0625" in output
    folder = RunFolder(tmp_path / "run")
    summary = folder.read_summary()
    assert (summary["rollbacks"], summary["batches"], summary["updates"], summary["status"]) == (2, 16, 128, "finished")
    assert [row["lr"] for row in folder.read_metrics()] == [0.008, 0.0005]


def test_a_rollback_goes_back_to_no_checkpoint_that_is_only_to_resume_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Batch 11 is bad. By updates the last checkpoint is from before batch 9, whatever else there is."""
    stops: set[int] = set()
    bad: dict[int, int] = {}

    def disturb(name: str, run: Run, batch: Any = None) -> None:
        poison(run, batch, bad)
        if name == "trained" and run.method.batches in stops:
            stops.remove(run.method.batches)
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(loop, "on_event", disturb)
    whole, cut, often = (RunFolder(tmp_path / name) for name in ("whole", "cut", "often"))
    bad[11] = 1
    assert run([*COMMAND, *ROLLBACK, "--out", str(whole.path)]) == 0
    assert "on from batch 9" in capsys.readouterr().out

    bad[11], stops = 1, {8, 10, 11}  # twice after the same checkpoint, which is no more one of the last two
    assert run([*COMMAND, *ROLLBACK, "--out", str(cut.path)]) == INTERRUPTED
    for expected in (INTERRUPTED, INTERRUPTED, 0):
        assert run(["train", "--resume", "--out", str(cut.path)]) == expected
    assert "on from batch 9" in capsys.readouterr().out
    assert_same_end(whole, cut)

    bad[11] = 1
    monkeypatch.setattr(loop, "SECONDS_BETWEEN_CHECKPOINTS", 0.0)
    assert run([*COMMAND, *ROLLBACK, "--out", str(often.path)]) == 0
    assert_same_end(whole, often)


def test_time_that_a_rollback_loses_has_been_spent(
    poisoned: dict[int, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each batch takes a second. Batch 9 is trained on three times, the others once: 18 for 16 batches."""
    ticks = count()
    monkeypatch.setattr(Clock, "now", lambda _: next(ticks))
    poisoned[10] = 2
    assert run([*COMMAND, *ROLLBACK, "--epochs", "None", "--max-seconds", "18", "--out", str(tmp_path / "run")]) == 0
    summary = RunFolder(tmp_path / "run").read_summary()
    assert (summary["seconds"], summary["batches"]) == (18, 16)


def test_rollback_gives_up(poisoned: dict[int, int], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What is left can be gone on with: its checkpoint is from before the bad batch, and knows the rollbacks."""
    poisoned[4] = 100
    options = ["--on-bad-number", "rollback", "--max-rollbacks", "2"]
    assert run([*COMMAND, *options, "--out", str(tmp_path / "run")]) == 2
    assert "of batch 4" in capsys.readouterr().err
    assert poisoned[4] == 97
    folder = RunFolder(tmp_path / "run")
    state = read_checkpoint(folder.checkpoints.files()[0])
    assert (state["method"]["batches"], state["progress"]["rollbacks"]) == (3, 2)
    assert all(weight.isfinite().all() for weight in state["model"].values())
    poisoned[4] = 0
    assert run(["train", "--resume", "--out", str(folder.path)]) == 0
    assert folder.read_summary()["rollbacks"] == 2


def rolled_back(folder: Path, process: int, *options: str) -> list[dict[str, Any]]:
    """Return what two processes end with, of which one meets NaN in batch 10."""
    poison = ["10", str(process), str(folder)]
    devices = ["--devices", "2", "--check-sync", *options, "--out", str(folder / "two")]
    command = [sys.executable, "-m", "tests.experiments.training.poisoned", *poison, *COMMAND, *ROLLBACK, *devices]
    made = forks.run(command, cwd=ROOT)
    assert made.returncode == 0, made.stdout + made.stderr
    assert made.stdout.count("Rollback 1: on from batch 9 with the learning rate × 0.25.") == 1
    assert "Rollback 2" not in made.stdout
    return [torch.load(folder / f"process-{number}.pt") for number in range(2)]


@pytest.mark.xdist_group("devices")
def test_two_processes_go_back_as_one(poisoned: dict[int, int], tmp_path: Path) -> None:
    """The second one meets NaN; both go back to the checkpoint, and on at the smaller rate."""
    poisoned[10] = 1
    double = ["--precision", "64-true"]
    assert run([*COMMAND, *ROLLBACK, *double, "--out", str(tmp_path / "one")]) == 0
    first, second = rolled_back(tmp_path, 1, *double)
    assert distance(first["weights"], second["weights"]) == 0
    one, two = RunFolder(tmp_path / "one"), RunFolder(tmp_path / "two")
    assert distance(one.read_weights(), two.read_weights()) < 1e-10
    assert [row["lr"] for row in two.read_metrics()] == [row["lr"] for row in one.read_metrics()] == [0.008, 0.002]
    assert two.read_summary()["rollbacks"] == 1


@pytest.mark.xdist_group("devices")
@pytest.mark.parametrize("average", ["0", "0.9"])
def test_processes_with_updates_of_their_own_go_back_together(average: str, tmp_path: Path) -> None:
    """The first one meets NaN; the second hears of it at the next sync. They end with one model, averaged or not."""
    ends = rolled_back(tmp_path, 0, "--sync-every", "16", "--ema-decay", average)
    assert distance(ends[0]["weights"], ends[1]["weights"]) == 0
    assert [end["lr"] for end in ends] == [0.002, 0.002]
    summary = RunFolder(tmp_path / "two").read_summary()
    assert (summary["rollbacks"], summary["batches"], summary["updates"]) == (1, 16, 128)
