"""The table of the paper's tasks: which experiment stands for a task, and its numbers, by hand."""

import math
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.figure import Figure

from fptt.experiments.configs.config import TrainConfig
from fptt.experiments.studies.page import MARKS, put_between_marks
from fptt.experiments.studies.paper import draw_paper, paper_cells, paper_rows
from fptt.experiments.studies.references import REFERENCES


def row(
    method: Any, tests: dict[int, float], updates: float, metric: str = "accuracy", **options: Any
) -> dict[str, Any]:
    options = {"task": "mnist", "num_chunks": 28, **options}
    mean = sum(tests.values()) / len(tests)
    return {
        "group": "equal-epochs",
        "method": method,
        "config": TrainConfig(method=method, **options),
        "num_chunks": options["num_chunks"] if method != "bptt" else 1,
        "metric": metric,
        "num_seeds": len(tests),
        f"test_{metric}_mean": mean,
        f"test_{metric}_sd": 0.01 if len(tests) > 1 and math.isfinite(mean) else math.nan,
        f"validation_{metric}_mean": 1.1 * mean,
        "tests": tests,
        "epochs": 2.0,
        "updates": updates,
    }


SHORT = [
    row("bptt", {0: 0.5, 1: 0.52}, 10),
    row("tbptt", {0: 0.7, 1: 0.75}, 280),
    row("tbptt", {0: 0.1, 1: 0.1}, 280, lr=1e-9),  # the control of another rate
    row("fptt", {0: 0.72, 1: 0.76}, 280),
]
LONG = [row("tbptt", {0: 0.9}, 560, epochs=9), row("fptt", {0: 0.91}, 560, epochs=9)]


def test_the_longest_training_with_a_control_stands_for_a_task() -> None:
    alone = [row("fptt", {0: 0.99}, 9999)]
    (found,) = paper_rows({"alone": alone, "short": SHORT, "long": LONG}, {})
    assert (found.experiment, found.task.name) == ("long", "S-MNIST")
    assert set(found.ours) == {"fptt", "tbptt"}
    (found,) = paper_rows({"alone": alone}, {})
    assert found.experiment == "alone"


def test_of_equally_long_trainings_the_one_that_validates_best_stands_for_a_task() -> None:
    """By FPTT or TBPTT, whichever is better; all seeds count."""
    slow, fast = ([row(own["method"], own["tests"], own["updates"], lr=lr) for own in LONG] for lr in (1e-4, 1e-3))
    better = [row("tbptt", {0: 0.95}, 560, lr=1e-5), row("fptt", {0: 0.6}, 560, lr=1e-5)]
    (found,) = paper_rows({"a": [*slow, *better, *fast]}, {})
    assert found.ours["fptt"]["config"].lr == 1e-5
    seeds = [row("tbptt", {0: 0.3, 1: 0.3}, 560), row("fptt", {0: 0.3, 1: 0.3}, 560)]
    (found,) = paper_rows({"a": [*better, *seeds]}, {})
    assert found.ours["fptt"]["num_seeds"] == 2
    for updates, experiment in ((1119, "seeds"), (1121, "longer")):  # two seeds have made 1,120
        longer = [row(method, {0: 0.9}, updates) for method in ("tbptt", "fptt")]
        (found,) = paper_rows({"longer": longer, "seeds": seeds}, {})
        assert found.experiment == experiment
    errors = [row("fptt", {0: error}, 5, "mse", task="adding", length=200, lr=error) for error in (0.3, 0.1, 0.2)]
    (found,) = paper_rows({"a": errors}, {})
    assert found.ours["fptt"]["config"].lr == 0.1


@pytest.mark.parametrize("metric", ["accuracy", "mse"])
def test_a_diverged_validation_is_the_worst(metric: str) -> None:
    """Wherever it stands, and whether of FPTT or of its control."""
    setting: dict[str, Any] = {} if metric == "accuracy" else {"task": "adding", "length": 200}
    methods = ("fptt", "tbptt")
    diverged = [row(method, {0: math.nan}, 5, metric, lr=0.1, **setting) for method in methods]
    half = [
        row(method, {0: test}, 5, metric, lr=0.2, **setting) for method, test in (("fptt", math.nan), ("tbptt", 0.4))
    ]
    for rows in ([*diverged, *half], [*half, *diverged]):
        (found,) = paper_rows({"a": rows}, {})
        assert found.ours["fptt"]["config"].lr == 0.2


def test_inputs_as_published_come_before_longer_training() -> None:
    other = [row(own["method"], own["tests"], 10 * own["updates"], standardization="none") for own in LONG]
    (found,) = paper_rows({"short": SHORT, "other": other}, {})
    assert found.experiment == "short"
    (found,) = paper_rows({"other": other}, {})
    assert paper_cells([found])[1][0] == "[S-MNIST](#other) (accuracy, %) †"


def test_the_cells_of_a_task() -> None:
    rows = paper_rows({"short": SHORT}, REFERENCES)
    _, cells = paper_cells(rows, "docs/results.md")
    assert cells[:8] == [
        "[S-MNIST](docs/results.md#short) (accuracy, %)",
        *("97.71", "98.67", "97.52", "97.44"),
        *("51.00 ± 1.00 (2)", "72.50 ± 1.00 (2)", "74.00 ± 1.00 (2)"),
    ]
    # paired: +2 and +1 points, mean 1.5; t with one degree of freedom is 12.706 times the standard error of 0.5
    assert cells[8] == "+1.50 [-4.85, +7.85]"
    assert cells[9] == "+23.00 [+10.29, +35.71]"
    assert cells[10:] == ["28", "2", "280; 10"]


def test_a_diverged_seed_has_no_deviation() -> None:
    for test, cell in ((math.nan, "– (2)"), (math.inf, "inf (2)")):
        rows = [row("fptt", {0: 0.72, 1: test}, 280), row("tbptt", {0: 0.7, 1: 0.75}, 280)]
        _, cells = paper_cells(paper_rows({"short": rows}, {}))
        assert cells[7] == cell


def test_methods_that_stopped_early_at_other_epochs_have_both_in_a_cell() -> None:
    rows = [{**own, "epochs": 43 + 2 / 3, "updates": 1.5 * own["updates"]} for own in SHORT]
    rows[1].update(epochs=43.0, updates=280)
    _, cells = paper_cells(paper_rows({"short": rows}, {}))
    assert cells[11:13] == ["43.7 and 43", "420 and 280; 15"]


def test_an_experiment_of_several_words_is_linked_to_its_section() -> None:
    _, cells = paper_cells(paper_rows({"My rows, again": SHORT}, {}))
    assert cells[0] == "[S-MNIST](#my-rows-again) (accuracy, %)"


def test_an_update_at_every_pixel_is_a_task_of_its_own() -> None:
    experiments = {"chunks": SHORT}
    for lanes, updates in (("together", 999), ("staggered", 1001)):
        experiments[lanes] = [row("fptt", {0: 0.6}, updates, num_chunks=784, lanes=lanes)]
    names = {found.experiment: found.task.name for found in paper_rows(experiments, {})}
    assert names == {
        "chunks": "S-MNIST",
        "together": "S-MNIST, K = T",
        "staggered": "S-MNIST, K = T, staggered lanes",
    }


def test_bptt_without_chunks_of_its_own_stands_beside_an_update_at_every_pixel() -> None:
    """Its row has lost the number of chunks, which makes no difference to it."""
    per_step = [row("bptt", {0: 0.5}, 9, num_chunks=8), row("fptt", {0: 0.6}, 999, num_chunks=784)]
    (found,) = paper_rows({"a": per_step}, {})
    assert (found.task.name, set(found.ours)) == ("S-MNIST, K = T", {"fptt", "bptt"})


def test_bptt_with_chunk_losses_does_not_stand_for_bptt() -> None:
    rows = [row("bptt", {0: 0.5}, 9), row("bptt", {0: 0.65}, 9, bptt_losses=28), row("fptt", {0: 0.6}, 252)]
    for order in (rows, rows[::-1]):
        _, cells = paper_cells(paper_rows({"a": order}, {}))
        assert cells[5:10] == ["50.00 (1)", "–", "60.00 (1)", "–", "+10.00"]


def test_a_control_of_another_precision_is_marked_and_comes_last() -> None:
    ours, other = row("fptt", {0: 0.6}, 9), row("tbptt", {0: 0.5}, 9, precision="bf16-mixed", accelerator="cuda")
    _, cells = paper_cells(paper_rows({"a": [ours, other]}, {}))
    assert cells[6:9] == ["50.00 (1) ‡", "60.00 (1)", "+10.00"]
    _, cells = paper_cells(paper_rows({"a": [ours, row("tbptt", {0: 0.4}, 9), other]}, {}))
    assert cells[6:9] == ["40.00 (1)", "60.00 (1)", "+20.00"]


def test_small_errors_have_four_digits() -> None:
    adding = [row("fptt", {0: 0.0012}, 5, "mse", task="adding", length=200, num_chunks=10)]
    _, cells = paper_cells(paper_rows({"adding": adding}, {}))
    assert cells[0] == "[adding, T = 200](#adding) (mean squared error)"
    assert cells[5:10] == ["–", "–", "0.0012 (1)", "–", "–"]


def test_the_figure_has_a_panel_for_each_metric(tmp_path: Path) -> None:
    adding = [row("fptt", {0: 0.0012}, 5, "mse", task="adding", length=200, num_chunks=10)]
    draw_paper(paper_rows({"a": SHORT, "b": adding}, REFERENCES), tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size > 5000


def test_equal_results_do_not_hide_one_another_in_the_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each method has a height of its own, with its published result and its seeds beside it."""
    heights: dict[str, set[float]] = {}

    def look(figure: Figure, path: Path) -> None:
        for line in figure.axes[0].get_lines():
            if line.get_marker() in {"o", "D"}:
                method = str(line.get_label()).split(",", maxsplit=1)[0]
                heights.setdefault(method, set()).update(np.asarray(line.get_ydata()).tolist())
        (seeds,) = (np.asarray(collection.get_offsets()).tolist() for collection in figure.axes[0].collections)
        assert seeds == [[50, pytest.approx(0.22)], [70, pytest.approx(0.22)]]
        plt.close(figure)

    monkeypatch.setattr("fptt.experiments.studies.paper.save_figure", look)
    rows = [row("fptt", {0: 0.5, 1: 0.7}, 9), row("tbptt", {0: 0.6}, 9), row("bptt", {0: 0.6}, 3)]
    draw_paper(paper_rows({"smnist": rows}, REFERENCES), Path("unused"))
    assert set(heights) == {"FPTT", "TBPTT", "BPTT"}
    assert all(len(own) == 1 for own in heights.values())
    assert len(set.union(*heights.values())) == 3


def test_a_table_is_put_between_the_marks_alone(tmp_path: Path) -> None:
    file = tmp_path / "README.md"
    file.write_text(f"before\n{MARKS[0]}old\n{MARKS[1]}after\n", encoding="utf-8")
    put_between_marks(file, "new\n")
    assert file.read_text(encoding="utf-8") == f"before\n{MARKS[0]}new\n{MARKS[1]}after\n"
    file.write_text("no marks\n", encoding="utf-8")
    put_between_marks(file, "new\n")
    assert file.read_text(encoding="utf-8") == "no marks\n"
