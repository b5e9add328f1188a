"""Table, Markdown and picture of `fptt bench memory`."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from rich.console import Console
from rich.table import Table

from fptt.experiments.training.plots import COLORS, save_figure

Report = Mapping[str, Any]

COLUMNS = ("method", "T", "peak", "above the start", "updates", "seconds")


def save(report: Report, out: Path) -> Path:
    """Write report, table and picture; return the picture."""
    (out / "memory.json").write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    (out / "memory.md").write_text(markdown(report), encoding="utf-8")
    picture = out / "memory-against-T.png"
    _draw(report, picture)
    return picture


def show(report: Report, console: Console) -> None:
    """Print table, fits and notes."""
    table = Table(title="memory of training", title_justify="left")
    table.add_column(COLUMNS[0])
    for column in COLUMNS[1:]:
        table.add_column(column, justify="right")
    for row in report["rows"]:
        table.add_row(*cells(row))
    console.print(table)
    console.print("\n".join(lines(report)), highlight=False, soft_wrap=True)


def markdown(report: Report) -> str:
    """Return table, fits and notes in Markdown."""
    where = ", ".join(f"{name} {value}" for name, value in report["environment"].items())
    table = [COLUMNS, ["---"] + ["---:"] * (len(COLUMNS) - 1), *(cells(row) for row in report["rows"])]
    text = ["# Memory of training", "", f"{where}.", "", *(f"| {' | '.join(line)} |" for line in table), ""]
    return "\n".join([*text, *(f"* {line}" for line in lines(report))]) + "\n"


def cells(row: Mapping[str, Any]) -> list[str]:
    """Return the text of a row, in the order of `COLUMNS`."""
    return [
        row["method"].upper(),
        f"{row['sequence_length']:,}",
        f"{row['peak_memory_bytes'] / 2**20:,.1f} MiB",
        f"{row['training_memory_bytes'] / 2**20:,.1f} MiB",
        f"{row['updates']:,}",
        f"{row['seconds']:.1f}",
    ]


def lines(report: Report) -> Iterator[str]:
    """Yield what the rows come to."""
    for method, fit in report["fits"].items():
        yield (
            f"{method.upper()}: {fit['bytes_per_step']:,.1f} bytes a time step above "
            f"{fit['intercept_bytes'] / 2**20:,.0f} MiB (least squares)"
        )
    lengths = [row["sequence_length"] for row in report["rows"] if row["method"] == "fptt"]
    if len(lengths) > 1:
        growth = report["fptt_growth_percent"]
        yield f"FPTT's peak from T = {min(lengths):,} to T = {max(lengths):,}: {growth:+.2f} %"
    yield from (f"note: {note}" for note in report["notes"])


def _draw(report: Report, path: Path) -> None:
    """Draw the peak against T; dotted, what training takes above the start."""
    figure, axis = plt.subplots(figsize=(5.6, 3.8), layout="constrained")
    styles = {"peak_memory_bytes": ("-", "peak"), "training_memory_bytes": (":", "above the start")}
    for method in dict.fromkeys(row["method"] for row in report["rows"]):
        rows = [row for row in report["rows"] if row["method"] == method]
        for name, (style, label) in styles.items():
            points = [(row["sequence_length"], row[name] / 2**20) for row in rows if row[name] > 0]
            axis.plot(
                *zip(*points, strict=True),
                style,
                color=COLORS[method],
                linewidth=1.2,
                marker=".",
                label=f"{method.upper()}, {label}",
            )
    axis.set(xlabel="T, time steps", ylabel="memory, MiB", xscale="log", yscale="log")
    axis.grid(alpha=0.25, which="both")
    axis.legend(fontsize="small")
    save_figure(figure, path)
