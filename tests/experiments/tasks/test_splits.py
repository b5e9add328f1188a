"""Which rows of the real image data train, validate and test: on made-up files and, by the same checks, on the real."""

from pathlib import Path

import numpy as np
import pytest
import torch

from fptt.experiments.configs.config import Setting
from fptt.experiments.tasks import cifar10, mnist
from fptt.experiments.tasks.batches import HELD_OUT_SEED
from fptt.experiments.tasks.loading import load_splits
from fptt.experiments.tasks.registry import load_task
from fptt.experiments.tasks.scores import ClassScore, metric_form
from fptt.experiments.tasks.task import Task
from tests.experiments.data_sets import REAL, needs_data, write_splits

Rows = dict[str, tuple[str, range]]
"""The split and its rows that each part of a task has."""

IMAGES = {"mnist": ("image", (28, 28)), "cifar10": ("img", (32, 32, 3))}


def write_images(folder: Path, name: str, num_train: int, num_test: int) -> str:
    """Write images of random pixels, all of them different."""
    column, shape = IMAGES[name]
    draws = np.random.default_rng(0)
    splits = {
        split: {
            column: list(draws.integers(0, 256, (size, *shape), dtype=np.uint8)),
            "label": draws.integers(0, 10, size).tolist(),
        }
        for split, size in (("train", num_train), ("test", num_test))
    }
    return write_splits(folder, splits)


def check_parts(task: Task, data: str, rows: Rows) -> None:
    """Check that the parts have exactly these rows, and no row of a split is in two of them."""
    column, _ = IMAGES[task.name]
    splits = load_splits(data)
    for part, (split, own) in rows.items():
        inputs, labels = getattr(task, part)[:]
        chosen = splits[split].select(own)
        images = np.stack([np.asarray(image) for image in chosen[column]])
        assert torch.equal(inputs, torch.from_numpy(images.astype(np.uint8)).view(inputs.shape)), part
        assert labels.tolist() == list(chosen["label"]), part
    used = [(split, row) for split, own in rows.values() for row in own]
    assert len(set(used)) == len(used)


def mnist_rows(num_train: int, num_test: int, limit: int | None = None) -> Rows:
    num_fit = num_train - 5000
    return {
        "train": ("train", range(num_fit)[:limit]),
        "validation": ("train", range(num_fit, num_train)[:limit]),
        "test": ("test", range(num_test)[:limit]),
    }


@pytest.mark.parametrize("limit", [None, 7])
def test_mnist_validates_on_the_end_of_the_training_split(limit: int | None, tmp_path: Path) -> None:
    data = write_images(tmp_path / "mnist", "mnist", 5020, 9)
    task = load_task(Setting(task="mnist", data=data, limit=limit), 0)
    check_parts(task, data, mnist_rows(5020, 9, limit))


def cifar_rows(num_train: int, num_test: int, held_out: int, limit: int | None = None) -> Rows:
    """Where the test split is not whole, none of it is used."""
    is_whole = num_test >= cifar10.NUM_TEST
    num_fit = num_train - (1 if is_whole else 2) * held_out
    tested = ("test", range(num_test)) if is_whole else ("train", range(num_train - held_out, num_train))
    return {
        "train": ("train", range(num_fit)[:limit]),
        "validation": ("train", range(num_fit, num_fit + held_out)[:limit]),
        "test": (tested[0], tested[1][:limit]),
    }


@pytest.mark.parametrize("limit", [None, 3])
@pytest.mark.parametrize("num_test", [8, 7])
def test_cifar_validates_and_tests_on_images_that_it_does_not_train_on(
    num_test: int, limit: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cifar10, "NUM_TEST", 8)
    monkeypatch.setattr(cifar10, "NUM_HELD_OUT", 5)
    data = write_images(tmp_path / "cifar10", "cifar10", 30, num_test)
    task = load_task(Setting(task="cifar10", data=data, limit=limit), 0)
    check_parts(task, data, cifar_rows(30, num_test, 5, limit))


def test_the_permutation_is_the_same_for_every_seed(tmp_path: Path) -> None:
    data = write_images(tmp_path / "mnist", "mnist", 5002, 4)
    setting = Setting(task="mnist", data=data, permuted=True, limit=2)
    sequences = [task.to_sequences(task.test[:][0]) for task in (load_task(setting, seed) for seed in (0, 1, 7))]
    assert torch.equal(sequences[0], sequences[1])
    assert torch.equal(sequences[0], sequences[2])
    order = torch.randperm(784, generator=torch.Generator().manual_seed(mnist.PERMUTATION_SEED))
    plain = load_task(Setting(task="mnist", data=data, limit=2), 0)
    assert torch.equal(sequences[0], plain.to_sequences(plain.test[:][0])[order])


@pytest.mark.parametrize("name", ["adding", "copy"])
def test_no_run_trains_on_the_draws_that_it_is_tested_on(name: str) -> None:
    """Seeds of runs are below 2³¹; the first is the one that a careless choice of the other seed would meet."""
    assert HELD_OUT_SEED >= 2**31
    task = load_task(Setting(task=name, length=20), 0)
    inputs = task.validation[:][0]
    drawn = task.train[list(range(len(inputs)))][0]
    held_out = {tuple(row.flatten().tolist()) for row in torch.cat([inputs, task.test[:][0]])}
    assert not held_out & {tuple(row.flatten().tolist()) for row in drawn}


def test_macro_f1_has_the_classes_that_are_only_answered() -> None:
    """F1 is 2/3 for class 0, 1 for class 1, 0 for class 2, which no target has; class 3 does not occur."""
    score = ClassScore(4)
    score.add(torch.eye(4)[[0, 2, 1]], torch.tensor([0, 0, 1]))
    assert score.metrics()["macro_f1"] == pytest.approx((2 / 3 + 1 + 0) / 3)


@needs_data
def test_real_mnist_is_split_alike() -> None:
    data = str(REAL / "mnist")
    task = load_task(Setting(task="mnist", data=data, limit=50), 0)
    check_parts(task, data, mnist_rows(60_000, 10_000, 50))


@needs_data
def test_real_cifar_is_split_alike() -> None:
    data = str(REAL / "cifar10")
    task = load_task(Setting(task="cifar10", data=data, limit=50), 0)
    splits = load_splits(data)
    assert len(splits["train"]) == 50_000
    check_parts(task, data, cifar_rows(50_000, len(splits["test"]), 5000, 50))


@pytest.mark.parametrize(
    ("metric", "value", "shown"),
    [
        *(("test_mse", 0.25, "0.2500"), ("test_mse", 1.23456e-7, "1.235e-07"), ("test_mse", 1.23456e300, "1.235e+300")),
        *(("perplexity", 123456.789, "123456.7890"), ("perplexity", 1e9, "1e+09"), ("accuracy", 0.00001, "0.0000")),
    ],
)
def test_a_metric_is_shown_by_few_digits(metric: str, value: float, shown: str) -> None:
    assert format(value, metric_form(metric, value)) == shown
