"""A stream that is stopped and taken up again ends bitwise as an undisturbed one."""

import json
from pathlib import Path
from typing import Any

import pytest

from fptt.experiments.commands.cli import INTERRUPTED, run
from fptt.experiments.configs.config import TrainConfig
from fptt.experiments.streams import stream
from fptt.experiments.streams.folder import StreamFolder
from fptt.experiments.streams.stream import Streaming
from fptt.experiments.training.checkpoints import read_checkpoint
from fptt.experiments.training.folder import RunFolder, locked
from tests.experiments.permissions import told_of_lack_of_permission
from tests.experiments.streams.recordings import write_recordings
from tests.experiments.streams.stopped import STEPS_A_ROW, assert_same_end, call_at, press_ctrl_c

pytestmark = pytest.mark.usefixtures("short_rows")

SETTING = ["--hidden-size", "8", "--window", "100", "--delay", "12", "--checkpoint-steps", "200"]


class KilledError(BaseException):
    """Of a process that dies at once."""


@pytest.fixture
def data(tmp_path: Path) -> str:
    """Return a folder with recordings of 300, 540 and 180 steps: pauses at 200, 300, 500, 700, 840 and 1020."""
    return write_recordings(tmp_path / "data", {"train": (300, 540), "test": (180,)})


def command(data: str, out: Path, *options: str) -> list[str]:
    return ["stream", "--data", data, "--out", str(out), *SETTING, *options]


@pytest.mark.parametrize(
    ("options", "pause"),
    [
        (["--baselines"], 2),
        ([], 1),
        ([], 5),
        (["--method", "tbptt", "--delay", "0"], 0),
        (["--method", "tbptt", "--delay", "0"], 4),
    ],
    ids=str,
)
def test_a_resumed_stream_ends_as_an_undisturbed_one(
    options: list[str],
    pause: int,
    data: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Stopped within a recording, at the end of one, and at the very end."""
    whole, cut = StreamFolder(tmp_path / "whole"), StreamFolder(tmp_path / "cut")
    assert run(command(data, whole.path, *options)) == 0
    with monkeypatch.context() as patch:
        call_at(pause, press_ctrl_c, patch)
        assert run(command(data, cut.path, *options)) == INTERRUPTED
    summary = json.loads(cut.summary_file.read_text())
    assert (summary["status"], summary["steps"]) == ("interrupted", (200, 300, 500, 700, 840, 1020)[pause])
    assert run(["stream", "--resume", "--out", str(cut.path)]) == 0
    assert_same_end(whole, cut)


def test_a_killed_stream_resumes_from_its_last_checkpoint_twice(
    data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed 140 steps after a checkpoint, and again before the first one that it would have written itself."""
    whole, killed = StreamFolder(tmp_path / "whole"), StreamFolder(tmp_path / "killed")
    options = ["--baselines", "--checkpoint-steps", "300"]
    assert run(command(data, whole.path, *options)) == 0

    def die(_: Streaming) -> None:
        raise KilledError

    for pause, arguments in ((4, command(data, killed.path, *options)), (1, ["stream", "--resume", "--out"])):
        with monkeypatch.context() as patch:
            call_at(pause, die, patch)
            patch.setattr(Streaming, "finish", lambda *_: {})
            with pytest.raises(KilledError):
                run(arguments if arguments[-1] != "--out" else [*arguments, str(killed.path)])
        steps = [read_checkpoint(path)["scores"]["steps"] for path in killed.checkpoints.files()]
        assert steps == [700, 300]
        assert not killed.summary_file.exists()
    assert run(["stream", "--resume", "--out", str(killed.path)]) == 0
    assert_same_end(whole, killed)


@pytest.mark.parametrize(("every", "found"), [("300", [(300, 150), (300, 100)]), ("None", [(0, 0)])])
def test_a_slow_stream_saves_by_the_clock(
    every: str, found: list[tuple[int, int]], data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After every piece, here, and not at rows alone; but not where it was told not to save."""
    whole, killed = StreamFolder(tmp_path / "whole"), StreamFolder(tmp_path / "killed")
    options = ["--baselines", "--checkpoint-steps", every]
    assert run(command(data, whole.path, *options)) == 0

    def die(_: Streaming) -> None:
        raise KilledError

    with monkeypatch.context() as patch:
        patch.setattr(stream, "SECONDS_BETWEEN_CHECKPOINTS", 0.0)
        call_at(2, die, patch)
        patch.setattr(Streaming, "finish", lambda *_: {})
        with pytest.raises(KilledError):
            run(command(data, killed.path, *options))
    saved = [read_checkpoint(path) for path in killed.checkpoints.files()]
    unscored = [sum(len(own["targets"]) for own in state["pending"]) for state in saved]
    assert [(state["scores"]["steps"], steps) for state, steps in zip(saved, unscored, strict=True)] == found
    assert run(["stream", "--resume", "--out", str(killed.path)]) == 0
    assert_same_end(whole, killed)


@pytest.fixture
def interrupted(data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StreamFolder:
    """Return a stream that was interrupted within its second recording."""
    with monkeypatch.context() as patch:
        call_at(2, press_ctrl_c, patch)
        assert run(command(data, tmp_path / "cut")) == INTERRUPTED
    return StreamFolder(tmp_path / "cut")


def test_an_interruption_says_how_to_go_on(
    data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    call_at(0, press_ctrl_c, monkeypatch)
    assert run(command(data, tmp_path / "cut")) == INTERRUPTED
    told = capsys.readouterr()
    assert f"interrupted; completing {tmp_path / 'cut'} (again to stop at once)\n" in told.out
    assert f"to resume: fptt stream --resume --out {tmp_path / 'cut'}\n" in told.out


def test_a_damaged_newest_checkpoint_is_named_and_the_one_before_ends_the_same(
    data: str, interrupted: StreamFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    newest = interrupted.checkpoints.files()[0]
    content = newest.read_bytes()
    newest.write_bytes(content[:1000] + bytes([content[1000] ^ 1]) + content[1001:])
    assert run(["stream", "--resume", "--out", str(interrupted.path)]) == 0
    assert f"{newest.name} is damaged" in " ".join(capsys.readouterr().out.split())
    whole = StreamFolder(tmp_path / "whole")
    assert run(command(data, whole.path)) == 0
    assert_same_end(whole, interrupted)


@pytest.mark.parametrize("name", ["config", "learner", "baselines", "scores", "place", "pending", "seconds", "random"])
def test_a_forged_field_is_named(name: str, interrupted: StreamFolder, capsys: pytest.CaptureFixture[str]) -> None:
    state = read_checkpoint(interrupted.checkpoints.files()[0])
    del state[name]
    for _ in range(2):
        interrupted.checkpoints.write(state)
    assert run(["stream", "--resume", "--out", str(interrupted.path)]) == 2
    told = capsys.readouterr()
    assert f"field '{name}' is damaged: KeyError" in " ".join(told.out.split())
    assert "can be used. To begin again: --overwrite." in " ".join(told.err.split())


def test_other_data_are_refused_and_nothing_is_lost(
    data: str, interrupted: StreamFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    before = interrupted.checkpoints.files()
    write_recordings(Path(data), {"train": (300, 540), "test": (181,)})
    assert run(["stream", "--resume", "--out", str(interrupted.path)]) == 2
    assert "are not those that the stream began with" in " ".join(capsys.readouterr().err.split())
    assert interrupted.checkpoints.files() == before


def test_a_folder_is_streamed_into_by_one_process_at_a_time(
    data: str, interrupted: StreamFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.read_bytes() for path in interrupted.path.iterdir()}
    out = ["--out", str(interrupted.path)]
    with locked(interrupted.path):
        for options in (["stream", "--resume", *out], command(data, interrupted.path, "--overwrite")):
            assert run(options) == 2
            assert f"another process is writing to {interrupted.path}:" in " ".join(capsys.readouterr().err.split())
        assert (interrupted.path / "lock").exists()
    assert {path: path.read_bytes() for path in interrupted.path.iterdir()} == before
    assert run(command(data, tmp_path / "whole")) == 0
    assert run(["stream", "--resume", *out]) == 0
    assert_same_end(interrupted, StreamFolder(tmp_path / "whole"))
    assert not (interrupted.path / "lock").exists()


def test_a_second_stream_into_the_same_folder_is_refused_while_the_first_goes_on_and_after_it(
    data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also where the folder was free when the second one began to read its data."""
    out, told = tmp_path / "out", []

    def second(_: Streaming) -> None:
        for options in ([], ["--overwrite"]):
            assert run(command(data, out, *options)) == 2
            told.append(" ".join(capsys.readouterr().err.split()))

    with monkeypatch.context() as patch:
        call_at(2, second, patch)
        assert run(command(data, out, "--seed", "1")) == 0
    assert "is not empty" in told[0]
    assert f"another process is writing to {out}:" in told[1]
    assert json.loads((out / "summary.json").read_text())["seed"] == 1

    make = Streaming.__init__

    def slow(self: Streaming, *args: Any, **options: Any) -> None:
        make(self, *args, **options)
        if not (tmp_path / "late").exists():
            assert run(command(data, tmp_path / "late", "--seed", "2")) == 0

    def first_alone(self: Streaming, *args: Any, **options: Any) -> None:
        monkeypatch.setattr(Streaming, "__init__", make)
        slow(self, *args, **options)

    monkeypatch.setattr(Streaming, "__init__", first_alone)
    assert run(command(data, tmp_path / "late", "--seed", "3")) == 2
    assert "is not empty" in " ".join(capsys.readouterr().err.split())
    assert json.loads((tmp_path / "late" / "summary.json").read_text())["seed"] == 2


def test_a_finished_stream_is_not_resumed(data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "finished"
    assert run(command(data, out)) == 0
    before = {path: path.read_bytes() for path in out.iterdir()}
    assert run(["stream", "--resume", "--out", str(out)]) == 2
    assert f"the stream in {out} is finished: there is nothing to resume" in " ".join(capsys.readouterr().err.split())
    assert {path: path.read_bytes() for path in out.iterdir()} == before


def test_neither_command_overwrites_a_folder_of_the_other(
    data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train = ["train", "--epochs", "1", "--limit", "64", "--hidden-size", "4", "--threads", "1"]
    out = tmp_path / "run"
    assert run([*train, "--out", str(out)]) == 0
    assert run(command(data, tmp_path / "stream")) == 0
    capsys.readouterr()
    for options, folder, other in (
        (command(data, out), out, "train"),
        ([*train, "--out", str(tmp_path / "stream")], tmp_path / "stream", "stream"),
    ):
        before = {path: path.read_bytes() for path in folder.iterdir()}
        assert run([*options, "--overwrite"]) == 2
        told = " ".join(capsys.readouterr().err.split())
        assert f"out {folder} must not be a folder of `fptt {other}`" in told
        assert {path: path.read_bytes() for path in folder.iterdir()} == before
    assert run(command(data, tmp_path / "stream", "--overwrite")) == 0


def test_errors_of_resuming_are_named(
    data: str, interrupted: StreamFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(interrupted.path)
    (tmp_path / "empty").mkdir()
    RunFolder(tmp_path / "trained").create(TrainConfig())
    cases = [
        (["--resume"], "resume needs the folder of the run"),
        (["--resume", "--out", str(tmp_path / "nowhere")], "nowhere does not exist"),
        (["--resume", "--out", str(tmp_path / "empty")], "has no checkpoint to resume from"),
        (["--resume", "--out", str(tmp_path / "trained")], "must not be a folder of `fptt train`, got one with config"),
        (["--resume", "--overwrite", "--out", out], "give --out and no other option"),
        (["--resume", "--out", out, "--lr", "1"], "give --out and no other option"),
        (["--out", out, "--data", data], "is not empty"),
        (["--checkpoint-steps", "0"], "checkpoint_steps must be positive"),
    ]
    for options, message in cases:
        assert run(["stream", *options]) == 2
        assert message in " ".join(capsys.readouterr().err.split())
    run_of_train = StreamFolder(tmp_path / "run")
    run_of_train.path.mkdir()
    run_of_train.checkpoints.write({"version": 2})
    earlier = interrupted.checkpoints  # whose scores have what was predicted by chance as right
    earlier.write(read_checkpoint(earlier.files()[0]) | {"version": 2})
    for folder, got in ((run_of_train.path, "a run of fptt train"), (out, "stream")):
        assert run(["stream", "--resume", "--out", str(folder)]) == 2
        told = " ".join(capsys.readouterr().err.split())
        assert f"must be of a stream, version 3, got {got}, version 2" in told


# -- faults ----------------------------------------------------------------------------------------------------------


def test_data_that_vanish_while_they_are_read_are_named_and_the_stream_resumes_when_they_are_back(
    data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (test,) = Path(data).glob("test-*")
    with monkeypatch.context() as patch:
        call_at(1, lambda _: test.rename(tmp_path / "elsewhere"), patch)
        assert run(command(data, tmp_path / "cut", "--checkpoint-steps", "100000")) == 2
    told = " ".join(capsys.readouterr().err.split())
    assert "the test split cannot be read any more:" in told
    assert told.endswith(f"To resume when that is mended: fptt stream --resume --out {tmp_path / 'cut'}")
    cut, whole = StreamFolder(tmp_path / "cut"), StreamFolder(tmp_path / "whole")
    summary = json.loads(cut.summary_file.read_text())
    assert (summary["status"], summary["recordings"], summary["steps"]) == ("failed", 2, 840)
    assert read_checkpoint(cut.checkpoints.files()[0])["place"]["recordings"] == 2
    (tmp_path / "elsewhere").rename(test)
    assert run(["stream", "--resume", "--out", str(cut.path)]) == 0
    assert run(command(data, whole.path, "--checkpoint-steps", "100000")) == 0
    assert_same_end(whole, cut)


READ_ONLY = f"""
import os, sys
from fptt.experiments.commands.cli import run
from fptt.experiments.streams import stream
from fptt.experiments.streams.stream import Streaming

stream.STEPS_A_ROW = {STEPS_A_ROW}
save_if_due = Streaming._save_if_due

def locking(self):
    if self.scores.steps == 500:
        os.chmod(self.folder.path, 0o500)
    save_if_due(self)

Streaming._save_if_due = locking
sys.exit(run(sys.argv[1:]))
"""


def test_a_folder_that_becomes_read_only_is_named_and_the_stream_resumes_when_it_is_not(
    data: str, tmp_path: Path
) -> None:
    cut, whole = StreamFolder(tmp_path / "cut"), StreamFolder(tmp_path / "whole")
    told = told_of_lack_of_permission(READ_ONLY, *command(data, cut.path))
    cut.path.chmod(0o700)
    assert f"a checkpoint in {cut.path} cannot be written:" in told
    assert told.endswith(f"To resume when that is mended: fptt stream --resume --out {cut.path}")
    assert run(["stream", "--resume", "--out", str(cut.path)]) == 0
    assert run(command(data, whole.path)) == 0
    assert_same_end(whole, cut)
