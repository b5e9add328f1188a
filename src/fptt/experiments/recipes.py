"""The setting of each task, where a user gives none."""

from dataclasses import replace
from pathlib import Path

from fptt.experiments.config import TrainConfig, read_values
from fptt.experiments.errors import UserError

RECIPES: dict[str, TrainConfig] = {
    "digits": TrainConfig(task="digits", threads=1),  # too small for more, and robust beside other programs
    "mnist": TrainConfig(task="mnist", readout_sizes=(256,), num_chunks=28, batch_size=128, epochs=20, lr=1e-3),
    "adding": TrainConfig(
        task="adding",
        length=200,
        readout_sizes=(256,),
        forget_bias=1.0,
        fan_in_init=True,
        num_chunks=10,
        batch_size=128,
        epochs=15,
        lr=1e-3,
        schedule="trapezoid",
        divergence="none",
    ),
}


COMPILED_RECIPES: dict[str, TrainConfig] = {
    # an update every time step: small ones, many, judged by their moving average, for the weights never stand still
    "digits": replace(
        RECIPES["digits"],
        engine="compiled",
        num_chunks=64,
        lr=5e-4,
        schedule="constant",
        ema_decay=0.98,
        epochs=200,
        forget_bias=1.0,
        fan_in_init=True,
        readout_sizes=(256,),
        readout_activation="relu",
    ),
}


def recipe(task: str, engine: str = "eager") -> TrainConfig:
    """Return the setting of a task; some have another one for the compiled engine, with an update every time step.

    Raises:
        UserError: If there is no such task; lists those that exist.
    """
    if task not in RECIPES:
        raise UserError(f"unknown task {task!r}; there are {', '.join(RECIPES)}.")
    return COMPILED_RECIPES.get(task, RECIPES[task]) if engine == "compiled" else RECIPES[task]


def read_config(path: Path) -> TrainConfig:
    """Read a config file; fields that it lacks are those of its task's recipe.

    Raises:
        UserError: If the file is missing or damaged, or a field is unknown or wrong.
    """
    values = read_values(path)
    return replace(recipe(values.get("task", "digits"), values.get("engine", "eager")), **values)
