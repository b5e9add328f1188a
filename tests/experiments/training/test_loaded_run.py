"""A run comes back from its folder, and predicts what it was measured to predict."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from fptt.experiments import load_run
from fptt.experiments.commands.cli import run
from fptt.experiments.configs.config import TrainConfig
from fptt.experiments.process.errors import UserError
from fptt.experiments.training.folder import RunFolder
from fptt.experiments.training.loaded_run import LoadedRun
from tests.experiments.tasks.test_sequences import LENGTHS, NAMES, N, long_form, sequences, write

QUICK = ["--hidden-size", "4", "--epochs", "1", "--threads", "1", "--batch-size", "4"]
NUM_STEPS = int(LENGTHS.sum())


def trained(folder: Path, targets: np.ndarray, *options: str) -> tuple[LoadedRun, pd.DataFrame]:
    """Return a run that was trained, validated and tested on the same sequences, and their table."""
    table = long_form().sort_values(["id", "time"]).reset_index(drop=True)
    table["target"] = np.repeat(targets, LENGTHS) if len(targets) == N else targets
    for part in ("train", "validation", "test"):
        write(folder / f"{part}.parquet", table)
    out = folder / "run"
    assert run(["train", "--task", "sequences", "--data", str(folder), "--out", str(out), *QUICK, *options]) == 0
    return load_run(out), table


def test_labels_of_sequences_are_those_that_were_measured(tmp_path: Path) -> None:
    loaded, table = trained(tmp_path, NAMES, "--lr", "0.05")
    assert (loaded.class_names, loaded.config.task, loaded.model.training) == (("left", "right"), "sequences", False)
    found = loaded.predict(sequences())
    assert np.mean(found == NAMES) == pytest.approx(loaded.summary["test_accuracy"])
    probabilities = loaded.predict_proba(sequences())
    assert probabilities.sum(1) == pytest.approx(np.ones(N))
    own = probabilities[np.arange(N), (NAMES == "right").astype(int)]
    assert -np.log(own).mean() == pytest.approx(loaded.summary["test_cross_entropy"], rel=1e-5)
    frame = loaded.predict(table.drop(columns="target").iloc[::-1])
    assert frame.id.tolist() == list(range(N))[::-1]  # in the order of their first rows
    assert frame.prediction.tolist() == found.tolist()[::-1]
    assert frame.probability_left.to_numpy()[::-1] == pytest.approx(probabilities[:, 0])


def test_numbers_have_the_units_of_the_data(tmp_path: Path) -> None:
    targets = 1000.5 + 50.0 * np.arange(N)  # whole numbers would be classes
    loaded, _ = trained(tmp_path, targets)
    found = loaded.predict([torch.from_numpy(own) for own in sequences()])
    assert found.shape == (N,)
    assert np.mean((found - targets) ** 2) == pytest.approx(loaded.summary["test_mse"], rel=1e-5)
    assert loaded.class_names is None
    with pytest.raises(UserError, match="predict_proba is for classes"):
        loaded.predict_proba(sequences())


@pytest.mark.parametrize("kind", ["classes", "regression"])
def test_predictions_of_steps_stand_in_the_rows_of_the_table(kind: str, tmp_path: Path) -> None:
    targets = np.arange(NUM_STEPS) % 3 if kind == "classes" else np.arange(NUM_STEPS) * 0.5
    loaded, table = trained(tmp_path, targets, "--lr", "0.05")
    shuffled = table.sample(frac=1.0, random_state=1)
    frame = loaded.predict(shuffled)
    assert frame.index.equals(shuffled.index)
    assert (frame.id == shuffled.id).all()
    assert (frame.step == shuffled.time).all()
    if kind == "classes":
        assert (frame.prediction == shuffled.target).mean() == pytest.approx(loaded.summary["test_accuracy"])
    else:
        mse = ((frame.prediction - shuffled.target) ** 2).mean()
        assert mse == pytest.approx(loaded.summary["test_mse"], rel=1e-5)
    in_order = frame.sort_index().prediction.to_numpy()
    ragged = loaded.predict(sequences())
    assert [len(own) for own in ragged] == LENGTHS.tolist()
    assert np.concatenate(ragged) == pytest.approx(in_order, rel=1e-6)
    assert loaded.predict(np.stack([own[:3] for own in sequences()])).shape == (N, 3)


def test_the_command_writes_what_python_returns(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    loaded, table = trained(tmp_path, NAMES)
    new = write(tmp_path / "new.csv", table.drop(columns="target").iloc[::-1])
    np.savez(tmp_path / "new.npz", inputs=np.concatenate(sequences()), lengths=LENGTHS)
    for name in ("p.csv", "p.parquet"):
        assert run(["predict", str(tmp_path / "run"), "--data", str(new), "--out", str(tmp_path / name)]) == 0
        assert f"{N} predictions: {tmp_path / name}" in capsys.readouterr().out.replace("\n", " ").replace("  ", " ")
    frame = loaded.predict(table)
    written = pd.read_parquet(tmp_path / "p.parquet").sort_values("id", ignore_index=True)
    pd.testing.assert_frame_equal(written, frame, rtol=1e-6)
    pd.testing.assert_frame_equal(
        pd.read_csv(tmp_path / "p.csv").sort_values("id", ignore_index=True), frame, rtol=1e-6
    )
    for path in (tmp_path / "new.npz", str(tmp_path / "new.npz")):
        assert loaded.predict_file(path).prediction.tolist() == frame.prediction.tolist()
    command = ["predict", str(tmp_path / "run"), "--data", str(new)]
    assert run([*command, "--out", str(tmp_path / "p.txt")]) == 2
    assert run([*command, "--out", str(tmp_path / "no" / "p.csv")]) == 2
    narrow = write(tmp_path / "narrow.csv", table.drop(columns="b"))
    assert run(["predict", str(tmp_path / "run"), "--data", str(narrow), "--out", str(tmp_path / "p.csv")]) == 2
    errors = capsys.readouterr().err
    assert "out must be a file of the kinds .csv, .parquet, got" in errors
    assert "p.csv cannot be written" in errors
    assert "narrow.csv' must have the column 'b', got id, time, a, target" in errors


def test_predictions_need_the_times_that_training_had(tmp_path: Path) -> None:
    """Without them the steps would be in the order of the rows, and the answer silently another one."""
    loaded, table = trained(tmp_path, NAMES)
    with pytest.raises(UserError, match="'x' must have the column 'time', got id, a, b"):
        loaded.predict(table.drop(columns=["time", "target"]))


def test_a_target_called_time_does_not_order_the_steps(tmp_path: Path) -> None:
    """Neither in training nor where the rows to predict have it."""
    table = long_form().drop(columns="time")
    table["time"] = table.a - table.b
    out = tmp_path / "run"
    data = ["--data", str(write(tmp_path / "x.csv", table)), "--target", "time"]
    assert run(["train", "--task", "sequences", *data, "--out", str(out), *QUICK]) == 0
    loaded = load_run(out)
    assert loaded.interface.time_name is None
    pd.testing.assert_frame_equal(loaded.predict(table), loaded.predict(table.drop(columns="time")))


@pytest.mark.parametrize("time", [None, "time"])
def test_an_input_called_time_orders_the_steps_only_if_it_is_named_as_the_time(
    time: str | None, tmp_path: Path
) -> None:
    """In training, and in the order in which the steps of the rows to predict are numbered."""
    table = long_form(target=NAMES[np.arange(NUM_STEPS) % 2])
    options = ["--inputs", "a,time", "--data", str(write(tmp_path / "x.csv", table)), "--out", str(tmp_path / "run")]
    options += [] if time is None else ["--time", time]
    assert run(["train", "--task", "sequences", *options, *QUICK]) == 0
    loaded = load_run(tmp_path / "run")
    assert (loaded.interface.time_name, loaded.interface.input_names) == (time, ("a", "time"))
    steps = loaded.predict(table).step
    assert np.array_equal(steps, table.time) is (time == "time")
    assert (steps.groupby(table.id).diff().dropna() == (1 if time is None else -1)).all()


def test_of_two_columns_of_a_name_none_is_taken(tmp_path: Path) -> None:
    loaded, table = trained(tmp_path, NAMES)
    twice = pd.concat([table, 100 * table[["a"]]], axis=1)
    with pytest.raises(UserError, match="'x' must have the column 'a', got two of them"):
        loaded.predict(twice)
    twice = pd.concat([table, table[["target"]]], axis=1)  # which is not needed
    pd.testing.assert_frame_equal(loaded.predict(twice), loaded.predict(table))


def test_inputs_far_from_zero_are_predicted_as_they_were_measured(tmp_path: Path) -> None:
    """A mean of 1.7e9, as of times in seconds, is 64 away from the next float32."""
    far = [own + 1.7e9 for own in sequences()]
    table = long_form().sort_values(["id", "time"]).reset_index(drop=True)
    table = table.assign(a=np.concatenate(far)[:, 0], b=np.concatenate(far)[:, 1], target=np.repeat(NAMES, LENGTHS))
    for part in ("train", "validation", "test"):
        write(tmp_path / f"{part}.parquet", table)
    out = tmp_path / "run"
    assert run(["train", "--task", "sequences", "--data", str(tmp_path), "--out", str(out), *QUICK]) == 0
    loaded = load_run(out)
    own = loaded.predict_proba(far)[np.arange(N), (NAMES == "right").astype(int)]
    assert -np.log(own).mean() == pytest.approx(loaded.summary["test_cross_entropy"], rel=1e-5)


def test_ids_of_arrays_are_those_of_the_file(tmp_path: Path) -> None:
    arrays: dict[str, Any] = {"signals": np.concatenate(sequences()), "lengths": LENGTHS}
    names = np.array([f"s{number}" for number in range(N)])
    np.savez(tmp_path / "x.npz", **arrays, targets=NAMES, name=names)
    out, options = tmp_path / "run", ["--id", "name", "--inputs", "signals", *QUICK]
    assert run(["train", "--task", "sequences", "--data", str(tmp_path / "x.npz"), "--out", str(out), *options]) == 0
    loaded = load_run(out)
    found = loaded.predict_file(tmp_path / "x.npz")
    assert found.name.tolist() == names.tolist()
    np.savez(tmp_path / "y.npz", **arrays)
    with pytest.raises(UserError, match=r"y.npz' must have the array 'name', got signals, lengths"):
        loaded.predict_file(tmp_path / "y.npz")
    # the inputs of a table are all of its columns that are left
    other = loaded.predict(long_form().rename(columns={"id": "name"}))
    assert other.prediction.tolist() == found.prediction.tolist()


@pytest.mark.parametrize("name", ["prediction", "step", "probability_0"])
def test_ids_are_kept_whatever_their_name(name: str, tmp_path: Path) -> None:
    table = long_form(target=np.arange(NUM_STEPS) % 2).rename(columns={"id": name})
    out = tmp_path / "run"
    command = ["train", "--task", "sequences", "--data", str(write(tmp_path / "x.csv", table)), "--id", name, *QUICK]
    assert run([*command, "--out", str(out)]) == 0
    found = load_run(out).predict(table)
    assert (found.id == table[name]).all()
    assert list(found) == ["id", "step", "prediction", "probability_0", "probability_1"]


@pytest.mark.parametrize("link", [None, "link.csv"])
def test_predictions_do_not_replace_what_they_are_made_of(
    link: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The file of the inputs, by its own name or by that of a link to it, and the files of the run."""
    data, folder = tmp_path / "own.csv", RunFolder(tmp_path / "run")
    folder.create(TrainConfig(task="sequences", data="elsewhere.csv"))
    metrics = folder.metrics_file
    for file in (data, metrics):
        file.write_text("mine")
    if link is not None:
        (tmp_path / link).symlink_to(data)
    cases = [(data if link is None else tmp_path / link, data), (metrics, metrics)]
    for out, file in cases:
        command = ["predict", str(tmp_path / "run"), "--data", str(data), "--out", str(out)]
        assert run(command) == 2
        told = " ".join(capsys.readouterr().err.split())
        assert f"out must be another file than {file}, which the predictions would replace." in told
        assert file.read_text() == "mine"


@pytest.mark.parametrize("options", [["predict", "--data", "new.csv"], ["export"]], ids=["predict", "export"])
def test_a_missing_folder_for_a_file_is_named_before_anything_is_made(
    options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "missing" / ("model.pt2" if options == ["export"] else "predictions.csv")
    assert run([*options, str(tmp_path / "run"), "--out", str(out)]) == 2
    assert f"out {out} cannot be written: there is no folder {out.parent}" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("data", ["data.csv", "folder"])
def test_predictions_do_not_replace_what_the_run_was_trained_on(
    data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / (data if data == "data.csv" else "folder/train.csv")
    for own in (file, RunFolder(tmp_path / "run").config_file):
        own.parent.mkdir(exist_ok=True)
        own.write_text(TrainConfig(task="sequences", data=str(tmp_path / data)).to_yaml())
    before = file.read_text()
    assert run(["predict", str(tmp_path / "run"), "--data", str(tmp_path / "new.csv"), "--out", str(file)]) == 2
    assert f"out must be another file than {file}" in " ".join(capsys.readouterr().err.split())
    assert file.read_text() == before


def test_averages_and_tasks_of_the_program_come_back_too(tmp_path: Path) -> None:
    out = tmp_path / "digits"
    assert run(["train", "--task", "digits", "--limit", "64", "--out", str(out), *QUICK]) == 0
    weights, averages = load_run(out), load_run(str(out), averages=True)
    images = np.random.default_rng(0).random((3, 64, 1))
    assert weights.class_names == tuple(range(10))
    assert set(weights.predict(images).tolist()) <= set(range(10))
    assert np.array_equal(weights.predict(images[..., 0]), weights.predict(images))
    assert not np.allclose(weights.predict_proba(images), averages.predict_proba(images))
    with torch.no_grad():
        outputs, _ = weights.model(torch.from_numpy(images).float().transpose(0, 1), None)
    assert weights.predict_proba(images) == pytest.approx(outputs[-1].softmax(-1).numpy(), rel=1e-5)
    (out / "interface.json").unlink()  # a run of a version before there was one
    assert np.array_equal(load_run(out).predict_proba(images), weights.predict_proba(images))


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (np.zeros((2, 5, 3)), r"x must have 1 inputs a step, got 3"),
        ("x.csv", "x must be sequences, got the path 'x.csv': predict_file reads files"),
        (np.zeros(4), r"x must be sequences \(N, T, D\), .*, got shape \(4,\)"),
        ([np.zeros((2, 1)), np.zeros((2, 2))], r"the same D, got shapes \(2, 1\), \(2, 2\)"),
        ([], "got shapes none"),
        ([np.zeros((0, 1))], r"got shapes \(0, 1\)"),
        (np.full((1, 2, 1), np.nan), "'x' must hold finite numbers in 'inputs', got nan at sequence 0, step 0"),
        (np.array([["a"]]), "'x' must hold numbers in 'inputs', got <U1"),
        ([[[1, 2], [3]]], "x must be arrays of numbers, or a list of them: setting an array element"),
        (np.full((1, 2, 1), 1e300), "x must hold inputs of the size of those of training, got 1e.300 in column 0 at"),
    ],
)
def test_what_cannot_be_predicted_is_named(x: Any, message: str, digits: LoadedRun) -> None:
    with pytest.raises(UserError, match=message):
        digits.predict(x)


def test_tensors_of_all_types_are_arrays(digits: LoadedRun) -> None:
    inputs = torch.ones(2, 64, 1)
    for dtype in (torch.bfloat16, torch.float16, torch.float64, torch.int64, torch.bool):
        assert np.array_equal(digits.predict_proba(inputs.to(dtype)), digits.predict_proba(inputs))


@pytest.mark.parametrize(("name", "message"), [("no.csv", "no.csv' does not exist"), ("", "got a folder")])
def test_a_file_that_is_not_there_is_named(name: str, message: str, digits: LoadedRun, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        digits.predict_file(tmp_path / name)


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> LoadedRun:
    out = tmp_path_factory.mktemp("digits") / "run"
    assert run(["train", "--task", "digits", "--limit", "64", "--out", str(out), *QUICK]) == 0
    return load_run(out)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("[]", "it does not hold an object"),
        (
            "{}",
            "kind must be 'classes' or 'regression', got nothing; input_size must be a valid integer, got nothing; ",
        ),
        (
            '{"kind": "x", "input_size": 2, "output_size": 2}',
            "got 'x'; has_step_targets must be a valid boolean, got no",
        ),
        ('{"kind": "x"}', "kind must be"),
        ("{", "Expecting property name"),
    ],
)
def test_a_damaged_interface_is_named(content: str, reason: str, tmp_path: Path) -> None:
    loaded, _ = trained(tmp_path, NAMES)
    assert loaded.interface.input_names == ("a", "b")
    (tmp_path / "run" / "interface.json").write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=f"is damaged: interface.json cannot be read .*{reason}"):
        load_run(tmp_path / "run")


def test_a_language_model_comes_back_with_its_tokens(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("to be or not to be " * 30, encoding="utf-8")
    data, out = tmp_path / "text.txt", tmp_path / "run"
    options = ["--length", "10", "--num-chunks", "2", "--embedding-size", "3", *QUICK, "--batch-size", "2"]
    assert run(["train", "--task", "text", "--data", str(data), "--out", str(out), *options]) == 0
    loaded = load_run(out)
    assert loaded.vocabulary is not None
    assert loaded.model(torch.zeros(2, 1, dtype=torch.long), None)[0].shape == (2, 1, len(loaded.vocabulary))
    table = pd.DataFrame({"x": [1.0]})  # which lacks an id: that is not what is wrong
    table.to_csv(tmp_path / "x.csv", index=False)
    for predict in (
        lambda: loaded.predict(np.zeros((1, 2, 1))),
        lambda: loaded.predict(table),
        lambda: loaded.predict_proba(table),
        lambda: loaded.predict_file(tmp_path / "x.csv"),
    ):
        with pytest.raises(UserError, match="got a run of a text, text: see fptt sample"):
            predict()
