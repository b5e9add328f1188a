import math
from typing import Any, cast

import pytest

from fptt.experiments.configs.config import TrainConfig
from fptt.experiments.studies.differences import difference_cells, pairs_with_base
from fptt.experiments.studies.finished_run import FinishedRun
from fptt.experiments.studies.tables import console_table, markdown_table, number, seed_rows, with_sd
from tests.experiments.studies.runs import SMALL

INF, NAN = math.inf, math.nan


def run(test: float, **changes: Any) -> FinishedRun:
    """Return a run without files."""
    costs = {"epochs": 1, "updates": 2, "seconds": 3.0, "peak_memory_bytes": 5, "training_memory_bytes": 4}
    summary = {"test_mse": test, "validation_mse": 1.0, **costs, "commit": None, "device": "cpu", "torch": "2.9"}
    return FinishedRun(cast(Any, None), "", SMALL, {**summary, **changes}, [])


def test_rows_are_over_the_runs_of_their_key() -> None:
    earlier = [{"device": "tpu", "torch": "2.8", "commit": None}]
    runs = [run(1.0), run(7.0), run(2.0, updates=5, device="gpu", earlier_environments=earlier), run(4.5)]
    rows = seed_rows(runs, [("b", 1), ("a", ()), ("b", 1), ("b", 1)])
    assert list(rows) == [("b", 1), ("a", ())]
    row = rows["b", 1]
    assert (row["num_seeds"], row["test_mse_mean"], row["updates"]) == (3, 2.5, 3)
    assert row["test_mse_sd"] == pytest.approx(math.sqrt((1.5**2 + 0.5**2 + 2**2) / 2))
    assert (row["device"], row["commit"]) == (["cpu", "gpu", "tpu"], ["None"])
    assert math.isnan(rows["a", ()]["test_mse_sd"])


@pytest.mark.parametrize(
    ("values", "shown"),
    [
        ([0.5], "0.5000"),
        ([0.5, 1.5], "1.0000 ± 0.7071"),
        ([INF], "inf"),
        ([INF, 5.0], "inf"),
        ([INF, -INF], "–"),
        ([NAN, 1.0], "–"),
        ([1e300, 1e300], "1e+300 ± 0"),
        ([1e308, 1e308], "inf"),
    ],
    ids=str,
)
def test_a_diverged_seed_is_neither_an_error_nor_forgotten(values: list[float], shown: str) -> None:
    (row,) = seed_rows([run(value) for value in values], [0] * len(values)).values()
    assert with_sd(row, "test_mse") == shown


def test_numbers() -> None:
    found = [
        number(*arguments) for arguments in [(None, "g"), (NAN, ".4f"), (-INF, "+.4f"), (INF, "+.4g"), (0.5, "+g")]
    ]
    assert found == ["–", "–", "-inf", "+inf", "+0.5"]


def test_tables_have_the_same_cells_in_both_forms() -> None:
    cells = [["name", "value"], ["a", "1"], ["b", "2"]]
    assert markdown_table(cells) == "| name | value |\n| --- | --- |\n| a | 1 |\n| b | 2 |\n"
    assert markdown_table(cells, num_left=1).splitlines()[1] == "| --- | ---: |"
    table = console_table(cells, num_left=1)
    assert [column.justify for column in table.columns] == ["left", "right"]
    assert [list(column.cells) for column in table.columns] == [["a", "b"], ["1", "2"]]


def test_small_squared_errors_are_shown() -> None:
    """Four digits, where four decimals would be zeros; of an accuracy, and of larger errors, those decimals."""
    row = {"test_mse_mean": 1.25e-6, "test_mse_sd": 3e-7, "test_accuracy_mean": 1.25e-6, "test_accuracy_sd": 0.5}
    assert with_sd(row, "test_mse") == "1.25e-06 ± 3e-07"
    assert with_sd(row, "test_accuracy") == "0.0000 ± 0.5000"
    assert with_sd({"test_mse_mean": 0.0014, "test_mse_sd": 6e-4}, "test_mse") == "0.0014 ± 0.0006"
    fptt, tbptt = TrainConfig(), TrainConfig(method="tbptt")
    rows = [{"config": fptt, "tests": {0: 1e-6, 1: 2e-6}}, {"config": tbptt, "tests": {0: 3e-6, 1: 5e-6}}]
    (_, line) = difference_cells(pairs_with_base(rows), fptt, "mse")
    assert line[2] == "-2.5e-06"
    assert line[3].startswith("[-8.85")
