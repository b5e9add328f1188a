"""A finished run: read from its folder, and checked, once for `fptt compare`, `fptt ablate` and `fptt report`."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from fptt.experiments.configs.config import UNUSED, DataSetting, MethodName, Setting, TrainConfig
from fptt.experiments.process.errors import UserError, one_line
from fptt.experiments.tasks.batches import samples_an_epoch
from fptt.experiments.tasks.registry import GENERATED
from fptt.experiments.tasks.scores import HIGHER_IS_BETTER
from fptt.experiments.training.folder import DamagedRunError, RunFolder, fingerprint_of

METHODS: tuple[MethodName, ...] = ("fptt", "tbptt", "bptt")
"""From the most machinery to the least: each has the ones after it as controls."""

LIMITS = ("epochs", "max_updates", "max_seconds", "early_stopping")
"""Fields that say when a run ends, and are no settings at equal updates or time: there another run says it."""

COSTS = ("epochs", "updates", "seconds", "peak_memory_bytes", "training_memory_bytes")
ORIGINS = ("commit", "device", "torch")
HARMLESS = ("threads",)
"""Fields that make no difference to the result of any run."""

OF_THE_SAMPLES = tuple(field.name for field in fields(DataSetting) if field.name != "data")
"""Fields that choose samples of the data; with a batch size, by which a text is cut, they decide a fingerprint."""

RATIOS = ("accuracy", "macro_f1")


@dataclass(frozen=True)
class FinishedRun:
    """A run that came to its end.

    Attributes:
        path: Its folder.
        group: The folders between that of its study and its own, such as `equal-epochs`; may be empty.
        summary: That of summary.json, checked.
        metrics: The rows of its metrics.csv.
        data: The fingerprint of its data, where other runs with the same fields have other data.
    """

    path: Path
    group: str
    config: TrainConfig
    summary: Mapping[str, Any]
    metrics: Sequence[Mapping[str, float]]
    data: str | None = None

    @property
    def metric(self) -> str:
        """Name of the metric by which the weights were selected."""
        return metric_of(self.summary)

    @property
    def environments(self) -> list[Mapping[str, Any]]:
        """Where it was trained: `ORIGINS`, of the summary and of what came before it was resumed somewhere else."""
        return [*self.summary.get("earlier_environments", []), self.summary]

    @cached_property
    def setting(self) -> TrainConfig:
        """The config without what does not change the result: equal for all seeds of a setting.

        Its `data` is not where they lay, but which they are, if that is in question.
        """
        defaults = Setting()
        plain: dict[str, Any] = {name: getattr(defaults, name) for name in (*UNUSED[self.config.method], *HARMLESS)}
        if self.config.on_bad_number != "rollback":  # which goes back to one of them
            plain["checkpoint_updates"] = defaults.checkpoint_updates
        if has_limits_of_another(self.group):  # there every seed has a limit of its own
            plain.update(epochs=1, max_updates=None, max_seconds=None, early_stopping=None)
        if self.config.task in GENERATED:  # by a limit or without, an epoch may have as many samples
            plain["limit"] = samples_an_epoch(self.config)
        return replace(self.config, seed=0, data=self.data, **plain)


def has_limits_of_another(group: str) -> bool:
    """Return whether the runs of a group end with the updates or seconds of another run."""
    return group.rpartition("/")[2] in ("equal-updates", "equal-seconds")


def unused_fields(method: MethodName, group: str) -> tuple[str, ...]:
    """Return the fields that make no difference to a method, or are no setting in a group."""
    return (*UNUSED[method], *(LIMITS if has_limits_of_another(group) else ()))


def read_run(path: Path, group: str = "") -> FinishedRun:
    """Read a run folder.

    Raises:
        UserError: If the run is not finished, or any of its files is missing or damaged; without the path.
    """
    folder = RunFolder(path)
    if not folder.summary_file.exists():
        raise UserError("no summary.json: it did not come to its end.")
    try:
        summary, config = folder.read_summary(), folder.read_config()
        check_summary(summary, config)
        metrics = folder.read_metrics()
    except DamagedRunError as error:
        raise UserError(f"damaged: {error.damage}") from error
    except UserError as error:
        raise UserError(str(error).replace(f"{path}/", "")) from error
    except Exception as error:  # files of others: whatever the readers raise, it is about the file
        raise UserError(f"damaged: {type(error).__name__}: {one_line(error)}.") from error
    columns = ("epoch", "updates", "seconds", f"validation_{metric_of(summary)}")
    if not metrics or any(name not in metrics[0] for name in columns):
        raise UserError("damaged: metrics.csv lacks rows or columns.")
    return FinishedRun(path, group, config, summary, metrics)


def told_apart_by_data(runs: Sequence[FinishedRun]) -> list[FinishedRun]:
    """Return runs with the fingerprints of their data where they have the same fields but not the same data.

    Older runs tell no fingerprint; they stay together, and are told apart from those of several others.
    """
    found: dict[tuple[Any, ...], set[str]] = {}
    for run in runs:
        if (fingerprint := fingerprint_of(run.summary)) is not None:
            found.setdefault(_samples(run.config), set()).add(fingerprint)

    def data_of(run: FinishedRun) -> str | None:
        own, known = fingerprint_of(run.summary), found.get(_samples(run.config), set())
        are_same = len({_whole(fingerprint, known) for fingerprint in known}) < 2
        return None if own is None or are_same else _whole(own, known)

    return [replace(run, data=data_of(run)) for run in runs]


def _whole(fingerprint: str, known: set[str]) -> str:
    """Return a fingerprint with the parts that older runs lack, if one alone of those that are known has them."""
    longer = [other for other in known if other.startswith(f"{fingerprint}-")]
    return longer[0] if len(longer) == 1 else fingerprint


def _samples(config: TrainConfig) -> tuple[Any, ...]:
    # generated data are those of their seed
    seed = config.seed if config.task in GENERATED else None
    return (seed, config.batch_size, *(getattr(config, name) for name in OF_THE_SAMPLES))


def metric_of(summary: Mapping[str, Any]) -> str:
    """Return the name of a run's metric; older summaries do not name it, but it is the first of their test metrics.

    Raises:
        UserError: If there is none.
    """
    if isinstance(named := summary.get("metric"), str):
        return named
    first = next((name for name in summary if name.startswith("test_")), None)
    if first is None:
        raise UserError("damaged: summary.json has no metric.")
    return first.removeprefix("test_")


def check_summary(summary: Mapping[str, Any], config: TrainConfig) -> None:
    """Check that a summary is of a finished run of a config, and that its numbers are possible.

    An infinite or undefined loss is possible: a diverged model has one.

    Raises:
        UserError: Otherwise.
    """
    if summary.get("status") != "finished":
        raise UserError(f"{summary['status']:.40}." if isinstance(summary.get("status"), str) else "of unknown status.")
    metric = metric_of(summary)
    needed = (f"test_{metric}", f"validation_{metric}", *COSTS)
    lacking = [name for name in needed if not is_number(summary.get(name))]
    lacking += [name for name in ORIGINS if not isinstance(summary.get(name, 0), str | None)]
    earlier, needed = summary.get("earlier_environments", []), set(ORIGINS)
    if not isinstance(earlier, list) or not all(isinstance(one, dict) and one.keys() >= needed for one in earlier):
        lacking.append("earlier_environments")
    if lacking:
        raise UserError(f"damaged: summary.json lacks {', '.join(lacking)}.")
    for name in COSTS:
        if not 0 <= summary[name] < math.inf:
            raise UserError(
                f"damaged: {name} in summary.json must be finite and at least 0, got {_short(summary[name])}."
            )
    for name, value in summary.items():
        if not name.startswith(("test_", "validation_")) or not is_number(value):
            continue
        metric = name.partition("_")[2]
        if metric in RATIOS and not 0 <= value <= 1:
            raise UserError(f"damaged: {name} in summary.json must be in [0, 1], got {_short(value)}.")
        if not HIGHER_IS_BETTER.get(metric, True) and value < 0:  # the losses
            raise UserError(f"damaged: {name} in summary.json must be at least 0, got {_short(value)}.")
    for name in ("task", "method", "seed"):
        own = getattr(config, name)
        if summary.get(name, own) != own:
            raise UserError(
                f"damaged: {name} in summary.json must be {own!r} as in config.yaml, got {_short(summary[name])}."
            )


def is_number(value: Any) -> bool:
    """Return whether a value from JSON is a number that a float can hold."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        float(value)
    except OverflowError:  # JSON has integers of any size
        return False
    return True


def _short(value: Any) -> str:
    return f"{value!r:.40}"
