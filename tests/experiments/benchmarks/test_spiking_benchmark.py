"""The benchmark of spiking networks, beside SpikingJelly where it can be imported."""

import json
import sys
from pathlib import Path

import pytest
import torch

from fptt.experiments.benchmarks.spiking import TAU, SpikingBench, make_network, make_rows
from fptt.experiments.commands.cli import run
from fptt.nn import spiking
from fptt.nn.spiking.neurons import LIFLayer

QUICK = ["--sequence-length", "4", "--batch-size", "2", "--hidden-size", "3", "--repeats", "2", "--engines", "eager"]
EAGER = ["bptt", "tbptt eager", "fptt eager", "fptt eager recomputed"]


def test_ratios_are_quotients_of_medians() -> None:
    rows = make_rows({"spikingjelly": [4.0, 6.0, 9.0], "fptt eager": [2.0, 3.0, 100.0]})
    assert [row["times_faster"] for row in rows] == [1.0, 2.0]
    assert (rows[1]["seconds"], rows[1]["seconds_min"], rows[1]["seconds_max"]) == (3.0, 2.0, 100.0)
    # without SpikingJelly it is eager FPTT that stands for 1
    rows = make_rows({"bptt": [1.0], "fptt eager": [2.0]})
    assert [(row["base"], row["times_faster"]) for row in rows] == [("fptt eager", 2.0), ("fptt eager", 1.0)]


def test_the_neurons_have_spikingjellys_time_constant() -> None:
    neurons = make_network(3).rnn
    assert isinstance(neurons, spiking.LIF)
    layer = neurons.layers[0]
    assert isinstance(layer, LIFLayer)
    torch.testing.assert_close(layer.rate_logit.sigmoid(), torch.full((3,), 1 / TAU))


def test_rows_and_the_one_that_is_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("spikingjelly", "spikingjelly.activation_based"):
        monkeypatch.setitem(sys.modules, name, None)  # importing it raises ModuleNotFoundError
    assert run(["bench", "spiking", *QUICK, "--out", str(tmp_path)]) == 0
    assert "note: no row spikingjelly: it cannot be imported" in capsys.readouterr().out
    report = json.loads((tmp_path / "spiking.json").read_text())
    assert [row["name"] for row in report["rows"]] == EAGER
    assert all(0 < row["seconds_min"] <= row["seconds"] <= row["seconds_max"] for row in report["rows"])
    assert report["settings"]["hidden_size"] == 3
    table = (tmp_path / "spiking.md").read_text()
    assert "| fptt eager recomputed |" in table
    assert "no row spikingjelly" in table


def test_a_row_of_spikingjelly() -> None:
    pytest.importorskip("spikingjelly.activation_based.learning.online_learning")
    report = SpikingBench(4, 2, 3, ["eager"], 1).run()
    assert [row["name"] for row in report["rows"]] == ["spikingjelly", *EAGER]
    assert report["rows"][0]["times_faster"] == 1
    assert not report["notes"]
