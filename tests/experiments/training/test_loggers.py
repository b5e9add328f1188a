"""Loggers get what metrics.csv gets."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from fptt.experiments.commands.cli import run
from fptt.experiments.configs.config import TrainConfig
from fptt.experiments.process.errors import UserError
from fptt.experiments.training import loggers
from fptt.experiments.training.folder import RunFolder
from fptt.experiments.training.loggers import Log, make_log, parse_loggers

QUICK = ["--task", "digits", "--limit", "64", "--hidden-size", "4", "--threads", "1", "--epochs", "2"]


class Recorder:
    """A logger that keeps what it gets."""

    def __init__(self) -> None:
        self.rows: list[tuple[int, dict[str, float]]] = []
        self.status = ""

    def log_metrics(self, metrics: dict[str, float], step: int) -> None:
        self.rows.append((step, metrics))

    def finalize(self, status: str) -> None:
        self.status = status


def test_a_logger_gets_the_rows_of_the_metrics_and_the_test(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = Recorder()
    monkeypatch.setattr("fptt.experiments.training.loop.make_log", lambda *_, **__: Log([recorder]))
    assert run(["train", *QUICK, "--out", str(tmp_path / "run")]) == 0
    folder = RunFolder(tmp_path / "run")
    rows, summary = folder.read_metrics(), folder.read_summary()
    assert len(rows) == 2
    for row, (step, logged) in zip(rows, recorder.rows, strict=False):
        assert step == row["updates"]
        assert logged == pytest.approx(row)
    step, test = recorder.rows[2]
    assert (step, test["test_accuracy"]) == (summary["updates"], summary["test_accuracy"])
    assert recorder.status == "success"


def test_loggers_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert parse_loggers("csv") == ("csv",)
    with pytest.raises(UserError, match="logger must not repeat, got csv, csv"):
        parse_loggers("csv, csv")
    assert make_log(("csv",), TrainConfig(task="digits"), tmp_path, start=0).loggers == []
    assert run(["train", *QUICK, "--out", str(tmp_path / "run"), "--logger", "csv,tensorbord"]) == 2
    told = "fptt: logger must be one of csv, tensorboard, wandb, got 'tensorbord'.\n"
    assert capsys.readouterr().err == told
    monkeypatch.setattr(loggers, "find_spec", lambda name: None if name == "wandb" else find_spec(name))
    with pytest.raises(UserError, match=r"logger wandb needs wandb: pip install 'fptt\[wandb\]'"):
        parse_loggers("wandb")
    assert not (tmp_path / "run").exists()


@pytest.mark.filterwarnings("ignore")  # TensorBoard's own
def test_tensorboard_reads_its_log(tmp_path: Path) -> None:
    """By its own reader; also of a run that was interrupted and resumed, without the rows that came twice."""
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # pyright: ignore

    out = tmp_path / "run"
    assert run(["train", *QUICK, "--out", str(out), "--logger", "csv,tensorboard"]) == 0
    rows = RunFolder(out).read_metrics()
    log = make_log(("tensorboard",), TrainConfig(task="digits"), out, start=int(rows[0]["updates"]))
    again: dict[str, Any] = {**rows[1], "validation_accuracy": 0.25}
    log.add(again, step=int(again["updates"]))
    log.close("finished")
    reader = EventAccumulator(str(out / "tensorboard"))
    reader.Reload()
    assert {"train_loss", "validation_accuracy", "test_accuracy", "lr"} <= set(reader.Tags()["scalars"])
    found = [(event.step, event.value) for event in reader.Scalars("validation_accuracy")]
    assert [step for step, _ in found] == [rows[0]["updates"], again["updates"]]
    assert [value for _, value in found] == pytest.approx([rows[0]["validation_accuracy"], 0.25])
