import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Features, Image, Value
from PIL import Image as Pillow

from fptt.experiments.configs.config import Setting
from fptt.experiments.process.errors import UserError
from fptt.experiments.tasks.registry import load_task
from fptt.experiments.tasks.scores import IGNORED
from tests.experiments.data_sets import REAL, needs_data, sizes, write_splits

SUBJECTS = [1, 3, 3, 9, 5, 7, 11, 11]
FITTED = [n for n, subject in enumerate(SUBJECTS) if subject < 7]  # the last three, 7, 9 and 11, validate


def write(folder: Path, train: dict[str, list], test: dict[str, list]) -> str:
    return write_splits(folder, {"train": train, "test": test})


def har_columns(subjects: list[int], seed: int = 0, **changes: Any) -> dict[str, list]:
    draws = np.random.default_rng(seed).normal(3, 2, (len(subjects), 128, 9)).astype(np.float32)
    labels = [n % 6 for n in range(len(subjects))]
    return {"inertial": list(draws), "label": labels, "subject": subjects, **changes}


def hapt_columns(subjects: list[int], steps: int = 25, **changes: Any) -> dict[str, list]:
    draws = np.random.default_rng(0).normal(3, 2, (len(subjects), steps, 6)).astype(np.float32)
    labels = [(np.arange(steps) // 3 % 13).tolist() for _ in subjects]  # 0 0 0 1 1 1 2 … 8
    return {"signal": list(draws), "label": labels, "subject": subjects, **changes}


def test_har_validates_on_the_last_subjects_with_the_scale_of_the_others(tmp_path: Path) -> None:
    train, test = har_columns(SUBJECTS), har_columns([2, 4], seed=1)
    for row, subject in enumerate(SUBJECTS):
        train["inertial"][row][0, 0] = 100 * subject  # tells whose window it is, and upsets the scale
    data = write(tmp_path / "har", train, test)
    task = load_task(Setting(task="har", data=data), 0)
    used = np.stack([train["inertial"][n] for n in FITTED]).astype(np.float64)
    mean, deviation = used.mean((0, 1)), used.std((0, 1))
    marks = [task_part[:][0][:, 0, 0] * deviation[0] + mean[0] for task_part in (task.train, task.validation)]
    assert marks[0].round().tolist() == [100, 300, 300, 500]
    assert marks[1].round().tolist() == [900, 700, 1100, 1100]
    assert task.validation[:][1].tolist() == [3, 5, 0, 1]
    expected = (np.stack(test["inertial"]) - mean) / deviation
    torch.testing.assert_close(task.test[:][0].double(), torch.tensor(expected), rtol=1e-4, atol=1e-5)
    inputs, labels = task.sequences(task.test[[0, 1]])
    assert inputs.shape == (128, 2, task.input_size)
    torch.testing.assert_close(inputs[5, 1].double(), torch.tensor(expected[1, 5]), rtol=1e-4, atol=1e-5)
    assert labels.tolist() == [0, 1]


def test_har_limit_takes_evenly_spaced_windows(tmp_path: Path) -> None:
    data = write(tmp_path / "har", har_columns(SUBJECTS), har_columns([2] * 6))
    whole, part = (load_task(Setting(task="har", data=data, limit=limit), 0) for limit in (None, 3))
    assert sizes(whole) == [4, 4, 6]
    assert sizes(part) == [3, 3, 3]
    assert torch.equal(part.test[:][0], whole.test[[0, 2, 4]][0])


def test_a_constant_signal_is_no_trouble(tmp_path: Path) -> None:
    train = har_columns(SUBJECTS)
    for window in train["inertial"]:
        window[:, 4] = 1.5
    task = load_task(Setting(task="har", data=write(tmp_path / "har", train, har_columns([2]))), 0)
    assert not task.train[:][0][..., 4].any()
    assert task.test[:][0].isfinite().all()


def test_hapt_cuts_recordings_into_segments_with_a_label_for_every_step(tmp_path: Path) -> None:
    train, test = hapt_columns(SUBJECTS), hapt_columns([2])
    data = write(tmp_path / "hapt", train, test)
    task = load_task(Setting(task="hapt", data=data, length=10), 0)
    assert sizes(task) == [12, 12, 3]
    used = np.stack([train["signal"][n] for n in FITTED]).astype(np.float64)
    expected = torch.tensor((test["signal"][0] - used.mean((0, 1))) / used.std((0, 1)))
    inputs, targets = task.test[:]
    torch.testing.assert_close(inputs.view(30, 6)[:25].double(), expected, rtol=1e-4, atol=1e-5)
    assert not inputs.view(30, 6)[25:].any()
    labels = [n // 3 - 1 for n in range(25)]
    assert targets.flatten().tolist() == [*3 * [IGNORED], *labels[3:], *5 * [IGNORED]]
    time_major, step_targets = task.sequences(task.test[[0, 2]])
    assert time_major.shape == (10, 2, 6)
    assert torch.equal(time_major[3, 1], inputs[2, 3])
    assert step_targets[:, 0].tolist() == targets[0].tolist()


def test_hapt_leaves_out_segments_without_labels_and_keeps_subjects_apart(tmp_path: Path) -> None:
    train = hapt_columns(SUBJECTS)
    train["label"] = [[0] * 10 + [1 + n] * 2 + [0] * 13 for n in range(len(SUBJECTS))]  # n tells the recording
    task = load_task(Setting(task="hapt", data=write(tmp_path / "hapt", train, hapt_columns([2])), length=10), 0)
    assert sizes(task)[:2] == [4, 4]
    for part, rows in ((task.train, FITTED), (task.validation, [3, 5, 6, 7])):
        assert part[:][1].tolist() == [[n, n, *8 * [IGNORED]] for n in rows]
    assert task.train[:][0].all()  # none is padding


def test_hapt_knows_all_twelve_classes_and_a_limit(tmp_path: Path) -> None:
    columns = hapt_columns(SUBJECTS, steps=39)
    data = write(tmp_path / "hapt", columns, columns)
    classes = load_task(Setting(task="hapt", data=data, length=39), 0).test[:][1].unique().tolist()
    assert classes == [IGNORED, *range(12)]
    assert sizes(load_task(Setting(task="hapt", data=data, length=10, limit=5), 0)) == [5, 5, 5]
    whole = load_task(Setting(task="hapt", data=data, length=10), 0)
    halved = load_task(Setting(task="hapt", data=data, length=10, limit=16), 0)
    assert torch.equal(halved.test[:][0], whole.test[:][0][::2])


def cifar_columns(count: int, last: np.ndarray) -> dict[str, list]:
    """Return gray images whose brightness goes round, but for the last one."""
    encoded = [png(np.full((32, 32, 3), brightness, dtype=np.uint8)) for brightness in range(250)]
    images = [{"bytes": encoded[n % 250], "path": None} for n in range(count - 1)]
    return {"img": [*images, {"bytes": png(last), "path": None}], "label": [n // 7 % 10 for n in range(count)]}


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Pillow.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def write_cifar(folder: Path, train: int, test: int) -> tuple[str, np.ndarray]:
    last = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    features = Features({"img": Image(), "label": Value("int64")})
    splits = {"train": cifar_columns(train, last), "test": cifar_columns(test, last)}
    return write_splits(folder, splits, features), last


def brightness(part: Any) -> list[int]:
    return part[:][0][:, 31, 31, 2].tolist()


@pytest.mark.parametrize(
    ("standardization", "mean", "deviation"),
    [
        ("published", [0.5, 0.5, 0.5], [0.5, 0.5, 0.5]),
        ("data", [0.49140, 0.48216, 0.44653], [0.24703, 0.24349, 0.26159]),
        ("none", [0.0, 0.0, 0.0], [1.0, 1.0, 1.0]),
    ],
)
def test_cifar10_reads_pixels_row_by_row_in_standard_colors(
    tmp_path: Path, standardization: Any, mean: list[float], deviation: list[float]
) -> None:
    data, last = write_cifar(tmp_path / "cifar10", 10_001, 3)
    task = load_task(Setting(task="cifar10", data=data, standardization=standardization), 0)
    assert sizes(task) == [1, 5000, 5000]
    inputs, labels = task.sequences(task.test[[0, 4999]])
    assert inputs.shape == (1024, 2, 3)
    assert labels.tolist() == [5001 // 7 % 10, 10_000 // 7 % 10]
    for step, row, column in ((0, 0, 0), (1, 0, 1), (32, 1, 0), (1023, 31, 31)):
        expected = torch.tensor((last[row, column] / 255 - np.array(mean)) / np.array(deviation))
        torch.testing.assert_close(inputs[step, 1].double(), expected, rtol=1e-5, atol=1e-5)


def test_cifar10_holds_out_training_images_where_the_test_split_is_partial(tmp_path: Path) -> None:
    data, _ = write_cifar(tmp_path / "cifar10", 10_030, 9999)
    task = load_task(Setting(task="cifar10", data=data, limit=2), 0)
    assert [brightness(part) for part in (task.train, task.validation, task.test)] == [[0, 1], [30, 31], [30, 31]]
    assert task.test[:][1].tolist() == [5030 // 7 % 10, 5031 // 7 % 10]
    assert task.validation[:][1].tolist() == [30 // 7, 31 // 7]


def test_cifar10_tests_on_a_whole_test_split(tmp_path: Path) -> None:
    data, _ = write_cifar(tmp_path / "cifar10", 5040, 10_000)
    task = load_task(Setting(task="cifar10", data=data, limit=41), 0)
    assert brightness(task.train) == list(range(40))
    assert brightness(task.validation) == list(range(40, 81))
    assert brightness(task.test) == list(range(41))


def test_bad_images_are_named(tmp_path: Path) -> None:
    small, _ = write_cifar(tmp_path / "small", 10_000, 5)
    gray = write(tmp_path / "columns", har_columns([1]), har_columns([1]))
    with pytest.raises(UserError, match="train split must have more than 10000 samples, got 10000"):
        load_task(Setting(task="cifar10", data=small), 0)
    with pytest.raises(UserError, match="must have more than 10000 samples, got 1"):
        load_task(Setting(task="cifar10", data=gray), 0)


@pytest.mark.parametrize("task", ["har", "hapt"])
def test_a_task_without_a_hub_id_tells_what_its_folder_must_hold(task: str) -> None:
    with pytest.raises(UserError, match=rf"{task} has no data of its own: give --data FOLDER, .* columns are .*label"):
        load_task(Setting(task=task), 0)


BAD_HAR: dict[str, tuple[dict[str, Any], str]] = {
    "columns": ({"label": None}, "the train split must have the columns inertial and label and subject, got inertial,"),
    "shape": (
        {"inertial": [[[1.0] * 6] * 128] * 8},
        "128 × 9 numbers in column inertial, got float64 of shape (128, 6)",
    ),
    "ragged": ({"inertial": [[[1.0] * 9] * 127 + [[1.0]]] * 8}, "128 × 9 numbers in column inertial: setting an array"),
    "texts": ({"inertial": ["x"] * 8}, "the train split must hold 128 × 9 numbers in column inertial, got <U1"),
    "nan": ({"inertial": [[[np.nan] * 9] * 128] * 8}, "in column inertial, got NaN, infinity"),
    "beyond float32": (
        {"inertial": [[[1e39] * 9] * 128] * 8},
        "inertial, got NaN, infinity or a number that is one",
    ),
    "label": ({"label": [6] * 8}, "whole numbers from 0 to 5 in column label, got int64 from 6 to 6"),
    "text label": ({"label": ["WALKING"] * 8}, "from 0 to 5 in column label, got <U7"),
    "subjects": ({"subject": [1, 1, 1, 2, 2, 2, 3, 3]}, "the train split must have more than 3 subjects, got 3"),
}

BAD_HAPT: dict[str, tuple[dict[str, Any], str]] = {
    "columns": ({"signal": None}, "the train split must have the columns signal and label and subject, got"),
    "shape": ({"signal": [[[1.0] * 9] * 25] * 8}, "T × 6 numbers in column signal, got float64 of shape (25, 9)"),
    "steps": ({"label": [[1] * 24] * 8}, "label for every step in column label, got labels of shape (24,) for a recor"),
    "one label": ({"label": [1] * 8}, "one label for every step in column label, got labels of shape ()"),
    "label": ({"label": [[13] * 25] * 8}, "whole numbers from 0 to 12 in column label, got int64 from 13 to 13"),
    "unlabeled": ({"label": [[0] * 25] * 8}, "the training recordings must have labels from 1 to 12 in column label"),
    "subjects": ({"subject": [1, 1, 1, 2, 2, 2, 3, 3]}, "the train split must have more than 3 subjects, got 3"),
}


@pytest.mark.parametrize("case", BAD_HAR)
def test_bad_windows_are_named(tmp_path: Path, case: str) -> None:
    changes, message = BAD_HAR[case]
    columns = {name: rows for name, rows in har_columns(SUBJECTS, **changes).items() if rows is not None}
    with pytest.raises(UserError, match=re.escape(message)):
        load_task(Setting(task="har", data=write(tmp_path / "har", columns, columns)), 0)


@pytest.mark.parametrize("case", BAD_HAPT)
def test_bad_recordings_are_named(tmp_path: Path, case: str) -> None:
    changes, message = BAD_HAPT[case]
    columns = {name: rows for name, rows in hapt_columns(SUBJECTS, **changes).items() if rows is not None}
    with pytest.raises(UserError, match=re.escape(message)):
        load_task(Setting(task="hapt", data=write(tmp_path / "hapt", columns, columns), length=10), 0)


def test_an_error_in_the_test_split_is_said_to_be_there(tmp_path: Path) -> None:
    har = write(tmp_path / "har", har_columns(SUBJECTS), har_columns([2], label=[-1]))
    hapt = write(tmp_path / "hapt", hapt_columns(SUBJECTS), hapt_columns([2], label=[[0] * 25]))
    with pytest.raises(
        UserError, match="the test split must hold whole numbers from 0 to 5 in column label, got int64"
    ):
        load_task(Setting(task="har", data=har), 0)
    with pytest.raises(UserError, match="the test recordings must have labels"):
        load_task(Setting(task="hapt", data=hapt, length=10), 0)


def test_a_split_that_is_missing_is_named(tmp_path: Path) -> None:
    write_splits(tmp_path, {"train": har_columns(SUBJECTS)})
    for task in ("har", "hapt", "cifar10"):
        with pytest.raises(UserError, match="must have the splits train and test, got train"):
            load_task(Setting(task=task, data=str(tmp_path)), 0)


def test_segments_longer_than_every_recording_are_refused(tmp_path: Path) -> None:
    data = write(tmp_path / "hapt", hapt_columns(SUBJECTS), hapt_columns([2]))
    assert sizes(load_task(Setting(task="hapt", data=data, length=25), 0)) == [4, 4, 1]
    for length in (26, None):
        with pytest.raises(UserError, match=f"length must be at most 25, the longest recording, got {length or 1000}"):
            load_task(Setting(task="hapt", data=data, length=length), 0)


@needs_data
def test_real_cifar10() -> None:
    task = load_task(Setting(task="cifar10", data=str(REAL / "cifar10"), limit=1000, standardization="data"), 0)
    assert task.train[:][1][:10].tolist() == [6, 9, 9, 4, 1, 1, 2, 7, 8, 3]
    assert sizes(task) == [1000, 1000, 1000]
    colors = task.to_sequences(task.train[:][0])
    assert colors.mean((0, 1)).abs().max() < 0.1
    assert (colors.std((0, 1)) - 1).abs().max() < 0.1


@needs_data
def test_real_har() -> None:
    task = load_task(Setting(task="har", data=str(REAL / "har")), 0)
    assert sizes(task) == [5729, 1023, 2690]
    inputs, labels = task.train[:]
    torch.testing.assert_close(inputs.mean((0, 1)), torch.zeros(9), atol=1e-4, rtol=0)
    torch.testing.assert_close(inputs.std((0, 1)), torch.ones(9), atol=1e-4, rtol=0)
    assert labels.unique().tolist() == list(range(6))


@needs_data
def test_real_hapt() -> None:
    task = load_task(Setting(task="hapt", data=str(REAL / "hapt_stream")), 0)
    labeled = [(part[:][1] != IGNORED).sum().item() for part in (task.train, task.validation, task.test)]
    assert labeled[0] + labeled[1] == 578_145
    assert labeled[2] == 237_469
    assert task.train[:][1].unique().tolist() == [IGNORED, *range(12)]
    assert task.train[:][0].shape[1:] == (1000, 6)
