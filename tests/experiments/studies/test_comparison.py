from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from fptt.experiments.configs.config import TrainConfig
from fptt.experiments.process.errors import UserError
from fptt.experiments.studies import launcher
from fptt.experiments.studies.comparison import Comparison, parse_budgets
from fptt.experiments.studies.contenders import parse_methods
from tests.experiments.studies.runs import SMALL, write_run


def made(path: Path, config: TrainConfig, *_: Any, **options: Any) -> None:
    """Stand in for a process that makes a run: an update a chunk, and FPTT best."""
    updates = 10 if config.method == "bptt" else 10 * config.num_chunks
    tests = {"bptt": 0.25 + 0.125 * (config.bptt_losses > 1), "tbptt": 0.5, "fptt": 0.75}
    write_run(path, config, tests[config.method], updates=config.max_updates or updates)


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the folders of the runs that are made, in order, none of them in a process."""
    folders: list[str] = []

    def run(path: Path, *arguments: Any, **options: Any) -> None:
        folders.append(f"{path.parent.name}/{path.name}")
        made(path, *arguments, **options)

    monkeypatch.setattr(launcher, "_run", run)
    return folders


def test_the_control_with_chunk_losses_is_a_contender(tmp_path: Path, started: list[str]) -> None:
    """As many losses as FPTT has, and as few updates as BPTT."""
    contenders = parse_methods("bptt,bptt-losses,tbptt,fptt")
    comparison = Comparison(SMALL, contenders, [0], tmp_path, parse_budgets("updates"))
    comparison.run(Console(quiet=True), 1)
    names = [f"equal-epochs/{name}-seed-0" for name in names]
    assert started == [*names, "equal-updates/bptt-seed-0", "equal-updates/bptt-losses-seed-0"]
    config = comparison.runs[tmp_path / "equal-updates" / "bptt-losses-seed-0"].config
    assert config == TrainConfig.of(SMALL, method="bptt", bptt_losses=4, epochs=None, max_updates=40)
    assert [(row["budget"], row["method"], row["num_chunks"], row["updates"]) for row in comparison.rows()] == [
        ("epochs", "bptt", 1, 10),
        ("epochs", "bptt", 4, 10),
        ("epochs", "tbptt", 4, 40),
        ("epochs", "fptt", 4, 40),
        ("updates", "bptt", 1, 40),
        ("updates", "bptt", 4, 40),
        ("updates", "tbptt", 4, 40),
        ("updates", "fptt", 4, 40),
    ]
    console = Console(width=120, record=True, quiet=True)
    comparison.report(console)
    assert (tmp_path / "compare.md").read_text().splitlines()[:4] == [
        "| at equal | method | test accuracy (mean ± sd; higher is better) | epochs | updates | seconds | memory of training |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: |",
        "| epochs | BPTT | 0.2500 | 3.0 | 10 | 2.0 | 1 MiB |",
        "| epochs | BPTT-4 | 0.3750 | 3.0 | 10 | 2.0 | 1 MiB |",
    ]
    assert (tmp_path / "curves.png").read_bytes()[:4] == b"\x89PNG"
    with pytest.raises(UserError, match="bptt-losses is the same as bptt, which has 4 chunk losses already"):
        Comparison(TrainConfig.of(SMALL, bptt_losses=4), contenders, [0], tmp_path)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"test_accuracy": 7.5}, "must be in [0, 1], got 7.5"),
        ({"test_accuracy": ..., "test_macro_f1": ..., "test_cross_entropy": ..., "test_other": ...}, "has no metric"),
        ({"test_accuracy": "a half"}, "lacks test_accuracy"),
        ({"updates": None}, "lacks updates"),
    ],
    ids=str,
)
def test_a_damaged_summary_is_named_and_its_run_made_again(
    change: dict[str, Any], reason: str, tmp_path: Path, started: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    comparison = Comparison(SMALL, parse_methods("fptt"), [0], tmp_path)
    comparison.run(Console(), 1)
    (path,) = comparison.runs
    folder = write_run(path, SMALL, **{"updates": 40, **{name: v for name, v in change.items() if name != "updates"}})
    folder.write_summary({**folder.read_summary(), **{name: v for name, v in change.items() if v is not ...}})
    comparison = Comparison(SMALL, parse_methods("fptt"), [0], tmp_path)
    comparison.run(Console(width=500), 1)
    assert started == ["equal-epochs/fptt-seed-0"] * 2
    printed = capsys.readouterr().out
    assert f"{path} is run again: damaged: " in printed
    assert reason in printed
    comparison.report(Console(quiet=True))


def test_a_new_run_with_impossible_results_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launcher, "_run", lambda path, config, *_, **__: write_run(path, config, updates=-1))
    with pytest.raises(UserError, match=r"fptt-seed-0: damaged: updates in summary.json must be finite and at least 0"):
        Comparison(SMALL, parse_methods("fptt"), [0], tmp_path).run(Console(quiet=True), 1)
