"""The report of `fptt bench spiking`: one table."""

from pathlib import Path

from rich.console import Console

from fptt.experiments.benchmarks.reports import BenchReport, measured_on, save_report
from fptt.experiments.process.console import say
from fptt.experiments.studies.tables import console_table, markdown_table


def spiking_cells(report: BenchReport) -> list[tuple[str, ...]]:
    """Return heads and rows of the table."""
    rows = report["rows"]
    heads = ("method", "ms a batch", "from", "to", f"× faster than {rows[0]['base']}")
    times = [[f"{1000 * row[name]:.1f}" for name in ("seconds", "seconds_min", "seconds_max")] for row in rows]
    return [heads, *((row["name"], *own, f"{row['times_faster']:.2f}") for row, own in zip(rows, times, strict=True))]


def save_spiking(report: BenchReport, out: Path) -> None:
    """Write report and table."""
    save_report(report, spiking_markdown(report), out, "spiking")


def spiking_markdown(report: BenchReport) -> str:
    """Return table and notes in Markdown."""
    settings = report["settings"]
    about = f"T = {settings['sequence_length']}, batch {settings['batch_size']}, {settings['hidden_size']} LIF neurons"
    measured = f"{about}; {measured_on(report)}; {settings['repeats']} rounds."
    lines = ["# A spiking network, an update a step", "", measured, ""]
    lines += [markdown_table(spiking_cells(report), num_left=1), *(f"* {note}" for note in report["notes"])]
    return "\n".join(lines) + "\n"


def show_spiking(report: BenchReport, console: Console) -> None:
    """Print table and notes."""
    console.print(console_table(spiking_cells(report), "a spiking network, an update a step", num_left=1))
    for note in report["notes"]:
        say(console, f"note: {note}")
