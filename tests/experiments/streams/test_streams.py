import csv
import json
import subprocess
import sys
from collections.abc import Generator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

import fptt
from fptt.experiments.commands.cli import run
from fptt.experiments.configs.config import StreamConfig
from fptt.experiments.process.errors import UserError
from fptt.experiments.streams.baselines import Baseline, LastLabel, MajorityClass, MeanNumber, RiverSoftmax
from fptt.experiments.streams.folder import StreamFolder
from fptt.experiments.streams.learner import StreamLearner, make_learner
from fptt.experiments.streams.recordings import Recordings
from fptt.experiments.streams.scores import Rolling, StreamScores
from fptt.experiments.streams.source import NO_CLASS, Kind, Piece
from fptt.experiments.studies.page import read_results
from fptt.experiments.tasks.hapt import Recording
from fptt.experiments.tasks.scores import IGNORED
from tests.experiments.data_sets import write_splits
from tests.experiments.streams.recordings import recording, write_recordings
from tests.problems import assert_same_weights

T = 60


def pieces(recordings: Sequence[Recording], length: int) -> Generator[Piece, None, None]:
    """Yield recordings in pieces."""
    for signal, classes in recordings:
        for start in range(0, len(signal), length):
            part = slice(start, start + length)
            yield Piece(signal[part], classes[part], range(12), start == 0, part.stop >= len(signal), {}, 0.0)


class MadeUp:
    """A source of recordings."""

    kind: Kind = "classes"
    num_inputs, num_outputs, num_steps, classes = 6, 12, None, range(12)
    about = "recordings, made up"

    def __init__(self, *recordings: Recording) -> None:
        self.recordings, self.start = recordings, {}

    def pieces(self, length: int) -> Generator[Piece, None, None]:
        return pieces(self.recordings, length)

    def figures(self, place: dict) -> dict:
        return place


def go_through(config: StreamConfig, *recordings: Recording) -> tuple[torch.Tensor, fptt.OnlineLearner]:
    """Return the outputs of all steps, each made before its label was learned, and the learner."""
    source, outputs = MadeUp(*recordings), []
    learner = StreamLearner(config, source)
    predict_many = learner.learner.predict_many

    def kept(inputs: torch.Tensor) -> torch.Tensor:
        outputs.append(predict_many(inputs))
        return outputs[-1]

    learner.learner.predict_many = kept
    predictions = [learner.step(piece) for piece in source.pieces(config.chunk_length)]
    assert torch.equal(torch.cat(predictions), torch.cat(outputs).argmax(1))
    return torch.cat(outputs), learner.learner


# -- the learner -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("length", "delay"), [(1, 0), (1, 7), (5, 0), (5, 3), (5, 5), (8, 30), (7, 100)])
def test_no_answer_knows_a_label_before_its_time(length: int, delay: int) -> None:
    config = StreamConfig(chunk_length=length, delay=delay, hidden_size=8)
    one = recording(0, T)
    outputs, _ = go_through(config, one, recording(1, T))
    assert outputs.shape == (2 * T, 12)
    for step in (4, 41):
        if one.classes[step] == IGNORED:
            continue
        changed = one.classes.clone()
        changed[step] = (changed[step] + 1) % 12
        others, _ = go_through(config, Recording(one.signal, changed), recording(1, T))
        same = (outputs == others).all(1)
        assert same[: min(step + delay, T - 1) + 1].all()
        first = int(same.long().argmin())
        assert not same[first:].any()
        assert first <= min(step + delay + 2 * length + (length if delay else 0), T)


@pytest.mark.parametrize(("length", "delay"), [(1, 7), (5, 3), (5, 12), (7, 100)])
def test_late_labels_teach_the_same(length: int, delay: int) -> None:
    recordings = (recording(0, T), recording(1, 23))
    late = go_through(StreamConfig(chunk_length=length, delay=delay, hidden_size=8), *recordings)[1]
    punctual = go_through(StreamConfig(chunk_length=length, hidden_size=8), *recordings)[1]
    assert_same_weights(late.method.model, punctual.method.model)
    assert late.labels == punctual.labels == sum(int((one.classes != IGNORED).sum()) for one in recordings)


def test_a_stream_is_the_loop_of_predict_and_learn() -> None:
    config = StreamConfig(chunk_length=1, hidden_size=8, method="tbptt")
    one = recording(0, T)
    outputs, learner = go_through(config, one)
    by_hand = make_learner(config, 6, 12, range(12))
    for step, (x, y) in enumerate(zip(one.signal, one.classes.tolist(), strict=True)):
        assert by_hand.predict_one(x) == outputs[step].argmax()
        by_hand.learn_one(x, None if y == IGNORED else y)
    assert_same_weights(learner.method.model, by_hand.method.model)
    assert learner.method.regularizer is None


# -- baselines and scores --------------------------------------------------------------------------------------------


def predicted(
    baseline: Baseline, length: int, *targets: Sequence[float], dtype: torch.dtype = torch.long
) -> list[list]:
    """Return the predictions of a baseline for recordings that come in pieces."""
    found = []
    for own in targets:
        recording = Recording(torch.zeros(len(own), 6), torch.tensor(own, dtype=dtype))
        found.append(torch.cat([baseline.predictions(piece) for piece in pieces([recording], length)]).tolist())
    return found


@pytest.mark.parametrize("length", [1, 2, 3, 7])
def test_baselines_by_hand(length: int) -> None:
    first, second = [IGNORED, 3, 3, IGNORED, 5, 5, 5], [2, 2, IGNORED]
    answers = {
        (LastLabel, 0): [[0, 0, 3, 3, 3, 5, 5], [5, 2, 2]],
        (LastLabel, 2): [[0, 0, 0, 0, 3, 3, 3], [5, 5, 5]],
        (LastLabel, 9): [[0] * 7, [5, 5, 5]],
        (MajorityClass, 0): [[0, 0, 3, 3, 3, 3, 3], [5, 5, 5]],
        (MajorityClass, 1): [[0, 0, 0, 3, 3, 3, 3], [5, 5, 5]],
    }
    for (kind, delay), expected in answers.items():
        assert predicted(kind(delay, 6), length, first, second) == expected


@pytest.mark.parametrize("length", [1, 2, 6])
def test_baselines_of_numbers_by_hand(length: int) -> None:
    nan = float("nan")
    numbers = [2.0, nan, 4.0, 9.0, nan, 1.0]
    answers = {
        (LastLabel, 0): [0, 2, 2, 4, 9, 9],
        (LastLabel, 2): [0, 0, 0, 2, 2, 4],
        (MeanNumber, 0): [0, 2, 2, 3, 5, 5],
        (MeanNumber, 3): [0, 0, 0, 0, 2, 2],
    }
    for (kind, delay), expected in answers.items():
        baseline = kind(delay, 1)
        assert predicted(baseline, length, numbers, dtype=torch.float64) == [expected]
        assert baseline.current == (1.0 if kind is LastLabel else 4.0)  # all labels, at the end


@pytest.mark.parametrize("kind", [LastLabel, MajorityClass])
def test_no_class_is_predicted_before_one_is_known(kind: type[Baseline]) -> None:
    """Neither in later pieces, nor at the beginning of another recording."""
    baseline = kind(2, 6, NO_CLASS)
    assert predicted(baseline, 2, [IGNORED] * 5, [3, 3, 3, 3]) == [[NO_CLASS] * 5, [NO_CLASS] * 3 + [3]]


def test_a_tie_goes_to_the_first_class_and_the_majority_may_change() -> None:
    assert predicted(MajorityClass(0, 6), 5, [4, 1, 1, 4, 4]) == [[0, 4, 1, 1, 1]]


def test_rivers_model_is_that_of_rivers_own_evaluation() -> None:
    pytest.importorskip("river", reason="River is not installed: pip install 'fptt[experiments]'")
    from river import evaluate, linear_model, metrics, preprocessing

    one = recording(0, T)
    steps = [
        (dict(enumerate(x)), y) for x, y in zip(one.signal.tolist(), one.classes.tolist(), strict=True) if y != IGNORED
    ]
    for delay in (0, 5):
        model = preprocessing.StandardScaler() | linear_model.SoftmaxRegression()
        classes = torch.tensor([y for _, y in steps])
        signal = torch.tensor([list(x.values()) for x, _ in steps])
        baseline = RiverSoftmax(delay, 12)
        answers = torch.cat([baseline.predictions(piece) for piece in pieces([Recording(signal, classes)], 7)])
        score = evaluate.progressive_val_score(steps, model, metrics.Accuracy(), delay=delay + 1)  # pyright: ignore
        answered = len(steps) - delay - 1  # River leaves the others out
        assert score.get() == pytest.approx((answers == classes)[-answered:].double().mean().item())


def test_rolling_accuracy() -> None:
    rolling = Rolling(10)
    assert np.isnan(rolling.mean)
    for right, count in [(4, 4), (0, 4), (1, 4), (2, 4)]:
        rolling.add(right, count)
    assert (rolling.mean, rolling.count) == (3 / 12, 12)
    rolling.add(10, 10)
    assert rolling.mean == 1


def test_scores_count_labeled_steps_alone() -> None:
    scores = StreamScores(["learner", "other"], "classes", 3, 100)
    given = torch.tensor([0, 1, 2, 0])
    scores.add({"learner": given, "other": torch.tensor([2, 1, 1, 1])}, torch.tensor([0, IGNORED, 2, 1]))
    scores.add({"learner": given, "other": torch.zeros(4, dtype=torch.long)}, torch.full((4,), IGNORED))
    assert (scores.steps, scores.labels) == (8, 3)
    assert scores.rows == [{"step": 4, "learner": 0.666667, "other": 0.333333}]
    assert scores.metrics()["learner"] == {"accuracy": pytest.approx(2 / 3), "macro_f1": pytest.approx((2 / 3 + 1) / 3)}


def test_no_class_is_a_wrong_one() -> None:
    """It is missing to the class that is right, and no other one has it; for the last class too."""
    scores = StreamScores(["learner"], "classes", 3, 100)
    for given, right in [([NO_CLASS, 0, NO_CLASS], [0, 0, 2]), ([2, NO_CLASS], [2, IGNORED])]:
        scores.add({"learner": torch.tensor(given)}, torch.tensor(right))
    assert scores.rows == [{"step": 3, "learner": 0.333333}, {"step": 5, "learner": 0.5}]
    assert scores.metrics()["learner"] == {"accuracy": 2 / 4, "macro_f1": pytest.approx((2 / 3 + 2 / 3) / 2)}


def test_scores_of_numbers_are_squared_errors_over_the_window_and_over_all() -> None:
    scores, nan = StreamScores(["learner"], "regression", 1, 2), float("nan")
    for given, right in [([1.0, 5.0], [3.0, nan]), ([0.0, 7.0], [1.0, 4.0])]:
        scores.add({"learner": torch.tensor(given).double()}, torch.tensor(right).double())
    assert scores.rows == [{"step": 2, "learner": 4.0}, {"step": 4, "learner": 5.0}]
    assert scores.metrics() == {"learner": {"mse": pytest.approx(14 / 3)}}


# -- the command -----------------------------------------------------------------------------------------------------


@pytest.fixture
def data(tmp_path: Path) -> str:
    return write_recordings(tmp_path / "data", {"train": (1500, 700), "test": (900,)})


QUICK = ["--hidden-size", "8", "--window", "500"]


def test_the_summary_of_tbptt_has_none_of_what_fptt_alone_has(tmp_path: Path) -> None:
    """As that of a run; an option that makes no difference is not told as if it had made one."""
    (tmp_path / "x.csv").write_text("a,target\n" + "1,x\n2,y\n" * 20)
    options = ["--task", "table", "--data", str(tmp_path / "x.csv"), "--method", "tbptt", "--alpha", "0.5"]
    assert run(["stream", *options, *QUICK, "--out", str(tmp_path / "out")]) == 0
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert [summary[name] for name in ("alpha", "beta", "form", "coupling")] == [None] * 4
    assert summary["lr"] == 0.01


def test_stream_leaves_a_folder(data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "results" / "stream"
    assert run(["stream", "--data", data, "--out", str(out), "--delay", "10", *QUICK]) == 0
    assert "progressive accuracy" in capsys.readouterr().out
    assert {file.name for file in out.iterdir()} == {"summary.json", "rolling.csv", "rolling.png", "learner.pt"}
    summary = json.loads((out / "summary.json").read_text())
    labeled = sum(int((recording(n, n).classes != IGNORED).sum()) for n in (1500, 700, 900))
    expected = {
        "steps": 3100,
        "labeled_steps": labeled,
        "recordings": 3,
        "status": "finished",
        "updates": summary["updates"],
    }
    assert {name: summary[name] for name in expected} == expected
    assert 0 < summary["updates"] <= 30 + 14 + 18
    assert set(summary["baselines"]) == {"last_label", "majority_class"}
    assert 0 <= summary["accuracy"] <= 1
    assert "data" not in summary
    assert summary["alpha"] == 0.1
    with (out / "rolling.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows] == [1000, 1500, 2200, 3100]
    assert (out / "rolling.png").read_bytes()[:4] == b"\x89PNG"
    learner = make_learner(StreamConfig(hidden_size=8, delay=10), 6, 12, range(12))
    learner.load_state_dict(torch.load(out / "learner.pt", weights_only=True))
    assert (learner.steps, learner.labels) == (3100, labeled)
    with pytest.raises(UserError, match="has no finished run"):
        read_results(out.parent)
    assert run(["stream", "--data", data, "--out", str(out), *QUICK]) == 2
    assert "not empty" in capsys.readouterr().err


def test_a_limit_ends_a_stream_within_a_recording(data: str) -> None:
    recordings = Recordings(StreamConfig(data=data, limit=1600))
    assert recordings.survey().num_steps == 1600
    assert [len(one.signal) for one in recordings] == [1500, 100]
    assert [len(one.classes) for one in recordings] == [1500, 100]  # read again
    assert torch.equal(next(iter(recordings)).classes, recording(1500, 1500).classes)
    assert [len(one.signal) for one in Recordings(StreamConfig(data=data, split="test"))] == [900]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "the stream needs data: give --data FOLDER"),
        (["--data", "./nowhere"], "data folder './nowhere' does not exist"),
        (["--delay", "-1"], "delay must not be negative"),
        (["--chunk-length", "0"], "chunk_length must be positive"),
        (["--beta", "2"], "beta must be at most 1, got 2.0"),
        (["--task", "table"], "a table needs data: give --data FILE"),
        (["--task", "table", "--data", "nowhere.csv"], "data 'nowhere.csv' does not exist"),
        (["--task", "table", "--data", "pyproject.toml"], "of the kinds .csv, .parquet, or - for CSV, got '.toml'"),
        (["--task", "table", "--data", "."], "or - for CSV, got a folder"),
        (["--data", "-"], "data '-' is a table: give --task table with it"),
        (["--data", "FOLDER", "--target", "x"], "target belongs to the task 'table', got it with the task 'hapt'"),
        (["--task", "table", "--split", "test"], "split belongs to the task 'hapt'"),
        (["--task", "table", "--next-rows"], "next_rows belongs to --resume"),
        (["--task", "table", "--next_rows"], "next_rows belongs to --resume"),
    ],
)
def test_errors_are_one_line(options: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["stream", "--out", "/nonexistent/out", *options]) == 2
    assert message in " ".join(capsys.readouterr().err.split())


def test_strange_recordings_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def stream(**columns: list) -> str:
        data = write_splits(tmp_path / str(len(list(tmp_path.iterdir()))), {"train": columns})
        assert run(["stream", "--split", "train", "--data", data, "--out", str(tmp_path / "out"), "--overwrite"]) == 2
        return " ".join(capsys.readouterr().err.split())

    good = np.zeros((5, 6), dtype=np.float32)
    assert "must have the columns signal and label" in stream(signal=[good])
    assert "must hold T × 6 numbers in column signal" in stream(signal=[good[:, :5]], label=[[1] * 5])
    assert "NaN, infinity" in stream(signal=[good + np.inf], label=[[1] * 5])
    assert "one label for every step" in stream(signal=[good], label=[[1] * 4])
    assert "whole numbers from 0 to 12" in stream(signal=[good], label=[[1, 2, 3, 4, 13]])


FLAT = """
import sys, torch, fptt
from fptt.experiments.process.machine import MemoryMeter
torch.set_num_threads(1)
torch.manual_seed(0)
model = fptt.nn.LSTM(6, 16, 12)
loss = fptt.SequenceLoss(torch.nn.functional.cross_entropy)
optimizer = torch.optim.Adam(model.parameters())
method = fptt.FPTT(model, optimizer, loss, chunk_length=50)
learner = fptt.OnlineLearner(method, max_delay=200, classes=range(12), standardize=True)
meter = None
for block in range(1_000_000 // 50):
    if block == 1000:
        meter = MemoryMeter(torch.device("cpu"))
        meter.start()
    inputs = torch.randn(50, 6)
    learner.predict_many(inputs)
    for step in range(50 if block >= 4 else 0):
        learner.learn_delayed((block + step) % 12, 200 - step)
    learner.learn_many(inputs)
    if block % 360 == 359:
        learner.flush()
        learner.reset()
        for _ in range(4):
            learner.learn_many(torch.randn(50, 6))
meter.stop()
assert learner.steps >= 1_000_000
print(100 * (meter.peak / meter.before - 1))
"""


@pytest.mark.slow
def test_memory_is_flat_over_a_million_steps() -> None:
    result = subprocess.run([sys.executable, "-c", FLAT], capture_output=True, text=True, check=True)
    assert float(result.stdout) < 5, result.stdout


def test_a_file_that_cannot_be_written_is_a_user_error(tmp_path: Path) -> None:
    """What was there before stays."""
    folder = StreamFolder(tmp_path)
    folder.write({"steps": 1}, [{"step": 1}], {})
    (tmp_path / "summary.json.new").mkdir()  # stands in the way
    with pytest.raises(UserError, match=r"summary\.json cannot be written"):
        folder.write({"steps": 2}, [{"step": 2}], {})
    assert json.loads(folder.summary_file.read_text()) == {"steps": 1}
