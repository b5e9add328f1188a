"""One setting with some of its fields varied, FPTT beside TBPTT and BPTT: `fptt ablate`."""

import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from fptt._methods.fptt import OF_FPTT
from fptt.experiments.configs.config import MethodName, Setting, TrainConfig
from fptt.experiments.process.errors import UserError
from fptt.experiments.studies.ablation_axes import check_field, default_values, told
from fptt.experiments.studies.launcher import run_all
from fptt.experiments.studies.page import ablation_cells, ablation_markdown, draw_ablation, origins
from fptt.experiments.tasks.registry import load_task
from fptt.experiments.training.build import check_chunks
from fptt.experiments.training.plots import summary_row

Changes = tuple[tuple[str, Any], ...]
"""The fields in which a variant differs from the setting, in the order of the axes."""

Key = tuple[MethodName, Changes]
"""A method, and its variant."""

METHODS: tuple[MethodName, ...] = ("fptt", "tbptt", "bptt")
UNUSED: dict[MethodName, tuple[str, ...]] = {
    "fptt": ("bptt_losses",),
    "tbptt": (*OF_FPTT, "bptt_losses"),
    "bptt": (*OF_FPTT, "num_chunks", "engine"),
}
"""Fields that make no difference to a method."""

OF_THE_LENGTH = ("length", "by")
"""Fields that decide how many steps a sequence has."""


class Ablation:
    """The runs of an ablation, in one folder.

    Every variant has a control with the same chunk losses, TBPTT, and one with the whole sequence, BPTT: once for all
    variants that the control cannot tell apart. A field of which BPTT knows nothing, such as num_chunks, leaves one
    run of it.

    Args:
        setting: What the fields are varied of.
        axes: The values of each field; an empty sequence for the default ones.
        seeds: Seeds of every variant.
        out: The folder.
        grid: Every combination of the values, instead of the setting and what differs from it in one field.
        method: What is examined; the methods with less of its machinery are its controls.

    Raises:
        UserError: If a field or value is not possible.
    """

    def __init__(
        self,
        setting: Setting,
        axes: Mapping[str, Sequence[Any]],
        seeds: Sequence[int],
        out: Path,
        *,
        grid: bool = False,
        method: MethodName = "fptt",
    ) -> None:
        for field in axes:
            check_field(field)
            if field in UNUSED[method]:
                raise UserError(f"{field} makes no difference to {method}.")
        self.setting, self.seeds, self.out, self.grid = setting, seeds, out, grid
        self.methods = METHODS[METHODS.index(method) :]
        task = load_task(setting, 0) if "num_chunks" in axes else None
        self.axes = {field: list(values) or default_values(setting, field) for field, values in axes.items()}
        if task is not None and not axes["num_chunks"]:
            self.axes["num_chunks"] = [k for k in self.axes["num_chunks"] if k <= task.training_length()]
        self.runs = {(key, seed): self._config(key, seed) for key in self._keys() for seed in seeds}
        for config in self.runs.values():
            has_own_length = any(getattr(config, field) != getattr(setting, field) for field in OF_THE_LENGTH)
            if task is not None and not has_own_length:
                check_chunks(config, task)
        self.summaries: dict[tuple[Key, int], dict[str, Any]] = {}

    def _keys(self) -> list[Key]:
        """Return the variants of each method, those that it cannot tell apart once."""
        variants = list(self._products() if self.grid else self._one_at_a_time())
        keys: list[Key] = [
            (method, tuple((field, value) for field, value in changes if field not in UNUSED[method]))
            for method in self.methods
            for changes in variants
        ]
        return list(dict.fromkeys(keys))

    def _products(self) -> Iterator[Changes]:
        for values in product(*self.axes.values()):
            changes = zip(self.axes, values, strict=True)
            yield tuple((field, value) for field, value in changes if value != getattr(self.setting, field))

    def _one_at_a_time(self) -> Iterator[Changes]:
        yield ()
        for field, values in self.axes.items():
            yield from (((field, value),) for value in values if value != getattr(self.setting, field))

    def _config(self, key: Key, seed: int) -> TrainConfig:
        method, changes = key
        changed = {"method": method, "seed": seed, **dict(changes)}
        if changed.get("optimizer", "sgd") != "sgd":
            changed.setdefault("momentum", 0.0)  # which no other optimizer has
        return TrainConfig.of(self.setting, **changed)

    def folder(self, key: Key, seed: int) -> Path:
        """Return the folder of a run."""
        method, changes = key
        return self.out / "-".join([method, *(f"{field}-{value}" for field, value in changes)]) / f"seed-{seed}"

    def run(self, console: Console, num_jobs: int, *, overwrite: bool = False) -> None:
        """Make every run that is not finished."""
        runs = {self.folder(*key): config for key, config in self.runs.items()}
        self.summaries = dict(zip(self.runs, run_all(runs, console, num_jobs, overwrite=overwrite), strict=True))

    @property
    def metric(self) -> str:
        """Name of the metric."""
        return next(name for name in next(iter(self.summaries.values())) if name.startswith("test_"))[5:]

    def rows(self) -> list[dict[str, Any]]:
        """Return a row for each variant; fields that make no difference to its method are None."""
        rows = []
        for method, changes in dict.fromkeys(key for key, _ in self.runs):
            runs = {seed: self.summaries[(method, changes), seed] for seed in self.seeds}
            config = self.runs[(method, changes), self.seeds[0]]
            names = dict.fromkeys(["num_chunks", "form", "coupling", "alpha", *self.axes])
            values = {name: None if name in UNUSED[method] else told(getattr(config, name)) for name in names}
            tests = [summary[f"test_{self.metric}"] for summary in runs.values()]
            paths = [self.folder((method, changes), seed).relative_to(self.out).as_posix() for seed in runs]
            figures = summary_row(list(runs.values()), self.metric)
            rows.append({"method": method, **values, **figures, "tests": tests, "runs": paths})
        return rows

    def report(self, console: Console) -> None:
        """Print the table and write rows (ablation.json), table (ablation.md) and picture (ablation.png)."""
        rows = self.rows()
        head, *lines = ablation_cells(rows, self.metric)
        table = Table(*head)
        for line in lines:
            table.add_row(*line)
        console.print(table)
        for name, found in origins(rows).items():
            if len(found) > 1:
                console.print(f"warning: these runs are of more than one {name}: {', '.join(found)}", highlight=False)
        (self.out / "ablation.json").write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
        (self.out / "ablation.md").write_text(ablation_markdown(rows, self.metric, self.seeds), encoding="utf-8")
        own = {field: None if self.grid else told(getattr(self.setting, field)) for field in self.axes}
        draw_ablation(rows, own, self.metric, self.out / "ablation.png")
        console.print(f"picture: {self.out / 'ablation.png'}", highlight=False, soft_wrap=True)
