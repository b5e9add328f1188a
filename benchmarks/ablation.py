"""Which form, coupling, strength, number of chunks and optimizer FPTT should have by default: digits, three seeds.

python benchmarks/ablation.py OUT [--jobs 2]     a table in Markdown; goes on where it was stopped
"""

import argparse
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

from rich.console import Console

from fptt.experiments.config import TrainConfig
from fptt.experiments.launcher import run_all
from fptt.experiments.recipes import recipe
from fptt.experiments.report import summary_row, with_sd

SEEDS = range(3)
STRENGTHS = {"coupled": (0.01, 0.1), "decoupled": (0.1, 0.5)}
OTHER_OPTIMIZERS = {
    "sgd": {"optimizer": "sgd", "lr": 0.05, "momentum": 0.9},
    "rmsprop": {"optimizer": "rmsprop", "lr": 5e-4},
}


def variants() -> Iterator[dict[str, Any]]:
    """Yield the settings of the grid: forms, couplings and strengths at K = 8; then K; then other optimizers."""
    yield {"method": "bptt"}
    yield {"method": "tbptt"}
    for form, (coupling, strengths) in product(("paper", "released"), STRENGTHS.items()):
        for alpha in strengths:
            yield {"form": form, "coupling": coupling, "alpha": alpha}
    yield {"form": "paper", "coupling": "coupled", "alpha": 0.1, "previous_gradient": "recomputed"}
    for changes in ({"num_chunks": 4}, {"num_chunks": 16}, *OTHER_OPTIMIZERS.values()):
        yield {"method": "tbptt", **changes}
        yield {"form": "paper", "coupling": "decoupled", "alpha": 0.1, **changes}


def main() -> None:
    """Run what is not finished and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--jobs", type=int, default=1)
    arguments = parser.parse_args()
    console = Console()
    lines = []
    for changes in variants():
        name = "-".join(str(value) for value in changes.values())
        start = TrainConfig.of(recipe("digits"), **changes, threads=1)
        runs = {arguments.out / f"{name}-seed-{seed}": TrainConfig.of(start, seed=seed) for seed in SEEDS}
        lines.append(row(start, summary_row(run_all(runs, console, arguments.jobs), "accuracy")))
        console.print(lines[-1], soft_wrap=True)
    columns = "form | coupling | α or γ | optimizer | validation accuracy | test accuracy | updates | seconds"
    header = f"| method | K | {columns} |"
    print("\n".join([header, "| --- | ---: | --- | --- | ---: | --- | ---: | ---: | ---: | ---: |", *lines]))


def row(config: TrainConfig, figures: dict[str, Any]) -> str:
    """Return one line of the table."""
    is_fptt = config.method == "fptt"
    recomputed = ", recomputed" if config.previous_gradient == "recomputed" else ""
    cells = [
        config.method.upper(),
        config.bptt_losses if config.method == "bptt" else config.num_chunks,
        config.form + recomputed if is_fptt else "–",
        config.coupling if is_fptt else "–",
        config.alpha if is_fptt else "–",
        f"{config.optimizer} {config.lr:g}",
        with_sd(figures, "validation_accuracy"),
        with_sd(figures, "test_accuracy"),
        f"{figures['updates']:,.0f}",
        f"{figures['seconds']:.1f}",
    ]
    return f"| {' | '.join(map(str, cells))} |"


if __name__ == "__main__":
    main()
