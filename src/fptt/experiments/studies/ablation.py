"""One setting with some of its fields varied, FPTT beside TBPTT and BPTT: `fptt ablate`."""

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path
from types import NoneType
from typing import Any, get_args, get_type_hints

from rich.console import Console

from fptt.experiments.configs.config import UNUSED, USED_WITH, MethodName, Setting, TrainConfig
from fptt.experiments.configs.lists import split_list
from fptt.experiments.process.console import say
from fptt.experiments.process.errors import UserError
from fptt.experiments.studies.differences import EXPLANATION, difference_cells, direction, matched_pairs
from fptt.experiments.studies.finished_run import METHODS
from fptt.experiments.studies.plots import draw_ablation
from fptt.experiments.studies.study import Study, check_buildable
from fptt.experiments.studies.tables import (
    NONE,
    Cells,
    Row,
    console_table,
    costs,
    markdown_table,
    origins,
    seed_rows,
    short_commit,
    with_sd,
)
from fptt.experiments.tasks.registry import load_task
from fptt.experiments.training.build import NOT_FOR_SPIKING, SPIKING, SPIKING_ONLY

Changes = tuple[tuple[str, Any], ...]
"""The fields in which a variant differs from the setting, in the order of the axes."""

Key = tuple[MethodName, Changes]
"""A method, and its variant."""

SYMBOLS = {"num_chunks": "K", "alpha": "α or γ"}


class Ablation(Study):
    """The runs of an ablation, in one folder.

    Every variant has a control with the same chunk losses, TBPTT, and one with the whole sequence, BPTT: once for all
    variants that the control cannot tell apart. A field that BPTT does not have, such as num_chunks, leaves one
    run of it.

    Args:
        setting: The setting whose fields are varied.
        axes: The values of each field; an empty sequence for the default ones.
        seeds: Seeds of every variant.
        out: The folder.
        grid: Every combination of the values, instead of the setting and what differs from it in one field.
        method: The method under study; the methods with less of its machinery are its controls.

    Raises:
        UserError: If a field or value is not possible.
    """

    table_file, plot_file = "ablation.md", "ablation.png"

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
        super().__init__(out)
        for field in axes:
            check_field(field)
            if field in UNUSED[method]:
                raise UserError(f"{field} makes no difference to {method}.")
        self.setting, self.seeds, self.grid = setting, seeds, grid
        self.methods = METHODS[METHODS.index(method) :]
        self.axes = {field: list(values) or default_values(setting, field) for field, values in axes.items()}
        if axes.get("num_chunks") == []:  # a seed changes the samples, not their length
            length = load_task(setting, 0).training_length()
            self.axes["num_chunks"] = [k for k in self.axes["num_chunks"] if k <= length]
        self.configs = {(key, seed): self._config(key, seed) for key in self._keys() for seed in seeds}
        for field in axes:
            if field in USED_WITH:
                self._check_has_use(field, *USED_WITH[field])
        variants = {self.folder(key, seeds[0]).parent.name: self.configs[key, seeds[0]] for key in self._keys()}
        check_buildable(variants)

    def _check_has_use(self, field: str, choice: str, needed: Sequence[str]) -> None:
        """Raise UserError if a field varies beside choices with which it makes no difference, in all variants."""
        found = {
            getattr(config, choice) for ((_, changes), _), config in self.configs.items() if field in dict(changes)
        }
        if found and found.isdisjoint(needed):
            raise UserError(
                f"{field} makes no difference with {choice} {', '.join(sorted(found))}: it needs {' or '.join(needed)}."
            )

    def _keys(self) -> list[Key]:
        """Return the variants of each method, once for all that differ only in fields of no use to it."""
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
            # the momentum of the setting belongs to SGD; one among the axes stays, and is refused as impossible
            changed.setdefault("momentum", 0.0)
        if "num_chunks" in changed and self.setting.num_duals == self.setting.num_chunks > 1:
            changed.setdefault("num_duals", changed["num_chunks"])  # one for each chunk
        if changed.get("previous_gradient") == "recomputed" and not (self.grid and "coupling" in self.axes):
            changed.setdefault("coupling", "coupled")  # the only one that has it
        # nor has every cell what the setting has for its own
        lacking = ["forget_bias"] if changed.get("chrono_init") is not None else []
        if "cell" in changed:
            lacking += NOT_FOR_SPIKING if changed["cell"] in SPIKING else SPIKING_ONLY
            lacking += [] if changed["cell"] == "lstm" else ["forget_bias"]
        for name in lacking:
            changed.setdefault(name, getattr(Setting, name))
        return TrainConfig.of(self.setting, **changed)

    def folder(self, key: Key, seed: int) -> Path:
        """Return the folder of a run."""
        method, changes = key
        return self.out / "-".join([method, *(f"{field}-{value}" for field, value in changes)]) / f"seed-{seed}"

    def stages(self) -> Iterator[Mapping[Path, TrainConfig]]:
        """Yield all runs at once."""
        yield {self.folder(*key): config for key, config in self.configs.items()}

    def rows(self) -> list[dict[str, Any]]:
        """Return a row for each variant, with the `values` of its fields: None where one makes no difference.

        `varied` has the fields among whose values it counts: what a change of one brings with it is no variant of
        another.
        """
        keys = [key for key, _ in self.configs]
        runs = [self.runs[self.folder(*key)] for key in self.configs]
        rows = []
        for key, row in seed_rows(runs, keys).items():
            config, unused = self.configs[key, self.seeds[0]], UNUSED[key[0]]
            values = {name: None if name in unused else shown(getattr(config, name)) for name in self._fields}
            varied = list(self.axes) if self.grid or not key[1] else [field for field, _ in key[1]]
            rows.append({"method": key[0], **row, "values": values, "varied": varied})
        return rows

    @property
    def _fields(self) -> list[str]:
        """Names of the fields that have a column."""
        return list(dict.fromkeys(["num_chunks", "form", "coupling", "alpha", *self.axes]))

    def _cells(self, rows: Sequence[Row]) -> Cells:
        metrics = [f"{part}_{self.metric}" for part in ("validation", "test")]
        better = f" ({direction(self.metric)} is better)"
        heads = ["method", *(SYMBOLS.get(field, field) for field in self._fields)]
        heads += [*(name.replace("_", " ") + better for name in metrics), "epochs", "updates", "seconds"]
        lines = [
            [
                row["method"].upper(),
                *(NONE if value is None else str(value) for value in row["values"].values()),
                *(with_sd(row, name) for name in metrics),
                *costs(row),
            ]
            for row in rows
        ]
        return [heads, *lines]

    def show(self, rows: Sequence[Row], console: Console) -> None:
        """Print the table, and the differences between the method and its controls."""
        console.print(console_table(self._cells(rows)))
        if differences := self._differences(rows):
            console.print(console_table(differences, "paired differences", num_left=1))
            say(console, EXPLANATION)

    def markdown(self, rows: Sequence[Row]) -> str:
        """Return the table, where its numbers come from, and the differences between the method and its controls."""
        found = origins(rows)
        text = (
            f"{markdown_table(self._cells(rows))}\n"
            f"Mean ± sample standard deviation of the seeds {', '.join(map(str, self.seeds))}. "
            f"Commit {', '.join(map(short_commit, found['commit']))}; {', '.join(found['device'])}; "
            f"torch {', '.join(found['torch'])}.\n"
        )
        differences = self._differences(rows)
        return text + (f"\n{markdown_table(differences, num_left=1)}\n{EXPLANATION}\n" if differences else "")

    def _differences(self, rows: Sequence[Row]) -> Cells:
        return difference_cells(matched_pairs(rows), rows[0]["config"], self.metric)

    def draw(self, rows: Sequence[Row], path: Path) -> None:
        """Draw the test metric against the values of each field."""
        draw_ablation(rows, list(self.axes), self.metric, SYMBOLS, path)


# -- the fields ------------------------------------------------------------------------------------------------------

# usual values of a field: its own times these factors, or these values; of any other choice all there are
_FACTORS = {"num_chunks": (1 / 4, 1 / 2, 1, 2, 4), "lr": (1 / 3, 1, 3), "hidden_size": (1 / 2, 1, 2)}
_VALUES = {
    "alpha": (0.01, 0.1, 0.5),
    "beta": (0.5, 0.7),
    "optimizer": ("adam", "sgd", "rmsprop"),
    "precision": ("32-true", "bf16-mixed"),
}
_OF_A_STUDY = {"method": "every ablation has all methods", "seed": "--seeds sets their number"}


def parse_axes(text: str) -> dict[str, list[Any]]:
    """Return the fields of a list like `num_chunks=4:8:16,alpha,form`, and the values of those that have some.

    A field may be spelled as its option, `num-chunks`.

    Raises:
        UserError: If a field is unknown or repeated, or a value is not of its type; lists what there is.

    Examples:
        >>> parse_axes("num_chunks=4:8,alpha,max_norm=1:none")
        {'num_chunks': [4, 8], 'alpha': [], 'max_norm': [1.0, None]}
    """
    axes: dict[str, list[Any]] = {}
    for entry in split_list("fields", text):
        name, has_values, values = entry.partition("=")
        field = name.replace("-", "_")  # as the option of the same setting is spelled
        check_field(field)
        if field in axes:
            raise UserError(f"fields must not repeat, got {field} twice.")
        parsed = [_parsed(field, value.strip()) for value in values.split(":")] if has_values else []
        axes[field] = list(dict.fromkeys(parsed))
    return axes


def check_field(field: str) -> None:
    """Raise UserError if a field cannot vary."""
    if field in FIELDS:
        return
    if field in _OF_A_STUDY:
        raise UserError(f"the field {field} cannot vary: {_OF_A_STUDY[field]}.")
    if field in _HINTS:
        raise UserError(f"the field {field} cannot vary: it is neither a choice nor a number.")
    raise UserError(f"unknown field {field!r}; there are {', '.join(FIELDS)}.")


def default_values(setting: Setting, field: str) -> list[Any]:
    """Return the values of a field that comes without any; setting's own stays as it is.

    Raises:
        UserError: If there are no usual ones.
    """
    if field == "num_duals":
        return [1, setting.num_chunks]
    if field in _VALUES:
        return list(_VALUES[field])
    if field in _FACTORS:
        own = getattr(setting, field)
        tidy = _three_digits if field == "lr" else _whole
        return list(dict.fromkeys(own if factor == 1 else tidy(own * factor) for factor in _FACTORS[field]))
    if choices := _choices(field):
        return list(choices.values())
    raise UserError(f"{field} has no usual values: give some, as in {field}=A:B.")


def shown(value: Any) -> Any:
    """Return a value for a table, where None stands for a field that makes no difference to a method."""
    return "none" if value is None else value


_HINTS = get_type_hints(Setting)


def _choices(field: str) -> dict[str, Any]:
    """Return the values that a field may have, by their names; empty if it is no choice."""
    if _HINTS[field] is bool:
        return {"false": False, "true": True}
    return {name: name for name in get_args(_HINTS[field]) if isinstance(name, str)}


def _number(field: str) -> type[int] | type[float] | None:
    """Return the type of a field that is a number, or a number or None."""
    kinds = get_args(_HINTS[field]) if _may_be_none(field) else (_HINTS[field],)
    return next((kind for kind in (int, float) if kind in kinds), None)


def _may_be_none(field: str) -> bool:
    return NoneType in get_args(_HINTS[field])


FIELDS = tuple(field for field in _HINTS if _choices(field) or _number(field))
"""Fields that may vary."""


def _parsed(field: str, text: str) -> Any:
    """Return a value in the type of its field."""
    choices = _choices(field)
    if choices:
        if text not in choices:
            raise UserError(f"{field} must be one of {', '.join(choices)}, got {text!r}.")
        return choices[text]
    if _may_be_none(field) and text in ("none", "None"):
        return None
    kind = _number(field) or float
    try:
        value = kind(text)
    except ValueError:
        value = math.nan
    if isinstance(value, float) and not math.isfinite(value):  # of a whole number of 400 digits there is no float
        expected = ("a whole number" if kind is int else "a number") + (" or none" if _may_be_none(field) else "")
        raise UserError(f"{field} must be {expected}, got {text!r}.")
    return value


def _three_digits(value: float) -> float:
    return float(f"{value:.3g}")


def _whole(value: float) -> int:
    return max(1, round(value))
