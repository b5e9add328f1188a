"""The precisions of Fabric, and runs that give the same bits every time."""

from pathlib import Path
from typing import Any

import pytest
import torch

from fptt._engine.compiled import compiler
from fptt.experiments.commands.cli import INTERRUPTED, run
from fptt.experiments.training.evaluation import evaluate_folder
from fptt.experiments.training.folder import RunFolder, Weights
from tests.experiments.training.test_resume import QUICK, assert_same_end, interrupt_at


def train(folder: Path, *options: str) -> RunFolder:
    assert run(["train", *QUICK, *options, "--out", str(folder)]) == 0
    return RunFolder(folder)


def distance(one: Weights, other: Weights) -> float:
    return max(float((one[name].double() - other[name].double()).abs().max()) for name in one)


@pytest.mark.parametrize("method", ["fptt", "tbptt", "bptt"])
def test_precisions_are_near_each_other_and_differ(method: str, tmp_path: Path) -> None:
    """Float64 lies within float32's error of it, bfloat16 within its own, which is larger."""
    single, double, mixed = (
        train(tmp_path / precision, "--method", method, "--precision", precision).read_weights()
        for precision in ("32-true", "64-true", "bf16-mixed")
    )
    assert {weight.dtype for weight in double.values()} == {torch.float64}
    assert {weight.dtype for weight in mixed.values()} == {torch.float32}
    assert 0 < distance(single, double) < 1e-4 < distance(mixed, double) < 0.1


@pytest.mark.parametrize("precision", ["64-true", "bf16-mixed"])
def test_evaluation_has_the_precision_of_the_weights(precision: str, tmp_path: Path) -> None:
    folder = train(tmp_path / "run", "--precision", precision)
    evaluated = evaluate_folder(folder.path)
    summary = folder.read_summary()
    figures = {name: value for name, value in evaluated.items() if name.startswith("test_")}
    assert figures == {name: summary[name] for name in figures}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="float16 needs a GPU")
def test_the_loss_scale_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Float16 scales the loss; its scale begins at 65,536 and is halved where a gradient overflows."""
    options = ["--precision", "16-mixed", "--accelerator", "cuda", "--batch-size", "24", "--lr", "0.01"]
    whole = train(tmp_path / "whole", *options)
    with monkeypatch.context() as patch:
        interrupt_at(3, patch)
        assert run(["train", *QUICK, *options, "--out", str(tmp_path / "cut")]) == INTERRUPTED
    cut = RunFolder(tmp_path / "cut")
    states: list[dict[str, Any]] = []
    cut.checkpoints.restore(states.append, pytest.fail)
    assert states[0]["precision"]["scale"] > 1
    assert run(["train", "--resume", "--out", str(cut.path)]) == 0
    assert_same_end(cut, whole)


def test_float16_on_a_processor_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["train", *QUICK, "--precision", "16-mixed", "--out", str(tmp_path / "run")]) == 2
    assert "float16 needs a GPU; take bf16-mixed" in " ".join(capsys.readouterr().err.split())


def test_float16_in_the_compiled_engine_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["train", *QUICK, "--engine", "compiled", "--precision", "16-mixed", "--out", str(tmp_path / "run")]
    assert run(command) == 2
    assert "precision must be 32-true, 64-true or bf16-mixed with engine compiled" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_bfloat16_rounds_as_much_in_both_engines(tmp_path: Path) -> None:
    """Of a width that the machine code takes, which rounds the factors of products and nothing else."""
    options = ["--hidden-size", "32", "--num-chunks", "4", "--engine", "compiled", "--precision", "bf16-mixed"]
    folder = train(tmp_path / "compiled", *options)
    for precision in ("64-true", "bf16-mixed"):
        changes = ["--engine", "eager", "--precision", precision, "--out", str(tmp_path / precision)]
        assert run(["train", "--config", str(folder.config_file), *changes]) == 0
    compiled = folder.read_weights()
    double, eager = (RunFolder(tmp_path / precision).read_weights() for precision in ("64-true", "bf16-mixed"))
    assert {weight.dtype for weight in compiled.values()} == {torch.float32}
    assert 1e-4 < distance(compiled, double) < 0.05
    assert distance(compiled, eager) < 2 * distance(eager, double)


@pytest.mark.parametrize("horizon", ["1", "2"])
def test_mixed_precision_compiles_one_step(horizon: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine knows where the model inside begins, so that the first chunk has the step of all others."""
    graphs: list[Any] = []
    monkeypatch.setattr(compiler, "_compile", lambda graph, _: graphs.append(graph) or graph)
    train(tmp_path / "run", "--engine", "compiled", "--precision", "bf16-mixed", "--horizon", horizon)
    assert len(graphs) == 1


@pytest.mark.usefixtures("both_ways")
def test_engines_agree_in_float64(tmp_path: Path) -> None:
    compiled = train(tmp_path / "compiled", "--precision", "64-true", "--num-chunks", "16", "--engine", "compiled")
    changes = ["--config", str(compiled.config_file), "--engine", "eager", "--out", str(tmp_path / "eager")]
    assert run(["train", *changes]) == 0
    eager = RunFolder(tmp_path / "eager")
    assert distance(eager.read_weights(), compiled.read_weights()) < 1e-10


@pytest.mark.usefixtures("both_ways")
@pytest.mark.parametrize("engine", ["eager", "compiled"])
def test_deterministic_runs_give_the_same_bits(engine: str, tmp_path: Path) -> None:
    options = ["--deterministic", "--engine", engine, "--num-chunks", "8"]
    one = train(tmp_path / "one", *options)
    assert torch.are_deterministic_algorithms_enabled()
    other = train(tmp_path / "other", *options)
    assert one.weights_file.read_bytes() == other.weights_file.read_bytes()
    assert one.averages_file.read_bytes() == other.averages_file.read_bytes()
    train(tmp_path / "free", "--epochs", "1")
    assert not torch.are_deterministic_algorithms_enabled()
