"""Spiking networks on the command line."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from fptt.experiments import load_run
from fptt.experiments.commands.cli import run
from fptt.experiments.configs.config import TrainConfig
from fptt.experiments.configs.recipes import RECIPES
from fptt.experiments.process.errors import UserError
from fptt.experiments.tasks.registry import load_task
from fptt.experiments.training.build import SPIKING, SURROGATES, make_language_model, make_recurrent
from fptt.experiments.training.evaluation import evaluate_folder, in_precision_of
from fptt.experiments.training.folder import RunFolder
from fptt.nn import spiking
from fptt.nn.spiking.neurons import LIFLayer

QUICK = ["--by", "row", "--hidden-size", "8", "--epochs", "1", "--limit", "128", "--threads", "1"]


@pytest.mark.parametrize("cell", SPIKING)
@pytest.mark.parametrize("surrogate", SURROGATES)
def test_a_config_builds_the_network_that_it_names(cell: Any, surrogate: Any) -> None:
    config = TrainConfig(
        cell=cell, surrogate=surrogate, threshold=0.7, pool="mean", num_layers=2, hidden_size=40, chrono_init=30
    )
    model = make_recurrent(config, 3, 5, last_only=True)
    assert isinstance(model, spiking.LIF)
    assert type(model) is SPIKING[cell]
    outputs, state = model(torch.randn(4, 2, 3))
    assert (outputs.shape, state.neurons.s.shape) == ((1, 2, 5), (2, 2, 40))
    assert model.readout is not None
    assert model.readout.pool == "mean"
    for layer in model.layers:
        assert isinstance(layer, LIFLayer)
        assert (layer.threshold, type(layer.surrogate)) == (0.7, SURROGATES[surrogate])
        # α = 1 − exp(−1/τ), τ log-uniform from 1 to 30 steps
        constants = -1 / torch.log1p(-layer.rate_logit.sigmoid())
        assert 1 <= constants.min() < 4
        assert 10 < constants.max() <= 30.01


def test_language_models_have_no_spiking_cells() -> None:
    with pytest.raises(UserError, match="cell must be lstm, gru, rnn with the language model of text, got alif"):
        make_language_model(TrainConfig(task="text", cell="alif"), 7)


def test_digits_by_rows_are_the_digits_by_pixels() -> None:
    rows, pixels = (load_task(TrainConfig(task="digits", by=by), 0) for by in ("row", "pixel"))
    images = rows.test[[3, 4]][0]
    assert torch.equal(images, pixels.test[[3, 4]][0])
    assert rows.to_sequences(images).shape == (8, 2, 8)
    assert rows.input_size == 8
    # the third row of the second image
    assert torch.equal(rows.to_sequences(images)[2, 1], pixels.to_sequences(images)[16:24, 1, 0])


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    folder = RunFolder(tmp_path_factory.mktemp("spiking") / "run")
    assert run(["train", "--cell", "liquid-lif", *QUICK, "--out", str(folder.path)]) == 0
    return folder


def test_the_summary_has_the_firing_rate(trained: RunFolder) -> None:
    loaded = load_run(trained.path)
    task = load_task(loaded.config, 0)
    inputs, _ = task.sequences(task.test[:])  # pyright: ignore[reportArgumentType]
    _, state = loaded.model(in_precision_of(loaded.model, inputs))
    rate = spiking.firing_rate(state).mean().item()
    assert 0 < rate < 1
    assert loaded.summary["firing_rate"] == pytest.approx(rate, rel=1e-6)
    assert loaded.summary["updates"] == 2 * 8
    assert evaluate_folder(trained.path)["test_accuracy"] == loaded.summary["test_accuracy"]


def test_other_networks_have_no_firing_rate(tmp_path: Path) -> None:
    assert run(["train", *QUICK, "--out", str(tmp_path / "run")]) == 0
    assert RunFolder(tmp_path / "run").read_summary()["firing_rate"] is None


def test_an_export_names_the_cell(trained: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["export", str(trained.path)]) == 2
    assert "export is for the cells lstm, gru, rnn, got a run of liquid-lif" in capsys.readouterr().err


@pytest.mark.parametrize("name", [name for name in RECIPES if RECIPES[name].config.cell in SPIKING])
def test_recipes_build_their_networks(name: str) -> None:
    config = RECIPES[name].config
    model = make_recurrent(replace(config, num_layers=1), 4, 10, last_only=True)
    assert isinstance(model, spiking.LiquidLIF)
    assert model.hidden_size == config.hidden_size
