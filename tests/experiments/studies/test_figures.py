"""The figures in README, recipes and the page of results are those of the runs in `results/`."""

import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from fptt.experiments.configs.recipes import RECIPES
from fptt.experiments.studies.page import make_rows, read_results, write_report
from fptt.experiments.studies.references import REFERENCES

ROOT = Path(__file__).parents[3]
NAMES = {"bits_per_character": "bits per character"}
"""Metrics as recipes call them, where that is another name."""


@cache
def experiments() -> dict[str, list[dict[str, Any]]]:
    """Return the rows of every experiment in `results/`."""
    found = read_results(ROOT / "results")
    return {name: make_rows(name, runs, REFERENCES) for name, runs in found.experiments.items()}


def row_of(experiment: str, method: str) -> Mapping[str, Any]:
    rows = [
        row for row in experiments()[experiment] if row["method"] == method and row["group"] in {"", "equal-epochs"}
    ]
    assert len(rows) == 1, f"{experiment} has {len(rows)} settings of {method}"
    return rows[0]


def written(mean: float, sd: float, num_seeds: int, digits: int) -> str:
    return f"{mean:.{digits}f}" + (" (one seed)" if num_seeds == 1 else f" ± {sd:.{digits}f}")


@pytest.mark.parametrize("name", [name for name, recipe in RECIPES.items() if recipe.result])
def test_the_figure_of_a_recipe_is_that_of_its_runs(name: str) -> None:
    text = RECIPES[name].result
    assert text is not None
    row = row_of(name, "fptt")
    metric = row["metric"]
    found = re.fullmatch(r"(.*?) ([\d.]+)( ± [\d.]+| \(one seed\))", text)
    assert found is not None, text
    digits = len(found[2].partition(".")[2])
    mean, sd = row[f"test_{metric}_mean"], row[f"test_{metric}_sd"]
    assert text == f"{NAMES.get(metric, metric)} {written(mean, sd, row['num_seeds'], digits)}"


def table(text: str, first_head: str) -> list[list[str]]:
    """Return the lines of the first table whose head begins so, without head and rule."""
    lines = text.splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith(f"| {first_head} |"))
    end = next(number for number in range(start, len(lines)) if not lines[number].startswith("|"))
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[start + 2 : end]]


def test_the_table_of_the_readme_is_that_of_its_runs() -> None:
    lines = table((ROOT / "README.md").read_text(encoding="utf-8"), "method | test accuracy (mean ± sd)")
    assert [line[0] for line in lines] == ["BPTT", "TBPTT-8", "FPTT-8"]
    for name, *cells in lines:
        row = row_of("digits", name.partition("-")[0].lower())
        assert cells == [
            written(row["test_accuracy_mean"], row["test_accuracy_sd"], row["num_seeds"], 4),
            f"{row['updates']:,.0f}",
            f"{row['seconds']:.1f}",
            f"{row['training_memory_bytes'] / 2**20:.0f} MiB",
        ]


def test_the_sentence_about_an_update_at_every_pixel_is_that_of_its_runs() -> None:
    text = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    for method in ("fptt", "tbptt", "bptt"):
        row = row_of("digits-per-step", method)
        assert written(row["test_accuracy_mean"], row["test_accuracy_sd"], row["num_seeds"], 4) in text
        assert f"{row['updates']:,.0f}" in text


def test_the_page_of_results_is_that_of_the_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bit for bit but for the pictures, whose bits depend on the version of matplotlib."""

    def draw(*arguments: Any) -> None:
        next(argument for argument in arguments if isinstance(argument, Path)).touch()

    for name in ("draw_runs", "draw_paper"):
        monkeypatch.setattr(f"fptt.experiments.studies.page.{name}", draw)
    readme = tmp_path / "README.md"
    readme.write_text((ROOT / "README.md").read_text(encoding="utf-8").replace("%) †", "%)"), encoding="utf-8")
    page = write_report(ROOT / "results", tmp_path / "docs", ROOT / "runs", REFERENCES, readme)
    assert readme.read_text(encoding="utf-8") == (ROOT / "README.md").read_text(encoding="utf-8")
    assert page.read_text(encoding="utf-8") == (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    pictures = {file.name for file in (tmp_path / "docs" / "figures").iterdir()}
    assert pictures <= {file.name for file in (ROOT / "docs" / "figures").iterdir()}
