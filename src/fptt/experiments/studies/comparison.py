"""Several methods and seeds on one task, at equal epochs, equal updates and equal time."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, get_args

from rich.console import Console

from fptt.experiments.configs.config import MethodName, Setting, TrainConfig
from fptt.experiments.process.errors import UserError
from fptt.experiments.studies.launcher import run_all
from fptt.experiments.training.folder import RunFolder
from fptt.experiments.training.plots import comparison_markdown, comparison_table, draw_comparison, summary_row

Key = tuple[str, str, int]
"""Budget, method, seed."""

BUDGETS = ("epochs", "updates", "seconds")


class Comparison:
    """The runs of a comparison, in one folder.

    The reference is the method with the most updates in the same epochs: FPTT if it is there. At equal updates every
    other method goes on until it has made as many as the reference of the same seed, at equal time as long as that.
    """

    def __init__(
        self,
        setting: Setting,
        methods: Sequence[MethodName],
        seeds: Sequence[int],
        out: Path,
        budgets: Sequence[str] = BUDGETS,
    ) -> None:
        if setting.epochs is None or setting.max_updates is not None or setting.max_seconds is not None:
            raise UserError("a comparison needs epochs, and neither max_updates nor max_seconds: it sets those itself.")
        self.setting, self.methods, self.seeds, self.out = setting, methods, seeds, out
        self.budgets = budgets
        self.reference = max(methods, key=("bptt", "tbptt", "fptt").index)
        self.summaries: dict[Key, dict[str, Any]] = {}

    def run(self, console: Console, num_jobs: int, *, overwrite: bool = False) -> None:
        """Make every run that is not finished."""
        equal_epochs = {
            ("epochs", method, seed): TrainConfig.of(self.setting, method=method, seed=seed)
            for seed in self.seeds
            for method in self.methods
        }
        for configs in (lambda: equal_epochs, lambda: dict(self._other_budgets())):
            if not configs():
                continue
            runs = {self.folder(key).path: config for key, config in configs().items()}
            summaries = run_all(runs, console, num_jobs, overwrite=overwrite)
            self.summaries.update(zip(configs(), summaries, strict=True))

    def _other_budgets(self) -> Iterator[tuple[Key, TrainConfig]]:
        for seed in self.seeds:
            reference = self.summaries["epochs", self.reference, seed]
            for method in self.methods:
                if method == self.reference:
                    continue
                limits = {"max_updates": reference["updates"], "max_seconds": reference["seconds"]}
                if self.summaries["epochs", method, seed]["updates"] == reference["updates"]:
                    del limits["max_updates"]
                for name, limit in limits.items():
                    if name.removeprefix("max_") not in self.budgets:
                        continue
                    changes = {"method": method, "seed": seed, "epochs": None, "early_stopping": None, name: limit}
                    yield (name.removeprefix("max_"), method, seed), TrainConfig.of(self.setting, **changes)

    def folder(self, key: Key) -> RunFolder:
        """Return the folder of a run."""
        budget, method, seed = key
        return RunFolder(self.out / f"equal-{budget}" / f"{method}-seed-{seed}")

    def _key(self, budget: str, method: str, seed: int) -> Key:
        """Return the run that stands for a budget: that at equal epochs where both are the same."""
        key = (budget, method, seed)
        return key if key in self.summaries else ("epochs", method, seed)

    def rows(self, metric: str) -> list[dict[str, Any]]:
        """Return a row for each budget and method."""
        rows = []
        for budget in self.budgets:
            for method in self.methods:
                keys = [self._key(budget, method, seed) for seed in self.seeds]
                summaries = [self.summaries[key] for key in keys]
                row = {"budget": budget, "method": method, "num_chunks": summaries[0]["num_chunks"]}
                runs = [str(self.folder(key).path.relative_to(self.out)) for key in keys]
                rows.append({**row, **summary_row(summaries, metric), "runs": runs})
        return rows

    def report(self, console: Console) -> None:
        """Print the tables and write rows, table and picture."""
        metric = next(name for name in next(iter(self.summaries.values())) if name.startswith("test_"))[5:]
        rows = self.rows(metric)
        for budget in self.budgets:
            chosen = [row for row in rows if row["budget"] == budget]
            console.print(comparison_table(chosen, metric, f"at equal {budget}"))
            console.print(self._distances(chosen, metric), highlight=False)
        (self.out / "compare.json").write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
        (self.out / "compare.md").write_text(comparison_markdown(rows, metric), encoding="utf-8")
        panels = {
            budget: {
                method: [self.folder(self._key(budget, method, seed)) for seed in self.seeds] for method in self.methods
            }
            for budget in self.budgets
        }
        draw_comparison(panels, metric, self.out / "curves.png")
        for name, found in self._mixed().items():
            console.print(f"warning: these runs are of more than one {name}: {', '.join(found)}", highlight=False)
        console.print(f"learning curves: {self.out / 'curves.png'}", highlight=False, soft_wrap=True)

    def _mixed(self) -> dict[str, list[str]]:
        """Return what should be the same for all runs and is not."""
        names = ("commit", "device", "torch")
        found = {name: sorted({str(summary[name]) for summary in self.summaries.values()}) for name in names}
        return {name: values for name, values in found.items() if len(values) > 1}

    def _distances(self, rows: list[dict[str, Any]], metric: str) -> str:
        """Return how far the reference is from each other method, as it is."""
        means = {row["method"]: row[f"test_{metric}_mean"] for row in rows}
        scale, unit = (100, "points") if metric == "accuracy" else (1, metric)
        return "\n".join(
            f"{self.reference.upper()} − {method.upper()}: {scale * (means[self.reference] - mean):+.4g} {unit}"
            for method, mean in means.items()
            if method != self.reference
        )


def parse_methods(text: str) -> list[MethodName]:
    """Return the methods of a comma-separated list.

    Raises:
        UserError: If one is unknown or repeated; lists those that exist.
    """
    names = [name.strip() for name in text.split(",")]
    known = get_args(MethodName)
    for name in names:
        if name not in known:
            raise UserError(f"unknown method {name!r}; there are {', '.join(known)}.")
    if len(set(names)) < len(names):
        raise UserError(f"methods must not repeat, got {text}.")
    return names  # pyright: ignore[reportReturnType]


def parse_budgets(text: str) -> list[str]:
    """Return the budgets of a comma-separated list, in their usual order, `epochs` among them.

    Raises:
        UserError: If one is unknown; lists those that exist.
    """
    names = [name.strip() for name in text.split(",")]
    for name in names:
        if name not in BUDGETS:
            raise UserError(f"unknown budget {name!r}; there are {', '.join(BUDGETS)}.")
    return [name for name in BUDGETS if name == "epochs" or name in names]
