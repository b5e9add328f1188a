"""Options of the commands: where their defaults come from, their groups in the help, what may stand beside what."""

import math
import os
import reprlib
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

import tyro
from tyro.constructors import (
    ConstructorRegistry,
    PrimitiveConstructorSpec,
    PrimitiveTypeInfo,
    StructConstructorSpec,
    StructFieldSpec,
    StructTypeInfo,
)

from fptt.experiments.configs.config import GROUPS, MOVABLE, USED_WITH, DataSetting, Setting, TrainConfig
from fptt.experiments.configs.recipes import read_config, recipe, task_config
from fptt.experiments.process.errors import UserError, reason

HELP = frozenset(("-h", "--help"))

Options = TypeVar("Options")
Grouped = Annotated[Options, tyro.conf.arg(name=""), tyro.conf.OmitArgPrefixes]
"""A setting whose options have no prefix, and stand in the groups of its fields in the help."""

GROUPED = ConstructorRegistry()
"""For `tyro.cli`."""


@GROUPED.struct_rule
def _by_group(info: StructTypeInfo) -> StructConstructorSpec | None:
    """Read a setting as one nested dataclass for each of its groups; the setting itself is flat."""
    kind, default = info.type, info.default
    if not (isinstance(kind, type) and issubclass(kind, Setting)):
        return None
    groups = {name: group for name, group in GROUPS.items() if issubclass(kind, group)}

    def flat(**parts: Any) -> Setting:
        return kind(**{name: value for part in parts.values() for name, value in vars(part).items()})

    return StructConstructorSpec(
        instantiate=flat,
        fields=tuple(
            StructFieldSpec(
                name=name,
                type=tyro.conf.OmitArgPrefixes[group],
                default=_part(default if isinstance(default, Setting) else kind(), group),
            )
            for name, group in groups.items()
        ),
    )


@GROUPED.primitive_rule
def _number_or_none(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[float | None] | None:
    """Read a number or none, as `fptt ablate --over` writes it, or None, as Python does."""
    kinds = [get_args(kind)[0] if get_origin(kind) is Annotated else kind for kind in get_args(info.type)]
    if info.type_origin not in (Union, UnionType) or len(kinds) != 2 or NoneType not in kinds:
        return None
    kind = kinds[1 - kinds.index(NoneType)]
    if kind not in (int, float):
        return None

    def parsed(texts: list[str]) -> float | None:
        if texts[0] in ("none", "None"):
            return None
        try:
            return kind(texts[0])
        except ValueError:
            expected = "a whole number" if kind is int else "a number"
            raise ValueError(f"it must be {expected} or None, got {texts[0]!r}.") from None

    return PrimitiveConstructorSpec(
        nargs=1,
        metavar=f"{{None}}|{kind.__name__.upper()}",
        instance_from_str=parsed,
        is_instance=lambda value: value is None or isinstance(value, kind),
        str_from_instance=lambda value: [str(value)],
    )


def _part(config: Any, kind: type[Options]) -> Options:
    """Return the fields of a config that belong to one of its base classes."""
    return kind(**{field.name: getattr(config, field.name) for field in fields(kind)})  # pyright: ignore[reportArgumentType]


@dataclass(frozen=True, kw_only=True)
class Origin:
    """The options that name the source of the defaults."""

    recipe: str | None = None
    """Start from this recipe (see `fptt recipes`) instead of the task's own; other options still apply."""
    config: Path | None = None
    """Start from the config.yaml of another run instead of a recipe; other options still apply."""


@dataclass(frozen=True, kw_only=True)
class _Given(Origin):
    """The options that decide the defaults of the others."""

    task: str | None = None
    engine: str = "eager"
    cell: str = "lstm"
    chrono_init: int | None = None
    num_chunks: str | None = None
    data: str | None = None


def starting_config(arguments: Sequence[str]) -> TrainConfig:
    """Return the config whose values are the defaults.

    Raises:
        UserError: If there is no such recipe, task or file, or they contradict each other.
    """
    given = _parsed(_Given, arguments)
    if given.config is not None:
        if given.recipe is not None:
            raise UserError(f"give either recipe or config, got recipe {given.recipe} and config {given.config}.")
        # of an earlier version it lacks fields: beside its figures, they have the values with which those were made
        is_of_a_run = any(os.path.exists(given.config.parent / name) for name in ("summary.json", "metrics.csv"))
        return read_config(given.config, of_a_run=is_of_a_run)
    if given.recipe is None:
        found = task_config(given.task or "digits", given.engine)
    else:
        found = recipe(given.recipe).config
        if given.task not in (None, found.task):
            raise UserError(f"recipe {given.recipe} is of the task {found.task}, got task {given.task}.")
    return _first_settings(found, given, arguments) if found.task == "sequences" else found


def _first_settings(config: TrainConfig, given: _Given, arguments: Sequence[str]) -> TrainConfig:
    """Return the config for data of a user's own: K = √T, T the longest sequence of training.

    Raises:
        UserError: If the data cannot be read.
    """
    if given.cell != "lstm" or given.chrono_init is not None:  # which have no forget bias, or their own
        config = replace(config, forget_bias=0.0)
    if given.cell.endswith("lif"):  # spiking neurons, which draw their weights in another way
        config = replace(config, fan_in_init=False)
    if given.data is None or given.num_chunks is not None or HELP.intersection(arguments):
        return config  # data are read for a K that is wanted alone: what has finished may have lost them
    from fptt.experiments.tasks.registry import load_task  # seconds of loading

    setting = replace(config, **{**vars(_parsed(DataSetting, arguments)), "task": config.task})
    return replace(config, num_chunks=round(math.sqrt(load_task(setting, config.seed).training_length())))


def _parsed(kind: type[Options], arguments: Sequence[str]) -> Options:
    """Return those of the options that a dataclass has, read as in the whole command."""
    return tyro.cli(kind, args=[*arguments], return_unknown_args=True, add_help=False, registry=GROUPED)[0]


def starting_setting(arguments: Sequence[str]) -> Setting:
    """Return that config without its method and seed."""
    return _part(starting_config(arguments), Setting)


@dataclass(frozen=True, kw_only=True)
class _Resumption:
    resume: bool = False
    out: Path | None = None
    logger: str = "csv"  # where to log is not a setting of the run: one that goes on may have another


@dataclass(frozen=True, kw_only=True)
class _ResumptionElsewhere(_Resumption):
    data: str | None = None  # these are `MOVABLE`
    accelerator: str | None = None
    threads: str | None = None


def check_use(given: Setting, start: Setting) -> None:
    """Raise UserError if a field is given that makes no difference beside the others; a recipe may hold some."""
    for name, (choice, needed) in USED_WITH.items():
        value, chosen = getattr(given, name), getattr(given, choice)
        if value != getattr(start, name) and chosen not in needed:
            raise UserError(f"{name} belongs to the {choice} {' or '.join(needed)}, got {name} {value} with {chosen}.")


def check_resumption(arguments: Sequence[str], *, can_move: bool = False) -> tuple[str, ...]:
    """Check what is given beside --resume, and return which of `MOVABLE` are.

    Args:
        arguments: Those of the command.
        can_move: Whether these may be given.

    Raises:
        UserError: If something is to be resumed without its folder, or with other options.
    """
    kind = _ResumptionElsewhere if can_move else _Resumption
    given, others = tyro.cli(kind, args=[*arguments], return_unknown_args=True, add_help=False)
    if not given.resume or HELP.intersection(others):
        return ()
    if given.out is None:
        raise UserError("resume needs the folder of the run: give it by --out.")
    if others:
        also = f" (on another machine --{', --'.join(MOVABLE)} too)" if can_move else ""
        raise UserError(
            f"resume takes the settings from the folder: give --out{also} and no other option, got {others[0]}."
        )
    return tuple(name for name in MOVABLE if getattr(given, name, None) is not None)


def with_absolute_data(setting: Any) -> Any:
    """Return a setting whose local data are named by an absolute path, so that they are found from anywhere.

    Raises:
        UserError: If no system has such a path: it is too long, has a null byte, or names an unknown user.
    """
    if setting.data is None:
        return setting
    try:
        path = Path(setting.data).expanduser()
        return replace(setting, data=str(path.resolve())) if path.exists() else setting
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(f"data {reprlib.repr(setting.data)} cannot be found: {reason(error)}.") from error


def check_file(path: Path) -> None:
    """Raise UserError if no system has such a file, or there is no folder for it."""
    try:
        path.exists()
    except (OSError, ValueError) as error:
        raise UserError(f"out {reprlib.repr(str(path))} cannot be a file: {reason(error)}.") from error
    if not path.parent.is_dir():
        raise UserError(f"out {path} cannot be written: there is no folder {path.parent}.")


def check_folder(path: Path) -> None:
    """Raise UserError if no system has such a folder, as one with a name of 300 characters."""
    try:
        path.exists()
    except (OSError, ValueError) as error:
        raise UserError(f"out {reprlib.repr(str(path))} cannot be a folder: {reason(error)}.") from error
