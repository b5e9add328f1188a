"""The setting of each task, where a user gives none."""

from fptt.experiments.config import TrainConfig
from fptt.experiments.errors import UserError

RECIPES: dict[str, TrainConfig] = {
    "digits": TrainConfig(task="digits", threads=1),  # too small for more, and robust beside other programs
    "mnist": TrainConfig(task="mnist", readout_sizes=(256,), num_chunks=28, batch_size=128, epochs=20, lr=1e-3),
    "adding": TrainConfig(
        task="adding",
        length=200,
        readout_sizes=(256,),
        num_chunks=10,
        batch_size=128,
        epochs=15,
        lr=1e-3,
        schedule="constant",
        divergence="none",
    ),
}


def recipe(task: str) -> TrainConfig:
    """Return the setting of a task.

    Raises:
        UserError: If there is no such task; lists those that exist.
    """
    if task not in RECIPES:
        raise UserError(f"unknown task {task!r}; there are {', '.join(RECIPES)}.")
    return RECIPES[task]
