import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from fptt.experiments.benchmarks import memory
from fptt.experiments.benchmarks.memory_child import Request, SequenceFile
from fptt.experiments.commands.cli import run
from fptt.experiments.process.errors import UserError

CPU = torch.device("cpu")

REQUEST = Request(
    method="fptt",
    path="nowhere",
    sequence_length=4,
    batch_size=1,
    chunk_length=2,
    engine="eager",
    threads=1,
    device="cpu",
)


def test_slices_put_together_are_the_sequence(tmp_path: Path) -> None:
    sequence = SequenceFile(tmp_path / "sequence", 25, 3)
    sequence.write(seed=1)
    assert sequence.path.stat().st_size == 26 * 3 * 4
    ((inputs, targets),) = sequence.slices(25)
    assert inputs.shape == targets.shape == (25, 3, 1)
    assert torch.equal(inputs[1:], targets[:-1])
    assert 0.5 < inputs.square().mean() * 2 < 1.5
    slices = list(sequence.slices(10))
    assert [len(part) for part, _ in slices] == [10, 10, 5]
    assert torch.equal(torch.cat([part for part, _ in slices]), inputs)
    assert torch.equal(torch.cat([part for _, part in slices]), targets)


def rows(method: str, **peaks: int) -> list[dict[str, Any]]:
    return [
        {"method": method, "sequence_length": int(length[1:]), "peak_memory_bytes": peak, "training_memory_bytes": peak}
        for length, peak in peaks.items()
    ]


def test_fits_on_made_up_numbers() -> None:
    made_up = [*rows("fptt", t10=500, t20=500, t30=530), *rows("bptt", t10=1100, t20=2100)]
    fits = memory.fits(made_up)
    assert fits["bptt"] == {"bytes_per_step": pytest.approx(100), "intercept_bytes": pytest.approx(100)}
    assert fits["fptt"] == {"bytes_per_step": pytest.approx(1.5), "intercept_bytes": pytest.approx(480)}
    assert memory.growth_percent(made_up, "fptt") == pytest.approx(6)
    assert memory.fits(rows("fptt", t10=500)) == {}


def test_bptt_stops_before_it_would_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    measured = []

    def run_child(request: Request, *_: object) -> dict[str, Any]:
        measured.append((request.method, request.sequence_length))
        grown = request.sequence_length * (1000 if request.method == "bptt" else 0)
        return {"peak_memory_bytes": 5000 + grown, "training_memory_bytes": grown, "seconds": 0.1, "updates": 1}

    monkeypatch.setattr(memory, "run_child", run_child)
    options: dict[str, Any] = {"chunk_length": 5, "engine": "eager", "threads": 1, "device": CPU}
    report = memory.MemoryBench([2000, 4000, 8000], limit_bytes=4.5e6, **options).run(Console(quiet=True))
    found = [(row["method"], row["sequence_length"]) for row in report["rows"]]
    assert found == [("fptt", 2000), ("fptt", 4000), ("fptt", 8000), ("bptt", 2000), ("bptt", 4000)]
    assert measured == [*found[:3], ("bptt", 1000), *found[3:]]
    (note,) = report["notes"]
    assert note.startswith("no row for BPTT from T = 8,000 on")
    assert report["fptt_growth_percent"] == 0


def test_what_was_measured_outlives_a_bptt_that_does_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    def run_child(request: Request, *_: object) -> dict[str, Any]:
        if (request.method, request.sequence_length) == ("bptt", 4000):
            raise UserError("killed.")
        return {"peak_memory_bytes": 5000, "training_memory_bytes": 0, "seconds": 0.1, "updates": 1}

    monkeypatch.setattr(memory, "run_child", run_child)
    options: dict[str, Any] = {"chunk_length": 5, "engine": "eager", "threads": 1, "device": CPU}
    report = memory.MemoryBench([200, 4000, 8000], limit_bytes=1e9, **options).run(Console(quiet=True))
    found = [(row["method"], row["sequence_length"]) for row in report["rows"]]
    assert found == [("fptt", 200), ("fptt", 4000), ("fptt", 8000), ("bptt", 200)]
    assert report["notes"] == ["no row for BPTT from T = 4,000 on: killed."]


def test_a_system_that_does_not_tell_the_memory_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = {"peak_memory_bytes": 0, "training_memory_bytes": 0, "seconds": 0.1, "updates": 1}
    monkeypatch.setattr(memory, "run_child", lambda *_: sizes)
    options: dict[str, Any] = {"chunk_length": 5, "engine": "eager", "threads": 1, "device": CPU}
    with pytest.raises(UserError, match="needs a system that tells the memory of a process"):
        memory.MemoryBench([200], limit_bytes=1e9, **options).run(Console(quiet=True))


def test_a_measurement_that_fails_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert Request.from_json(REQUEST.to_json()) == REQUEST
    monkeypatch.setattr(memory, "CHILD", (sys.executable, "-c", "raise ValueError('broken')"))
    with pytest.raises(UserError, match=r"^fptt at sequence length 4 failed with exit code 1: ValueError: broken$"):
        memory.run_child(REQUEST, tmp_path, lambda _: None)
    monkeypatch.setattr(memory, "CHILD", (sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"))
    with pytest.raises(UserError, match=r"failed with exit code -9: was there too little memory\?$"):
        memory.run_child(REQUEST, tmp_path, lambda _: None)


def test_no_child_outlives_an_interruption(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = "import os, time; print('{\"fraction\": ' + str(os.getpid()) + '}', flush=True); time.sleep(60)"
    monkeypatch.setattr(memory, "CHILD", (sys.executable, "-c", code))
    found = []

    def interrupt(pid: float) -> None:
        found.append(int(pid))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        memory.run_child(REQUEST, tmp_path, interrupt)
    with pytest.raises(ProcessLookupError):
        os.kill(found[0], 0)


def test_memory_of_fptt_does_not_grow(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--sequence-lengths", "4000,200", "--chunk-length", "10", "--threads", "1"]
    assert run(["bench", "memory", *options, "--limit-gib", "0.6", "--out", str(tmp_path)]) == 0
    assert {file.name for file in tmp_path.iterdir()} == {"memory.json", "memory.md", "memory-against-T.png"}
    report = json.loads((tmp_path / "memory.json").read_text())
    by_key = {(row["method"], row["sequence_length"]): row for row in report["rows"]}
    assert list(by_key) == [("fptt", 200), ("fptt", 4000), ("bptt", 200), ("bptt", 4000)]
    assert by_key["fptt", 4000]["updates"] == 400
    assert by_key["bptt", 4000]["updates"] == 1
    trained = {key: row["training_memory_bytes"] for key, row in by_key.items()}
    assert trained["bptt", 4000] > 10 * trained["bptt", 200] > 0
    assert trained["fptt", 4000] < trained["bptt", 4000] / 5
    assert report["fits"]["bptt"]["bytes_per_step"] > 4 * 128 * 6 * 4  # gates, memories and outputs of four sequences
    assert report["fits"]["fptt"]["bytes_per_step"] < report["fits"]["bptt"]["bytes_per_step"] / 10
    assert abs(report["fptt_growth_percent"]) < 5
    assert "bytes a time step" in capsys.readouterr().out
