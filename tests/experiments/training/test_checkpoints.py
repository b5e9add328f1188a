"""Checkpoints: two are kept, damage is noticed and survived, a full disk loses nothing, and nothing in them is run."""

import os
import pickle
import random
import resource
import shutil
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fptt.experiments.commands.cli import INTERRUPTED, run
from fptt.experiments.process.errors import UnwritableError, UserError
from fptt.experiments.training.checkpoints import Checkpoints, DamagedCheckpointError, read_checkpoint
from fptt.experiments.training.folder import RunFolder, locked
from tests import forks
from tests.experiments.permissions import told_of_lack_of_permission
from tests.experiments.tasks.test_sequences import LENGTHS, NAMES, long_form, write
from tests.experiments.training.test_resume import QUICK, assert_same_end, interrupt_at

NUMBERS = LENGTHS / 4
COMMAND = ["train", *QUICK, "--batch-size", "24", "--checkpoint-updates", "8"]


@pytest.fixture(scope="module")
def interrupted_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("interrupted") / "cut"
    with pytest.MonkeyPatch.context() as patch:
        interrupt_at(8, patch)
        assert run([*COMMAND, "--out", str(folder)]) == INTERRUPTED
    return folder


@pytest.fixture
def interrupted(interrupted_once: Path, tmp_path: Path) -> RunFolder:
    """Return a run that was interrupted in its second epoch, in a copy of its folder."""
    return RunFolder(shutil.copytree(interrupted_once, tmp_path / "cut"))


@pytest.fixture
def whole(undisturbed: Callable[..., RunFolder]) -> RunFolder:
    return undisturbed(*COMMAND)


def test_the_last_two_are_kept_and_the_newest_is_read(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    found: list[int] = []
    for number in range(4):
        checkpoints.write({"number": number})
        assert [read_checkpoint(path)["number"] for path in checkpoints.files()] == [number, number - 1][: number + 1]
    checkpoints.restore(lambda state: found.append(state["number"]), pytest.fail)
    assert found == [3]
    assert sorted(path.name[:17] for path in tmp_path.iterdir()) == ["checkpoint-000003", "checkpoint-000004"]


def contents(path: Path) -> list[range]:
    """Return where the contents of the records of a checkpoint lie, the largest last."""
    raw, found = path.read_bytes(), []
    with zipfile.ZipFile(path) as archive:
        for record in archive.infolist():
            name_length, extra_length = struct.unpack_from("<HH", raw, record.header_offset + 26)
            start = record.header_offset + 30 + name_length + extra_length
            found.append(range(start, start + record.file_size))
    return sorted(found, key=len)


def flip(path: Path, place: int, bit: int = 0) -> None:
    raw = bytearray(path.read_bytes())
    raw[place] ^= 1 << bit
    path.write_bytes(raw)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (cut, "File is not a zip file"),
        (lambda path: path.write_bytes(b""), "File is not a zip file"),
        (lambda path: flip(path, contents(path)[-1][0]), "the content of its record "),
    ],
    ids=["cut", "empty", "one bit"],
)
def test_a_damaged_newest_one_is_told_and_the_one_before_ends_the_same(
    damage: Callable[[Path], None],
    reason: str,
    interrupted: RunFolder,
    whole: RunFolder,
    capsys: pytest.CaptureFixture[str],
) -> None:
    newest = interrupted.checkpoints.files()[0]
    damage(newest)
    capsys.readouterr()
    assert run(["train", "--resume", "--out", str(interrupted.path)]) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert f"{newest.name} is damaged: {reason}" in told
    assert f"; set aside as {newest.name}.damaged." in told
    assert_same_end(interrupted, whole)
    assert not list(interrupted.path.glob("checkpoint*"))


def test_every_flipped_bit_of_a_record_is_found(interrupted: RunFolder) -> None:
    newest = interrupted.checkpoints.files()[0]
    raw, places = newest.read_bytes(), [place for record in contents(newest) for place in record]
    generator = random.Random(0)
    for place in generator.sample(places, 30):
        flip(newest, place, generator.randrange(8))
        with pytest.raises(DamagedCheckpointError, match="is damaged: "):
            read_checkpoint(newest)
        newest.write_bytes(raw)
    read_checkpoint(newest)


def test_a_flipped_bit_anywhere_is_found_or_changes_nothing(tmp_path: Path) -> None:
    """Headers, directory and padding too: what is read is what was written."""
    checkpoints = Checkpoints(tmp_path)
    checkpoints.write({"weights": torch.arange(3.0), "name": "a state"})
    (path,) = checkpoints.files()
    raw, num_found = path.read_bytes(), 0
    for place in range(len(raw)):
        flip(path, place, place % 8)
        try:
            state = read_checkpoint(path)
        except DamagedCheckpointError:
            num_found += 1
        else:
            assert torch.equal(state.pop("weights"), torch.arange(3.0)), place
            assert state == {"name": "a state"}, place
        path.write_bytes(raw)
    assert num_found > sum(map(len, contents(path)))


def test_one_that_cannot_be_set_aside_is_passed_over(tmp_path: Path) -> None:
    checkpoints, found, told = Checkpoints(tmp_path), [], []
    for number in range(2):
        checkpoints.write({"number": number})
    newest = checkpoints.files()[0]
    cut(newest)
    newest.with_name(f"{newest.name}.damaged").mkdir()
    checkpoints.restore(lambda state: found.append(state["number"]), told.append)
    assert found == [0]
    assert told[0].endswith("is damaged: File is not a zip file; it cannot be set aside (Is a directory).")


def test_checkpoints_of_others_are_not_removed(tmp_path: Path) -> None:
    checkpoints, others = (
        Checkpoints(tmp_path),
        {"checkpoint-10.pt", "checkpoint-best.pt", "checkpoint-best.pt.damaged"},
    )
    checkpoints.write({"number": 1})
    for name in ("checkpoint.new", "checkpoint-000007.pt.damaged", *others):
        (tmp_path / name).touch()
    assert [path.name for path in checkpoints.set_aside()] == ["checkpoint-000007.pt.damaged"]
    checkpoints.remove()
    assert {path.name for path in tmp_path.iterdir()} == others


def test_a_planted_link_is_not_written_through(tmp_path: Path) -> None:
    victim, folder = tmp_path / "victim", RunFolder(tmp_path / "run")
    victim.write_text("mine")
    folder.path.mkdir()
    for name in ("checkpoint.new", "summary.json.new"):
        (folder.path / name).symlink_to(victim)
    folder.checkpoints.write({"number": 1})
    folder.write_summary({})
    assert victim.read_text() == "mine"
    assert not folder.checkpoints.files()[0].is_symlink()


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
    "progress",
    "random",
    "others",
]


@pytest.mark.parametrize("name", FIELDS)
def test_a_forged_field_is_named(name: str, interrupted: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    """The file is whole, the field is missing: the newest is refused, and so are both if both are forged."""
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
        (("progress", "epoch"), "many", "progress"),
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


def test_other_validation_data_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data, out = tmp_path / "data", tmp_path / "run"
    data.mkdir()
    for name in ("train", "validation", "test"):
        write(data / f"{name}.csv", long_form(target=NAMES))
    with monkeypatch.context() as patch:
        interrupt_at(1, patch)
        options = ["--hidden-size", "3", "--epochs", "1", "--batch-size", "7"]
        assert run(["train", "--task", "sequences", "--data", str(data), "--out", str(out), *options]) == INTERRUPTED
    write(data / "validation.csv", long_form(target=NAMES[::-1]))
    assert run(["train", "--resume", "--out", str(out)]) == 2
    assert "are not those that the run was trained on" in " ".join(capsys.readouterr().err.split())
    assert run(["evaluate", str(out)]) == 0
    assert "The validation data of the task 'sequences' are not" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("targets", "other"),
    [((NUMBERS, NUMBERS / 2), "target_mean"), ((NAMES, np.char.add(NAMES, "s")), "class_names")],
)
def test_data_in_other_units_or_with_other_names_are_refused(
    targets: tuple[np.ndarray, np.ndarray],
    other: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Standardized targets and numbers of classes are the same. Rows after the checkpoint are not lost."""
    data, out = write(tmp_path / "x.csv", long_form(target=targets[0])), tmp_path / "run"
    with monkeypatch.context() as patch:
        interrupt_at(1, patch)
        options = ["--hidden-size", "3", "--epochs", "1", "--batch-size", "7"]
        assert run(["train", "--task", "sequences", "--data", str(data), "--out", str(out), *options]) == INTERRUPTED
    RunFolder(out).append_metrics({"epoch": 1.0})
    write(data, long_form(target=targets[1]))
    assert run(["train", "--resume", "--out", str(out)]) == 2
    assert RunFolder(out).read_metrics() == [{"epoch": 1.0}]
    told = f"are not those that the run was trained on: their {other} is another"
    assert told in " ".join(capsys.readouterr().err.split())


def test_a_checkpoint_that_tells_no_validation_data_goes_on(interrupted: RunFolder, whole: RunFolder) -> None:
    state = read_checkpoint(interrupted.checkpoints.files()[0])
    state["data"] = "-".join(state["data"].split("-")[:2])
    interrupted.checkpoints.write(state)
    assert run(["train", "--resume", "--out", str(interrupted.path)]) == 0
    assert_same_end(interrupted, whole)


def test_a_checkpoint_from_before_a_config_field_goes_on(interrupted: RunFolder, whole: RunFolder) -> None:
    state = read_checkpoint(interrupted.checkpoints.files()[0])
    state["config"] = "".join(line for line in state["config"].splitlines(True) if not line.startswith("num_duals"))
    interrupted.checkpoints.write(state)
    assert run(["train", "--resume", "--out", str(interrupted.path)]) == 0
    assert_same_end(interrupted, whole)


def test_the_command_that_resumes_is_the_end_of_the_error(tmp_path: Path) -> None:
    """So that no full stop is copied with it."""
    folder = RunFolder(tmp_path / "my run")
    folder.path.mkdir()
    folder.checkpoints.write({})
    with pytest.raises(UserError) as told, folder.hinting_at_resuming():
        raise UnwritableError("the disk is full.")
    expected = f"the disk is full. To resume when that is mended: fptt train --resume --out '{folder.path}'"
    assert str(told.value) == expected


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
    limit = partial(resource.setrlimit, resource.RLIMIT_FSIZE, (room, room))
    command = [sys.executable, "-m", "fptt", "train", "--resume", "--out", str(interrupted.path)]
    full = forks.run(command, before=limit)
    told = " ".join(full.stderr.split())
    assert full.returncode == 2, full.stderr
    assert "cannot be written" in told
    assert "File too large" in told
    assert file in told
    assert told.endswith(f"To resume when that is mended: fptt train --resume --out {interrupted.path}")
    assert "Traceback" not in full.stderr
    assert run(["train", "--resume", "--out", str(interrupted.path)]) == 0
    assert_same_end(interrupted, whole)


READ_ONLY = """
import os, sys
from fptt.experiments.commands.cli import run
from fptt.experiments.training import loop

file = sys.argv.pop(1)

def lock(name, run, batch=None):
    if file == "a checkpoint" and name == "trained" and run.method.batches == 10:
        os.chmod(sys.argv[-1], 0o500)
    if file == "metrics.csv" and name == "validated" and run.progress.epoch == 2:
        os.chmod(sys.argv[-1], 0o500)
        os.chmod(os.path.join(sys.argv[-1], file), 0o400)

loop.on_event = lock
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
    assert told.endswith(f"To resume when that is mended: fptt train --resume --out {interrupted.path}")
    assert run(["train", "--resume", "--out", str(interrupted.path)]) == 0
    assert_same_end(interrupted, whole)


COMMAND_LINE = "import sys; from fptt.experiments.commands.cli import run; sys.exit(run(sys.argv[1:]))"


@pytest.mark.parametrize(("left", "file"), [([], "lock"), (["lock"], "metrics.csv")], ids=["finished", "killed"])
def test_resuming_in_a_read_only_folder_is_refused_and_loses_nothing(
    left: list[str], file: str, interrupted: RunFolder, whole: RunFolder
) -> None:
    """The newest checkpoint is damaged besides; a killed run has left its lock file, which is not locked any more."""
    cut(interrupted.checkpoints.files()[0])
    for name in left:
        (interrupted.path / name).touch()
    interrupted.path.chmod(0o500)
    told = told_of_lack_of_permission(COMMAND_LINE, "train", "--resume", "--out", str(interrupted.path))
    interrupted.path.chmod(0o700)
    assert f"{interrupted.path}/{file} cannot be written: [Errno 13] Permission denied" in told
    assert told.endswith(f"To resume when that is mended: fptt train --resume --out {interrupted.path}")
    assert run(["train", "--resume", "--out", str(interrupted.path)]) == 0
    assert_same_end(interrupted, whole)


def test_a_folder_is_trained_in_by_one_process_at_a_time(
    interrupted: RunFolder, whole: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    out = ["--out", str(interrupted.path)]
    before = {path: path.read_bytes() for path in interrupted.path.iterdir()}
    with locked(interrupted.path):
        for command in (["train", "--resume", *out], [*COMMAND, "--overwrite", *out]):
            assert run(command) == 2
            assert f"another process is writing to {interrupted.path}:" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in interrupted.path.iterdir()} == before
    assert run(["train", "--resume", *out]) == 0
    assert_same_end(interrupted, whole)
    assert not (interrupted.path / "lock").exists()


def test_the_lock_of_a_killed_process_is_released(tmp_path: Path) -> None:
    script = "import sys, time; from pathlib import Path; from fptt.experiments.training.folder import locked\n"
    script += "with locked(Path(sys.argv[1])): print(flush=True); time.sleep(600)"
    process = forks.Fork([sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        process.stdout.readline()
        with pytest.raises(UserError, match="another process is writing to"), locked(tmp_path):
            pass
    finally:
        process.kill()
        process.communicate()
    with locked(tmp_path):
        assert (tmp_path / "lock").exists()


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
