"""The names of settings in tables and plots: the method, and what differs from the setting they stand beside."""

from dataclasses import fields

from fptt.experiments.configs.config import UNUSED, TrainConfig
from fptt.experiments.studies.finished_run import HARMLESS

_IN_THE_NAME = ("method", "num_chunks", "bptt_losses", "seed", *HARMLESS)


def label(config: TrainConfig, base: TrainConfig) -> str:
    """Return the name of a setting: method, number of chunk losses above 1, and what differs from another setting.

    Examples:
        >>> label(TrainConfig(method="tbptt", lr=1e-3), TrainConfig(lr=2e-3))
        'TBPTT-8, lr × 0.5'
    """
    name = config.method.upper() + (f"-{config.chunk_losses}" if config.chunk_losses > 1 else "")
    return ", ".join([name, *what_differs(config, base)])


def what_differs(config: TrainConfig, base: TrainConfig) -> list[str]:
    """Return in words what differs from another setting, but for method, chunks, and what the method does not have."""
    words = []
    for name in (field.name for field in fields(TrainConfig)):
        value, own = getattr(config, name), getattr(base, name)
        if value == own or name in (*_IN_THE_NAME, *UNUSED[config.method]):
            continue
        match name:
            case "lr":
                words.append(f"lr × {value / own:.3g}")
            case "batch_size":
                words.append(f"batches of {value}")
            case _:
                words.append(f"{name} {value}")
    return words
