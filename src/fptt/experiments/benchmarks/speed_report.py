"""Tables of `fptt bench speed`, for the terminal and in Markdown, and the ratios to look at first."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from fptt.experiments.benchmarks.speed_figures import draw_time_against_chunks, draw_time_against_length

Row = Mapping[str, Any]

COLUMNS = ("method", "engine", "K", "seconds", "floor", "× floor", "× BPTT", "× literal")
NUM_TEXT_COLUMNS = 2


def save(report: Mapping[str, Any], out: Path) -> None:
    """Write report and tables."""
    (out / "speed.json").write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    (out / "speed.md").write_text(markdown(report), encoding="utf-8")


def draw(report: Mapping[str, Any], out: Path) -> list[Path]:
    """Draw the pictures and return them; that against T needs more than one T."""
    pictures = [out / "time-against-K.png"]
    draw_time_against_chunks(report["rows"], pictures[0])
    if len({row["sequence_length"] for row in report["rows"]}) > 1:
        pictures.append(out / "time-against-T.png")
        draw_time_against_length(report["rows"], pictures[1])
    return pictures


def show(report: Mapping[str, Any], console: Console) -> None:
    """Print tables, notes and headlines."""
    for title, rows in by_setting(report["rows"]):
        table = Table(title=f"{title}: seconds a batch", title_justify="left")
        for number, column in enumerate(COLUMNS):
            table.add_column(column, justify="left" if number < NUM_TEXT_COLUMNS else "right")
        for row in rows:
            table.add_row(*cells(row))
        console.print(table)
    for note in report["notes"]:
        console.print(f"note: {note}", highlight=False, soft_wrap=True)
    for title, rows in by_setting(report["rows"]):
        console.print("\n  ".join([title, *headlines(rows)]), highlight=False, soft_wrap=True)


def markdown(report: Mapping[str, Any]) -> str:
    """Return tables, notes and headlines in Markdown."""
    where = ", ".join(f"{name} {value}" for name, value in report["environment"].items())
    rule = ["---"] * NUM_TEXT_COLUMNS + ["---:"] * (len(COLUMNS) - NUM_TEXT_COLUMNS)
    lines = ["# Seconds a batch", "", f"{where}; medians of {report['settings']['repeats']} rounds.", ""]
    lines += [f"* {note}" for note in report["notes"]]
    for title, rows in by_setting(report["rows"]):
        table = [COLUMNS, rule, *(cells(row) for row in rows)]
        lines += ["", f"## {title}", "", *(f"| {' | '.join(line)} |" for line in table), ""]
        lines += [f"* {line}" for line in headlines(rows)]
    return "\n".join(lines) + "\n"


def by_setting(rows: Sequence[Row]) -> Iterator[tuple[str, list[Row]]]:
    """Yield a title and the rows of each setting, by batch size."""
    keys = dict.fromkeys((row["batch_size"], row["cell"], row["sequence_length"]) for row in rows)
    for batch_size, cell, length in sorted(keys, key=lambda key: key[0]):
        wanted = {"batch_size": batch_size, "cell": cell, "sequence_length": length}
        yield f"batch {batch_size}, {cell}, T = {length}", [row for row in rows if wanted.items() <= row.items()]


def cells(row: Row) -> list[str]:
    """Return the text of a row, in the order of `COLUMNS`."""
    literal = row["ratio_to_literal"]
    return [
        row["method"],
        row["engine"] or "–",
        f"{row['num_chunks']:,}",
        f"{row['seconds']:.4f}",
        f"{row['floor_seconds']:.4f}",
        f"{row['seconds'] / row['floor_seconds']:.2f}",
        f"{row['ratio_to_bptt']:.2f}",
        "–" if literal is None else f"{literal:.2f}",
    ]


def headlines(rows: Sequence[Row]) -> list[str]:
    """Return the ratios of one setting that matter most."""
    lines = []
    for num_chunks in sorted({row["num_chunks"] for row in rows if row["method"] == "fptt"}, reverse=True):
        if num_chunks == rows[0]["sequence_length"]:
            lines.append(_every_step(rows, num_chunks))
        else:
            lines.append(_chunked(rows, num_chunks))
            lines += _bookkeeping(rows, num_chunks)
    return lines


def _every_step(rows: Sequence[Row], num_chunks: int) -> str:
    """Compare FPTT with an update a time step, compiled where there is such a row."""
    found = _find(rows, "fptt", num_chunks)
    row = next((row for row in found if row["engine"] == "compiled"), found[0])
    return (
        f"{row['engine']} FPTT, K = T = {num_chunks}: {row['ratio_to_literal']:.2f} × literal, "
        f"{row['ratio_to_bptt']:.2f} × BPTT, {row['seconds'] / row['floor_seconds']:.2f} × the floor"
    )


def _chunked(rows: Sequence[Row], num_chunks: int) -> str:
    """Compare FPTT with fewer chunks, by the faster engine of each method."""
    fptt, tbptt = (min(_find(rows, method, num_chunks), key=lambda row: row["seconds"]) for method in ("fptt", "tbptt"))
    return (
        f"{fptt['engine']} FPTT, K = {num_chunks}: {fptt['seconds'] / tbptt['seconds']:.3f} × {tbptt['engine']} TBPTT, "
        f"{fptt['ratio_to_bptt']:.2f} × BPTT"
    )


def _bookkeeping(rows: Sequence[Row], num_chunks: int) -> list[str]:
    """Say what averages, duals and penalties cost, by the eager rows."""
    seconds = {
        method: row["seconds"]
        for method in ("fptt", "tbptt")
        for row in _find(rows, method, num_chunks)
        if row["engine"] == "eager"
    }
    if len(seconds) < 2:
        return []
    return [
        f"bookkeeping of eager FPTT over eager TBPTT, K = {num_chunks}: {seconds['fptt'] / seconds['tbptt'] - 1:+.1%}"
    ]


def _find(rows: Sequence[Row], method: str, num_chunks: int) -> list[Row]:
    return [row for row in rows if (row["method"], row["num_chunks"]) == (method, num_chunks)]
