"""The tasks: one file each, all with the interface of `Task`."""

from fptt.experiments.config import Setting
from fptt.experiments.recipes import recipe
from fptt.experiments.tasks.task import Task as Task


def load_task(setting: Setting, seed: int) -> Task:
    """Load the data of a setting's task.

    Raises:
        UserError: If there is no such task, or its data cannot be read.
    """
    recipe(setting.task)
    if setting.task == "digits":
        from fptt.experiments.tasks.digits import load
    elif setting.task == "mnist":
        from fptt.experiments.tasks.mnist import load
    else:
        from fptt.experiments.tasks.adding import load
    return load(setting, seed)
