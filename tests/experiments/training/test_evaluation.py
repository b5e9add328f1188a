"""Evaluation: the state between batches, and weights that cannot be evaluated."""

import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from fptt.experiments.commands.cli import run
from fptt.experiments.configs.config import Setting
from fptt.experiments.process.errors import UserError
from fptt.experiments.tasks.registry import load_task
from fptt.experiments.training.evaluation import evaluate_folder, measure
from fptt.experiments.training.folder import RunFolder
from tests.experiments.training.test_resume import QUICK


class Clock(nn.Module):
    """Counts the steps since the initial state, whatever it reads."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(num_classes))
        self.starts: list[int] = []

    def forward(self, inputs: Tensor, state: int | None = None) -> tuple[Tensor, int]:
        start = 0 if state is None else state
        self.starts.append(start)
        return self.weight.expand(*inputs.shape[:2], -1), start + len(inputs)


def test_only_a_stream_keeps_its_state_between_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows of 7 of a text go on; batches of independent sequences, with a target at every step too, begin anew."""
    monkeypatch.setattr("fptt.experiments.training.evaluation.CHUNK_LENGTH", 5)
    (tmp_path / "text.txt").write_text("abcd" * 100)
    text = load_task(Setting(task="text", data=str(tmp_path / "text.txt"), batch_size=1, length=7), 0)
    model = Clock(text.output_size)
    measure(model, text, text.test, torch.device("cpu"))
    assert model.starts == [0, 4, 7, 11, 14]  # 19 steps in windows of 7, 7 and 5, chunks of at most 5
    monkeypatch.setattr("fptt.experiments.tasks.task.EVALUATION_BATCH_SIZE", 2)
    strings = load_task(Setting(task="anbn", length=3), 0)
    model = Clock(strings.output_size)
    measure(model, strings, strings.validation, torch.device("cpu"))
    assert model.starts == [0, 4] * 2  # n = 1, 2 and n = 3; 7 steps


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    folder = RunFolder(tmp_path_factory.mktemp("evaluation") / "run")
    assert run(["train", *QUICK, "--epochs", "1", "--method", "tbptt", "--out", str(folder.path)]) == 0
    return folder


def test_the_summary_names_its_metric(trained: RunFolder) -> None:
    summary = trained.read_summary()
    assert summary["metric"] == "accuracy"
    assert {"test_accuracy", "validation_accuracy"} <= summary.keys()


def with_nan(tensor: Tensor) -> Tensor:
    return tensor.index_fill(0, torch.tensor([0]), float("nan"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (Tensor.long, r"weights must be float32 or float64, got torch\.int64 in "),
        (Tensor.bool, r"weights must be float32 or float64, got torch\.bool in "),
        (lambda tensor: tensor.to(torch.complex64), r"got torch\.complex64 in "),
        (lambda tensor: tensor.to(torch.float8_e4m3fn), r"got torch\.float8_e4m3fn in "),
        (with_nan, "has weights that are not finite, in "),
    ],
    ids=["int64", "bool", "complex64", "float8", "nan"],
)
def test_weights_that_cannot_be_evaluated_are_named(
    change: Callable[[Tensor], Tensor], message: str, trained: RunFolder
) -> None:
    content = trained.weights_file.read_bytes()
    try:
        weights = {name: change(tensor) for name, tensor in load_file(trained.weights_file).items()}
        save_file(weights, trained.weights_file)
        with pytest.raises(UserError, match=message):
            evaluate_folder(trained.path)
    finally:
        trained.weights_file.write_bytes(content)
    assert evaluate_folder(trained.path)["test_accuracy"] == trained.read_summary()["test_accuracy"]


@pytest.mark.skipif(sys.platform == "win32", reason="its files have no mode")
def test_weights_may_be_read_by_whoever_may_read_the_config(tmp_path: Path) -> None:
    folder, weights = RunFolder(tmp_path), {"a": torch.zeros(2)}
    folder.config_file.touch()
    folder.write_weights(weights, weights)
    modes = {file.stat().st_mode for file in (folder.config_file, folder.weights_file, folder.averages_file)}
    assert len(modes) == 1


@pytest.mark.parametrize("averages", [False, True])
def test_a_flipped_bit_of_a_weight_is_named(averages: bool, tmp_path: Path) -> None:
    """Which may change no figure, or all of them; files of earlier versions have no checksum."""
    folder = RunFolder(tmp_path)
    weights = {"a": torch.tensor([1.0, 2.0]), "b": torch.tensor(3.0, dtype=torch.float64)}
    folder.write_weights(weights, weights, {"task": "digits"})
    file = folder.averages_file if averages else folder.weights_file
    assert folder.read_weights(averages=averages)["a"].tolist() == [1.0, 2.0]
    content = file.read_bytes()
    for at in (1, 16):  # the last 16 bytes are the weights: one in each
        flipped = bytearray(content)
        flipped[-at] ^= 1
        file.write_bytes(flipped)
        with pytest.raises(UserError, match=rf"{file.name} cannot be read \(its weights are not those that"):
            folder.read_weights(averages=averages)
    save_file(weights, file, {"fptt": "[" * 100_000})
    with pytest.raises(UserError, match=rf"{file.name} cannot be read \("):
        folder.read_weights(averages=averages)
    for metadata in (None, {"fptt": '{"task": "digits"}'}, {"other": "x"}):
        save_file({"a": weights["a"] + 1, "b": weights["b"]}, file, metadata)
        assert folder.read_weights(averages=averages)["a"].tolist() == [2.0, 3.0]


def test_a_run_of_a_gpu_is_measured_where_there_is_none(
    tmp_path: Path, trained: RunFolder, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    folder = tmp_path / "run"
    shutil.copytree(trained.path, folder)
    config = (folder / "config.yaml").read_text(encoding="utf-8")
    assert "accelerator: cpu\n" in config
    (folder / "config.yaml").write_text(config.replace("accelerator: cpu\n", "accelerator: cuda\n"), encoding="utf-8")
    with caplog.at_level("INFO", logger="fptt"):
        assert evaluate_folder(folder) == evaluate_folder(trained.path)
    assert "Measured on the processor instead." in caplog.text


def test_a_pipe_in_place_of_the_weights_is_refused(tmp_path: Path, trained: RunFolder) -> None:
    folder = RunFolder(tmp_path)
    folder.create(trained.read_config())
    os.mkfifo(folder.weights_file)
    with pytest.raises(UserError, match=r"model\.safetensors cannot be read \(it is not a regular file\)"):
        evaluate_folder(tmp_path)


@pytest.mark.parametrize(
    ("file", "content", "read"),
    [
        ("summary.json", "[" * 100_000, RunFolder.read_summary),
        ("summary.json", json.dumps({"test_accuracy": 10**400}), RunFolder.read_summary),
        ("vocabulary.json", "[" * 100_000, RunFolder.read_vocabulary),
        ("metrics.csv", "epoch\n" + "1" * 200_000, RunFolder.read_metrics),
        ("metrics.csv", "epoch,loss\n1", RunFolder.read_metrics),
    ],
    ids=["deep summary", "huge integer", "deep vocabulary", "long field", "short row"],
)
def test_a_damaged_file_is_named(file: str, content: str, read: Callable[[RunFolder], Any], tmp_path: Path) -> None:
    (tmp_path / file).write_text(content)
    with pytest.raises(UserError, match=f"run folder {tmp_path} is damaged: {file} cannot be read \\("):
        read(RunFolder(tmp_path))


@pytest.mark.parametrize("command", [["evaluate"], ["predict", "--data", "x.csv", "--out", "y.csv"], ["export"]])
def test_the_folder_of_a_stream_is_told(command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "learner.pt").touch()
    assert run([command[0], str(tmp_path), *command[1:]]) == 2
    expected = f"run folder {tmp_path} must be one of `fptt train`, got that of a stream, with learner.pt."
    assert capsys.readouterr().err == f"fptt: {expected}\n"
