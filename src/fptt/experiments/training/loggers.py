"""Loggers beside metrics.csv: TensorBoard, and Weights & Biases, by the classes of Fabric and Lightning."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from fptt.experiments.configs.config import TrainConfig
from fptt.experiments.configs.lists import parse_names
from fptt.experiments.process.errors import UserError, one_line

LOGGERS: dict[str, tuple[str, ...]] = {
    "csv": (),
    "tensorboard": ("tensorboard",),
    "wandb": ("wandb", "lightning"),
}
"""The loggers, and the libraries that they need beside those of the command line."""


def parse_loggers(text: str) -> tuple[str, ...]:
    """Return the loggers that a text names, with commas between them.

    Raises:
        UserError: If there is no such logger, one is repeated, or a library is missing.
    """
    names = parse_names("logger", text, tuple(LOGGERS))
    for name in names:
        for library in LOGGERS[name]:
            if find_spec(library) is None:
                raise UserError(f"logger {name} needs {library}: pip install 'fptt[{name}]'")
    return names


class Log:
    """The loggers of a run; metrics.csv is not among them."""

    def __init__(self, loggers: Sequence[Any]) -> None:
        self.loggers = loggers

    def add(self, values: Mapping[str, Any], step: int) -> None:
        """Log the numbers among some values, after so many updates."""
        numbers = {name: value for name, value in values.items() if isinstance(value, int | float)}
        for logger in self.loggers:
            logger.log_metrics(numbers, step=step)

    def close(self, status: str) -> None:
        """End the logs, which say whether the run was finished."""
        for logger in self.loggers:
            logger.finalize("success" if status == "finished" else status)


def make_log(names: Sequence[str], config: TrainConfig, folder: Path, *, start: int) -> Log:
    """Return the loggers of a run, which have its config.

    Args:
        names: Of `LOGGERS`.
        config: The config of the run.
        folder: Its folder, in which the logs lie too.
        start: Updates made already, of a run that is resumed: what was logged after them comes again.

    Raises:
        UserError: If a logger cannot begin.
    """
    loggers: list[Any] = []
    values = {name: value for name, value in asdict(config).items() if value is not None}
    try:
        if "tensorboard" in names:
            kind = import_module("lightning_fabric.loggers").TensorBoardLogger
            # readers drop what an interrupted run had logged after its checkpoint
            loggers.append(kind(folder, name="tensorboard", version="", purge_step=start + 1))
        if "wandb" in names:
            kind = import_module("lightning.pytorch.loggers").WandbLogger
            loggers.append(kind(project="fptt", name=folder.name, save_dir=folder, version=_wandb_id(folder)))
        for logger in loggers:
            logger.log_hyperparams(values)
    except Exception as error:  # a service of others may fail in any way
        raise UserError(f"logger cannot begin: {one_line(error).rstrip('.')}.") from error
    return Log(loggers)


def _wandb_id(folder: Path) -> str:
    """Return a name by which a resumed run goes on in the same log."""
    return "-".join(folder.absolute().parts[-3:]).strip("-/")
