"""Whole runs of the command line on a CUDA device."""

from pathlib import Path

import pytest
import torch

from fptt.experiments.commands.cli import INTERRUPTED, run
from fptt.experiments.training.evaluation import evaluate_folder
from fptt.experiments.training.folder import RunFolder
from tests.experiments.training.test_resume import QUICK, assert_same_end, interrupt_at

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.filterwarnings("ignore:RNN module weights"),  # of PyTorch, about copies of a model
]

DEVICE = "cuda"
METHODS = pytest.mark.parametrize(
    "options",
    [
        ["--method", "bptt"],
        ["--method", "tbptt"],
        ["--method", "fptt", "--ema-decay", "0.5", "--divergence", "running"],
        ["--method", "fptt", "--engine", "compiled", "--divergence", "running"],
        ["--method", "fptt", "--num-chunks", "8", "--engine", "compiled"],
    ],
    ids=lambda options: "-".join(options[1:4:2]),
)


def train(folder: Path, device: str, *options: str) -> RunFolder:
    assert run(["train", *QUICK, "--accelerator", device, *options, "--out", str(folder)]) == 0
    return RunFolder(folder)


@METHODS
def test_a_run_in_double_precision_ends_as_on_the_processor(options: list[str], tmp_path: Path) -> None:
    options = [*options, "--precision", "64-true"]
    here, there = train(tmp_path / "here", "cpu", *options), train(tmp_path / "there", DEVICE, *options)
    weights = there.read_weights()
    for name, weight in here.read_weights().items():
        torch.testing.assert_close(weight, weights[name], rtol=1e-8, atol=1e-8)
    assert here.read_summary()["updates"] == there.read_summary()["updates"]


@METHODS
def test_a_run_goes_on_bit_for_bit(options: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = [*options, "--batch-size", "24"]
    whole = train(tmp_path / "whole", DEVICE, *options)
    cut = tmp_path / "cut"
    with monkeypatch.context() as patch:
        interrupt_at(4, patch)
        assert run(["train", *QUICK, "--accelerator", DEVICE, *options, "--out", str(cut)]) == INTERRUPTED
    assert run(["train", "--resume", "--out", str(cut)]) == 0
    assert_same_end(RunFolder(cut), whole)


@pytest.mark.parametrize(("first", "then"), [("cpu", DEVICE), (DEVICE, "cpu")])
@METHODS
def test_a_run_goes_on_on_another_device(
    options: list[str], first: str, then: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = [*options, "--precision", "64-true", "--batch-size", "24"]
    whole = train(tmp_path / "whole", then, *options)
    cut = tmp_path / "cut"
    with monkeypatch.context() as patch:
        interrupt_at(4, patch)
        assert run(["train", *QUICK, "--accelerator", first, *options, "--out", str(cut)]) == INTERRUPTED
    assert run(["train", "--resume", "--accelerator", then, "--out", str(cut)]) == 0
    weights = RunFolder(cut).read_weights()
    for name, weight in whole.read_weights().items():
        torch.testing.assert_close(weight, weights[name], rtol=1e-8, atol=1e-8)
    assert len(RunFolder(cut).read_summary()["earlier_environments"]) == 1


@pytest.mark.parametrize("engine", ["eager", "compiled"])
def test_random_numbers_go_on(engine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = tmp_path / "text.txt"
    text.write_text("to be or not to be, that is the question. " * 100)
    options = ["--task", "text", "--data", str(text), "--dropout", "0.3", "--batch-size", "4", "--engine", engine]
    options = [*options, "--length", "24", "--num-chunks", "4", "--accelerator", DEVICE, "--hidden-size", "8"]
    assert run(["train", *options, "--epochs", "2", "--out", str(tmp_path / "whole")]) == 0
    with monkeypatch.context() as patch:
        interrupt_at(5, patch)
        assert run(["train", *options, "--epochs", "2", "--out", str(tmp_path / "cut")]) == INTERRUPTED
    assert run(["train", "--resume", "--out", str(tmp_path / "cut")]) == 0
    cut, whole = RunFolder(tmp_path / "cut"), RunFolder(tmp_path / "whole")
    if engine == "eager":
        assert_same_end(cut, whole)
    else:  # the gradient of an embedding is summed in no fixed order there
        for name, weight in cut.read_weights().items():
            torch.testing.assert_close(weight, whole.read_weights()[name], rtol=0, atol=1e-3)


@pytest.mark.parametrize("engine", ["eager", "compiled"])
def test_an_evaluation_repeats_the_figures(engine: str, tmp_path: Path) -> None:
    folder = train(tmp_path / "run", DEVICE, "--engine", engine)
    summary = folder.read_summary()
    evaluated = {name: value for name, value in evaluate_folder(folder.path).items() if name.startswith("test_")}
    assert evaluated == pytest.approx({name: summary[name] for name in evaluated}, rel=1e-5)
    assert summary["device"] == torch.cuda.get_device_name()
    assert summary["training_memory_bytes"] > 0


@pytest.mark.parametrize("precision", ["bf16-mixed", "64-true"])
def test_every_precision_runs(precision: str, tmp_path: Path) -> None:
    assert train(tmp_path / "run", DEVICE, "--precision", precision).read_summary()["status"] == "finished"
