"""Sequences of a user's own: read, divided, standardized, padded; what is wrong with them is said in one line."""

import json
from collections.abc import Callable
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch.utils.data import Dataset

import fptt
from fptt.experiments.commands.cli import run
from fptt.experiments.commands.defaults import starting_config
from fptt.experiments.configs.config import TrainConfig
from fptt.experiments.process.errors import UserError
from fptt.experiments.tasks import sequences as sequence_task
from fptt.experiments.tasks.batches import Samples, num_samples
from fptt.experiments.tasks.loading import channel_statistics
from fptt.experiments.tasks.registry import load_task
from fptt.experiments.tasks.sequence_files import Columns, read_sequences
from fptt.experiments.tasks.task import Task
from fptt.experiments.training.build import SPIKING, make_model
from fptt.experiments.training.evaluation import measure
from fptt.experiments.training.folder import RunFolder
from tests.experiments.data_sets import sizes

N = 20
LENGTHS = np.array([3 + number % 4 for number in range(N)])
NAMES = np.array(["left", "right"])[np.arange(N) % 2]


def sequences() -> list[np.ndarray]:
    """Return N sequences of 3 to 6 steps of two inputs."""
    generator = np.random.default_rng(0)
    return [generator.normal(5.0, 3.0, (length, 2)) for length in LENGTHS]


def long_form(**columns: np.ndarray) -> pd.DataFrame:
    """Return the table of the sequences, with columns of one value a sequence or a step, its steps back to front."""
    flat = np.concatenate(sequences())
    spread = {name: np.repeat(own, LENGTHS) if len(own) == N else own for name, own in columns.items()}
    time = np.concatenate([np.arange(length) for length in LENGTHS])
    table = pd.DataFrame({"id": np.repeat(np.arange(N), LENGTHS), "time": time, "a": flat[:, 0], "b": flat[:, 1]})
    return table.assign(**spread).iloc[::-1].sort_values("id", kind="stable")


def load(path: Path, **options: Any) -> Task:
    return load_task(TrainConfig(task="sequences", data=str(path), **options), 0)


def write(path: Path, table: pd.DataFrame) -> Path:
    if path.suffix == ".csv":
        table.to_csv(path, index=False)
    else:
        table.to_parquet(path, index=False)
    return path


def samples(part: Dataset[Samples]) -> Samples:
    return part[list(range(num_samples(part)))]


def assert_same_samples(one: Task, other: Task) -> None:
    for name in ("train", "validation", "test"):
        for pair in zip(samples(getattr(one, name)), samples(getattr(other, name)), strict=True):
            assert torch.equal(*pair)


def test_every_kind_of_file_gives_the_same_samples(tmp_path: Path) -> None:
    padded = torch.nn.utils.rnn.pad_sequence([torch.from_numpy(own) for own in sequences()], batch_first=True).numpy()
    padded[0, 3:] = np.nan  # padding is not looked at
    np.savez(tmp_path / "flat.npz", inputs=np.concatenate(sequences()), lengths=LENGTHS, targets=NAMES)
    np.savez(tmp_path / "padded.npz", inputs=padded, lengths=LENGTHS, targets=NAMES[:, None])
    dates = pd.Timestamp("2026-01-31") + pd.to_timedelta(long_form().time, unit="D")
    paths = [
        tmp_path / "flat.npz",
        tmp_path / "padded.npz",
        write(tmp_path / "table.csv", long_form(target=NAMES)),
        write(tmp_path / "table.parquet", long_form(target=NAMES).assign(time=dates)),
        write(tmp_path / "dates.csv", long_form(target=NAMES).assign(time=dates)),
    ]
    spaced = tmp_path / "spaced.csv"
    spaced.write_text(paths[2].read_text().replace(",", ", "))
    first, *others = [load(path) for path in (*paths, spaced)]
    assert (first.input_size, first.output_size, first.class_names) == (2, 2, ("left", "right"))
    assert (first.kind, first.is_ragged, first.has_step_targets, first.training_length()) == ("classes", True, False, 6)
    for other in others:
        assert_same_samples(first, other)
        assert other.fingerprint == first.fingerprint


def test_whole_times_above_what_a_float_tells_apart_keep_their_order(tmp_path: Path) -> None:
    table = long_form(target=NAMES)
    for suffix in (".csv", ".parquet"):
        one = load(write(tmp_path / f"small{suffix}", table))
        other = load(write(tmp_path / f"large{suffix}", table.assign(time=table.time + 2**60)))
        assert_same_samples(one, other)


@pytest.mark.parametrize(
    ("suffix", "time"),
    [
        (".csv", lambda step: 2**70 + step),
        (".csv", lambda step: 2**63 - 2 * 10**20 * (step == 0) + step),
        (".parquet", lambda step: str(2**63 + step)),
        (".parquet", lambda step: Decimal(1_760_000_000_000_000_000 + step)),
        (".parquet", lambda step: Decimal(1_760_000_000) + step * Decimal("0.000000001")),
    ],
)
def test_times_that_no_integer_type_holds_keep_their_order(
    suffix: str, time: Callable[[int], object], tmp_path: Path
) -> None:
    table = long_form(target=NAMES)
    one = load(write(tmp_path / "small.csv", table))
    exact = pd.Series([time(int(step)) for step in table.time], table.index, object)
    assert_same_samples(one, load(write(tmp_path / f"exact{suffix}", table.assign(time=exact))))


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_dates_of_all_years_keep_their_order(kind: str, tmp_path: Path) -> None:
    """In nanoseconds an integer ends in 2262; 9999-12-31 is how databases write that there is no end."""
    found = long_form(target=NAMES)
    years = ["1500", "2026", "2026", "2263", "3000", "9999"]
    dates = [f"{years[time]}-0{1 + time}-15" for time in found.time]
    own = found.assign(time=dates if kind == "csv" else np.array(dates, "datetime64[us]"))
    assert_same_samples(load(write(tmp_path / f"dates.{kind}", own)), load(write(tmp_path / "numbers.csv", found)))


def test_ids_of_a_text_are_what_is_written(tmp_path: Path) -> None:
    """As numbers 1, 01 and 1e0 would be one sequence."""
    path = text("x.csv", "id,a,target\n1,1,p\n01,2,q\n1e0,3,p\n1,4,p\n")(tmp_path)
    found = read_sequences(path, Columns())
    assert found.ids.tolist() == ["1", "01", "1e0"]
    assert found.lengths.tolist() == [2, 1, 1]
    assert read_sequences(path, Columns(), None).ids.tolist() == ["1", "01", "1e0"]
    numbers = read_sequences(text("y.csv", "id,a,target\n7,1,p\n3,2,q\n")(tmp_path), Columns())
    assert numbers.ids.tolist() == [7, 3]


def test_a_group_is_the_same_in_every_file_as_it_is_written(tmp_path: Path) -> None:
    """The persons of one file look like numbers, those of the other do not."""
    text("train.csv", "id,a,target,who\n1,1,p,01\n2,2,q,A\n3,3,q,A\n")(tmp_path)
    text("test.csv", "id,a,target,who\n4,1,p,02\n5,2,q,01\n")(tmp_path)
    with pytest.raises(UserError, match=r"train and test of .* must not share a 'who', got '01' in both"):
        load(tmp_path, group="who")


def test_labels_above_what_an_integer_holds_are_classes_of_their_own(tmp_path: Path) -> None:
    labels = np.array([2**63, 2**63 + 1], np.uint64)[np.arange(N) % 2]
    names = (str(2**63), str(2**63 + 1))
    assert load(write(tmp_path / "x.parquet", long_form(target=labels))).class_names == names
    assert load(arrays(targets=labels)(tmp_path)).class_names == names


def test_a_class_that_training_has_not_is_said(tmp_path: Path) -> None:
    write(tmp_path / "train.csv", long_form(target=NAMES))
    write(tmp_path / "test.csv", long_form(target=np.where(NAMES == "left", "left ", NAMES)))
    assert (load(tmp_path).about or "").endswith("(left, left , right); none to train of (left )")
    write(tmp_path / "test.csv", long_form(target=NAMES))
    assert (load(tmp_path).about or "").endswith("(left, right)")


def test_steps_in_the_order_of_the_file_are_said(tmp_path: Path) -> None:
    table = long_form(target=NAMES)
    assert "in the order of" not in (load(write(tmp_path / "x.csv", table)).about or "")
    assert "in the order of" not in (load(arrays()(tmp_path)).about or "")
    untimed = write(tmp_path / "y.csv", table.drop(columns="time"))
    assert (load(untimed).about or "").endswith("(left, right); no column of times: steps in the order of the file")


def test_equal_times_in_a_sequence_are_said(tmp_path: Path) -> None:
    """Clocks may be coarse; or two recordings share an id, and are read as one sequence."""
    text("train.csv", "id,time,a,target\n3,0,0,p\n1,0,0,q\n1,1,1,q\n1,2,2,q\n1,0,3,q\n1,1,4,q\n1,2,5,q\n")(tmp_path)
    for name in ("validation", "test"):
        text(f"{name}.csv", "id,time,a,target\n4,0,0,p\n5,0,1,q\n")(tmp_path)
    assert (load(tmp_path).about or "").endswith("(p, q); equal times in 1 of 6 sequences (as in row 5)")
    text("test.csv", "id,time,a,target\n4,2026-01-31,0,p\n5,2026-01-31,1,q\n5,2026-01-31T00:00,2,q\n")(tmp_path)
    assert (load(tmp_path).about or "").endswith("equal times in 2 of 6 sequences (as in row 5)")
    assert "equal times" not in (load(write(tmp_path / "x.csv", long_form(target=NAMES))).about or "")
    untimed = long_form(target=NAMES).drop(columns="time")
    assert "equal times" not in (load(write(tmp_path / "x.csv", untimed)).about or "")


def test_the_inputs_of_all_parts_are_read_by_name(tmp_path: Path) -> None:
    table = long_form(target=NAMES)
    for name, order in (("one", ["id", "time", "a", "b"]), ("other", ["b", "unused", "a", "time", "id"])):
        (tmp_path / name).mkdir()
        write(tmp_path / name / "train.csv", table)
        write(tmp_path / name / "test.csv", table.assign(unused="x").reindex(columns=[*order, "target"]))
    assert_same_samples(load(tmp_path / "one"), load(tmp_path / "other"))


def test_a_column_without_a_name_is_no_input(tmp_path: Path) -> None:
    """As pandas writes its index by default: the number of the row gives sorted classes away."""
    table = long_form(target=NAMES)
    table.to_csv(tmp_path / "x.csv")
    named = load(write(tmp_path / "named.csv", table), inputs="b,a")
    assert_same_samples(load(tmp_path / "x.csv", inputs="b,a"), named)


def test_an_index_without_a_name_is_no_input(tmp_path: Path) -> None:
    """As another program writes it that has read the Parquet of pandas."""
    table = long_form(target=NAMES)
    indexed = table.assign(__index_level_0__=np.arange(len(table)))
    assert_same_samples(load(write(tmp_path / "x.parquet", indexed)), load(write(tmp_path / "y.parquet", table)))


@pytest.mark.parametrize("index", [["time"], ["id", "time"], ["time", "target"]], ids=str)
def test_an_index_with_a_name_is_a_column(index: list[str], tmp_path: Path) -> None:
    """It is one in the file, and of the CSV of the same table."""
    table = long_form(target=NAMES)
    table.set_index(index).to_parquet(tmp_path / "x.parquet")
    found = load(tmp_path / "x.parquet")
    assert (found.time_name, found.input_names) == ("time", ("a", "b"))
    assert_same_samples(found, load(write(tmp_path / "y.parquet", table)))


def test_an_index_with_a_name_that_is_no_column_of_the_file_is_no_input(tmp_path: Path) -> None:
    table = long_form(target=NAMES).reset_index(drop=True).rename_axis("row")
    table.to_parquet(tmp_path / "range.parquet")
    table.set_index("time", drop=False).to_parquet(tmp_path / "twice.parquet")
    for name in ("range", "twice"):
        assert load(tmp_path / f"{name}.parquet").input_names == ("a", "b")


@pytest.mark.parametrize("role", ["id", "group"])
def test_a_time_that_is_named_as_something_else_orders_nothing(role: str, tmp_path: Path) -> None:
    table = long_form(target=NAMES).drop(columns="time")
    table = table.assign(group=table.id).rename(columns={role: "time"})
    task = load(write(tmp_path / "x.csv", table), **{"group": "group", role: "time"})
    assert (task.time_name, task.input_names) == (None, ("a", "b"))


def test_the_case_of_a_suffix_does_not_matter(tmp_path: Path) -> None:
    path = write(tmp_path / "x.csv", long_form(target=NAMES))
    for name in ("y.CSV", "Y/train.Csv"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(path.read_bytes())
    first, *others = [load(own) for own in (path, tmp_path / "y.CSV", tmp_path / "Y")]
    for other in others:
        assert_same_samples(first, other)


def test_a_target_a_step_is_the_same_in_every_kind_of_file(tmp_path: Path) -> None:
    targets = np.arange(LENGTHS.sum()) % 3
    targets[4] = -100  # a step that does not count
    np.savez(tmp_path / "flat.npz", inputs=np.concatenate(sequences()), lengths=LENGTHS, targets=targets)
    table = pd.DataFrame({"row": targets}).assign(**long_form().sort_values(["id", "time"]).reset_index(drop=True))
    write(tmp_path / "table.csv", table.rename(columns={"row": "target"}).iloc[::-1].sort_values("id", kind="stable"))
    one, other = load(tmp_path / "flat.npz"), load(tmp_path / "table.csv")
    assert (one.class_names, one.has_step_targets, other.has_step_targets) == ((0, 1, 2), True, True)
    assert_same_samples(one, other)
    found = [samples(part)[1] for part in (one.train, one.validation, one.test)]
    num_ignored = sum(int((own == -100).sum()) for own in found)
    assert num_ignored == sum(own.numel() for own in found) - LENGTHS.sum() + 1


def test_the_training_part_alone_standardizes(tmp_path: Path) -> None:
    """Of 0 and 2 the mean is 1 and the deviation 1: 4 becomes 3, and the target 30 of 10 and 20 becomes 3."""
    for name, x, y in (("train", (0.0, 2.0), (10.0, 20.0)), ("validation", (4.0,), (30.0,)), ("test", (2.0,), (15.0,))):
        table = pd.DataFrame({"id": range(len(x)), "x": x, "target": y})
        write(tmp_path / f"{name}.csv", pd.concat([table, table]))
    task = load(tmp_path, kind="regression")
    assert (task.input_names, task.kind, task.output_size) == (("x",), "regression", 1)
    assert [part[:][0].flatten().unique().tolist() for part in (task.train, task.validation, task.test)] == [
        [-1.0, 1.0],
        [3.0],
        [1.0],
    ]
    assert [part[:][1].tolist() for part in (task.train, task.validation, task.test)] == [
        [[-1.0], [1.0]],
        [[3.0]],
        [[0.0]],
    ]
    score = task.make_score()
    score.add(torch.tensor([[2.0]]), torch.tensor([[3.0]]))
    assert score.metrics() == {"mse": 25.0}  # one deviation, of 5
    assert task.chance == 0.0  # the mean of training, 15, is right


def test_whole_numbers_are_classes_however_they_are_written(tmp_path: Path) -> None:
    """1.0 is 1, 1e+18 is no class; but among the numbers of any file a fraction makes all of them a regression."""
    whole, halves = np.arange(N) % 2, np.arange(N) * 0.5
    tasks = [load(write(tmp_path / f"{own.dtype}.csv", long_form(target=own))) for own in (whole, whole * 1.0)]
    assert [(task.kind, task.class_names) for task in tasks] == [("classes", (0, 1))] * 2
    assert_same_samples(*tasks)  # divided alike too
    for number, (train, test, kind) in enumerate(
        [
            (whole, whole * 1.0, "classes"),
            (whole * 1.0, whole, "classes"),
            (whole, halves, "regression"),
            (halves, whole, "regression"),
            (whole * 1e18, whole, "regression"),
        ]
    ):
        folder = tmp_path / str(number)
        folder.mkdir()
        write(folder / "train.csv", long_form(target=train))
        write(folder / "test.csv", long_form(target=test))
        assert load(folder).kind == kind
    np.savez(tmp_path / "x.npz", inputs=np.concatenate(sequences()), lengths=LENGTHS, targets=whole.astype(np.float32))
    assert load(tmp_path / "x.npz").class_names == (0, 1)
    assert load(tmp_path / "x.npz", kind="regression").kind == "regression"


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        (["1_2", "12"], ("12", "1_2")),
        (["01", "1"], ("01", "1")),
        (["1e1", "10"], ("10", "1e1")),
        (["1", "1.0", "7"], (1, 7)),
        ([str(2**53), str(2**53 + 1), f"{2**53}.0"], (2**53, 2**53 + 1)),
        ([str(2**64), str(2**64 + 1)], (str(2**64), str(2**64 + 1))),
        (["true", "True"], ("True", "true")),
        (["NA", "None"], ("NA", "None")),
    ],
)
def test_different_labels_of_a_text_are_different_classes(
    labels: list[str], names: tuple[int | str, ...], tmp_path: Path
) -> None:
    task = load(write(tmp_path / "data.csv", long_form(target=np.resize(np.array(labels), N))))
    assert (task.kind, task.class_names) == ("classes", names)


def test_decimals_are_labels_as_the_same_numbers(tmp_path: Path) -> None:
    def decimals(*names: str) -> pd.DataFrame:
        return table.assign(**{name: [Decimal(f"{own:.2f}") for own in table[name]] for name in names})

    table = long_form(target=np.arange(N) % 2, who=np.arange(N) // 4)
    write(tmp_path / "test.csv", table)
    train = write(tmp_path / "train.parquet", decimals("id", "target"))
    assert load(tmp_path, inputs="a,b").class_names == (0, 1)
    assert read_sequences(train, Columns()).ids.tolist() == list(range(N))
    write(train, decimals("who"))
    with pytest.raises(UserError, match=r"train and test of .* must not share a 'who', got '0' in both"):
        load(tmp_path, group="who")
    table = table.assign(target=table.id * 0.25)
    assert load(write(tmp_path / "x.parquet", decimals("target"))).kind == "regression"


@pytest.mark.parametrize("factor", [2.0**-40, 2.0**40])
def test_the_scale_of_the_data_does_not_matter(factor: float, tmp_path: Path) -> None:
    """Of small numbers and of large ones the same samples; constants become 0, and are not blown up in other data."""
    targets = np.arange(N) * 0.5
    flat = np.concatenate([np.concatenate(sequences()), np.full((LENGTHS.sum(), 1), 37.3)], -1)
    for name, scale in (("one", 1.0), ("other", factor)):
        np.savez(tmp_path / f"{name}.npz", inputs=flat * scale, lengths=LENGTHS, targets=targets * scale)
    one, other = (load(tmp_path / f"{name}.npz", kind="regression") for name in ("one", "other"))
    assert_same_samples(one, other)
    assert other.scaling is not None
    assert other.scaling.input_deviation[2] == 1.0
    assert one.chance is not None
    assert other.chance == pytest.approx(one.chance * factor**2)
    constant = torch.full((10**5, 1), 37.3)
    for values in (constant, constant.double()):
        assert channel_statistics(values)[1].item() == 1.0
        assert channel_statistics(values + 1e-3 * (torch.arange(10**5) % 2)[:, None])[1].item() < 1e-3


@pytest.mark.parametrize(
    ("targets", "kind", "loss"),
    [
        (NAMES, "classes", fptt.TerminalLoss(torch.nn.functional.cross_entropy)),
        (np.arange(N) * 0.5, "regression", fptt.TerminalLoss(torch.nn.functional.mse_loss)),
        (np.arange(LENGTHS.sum()) % 3, "classes", fptt.SequenceLoss(torch.nn.functional.cross_entropy)),
        (np.arange(LENGTHS.sum()) * 0.5, "regression", fptt.SequenceLoss(torch.nn.functional.mse_loss)),
    ],
)
def test_padding_changes_nothing(targets: np.ndarray, kind: str, loss: fptt.ChunkLoss, tmp_path: Path) -> None:
    """A batch of ragged sequences is trained on and measured as each of them alone."""
    np.savez(tmp_path / "x.npz", inputs=np.concatenate(sequences()), lengths=LENGTHS, targets=targets)
    config = TrainConfig(task="sequences", data=str(tmp_path / "x.npz"), hidden_size=3)
    task = load_task(config, 0)
    assert (task.kind, task.has_step_targets) == (kind, len(targets) > N)
    model = make_model(config, task).double()
    alone, losses, weights = task.make_score(), [], []
    for number in range(num_samples(task.train)):
        inputs, own, (length,) = task.train[[number]]
        outputs = model(inputs[:, :length].transpose(0, 1).double(), None)[0]
        own = own[:, :length].transpose(0, 1) if task.has_step_targets else own
        own = own.double() if kind == "regression" else own
        alone.add(outputs if task.has_step_targets else outputs[-1], own)
        losses.append(loss(outputs, loss.split(own, None, [len(outputs)], 1)[0]).item())
        weights.append(len(outputs) if task.has_step_targets else 1)
    assert measure(model, task, task.train, torch.device("cpu")) == pytest.approx(alone.metrics(), rel=1e-9)
    batch = task.batch(samples(task.train))
    assert batch.inputs.shape[:2] == (6, 14)
    method = fptt.BPTT(model, torch.optim.SGD(model.parameters(), lr=0.0), loss)
    own = batch.targets.double() if kind == "regression" else batch.targets
    result = method.train_batch(batch.inputs.double(), own, mask=batch.mask)
    assert result.loss.item() == pytest.approx(np.average(losses, weights=weights), rel=1e-9)


def test_parts_are_random_and_the_same_for_every_seed_of_a_run(tmp_path: Path) -> None:
    path = write(tmp_path / "table.csv", long_form(target=NAMES, group=np.arange(N) // 2))
    task, again = load(path), load_task(TrainConfig(task="sequences", data=str(path), seed=1), 1)
    assert sizes(task) == [14, 3, 3]
    assert task.fingerprint == again.fingerprint
    assert load(path, split_seed=1).fingerprint != task.fingerprint
    assert [num_samples(part) for part in (load(path, limit=3).train, load(path, limit=3).test)] == [3, 3]
    labels = load(path, inputs="a,b", group=None, split_seed=3).train[list(range(14))][1]
    assert labels.bincount().tolist() == [7, 7]  # as many of every class


def test_no_two_parts_share_a_group(tmp_path: Path) -> None:
    """The input is the group, so that it can be told from the samples."""
    table = long_form(target=NAMES)
    table = table.assign(person=table.id // 2, copy=table.id // 2)
    task = load(write(tmp_path / "table.parquet", table), group="person", inputs="copy")
    assert task.scaling is not None
    found = []
    for part in (task.train, task.validation, task.test):
        inputs, _, lengths = samples(part)
        raw = inputs[torch.arange(len(lengths)), 0, 0] * task.scaling.input_deviation[0] + task.scaling.input_mean[0]
        found.append(set(raw.round().int().tolist()))
    assert [len(own) for own in found] == [6, 2, 2]
    assert set().union(*found) == set(range(10))


@pytest.mark.parametrize(
    ("targets", "kind", "expected"),
    [
        (np.arange(N) % 3, None, ("classes", (0, 1, 2))),
        (np.arange(N) * 0.5, None, ("regression", None)),
        (np.arange(N) % 3, "regression", ("regression", None)),
        (np.arange(N) % 3 * 1.0, "classes", ("classes", (0, 1, 2))),
        (np.arange(N) % 2 == 0, None, ("classes", ("False", "True"))),
        (np.array(["10", "9", "NA", "x"] * 5), None, ("classes", ("10", "9", "NA", "x"))),
    ],
)
def test_the_type_of_the_target_tells_the_kind(
    targets: np.ndarray, kind: Any, expected: tuple[str, Any], tmp_path: Path
) -> None:
    np.savez(tmp_path / "x.npz", inputs=np.concatenate(sequences()), lengths=LENGTHS, targets=targets)
    for path in (tmp_path / "x.npz", write(tmp_path / "x.csv", long_form(target=targets))):
        task = load(path, kind=kind)
        assert (task.kind, task.class_names) == expected


def test_first_settings_are_those_of_the_data(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    np.savez(path, inputs=np.random.default_rng(0).normal(size=(9, 30, 2)), targets=np.arange(9) % 2)
    given = ["--task", "sequences", "--data", str(path)]
    config = starting_config(given)
    assert (config.num_chunks, config.fan_in_init, config.forget_bias, config.lr) == (5, True, 1.0, 5e-3)  # √30 = 5.5
    assert starting_config([*given, "--cell", "gru"]).forget_bias == 0.0
    assert starting_config([*given, "--chrono-init", "9"]).forget_bias == 0.0
    for cell in SPIKING:
        own = replace(starting_config([*given, "--cell", cell]), cell=cell)
        make_model(own, load(path))  # refuses what the cell does not have
    assert starting_config([*given, "--chrono-init", "none", "--limit", "none", "--length", "none"]) == config
    assert starting_config([*given, "--inputs", "inputs"]) == config
    path.unlink()
    with pytest.raises(UserError, match=r"x.npz' does not exist"):
        starting_config(given)
    # with a K of the user's own they are not wanted: a finished comparison is shown without its data
    assert starting_config([*given, "--num-chunks", "3"]) == replace(config, num_chunks=8)


def test_data_are_read_once_and_again_when_they_have_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, out = write(tmp_path / "x.csv", long_form(target=NAMES)), tmp_path / "run"
    read, seen = sequence_task.read_sequences, []

    def counted(file: Path, *others: Any) -> Any:
        seen.append(file)
        return read(file, *others)

    monkeypatch.setattr(sequence_task, "read_sequences", counted)
    monkeypatch.chdir(tmp_path)
    options = ["--hidden-size", "3", "--epochs", "1", "--threads", "1", "--num-chunks", "2"]
    assert run(["train", "--task", "sequences", "--data", "x.csv", "--out", str(out), *options]) == 0
    assert len(seen) == 1
    assert load(path).output_size == load(path).output_size == 2
    assert len(seen) == 1
    assert num_samples(load(path, limit=5).train) == 5
    assert len(seen) == 2
    write(path, long_form(target=np.arange(N) % 3))
    assert load(path, limit=5).output_size == 3


def test_a_run_says_what_it_found_and_keeps_the_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, out = write(tmp_path / "x.csv", long_form(target=NAMES)), tmp_path / "run"
    options = ["--hidden-size", "3", "--epochs", "1", "--threads", "1", "--batch-size", "7"]
    assert run(["train", "--task", "sequences", "--data", str(path), "--out", str(out), *options]) == 0
    found = "sequences: 14 to train, 3 to validate, 3 to test; T = 3 to 6, D = 2 (a, b); 2 classes, one a sequence "
    assert f"{found}(left, right); K = 2\n" in capsys.readouterr().out
    assert RunFolder(out).read_summary()["updates"] == 4  # two batches of two chunks
    assert run(["evaluate", str(out)]) == 0
    printed = capsys.readouterr().out
    assert '"test_recall": {' in printed
    assert '"right": ' in printed
    other = write(tmp_path / "y.csv", long_form(target=np.arange(N) % 3))
    assert run(["evaluate", str(out), "--data", str(other)]) == 2
    assert "are not those that the run was trained on: their output_size is another" in capsys.readouterr().err


def test_a_run_that_does_not_tell_its_times_is_measured_all_the_same(tmp_path: Path) -> None:
    """Runs of earlier versions were in the order of a time too; their interface.json does not name it."""
    path, out = write(tmp_path / "x.csv", long_form(target=NAMES)), tmp_path / "run"
    options = ["--hidden-size", "3", "--epochs", "1", "--threads", "1"]
    assert run(["train", "--task", "sequences", "--data", str(path), "--out", str(out), *options]) == 0
    interface = json.loads((out / "interface.json").read_text())
    assert interface.pop("time_name") == "time"
    (out / "interface.json").write_text(json.dumps(interface))
    assert run(["evaluate", str(out)]) == 0


def test_the_last_digits_of_a_mean_are_not_those_of_other_data(tmp_path: Path) -> None:
    """They are those of the order of a sum, which the number of threads decides."""
    path = write(tmp_path / "x.csv", long_form(target=np.concatenate(sequences()).sum(1)))
    own = load(path).interface
    assert own.input_mean is not None
    shifted = tuple(mean * (1 + 1e-14) for mean in own.input_mean)
    rounded = replace(own, input_mean=shifted, target_deviation=own.target_deviation * (1 - 1e-14))
    assert rounded != own
    assert own.other_field(rounded) is None
    assert own.other_field(replace(own, target_deviation=own.target_deviation * 1.001)) == "target_deviation"
    assert replace(own, target_mean=0.0).other_field(replace(own, target_mean=1e-17)) is None


def test_other_test_data_are_noticed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number, name in enumerate(("train", "validation", "test")):
        kept = long_form(target=NAMES)
        write(tmp_path / f"{name}.csv", kept.loc[kept.id % 3 == number])
    out = tmp_path / "run"
    options = ["--hidden-size", "3", "--epochs", "1", "--threads", "1", "--num-chunks", "1"]
    assert run(["train", "--task", "sequences", "--data", str(tmp_path), "--out", str(out), *options]) == 0
    capsys.readouterr()
    assert run(["evaluate", str(out)]) == 0
    assert "not those of the run" not in capsys.readouterr().out
    changed = pd.read_csv(tmp_path / "test.csv")
    write(tmp_path / "test.csv", changed.assign(a=changed.a + 1))
    assert run(["evaluate", str(out)]) == 0
    expected = "The test data of the task 'sequences' are not those of the run: its summary.json has other figures."
    assert expected in " ".join(capsys.readouterr().out.split())


def test_batches_without_a_target_are_not_part_of_the_training_loss(tmp_path: Path) -> None:
    """A model that is hardly trained holds both classes for as likely; every other sequence has no target."""
    targets = np.arange(4 * N).reshape(N, 4) % 2
    targets[::2] = -100
    np.savez(tmp_path / "x.npz", inputs=np.random.default_rng(0).normal(size=(N, 4, 1)), targets=targets)
    options = ["--method", "tbptt", "--lr", "1e-9", "--epochs", "1", "--batch-size", "1", "--threads", "1"]
    out = ["--engine", "eager", "--data", str(tmp_path / "x.npz"), "--out", str(tmp_path / "run")]
    assert run(["train", "--task", "sequences", *options, *out]) == 0
    (row,) = RunFolder(tmp_path / "run").read_metrics()
    assert row["train_loss"] == pytest.approx(np.log(2), rel=0.2)


def test_a_chunk_without_a_real_step_makes_no_update(tmp_path: Path) -> None:
    """With a sequence a batch and a step a chunk there are as many updates as steps."""
    np.savez(tmp_path / "x.npz", inputs=np.concatenate(sequences()), lengths=LENGTHS, targets=NAMES)
    options = ["--hidden-size", "3", "--epochs", "1", "--threads", "1", "--batch-size", "1", "--num-chunks", "6"]
    out = tmp_path / "run"
    assert run(["train", "--task", "sequences", "--data", str(tmp_path / "x.npz"), "--out", str(out), *options]) == 0
    train = load(tmp_path / "x.npz").train
    assert RunFolder(out).read_summary()["updates"] == train[list(range(14))][2].sum().item() < 6 * 14


def table(change: Callable[[pd.DataFrame], pd.DataFrame], name: str = "x.csv") -> Callable[[Path], Path]:
    return lambda folder: write(folder / name, change(long_form(target=NAMES).reset_index(drop=True)))


def at(column: str, row: int, value: Any, name: str = "x.csv") -> Callable[[Path], Path]:
    """Return a file with another value in a row of a column."""

    def change(found: pd.DataFrame) -> pd.DataFrame:
        found = found.astype({column: object})
        found.loc[row, column] = value
        return found

    return table(change, name)


def text(name: str, content: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        (folder / name).write_text(content, encoding="utf-8")
        return folder / name

    return make


def arrays(**changes: Any) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        own = {"inputs": np.concatenate(sequences()), "lengths": LENGTHS, "targets": NAMES}
        kept: dict[str, Any] = {name: values for name, values in (own | changes).items() if values is not None}
        np.savez(folder / "x.npz", **kept)
        return folder / "x.npz"

    return make


def widths(folder: Path) -> Path:
    write(folder / "train.csv", long_form(target=NAMES))
    write(folder / "test.csv", long_form(target=NAMES).drop(columns="b"))
    return folder


def untimed(part: str) -> Callable[[Path], Path]:
    """Return a folder of two parts, one of which has no times."""

    def make(folder: Path) -> Path:
        for name in ("train", "test"):
            found = long_form(target=NAMES)
            write(folder / f"{name}.csv", found.drop(columns="time") if name == part else found)
        return folder

    return make


def wide_arrays(folder: Path) -> Path:
    for name, width in (("train", 2), ("test", 3)):
        np.savez(folder / f"{name}.npz", inputs=np.ones((4, 5, width)), targets=NAMES[:4])
    return folder


def of_two_kinds(folder: Path) -> Path:
    write(folder / "train.csv", long_form(target=NAMES))
    np.savez(folder / "test.npz", inputs=np.zeros((4, 5, 2)), targets=NAMES[:4])
    return folder


def persons(shared: str | float) -> Callable[[Path], Path]:
    """Return a folder in which a person of the training sequences is in the test too, by its name."""

    def make(folder: Path) -> Path:
        for name, first, last in (("train", 0, 11), ("validation", 12, 15), ("test", 16, 19)):
            found = long_form(target=NAMES)
            found = found[found.id.between(first, last)]
            own = found.id.astype(object if isinstance(shared, str) else float)
            found = found.assign(g=own.map(lambda number: f"p{number}") if isinstance(shared, str) else own)
            found.loc[found.id == 19, "g"] = shared
            write(folder / f"{name}.csv", found)
        return folder

    return make


def lists(folder: Path) -> Path:
    return write(folder / "x.parquet", long_form(target=NAMES).assign(id=[[1, 2]] * int(LENGTHS.sum())))


def infinite_in_test(folder: Path) -> Path:
    found = long_form(target=NAMES)
    write(folder / "train.csv", found)
    found.iloc[1, found.columns.get_loc("a")] = 1e300
    write(folder / "test.csv", found)
    return folder


def immense_targets(part: str, number: float) -> Callable[[Path], Path]:
    """Return a folder with a target in one part that is far from all others."""

    def make(folder: Path) -> Path:
        for name in ("train", "test"):
            found = long_form(target=np.arange(N) + 0.5)
            found.loc[found.id == 3, "target"] = number if name == part else 0.5
            write(folder / f"{name}.csv", found)
        return folder

    return make


def ignored_in_test(folder: Path) -> Path:
    write(folder / "train.csv", long_form(target=np.arange(LENGTHS.sum()) % 3))
    write(folder / "test.csv", long_form(target=np.full(LENGTHS.sum(), -100)))
    return folder


def an_array(folder: Path) -> Path:
    np.save(folder / "x.npy", np.zeros(3))
    return (folder / "x.npy").rename(folder / "x.npz")


def with_nan() -> np.ndarray:
    flat = np.concatenate(sequences())
    flat[4, 1] = np.nan
    return flat


def objects() -> np.ndarray:
    found = np.empty(N, object)
    found[:] = sequences()
    return found


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (lambda folder: folder / "no.csv", {}, "no.csv' does not exist"),
        (table(lambda t: t.drop(columns="id")), {}, "x.csv' must have the column 'id', got time, a, b, target"),
        (table(lambda t: t), {"inputs": "a,c"}, "x.csv' must have the column 'c', got id"),
        (
            table(lambda t: t.drop(columns=["a", "b"])),
            {},
            "must have a column of inputs beside 'id', 'time', 'target'",
        ),
        (at("a", 16, "abc"), {}, "x.csv' must hold numbers in column 'a', got 'abc' in row 17"),
        (at("b", 30, None), {}, "x.csv' must hold numbers in column 'b', got none in row 31"),
        (at("b", 0, np.inf), {}, "x.csv' must hold numbers in column 'b', got inf in row 1"),
        (at("b", 0, "NaN"), {}, "x.csv' must hold numbers in column 'b', got 'NaN' in row 1"),
        (
            at("target", 3, None),
            {},
            "must have a value in every row of column 'target', got none in row 4; steps of the class -100 do not",
        ),
        (at("target", 3, "nan"), {}, "must have a value in every row of column 'target', got none in row 4; steps"),
        (at("target", 3, "nan", "x.parquet"), {}, "a value in every row of column 'target', got none in row 4; steps"),
        (at("id", 2, None), {}, "must have a value in every row of column 'id', got none in row 3"),
        (at("time", 5, "later"), {}, "must hold numbers in column 'time', got 'later' in row 6"),
        (table(lambda t: t.assign(time="a")), {}, "numbers or dates as 2026-01-31 in column 'time', got 'a' in row 1"),
        (table(lambda t: t), {"time": "target"}, "the target 'target' of .* must not be the id, the time or the group"),
        (table(lambda t: t), {"target": "id"}, "the target 'id' of .*x.csv' must not be the id, the time or the group"),
        (arrays(g=NAMES), {"target": "g", "group": "g"}, "the target 'g' of .*x.npz' must not be the id or the group"),
        (table(lambda t: t), {"kind": "regression"}, "must hold numbers in column 'target', got 'left' in row 1"),
        (table(lambda t: t.assign(target=["x", *t.a.astype(str)[1:]])), {}, "column 'target', got 'x' in row 1"),
        (table(lambda t: t.assign(target=t.a)), {"kind": "classes"}, "kind classes needs a target of text or whole"),
        (table(lambda t: t.assign(target="left")), {}, "at least two classes, got left alone as the target in"),
        (table(lambda t: t), {"inputs": "a,target"}, "the target 'target' of .*x.csv' must not be one of the inputs"),
        (arrays(), {"inputs": "lengths", "target": "lengths"}, "the target 'lengths' of .*x.npz' must not be one of"),
        (persons("p3"), {"group": "g"}, "train and test of .* must not share a 'g', got 'p3' in both"),
        (persons(3.0), {"group": "g"}, "train and test of .* must not share a 'g', got '3' in both"),
        (table(lambda t: t.query("id < 2")), {}, "at least 3 sequences, of which validation and test are taken, got 2"),
        (table(lambda t: t.assign(g=t.id < 9)), {"group": "g"}, "at least 3 groups, of which validation and test"),
        (
            table(lambda t: t.assign(g=t.time)),
            {"group": "g"},
            "must have one 'g' a sequence, got another at row 2 of '0'",
        ),
        (
            arrays(inputs=np.zeros((1200, 2)), lengths=None, targets=np.arange(1200)),
            {},
            "at most 1,000 classes, got 1,200",
        ),
        (text("x.csv", ""), {}, "x.csv' is empty"),
        (text("x.csv", "id,a,target\n"), {}, "x.csv' has no rows"),
        (text("x.csv", ",id,a,target\n0,1,2,3\n"), {}, "a name for every column, got none for column 1 .an index of"),
        (text("x.csv", "id,a,a,target\n1,2,3,4\n"), {}, "x.csv' must have the column 'a', got two of them"),
        (text("x.csv", "id,a,target\n1,2,3\n1,2,3,4\n"), {}, "cannot be read: Expected 3 fields in line 3, saw 4"),
        (text("x.csv", "id,a,target\n1,2,3,4\n1,2,3,4\n"), {}, "must have a name for every column in its first line"),
        (text("x.csv", "id,a,target\n1,2,3\n1\n"), {}, "must have a value in every row of column 'target'"),
        (text("x.csv", "id;a;target\n1;2;3\n"), {}, "must have commas between its columns, got ';' in its first line"),
        (
            text("x.csv", "id;a;target\n1;0,5;3\n"),
            {},
            "must have commas between its columns, got ';' in its first line",
        ),
        (lists, {}, "x.parquet' must hold numbers or text in column 'id', got .1 2. in row 1"),
        (infinite_in_test, {}, "of the size of those of training, got 1e.300 in column 'a' at row 2"),
        (ignored_in_test, {}, "the test part of .* must have a step that counts, got the target -100 at all"),
        (an_array, {}, "x.npz' cannot be read: it is no .npz file"),
        (table(lambda t: t.assign(a=t.a * 1e300)), {}, "numbers up to .*e.30. in column 'a'"),
        (
            arrays(targets=np.where(np.arange(N) % 3, 1, -100)),
            {},
            "class -100 is for steps that do not count, got it as",
        ),
        (table(lambda t: t), {"task": "mnist"}, "x.csv' must be a folder of Parquet files .*, got a file"),
        (text("x.xls", "id"), {}, "must be a file of the kinds .npz, .csv, .parquet, got '.xls'"),
        (text("x.npz", "id"), {}, "x.npz' cannot be read: it is no .npz file"),
        (text("x.parquet", "id"), {}, "x.parquet' cannot be read: "),
        (untimed("test"), {}, "test.csv' must have the column 'time', got id, a, b, target"),
        (untimed("train"), {}, "train.csv' must have the column 'time', by which the steps of .*test.csv' are ordered"),
        (
            immense_targets("train", 1e300),
            {},
            "must hold targets with a mean and deviation that .* got numbers up to 1e.300",
        ),
        (immense_targets("test", -1e60), {}, "targets of the size of those of training, got -1e.60 in the test part"),
        (of_two_kinds, {}, "test.npz' must have the inputs of .*train.csv', a, b .D = 2., got D = 2."),
        (widths, {}, "test.csv' must have the column 'b', got id, time, a, target"),
        (wide_arrays, {}, "test.npz' must have the inputs of .*train.npz', D = 2, got D = 3"),
        (lambda folder: folder, {}, "must have one of the files train.npz, train.csv, train.parquet, got none"),
        (
            arrays(inputs=objects(), lengths=None),
            {},
            "an array of objects, which could run any code .* inputs=np.concatenate",
        ),
        (arrays(inputs=with_nan()), {}, "finite numbers in 'inputs', got nan at sequence 1, step 1, column 1"),
        (arrays(inputs=NAMES), {}, "must hold numbers in 'inputs', got <U5"),
        (arrays(inputs=np.zeros(4)), {}, r"must hold sequences \(N, T, D\), .*, got shape \(4,\)"),
        (arrays(lengths=LENGTHS + 1), {}, "'lengths' numbers that sum to the 90 steps of 'inputs', got 110"),
        (arrays(lengths=LENGTHS * 1.0), {}, "one positive whole number a sequence in 'lengths', got float64"),
        (arrays(targets=NAMES[:4]), {}, r"one target a sequence, \(20,\), or a step, \(90,\) or .* got shape \(4,\)"),
        (arrays(targets=None), {}, "must have the array 'targets', got inputs, lengths"),
        (arrays(targets=np.full(N, np.nan)), {}, "must hold finite numbers in 'targets', got nan at sequence 0"),
        (arrays(), {"kind": "regression"}, "must hold numbers in 'targets', got 'left'"),
        (arrays(), {"time": "t"}, "holds arrays: inputs must name one of them, and time none"),
        (arrays(), {"group": "lengths", "id": "inputs"}, "one value a sequence, 20, in 'inputs'"),
        (arrays(g=np.where(np.arange(N) < 5, np.nan, 1)), {"group": "g"}, "every sequence in 'g', got none for 0"),
        (arrays(name=np.arange(N) // 2), {"id": "name"}, "another value for every sequence in 'name', got 0 twice"),
        (table(lambda t: t), {"task": "digits", "data": None, "id": "x"}, "id belongs to the task 'sequences'"),
        (table(lambda t: t), {"data": None}, "sequences are your own: give --data, a file"),
    ],
)
def test_what_is_wrong_with_the_data_is_named(
    make: Callable[[Path], Path], options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    path = make(tmp_path)
    with pytest.raises(UserError, match=message) as error:
        load_task(TrainConfig(**{"task": "sequences", "data": str(path), **options}), 0)
    assert "\n" not in str(error.value)


def test_lanes_make_no_difference_to_bptt(tmp_path: Path) -> None:
    """Nor do chunks, of which there are more here than steps."""
    options = ["train", "--task", "digits", "--limit", "64", "--method", "bptt", "--hidden-size", "3", "--epochs", "1"]
    for lanes in ("together", "staggered"):
        command = [*options, "--num-chunks", "100", "--lanes", lanes, "--threads", "1", "--out", str(tmp_path / lanes)]
        assert run(command) == 0
    one, other = (RunFolder(tmp_path / lanes).read_summary() for lanes in ("together", "staggered"))
    assert one["test_cross_entropy"] == other["test_cross_entropy"]


def test_staggered_lanes_need_sequences_of_equal_length(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--hidden-size", "3", "--epochs", "1", "--threads", "1", "--lanes", "staggered", "--overwrite"]
    command = ["train", "--task", "sequences", "--out", str(tmp_path / "run"), *options]
    assert run([*command, "--data", str(arrays()(tmp_path))]) == 2
    assert "lanes must be together with ragged sequences, got staggered" in capsys.readouterr().err
    equal = np.stack([own[:3] for own in sequences()])
    assert run([*command, "--data", str(arrays(inputs=equal, lengths=None)(tmp_path))]) == 0
