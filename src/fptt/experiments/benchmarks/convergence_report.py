"""The report of `fptt bench convergence`: a table and a line of panels for each problem."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
from rich.console import Console

from fptt.experiments.benchmarks.convergence import slope
from fptt.experiments.benchmarks.reports import BenchReport, distinct, draw_line, measured_on, save_report
from fptt.experiments.studies.tables import Row, console_table, markdown_table
from fptt.experiments.training.plots import COLORS, save_figure

CONVERGENCE_HEADS = ("method", "updates", "average", "its slope", "cut", "by BPTT", "from the answer")
CONVERGENCE_COLORS = {
    "SGD on the mean": COLORS["bptt"],
    "TBPTT": COLORS["tbptt"],
    "FPTT paper": COLORS["fptt"],
    "FPTT released": "tab:orange",
    "FPTT paper, recomputed": "tab:purple",
}


def save_convergence(report: BenchReport, out: Path) -> Path:
    """Write report, tables and plot; return the plot."""
    save_report(report, convergence_markdown(report), out, "convergence")
    plot = out / "convergence.png"
    draw_convergence(report, plot)
    return plot


def show_convergence(report: BenchReport, console: Console) -> None:
    """Print a table for each problem."""
    for problem, rows in _by_problem(report["rows"]):
        cells = [CONVERGENCE_HEADS, *convergence_cells(rows)]
        console.print(console_table(cells, f"{problem}: after {rows[-1]['passes']:,} passes", num_left=1))


def convergence_markdown(report: BenchReport) -> str:
    """Return a table for each problem in Markdown."""
    lines = [
        "# Gradients along the way and at the weights",
        "",
        f"{measured_on(report)}; seed {report['settings']['seed']}.",
    ]
    for problem, rows in _by_problem(report["rows"]):
        table = markdown_table([CONVERGENCE_HEADS, *convergence_cells(rows)], num_left=1)
        lines += ["", f"## {problem}, after {rows[-1]['passes']:,} passes", "", table.rstrip("\n")]
    return "\n".join(lines) + "\n"


def convergence_cells(rows: Sequence[Row]) -> Iterator[list[str]]:
    """Yield the text of the last row of each method, in the order of `CONVERGENCE_HEADS`."""
    for (method,) in distinct(rows, "method"):
        own = [row for row in rows if row["method"] == method]
        last = own[-1]
        norms = [f"{last[name]:.2e}" for name in ("average_norm", "cut_norm", "gradient_norm")]
        distance = "–" if last["distance"] is None else f"{last['distance']:.2e}"
        yield [method, f"{last['updates']:,}", norms[0], f"{slope(own, 'average_norm'):.2f}", *norms[1:], distance]


def draw_convergence(report: BenchReport, path: Path) -> None:
    """Draw a line of panels for each problem: the average of the gradients, and the two gradients at the weights."""
    problems = list(_by_problem(report["rows"]))
    figure, axes = plt.subplots(len(problems), 3, figsize=(11.5, 3.3 * len(problems)), layout="constrained")
    panels = {
        "average_norm": "average of the gradients so far",
        "cut_norm": "at the weights, chunks cut",
        "gradient_norm": "at the weights, by BPTT",
    }
    for line, (problem, rows) in zip(axes, problems, strict=True):
        for axis, (name, title) in zip(line, panels.items(), strict=True):
            for number, (method,) in enumerate(distinct(rows, "method")):
                own = [row for row in rows if row["method"] == method]
                style = "--" if "falling" in method else "-"
                color = CONVERGENCE_COLORS[method.split(", falling")[0]]
                # a line above another of the same numbers would hide it
                width = 2.4 - 0.25 * number
                draw_line(axis, own, "passes", name, color=color, linestyle=style, label=method, linewidth=width)
            if name == "average_norm":
                first = rows[0][name]
                passes = [passes for (passes,) in distinct(rows, "passes")]
                axis.plot(passes, [first / done for done in passes], color="black", linestyle=":", label="1/N")
            axis.set(xscale="log", yscale="log", title=f"{problem}: {title}", xlabel="passes, N")
            axis.title.set_fontsize("small")
            axis.grid(alpha=0.25)
        line[0].set_ylabel("norm of the gradient")
    figure.legend(*axes[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize="small")
    save_figure(figure, path)


def _by_problem(rows: Sequence[Row]) -> Iterator[tuple[str, list[Row]]]:
    for (problem,) in distinct(rows, "problem"):
        yield problem, [row for row in rows if row["problem"] == problem]
