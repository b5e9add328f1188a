"""The checkpoints of a run or a stream: written whole or not at all, two kept, and none trusted that has changed."""

import hashlib
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from fptt.experiments.process.errors import UnwritableError, UserError, one_line

KEPT = 2
"""How many stay: if the newest is damaged, the one before it is used."""

_NAME = re.compile(r"checkpoint-(\d{6,})-([0-9a-f]{16})\.pt")
_UNFINISHED = "checkpoint.new"


class DamagedCheckpointError(UserError):
    """A checkpoint cannot be used, though an earlier one may be."""


class Checkpoints:
    """The checkpoints in a folder, each named by its number and the first half of its SHA-256.

    torch checks nothing of what it reads, so that a flipped bit would become a weight: the name tells.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def files(self) -> list[Path]:
        """Return the checkpoints, the newest first."""
        found = self.folder.glob("checkpoint-*.pt") if self.folder.is_dir() else []
        return sorted((path for path in found if _NAME.fullmatch(path.name)), key=_number, reverse=True)

    def write(self, state: Mapping[str, Any]) -> None:
        """Write all that a run needs to go on, and remove all but the last two.

        Raises:
            UnwritableError: If it cannot be written; the earlier ones stay.
        """
        temporary, earlier = self.folder / _UNFINISHED, self.files()
        number = _number(earlier[0]) + 1 if earlier else 1
        try:
            with temporary.open("wb") as file:
                torch.save(dict(state), file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, self.folder / f"checkpoint-{number:06d}-{_digest(temporary)}.pt")
            _sync_folder(self.folder)
        except (OSError, RuntimeError) as error:
            with suppress(OSError):
                temporary.unlink()  # on a full disk, room for what is written next
            raise UnwritableError(
                f"a checkpoint in {self.folder} cannot be written: {one_line(error).rstrip('.')}."
            ) from error
        for path in self.files()[KEPT:]:
            path.unlink(missing_ok=True)

    def restore(self, load: Callable[[dict[str, Any]], None], report: Callable[[str], None]) -> None:
        """Hand the newest checkpoint to `load`, or the one before it if that is damaged; set damaged ones aside.

        Args:
            load: Takes the state; raises `DamagedCheckpointError` if it cannot use it.
            report: Is told of every damaged one.

        Raises:
            UserError: If there is none, or all are damaged.
        """
        files = self.files()
        if not files:
            raise UserError(f"run folder {self.folder} has no checkpoint to go on from: begin without --resume.")
        for path in files:
            try:
                load(read_checkpoint(path))
            except DamagedCheckpointError as error:
                report(f"{error}; set aside as {path.name}.damaged.")
                path.rename(path.with_name(f"{path.name}.damaged"))
            else:
                return
        raise UserError(f"no checkpoint in {self.folder} can be used. To begin again: --overwrite.")

    def remove(self) -> None:
        """Forget the checkpoints, those set aside too."""
        for path in self._all():
            path.unlink(missing_ok=True)

    def _all(self) -> Iterator[Path]:
        yield from self.folder.glob("checkpoint-*.pt*")
        yield self.folder / _UNFINISHED


def load_field(state: dict[str, Any], name: str, load: Callable[[Any], Any]) -> Any:
    """Return what `load` makes of a field.

    Raises:
        DamagedCheckpointError: If the field is missing, or `load` cannot take it.
    """
    try:
        return load(state[name])
    except UserError:
        raise
    except Exception as error:  # a wrong value can fail in any way
        raise DamagedCheckpointError(f"the checkpoint's field {name!r} is damaged: {error!r:.200}") from error


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint; nothing in it is executed.

    Raises:
        DamagedCheckpointError: If it cannot be read, is not what was written, or holds no state.
    """
    match = _NAME.fullmatch(path.name)
    try:
        if match is None or match[2] != _digest(path):
            raise DamagedCheckpointError(f"checkpoint {path} is damaged: its content does not fit its name")
        state = torch.load(path, map_location="cpu", weights_only=True)
    except UserError:
        raise
    except Exception as error:  # the reader raises many kinds, all of them about the file
        raise DamagedCheckpointError(f"checkpoint {path} is damaged: {one_line(error)[:200].rstrip('.')}") from error
    if not isinstance(state, dict):
        raise DamagedCheckpointError(f"checkpoint {path} is damaged: it holds a {type(state).__name__}, not a state")
    return state


def _number(path: Path) -> int:
    match = _NAME.fullmatch(path.name)
    return int(match[1]) if match else 0


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def _sync_folder(folder: Path) -> None:
    """Make the new name last; not every system can."""
    if hasattr(os, "O_DIRECTORY"):
        descriptor = os.open(folder, os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
