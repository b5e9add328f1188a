import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pytest
from matplotlib.colors import to_rgb
from rich.console import Console

from fptt.experiments.configs.config import TrainConfig
from fptt.experiments.process.errors import UserError
from fptt.experiments.studies import launcher, plots
from fptt.experiments.studies.ablation import Ablation
from fptt.experiments.studies.comparison import Comparison, parse_budgets
from fptt.experiments.studies.contenders import parse_controls, parse_methods
from fptt.experiments.studies.study import Study
from fptt.experiments.training.folder import locked
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
    names = [f"equal-epochs/{contender.name}-seed-0" for contender in contenders]
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
    metric = "test accuracy (mean ± sd; higher is better)"
    assert (tmp_path / "compare.md").read_text().splitlines()[:4] == [
        f"| at equal | method | {metric} | epochs | updates | seconds | memory of training |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: |",
        "| epochs | BPTT | 0.2500 | 3.0 | 10 | 2.0 | 1 MiB |",
        "| epochs | BPTT-4 | 0.3750 | 3.0 | 10 | 2.0 | 1 MiB |",
    ]
    assert (tmp_path / "curves.png").read_bytes()[:4] == b"\x89PNG"
    with pytest.raises(UserError, match="bptt-losses is the same as bptt, which has 4 chunk losses already"):
        Comparison(TrainConfig.of(SMALL, bptt_losses=4), contenders, [0], tmp_path)


CONTENDERS = parse_methods("tbptt,fptt") + parse_controls("rate=0.5,bptt-small-batches")

DIFFERENCES = """\
| difference | seeds | in test accuracy (above 0 is better) | 95 % interval | p | p, Holm | FPTT is |
| --- | ---: | ---: | ---: | ---: | ---: | ---: |
| FPTT-4 − TBPTT-4 | 2 | +0.3000 | [-0.9706, +1.5706] | 0.205 | 0.205 | undecided |
| FPTT-4 − TBPTT-4, lr × 0.5 | 2 | +0.5000 | [+0.4873, +0.5127] | 0.001 | 0.003 | better |
| FPTT-4 − BPTT-4, batches of 16 | 2 | +0.2000 | the same for all seeds: no interval | – | – | – |
"""
"""Of 0.3 ± 0.1, 0.5 ± 0.001 and 0.2; with two seeds the t of 95 % is tan(0.95 π/2) = 12.706, and p 1 − 2/π atan t."""

TESTS = {"tbptt": (0.2, 0.6), "fptt": (0.6, 0.8), "tbptt-rate-0.5": (0.099, 0.301), "bptt-small-batches": (0.4, 0.6)}


def write_result(path: Path, config: TrainConfig, *_: Any, **options: Any) -> None:
    """Stand in for a process that makes a run of `CONTENDERS`; small batches end with an update too many."""
    name = path.name.removesuffix(f"-seed-{config.seed}")
    updates = config.max_updates or 40 + (name == "bptt-small-batches")
    write_run(path, config, TESTS[name][config.seed], updates=updates)


def test_controls_are_compared_like_methods(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launcher, "_run", write_result)
    comparison = Comparison(SMALL, CONTENDERS, range(2), tmp_path, parse_budgets("updates"))
    comparison.run(Console(quiet=True), 1)
    folders = [path.relative_to(tmp_path).as_posix() for path in comparison.runs]
    assert sorted(folders) == sorted(
        [f"equal-epochs/{name}-seed-{seed}" for name in TESTS for seed in (0, 1)]
        + [f"equal-updates/bptt-small-batches-seed-{seed}" for seed in (0, 1)]
    )
    found = {path.name: run.config for path, run in comparison.runs.items() if path.parent.name == "equal-epochs"}
    assert found["tbptt-rate-0.5-seed-1"] == TrainConfig.of(SMALL, method="tbptt", seed=1, lr=0.001)
    small = {"method": "bptt", "seed": 1, "batch_size": 16, "bptt_losses": 4}
    assert found["bptt-small-batches-seed-1"] == TrainConfig.of(SMALL, **small)
    limited = comparison.runs[tmp_path / "equal-updates" / "bptt-small-batches-seed-1"].config
    assert limited == TrainConfig.of(SMALL, **small, epochs=None, max_updates=40)
    rows = comparison.rows()
    assert [(row["budget"], row["contender"], row["updates"]) for row in rows] == [
        *(("epochs", name, 41 if name == "bptt-small-batches" else 40) for name in TESTS),
        *(("updates", name, 40) for name in TESTS),
    ]
    assert rows[2]["tests"] == {0: 0.099, 1: 0.301}
    console = Console(width=200, record=True, quiet=True)
    comparison.report(console)
    text = (tmp_path / "compare.md").read_text()
    assert "| epochs | TBPTT-4, lr × 0.5 | 0.2000 ± 0.1428 | 3.0 | 40 |" in text
    assert "| updates | BPTT-4, batches of 16 | 0.5000 ± 0.1414 | 3.0 | 40 |" in text
    for budget in ("epochs", "updates"):
        assert f"\nPaired differences at equal {budget}:\n\n{DIFFERENCES}" in text
    assert "Holm 1979" in text


def test_every_control_has_a_line_of_its_own_in_the_plot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launcher, "_run", write_result)
    comparison = Comparison(SMALL, CONTENDERS, range(2), tmp_path, ["epochs"])
    comparison.run(Console(quiet=True), 1)
    figures: list[Any] = []
    monkeypatch.setattr(plots, "save_figure", lambda figure, _: figures.append(figure))
    comparison.report(Console(quiet=True))
    (axis,) = figures[0].axes
    lines = {line.get_label(): (line.get_color(), line.get_linestyle()) for line in axis.lines}
    assert {name: look for name, look in lines.items() if not name.startswith("_")} == {
        "BPTT, 4 losses, batches of 16": ("tab:gray", ":"),
        "TBPTT": ("tab:blue", "--"),
        "TBPTT, lr × 0.5": (to_rgb("tab:orange"), "--"),
        "FPTT": ("tab:red", "-"),
        "chance": ("black", "--"),
    }
    plt.close(figures[0])


def test_controls_without_fptt_are_named(tmp_path: Path) -> None:
    contenders = parse_methods("tbptt,bptt") + parse_controls("rate=0.5")
    with pytest.raises(UserError, match=r"methods must have it, got controls tbptt-rate-0.5"):
        Comparison(SMALL, contenders, [0], tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"task": "sequences", "data": "nope.csv"}, "bptt: data 'nope.csv' does not exist"),
        ({"num_chunks": 65}, "fptt: num_chunks must be at most the sequence length 64, got 65"),
        ({"mu": 2.0}, "fptt: mu must be 1 in the form 'paper', got 2.0"),
    ],
)
def test_a_contender_that_cannot_be_built_is_named_before_any_run(
    change: dict[str, Any], message: str, tmp_path: Path, started: list[str]
) -> None:
    """One whose run is finished is not built again: its data may be gone. A run of another config is not it."""
    comparison = Comparison(TrainConfig.of(SMALL, **change), parse_methods("bptt,fptt"), range(2), tmp_path)
    with pytest.raises(UserError, match=f"^{message}"):
        comparison.run(Console(quiet=True), 1)
    assert started == []
    assert list(tmp_path.iterdir()) == []
    for path, config in {
        tmp_path / "equal-epochs" / f"{contender.name}-seed-{seed}": contender.config(comparison.setting, seed)
        for contender in comparison.contenders
        for seed in range(2)
    }.items():
        made(path, config)
    next(iter(comparison.stages()))
    other = Comparison(replace(comparison.setting, lr=0.001), comparison.contenders, range(2), tmp_path)
    with pytest.raises(UserError, match=f"^{message}"):
        other.run(Console(quiet=True), 1, overwrite=True)
    assert started == []


@pytest.mark.parametrize("left", ["model.safetensors", "summary.json", "learner.pt", "checkpoint-000001.pt"])
def test_the_folder_of_a_run_or_stream_is_not_that_of_a_study(left: str, tmp_path: Path) -> None:
    """Whose curves.png would be replaced; a config alone may be that of the study."""
    (tmp_path / "config.yaml").write_text(SMALL.to_yaml())
    studies: list[Callable[[], Study]] = [
        lambda: Comparison(SMALL, parse_methods("fptt"), [0], tmp_path),
        lambda: Ablation(SMALL, {"alpha": [0.2]}, [0], tmp_path),
    ]
    for study in studies:
        study()
    (tmp_path / left).write_text("{}")
    expected = f"out {tmp_path} must be a new folder or that of a study, got the folder of a run or stream, with {left}"
    for study in studies:
        with pytest.raises(UserError, match=re.escape(expected)):
            study()


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


def test_a_run_that_is_made_again_sets_other_limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run at equal time is then made again too, and only then."""
    made: list[str] = []

    def run(path: Path, config: TrainConfig, *_: Any, **options: Any) -> None:
        made.append(path.parent.name)
        write_run(path, config, seconds=float(len(made)))

    def compare() -> Comparison:
        made.clear()
        comparison = Comparison(SMALL, parse_methods("tbptt,fptt"), [0], tmp_path, parse_budgets("seconds"))
        comparison.run(Console(quiet=True), 1)
        return comparison

    monkeypatch.setattr(launcher, "_run", run)
    compare()
    assert made == ["equal-epochs", "equal-epochs", "equal-seconds"]
    compare()
    assert made == []
    (tmp_path / "equal-epochs" / "fptt-seed-0" / "summary.json").write_text("{")
    limited = compare().runs[tmp_path / "equal-seconds" / "tbptt-seed-0"]
    assert (made, limited.config.max_seconds) == (["equal-epochs", "equal-seconds"], 1.0)
    with pytest.raises(UserError, match=r"holds a finished run with lr 0\.002, not 0\.001"):
        Comparison(replace(SMALL, lr=0.001), parse_methods("tbptt,fptt"), [0], tmp_path).run(Console(quiet=True), 1)


def test_a_second_study_in_the_folder_is_refused_while_the_first_is_under_way(
    tmp_path: Path, started: list[str]
) -> None:
    """It would begin the logs of the runs under way anew."""
    comparison = Comparison(SMALL, parse_methods("fptt"), [0], tmp_path)
    with locked(tmp_path), pytest.raises(UserError, match=f"another process is writing to {re.escape(str(tmp_path))}"):
        comparison.run(Console(quiet=True), 1)
    assert not started
    comparison.run(Console(quiet=True), 1)
    assert started == ["equal-epochs/fptt-seed-0"]
    assert not (tmp_path / "lock").exists()


def test_a_study_that_cannot_be_made_leaves_nothing(tmp_path: Path) -> None:
    comparison = Comparison(TrainConfig.of(SMALL, num_chunks=1000), parse_methods("fptt"), [0], tmp_path / "new")
    with pytest.raises(UserError, match="num_chunks must be at most the sequence length"):
        comparison.run(Console(quiet=True), 1)
    assert not (tmp_path / "new").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file is a file, not a folder"):
        Comparison(SMALL, parse_methods("fptt"), [0], tmp_path / "file")


def test_a_new_run_with_impossible_results_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launcher, "_run", lambda path, config, *_, **__: write_run(path, config, updates=-1))
    with pytest.raises(UserError, match=r"fptt-seed-0: damaged: updates in summary.json must be finite and at least 0"):
        Comparison(SMALL, parse_methods("fptt"), [0], tmp_path).run(Console(quiet=True), 1)


@pytest.mark.parametrize("budget", ["updates", "seconds"])
@pytest.mark.parametrize("schedule", ["cosine", "trapezoid", "steps"])
def test_early_stopping_at_other_budgets_needs_a_schedule_without_an_end(
    budget: str, schedule: str, tmp_path: Path
) -> None:
    """Half a cosine of 40 epochs that ends after two is nearly constant; one of as many updates ends at 0."""
    contenders, stopped = parse_methods("tbptt,fptt"), TrainConfig.of(SMALL, early_stopping=1, schedule=schedule)
    expected = f"early_stopping 1, got budgets epochs,{budget} with schedule {schedule}: .* at equal {budget} would"
    with pytest.raises(UserError, match=expected):
        Comparison(stopped, contenders, [0], tmp_path, parse_budgets(budget))
    Comparison(stopped, contenders, [0], tmp_path, ["epochs"])
    for allowed in ("constant", "plateau"):
        Comparison(TrainConfig.of(stopped, schedule=allowed), contenders, [0], tmp_path, parse_budgets(budget))
