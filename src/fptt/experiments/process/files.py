"""Files that are written whole or not at all, and what is said if they cannot be."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import safetensors

from fptt.experiments.process.errors import UnwritableError, one_line


def replace_text(path: Path, text: str) -> None:
    """Replace a file in one step, so that nobody reads half of it.

    Raises:
        UnwritableError: If it cannot be written.
    """
    with replaced(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


@contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """Give another name to write under, which takes the place of the file at the end.

    Raises:
        UnwritableError: If it cannot be written.
    """
    temporary = path.with_name(path.name + ".new")
    with unwritable_told(path):
        yield temporary
        os.replace(temporary, path)


@contextmanager
def unwritable_told(path: Path) -> Iterator[None]:
    """Tell of a full disk or a folder that cannot be written as of a user's slip."""
    try:
        yield
    except (OSError, safetensors.SafetensorError) as error:
        raise UnwritableError(f"{path} cannot be written: {one_line(error).rstrip('.')}.") from error
