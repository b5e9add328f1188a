"""The report of `fptt bench memory`: a table, the growth of memory with T, and a plot."""

from collections.abc import Iterator
from pathlib import Path

import matplotlib.pyplot as plt
from rich.console import Console

from fptt.experiments.benchmarks.reports import BenchReport, measured_on, save_report
from fptt.experiments.process.console import say
from fptt.experiments.studies.tables import Row, console_table, markdown_table
from fptt.experiments.training.plots import COLORS, save_figure

MEMORY_HEADS = ("method", "T", "peak", "above the start", "updates", "seconds")


def save_memory(report: BenchReport, out: Path) -> Path:
    """Write report, table and plot; return the plot."""
    save_report(report, memory_markdown(report), out, "memory")
    plot = out / "memory-against-T.png"
    draw_memory(report, plot)
    return plot


def show_memory(report: BenchReport, console: Console) -> None:
    """Print table, fits and notes."""
    cells = [MEMORY_HEADS, *map(memory_cells, report["rows"])]
    console.print(console_table(cells, "memory of training", num_left=1))
    say(console, "\n".join(conclusions(report)))


def memory_markdown(report: BenchReport) -> str:
    """Return table, fits and notes in Markdown."""
    table = markdown_table([MEMORY_HEADS, *map(memory_cells, report["rows"])], num_left=1)
    lines = [
        "# Memory of training",
        "",
        f"{measured_on(report)}.",
        "",
        table,
        *(f"* {line}" for line in conclusions(report)),
    ]
    return "\n".join(lines) + "\n"


def memory_cells(row: Row) -> list[str]:
    """Return the text of a row, in the order of `MEMORY_HEADS`."""
    return [
        row["method"].upper(),
        f"{row['sequence_length']:,}",
        f"{row['peak_memory_bytes'] / 2**20:,.1f} MiB",
        f"{row['training_memory_bytes'] / 2**20:,.1f} MiB",
        f"{row['updates']:,}",
        f"{row['seconds']:.1f}",
    ]


def conclusions(report: BenchReport) -> Iterator[str]:
    """Yield the fits, the growth and the notes."""
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


def draw_memory(report: BenchReport, path: Path) -> None:
    """Draw the peak against T; dotted, the part of training above the start."""
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
    figure.legend(loc="outside right upper", fontsize="small", frameon=False)
    save_figure(figure, path)
