"""The tasks: one file each, all with the interface of `Task`."""

from fptt.experiments.config import Setting
from fptt.experiments.errors import UserError
from fptt.experiments.recipes import recipe
from fptt.experiments.tasks.task import Task as Task

OPTIONS = {"data": "mnist", "permuted": "mnist", "length": "adding"}
"""Options that one task alone understands."""


def load_task(setting: Setting, seed: int) -> Task:
    """Load the data of a setting's task.

    Raises:
        UserError: If there is no such task, an option belongs to another task, or its data cannot be read.
    """
    recipe(setting.task)
    for option, task in OPTIONS.items():
        if getattr(setting, option) and setting.task != task:
            raise UserError(f"{option} belongs to the task {task!r}, got it with the task {setting.task!r}.")
    if setting.task == "digits":
        from fptt.experiments.tasks.digits import load
    elif setting.task == "mnist":
        from fptt.experiments.tasks.mnist import load
    else:
        from fptt.experiments.tasks.adding import load
    return load(setting, seed)
