"""Reports of the benchmarks: tables for the terminal and in Markdown, plots, and the ratios to look at first."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from rich.console import Console

from fptt.experiments.benchmarks.convergence import slope
from fptt.experiments.process.console import say
from fptt.experiments.process.files import replace_text
from fptt.experiments.studies.tables import console_table, markdown_table
from fptt.experiments.training.plots import COLORS, save_figure

Row = Mapping[str, Any]
Report = Mapping[str, Any]

SPEED_HEADS = ("method", "engine", "kernel", "K", "seconds", "floor", "× floor", "× BPTT", "× literal")
MEMORY_HEADS = ("method", "T", "peak", "above the start", "updates", "seconds")

CONVERGENCE_HEADS = ("method", "updates", "average", "its slope", "cut", "by BPTT", "from the answer")

CONVERGENCE_COLORS = {
    "SGD on the mean": COLORS["bptt"],
    "TBPTT": COLORS["tbptt"],
    "FPTT paper": COLORS["fptt"],
    "FPTT released": "tab:orange",
    "FPTT paper, recomputed": "tab:purple",
}
LITERAL_COLOR = "tab:orange"
FLOOR_COLOR = "black"
STYLES = {"eager": "-", "compiled": "--", None: "-"}


def write_report(report: Report, markdown: str, out: Path, name: str) -> None:
    """Write a report as NAME.json, and its tables as NAME.md."""
    replace_text(out / f"{name}.json", json.dumps(report, indent=2, ensure_ascii=False) + "\n")
    replace_text(out / f"{name}.md", markdown)


def _environment(report: Report) -> str:
    """Return what a report was measured on, as a phrase."""
    return ", ".join(f"{name} {value}" for name, value in report["environment"].items())


# -- speed -----------------------------------------------------------------------------------------------------------


def save_speed(report: Report, out: Path) -> None:
    """Write report and tables."""
    write_report(report, speed_markdown(report), out, "speed")


def draw_speed(report: Report, out: Path) -> list[Path]:
    """Draw the plots and return them; that against T needs more than one T."""
    plots = [out / "time-against-K.png"]
    draw_time_against_chunks(report["rows"], plots[0])
    if len({row["sequence_length"] for row in report["rows"]}) > 1:
        plots.append(out / "time-against-T.png")
        draw_time_against_length(report["rows"], plots[1])
    return plots


def show_speed(report: Report, console: Console) -> None:
    """Print tables, notes and headlines."""
    for title, rows in by_workload(report["rows"]):
        cells = [SPEED_HEADS, *map(speed_cells, rows)]
        console.print(console_table(cells, f"{title}: seconds a batch", num_left=3))
    for note in report["notes"]:
        say(console, f"note: {note}")
    for title, rows in by_workload(report["rows"]):
        say(console, "\n  ".join([title, *headlines(rows)]))


def speed_markdown(report: Report) -> str:
    """Return tables, notes and headlines in Markdown."""
    lines = ["# Seconds a batch", "", f"{_environment(report)}; medians of {report['settings']['repeats']} rounds.", ""]
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
    sides, batch_sizes = _distinct(rows, *names), _distinct(rows, "batch_size")
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
    for method, engine in _distinct(rows, "method", "engine"):
        line = sorted((r for r in rows if (r["method"], r["engine"]) == (method, engine)), key=lambda r: r[x])
        label = method if method == "literal" else method.upper() + (f", {engine}" if method != "bptt" else "")
        color = COLORS.get(method, LITERAL_COLOR)
        _draw_line(axis, line, x, "seconds", color=color, linestyle=STYLES[engine], marker=".", label=label)
    floors = {row[x]: row for row in rows if row["method"] == "fptt"}
    line = [floors[value] for value in sorted(floors)]
    _draw_line(axis, line, x, "floor_seconds", color=FLOOR_COLOR, linestyle=":", label="floor of FPTT")
    values = sorted({row[x] for row in rows})
    axis.set_xscale("log")
    axis.set_xticks(values, [f"{value:,}" for value in values])
    axis.set_xticks([], minor=True)


def _draw_line(axis: Axes, rows: Sequence[Row], x: str, y: str, **style: Any) -> None:
    axis.plot([row[x] for row in rows], [row[y] for row in rows], **{"linewidth": 1.2, "alpha": 0.85, **style})


def _distinct(rows: Sequence[Row], *names: str) -> list[tuple[Any, ...]]:
    """Return the values of some columns that occur, in order."""
    return list(dict.fromkeys(tuple(row[name] for name in names) for row in rows))


# -- spiking networks --------------------------------------------------------------------------------------------------


def spiking_cells(report: Report) -> list[tuple[str, ...]]:
    """Return heads and rows of the table."""
    rows = report["rows"]
    heads = ("method", "ms a batch", "from", "to", f"× faster than {rows[0]['base']}")
    times = [[f"{1000 * row[name]:.1f}" for name in ("seconds", "seconds_min", "seconds_max")] for row in rows]
    return [heads, *((row["name"], *own, f"{row['times_faster']:.2f}") for row, own in zip(rows, times, strict=True))]


def save_spiking(report: Report, out: Path) -> None:
    """Write report and table."""
    write_report(report, spiking_markdown(report), out, "spiking")


def spiking_markdown(report: Report) -> str:
    """Return table and notes in Markdown."""
    settings = report["settings"]
    about = f"T = {settings['sequence_length']}, batch {settings['batch_size']}, {settings['hidden_size']} LIF neurons"
    measured = f"{about}; {_environment(report)}; {settings['repeats']} rounds."
    lines = ["# A spiking network, an update a step", "", measured, ""]
    lines += [markdown_table(spiking_cells(report), num_left=1), *(f"* {note}" for note in report["notes"])]
    return "\n".join(lines) + "\n"


def show_spiking(report: Report, console: Console) -> None:
    """Print table and notes."""
    console.print(console_table(spiking_cells(report), "a spiking network, an update a step", num_left=1))
    for note in report["notes"]:
        say(console, f"note: {note}")


# -- memory ----------------------------------------------------------------------------------------------------------


def save_memory(report: Report, out: Path) -> Path:
    """Write report, table and plot; return the plot."""
    write_report(report, memory_markdown(report), out, "memory")
    plot = out / "memory-against-T.png"
    draw_memory(report, plot)
    return plot


def show_memory(report: Report, console: Console) -> None:
    """Print table, fits and notes."""
    cells = [MEMORY_HEADS, *map(memory_cells, report["rows"])]
    console.print(console_table(cells, "memory of training", num_left=1))
    say(console, "\n".join(conclusions(report)))


def memory_markdown(report: Report) -> str:
    """Return table, fits and notes in Markdown."""
    table = markdown_table([MEMORY_HEADS, *map(memory_cells, report["rows"])], num_left=1)
    lines = [
        "# Memory of training",
        "",
        f"{_environment(report)}.",
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


def conclusions(report: Report) -> Iterator[str]:
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


def draw_memory(report: Report, path: Path) -> None:
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


# -- convergence -------------------------------------------------------------------------------------------------------


def save_convergence(report: Report, out: Path) -> Path:
    """Write report, tables and plot; return the plot."""
    write_report(report, convergence_markdown(report), out, "convergence")
    plot = out / "convergence.png"
    draw_convergence(report, plot)
    return plot


def show_convergence(report: Report, console: Console) -> None:
    """Print a table for each problem."""
    for problem, rows in _by_problem(report["rows"]):
        cells = [CONVERGENCE_HEADS, *convergence_cells(rows)]
        console.print(console_table(cells, f"{problem}: after {rows[-1]['passes']:,} passes", num_left=1))


def convergence_markdown(report: Report) -> str:
    """Return a table for each problem in Markdown."""
    lines = [
        "# Gradients along the way and at the weights",
        "",
        f"{_environment(report)}; seed {report['settings']['seed']}.",
    ]
    for problem, rows in _by_problem(report["rows"]):
        table = markdown_table([CONVERGENCE_HEADS, *convergence_cells(rows)], num_left=1)
        lines += ["", f"## {problem}, after {rows[-1]['passes']:,} passes", "", table.rstrip("\n")]
    return "\n".join(lines) + "\n"


def convergence_cells(rows: Sequence[Row]) -> Iterator[list[str]]:
    """Yield the text of the last row of each method, in the order of `CONVERGENCE_HEADS`."""
    for (method,) in _distinct(rows, "method"):
        own = [row for row in rows if row["method"] == method]
        last = own[-1]
        norms = [f"{last[name]:.2e}" for name in ("average_norm", "cut_norm", "gradient_norm")]
        distance = "–" if last["distance"] is None else f"{last['distance']:.2e}"
        yield [method, f"{last['updates']:,}", norms[0], f"{slope(own, 'average_norm'):.2f}", *norms[1:], distance]


def draw_convergence(report: Report, path: Path) -> None:
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
            for number, (method,) in enumerate(_distinct(rows, "method")):
                own = [row for row in rows if row["method"] == method]
                style = "--" if "falling" in method else "-"
                color = CONVERGENCE_COLORS[method.split(", falling")[0]]
                # a line above another of the same numbers would hide it
                width = 2.4 - 0.25 * number
                _draw_line(axis, own, "passes", name, color=color, linestyle=style, label=method, linewidth=width)
            if name == "average_norm":
                first = rows[0][name]
                passes = [passes for (passes,) in _distinct(rows, "passes")]
                axis.plot(passes, [first / done for done in passes], color="black", linestyle=":", label="1/N")
            axis.set(xscale="log", yscale="log", title=f"{problem}: {title}", xlabel="passes, N")
            axis.title.set_fontsize("small")
            axis.grid(alpha=0.25)
        line[0].set_ylabel("norm of the gradient")
    figure.legend(*axes[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize="small")
    save_figure(figure, path)


def _by_problem(rows: Sequence[Row]) -> Iterator[tuple[str, list[Row]]]:
    for (problem,) in _distinct(rows, "problem"):
        yield problem, [row for row in rows if row["problem"] == problem]
