"""An exported step is the model, with its standardization, and runs with torch alone."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from fptt.experiments import load_run
from fptt.experiments.commands.cli import INTERRUPTED, run
from fptt.experiments.process.errors import UserError
from fptt.experiments.tasks.interface import Interface
from fptt.experiments.training import export
from fptt.experiments.training.export import export_step
from tests.experiments.tasks.test_sequences import LENGTHS, NAMES, sequences
from tests.experiments.training.test_resume import interrupt_at

QUICK = ["--hidden-size", "3", "--epochs", "1", "--threads", "1", "--batch-size", "7"]


@pytest.mark.parametrize(
    ("targets", "options"),
    [
        (NAMES, ["--num-layers", "2"]),
        (np.arange(LENGTHS.sum()) * 0.5 + 100, ["--cell", "gru", "--precision", "64-true"]),
    ],
    ids=["classes", "numbers"],
)
def test_an_exported_step_is_the_model(
    targets: np.ndarray, options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.savez(tmp_path / "x.npz", inputs=np.concatenate(sequences()), lengths=LENGTHS, targets=targets)
    out = tmp_path / "run"
    command = ["train", "--task", "sequences", "--data", str(tmp_path / "x.npz"), "--out", str(out)]
    assert run([*command, *QUICK, *options]) == 0
    assert run(["export", str(out)]) == 0
    assert "exported, and compared with the model: " in capsys.readouterr().out
    extras = {"interface.json": "", "state.json": ""}
    step = torch.export.load(out / "model.pt2", extra_files=extras).module()
    loaded = load_run(out)
    assert Interface(**json.loads(extras["interface.json"])) == loaded.interface
    dtype = next(loaded.model.parameters()).dtype
    state = tuple(torch.zeros(*shape, dtype=dtype) for shape in json.loads(extras["state.json"]))
    found = []
    for x in torch.from_numpy(sequences()[3]).to(dtype):
        output, state = step(x.unsqueeze(0), state)
        found.append(output[0].detach().numpy())
    if loaded.class_names is None:
        assert np.concatenate(found) == pytest.approx(loaded.predict(sequences())[3], rel=1e-6)
    else:
        assert found[-1] == pytest.approx(loaded.predict_proba(sequences())[3], rel=1e-5)


@pytest.mark.parametrize(("of_inputs", "of_targets"), [(1e6 + 0.3, 0.0), (0.0, 101_325.37)], ids=["inputs", "targets"])
def test_a_step_takes_numbers_far_from_0(of_inputs: float, of_targets: float, tmp_path: Path) -> None:
    """As a pressure in pascals that hardly moves: float32 has too few digits for its mean, and for a prediction."""
    inputs, targets = np.concatenate(sequences()) + of_inputs, np.sin(np.arange(LENGTHS.sum())) + of_targets
    np.savez(tmp_path / "x.npz", inputs=inputs, lengths=LENGTHS, targets=targets)
    command = ["train", "--task", "sequences", "--data", str(tmp_path / "x.npz"), "--out", str(tmp_path / "run")]
    assert run([*command, *QUICK]) == 0
    assert run(["export", str(tmp_path / "run")]) == 0


def test_a_program_of_earlier_weights_is_not_left_beside_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exported while the run was interrupted, which goes on then."""
    options = ["--epochs", "2", "--limit", "96", "--hidden-size", "4", "--threads", "1", "--batch-size", "24"]
    with monkeypatch.context() as patch:
        interrupt_at(1, patch)
        assert run(["train", *options, "--out", str(tmp_path / "run")]) == INTERRUPTED
    assert run(["export", str(tmp_path / "run")]) == 0
    (tmp_path / "run" / "model.onnx").touch()
    assert run(["train", "--resume", "--out", str(tmp_path / "run")]) == 0
    assert not [file.name for file in (tmp_path / "run").iterdir() if file.suffix in (".pt2", ".onnx")]


def test_a_program_that_differs_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.savez(tmp_path / "x.npz", inputs=np.concatenate(sequences()), lengths=LENGTHS, targets=NAMES)
    out = tmp_path / "run"
    assert run(["train", "--task", "sequences", "--data", str(tmp_path / "x.npz"), "--out", str(out), *QUICK]) == 0
    monkeypatch.setattr(export, "TOLERANCE", -1.0)
    with pytest.raises(UserError, match="the exported program differs from the model by"):
        export_step(load_run(out), tmp_path / "model.pt2")
    assert not (tmp_path / "model.pt2").exists()


@pytest.mark.parametrize(
    ("targets", "options"),
    [(NAMES, ["--num-layers", "2"]), (np.arange(LENGTHS.sum()) * 0.5 + 100, ["--cell", "gru"])],
    ids=["classes", "numbers"],
)
def test_an_onnx_step_is_the_model(targets: np.ndarray, options: list[str], tmp_path: Path) -> None:
    """With the runtime alone: names, shapes of the state and interface are in the file."""
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    np.savez(tmp_path / "x.npz", inputs=np.concatenate(sequences()), lengths=LENGTHS, targets=targets)
    out = tmp_path / "run"
    command = ["train", "--task", "sequences", "--data", str(tmp_path / "x.npz"), "--out", str(out)]
    assert run([*command, *QUICK, *options]) == 0
    assert run(["export", str(out), "--to", "onnx"]) == 0
    session = onnxruntime.InferenceSession(out / "model.onnx", providers=["CPUExecutionProvider"])
    extras, loaded = session.get_modelmeta().custom_metadata_map, load_run(out)
    assert Interface(**json.loads(extras["interface.json"])) == loaded.interface
    state = [np.zeros(shape, np.float32) for shape in json.loads(extras["state.json"])]
    assert [own.name for own in session.get_inputs()] == ["inputs", *(f"state_{i}" for i in range(len(state)))]
    found = []
    for x in sequences()[3].astype(np.float32):
        feed = {"inputs": x[None], **{f"state_{number}": own for number, own in enumerate(state)}}
        output, *state = session.run(None, feed)
        found.append(output[0])
    if loaded.class_names is None:
        assert np.concatenate(found) == pytest.approx(loaded.predict(sequences())[3], rel=1e-4)
    else:
        assert found[-1] == pytest.approx(loaded.predict_proba(sequences())[3], abs=1e-5)


def test_a_missing_runtime_is_told_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    np.savez(tmp_path / "x.npz", inputs=np.concatenate(sequences()), lengths=LENGTHS, targets=NAMES)
    out = tmp_path / "run"
    assert run(["train", "--task", "sequences", "--data", str(tmp_path / "x.npz"), "--out", str(out), *QUICK]) == 0
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    capsys.readouterr()
    assert run(["export", str(out), "--to", "onnx"]) == 2
    assert capsys.readouterr().err == "fptt: export to onnx needs onnxruntime: pip install 'fptt[onnx]'\n"
    assert not (out / "model.onnx").exists()


def test_a_text_without_its_vocabulary_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "text.txt").write_text("abcd" * 100)
    options = ["--hidden-size", "3", "--epochs", "1", "--threads", "1", "--batch-size", "2", "--length", "8"]
    command = ["train", "--task", "text", "--data", str(tmp_path / "text.txt"), "--out", str(tmp_path / "run")]
    assert run([*command, *options]) == 0
    (tmp_path / "run" / "vocabulary.json").unlink()
    capsys.readouterr()
    assert run(["export", str(tmp_path / "run")]) == 2
    assert "is damaged: vocabulary.json is missing" in capsys.readouterr().err
