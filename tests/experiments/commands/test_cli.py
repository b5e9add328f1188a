import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from rich.console import Console

from fptt.experiments.commands.cli import INTERRUPTED, run
from fptt.experiments.commands.defaults import starting_config
from fptt.experiments.commands.runs import Train
from fptt.experiments.commands.runs import parse as parse_runs
from fptt.experiments.configs.recipes import RECIPES, read_config, recipe, task_config
from fptt.experiments.process.errors import UserError
from fptt.experiments.studies.comparison import Comparison
from fptt.experiments.studies.contenders import parse_methods
from fptt.experiments.training import loop
from fptt.experiments.training.folder import RunFolder
from fptt.experiments.training.run import Run
from tests.experiments.training.test_resume import interrupt_at
from tests.forks import Fork

QUICK = ["--epochs", "2", "--limit", "128", "--hidden-size", "8", "--threads", "1"]


def train(out: Path, *options: str) -> dict[str, Any]:
    assert run(["train", "--out", str(out), *QUICK, *options]) == 0
    return RunFolder(out).read_summary()


@pytest.mark.parametrize("method", ["bptt", "tbptt", "fptt"])
def test_train_leaves_a_whole_folder_and_evaluate_reproduces_its_figure(
    method: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    summary = train(out, "--method", method)
    expected = {"config.yaml", "metrics.csv", "summary.json", "interface.json", "model.safetensors", "curves.png"}
    expected.add("README.md")
    assert {file.name for file in out.iterdir()} == expected | ({"averages.safetensors"} if method == "fptt" else set())
    updates = 4 if method == "bptt" else 32
    found = {name: summary[name] for name in ("task", "method", "epochs", "batches", "updates", "timesteps", "status")}
    assert found == {
        "task": "digits",
        "method": method,
        "epochs": 2,
        "batches": 4,
        "updates": updates,
        "timesteps": 2 * 128 * 64,
        "status": "finished",
    }
    assert summary["form"] == ("paper" if method == "fptt" else None)
    assert summary["seconds"] > 0
    assert summary["peak_memory_bytes"] > 2**20
    assert summary["num_parameters"] == 4 * 8 * (1 + 8 + 2) + 8 * 10 + 10
    assert summary["torch"] == torch.__version__
    rows = RunFolder(out).read_metrics()
    assert [row["updates"] for row in rows] == [updates // 2, updates]
    assert summary["validation_accuracy"] == max(row["validation_accuracy"] for row in rows)
    assert (out / "curves.png").read_bytes()[:4] == b"\x89PNG"
    capsys.readouterr()
    assert run(["evaluate", str(out)]) == 0
    assert json.loads(capsys.readouterr().out)["test_accuracy"] == summary["test_accuracy"]


def test_the_same_seed_gives_the_same_weights_and_config_is_rerunnable(tmp_path: Path) -> None:
    train(tmp_path / "a", "--alpha", "0.25", "--readout-sizes", "6", "5")
    assert run(["train", "--config", str(tmp_path / "a" / "config.yaml"), "--out", str(tmp_path / "b")]) == 0
    train(tmp_path / "c", "--seed", "1")
    one, other, third = (RunFolder(tmp_path / name) for name in "abc")
    assert one.read_config() == other.read_config()
    assert one.read_config().readout_sizes == (6, 5)
    for name, weight in one.read_weights().items():
        assert torch.equal(weight, other.read_weights()[name])
    assert not torch.equal(one.read_weights()["rnn.weight_hh_l0"], third.read_weights()["rnn.weight_hh_l0"])


def test_the_config_of_an_earlier_run_is_read_as_that_run_read_it(tmp_path: Path) -> None:
    """Before there was the field, MNIST was not standardized; a file of the user's own has the recipe's value."""
    config = yaml.safe_load(task_config("mnist").to_yaml())
    del config["standardization"]
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    arguments = ["--config", str(tmp_path / "config.yaml")]
    assert starting_config(arguments).standardization == "published"
    for name in ("summary.json", "metrics.csv"):
        (tmp_path / name).touch()
        assert starting_config(arguments) == RunFolder(tmp_path).read_config()
        assert starting_config(arguments).standardization == "none"
        (tmp_path / name).unlink()


def test_none_is_said_in_both_ways(capsys: pytest.CaptureFixture[str]) -> None:
    for text in ("none", "None"):
        parsed = parse_runs("train", ["--max-norm", text, "--limit", text, "--id", text])
        assert isinstance(parsed, Train)
        assert (parsed.run.max_norm, parsed.run.limit) == (None, None)
    with pytest.raises(SystemExit):
        parse_runs("train", ["--limit", "1.5"])
    printed = capsys.readouterr()
    assert "--limit: it must be a whole number or None, got '1.5'" in printed.out + printed.err


def test_budgets_of_updates_and_seconds(tmp_path: Path) -> None:
    summary = train(tmp_path / "updates", "--epochs", "None", "--max-updates", "20")
    assert summary["updates"] == 24  # three batches of eight chunks
    assert train(tmp_path / "seconds", "--epochs", "None", "--max-seconds", "0.3")["seconds"] >= 0.3


def test_a_folder_is_not_overwritten_unless_asked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    assert run(["train", "--out", str(tmp_path), *QUICK]) == 2
    assert "not empty" in capsys.readouterr().err
    assert [file.name for file in tmp_path.iterdir()] == ["notes.txt"]
    train(tmp_path, "--overwrite")
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_a_run_that_ended_while_the_data_were_loaded_is_not_overwritten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def loaded(*arguments: Any) -> Run:
        folder.write_summary({"status": "finished"})
        return Run(*arguments)

    folder = RunFolder(tmp_path)
    monkeypatch.setattr(loop, "Run", loaded)
    assert run(["train", "--out", str(tmp_path), *QUICK]) == 2
    assert "is not empty: give another folder, or --overwrite" in " ".join(capsys.readouterr().err.split())
    assert folder.read_summary() == {"status": "finished"}


@pytest.mark.parametrize(
    ("command", "files"),
    [
        (["train", *QUICK], {"README.md": "# Mine\n", "config.yaml": "color: red\n"}),
        (["train", *QUICK], {"model.onnx": "mine", "summary.json": '{"mine": 1}'}),
        (["stream", "--task", "table", "--target", "y", "--data", "own.csv"], {"summary.json": '{"mine": 1}'}),
    ],
    ids=["train", "train-2", "stream"],
)
def test_only_files_of_an_earlier_run_are_overwritten(
    command: list[str],
    files: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """--overwrite in the folder of a project, which never was a run."""
    monkeypatch.chdir(tmp_path)
    files = {**files, "own.csv": "x,y\n" + "0.5,0\n0.25,1\n" * 40}
    for name, text in files.items():
        Path(name).write_text(text)
    for out in (".", ""):
        assert run([*command, "--overwrite", "--out", out]) == 2
        told = " ".join(capsys.readouterr().err.split())
        assert "out . has a file " in told
        assert f"but no config, summary or checkpoint of `fptt {command[0]}`: give another folder" in told
    assert {file.name: file.read_text() for file in tmp_path.iterdir()} == files


@pytest.mark.parametrize("left", ["config.yaml", "summary.json", "checkpoint-000001.pt.damaged"])
def test_what_is_left_of_a_run_can_be_overwritten(left: str, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.create(task_config("digits"))
    folder.write_summary({"status": "interrupted"})
    (tmp_path / "checkpoint-000001.pt.damaged").touch()
    for file in set(tmp_path.iterdir()) - {tmp_path / left}:
        file.unlink()
    folder.metrics_file.touch()
    folder.create(task_config("digits"))
    assert [file.name for file in tmp_path.iterdir()] == ["config.yaml"]


def test_adding_is_a_regression(tmp_path: Path) -> None:
    summary = train(tmp_path / "run", "--task", "adding", "--length", "20")
    assert 0 < summary["test_mse"] < 5
    assert RunFolder(tmp_path / "run").read_config().num_chunks == 10


def comparison_of(out: Path, methods: str, *options: Any) -> Comparison:
    """Return a comparison all of whose runs are in a folder already."""
    config = next((out / "equal-epochs").rglob("config.yaml"))
    comparison = Comparison(read_config(config), parse_methods(methods), options[0], out, *options[1:])
    comparison.run(Console(quiet=True), 1)
    return comparison


@pytest.mark.usefixtures("forked_runs")
def test_compare_resumes_and_reports_three_budgets(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["compare", "--seeds", "1", "--jobs", "2", "--out", str(tmp_path), *QUICK]
    assert run(command) == 0
    rows = comparison_of(tmp_path, "bptt,tbptt,fptt", [0]).rows()
    assert len(rows) == 9
    assert {(row["budget"], row["method"]) for row in rows} == {
        (budget, method) for budget in ("epochs", "updates", "seconds") for method in ("bptt", "tbptt", "fptt")
    }
    by_key = {(row["budget"], row["method"]): row for row in rows}
    assert by_key["epochs", "bptt"]["updates"] == 4
    assert by_key["updates", "bptt"]["epochs"] == 16
    assert by_key["updates", "bptt"]["updates"] == by_key["epochs", "fptt"]["updates"] == 32
    assert by_key["updates", "tbptt"]["seconds"] == by_key["epochs", "tbptt"]["seconds"]  # the same run
    assert (tmp_path / "curves.png").exists()
    assert "paired differences at equal seconds" in capsys.readouterr().out
    assert (tmp_path / "compare.md").read_text().count("| FPTT-8 − TBPTT-8 | 1 |") == 3
    times = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("summary.json")}
    assert len(times) == 3 + 1 + 2
    assert run(command) == 0
    assert "3 runs, 3 of them are finished already" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("summary.json")} == times
    assert run([*command, "--lr", "0.5"]) == 2
    assert "holds a finished run with lr 0.002, not 0.5" in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("summary.json")} == times


def compare_data(data: Path, *options: str) -> int:
    """Run a comparison of one run on a file of sequences into the folder `out` beside it."""
    size = ["--hidden-size", "3", "--epochs", "1", "--threads", "1", "--num-chunks", "1", "--seeds", "1"]
    command = ["compare", "--task", "sequences", "--methods", "tbptt", "--budgets", "epochs", *size]
    return run([*command, "--out", str(data.parent / "out"), "--data", str(data), *options])


@pytest.mark.usefixtures("forked_runs")
def test_a_finished_run_of_other_data_is_not_that_of_these(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Other data of the same shape and mean, there or at another place; the same data at another place are the same."""

    def write(name: str, order: list[int]) -> Path:
        """Write sequences of three steps in an order of their own, which no mean shows."""
        values = (np.arange(60) % 7).reshape(20, 3)[:, order].ravel()
        table = pd.DataFrame({"id": np.repeat(np.arange(20), 3), "x": values})
        table.assign(target=table.id % 2).to_csv(tmp_path / name, index=False)
        return tmp_path / name

    one, same, other = write("one.csv", [0, 1, 2]), write("same.csv", [0, 1, 2]), write("other.csv", [0, 2, 1])
    folder = RunFolder(tmp_path / "out" / "equal-epochs" / "tbptt-seed-0")
    assert compare_data(one) == 0
    first = folder.read_summary()
    capsys.readouterr()
    assert compare_data(same) == 0
    assert "1 runs, 1 of them are finished already" in capsys.readouterr().out
    assert compare_data(other) == 2
    message = f"tbptt-seed-0 holds a finished run of other data than {other} now: give another folder, or --overwrite"
    assert message in capsys.readouterr().err
    write("one.csv", [2, 1, 0])
    assert compare_data(one) == 2
    assert folder.read_summary() == first
    assert compare_data(other, "--overwrite") == 0
    assert folder.read_summary()["data"] != first["data"]


@pytest.mark.usefixtures("forked_runs")
def test_a_finished_run_of_data_in_other_units_is_not_that_of_these(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Standardized, they are the same."""
    table = pd.DataFrame({"id": np.repeat(np.arange(20), 3), "x": np.arange(60) % 7})
    for factor in (0.25, 0.125):
        table.assign(target=table.id * factor).to_csv(tmp_path / "x.csv", index=False)
        code = compare_data(tmp_path / "x.csv")
    assert code == 2
    assert "holds a finished run of other data than" in capsys.readouterr().err


@pytest.mark.usefixtures("forked_runs")
def test_overwrite_resumes_an_interrupted_run_unless_its_data_have_changed(tmp_path: Path) -> None:
    data, folder = tmp_path / "x.csv", RunFolder(tmp_path / "out" / "equal-epochs" / "tbptt-seed-0")
    command = ["train", "--config", str(folder.config_file), "--out", str(folder.path), "--overwrite"]
    overwrite = ("--epochs", "3", "--overwrite")
    table = pd.DataFrame({"id": np.repeat(np.arange(20), 3), "x": np.arange(60) % 7})
    marked = []
    for values in (table.x, table.x, table.x[::-1].to_numpy()):
        table.assign(x=values, target=table.id % 2).to_csv(data, index=False)
        assert compare_data(data, *overwrite) == 0
        marked.append(folder.read_metrics()[0]["seconds"] == 1e6)
        with pytest.MonkeyPatch.context() as patch:
            interrupt_at(1, patch)
            assert run(command) == INTERRUPTED
        # a row that stays if the run goes on
        pd.read_csv(folder.metrics_file).assign(seconds=1e6).to_csv(folder.metrics_file, index=False)
    assert marked == [False, True, False]


@pytest.mark.usefixtures("forked_runs")
def test_an_interrupted_run_goes_on_where_its_data_are_now(tmp_path: Path) -> None:
    before, after = tmp_path / "x.csv", tmp_path / "y.csv"
    folder = RunFolder(tmp_path / "out" / "equal-epochs" / "tbptt-seed-0")
    table = pd.DataFrame({"id": np.repeat(np.arange(20), 3), "x": np.arange(60) % 7})
    table.assign(target=table.id % 2).to_csv(before, index=False)
    assert compare_data(before, "--epochs", "3") == 0
    with pytest.MonkeyPatch.context() as patch:
        interrupt_at(1, patch)
        command = ["train", "--config", str(folder.config_file), "--out", str(folder.path), "--overwrite"]
        assert run(command) == INTERRUPTED
    pd.read_csv(folder.metrics_file).assign(seconds=1e6).to_csv(folder.metrics_file, index=False)
    before.rename(after)
    assert compare_data(after, "--epochs", "3") == 0
    assert folder.read_metrics()[0]["seconds"] == 1e6  # it has not begun anew
    assert folder.read_config().data == str(after)


@pytest.mark.usefixtures("forked_runs")
def test_compare_takes_means_over_seeds_and_mends_a_damaged_run(tmp_path: Path) -> None:
    command = ["compare", "--methods", "bptt", "--seeds", "2", "--budgets", "epochs", "--out", str(tmp_path), *QUICK]
    assert run(command) == 0
    (tmp_path / "equal-epochs" / "bptt-seed-0" / "summary.json").write_text("{")
    assert run(command) == 0
    assert len(RunFolder(tmp_path / "equal-epochs" / "bptt-seed-0").read_metrics()) == 2
    (row,) = comparison_of(tmp_path, "bptt", [0, 1], ["epochs"]).rows()
    paths = [tmp_path / "equal-epochs" / f"bptt-seed-{seed}" for seed in (0, 1)]
    accuracies = [RunFolder(path).read_summary()["test_accuracy"] for path in paths]
    assert row["test_accuracy_mean"] == pytest.approx(sum(accuracies) / 2)
    assert row["test_accuracy_sd"] == pytest.approx(abs(accuracies[0] - accuracies[1]) / 2**0.5)


@pytest.mark.usefixtures("forked_runs")
def test_controls_are_made_resumed_and_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """64 sequences in batches of 16, three chunks each: 12 updates an epoch; in batches of 5, 13."""
    command = ["compare", "--methods", "tbptt,fptt", "--controls", "rate=0.5,bptt-small-batches", *QUICK]
    command += ["--limit", "64", "--batch-size", "16", "--num-chunks", "3", "--seeds", "1", "--budgets", "updates"]
    command += ["--out", str(tmp_path)]
    assert run(command) == 0
    found = {path.parent.relative_to(tmp_path).as_posix(): path for path in tmp_path.rglob("summary.json")}
    assert set(found) == {
        *(f"equal-epochs/{name}-seed-0" for name in ("tbptt", "fptt", "tbptt-rate-0.5", "bptt-small-batches")),
        "equal-updates/bptt-small-batches-seed-0",
    }
    summaries = {name: json.loads(path.read_text()) for name, path in found.items()}
    names = ("method", "num_chunks", "batch_size", "lr", "updates")
    assert [[summaries[name][field] for field in names] for name in sorted(found)] == [
        ["bptt", 3, 5, 0.002, 26],
        ["fptt", 3, 16, 0.002, 24],
        ["tbptt", 3, 16, 0.001, 24],
        ["tbptt", 3, 16, 0.002, 24],
        ["bptt", 3, 5, 0.002, 24],
    ]
    printed = capsys.readouterr().out
    assert "paired differences at equal updates" in printed
    table = (tmp_path / "compare.md").read_text()
    for name in ("TBPTT-3, lr × 0.5", "BPTT-3, batches of 5"):
        assert f"| epochs | {name} |" in table
        assert f"| FPTT-3 − {name} | 1 |" in table
    times = {path: path.stat().st_mtime_ns for path in found.values()}
    found["equal-epochs/tbptt-rate-0.5-seed-0"].write_text("{")
    assert run(command) == 0
    changed = {path.parent.name for path, time in times.items() if path.stat().st_mtime_ns != time}
    assert changed == {"tbptt-rate-0.5-seed-0"}


def test_an_interrupted_comparison_loses_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Ctrl-C in the terminal, which reaches the whole group: the run under way saves what it needs, no other starts.

    That run is a process of its own; the comparison, and the runs that it makes in the end, are forked.
    """
    options = ["compare", "--methods", "tbptt", "--seeds", "2", "--budgets", "epochs", "--hidden-size", "8"]
    command = [*options, "--threads", "1", "--limit", "256", "--out", str(tmp_path / "study")]
    long = [sys.executable, "-m", "fptt", *command, "--epochs", "2000"]
    process = Fork(long, stdout=subprocess.PIPE, stderr=subprocess.PIPE, process_group=0)
    first, second = (RunFolder(tmp_path / "study" / "equal-epochs" / f"tbptt-seed-{seed}") for seed in (0, 1))
    deadline = time.monotonic() + 120
    while not first.metrics_file.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)
    process.communicate(timeout=120)
    assert process.returncode == 130
    assert first.read_summary()["status"] == "interrupted"
    assert first.can_resume(first.read_config())
    assert not second.path.exists()
    assert run([*command, "--epochs", "1"]) == 2
    assert "holds an interrupted run with epochs 2000, not 1" in capsys.readouterr().err
    assert run([*command, "--epochs", "1", "--overwrite"]) == 0
    assert {first.read_summary()["status"], second.read_summary()["status"]} == {"finished"}
    assert (tmp_path / "study" / "curves.png").exists()


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_leaves_a_usable_folder(sent: signal.Signals, tmp_path: Path) -> None:
    out = tmp_path / "run"
    command = [sys.executable, "-m", "fptt", "train", "--out", str(out), *QUICK, "--epochs", "100000"]
    process = Fork(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    metrics = out / "metrics.csv"
    deadline = time.monotonic() + 60
    while not (metrics.exists() and metrics.read_text().count("\n") > 3) and time.monotonic() < deadline:
        time.sleep(0.05)
    os.kill(process.pid, sent)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "interrupted" in errors
    assert "Traceback" not in errors
    assert RunFolder(out).read_summary()["status"] == "interrupted"
    assert run(["evaluate", str(out)]) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["dance"], "unknown command 'dance'; there are train, evaluate, predict, export, push, pull, sample"),
        (["train", "--task", "sudoku"], "unknown task 'sudoku'; there are digits, adding, copy"),
        (["compare", "--methods", "bptt,rtrl"], "methods must be one of bptt, tbptt, fptt, bptt-losses, got 'rtrl'"),
        (["compare", "--controls", "rate=2"], "a rate of controls must be a part of the learning rate, in (0, 1), got"),
        (["compare", "--controls", "slower"], "unknown control 'slower'; there are rate=PART,PART,… and bptt-small-"),
        (["compare", "--controls", "rate=0.5", "--methods", "tbptt"], "methods must have it, got controls tbptt-rate"),
        (["compare", "--seeds", "0"], "seeds must be positive, got 0"),
        (["ablate", "--over", "alpha", "--jobs", "0"], "jobs must be positive, got 0"),
        (["sample", "out/text", "--num-tokens", "0"], "num_tokens must be positive, got 0"),
        (["sample", "out/text", "--temperature", "-0.5"], "temperature must not be negative, got -0.5"),
        (["sample", "out/text", "--temperature", "nan"], "temperature must be a finite number, got nan"),
        (["sample", "out/text", "--seed", "2147483648"], "seed must be less than 2,147,483,648, got 2147483648"),
        (["train", "--num-chunks", "65"], "num_chunks must be at most the sequence length 64, got 65"),
        (["train", "--alpha", "-1"], "alpha must not be negative, got -1"),
        (["train", "--beta", "0"], "beta must be positive, got 0"),
        (["train", "--dropout", "1"], "dropout must be less than 1, got 1"),
        (["train", "--dropout", "0.5"], "dropout is for language models only, got 0.5 with digits"),
        (["train", "--seed", "2147483648"], "seed must be less than 2,147,483,648, got 2147483648"),
        (
            ["train", "--task", "adding", "--by", "row"],
            "by belongs to the tasks 'digits', 'mnist', got it with the task",
        ),
        (
            ["train", "--threshold", "1"],
            "threshold is for the cells lif, alif, liquid-lif only, got 1.0 with the cell lstm",
        ),
        (
            ["train", "--cell", "lif", "--forget-bias", "1"],
            "forget_bias is not for spiking neurons, got 1.0 with the cell",
        ),
        (["train", "--task", "ptb-word", "--cell", "alif", "--data", "text"], "text"),
        (["train", "--recipe", "smnist", "--task", "digits"], "recipe smnist is of the task mnist, got task digits"),
        (["train", "--recipe", "soup"], "unknown recipe 'soup'; there are digits, digits-per-step"),
        (["train", "--lr-factor", "1"], "lr_factor must be less than 1, got 1"),
        (
            ["train", "--lr-factor", "0.9"],
            "lr_factor belongs to the schedule steps or plateau, got lr_factor 0.9 with cosine.",
        ),
        (
            ["compare", "--recipe", "ptb-300-small", "--schedule", "steps", "--plateau-epochs", "3"],
            "plateau_epochs belongs to the schedule plateau, got plateau_epochs 3 with steps.",
        ),
        (
            ["train", "--max-rollbacks", "2"],
            "max_rollbacks belongs to the on_bad_number rollback, got max_rollbacks 2 with raise.",
        ),
        (["compare", "--budgets", "joules"], "budgets must be one of epochs, updates, seconds, got 'joules'"),
        (["compare", "--budgets", "epochs,epochs"], "budgets must not repeat, got epochs,epochs"),
        (["ablate", "--over", "weather"], "weather"),
        (["report", "--results", "nowhere"], "nowhere"),
        (["report", "--out", "page.md"], "out must be a folder, for results.md and figures/, got 'page.md'"),
        (["sample", "nowhere"], "run folder nowhere does not exist"),
        (["train", "--limit", "0"], "limit must be positive, got 0"),
        (["train", "--epochs", "None"], "epochs, max_updates and max_seconds are all None"),
        (
            ["train", "--form", "released", "--coupling", "decoupled", "--previous-gradient", "recomputed"],
            "previous_grad",
        ),
        (["train", "--task", "adding", "--length", "1"], "length must be at least 2"),
        (["train", "--permuted"], "permuted belongs to the task 'mnist', got it with the task 'digits'"),
        (["train", "--length", "9"], "length belongs to the tasks 'adding', 'copy'"),
        (["train", "--momentum", "0.9"], "momentum belongs to the optimizer sgd"),
        (["train", "--readout-sizes", "0"], "an entry of readout_sizes must be positive, got 0"),
        (["compare", "--epochs", "None", "--max-seconds", "1"], "a comparison needs epochs"),
        (["train", "--accelerator", "abacus"], "accelerator 'abacus'"),
        (["evaluate", "nowhere"], "run folder nowhere does not exist"),
    ],
    ids=str,
)
def test_slips_are_one_clear_line(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(arguments) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.startswith("fptt: ")
    assert captured.err.count("\n") == 1
    assert not list(tmp_path.rglob("*.yaml"))


def test_wrong_choices_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        run(["train", "--method", "rtrl"])
    assert stop.value.code == 2
    assert "'bptt', 'tbptt', 'fptt'" in " ".join(capsys.readouterr().err.replace("│", "").split())


def test_diverging_training_says_where_and_keeps_the_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    options = ["--optimizer", "sgd", "--lr", "1e30", "--max-norm", "None", "--cell", "rnn", "--readout-sizes", "8", "8"]
    assert run(["train", "--out", str(out), *QUICK, *options]) == 2
    assert "in chunk" in capsys.readouterr().err
    assert RunFolder(out).read_summary()["status"] == "failed"


def test_help_teaches(capsys: pytest.CaptureFixture[str]) -> None:
    assert run([]) == 0
    assert "first steps" in capsys.readouterr().out
    for command, text in (("train", "--num-chunks"), ("evaluate", "--averages"), ("compare", "--seeds")):
        with pytest.raises(SystemExit) as stop:
            run([command, "--help"])
        assert stop.value.code == 0
        assert text in capsys.readouterr().out


def test_damaged_folders_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    train(out)
    folder = RunFolder(out)
    whole = {file: file.read_bytes() for file in out.iterdir()}

    def message_after(file: Path, content: bytes | None) -> str:
        file.unlink() if content is None else file.write_bytes(content)
        assert run(["evaluate", str(out)]) == 2
        file.write_bytes(whole[file])
        return capsys.readouterr().err

    assert "model.safetensors cannot be read" in message_after(folder.weights_file, b"garbage")
    assert "model.safetensors cannot be read" in message_after(folder.weights_file, None)
    assert "config.yaml cannot be read" in message_after(folder.config_file, None)
    assert "config.yaml cannot be read" in message_after(folder.config_file, b"\xff\xfe: [")
    assert "one field a line" in message_after(folder.config_file, b"- 1\n- 2\n")
    assert "unknown fields: colour" in message_after(folder.config_file, whole[folder.config_file] + b"colour: red\n")
    larger = whole[folder.config_file].replace(b"hidden_size: 8", b"hidden_size: 9")
    assert "weights and config do not fit" in message_after(folder.config_file, larger)
    assert run(["evaluate", str(out), "--averages"]) == 0


@pytest.mark.parametrize(
    ("name", "value"),
    [("epochs", "many"), ("lr", "fast"), ("permuted", 3), ("cell", "mlp"), ("readout_sizes", 5), ("limit", 2.5)],
)
def test_values_of_the_wrong_type_in_a_config_are_named(name: str, value: Any, tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    values = {**yaml.safe_load(task_config("digits").to_yaml()), name: value}
    path.write_text(yaml.safe_dump(values))
    with pytest.raises(UserError, match=f"{name} must be"):
        read_config(path)


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_survive_yaml(name: str, tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(recipe(name).config.to_yaml())
    assert read_config(path) == recipe(name).config


def test_a_config_written_by_hand_is_filled_from_its_tasks_recipe(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("task: mnist\nlr: 1e-4\n")
    config = read_config(path)
    assert (config.lr, config.num_chunks, config.batch_size) == (1e-4, task_config("mnist").num_chunks, 64)


def test_methods_are_parsed() -> None:
    assert [contender.name for contender in parse_methods("fptt, bptt")] == ["fptt", "bptt"]
    with pytest.raises(UserError, match="repeat"):
        parse_methods("fptt,fptt")


def test_a_moving_average_of_the_weights_is_kept_instead_of_them(tmp_path: Path) -> None:
    constant = ["--schedule", "constant", "--method", "tbptt"]
    train(tmp_path / "first", *constant, "--epochs", "None", "--max-updates", "8")  # one batch of eight chunks
    train(tmp_path / "second", *constant, "--epochs", "1")  # two batches
    train(tmp_path / "average", *constant, "--epochs", "1", "--ema-decay", "0.25")
    first, second, average = (RunFolder(tmp_path / name).read_weights() for name in ("first", "second", "average"))
    for name, weight in average.items():
        torch.testing.assert_close(weight, 0.25 * first[name] + 0.75 * second[name])
