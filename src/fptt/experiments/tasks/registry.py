"""The table of tasks: their names, modules and options."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from fptt.experiments.process.errors import UserError

if TYPE_CHECKING:  # `fptt --help` lists the tasks, and waits for nothing else
    from fptt.experiments.configs.config import Setting
    from fptt.experiments.tasks.interface import Interface
    from fptt.experiments.tasks.task import Task

TASKS: dict[str, str] = {
    "digits": "8 × 8 digits of scikit-learn, pixel by pixel or row by row",
    "mnist": "MNIST pixel by pixel, permuted, or row by row",
    "cifar10": "CIFAR-10 pixel by pixel, 1,024 steps of three colors",
    "adding": "the adding problem: the sum of two marked numbers",
    "copy": "copy memory: repeat ten symbols after a long delay",
    "anbn": "the next symbol of aⁿbⁿ, tested on longer n than trained",
    "ptb-word": "Penn Treebank, the next word",
    "ptb-char": "Penn Treebank, the next character",
    "text": "any text file or data set, the next character or word",
    "har": "human activity from windows of smartphone sensors",
    "hapt": "activities and transitions, a label for every step of a recording",
    "shd": "spoken digits as spikes of a cochlea (Spiking Heidelberg Digits): --data FOLDER with shd_*.h5",
    "sequences": "your own sequences: --data FILE, an .npz, CSV or Parquet file, or a folder",
}
"""The tasks; the module of each has a function `load(setting, seed) -> Task`."""

CHANCE = {
    **{(task, "accuracy"): 1 / 10 for task in ("digits", "mnist", "cifar10")},
    ("har", "accuracy"): 1 / 6,
    ("copy", "accuracy"): 1 / 8,  # one of eight symbols
    ("adding", "mse"): 1 / 6,  # of the mean: the variance, 2/12, of the sum of two uniform numbers
}
"""What a guess that knows nothing of the inputs reaches, by task and metric."""

MODULES = {"ptb-word": "ptb", "ptb-char": "ptb"}
"""Modules that do not have the name of their task."""

OPTIONS: dict[str, tuple[str, ...]] = {
    "data": ("mnist", "cifar10", "ptb-word", "ptb-char", "text", "har", "hapt", "shd", "sequences"),
    "permuted": ("mnist",),
    "by": ("digits", "mnist"),
    "standardization": ("mnist", "cifar10"),
    "level": ("text",),
    "length": ("adding", "copy", "anbn", "ptb-word", "ptb-char", "text", "hapt", "shd"),
    **dict.fromkeys(("id", "time", "inputs", "target", "group", "kind", "split_seed"), ("sequences",)),
}
"""Options that some tasks alone understand."""

TEXTS = ("text", "ptb-word", "ptb-char")
"""Tasks of a text, whose runs have a vocabulary."""

GENERATED = ("adding", "copy", "anbn")
"""Tasks whose training data are drawn as they are needed; a setting decides how many an epoch has."""


def load_task(setting: Setting, seed: int) -> Task:
    """Load the data of a setting's task.

    Raises:
        UserError: If there is no such task, an option belongs to another task, or its data cannot be read.
    """
    if setting.task not in TASKS:
        raise UserError(f"unknown task {setting.task!r}; there are {', '.join(TASKS)}.")
    for option, tasks in OPTIONS.items():
        if getattr(setting, option) != getattr(type(setting), option) and setting.task not in tasks:
            named = f"the task{'s' if len(tasks) > 1 else ''} {', '.join(map(repr, tasks))}"
            raise UserError(f"{option} belongs to {named}, got it with the task {setting.task!r}.")
    module = import_module(f"fptt.experiments.tasks.{MODULES.get(setting.task, setting.task)}")
    try:
        return module.load(setting, seed)
    except ValueError as error:  # of the libraries, about a data set that is not what it should be
        raise UserError(f"the data of the task {setting.task!r} cannot be used: {error}") from error


def check_interface(saved: Interface | None, task: Task) -> None:
    """Raise UserError if the data of a task are other than those that a run was trained on; older runs do not tell."""
    if saved is None:
        return
    other = saved.other_field(task.interface)
    if other is not None:
        raise UserError(
            f"the data of the task {task.name!r} are not those that the run was trained on: their {other} is another. "
            "For predictions on new data there is fptt predict."
        )


def check_vocabulary(saved: list[str] | None, task: Task) -> None:
    """Raise UserError if a run was trained on a text with another vocabulary than the task has now."""
    own = None if task.vocabulary is None else list(task.vocabulary)
    if saved is None and own is not None:
        raise UserError("the run folder is damaged: vocabulary.json is missing.")
    if saved != own:
        sizes = [0 if tokens is None else len(tokens) for tokens in (saved, own)]
        raise UserError(
            f"the data of the task {task.name!r} have another vocabulary than the run: {sizes[1]} tokens instead of "
            f"{sizes[0]}, or others. Give the text that the run was trained on by --data."
        )
