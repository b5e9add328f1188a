"""A run that is interrupted and resumed ends bitwise as one that never was."""

import os
import signal
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fptt.experiments.commands.cli import INTERRUPTED, run
from fptt.experiments.commands.defaults import _Resumption, _ResumptionElsewhere  # pyright: ignore[reportPrivateUsage]
from fptt.experiments.configs.config import MOVABLE
from fptt.experiments.process.machine import Clock, MemoryMeter
from fptt.experiments.studies.finished_run import read_run
from fptt.experiments.training import loop
from fptt.experiments.training.checkpoints import read_checkpoint
from fptt.experiments.training.folder import RunFolder
from fptt.experiments.training.run import Counters, Run
from tests.experiments.tasks.test_sequences import LENGTHS, NAMES, sequences

QUICK = ["--epochs", "2", "--limit", "128", "--hidden-size", "8", "--threads", "1"]


Undisturbed = Callable[..., RunFolder]


class Killed(BaseException): ...


def on_event(monkeypatch: pytest.MonkeyPatch, name: str, act: Callable[[Run], None]) -> None:
    """Do something whenever the training loop comes to an event."""

    def observed(event: str, run: Run, batch: Any = None) -> None:
        if event == name:
            act(run)

    monkeypatch.setattr(loop, "on_event", observed)


def interrupt_at(batch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Press Ctrl-C while a batch is trained on."""

    def interrupt(run: Run) -> None:
        if run.method.batches == batch:
            os.kill(os.getpid(), signal.SIGINT)

    on_event(monkeypatch, "batch", interrupt)


def kill_at(name: str, monkeypatch: pytest.MonkeyPatch, when: Callable[[Run], bool] = bool) -> None:
    """Let the process die at an event; nothing is written any more."""

    def die(event: str, run: Run, batch: Any = None) -> None:
        if event == "finish" or (event == name and when(run)):
            raise Killed

    monkeypatch.setattr(loop, "on_event", die)


def assert_same_end(one: RunFolder, other: RunFolder) -> None:
    for averages in (False, True):
        if averages and not one.averages_file.exists():
            continue
        for name, weight in one.read_weights(averages=averages).items():
            assert torch.equal(weight, other.read_weights(averages=averages)[name]), name
    rows = [[{k: v for k, v in row.items() if k != "seconds"} for row in run.read_metrics()] for run in (one, other)]
    assert rows[0] == rows[1]
    ends = [
        {k: v for k, v in run.read_summary().items() if "memory" not in k and k != "seconds"} for run in (one, other)
    ]
    assert ends[0] == ends[1]
    assert ends[0]["status"] == "finished"


@pytest.mark.parametrize("batch", [0, 2, 4, 5])
@pytest.mark.parametrize(
    "options",
    [
        ["--method", "fptt", "--ema-decay", "0.5", "--divergence", "running"],
        ["--method", "tbptt", "--optimizer", "sgd", "--momentum", "0.9", "--schedule", "plateau"],
        ["--method", "bptt", "--task", "adding", "--length", "20", "--readout-sizes"],
    ],
    ids=["fptt", "tbptt", "bptt"],
)
def test_resumed_run_ends_as_an_undisturbed_one(
    options: list[str],
    batch: int,
    undisturbed: Undisturbed,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Interrupted in the first batch, within an epoch, in the last batch of an epoch, and in the next epoch."""
    command = ["train", *QUICK, "--batch-size", "24", *options]
    whole = undisturbed(*command)
    with pytest.MonkeyPatch.context() as patch:
        interrupt_at(batch, patch)
        assert run([*command, "--out", str(tmp_path / "cut")]) == INTERRUPTED
    cut = RunFolder(tmp_path / "cut")
    assert cut.read_summary()["status"] == "interrupted"
    assert cut.read_summary()["batches"] == batch + 1
    assert f"to resume: fptt train --resume --out {cut.path}" in capsys.readouterr().out
    assert run(["train", "--resume", "--out", str(cut.path)]) == 0
    assert_same_end(whole, cut)
    assert not cut.checkpoints.files()


@pytest.mark.parametrize("batch", [0, 3, 6, 7])
@pytest.mark.parametrize(
    "task",
    [
        ["--divergence", "running"],
        ["--precision", "64-true"],
        ["--task", "adding", "--length", "20"],
        ["--cell", "liquid-lif"],
    ],
    ids=["digits", "float64", "adding", "spiking"],
)
def test_a_run_in_staggered_lanes_goes_on_in_the_middle_of_their_sequences(
    task: list[str], batch: int, undisturbed: Undisturbed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seven batches an epoch: six of samples, whose last lane begins two chunks late. Samples are drawn or stored."""
    command = ["train", *QUICK, "--batch-size", "24", "--lanes", "staggered", *task]
    whole = undisturbed(*command)
    assert whole.read_summary()["batches"] == 14
    with monkeypatch.context() as patch:
        interrupt_at(batch, patch)
        assert run([*command, "--out", str(tmp_path / "cut")]) == INTERRUPTED
    assert run(["train", "--resume", "--out", str(tmp_path / "cut")]) == 0
    assert_same_end(whole, RunFolder(tmp_path / "cut"))


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with ragged sequences, a label each, and equal ones, a number a step."""
    folder = tmp_path_factory.mktemp("own")
    np.savez(folder / "ragged.npz", inputs=np.concatenate(sequences()), lengths=LENGTHS, targets=NAMES)
    equal = np.stack([sequence[:3] for sequence in sequences()])
    np.savez(folder / "equal.npz", inputs=equal, targets=equal.sum(-1))
    return folder


@pytest.mark.parametrize("batch", [0, 3, 6])
@pytest.mark.parametrize("data", ["ragged.npz", "equal.npz --lanes staggered"], ids=["ragged", "staggered"])
def test_a_run_on_own_sequences_goes_on(
    data: str, batch: int, own: Path, undisturbed: Undisturbed, tmp_path: Path
) -> None:
    """Four batches an epoch, with the average of a regularizer, and standardized anew."""
    options = ["--batch-size", "4", "--hidden-size", "4", "--epochs", "2", "--threads", "1"]
    name, *lanes = data.split()
    command = ["train", "--task", "sequences", "--data", str(own / name), *lanes, *options]
    with pytest.MonkeyPatch.context() as patch:
        interrupt_at(batch, patch)
        assert run([*command, "--out", str(tmp_path / "cut")]) == INTERRUPTED
    assert run(["train", "--resume", "--out", str(tmp_path / "cut")]) == 0
    assert_same_end(undisturbed(*command), RunFolder(tmp_path / "cut"))


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("data") / "text.txt"
    file.write_text("the quick brown fox jumps over the lazy dog. " * 30)
    return file


@pytest.mark.parametrize("batch", [0, 3, 7])
def test_a_resumed_stream_has_its_state(
    batch: int, undisturbed: Undisturbed, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A language model with dropout: state, random numbers and place in the text go on; five windows an epoch."""
    sizes = ["--hidden-size", "8", "--embedding-size", "4", "--num-layers", "2", "--batch-size", "4", "--length", "50"]
    command = ["train", "--task", "text", "--data", str(text), *sizes, "--epochs", "2"]
    command += ["--threads", "1", "--dropout", "0.2", "--weight-dropout", "0.3", "--num-chunks", "5"]
    with monkeypatch.context() as patch:
        interrupt_at(batch, patch)
        assert run([*command, "--out", str(tmp_path / "cut")]) == INTERRUPTED
    assert run(["train", "--resume", "--out", str(tmp_path / "cut")]) == 0
    assert_same_end(undisturbed(*command), RunFolder(tmp_path / "cut"))


def test_a_new_epoch_of_a_stream_begins_with_the_initial_state(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Five windows an epoch; within it the state goes on."""
    states: list[bool] = []
    on_event(monkeypatch, "batch", lambda found: states.append(found.state is None))
    command = ["train", "--task", "text", "--data", str(text), "--hidden-size", "4"]
    command += ["--batch-size", "4", "--length", "50", "--epochs", "2", "--threads", "1"]
    assert run([*command, "--out", str(tmp_path / "run")]) == 0
    num_windows = len(states) // 2
    assert num_windows > 1
    assert states == [True, *[False] * (num_windows - 1)] * 2


def test_a_text_with_another_vocabulary_is_refused_on_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = tmp_path / "text.txt"
    text.write_text("abcd" * 300)
    command = [
        "train",
        "--task",
        "text",
        "--data",
        str(text),
        "--hidden-size",
        "4",
        "--batch-size",
        "4",
        "--length",
        "9",
    ]
    with monkeypatch.context() as patch:
        interrupt_at(1, patch)
        assert run([*command, "--epochs", "1", "--out", str(tmp_path / "run")]) == INTERRUPTED
    (newest, *_) = before = RunFolder(tmp_path / "run").checkpoints.files()
    content = newest.read_bytes()
    text.write_text("abce" * 300)
    assert run(["train", "--resume", "--out", str(tmp_path / "run")]) == 2
    assert "another vocabulary than the run" in capsys.readouterr().err
    assert RunFolder(tmp_path / "run").checkpoints.files() == before
    assert newest.read_bytes() == content


@pytest.mark.usefixtures("both_ways")
def test_resumed_compiled_run_ends_as_an_undisturbed_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = ["train", *QUICK, "--engine", "compiled", "--epochs", "1"]
    assert run([*command, "--out", str(tmp_path / "whole")]) == 0
    with monkeypatch.context() as patch:
        interrupt_at(0, patch)
        assert run([*command, "--out", str(tmp_path / "cut")]) == INTERRUPTED
    assert run(["train", "--resume", "--out", str(tmp_path / "cut")]) == 0
    assert_same_end(RunFolder(tmp_path / "whole"), RunFolder(tmp_path / "cut"))


def test_a_killed_run_goes_on_from_its_last_checkpoint(
    undisturbed: Undisturbed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is written when the process dies; what was written after the checkpoint is made again."""
    command = ["train", *QUICK, "--batch-size", "24", "--epochs", "3", "--checkpoint-updates", "16"]
    killed = RunFolder(tmp_path / "killed")

    with monkeypatch.context() as patch:
        kill_at("batch", patch, lambda run: run.method.batches == 13)  # one after a checkpoint in the third epoch
        with pytest.raises(Killed):
            run([*command, "--out", str(killed.path)])
    assert not killed.summary_file.exists()
    assert run(["train", "--resume", "--out", str(killed.path)]) == 0
    assert_same_end(undisturbed(*command), killed)


@pytest.mark.parametrize(
    ("options", "found"),
    [([], [3, 2]), (["--checkpoint-updates", "None"], [0]), (["--on-bad-number", "rollback"], [3, 2, 0])],
)
def test_a_run_of_few_updates_saves_by_the_clock(
    options: list[str], found: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But where it was told not to save; and it keeps the one to which it might go back."""
    command = ["train", *QUICK, "--batch-size", "24", *options, "--out", str(tmp_path)]
    monkeypatch.setattr(loop, "SECONDS_BETWEEN_CHECKPOINTS", 0.0)
    kill_at("batch", monkeypatch, lambda run: run.method.batches == 3)
    with pytest.raises(Killed):
        run(command)
    saved = [read_checkpoint(file) for file in RunFolder(tmp_path).checkpoints.files()]
    assert [state["method"]["batches"] for state in saved] == found
    monkeypatch.setattr(loop, "SECONDS_BETWEEN_CHECKPOINTS", 600.0)
    with pytest.raises(Killed):
        run([*command, "--overwrite"])
    assert len(RunFolder(tmp_path).checkpoints.files()) == 1


def test_metrics_that_lack_a_row_are_told_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The checkpoint of the third epoch counts two rows; a row after it may be whole, cut short or missing."""
    command = ["train", *QUICK, "--epochs", "3"]
    with monkeypatch.context() as patch:
        interrupt_at(5, patch)
        assert run([*command, "--out", str(tmp_path)]) == INTERRUPTED
    folder = RunFolder(tmp_path)
    whole = folder.metrics_file.read_text()
    names, first, second = lines = whole.splitlines(keepends=True)
    counted = f"run folder {tmp_path} is damaged: metrics.csv cannot be read (it must have the 2 whole rows of the "
    width = "metrics.csv cannot be read (its rows must have as many cells as there are names of columns)"
    cases = {
        whole[:-1]: f"{counted}checkpoint, got 1)",
        whole[:-20]: f"{counted}checkpoint, got 1)",
        names + first: f"{counted}checkpoint, got 1)",
        names + first[:9] + second + second: width,  # as earlier versions went on after a row that was cut short
        "": f"{counted}checkpoint, got 0)",
    }
    before = folder.checkpoints.files()
    capsys.readouterr()
    with monkeypatch.context() as patch:
        on_event(patch, "batch", lambda _: pytest.fail("trains"))
        for text, message in cases.items():
            folder.metrics_file.write_text(text)
            assert run(["train", "--resume", "--out", str(tmp_path)]) == 2
            assert message in " ".join(capsys.readouterr().err.split())
            assert folder.metrics_file.read_text() == text
        folder.metrics_file.unlink()
        assert run(["train", "--resume", "--out", str(tmp_path)]) == 2
    assert folder.checkpoints.files() == before
    for surplus in ("", second, second[:-8]):
        folder.metrics_file.write_text(whole + surplus)
        folder.keep_metrics(2)
        assert folder.metrics_file.read_text() == "".join(lines)


def test_a_row_of_metrics_is_on_the_disk_before_a_checkpoint_counts_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append(os.fstat(descriptor).st_size))
    folder = RunFolder(tmp_path)
    for epoch in (1, 2):
        folder.append_metrics({"epoch": epoch, "updates": 8 * epoch})
    assert synced == [len("epoch,updates\r\n1,8\r\n"), folder.metrics_file.stat().st_size]


def test_a_run_killed_in_its_last_validation_still_validates(
    undisturbed: Undisturbed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The budget is spent, and a checkpoint with the last update was written."""
    command = ["train", *QUICK, "--checkpoint-updates", "8"]
    killed = RunFolder(tmp_path / "killed")

    with monkeypatch.context() as patch:
        kill_at("validate", patch, lambda run: run.fraction >= 1)
        with pytest.raises(Killed):
            run([*command, "--out", str(killed.path)])
    assert run(["train", "--resume", "--out", str(killed.path)]) == 0
    assert_same_end(undisturbed(*command), killed)


@pytest.mark.parametrize("event", ["trained", "validate", "finish"])
def test_a_resumed_run_has_the_peak_memory_of_all_its_processes(
    event: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first one 7 bytes above the 2 of its start, the next 4 above 3; at the end there is nothing to train."""
    arguments = ["train", *QUICK, "--batch-size", "32", "--checkpoint-updates", "8", "--out", str(tmp_path)]
    monkeypatch.setattr(MemoryMeter, "_current", lambda _: 2)
    monkeypatch.setattr(MemoryMeter, "_peak", lambda _: 9)
    with monkeypatch.context() as patch:
        kill_at(event, patch, lambda run: run.method.batches == 3 or event != "trained")
        with pytest.raises(Killed):
            run(arguments)
    monkeypatch.setattr(MemoryMeter, "_current", lambda _: 3)
    monkeypatch.setattr(MemoryMeter, "_peak", lambda _: 7)
    assert run(["train", "--resume", "--out", str(tmp_path)]) == 0
    summary = RunFolder(tmp_path).read_summary()
    assert (summary["peak_memory_bytes"], summary["training_memory_bytes"]) == (9, 7)


def test_the_peak_memory_of_an_interrupted_run_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupt_at(1, monkeypatch)
    assert run(["train", *QUICK, "--out", str(tmp_path)]) == INTERRUPTED
    assert RunFolder(tmp_path).read_summary()["peak_memory_bytes"] > 0


@pytest.mark.parametrize("clock", ["cpu", "wall"])
def test_a_run_resumed_somewhere_else_names_both_places(
    clock: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = {"device": "an accelerator", "threads": 1, "torch": "2.0", "fptt": "0.1", "commit": "abc"}
    with monkeypatch.context() as patch:
        patch.setattr("fptt.experiments.training.run.environment", lambda _: first)
        patch.setattr(Clock, "kind", property(lambda _: clock, lambda *_: None), raising=False)
        for batch, resume in ((1, []), (2, ["--resume"])):
            interrupt_at(batch, patch)
            assert run(["train", *([] if resume else QUICK), *resume, "--out", str(tmp_path)]) == INTERRUPTED
    assert run(["train", "--resume", "--out", str(tmp_path)]) == 0
    summary = RunFolder(tmp_path).read_summary()
    assert summary["earlier_environments"] == [{**first, "seconds_clock": clock}]
    assert summary["seconds_clock"] == ("cpu" if clock == "cpu" else "mixed")
    assert {found["torch"] for found in read_run(tmp_path).environments} == {"2.0", torch.__version__}


def test_a_checkpoint_from_before_memory_was_saved_is_read() -> None:
    saved = {"epoch": 1, "rows": 1, "seconds": 2.0, "metric": 0.5, "saved_at": 8, "rollbacks": 0}
    assert Counters.load(saved) == Counters(**saved, peak_memory_bytes=0, training_memory_bytes=0)


def test_a_run_killed_in_its_test_need_not_train_again(
    undisturbed: Undisturbed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed = RunFolder(tmp_path / "killed")

    with monkeypatch.context() as patch:
        kill_at("finish", patch)
        with pytest.raises(Killed):
            run(["train", *QUICK, "--out", str(killed.path)])
    with monkeypatch.context() as patch:
        on_event(patch, "batch", lambda _: pytest.fail("trains again"))
        assert run(["train", "--resume", "--out", str(killed.path)]) == 0
    assert_same_end(undisturbed("train", *QUICK), killed)


def test_a_run_interrupted_in_its_test_says_how_to_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    on_event(monkeypatch, "finish", lambda _: os.kill(os.getpid(), signal.SIGINT))
    out = tmp_path / "my run"
    assert run(["train", *QUICK, "--out", str(out)]) == INTERRUPTED
    assert capsys.readouterr().out.endswith(f"to resume: fptt train --resume --out '{out}'\n")  # as a shell takes it
    assert RunFolder(out).checkpoints.files()


def test_interrupting_twice_in_the_first_validation_is_an_interruption(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    times: list[None] = []

    def interrupt(run: Run) -> None:
        if not times:
            times.append(None)
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)

    on_event(monkeypatch, "validate", interrupt)
    assert run(["train", *QUICK, "--out", str(tmp_path / "run")]) == INTERRUPTED
    assert RunFolder(tmp_path / "run").read_summary()["status"] == "interrupted"
    assert "to resume: fptt train --resume" in capsys.readouterr().out  # from the checkpoint before the first batch


def test_resuming_needs_a_checkpoint_of_the_folders_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    cases = [
        (["--resume"], "resume needs the folder of the run"),
        (["--resume", "--out", str(tmp_path / "nowhere")], "does not exist"),
        (["--resume", "--overwrite", "--out", str(out)], "no other option, got --overwrite"),
        (["--resume", "--out", str(out)], "is finished: there is nothing to resume"),
        (["--resume", "--out", str(out), "--lr", "1"], "no other option, got --lr"),
        (["--resume", "--out", str(out), "--threads", "1", "--task", "mnist"], "no other option, got --task"),
    ]
    assert run(["train", *QUICK, "--epochs", "1", "--out", str(out)]) == 0
    summary = RunFolder(out).read_summary()
    capsys.readouterr()
    for options, message in cases:
        assert run(["train", *options]) == 2
        assert message in capsys.readouterr().err
    assert RunFolder(out).read_summary() == summary


def test_a_run_is_resumed_where_the_data_lie_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before, after, other = (tmp_path / name for name in ("before.txt", "after.txt", "other.txt"))
    before.write_text("to be or not to be, that is the question. " * 100)
    other.write_text("to be or not to be, is that the question. " * 100)
    options = ["--task", "text", "--data", str(before), "--dropout", "0.3", "--batch-size", "4", "--length", "24"]
    options = [*options, "--num-chunks", "4", "--hidden-size", "8", "--epochs", "2"]
    whole, cut = RunFolder(tmp_path / "whole"), RunFolder(tmp_path / "cut")
    assert run(["train", *options, "--threads", "1", "--out", str(whole.path)]) == 0
    with monkeypatch.context() as patch:
        interrupt_at(5, patch)
        assert run(["train", *options, "--threads", "1", "--out", str(cut.path)]) == INTERRUPTED
    before.rename(after)
    capsys.readouterr()
    resume = ["train", "--resume", "--out", str(cut.path)]
    assert run(resume) == 2
    assert "before.txt" in capsys.readouterr().err
    assert run([*resume, "--data", str(other)]) == 2
    assert "are not those that the run was trained on" in capsys.readouterr().err
    assert cut.read_config().data == str(before)  # nothing of what failed stays
    assert run([*resume, "--data", str(after), "--accelerator", "cpu"]) == 0
    assert_same_end(cut, whole)
    assert cut.read_config().data == str(after)
    assert run(["evaluate", str(cut.path)]) == 0  # whose data are found


def test_options_of_another_machine_are_those_of_the_config() -> None:
    parsed = {field.name for field in fields(_ResumptionElsewhere)} - {field.name for field in fields(_Resumption)}
    assert parsed == set(MOVABLE)
