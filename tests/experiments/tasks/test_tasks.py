from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from fptt.experiments.commands.cli import run
from fptt.experiments.configs.config import Setting, is_config_of
from fptt.experiments.configs.recipes import task_config
from fptt.experiments.process.errors import UserError
from fptt.experiments.tasks.adding import draw_samples
from fptt.experiments.tasks.mnist import NUM_VALIDATION
from fptt.experiments.tasks.registry import load_task
from fptt.experiments.training.evaluation import evaluate_folder
from fptt.experiments.training.folder import RunFolder
from tests.experiments.data_sets import REAL, needs_data, sizes, write_splits


def test_digits_are_split_once_and_for_all() -> None:
    one, other = (load_task(task_config("digits"), seed) for seed in (0, 1))
    assert sizes(one) == [1257, 180, 360]
    images = torch.cat([split[:][0] for split in (one.train, one.validation, one.test)])
    assert len({tuple(image.tolist()) for image in images}) == len(images)
    assert torch.equal(one.test[:][1], other.test[:][1])
    sequences = one.to_sequences(one.test[[3, 4]][0])
    assert sequences.shape == (64, 2, 1)
    assert 0 <= sequences.min() < sequences.max() <= 1
    assert torch.equal(sequences[:, 1, 0] * 16, one.test[[4]][0][0])


def test_adding_samples_are_what_they_should_be() -> None:
    inputs, targets = draw_samples(500, 11, torch.Generator().manual_seed(0))
    numbers, marks = inputs.unbind(-1)
    assert torch.equal(marks.sum(1), torch.full((500,), 2.0))
    assert torch.equal(marks[:, :5].sum(1), torch.ones(500))
    torch.testing.assert_close((numbers * marks).sum(1, keepdim=True), targets)
    assert targets.var().item() == pytest.approx(1 / 6, rel=0.2)


def make_mnist(folder: Path, train: int = NUM_VALIDATION + 40, test: int = 30, **columns: list) -> str:
    splits: dict[str, dict[str, list]] = {}
    for name, size in (("train", train), ("test", test)):
        pixels = np.random.default_rng(0).integers(0, 256, (size, 28, 28), dtype=np.uint8)
        splits[name] = {
            "image": list(pixels),
            "label": [n % 10 for n in range(size)],
            **{k: v * size for k, v in columns.items()},
        }
        if "picture" in columns:
            del splits[name]["image"]
    return write_splits(folder, splits)


def test_mnist_reads_a_folder_and_permutes_every_image_alike(tmp_path: Path) -> None:
    data = make_mnist(tmp_path / "mnist")
    plain = load_task(Setting(task="mnist", data=data), 0)
    permuted = load_task(Setting(task="mnist", data=data, permuted=True), 1)
    images = plain.test[:][0]
    one, other = plain.to_sequences(images), permuted.to_sequences(images)
    assert one.shape == (784, 30, 1)
    assert not torch.equal(one, other)
    assert torch.equal(one.sort(0).values, other.sort(0).values)
    torch.testing.assert_close(one[:, 0, 0], (images[0].float() / 255 - 0.1307) / 0.3081)
    raw = load_task(Setting(task="mnist", data=data, standardization="none"), 0)
    torch.testing.assert_close(raw.to_sequences(images)[:, 0, 0], images[0].float() / 255)
    assert sizes(plain) == [40, NUM_VALIDATION, 30]


def test_a_run_from_before_inputs_were_standardized_keeps_its_figures(tmp_path: Path) -> None:
    data = make_mnist(tmp_path / "mnist")
    command = ["train", "--task", "mnist", "--data", data, "--limit", "8", "--by", "row", "--num-chunks", "2"]
    sizes = ["--epochs", "1", "--hidden-size", "4", "--batch-size", "8", "--threads", "1"]
    out = tmp_path / "run"
    assert run([*command, *sizes, "--standardization", "none", "--out", str(out)]) == 0
    folder = RunFolder(out)
    assert folder.read_summary()["standardization"] == "none"
    figures = evaluate_folder(out)
    lines = folder.config_file.read_text().splitlines(keepends=True)
    folder.config_file.write_text("".join(line for line in lines if not line.startswith("standardization")))
    assert folder.read_config().standardization == "none"
    assert evaluate_folder(out) == figures
    assert is_config_of(folder.config_file.read_text(), replace(folder.read_config()))
    assert not is_config_of(folder.config_file.read_text(), replace(folder.read_config(), standardization="published"))
    folder.config_file.write_text("task: cifar10\n")
    assert folder.read_config().standardization == "data"


def test_bad_data_folders_are_named(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "train-00000-of-00001.parquet").write_bytes(b"no parquet")
    cases = {
        "./nowhere": "does not exist",
        str(tmp_path / "empty"): "cannot be loaded",
        str(tmp_path / "broken"): "cannot be loaded",
        make_mnist(tmp_path / "columns", picture=["x"]): "columns image and label, got",
        make_mnist(tmp_path / "small", train=20): "more than 5000 samples, got 20",
        make_mnist(tmp_path / "no-test", test=0): "cannot be loaded: .*no data",
        make_mnist(tmp_path / "labels", label=[10]): "from 0 to 9 in column label, got int64 from 10 to 10",
        make_mnist(tmp_path / "float", label=[0.5]): "from 0 to 9 in column label, got float64",
    }
    for data, message in cases.items():
        with pytest.raises(UserError, match=message):
            load_task(Setting(task="mnist", data=data), 0)


def test_splits_with_other_columns_are_named(tmp_path: Path) -> None:
    data = make_mnist(tmp_path / "other")
    write_splits(Path(data), {"test": {"picture": [1], "label": [1]}})
    with pytest.raises(UserError, match=r"cannot be loaded: .*picture.*column names don't match"):
        load_task(Setting(task="mnist", data=data), 0)


def test_a_running_divergence_needs_one_label_a_sequence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["train", "--task", "anbn", "--divergence", "running", "--epochs", "1", "--out", str(tmp_path / "run")]
    assert run(command) == 2
    assert "divergence running is for tasks with one label a sequence, not for anbn" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@needs_data
def test_real_mnist() -> None:
    task = load_task(Setting(task="mnist", data=str(REAL / "mnist"), limit=100), 0)
    inputs, labels = task.test[:]
    assert labels[:10].tolist() == [7, 2, 1, 0, 4, 1, 4, 9, 5, 9]
    assert inputs.shape == (100, 784)


@pytest.mark.parametrize("task", ["adding", "copy", "anbn"])
def test_an_epoch_whose_order_no_memory_holds_is_refused(task: str) -> None:
    with pytest.raises(UserError, match="must have at most 100,000,000 samples, got 1,000,000,000,000: give a smaller"):
        load_task(Setting(task=task, limit=10**12), 0)


@pytest.mark.parametrize(
    ("task", "sequences"),
    [
        ("adding", "2,000 sequences of 1,000,000,000,000"),
        ("copy", "1,000 sequences of 1,000,000,000,020"),
        ("anbn", "1,000,000,000,000 sequences of 4,000,000,000,001"),
    ],
)
def test_a_length_that_no_memory_holds_is_refused(task: str, sequences: str) -> None:
    with pytest.raises(UserError, match=f"at most 1,000,000,000 steps each, got {sequences}: give a smaller length"):
        load_task(Setting(task=task, length=10**12), 0)
