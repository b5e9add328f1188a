"""Spiking Heidelberg Digits, from files that the tests make."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fptt.experiments.commands.cli import run
from fptt.experiments.configs.config import Setting
from fptt.experiments.configs.recipes import task_config
from fptt.experiments.process.errors import UserError
from fptt.experiments.tasks.registry import load_task
from fptt.experiments.training.folder import RunFolder
from tests.experiments.data_sets import sizes


def test_without_data_or_folder_it_says_what_to_give(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"give --data FOLDER with shd_train\.h5 and shd_test\.h5"):
        load_task(Setting(task="shd"), 0)
    with pytest.raises(UserError, match=r"data folder '.*nowhere' does not exist"):
        load_task(Setting(task="shd", data=str(tmp_path / "nowhere")), 0)


def test_without_h5py_it_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "h5py", None)  # importing it raises ModuleNotFoundError
    with pytest.raises(UserError, match=r"the task shd needs h5py: pip install 'fptt\[shd\]'"):
        load_task(Setting(task="shd", data=str(tmp_path)), 0)


def words(count: int) -> dict[str, Any]:
    """Return the fields of a file: word n has a spike of unit 7 n at 0 s and three of unit 699 near the end."""
    times = [np.array([0.0, 1.39, 1.3901, 1.3999, 1.45], np.float16 if n % 2 else np.float32) for n in range(count)]
    units = [np.array([7 * n, 699, 699, 699, 5], np.uint16) for n in range(count)]
    return {"spikes/times": times, "spikes/units": units, "labels": np.arange(count) % 20}


def write(path: Path, fields: dict[str, Any]) -> Path:
    h5py = pytest.importorskip("h5py", reason="h5py is not installed: pip install 'fptt[shd]'")
    with h5py.File(path, "w") as file:
        for name, values in fields.items():
            if isinstance(values, list):
                kind = h5py.vlen_dtype(values[0].dtype) if values else float
                data = file.create_dataset(name, (len(values),), dtype=kind)
                for number, own in enumerate(values):
                    data[number] = own
            else:
                file.create_dataset(name, data=values)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, count in (("train", 40), ("test", 20)):
        write(tmp_path / f"shd_{name}.h5", words(count))
    return tmp_path


def test_words_are_counted_in_bins(folder: Path) -> None:
    task = load_task(Setting(task="shd", data=str(folder), length=14), 0)
    assert sizes(task) == [36, 4, 20]
    inputs, labels = task.sequences(task.test[[3, 5]])
    assert inputs.shape == (14, 2, 700)
    assert labels.tolist() == [3, 5]
    # bins of 0.1 s: one spike in the first, three in the last, and that at 1.45 s left out
    found = {tuple(place): inputs[tuple(place)].item() for place in inputs.nonzero().tolist()}
    assert found == {(0, 0, 21): 1, (13, 0, 699): 3, (0, 1, 35): 1, (13, 1, 699): 3}


def test_every_training_word_is_in_one_part_alike_for_all_seeds(folder: Path) -> None:
    one, other = (load_task(Setting(task="shd", data=str(folder)), seed) for seed in (0, 1))
    firsts = [part[list(range(len(part)))][0][:, 0].argmax(-1) // 7 for part in (one.train, one.validation)]  # pyright: ignore
    assert sorted(torch.cat(firsts).tolist()) == list(range(40))
    assert one.fingerprint == other.fingerprint


def test_a_limit_leaves_words_of_all_parts(folder: Path) -> None:
    task = load_task(Setting(task="shd", data=str(folder), limit=3), 0)
    assert sizes(task) == [3, 3, 3]
    assert task.test[[0, 1, 2]][1].tolist() == [0, 6, 13]


def test_the_recipe_trains(folder: Path) -> None:
    config = task_config("shd")
    assert (config.cell, config.length, config.num_chunks) == ("liquid-lif", 100, 20)
    options = ["--hidden-size", "8", "--epochs", "1", "--num-chunks", "5", "--length", "10"]
    assert run(["train", "--task", "shd", "--data", str(folder), *options, "--out", str(folder / "run")]) == 0
    summary = RunFolder(folder / "run").read_summary()
    assert (summary["updates"], summary["timesteps"]) == (5, 36 * 10)
    assert 0 <= summary["firing_rate"] <= 1


def changed(**fields: Any) -> dict[str, Any]:
    return {**words(20), **{name.replace("__", "/"): value for name, value in fields.items()}}


def without(name: str) -> dict[str, Any]:
    return {key: value for key, value in words(20).items() if key != name}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (without("spikes/units"), r"must have a list in the field spikes/units, as shd_\*\.h5 have it, got nothing"),
        (without("labels"), "must have a list in the field labels, .* got nothing"),
        ({**without("spikes/times"), "spikes/times/seconds": np.zeros(3)}, "field spikes/times, .* got something else"),
        (changed(labels=np.arange(20) + 1), "must hold whole numbers from 0 to 19 in labels, got int64 from 1 to 20"),
        (changed(labels=np.arange(20) / 2), "whole numbers from 0 to 19 in labels, got float64"),
        (changed(labels=np.zeros(19, int)), "as many entries in spikes/times as .*, got 20, 20 and 19"),
        (
            changed(spikes__units=[np.array([700] * 5)] * 20),
            "word 0 .* whole numbers from 0 to 699 in spikes/units, got",
        ),
        (changed(spikes__units=[np.array([1, 2])] * 20), r"word 0 .* a time for each unit, got \(5,\) in spikes/times"),
        (changed(spikes__times=[np.array([0.1] * 4 + [np.nan])] * 20), "word 0 .* times from 0 on in spikes/times"),
        (changed(spikes__times=[np.array([-0.1] * 5)] * 20), "times from 0 on in spikes/times, got -0.1"),
    ],
)
def test_a_file_with_something_else_is_named(folder: Path, fields: dict[str, Any], message: str) -> None:
    path = write(folder / "shd_test.h5", fields)
    with pytest.raises(UserError, match=message) as error:
        load_task(Setting(task="shd", data=str(folder)), 0)
    assert str(path) in str(error.value)


def test_a_file_that_is_missing_or_no_hdf5_is_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "shd_test.h5").write_bytes(b"spikes")
    command = ["train", "--task", "shd", "--data", str(folder), "--out", str(folder / "run")]
    assert run(command) == 2
    assert f"{folder / 'shd_test.h5'} cannot be read" in capsys.readouterr().err
    (folder / "shd_test.h5").unlink()
    assert run(command) == 2
    assert f"{folder / 'shd_test.h5'} cannot be read" in capsys.readouterr().err
