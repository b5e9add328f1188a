"""Checkpoints: two are kept, damage is noticed and survived, a full disk loses nothing, and nothing in them is run."""

import os
import pickle
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from fptt.experiments.commands.cli import INTERRUPTED, run
from fptt.experiments.process.errors import UserError
from fptt.experiments.training.checkpoints import Checkpoints, DamagedCheckpointError, read_checkpoint
from fptt.experiments.training.folder import RunFolder
from tests.experiments.permissions import told_of_lack_of_permission
from tests.experiments.training.test_resume import QUICK, assert_same_end, interrupt_at

COMMAND = ["train", *QUICK, "--batch-size", "24", "--checkpoint-updates", "8"]


@pytest.fixture
def interrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunFolder:
    """Return a run that was interrupted in its second epoch."""
    with monkeypatch.context() as patch:
        interrupt_at(8, patch)
        assert run([*COMMAND, "--out", str(tmp_path / "cut")]) == INTERRUPTED
    return RunFolder(tmp_path / "cut")


@pytest.fixture
def whole(tmp_path: Path) -> RunFolder:
    assert run([*COMMAND, "--out", str(tmp_path / "whole")]) == 0
    return RunFolder(tmp_path / "whole")


def test_the_last_two_are_kept_and_the_newest_is_read(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    found: list[int] = []
    for number in range(4):
        checkpoints.write({"number": number})
        assert [read_checkpoint(path)["number"] for path in checkpoints.files()] == [number, number - 1][: number + 1]
    checkpoints.restore(lambda state: found.append(state["number"]), pytest.fail)
    assert found == [3]
    assert sorted(path.name[:17] for path in tmp_path.iterdir()) == ["checkpoint-000003", "checkpoint-000004"]


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[:-100],
        lambda content: content[:0],
        lambda content: content[: len(content) // 2] + b"\x01" + content[len(content) // 2 + 1 :],
    ],
    ids=["cut", "empty", "one byte"],
)
def test_a_damaged_newest_one_is_told_and_the_one_before_ends_the_same(
    damage: Callable[[bytes], bytes], interrupted: RunFolder, whole: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    newest = interrupted.checkpoints.files()[0]
    newest.write_bytes(damage(newest.read_bytes()))
    capsys.readouterr()
    assert run(["train", "--resume", "--out", str(interrupted.path)]) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert f"{newest.name} is damaged: its content does not fit its name; set aside as" in told
    assert_same_end(interrupted, whole)
    assert not list(interrupted.path.glob("checkpoint*"))


def test_two_damaged_ones_are_set_aside_and_it_is_said_what_to_do(
    interrupted: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in interrupted.checkpoints.files():
        path.write_bytes(b"no checkpoint")
    assert run(["train", "--resume", "--out", str(interrupted.path)]) == 2
    assert "can be used. To begin again: --overwrite." in " ".join(capsys.readouterr().err.split())
    assert len(list(interrupted.path.glob("checkpoint-*.damaged"))) == 2


FIELDS = [
    "data",
    "model",
    "optimizer",
    "method",
    "precision",
    "batches",
    "schedule",
    "state",
    "best",
    "totals",
    "counters",
    "random",
    "others",
]


@pytest.mark.parametrize("name", FIELDS)
def test_a_forged_field_is_named(name: str, interrupted: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    """The digest is right, the field is missing: the newest is refused, and so are both if both are forged."""
    state = read_checkpoint(interrupted.checkpoints.files()[0])
    del state[name]
    for _ in range(2):
        interrupted.checkpoints.write(state)
    assert run(["train", "--resume", "--out", str(interrupted.path)]) == 2
    assert f"field '{name}' is damaged: KeyError" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("path", "value", "name"),
    [
        (("model", "readout.0.weight"), torch.zeros(3, 3), "model"),
        (("optimizer", "state", 0, "exp_avg"), torch.zeros(3, 3), "optimizer"),
        (("method", "regularizer", "state", 0, "dual"), torch.zeros(3, 3), "method"),
        (("best", "weights", "readout.0.weight"), torch.zeros(3, 3), "best"),
        (("counters", "epoch"), "many", "counters"),
        (("random", "torch"), torch.zeros(3), "random"),
    ],
    ids=str,
)
def test_a_value_that_does_not_fit_is_named(
    path: tuple[Any, ...], value: Any, name: str, interrupted: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    state = read_checkpoint(interrupted.checkpoints.files()[0])
    place: Any = state
    for key in path[:-1]:
        place = place[key]
    assert path[-1] in place, f"{path} must be there: {list(place)}"
    place[path[-1]] = value
    for _ in range(2):
        interrupted.checkpoints.write(state)
    assert run(["train", "--resume", "--out", str(interrupted.path)]) == 2
    assert f"field '{name}' is damaged" in " ".join(capsys.readouterr().out.split())


def test_changed_data_are_refused_and_nothing_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same vocabulary, the letters in another order."""
    text = tmp_path / "text.txt"
    text.write_text("abcd" * 300)
    sizes = ["--hidden-size", "4", "--batch-size", "4", "--length", "9", "--epochs", "1"]
    with monkeypatch.context() as patch:
        interrupt_at(1, patch)
        assert run(["train", "--task", "text", "--data", str(text), *sizes, "--out", str(tmp_path / "run")]) == 130
    before = RunFolder(tmp_path / "run").checkpoints.files()
    text.write_text("abdc" * 300)
    assert run(["train", "--resume", "--out", str(tmp_path / "run")]) == 2
    assert "are not those that the run was trained on" in " ".join(capsys.readouterr().err.split())
    assert RunFolder(tmp_path / "run").checkpoints.files() == before


def test_a_checkpoint_from_before_a_config_field_goes_on(interrupted: RunFolder, whole: RunFolder) -> None:
    state = read_checkpoint(interrupted.checkpoints.files()[0])
    state["config"] = "".join(line for line in state["config"].splitlines(True) if not line.startswith("num_duals"))
    interrupted.checkpoints.write(state)
    assert run(["train", "--resume", "--out", str(interrupted.path)]) == 0
    assert_same_end(interrupted, whole)


class Payload:
    """Makes a file when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (str(self.target),))


def test_nothing_in_a_checkpoint_is_executed(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    checkpoints = Checkpoints(tmp_path / "folder")
    checkpoints.write({"payload": Payload(tmp_path / "executed")})
    with pytest.raises(DamagedCheckpointError):
        read_checkpoint(checkpoints.files()[0])
    pickle.loads(pickle.dumps(Payload(tmp_path / "executed")))  # which would have done it
    assert (tmp_path / "executed").exists()


@pytest.mark.parametrize(("room", "file"), [(1_500, "a checkpoint"), (100, "metrics.csv")])
def test_a_full_disk_is_told_and_the_run_goes_on_when_there_is_room(
    room: int, file: str, interrupted: RunFolder, whole: RunFolder
) -> None:
    """The system refuses to write more than so many bytes of a file."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, room))

    command = [sys.executable, "-m", "fptt", "train", "--resume", "--out", str(interrupted.path)]
    environment = {**os.environ, "MPLCONFIGDIR": os.devnull}
    full = subprocess.run(command, preexec_fn=limit, capture_output=True, text=True, env=environment, check=False)
    told = " ".join(full.stderr.split())
    assert full.returncode == 2, full.stderr
    assert "cannot be written" in told
    assert "File too large" in told
    assert file in told
    assert f"To go on when that is mended: fptt train --resume --out {interrupted.path}." in told
    assert "Traceback" not in full.stderr
    assert run(["train", "--resume", "--out", str(interrupted.path)]) == 0
    assert_same_end(interrupted, whole)


READ_ONLY = """
import os, sys
from fptt.experiments.commands.cli import run
from fptt.experiments.training.run import Run
from fptt.experiments.training.loop import Training

name = sys.argv.pop(1)
train_batch, select = Run.train_batch, Training._select

def locking(self, *arguments):
    train_batch(self, *arguments)
    if name == "a checkpoint" and self.method.batches == 10:
        os.chmod(sys.argv[-1], 0o500)

def selecting(self):
    figures = select(self)
    if name == "metrics.csv" and self.run.epoch == 2:
        os.chmod(sys.argv[-1], 0o500)
        os.chmod(self.folder.metrics_file, 0o400)
    return figures

Run.train_batch, Training._select = locking, selecting
sys.exit(run(sys.argv[1:]))
"""


@pytest.mark.parametrize("file", ["a checkpoint", "metrics.csv"])
def test_a_folder_that_becomes_read_only_is_told_and_the_run_goes_on_when_it_is_not(
    file: str, interrupted: RunFolder, whole: RunFolder
) -> None:
    told = told_of_lack_of_permission(READ_ONLY, file, "train", "--resume", "--out", str(interrupted.path))
    interrupted.path.chmod(0o700)
    interrupted.metrics_file.chmod(0o600)
    assert f"{file} " in told
    assert "cannot be written: [Errno 13] Permission denied" in told
    assert f"To go on when that is mended: fptt train --resume --out {interrupted.path}." in told
    assert run(["train", "--resume", "--out", str(interrupted.path)]) == 0
    assert_same_end(interrupted, whole)


def test_a_checkpoint_that_cannot_be_written_leaves_the_ones_before(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    checkpoints.write({"number": 1})
    before = checkpoints.files()
    with pytest.raises(UserError, match="cannot be written"):
        Checkpoints(tmp_path / "nowhere").write({"number": 2})
    (tmp_path / "checkpoint.new").mkdir()  # stands in the way
    with pytest.raises((UserError, OSError)):
        checkpoints.write({"number": 2})
    assert checkpoints.files() == before
