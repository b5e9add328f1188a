"""The model card of a run says what the run was, and what it says to type works."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from safetensors import safe_open

from fptt.experiments.commands.cli import run
from fptt.experiments.training.folder import RunFolder
from tests.experiments.tasks.test_sequences import LENGTHS, NAMES, sequences

QUICK = ["--hidden-size", "3", "--epochs", "1", "--threads", "1", "--batch-size", "7"]


@pytest.mark.parametrize(("method", "options"), [("fptt", []), ("fptt", ["--alpha", "0"]), ("bptt", [])])
def test_the_card_of_a_run(
    method: str, options: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    np.savez(tmp_path / "x.npz", inputs=np.concatenate(sequences()), lengths=LENGTHS, targets=NAMES)
    out = tmp_path / "run"
    command = ["train", "--task", "sequences", "--data", str(tmp_path / "x.npz"), "--out", str(out)]
    assert run([*command, *QUICK, "--method", method, *options, "--seed", "3"]) == 0
    folder = RunFolder(out)
    summary, card = folder.read_summary(), (out / "README.md").read_text(encoding="utf-8")
    assert str(tmp_path) not in card
    header = yaml.safe_load(card.split("---")[1])
    assert header == {
        "library_name": "fptt",
        "tags": ["fptt", "recurrent-neural-network", "lstm", *([method] if method != "fptt" else []), "sequences"],
    }
    assert f"# LSTM trained by {method.upper()} on sequences" in card
    assert f"{summary['num_parameters']:,} parameters" in card
    assert f"| test accuracy | {summary['test_accuracy']:.4f} |" in card
    assert f"| updates | {summary['updates']:,} |" in card
    assert "(`left`, `right`)" in card
    assert "or a DataFrame, as in the data" in card
    assert "Weights of epoch 1, chosen by validation; seed 3. The run ended as planned." in card
    # with a penalty of 0 FPTT is TBPTT, and keeps no averages
    assert ("averages=True" in card) is folder.averages_file.exists() is (method == "fptt" and not options)

    monkeypatch.chdir(out)
    capsys.readouterr()
    commands = re.findall(r"^fptt (.*?)(?:  +#.*)?$", card, re.M)
    assert len(commands) == 2
    assert run(commands[0].replace("FOLDER", str(tmp_path / "again")).split()) == 0
    assert RunFolder(tmp_path / "again").read_summary()["test_accuracy"] == summary["test_accuracy"]
    assert run(commands[1].split()) == 0
    names: dict[str, Any] = {"x": sequences()}
    exec(re.findall(r"```python\n(.*?)```", card, re.S)[0], names)
    assert names["run"].predict(sequences()).shape == (len(LENGTHS),)

    with safe_open(out / "model.safetensors", "pt") as weights:
        (name,) = weights.metadata()
        found = json.loads(weights.metadata()[name])
    expected = {"task": "sequences", "method": method, "seed": 3, "epoch": 1, "fptt": summary["fptt"]}
    assert expected.items() <= found.items()
    assert found["test_accuracy"] == summary["test_accuracy"]
    assert found["validation_accuracy"] == summary["validation_accuracy"]


def test_the_card_says_that_a_task_prepares_its_inputs(tmp_path: Path) -> None:
    """Images of 0 to 16 are pixels in [0, 1] to the model, which predicts nonsense from others."""
    assert run(["train", "--task", "digits", "--limit", "14", "--out", str(tmp_path / "run"), *QUICK]) == 0
    card = (tmp_path / "run" / "README.md").read_text(encoding="utf-8")
    assert "or a DataFrame, prepared as the task does" in card


def test_the_card_of_a_text_names_no_predictions(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text("hold the line " * 200, encoding="utf-8")
    command = ["train", "--task", "text", "--data", str(tmp_path / "x.txt"), "--length", "20", "--out"]
    assert run([*command, str(tmp_path / "run"), *QUICK]) == 0
    card = (tmp_path / "run" / "README.md").read_text(encoding="utf-8")
    assert "fptt sample . --prompt" in card
    assert "run.predict" not in card
