"""The report of `fptt bench speed`: a table, ratios and panels for each workload."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from rich.console import Console

from fptt.experiments.benchmarks.reports import BenchReport, distinct, draw_line, measured_on, save_report
from fptt.experiments.process.console import say
from fptt.experiments.studies.tables import Row, console_table, markdown_table
from fptt.experiments.training.plots import COLORS, save_figure

SPEED_HEADS = ("method", "engine", "kernel", "K", "seconds", "floor", "× floor", "× BPTT", "× literal")
LITERAL_COLOR = "tab:orange"
FLOOR_COLOR = "black"
ENGINE_STYLES = {"eager": "-", "compiled": "--", None: "-"}


def save_speed(report: BenchReport, out: Path) -> None:
    """Write report and tables."""
    save_report(report, speed_markdown(report), out, "speed")


def draw_speed(report: BenchReport, out: Path) -> list[Path]:
    """Draw the plots and return them; that against T needs more than one T."""
    plots = [out / "time-against-K.png"]
    draw_time_against_chunks(report["rows"], plots[0])
    if len({row["sequence_length"] for row in report["rows"]}) > 1:
        plots.append(out / "time-against-T.png")
        draw_time_against_length(report["rows"], plots[1])
    return plots


def show_speed(report: BenchReport, console: Console) -> None:
    """Print tables, notes and headlines."""
    for title, rows in by_workload(report["rows"]):
        cells = [SPEED_HEADS, *map(speed_cells, rows)]
        console.print(console_table(cells, f"{title}: seconds a batch", num_left=3))
    for note in report["notes"]:
        say(console, f"note: {note}")
    for title, rows in by_workload(report["rows"]):
        say(console, "\n  ".join([title, *headlines(rows)]))


def speed_markdown(report: BenchReport) -> str:
    """Return tables, notes and headlines in Markdown."""
    lines = [
        "# Seconds a batch",
        "",
        f"{measured_on(report)}; medians of {report['settings']['repeats']} rounds.",
        "",
    ]
    lines += [f"* {note}" for note in report["notes"]]
    for title, rows in by_workload(report["rows"]):
        table = markdown_table([SPEED_HEADS, *map(speed_cells, rows)], num_left=3)
        lines += ["", f"## {title}", "", table, *(f"* {line}" for line in headlines(rows))]
    return "\n".join(lines) + "\n"


def by_workload(rows: Sequence[Row]) -> Iterator[tuple[str, list[Row]]]:
    """Yield a title and the rows of each workload, by batch size."""
    keys = dict.fromkeys((row["batch_size"], row["cell"], row["sequence_length"], row["precision"]) for row in rows)
    for batch_size, cell, length, precision in sorted(keys, key=lambda key: key[0]):
        wanted = {"batch_size": batch_size, "cell": cell, "sequence_length": length, "precision": precision}
        title = f"batch {batch_size}, {cell}, T = {length}, {precision}"
        yield title, [row for row in rows if wanted.items() <= row.items()]


def speed_cells(row: Row) -> list[str]:
    """Return the text of a row, in the order of `SPEED_HEADS`."""
    literal = row["ratio_to_literal"]
    return [
        row["method"],
        row["engine"] or "–",
        row["kernel"],
        f"{row['num_chunks']:,}",
        f"{row['seconds']:.4f}",
        f"{row['floor_seconds']:.4f}",
        f"{row['seconds'] / row['floor_seconds']:.2f}",
        f"{row['ratio_to_bptt']:.2f}",
        "–" if literal is None else f"{literal:.2f}",
    ]


def headlines(rows: Sequence[Row]) -> list[str]:
    """Return the ratios of one workload that matter most."""
    lines = []
    for num_chunks in sorted({row["num_chunks"] for row in rows if row["method"] == "fptt"}, reverse=True):
        if num_chunks == rows[0]["sequence_length"]:
            lines.append(_every_step(rows, num_chunks))
        else:
            lines.append(_chunked(rows, num_chunks))
            lines += _bookkeeping(rows, num_chunks)
    return lines


def _every_step(rows: Sequence[Row], num_chunks: int) -> str:
    """Return the headline of FPTT with an update a time step, compiled where there is such a row."""
    found = _find(rows, "fptt", num_chunks)
    row = next((row for row in found if row["engine"] == "compiled"), found[0])
    return (
        f"{row['engine']} FPTT, K = T = {num_chunks}: {row['ratio_to_literal']:.2f} × literal, "
        f"{row['ratio_to_bptt']:.2f} × BPTT, {row['seconds'] / row['floor_seconds']:.2f} × the floor"
    )


def _chunked(rows: Sequence[Row], num_chunks: int) -> str:
    """Return the headline of FPTT with fewer chunks, by the faster engine of each method."""
    fptt, tbptt = (min(_find(rows, method, num_chunks), key=lambda row: row["seconds"]) for method in ("fptt", "tbptt"))
    return (
        f"{fptt['engine']} FPTT, K = {num_chunks}: {fptt['seconds'] / tbptt['seconds']:.3f} × {tbptt['engine']} TBPTT, "
        f"{fptt['ratio_to_bptt']:.2f} × BPTT, {fptt['seconds'] / fptt['floor_seconds']:.2f} × the floor"
    )


def _bookkeeping(rows: Sequence[Row], num_chunks: int) -> list[str]:
    """Return the cost of averages, duals and penalties, by the eager rows."""
    seconds = {
        method: row["seconds"]
        for method in ("fptt", "tbptt")
        for row in _find(rows, method, num_chunks)
        if row["engine"] == "eager" and row["layers"] == "fused"
    }
    if len(seconds) < 2:
        return []
    return [
        f"bookkeeping of eager FPTT over eager TBPTT, K = {num_chunks}: {seconds['fptt'] / seconds['tbptt'] - 1:+.1%}"
    ]


def _find(rows: Sequence[Row], method: str, num_chunks: int) -> list[Row]:
    return [row for row in rows if (row["method"], row["num_chunks"]) == (method, num_chunks)]


def draw_time_against_chunks(rows: Sequence[Row], path: Path) -> None:
    """Draw the seconds of a batch against K: a panel for each cell, length, precision and batch size."""
    rows = [row for row in rows if row["layers"] == "fused" or row["method"] == "literal"]

    def draw(axis: Axes, panel: list[Row]) -> None:
        bptt = next(row["seconds"] for row in panel if row["method"] == "bptt")
        axis.axhline(bptt, color=COLORS["bptt"], linewidth=1.2, label="BPTT")
        _draw_lines(axis, [row for row in panel if row["method"] != "bptt"], "num_chunks")

    _draw_panels(rows, ("cell", "sequence_length", "precision"), "K, chunks a sequence", draw, path)


def draw_time_against_length(rows: Sequence[Row], path: Path) -> None:
    """Draw the seconds of a batch against T, with the most chunks measured: a panel for each cell and batch size."""
    rows = [row for row in rows if row["layers"] == "fused" or row["method"] == "literal"]
    most: dict[int, int] = {}
    for row in rows:
        most[row["sequence_length"]] = max(row["num_chunks"], most.get(row["sequence_length"], 0))
    chosen = [row for row in rows if row["method"] == "bptt" or row["num_chunks"] == most[row["sequence_length"]]]

    def draw(axis: Axes, panel: list[Row]) -> None:
        _draw_lines(axis, panel, "sequence_length")

    _draw_panels(chosen, ("cell", "precision"), "T, time steps", draw, path)


def _draw_panels(
    rows: Sequence[Row], names: tuple[str, ...], x_label: str, draw: Callable[[Axes, list[Row]], None], path: Path
) -> None:
    """Draw a grid of panels: batch sizes from left to right, the values of the named columns from top to bottom."""
    sides, batch_sizes = distinct(rows, *names), distinct(rows, "batch_size")
    size = (2.4 + 3.4 * len(batch_sizes), 0.6 + 3.2 * len(sides))
    figure, axes = plt.subplots(len(sides), len(batch_sizes), figsize=size, layout="constrained", squeeze=False)
    for line, side in zip(axes, sides, strict=True):
        for axis, (batch_size,) in zip(line, batch_sizes, strict=True):
            place = dict(zip((*names, "batch_size"), (*side, batch_size), strict=True))
            draw(axis, [row for row in rows if place.items() <= row.items()])
            title = ", ".join(value if isinstance(value, str) else f"T = {value}" for value in side)
            axis.set(xlabel=x_label, title=f"{title}, batch {batch_size}", yscale="log")
            axis.grid(alpha=0.25, which="both")
        line[0].set_ylabel("seconds a batch")
    figure.legend(*axes[0][0].get_legend_handles_labels(), loc="outside right upper", fontsize="small")
    save_figure(figure, path)


def _draw_lines(axis: Axes, rows: Sequence[Row], x: str) -> None:
    """Draw a line for each method and engine, and the floor of FPTT."""
    for method, engine in distinct(rows, "method", "engine"):
        line = sorted((r for r in rows if (r["method"], r["engine"]) == (method, engine)), key=lambda r: r[x])
        label = method if method == "literal" else method.upper() + (f", {engine}" if method != "bptt" else "")
        color = COLORS.get(method, LITERAL_COLOR)
        draw_line(axis, line, x, "seconds", color=color, linestyle=ENGINE_STYLES[engine], marker=".", label=label)
    floors = {row[x]: row for row in rows if row["method"] == "fptt"}
    line = [floors[value] for value in sorted(floors)]
    draw_line(axis, line, x, "floor_seconds", color=FLOOR_COLOR, linestyle=":", label="floor of FPTT")
    values = sorted({row[x] for row in rows})
    axis.set_xscale("log")
    axis.set_xticks(values, [f"{value:,}" for value in values])
    axis.set_xticks([], minor=True)
