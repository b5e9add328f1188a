"""Runs of two processes: as one process on the same batches, resumed and killed as any other run."""

import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from fptt.experiments.commands.cli import run
from fptt.experiments.training.folder import RunFolder
from tests.experiments.tasks.test_sequences import LENGTHS, NAMES, sequences
from tests.experiments.training.test_precision import distance
from tests.experiments.training.test_resume import assert_same_end
from tests.forks import Fork

QUICK = ("--limit", "128", "--hidden-size", "8", "--threads", "1")
TWO = ("--devices", "2", "--check-sync")
TIMEOUT = 300.0
WATCH = 5.5
"""A bit more than the seconds after which Fabric looks for processes that are dead."""

pytestmark = pytest.mark.xdist_group("devices")  # the undisturbed run is made once


def start(*options: str) -> Fork:
    """Start the first process, which starts the second one anew."""
    command = [sys.executable, "-m", "fptt", "train", *options]
    return Fork(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, process_group=0)


def finished(process: Fork) -> str:
    """Return what it said, of which nothing was wrong."""
    output, _ = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 0, output
    return output


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def test_two_processes_end_as_one(tmp_path: Path) -> None:
    """Batches of 25 are parted unevenly; the last one of an epoch, of 3, too. One line is said once."""
    options = [*QUICK, "--epochs", "2", "--batch-size", "25", "--precision", "64-true"]
    output = finished(start(*options, *TWO, "--out", str(tmp_path / "two")))
    assert output.count("test accuracy") == 1
    assert run(["train", *options, "--out", str(tmp_path / "one")]) == 0
    two, one = RunFolder(tmp_path / "two"), RunFolder(tmp_path / "one")
    assert distance(two.read_weights(), one.read_weights()) < 1e-10
    assert distance(two.read_weights(averages=True), one.read_weights(averages=True)) < 1e-10
    names = ("test_accuracy", "updates", "timesteps", "epochs", "best_epoch")
    summaries = [folder.read_summary() for folder in (two, one)]
    assert {name: summaries[0][name] for name in names} == {name: summaries[1][name] for name in names}
    assert [summary["processes"] for summary in summaries] == [2, 1]


@pytest.mark.parametrize("targets", [NAMES, np.arange(LENGTHS.sum()) * 0.5], ids=["classes", "steps"])
def test_two_processes_share_ragged_sequences(targets: np.ndarray, tmp_path: Path) -> None:
    """Each has the mask of its own; some chunks have real steps in one of them alone."""
    np.savez(tmp_path / "x.npz", inputs=np.concatenate(sequences()), lengths=LENGTHS, targets=targets)
    options = ["--task", "sequences", "--data", str(tmp_path / "x.npz"), "--batch-size", "3", "--num-chunks", "6"]
    options += ["--hidden-size", "4", "--threads", "1", "--epochs", "2", "--precision", "64-true"]
    output = finished(start(*options, *TWO, "--out", str(tmp_path / "two")))
    assert output.count("sequences: 14 to train") == 1
    assert run(["train", *options, "--out", str(tmp_path / "one")]) == 0
    two, one = RunFolder(tmp_path / "two"), RunFolder(tmp_path / "one")
    assert distance(two.read_weights(), one.read_weights()) < 1e-10
    assert two.read_summary()["updates"] == one.read_summary()["updates"]


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGINT to a single process there")
def test_ctrl_c_ends_a_process_that_waits_for_another_that_never_comes(tmp_path: Path) -> None:
    port = free_port()
    environment = {**os.environ, "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    command = [sys.executable, "-m", "fptt", "train", *QUICK, "--devices", "2", "--out", str(tmp_path / "run")]
    process = Fork(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment)
    try:
        for _ in range(1000):
            with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=0.1):
                break
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == -signal.SIGINT
    assert not (tmp_path / "run").exists()


@pytest.fixture(scope="module")
def stream(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], RunFolder]:
    """A language model with dropout and a carried state, whose processes meet at every 7th update."""
    folder = tmp_path_factory.mktemp("stream")
    (folder / "text.txt").write_text("the quick brown fox jumps over the lazy dog. " * 100)
    options = ["--task", "text", "--data", str(folder / "text.txt"), "--length", "50", "--epochs", "6"]
    options += ["--hidden-size", "8", "--embedding-size", "4", "--batch-size", "5", "--num-chunks", "5"]
    options += ["--dropout", "0.2", "--threads", "1", "--deterministic"]
    options += [*TWO, "--sync-every", "7", "--checkpoint-updates", "60"]
    finished(start(*options, "--out", str(folder / "whole")))
    return options, RunFolder(folder / "whole")


def wait_for_epoch(folder: RunFolder, process: Fork) -> None:
    begin = time.monotonic()
    while not folder.metrics_file.exists() and process.poll() is None and time.monotonic() - begin < TIMEOUT:
        time.sleep(0.005)
    assert process.poll() is None, process.communicate()[0]


def test_an_interrupted_run_of_two_goes_on(stream: tuple[list[str], RunFolder], tmp_path: Path) -> None:
    """Only the first process is told; both stop after the same batch."""
    options, whole = stream
    cut = RunFolder(tmp_path / "cut")
    process = start(*options, "--out", str(cut.path))
    wait_for_epoch(cut, process)
    os.kill(process.pid, signal.SIGINT)
    output, _ = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 130, output
    assert cut.read_summary()["status"] == "interrupted"
    finished(start("--resume", "--out", str(cut.path)))
    assert_same_end(whole, cut)


@pytest.mark.parametrize("number", [0, 1])
def test_a_killed_process_ends_the_run_which_goes_on(
    number: int, stream: tuple[list[str], RunFolder], tmp_path: Path
) -> None:
    """The other one says so, and ends; so does one whose first process is gone, which nobody waits for.

    Fabric, which would kill the first process when it finds the second one dead, has time enough to find it.
    """
    options, whole = stream
    cut = RunFolder(tmp_path / "cut")
    process = start(*options, "--out", str(cut.path))
    wait_for_epoch(cut, process)
    (follower,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(process.pid, signal.SIGSTOP)
    os.kill((process.pid, int(follower))[number], signal.SIGKILL)
    time.sleep(WATCH * number)
    os.kill(process.pid, signal.SIGCONT)
    output, _ = process.communicate(timeout=TIMEOUT)
    assert process.returncode == (-signal.SIGKILL, 2)[number], output
    speaker = ("fptt, process 1", "fptt")[number]
    assert f"{speaker}: another process has ended, or cannot be reached" in output
    assert output.count("another process has ended") == 1
    assert f"fptt train --resume --out {cut.path}" in output
    finished(start("--resume", "--out", str(cut.path)))
    assert_same_end(whole, cut)


def test_an_error_that_all_processes_meet_is_reported_once(tmp_path: Path) -> None:
    process = start(*QUICK, *TWO, "--num-chunks", "65", "--out", str(tmp_path / "run"))
    output, _ = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 2, output
    assert output.count("num_chunks must be at most the sequence length 64, got 65") == 1
    assert "process 1" not in output
    assert not (tmp_path / "run").exists()


def test_as_many_processes_as_were_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "3")
    assert run(["train", *QUICK, "--devices", "2", "--out", str(tmp_path / "run")]) == 2
    assert "devices times num_nodes must be the 3 processes that were started, got 2" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
