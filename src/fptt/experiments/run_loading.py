"""The way from a run folder back to Python."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fptt.experiments.training.loaded_run import LoadedRun


def load_run(path: str | Path, *, averages: bool = False) -> LoadedRun:
    """Return the trained model of a run folder, with config and figures, for predictions on the CPU.

    Args:
        path: The folder, as `fptt train --out` was given it.
        averages: Take the averages W̄ instead of the weights W.

    Raises:
        UserError: If the folder does not exist or is damaged, or has no averages.

    Examples:
        >>> fptt.experiments.load_run("out/first")  # doctest: +SKIP
    """
    from fptt.experiments.training.loaded_run import LoadedRun  # seconds of loading, which `fptt --help` has no use for

    return LoadedRun.read(Path(path), averages=averages)
