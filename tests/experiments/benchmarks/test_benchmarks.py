import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from fptt.experiments.benchmarks import convergence, memory, speed, spiking
from fptt.experiments.benchmarks.grid import Grid, Spec, Workload
from fptt.experiments.benchmarks.speed_report import headlines
from fptt.experiments.benchmarks.timing import Stopwatch, take_turns
from fptt.experiments.commands.cli import run
from fptt.experiments.process.console import logging_to
from fptt.experiments.process.errors import UserError
from fptt.nn import native
from tests.experiments.permissions import told_of_lack_of_permission

CPU = torch.device("cpu")


def grid(**changes: Any) -> Grid:
    values: dict[str, Any] = {
        "cells": ("lstm",),
        "batch_sizes": (2,),
        "sequence_lengths": (6,),
        "num_chunks": (2, None),
        "engines": ("eager",),
        "longest_compiled": 8,
    }
    return Grid(**{**values, **changes})


# -- rows --------------------------------------------------------------------------------------------------------------


def test_everything_takes_turns() -> None:
    order = []
    seconds = iter(range(6))

    def contestant(name: str) -> float:
        order.append(name)
        return next(seconds)

    taken = take_turns([lambda: contestant("a"), lambda: contestant("b")], 3)
    assert order == ["a", "b", "a", "b", "a", "b"]
    assert taken == [[0, 2, 4], [1, 3, 5]]


def test_ratios_are_quotients_of_medians() -> None:
    specs = [Spec("bptt", "eager", 1), Spec("fptt", "compiled", 6), Spec("literal", None, 6, "torch")]
    figures = [[9.0, 2.0, 1.0], [1.0, 5.0, 6.0], [10.0, 80.0, 20.0]]
    rows = speed.make_rows(Workload("lstm", 6, 2), specs, figures, [0.5, 1.0, 1.0], ["native", "plain", "torch"])
    assert [row["seconds"] for row in rows] == [2.0, 5.0, 20.0]
    assert [row["ratio_to_bptt"] for row in rows] == [1.0, 2.5, 10.0]
    assert [row["ratio_to_literal"] for row in rows] == [None, 0.25, 1.0]
    assert [row["updates"] for row in rows] == [1, 6, 6]
    assert rows[1] == {
        "method": "fptt",
        "engine": "compiled",
        "layers": "fused",
        "kernel": "plain",
        "cell": "lstm",
        "precision": "float32",
        "num_chunks": 6,
        "batch_size": 2,
        "sequence_length": 6,
        "seconds": 5.0,
        "seconds_min": 1.0,
        "seconds_max": 6.0,
        "repeats": 3,
        "updates": 6,
        "floor_seconds": 1.0,
        "ratio_to_bptt": 2.5,
        "ratio_to_literal": 0.25,
    }


def test_headlines_take_the_faster_engine_of_each_method() -> None:
    seconds = {
        Spec("bptt", "eager", 1): 2.0,
        Spec("tbptt", "eager", 2): 4.0,
        Spec("tbptt", "compiled", 2): 5.0,
        Spec("fptt", "eager", 2): 4.4,
        Spec("fptt", "eager", 2, "torch"): 7.0,
        Spec("fptt", "compiled", 2): 3.0,
        Spec("literal", None, 2, "torch"): 6.0,
        Spec("fptt", "eager", 6): 8.0,
        Spec("fptt", "compiled", 6): 9.0,
        Spec("literal", None, 6, "torch"): 36.0,
    }
    figures = [[value] for value in seconds.values()]
    rows = speed.make_rows(
        Workload("lstm", 6, 2), list(seconds), figures, [1.5] * len(seconds), ["native"] * len(seconds)
    )
    assert headlines(rows) == [
        "compiled FPTT, K = T = 6: 0.25 × literal, 4.50 × BPTT, 6.00 × the floor",
        "compiled FPTT, K = 2: 0.750 × eager TBPTT, 1.50 × BPTT, 2.00 × the floor",
        "bookkeeping of eager FPTT over eager TBPTT, K = 2: +10.0%",
    ]


def test_long_chunks_have_no_compiled_rows_and_a_note() -> None:
    chosen = grid(sequence_lengths=(784,), num_chunks=(10, 112, None), engines=("eager", "compiled"))
    compiled = {spec.num_chunks for spec in chosen.specs(784) if spec.engine == "compiled"}
    assert compiled == {112, 784}
    (note,) = chosen.notes()
    assert note.startswith("no compiled rows for K = 10 at T = 784: chunks of 79 steps, more than 8")
    methods = [(spec.method, spec.engine) for spec in chosen.specs(784) if spec.num_chunks == 784]
    assert methods == [
        ("tbptt", "eager"),
        ("tbptt", "compiled"),
        ("fptt", "eager"),
        ("fptt", "compiled"),
        ("fptt", "eager"),
        ("literal", None),
    ]
    assert [spec.layers for spec in chosen.specs(784) if spec.num_chunks == 784] == ["fused"] * 4 + ["torch"] * 2


def test_a_step_that_cannot_be_compiled_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("no C++ compiler.")

    monkeypatch.setattr(speed, "make_contestant", lambda *_: fail)
    bench = speed.SpeedBench(grid(engines=("compiled",)), CPU, repeats=1)
    with pytest.raises(RuntimeError, match="compiler"):  # BPTT is not compiled: no error of the user's
        bench.run(Console(quiet=True), lambda _: None)
    monkeypatch.setattr(
        speed, "make_contestant", lambda spec, *_: fail if spec.engine == "compiled" else lambda *_: None
    )
    with pytest.raises(UserError, match=r"no C\+\+ compiler\. To do without the compiled rows: --engines eager"):
        bench.run(Console(quiet=True), lambda _: None)


def test_the_library_is_heard_on_the_console_for_a_while(capsys: pytest.CaptureFixture[str]) -> None:
    logger = logging.getLogger("fptt")
    before = (logger.level, logger.propagate, list(logger.handlers))
    with logging_to(Console()):
        logger.info("compiled a chunk step in [b]7[/b] s")
    logger.info("later")
    assert capsys.readouterr().out == "fptt: compiled a chunk step in [b]7[/b] s\n"
    assert (logger.level, logger.propagate, logger.handlers) == before


def test_a_stopwatch_measures_the_processor() -> None:
    assert 0.02 <= Stopwatch(CPU).seconds(lambda: __import__("time").sleep(0.02)) < 2


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_stopwatch_measures_what_is_left_to_the_gpu() -> None:
    device = torch.device("cuda")
    matrix = torch.rand(4096, 4096, device=device)
    torch.mm(matrix, matrix)
    once, ten_times = (
        Stopwatch(device).seconds(lambda count=count: [torch.mm(matrix, matrix) for _ in range(count)])
        for count in (1, 10)
    )
    assert ten_times > 4 * once


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_speed_on_a_gpu() -> None:
    report = speed.SpeedBench(grid(), torch.device("cuda"), repeats=1).run(Console(quiet=True), lambda _: None)
    assert all(row["seconds"] > 0 and row["floor_seconds"] > 0 for row in report["rows"])
    assert report["settings"]["clock"] == "device"


# -- the commands ------------------------------------------------------------------------------------------------------


def test_speed_leaves_rows_tables_and_plots(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--batch-sizes", "1,16", "--num-chunks", "2,T", "--sequence-lengths", "6,8", "--cells", "gru"]
    fast = ["--engines", "eager", "--repeats", "2", "--threads", "1", "--no-keep-memory", "--out", str(tmp_path)]
    assert run(["bench", "speed", "--quick", *options, *fast]) == 0
    names = {"speed.json", "speed.md", "time-against-K.png", "time-against-T.png"}
    assert {file.name for file in tmp_path.iterdir()} == names
    report = json.loads((tmp_path / "speed.json").read_text())
    assert report["environment"]["torch"] == torch.__version__
    assert report["environment"]["threads"] == 1
    assert report["settings"]["repeats"] == 2
    assert report["notes"] == ["no compiled rows were asked for"]
    found = [
        tuple(row[name] for name in ("sequence_length", "batch_size", "method", "engine", "num_chunks", "layers"))
        for row in report["rows"]
    ]
    assert found == [
        (length, batch_size, method, engine, num_chunks, layers)
        for length in (6, 8)
        for batch_size in (1, 16)
        for method, engine, num_chunks, layers in [
            ("bptt", "eager", 1, "fused"),
            ("bptt", "eager", 1, "torch"),
            *[
                row
                for k in (2, length)
                for row in (
                    ("tbptt", "eager", k, "fused"),
                    ("fptt", "eager", k, "fused"),
                    ("fptt", "eager", k, "torch"),
                    ("literal", None, k, "torch"),
                )
            ],
        ]
    ]
    kernels = {"fused": "torch" if native._library() is None else "native", "torch": "torch"}
    assert all(row["kernel"] == kernels[row["layers"]] for row in report["rows"])
    for row in report["rows"]:
        assert row["floor_seconds"] > 0
        assert 0 < row["seconds_min"] <= row["seconds"]
        assert row["updates"] == row["num_chunks"]
        bptt = next(
            other["seconds"]
            for other in report["rows"]
            if (other["method"], other["sequence_length"], other["batch_size"])
            == ("bptt", row["sequence_length"], row["batch_size"])
        )
        assert row["ratio_to_bptt"] == row["seconds"] / bptt
    printed = capsys.readouterr().out
    for text in ("batch 16, gru, T = 8", "eager FPTT, K = T = 6: ", "bookkeeping of eager FPTT"):
        assert text in printed
        assert text in (tmp_path / "speed.md").read_text()
    assert "100%" in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["dance"], "unknown benchmark 'dance'; there are speed, spiking, memory"),
        (["speed", "--num-chunks", "0"], "num_chunks must be positive whole numbers, got '0'"),
        (["speed", "--num-chunks", "10,many"], "num_chunks must be positive whole numbers, got 'many'"),
        (["speed", "--num-chunks", "785"], "num_chunks must be at most the sequence length 784, got 785"),
        (["speed", "--sequence-lengths", "784,5"], "num_chunks must be at most the sequence length 5, got 10"),
        (["speed", "--cells", "lstm,mlp"], "cells must be one of lstm, gru, got 'mlp'"),
        (["speed", "--engines", "steam"], "engines must be one of eager, compiled, got 'steam'"),
        (["speed", "--batch-sizes", "1,1"], "batch_sizes must not repeat, got 1,1"),
        (["speed", "--repeats", "0"], "repeats must be positive, got 0"),
        (["speed", "--threads", "0"], "threads must be positive, got 0"),
        (["spiking", "--engines", "steam"], "engines must be one of eager, compiled, got 'steam'"),
        (["spiking", "--hidden-size", "0"], "hidden_size must be positive, got 0"),
        (["memory", "--sequence-lengths", "1e3"], "sequence_lengths must be positive whole numbers, got '1e3'"),
        (["memory", "--chunk-length", "0"], "chunk_length must be positive, got 0"),
        (["memory", "--limit-gib", "0"], "limit_gib must be positive, got 0"),
        (["memory", "--limit-gib", "nan"], "limit_gib must be positive, got nan"),
        (["memory", "--threads", "1025"], "threads must be at most 1,024, got 1025"),
        (["speed", "--seed", str(2**31)], "seed must be less than 2,147,483,648, got 2147483648"),
        (["spiking", "--seed", "-1"], "seed must not be negative, got -1"),
        (["convergence", "--seed", "1" + "0" * 21], "seed must be less than 2,147,483,648, got 1000000000000000000000"),
    ],
    ids=str,
)
def test_errors_are_one_clear_line(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(["bench", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith(f"fptt: {message}")
    assert captured.err.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a CUDA device")
@pytest.mark.parametrize("command", ["speed", "memory"])
def test_a_missing_device_is_named(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["bench", command, "--accelerator", "cuda"]) == 2
    assert capsys.readouterr().err.startswith("fptt: accelerator 'cuda' cannot be used")


@pytest.mark.parametrize("name", ["speed", "spiking", "memory", "convergence"])
def test_a_report_is_not_overwritten_unless_asked(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """That is told before the measuring, which takes hours; here it is left out."""
    (tmp_path / f"{name}.json").write_text("mine")
    benches = {
        "speed": speed.SpeedBench,
        "spiking": spiking.SpikingBench,
        "memory": memory.MemoryBench,
        "convergence": convergence.ConvergenceBench,
    }

    class MeasuredError(Exception): ...

    def measure(*_: object, **__: object) -> None:
        raise MeasuredError

    monkeypatch.setattr(benches[name], "run", measure)
    assert run(["bench", name, "--out", str(tmp_path)]) == 2
    assert f"has a {name}.json already: give another folder, or --overwrite." in capsys.readouterr().err
    assert [file.read_text() for file in tmp_path.iterdir()] == ["mine"]
    for options in (["--out", str(tmp_path), "--overwrite"], ["--out", str(tmp_path / "other")]):
        with pytest.raises(MeasuredError):
            run(["bench", name, *options])


def test_an_unwritable_folder_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("mine")
    assert run(["bench", "speed", "--out", str(tmp_path / "file")]) == 2
    assert "cannot be written" in capsys.readouterr().err


def test_a_read_only_folder_is_named_before_anything_is_measured(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    script = "import sys; from fptt.experiments.commands.cli import run; sys.exit(run(sys.argv[1:]))"
    told = told_of_lack_of_permission(script, "bench", "convergence", "--passes", "10", "--out", str(tmp_path))
    tmp_path.chmod(0o700)
    assert told.startswith(f"fptt: out {tmp_path} cannot be written: ")


def test_help_teaches(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["bench"]) == 0
    overview = capsys.readouterr().out
    assert "fptt bench speed --quick" in overview
    assert run(["bench", "--help"]) == 0
    assert capsys.readouterr().out == overview
    for command, text in (("speed", "--batch-sizes"), ("spiking", "--hidden-size"), ("memory", "--limit-gib")):
        with pytest.raises(SystemExit) as stop:
            run(["bench", command, "--help"])
        assert stop.value.code == 0
        assert text in capsys.readouterr().out
