"""What the reports of all benchmarks have in common: their files, and helpers for their tables and plots."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes

from fptt.experiments.process.files import replace_text
from fptt.experiments.studies.tables import Row

BenchReport = Mapping[str, Any]


def save_report(report: BenchReport, markdown: str, out: Path, name: str) -> None:
    """Write a report as NAME.json, and its tables as NAME.md."""
    replace_text(out / f"{name}.json", json.dumps(report, indent=2, ensure_ascii=False) + "\n")
    replace_text(out / f"{name}.md", markdown)


def measured_on(report: BenchReport) -> str:
    """Return what a report was measured on, as a phrase."""
    return ", ".join(f"{name} {value}" for name, value in report["environment"].items())


def distinct(rows: Sequence[Row], *names: str) -> list[tuple[Any, ...]]:
    """Return the values of some columns that occur, in order."""
    return list(dict.fromkeys(tuple(row[name] for name in names) for row in rows))


def draw_line(axis: Axes, rows: Sequence[Row], x: str, y: str, **style: Any) -> None:
    """Draw a column of rows against another one."""
    axis.plot([row[x] for row in rows], [row[y] for row in rows], **{"linewidth": 1.2, "alpha": 0.85, **style})
