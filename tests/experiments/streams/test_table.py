"""Rows of a table as a stream."""

import json
import math
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from fptt.experiments.commands.cli import INTERRUPTED, run
from fptt.experiments.configs.config import StreamConfig
from fptt.experiments.process.errors import UnreadableError, UserError
from fptt.experiments.streams.folder import StreamFolder
from fptt.experiments.streams.learner import RunningScale, StreamLearner
from fptt.experiments.streams.source import NO_CLASS, Piece
from fptt.experiments.streams.table import Table
from fptt.experiments.tasks.scores import IGNORED, RegressionScore
from tests.experiments.streams.stopped import assert_same_end, call_at, press_ctrl_c

pytestmark = pytest.mark.usefixtures("short_rows")

GAPS = "time,a,b,target\n1,,5,x\n2,1,6,y\n3,2,,\n4,,7,x\n5,3,8,z\n"


def write(folder: Path, text: str | bytes, name: str = "data.csv") -> str:
    path = folder / name
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return str(path)


def read(length: int = 2, *, place: dict | None = None, **setting: Any) -> list[Piece]:
    return list(Table(StreamConfig(task="table", **setting), place).pieces(length))


def values(pieces: Sequence[Piece]) -> tuple[list, list]:
    return torch.cat([one.signal for one in pieces]).tolist(), torch.cat([one.targets for one in pieces]).tolist()


# -- reading -----------------------------------------------------------------------------------------------------------


def test_a_gap_holds_the_latest_value_and_rows_before_the_first_value_are_skipped(tmp_path: Path) -> None:
    pieces = read(data=write(tmp_path, GAPS), missing="hold")
    assert values(pieces) == ([[1, 6], [2, 6], [2, 7], [3, 8]], [0, IGNORED, 1, 2])
    assert [(len(one.targets), one.is_first, one.is_last) for one in pieces] == [
        (2, True, False),
        (2, False, False),
        (0, False, True),
    ]
    assert pieces[-1].names == ["y", "x", "z"]
    table = Table(StreamConfig(task="table", data=str(tmp_path / "data.csv")))
    columns = {"inputs": "a,b", "target": "target", "time": "time"}
    expected = {**columns, "rows": 5, "gaps": 3, "skipped_rows": 1, "classes": ["y", "x", "z"]}
    assert table.figures(pieces[-1].place) == expected


def test_columns_that_are_never_known_in_the_same_row_hold_their_values(tmp_path: Path) -> None:
    pieces = read(data=write(tmp_path, "a,b,target\n1,,x\n,2,y\n3,,x\n,4,y\n"))
    assert values(pieces)[0] == [[1, 2], [3, 2], [3, 4]]


def test_a_column_of_many_digits_keeps_them(tmp_path: Path) -> None:
    pieces = read(data=write(tmp_path, "stamp,target\n1700000000.5,x\n1700000001.5,y\n"))
    assert values(pieces)[0] == [[1700000000.5], [1700000001.5]]


def test_rows_with_a_gap_are_skipped_or_an_error(tmp_path: Path) -> None:
    data = write(tmp_path, GAPS)
    pieces = read(data=data, missing="skip")
    assert values(pieces) == ([[1, 6], [3, 8]], [0, 1])
    assert pieces[-1].place["skipped"] == 3
    with pytest.raises(UnreadableError, match=r"data\.csv' must hold numbers in column 'a', got none in row 1; a new"):
        read(data=data, missing="error")


def test_csv_and_parquet_are_the_same_rows(tmp_path: Path) -> None:
    table = pd.DataFrame({"a": [1.5, math.nan, 3.0], "b": [1, 2, 3], "target": [0.5, math.nan, 2.0]})
    table.to_csv(tmp_path / "t.csv", index=False)
    table.to_parquet(tmp_path / "t.parquet")
    one, other = (read(data=str(tmp_path / f"t.{kind}")) for kind in ("csv", "parquet"))
    assert values(one)[0] == values(other)[0] == [[1.5, 1], [1.5, 2], [3, 3]]
    for found in (one, other):
        targets = torch.cat([piece.targets for piece in found])
        assert targets.dtype == torch.float64
        torch.testing.assert_close(targets, torch.tensor([0.5, math.nan, 2.0]).double(), equal_nan=True)


def test_an_index_without_a_name_is_no_input_unless_it_is_named_as_one(tmp_path: Path) -> None:
    """Pandas writes it into Parquet: the number of the row gives sorted classes away."""
    table = pd.DataFrame({"a": [5, 6, 7], "target": ["x", "y", "x"]})
    table.iloc[[2, 0, 1]].to_parquet(tmp_path / "t.parquet")
    assert values(read(data=str(tmp_path / "t.parquet")))[0] == [[7], [5], [6]]
    pieces = read(data=str(tmp_path / "t.parquet"), inputs="a,__index_level_0__")
    assert values(pieces)[0] == [[7, 2], [5, 0], [6, 1]]


def test_truth_values_are_numbers_among_the_inputs_and_classes_as_the_target(tmp_path: Path) -> None:
    """As in the sequences of `fptt train`."""
    table = pd.DataFrame({"a": [True, False, True], "target": [False, True, False]})
    table.to_csv(tmp_path / "t.csv", index=False)
    table.to_parquet(tmp_path / "t.parquet")
    for kind in ("csv", "parquet"):
        pieces = read(data=str(tmp_path / f"t.{kind}"))
        assert (values(pieces), pieces[-1].names) == (([[1], [0], [1]], [0, 1, 0]), ["False", "True"])


def test_a_space_after_a_comma_is_no_part_of_a_name_or_class(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("a, b, target\n1, 2, x\n3, 4,x\n5,6,y\n")
    pieces = read(data=str(tmp_path / "t.csv"))
    assert values(pieces) == ([[1, 2], [3, 4], [5, 6]], [0, 0, 1])


def test_a_column_that_is_not_used_may_hold_quotes_and_several_lines(tmp_path: Path) -> None:
    data = write(tmp_path, 'a,note,target\n1,"two\nlines, ""quoted""",x\n2,,"y"\n')
    assert values(read(data=data, inputs="a")) == ([[1], [2]], [0, 1])


@pytest.mark.parametrize(
    ("targets", "kind"),
    [
        (["1", "2", "", "1"], "classes"),
        (["1.0", "2.0"], "classes"),
        (["1.5", "2"], "regression"),
        (["x", "1.5", "y"], "classes"),
        (["1.5", "2.5", "slip"], "regression"),
        (["nan", "x"], "classes"),
    ],
)
def test_the_target_tells_what_it_is(targets: list[str], kind: str, tmp_path: Path) -> None:
    data = write(tmp_path, "a,target\n" + "".join(f"1,{target}\n" for target in targets))
    assert Table(StreamConfig(task="table", data=data)).kind == kind
    assert Table(StreamConfig(task="table", data=data, kind="regression")).kind == "regression"


def test_whole_numbers_are_classes_however_they_are_written(tmp_path: Path) -> None:
    """But text that is no plain form of a number is a class of its own, and no whole number is a rounded one."""
    data = write(tmp_path, "a,target\n1,1\n2,1.0\n3,7\n4,01\n5,10\n6,1e1\n7,1_0\n8,-0.0\n9,0\n")
    pieces = read(data=data)
    assert values(pieces)[1] == [0, 0, 1, 2, 3, 4, 5, 6, 6]
    assert pieces[-1].names == [1, 7, "01", 10, "1e1", "1_0", 0]
    large = [2**53, 2**53 + 1, 2**60, 2**60 + 1]
    table = pd.DataFrame({"a": range(4), "target": large})
    table.to_csv(tmp_path / "large.csv", index=False)
    table.to_parquet(tmp_path / "large.parquet")
    for name in ("large.csv", "large.parquet"):
        pieces = read(data=str(tmp_path / name))
        assert (values(pieces)[1], pieces[-1].names) == ([0, 1, 2, 3], large)


def test_the_class_that_does_not_count_is_no_label(tmp_path: Path) -> None:
    """As in the sequences of `fptt train`; a number of a regression counts."""
    data = write(tmp_path, "a,target\n1,-100\n2,3\n3,-100.0\n4,4\n")
    table = pd.DataFrame({"a": range(4), "target": [-100, 3, -100, 4]})
    table.to_parquet(tmp_path / "data.parquet")
    for name in (data, str(tmp_path / "data.parquet")):
        pieces = read(data=name)
        assert (values(pieces)[1], pieces[-1].names) == ([IGNORED, 0, IGNORED, 1], [3, 4])
    assert values(read(data=data, kind="regression"))[1] == [-100.0, 3.0, -100.0, 4.0]


def test_columns_are_chosen_by_name_and_the_time_is_no_input(tmp_path: Path) -> None:
    data = write(tmp_path, "when,c,a,state,time\n2026-01-01T00:00:01,1,2,x,9\n2026-01-01T00:00:02Z,3,4,y,8\n")
    pieces = read(data=data, target="state", time="when", inputs="a, c")
    assert values(pieces)[0] == [[2, 1], [4, 3]]
    with pytest.raises(
        UnreadableError, match=r"must have rows in the order of 'time', got '8' after a later one in row 2"
    ):
        read(data=data, target="state", inputs="a")


def test_a_column_without_a_name_is_left_out_by_the_inputs_and_a_target_called_time_orders_nothing(
    tmp_path: Path,
) -> None:
    data = write(tmp_path, ",a,time\n0,5,2\n1,6,1\n")
    assert values(read(data=data, inputs="a", target="time")) == ([[5], [6]], [0, 1])


def test_an_input_called_time_orders_the_rows_only_if_it_is_named_as_the_time(tmp_path: Path) -> None:
    data = write(tmp_path, "a,time,target\n5,2,0\n6,1,1\n")
    assert values(read(data=data, inputs="a,time"))[0] == [[5, 2], [6, 1]]
    with pytest.raises(UnreadableError, match="must have rows in the order of 'time', got '1' after a later one"):
        read(data=data, inputs="a,time", time="time")


def test_a_place_is_where_the_next_piece_begins(tmp_path: Path) -> None:
    """Also in a skipped row, with a value that is held, and with classes that were numbered before."""
    data = write(tmp_path, GAPS + "6,,,y\n7,9,,x\n8,1,1,y\n")
    whole = read(data=data)
    for number, piece in enumerate(whole[:-1]):
        rest = read(data=data, place=piece.place)
        assert values(rest) == values(whole[number + 1 :])
        assert [one.place for one in rest] == [one.place for one in whole[number + 1 :]]
        assert not any(one.is_first for one in rest)


def test_other_rows_than_those_before_a_place_are_refused(tmp_path: Path) -> None:
    place = read(data=write(tmp_path, GAPS))[1].place
    write(tmp_path, GAPS.replace("2,1,6,y", "2,1,6,z"))
    with pytest.raises(UserError, match=r"first 5 rows of .* must be those that the stream began with, got others"):
        read(data=str(tmp_path / "data.csv"), place=place)
    write(tmp_path, GAPS[: GAPS.index("5,3")])
    with pytest.raises(UserError, match="must be those that the stream began with, got 4 rows"):
        read(data=str(tmp_path / "data.csv"), place=place)


def test_a_limit_counts_steps(tmp_path: Path) -> None:
    pieces = read(data=write(tmp_path, GAPS), limit=3)
    assert values(pieces)[1] == [0, IGNORED, 1]
    assert [one.progress for one in pieces][-1] == 1
    assert pieces[-1].is_last


class Endless:
    """Standard input whose rows stop the test if more of them are read than needed."""

    def __init__(self, text: str) -> None:
        self.buffer = self.lines(text)

    def lines(self, text: str) -> Iterator[bytes]:
        yield from (line.encode() for line in text.splitlines(keepends=True))
        raise AssertionError("a row was read before it was needed")


def test_no_row_is_awaited_for_a_chunk_that_is_full(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", Endless("a,target\n1,x\n2,y\n3,x\n4,y\n"))
    pieces = Table(StreamConfig(task="table", data="-", kind="classes")).pieces(2)
    assert values([next(pieces), next(pieces)]) == ([[1], [2], [3], [4]], [0, 1, 0, 1])


@pytest.mark.parametrize(
    ("text", "setting", "message"),
    [
        ("", {}, "is empty"),
        ("\n\n", {}, "must have a line with the names of its columns"),
        ("a,target\n", {}, "must have rows, got none"),
        ("a,b\n1,2\n", {}, "must have the column 'target', got a, b"),
        ("a;b;target\n1;2;3\n", {}, "must have commas between its columns, got ';' in its first line"),
        ("a;b\n1\n", {"target": "a;b"}, "must have commas between its columns, got ';' in its first line"),
        ("a,target\n1,2\n", {"inputs": "a,c"}, "must have the column 'c', got a, target"),
        ("a,a,target\n1,1,2\n", {}, "must have the column 'a', got two of them"),
        (",a,target\n0,1,2\n", {}, "a name for every column, got none for column 1 .an index of pandas"),
        ("target\n1\n", {}, "must have a column of inputs beside 'target'"),
        ("a,target\n1,2\n", {"inputs": "a,target"}, "target 'target' .* must not be one of the inputs"),
        ("a,target\n1,x\n2,y\nfoo,x\n", {}, "must hold numbers in column 'a', got 'foo' in row 3"),
        ("a,target\n1,x\n1_000,y\n", {}, "must hold numbers in column 'a', got '1_000' in row 2"),
        ("a,target\n1,x\ninf,y\n", {}, r"must hold numbers up to 3.4e\+38 in column 'a', got 'inf' in row 2"),
        ("a,target\n1,x\n-1e39,y\n", {}, r"must hold numbers up to 3.4e\+38 in column 'a', got '-1e39' in row 2"),
        ("a,target\n1,x\n2\n", {}, "must have 2 values in every row, as in its first line, got 1 in row 2"),
        ("a,target\n1,.5\n2,1.5\n3,no\n", {}, "must hold numbers in column 'target', got 'no' in row 3"),
        ("a,target\n1,1\n2,1.5\n", {"kind": "classes"}, "must hold classes, .* got '1.5' in row 2; a new"),
        ("a,target\n1,x\n2,y\n3,z\n", {"max_classes": 2}, "at most 2 classes .* got another, 'z', in row 3; a new"),
        ("a,target\n1,x\n2,x\n", {}, "at least two classes in column 'target', got x alone in 2 rows"),
        ("a,b,target\n1,,x\n2,,y\n", {}, "a number in every column of inputs, got none in 'b' in 2 rows"),
        ("a,b,target\n,,1.5\n", {"kind": "regression"}, "every column of inputs, got none in 'a', 'b' in 1 rows"),
        ("a,b,target\n1,,x\n,2,y\n", {"missing": "skip"}, "a row without a gap, got a gap in each of 2 rows"),
        ("a,target\n1,\n2,\n", {}, "must have a value of 'target' in one of its first 1,000 rows"),
        ("time,a,target\n,1,x\n", {}, "numbers or dates as 2026-01-31 in column 'time', got none in row 1"),
        ('a,target\n1,x\n2,"y\n3,x\n4,y\n', {}, "cannot be read after row 1: unexpected end of data"),
        ('a,target\n1,x\n2,"y\n3,x"\n4,y\n', {}, r"of one line in column 'target', got 'y\\n3,x' in row 2: is a"),
        (b"a,target\n1,x\n2,\xff\n", {}, "cannot be read after row 1: it is no text"),
        (b"\x89PNG\r\n\x1a\n", {}, "cannot be read at its beginning: it is no text"),
        ("a,target\n1," + "x" * 140_000, {}, "cannot be read at its beginning: field larger"),
    ],
)
def test_what_is_wrong_is_named_with_its_place(text: str | bytes, setting: dict, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message) as found:
        read(data=write(tmp_path, text), **setting)
    assert "data.csv" in str(found.value)


def test_standard_input_that_is_closed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", None)  # as Python sets it where a shell says <&-
    with pytest.raises(UserError, match="standard input must be open to read rows from it, got it closed"):
        read(data="-")


def test_a_file_that_is_no_parquet_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data\.parquet' cannot be read: Parquet magic"):
        read(data=write(tmp_path, "hello, world", "data.parquet"))


# -- learning ----------------------------------------------------------------------------------------------------------


def test_numbers_are_scaled_by_what_is_known() -> None:
    scale, numbers = RunningScale(), [3.0, 9.0, -4.0, 5.5]
    for count, number in enumerate(numbers, 1):
        known = np.array(numbers[:count])
        deviation = known.std() if count > 1 else 1.0
        assert scale.add(number) == pytest.approx((number - known.mean()) / deviation)
        assert (scale.mean, scale.deviation) == pytest.approx((known.mean(), deviation))
    assert [RunningScale().add(7.0) for _ in range(2)] == [0.0, 0.0]


def learned(text: str, folder: Path, **setting: Any) -> tuple[list[float], StreamLearner]:
    config = StreamConfig(task="table", data=write(folder, text), hidden_size=4, chunk_length=2, lr=0.05, **setting)
    table = Table(config)
    learner = StreamLearner(config, table)
    return torch.cat([learner.step(piece) for piece in table.pieces(2)]).tolist(), learner


def rows(targets: Sequence[object]) -> str:
    return "a,target\n" + "".join(f"{math.sin(step):.3f},{target}\n" for step, target in enumerate(targets))


@pytest.mark.parametrize("delay", [0, 1, 3, 4])
def test_no_prediction_knows_a_number_or_a_class_before_its_time(delay: int, tmp_path: Path) -> None:
    for targets, other in (([1.5, 2.5, 0.5, 4.5, -1.5, 3.5, 0.5, 2.5, 1.5], 99.5), (list("xyxyzxyzx"), "new")):
        before, _ = learned(rows(targets), tmp_path, delay=delay)
        for step in (1, 4):
            after, _ = learned(rows([*targets[:step], other, *targets[step + 1 :]]), tmp_path, delay=delay)
            # with chunks of 2, the first step that is predicted after the label of `step` has come
            known = step + delay + 1
            assert after[:known] == before[:known]
            if isinstance(other, float) and known + 2 < len(targets):
                assert after[known + 2 :] != before[known + 2 :]


def test_a_class_is_not_predicted_before_its_first_label_and_labels_keep_their_names(tmp_path: Path) -> None:
    predictions, learner = learned(rows(list("xxxxxxyyyyyyzzzz")), tmp_path, delay=1)
    assert predictions[:2] == [NO_CLASS] * 2  # in chunks of 2
    assert set(predictions[2:8]) == {0}  # the y of step 6 is known after the prediction of step 7
    assert learner.learner.state_dict()["targets"]["labels"] == ["x", "y", "z"]
    assert learner.num_classes == 3


def test_a_row_without_a_target_is_predicted_and_not_learned(tmp_path: Path) -> None:
    predictions, learner = learned(rows(["1.5", "", "", "2.5", "", ""]), tmp_path, delay=1)
    assert len(predictions) == 6
    assert (learner.learner.steps, learner.learner.labels, learner.scale.mean) == (6, 2, 2.0)


# -- the command -------------------------------------------------------------------------------------------------------


def test_rows_before_any_label_is_known_are_wrong(tmp_path: Path) -> None:
    """Though the first class has number 0; afterwards it is the only one that is known, and everybody predicts it."""
    pytest.importorskip("river", reason="River is not installed: pip install 'fptt[experiments]'")
    data, out = write(tmp_path, rows(list("xxxxxxyy"))), tmp_path / "out"
    options = ["--delay", "3", "--chunk-length", "2", "--hidden-size", "3", "--baselines", "--out", str(out)]
    assert run(["stream", "--task", "table", "--data", data, *options]) == 0
    summary = json.loads((out / "summary.json").read_text())
    found = {"learner": summary, **summary["baselines"]}
    assert set(found) == {"learner", "last_label", "majority_class", "river_softmax"}
    for metrics in found.values():
        assert metrics["accuracy"] == 2 / 8
        # of x 2 are found, 4 missed, and 2 are y; of y none is found
        assert metrics["macro_f1"] == pytest.approx((2 * 2 / (2 * 2 + 4 + 2) + 0) / 2)


QUICK = ["--hidden-size", "8", "--window", "100", "--delay", "7", "--checkpoint-steps", "200"]


def sensor_rows(count: int) -> str:
    """Return rows with gaps, of which a third has no label."""
    generator = np.random.default_rng(0)
    lines = ["time,heat,load,state,power"]
    for step in range(count):
        state = step // 40 % 3
        heat, load = (f"{value:.3f}" if generator.random() > 0.05 else "" for value in state + generator.normal(size=2))
        has_label = generator.random() > 1 / 3
        lines.append(
            f"{step},{heat},{load},{'abc'[state] if has_label else ''},{f'{2.5 * state:.2f}' if has_label else ''}"
        )
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize("options", [["--target", "state"], ["--target", "power", "--missing", "skip"]], ids=str)
def test_a_resumed_table_ends_as_an_undisturbed_one(
    options: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = write(tmp_path, sensor_rows(900))
    whole, cut = StreamFolder(tmp_path / "whole"), StreamFolder(tmp_path / "cut")
    arguments = ["stream", "--task", "table", "--data", data, "--inputs", "heat,load", *options, *QUICK, "--out"]
    assert run([*arguments, str(whole.path)]) == 0
    with monkeypatch.context() as patch:
        call_at(1, press_ctrl_c, patch)
        assert run([*arguments, str(cut.path)]) == INTERRUPTED
    assert json.loads(cut.summary_file.read_text())["steps"] == 400
    assert run(["stream", "--resume", "--out", str(cut.path)]) == 0
    assert_same_end(whole, cut)
    summary = json.loads(whole.summary_file.read_text())
    assert summary["rows"] == 900
    assert summary["gaps"] > 50
    assert (summary["skipped_rows"] > 50) == ("skip" in options)
    if "state" in options:
        assert summary["classes"] == ["a", "b", "c"]
        assert set(summary["baselines"]) == {"last_label", "majority_class"}
    else:
        assert summary["mse"] >= 0
        assert set(summary["baselines"]) == {"last_label", "mean"}
    assert whole.plot_file.exists()


def test_a_table_that_is_mended_is_resumed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = sensor_rows(500)
    lines = text.splitlines(keepends=True)
    bad = "".join([*lines[:300], "299,oops,1,a,\n", *lines[301:]])
    arguments = ["stream", "--task", "table", "--target", "state", "--inputs", "heat,load", *QUICK, "--data"]
    cut, whole = StreamFolder(tmp_path / "cut"), StreamFolder(tmp_path / "whole")
    assert run([*arguments, write(tmp_path, bad), "--out", str(cut.path)]) == 2
    told = " ".join(capsys.readouterr().err.split())
    assert "must hold numbers in column 'heat', got 'oops' in row 300. To resume when that is mended:" in told
    write(tmp_path, text)
    capsys.readouterr()
    assert run(["stream", "--resume", "--out", str(cut.path)]) == 0
    assert "table: D = 2 (heat, load) in the order of time; target state, classes" in capsys.readouterr().out
    assert run([*arguments, str(tmp_path / "data.csv"), "--out", str(whole.path)]) == 0
    assert_same_end(whole, cut)


class Standard:
    """Standard input with some lines, after which Ctrl-C is pressed while the next one is awaited."""

    def __init__(self, lines: Sequence[str], *, is_endless: bool = False) -> None:
        self.buffer = self.lines(lines, is_endless)

    def lines(self, lines: Sequence[str], is_endless: bool) -> Iterator[bytes]:
        yield from (line.encode() for line in lines)
        if is_endless:
            os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize("is_replayed", [True, False])
def test_standard_input_is_stopped_while_it_is_awaited_and_resumed_in_both_ways(
    is_replayed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = sensor_rows(600)
    lines = text.splitlines(keepends=True)
    arguments = ["--task", "table", "--target", "state", "--inputs", "heat,load", "--kind", "classes", *QUICK]
    whole, cut = StreamFolder(tmp_path / "whole"), StreamFolder(tmp_path / "cut")
    assert run(["stream", *arguments, "--data", write(tmp_path, text), "--out", str(whole.path)]) == 0
    # 480 rows, of which one is skipped: 450 fill a chunk, and 50 of those are not scored yet
    monkeypatch.setattr(sys, "stdin", Standard(lines[:481], is_endless=True))
    assert run(["stream", *arguments, "--data", "-", "--out", str(cut.path)]) == INTERRUPTED
    summary = json.loads(cut.summary_file.read_text())
    assert (summary["status"], summary["steps"], summary["rows"]) == ("interrupted", 450, 451)
    monkeypatch.setattr(sys, "stdin", Standard(lines if is_replayed else [lines[0], *lines[452:]]))
    how = [] if is_replayed else ["--next-rows"]
    assert run(["stream", "--resume", *how, "--out", str(cut.path)]) == 0
    assert_same_end(whole, cut)
    assert json.loads(cut.summary_file.read_text())["rows"] == 600


def test_a_stream_without_any_label_has_no_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write(tmp_path, "a,target\n" + "1,\n2,\n" * 10)
    options = ["--kind", "regression", "--hidden-size", "3", "--chunk-length", "5", "--out", str(tmp_path / "out")]
    assert run(["stream", "--task", "table", "--data", data, *options]) == 0
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert (summary["mse"], summary["labeled_steps"], summary["steps"]) == (None, 0, 20)
    assert "progressive mse unknown" in capsys.readouterr().out
    assert math.isnan(RegressionScore().metrics()["mse"])
