"""Where the defaults of a command's options come from: a recipe, a task's own recipe, or the config of another run."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated

import tyro

from fptt.experiments.configs.config import Setting, TrainConfig
from fptt.experiments.configs.recipes import read_config, recipe, task_config
from fptt.experiments.process.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Origin:
    """The options that decide about the defaults of all others."""

    recipe: str | None = None
    """Start from this recipe (see `fptt recipes`) instead of the task's own; other options still apply."""
    config: Path | None = None
    """Start from the config.yaml of another run instead of a recipe; other options still apply."""


@dataclass(frozen=True)
class _Start:
    task: str | None = None
    engine: str = "eager"
    recipe: str | None = None
    config: Annotated[Path | None, tyro.conf.arg(help="")] = None


def starting_config(arguments: Sequence[str]) -> TrainConfig:
    """Return the config whose values are the defaults.

    Raises:
        UserError: If there is no such recipe, task or file, or they contradict each other.
    """
    given = tyro.cli(_Start, args=[*arguments], return_unknown_args=True, add_help=False)[0]
    if given.config is not None:
        if given.recipe is not None:
            raise UserError(f"give either recipe or config, got recipe {given.recipe} and config {given.config}.")
        return read_config(given.config)
    if given.recipe is None:
        return task_config(given.task or "digits", given.engine)
    found = recipe(given.recipe).config
    if given.task not in (None, found.task):
        raise UserError(f"recipe {given.recipe} is of the task {found.task}, got task {given.task}.")
    return found


def starting_setting(arguments: Sequence[str]) -> Setting:
    """Return that config without its method and seed."""
    config = starting_config(arguments)
    return Setting(**{field.name: getattr(config, field.name) for field in fields(Setting)})
