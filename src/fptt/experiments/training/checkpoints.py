"""Checkpoints: the last two are kept, each written whole or not at all, and verified before it is loaded."""

import os
import re
import sys
import zipfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import torch

from fptt.experiments.process.errors import UnwritableError, UserError, one_line

Loaded = TypeVar("Loaded")

KEPT = 2
"""The number kept: if the newest is damaged, the one before it is used."""
SECONDS_BETWEEN_CHECKPOINTS = 600.0
"""At most, however many updates or steps were asked for: with long batches, or a slow stream, those may take hours."""

_ONLY_TO_RESUME = "-resume-only"
_NAME = re.compile(rf"checkpoint-(\d{{6,}})({_ONLY_TO_RESUME})?\.pt")
_UNFINISHED = "checkpoint.new"
_DAMAGED = ".damaged"


class DamagedCheckpointError(UserError):
    """A checkpoint cannot be used, though an earlier one may be."""


class Checkpoints:
    """The numbered checkpoints in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def files(self, *, to_roll_back: bool = False) -> list[Path]:
        """Return the checkpoints, the newest first; to roll back without those that are only to resume from."""
        found = self.folder.glob("checkpoint-*.pt") if self.folder.is_dir() else []
        names = {path: match for path in found if (match := _NAME.fullmatch(path.name))}
        return sorted((path for path in names if not (to_roll_back and names[path][2])), key=_number, reverse=True)

    def write(self, state: Mapping[str, Any], *, only_to_resume: bool = False) -> None:
        """Write a state of tensors and plain values, and remove all checkpoints but the last two of those to roll back.

        Args:
            state: The state.
            only_to_resume: Whether no rollback goes back to it; it is kept while it is one of the last two of all.

        Raises:
            UnwritableError: If it cannot be written; the earlier ones stay.
        """
        temporary, earlier = self.folder / _UNFINISHED, self.files()
        number = _number(earlier[0]) + 1 if earlier else 1
        try:
            temporary.unlink(missing_ok=True)  # of a process that was killed, or a planted link
            with temporary.open("xb") as file:  # follows no link, as "wb" would
                torch.save(dict(state), file)
                file.flush()
                os.fsync(file.fileno())  # before the rename, or a power cut could leave a name without content
            kind = _ONLY_TO_RESUME if only_to_resume else ""
            os.replace(temporary, self.folder / f"checkpoint-{number:06d}{kind}.pt")
            _sync_folder(self.folder)
        except (OSError, RuntimeError) as error:
            with suppress(OSError):
                temporary.unlink()  # on a full disk, room for what is written next
            # torch then closes its archive, which fails in turn, with an error that says nothing about the disk
            cause = error.__context__ if isinstance(error.__context__, OSError) else error
            raise UnwritableError(
                f"a checkpoint in {self.folder} cannot be written: {one_line(cause).rstrip('.')}."
            ) from error
        for path in set(self.files()[KEPT:]) - set(self.files(to_roll_back=True)[:KEPT]):
            with suppress(OSError):  # one too many does no harm
                path.unlink()

    def restore(
        self, load: Callable[[dict[str, Any]], Loaded], report: Callable[[str], None], *, to_roll_back: bool = False
    ) -> Loaded:
        """Return what `load` makes of the newest checkpoint, or of the one before it; set damaged ones aside.

        Args:
            load: Takes the state; raises `DamagedCheckpointError` if it cannot use it.
            report: Takes a line of text about every damaged one.
            to_roll_back: Whether those that are only to resume from are left out.

        Raises:
            UserError: If there is none, or all are damaged.
        """
        files = self.files(to_roll_back=to_roll_back)
        if not files:
            raise UserError(f"run folder {self.folder} has no checkpoint to resume from: begin without --resume.")
        for path in files:
            try:
                return load(read_checkpoint(path))
            except DamagedCheckpointError as error:
                report(f"{error}; {_set_aside(path)}.")
        raise UserError(f"no checkpoint in {self.folder} can be used. To begin again: --overwrite.")

    def remove(self) -> None:
        """Remove the checkpoints, those set aside too, and no file of another name that begins so."""
        for path in (*self.files(), *self.set_aside(), self.folder / _UNFINISHED):
            path.unlink(missing_ok=True)

    def set_aside(self) -> list[Path]:
        """Return the damaged checkpoints that have been set aside."""
        found = self.folder.glob(f"checkpoint-*.pt{_DAMAGED}") if self.folder.is_dir() else []
        return [path for path in found if _NAME.fullmatch(path.name.removesuffix(_DAMAGED))]


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
    """Read and verify a checkpoint; nothing in it is executed.

    `torch.save` writes a zip archive, with a CRC-32 of every record, which `torch.load` does not check: a flipped bit
    would become a weight.

    Raises:
        DamagedCheckpointError: If it cannot be read, differs from what was written, or holds no state.
    """
    try:
        if not path.is_file():  # to open a FIFO would wait for a writer
            raise ValueError("it is not a regular file")
        with zipfile.ZipFile(path) as archive:
            changed = archive.testzip()
        if changed is not None:
            raise ValueError(f"the content of its record {changed} has changed")
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the readers raise many kinds, all of them about the file
        raise DamagedCheckpointError(f"checkpoint {path} is damaged: {one_line(error)[:200].rstrip('.')}") from error
    if not isinstance(state, dict):
        raise DamagedCheckpointError(f"checkpoint {path} is damaged: it holds a {type(state).__name__}, not a state")
    return state


def _set_aside(path: Path) -> str:
    """Rename a damaged checkpoint, if the folder allows it; return a description of what became of it."""
    aside = path.with_name(path.name + _DAMAGED)
    try:
        path.rename(aside)
    except OSError as error:
        return f"it cannot be set aside ({error.strerror})"
    return f"set aside as {aside.name}"


def _number(path: Path) -> int:
    match = _NAME.fullmatch(path.name)
    return int(match[1]) if match else 0


def _sync_folder(folder: Path) -> None:
    """Make the new name durable, where the system can."""
    if sys.platform != "win32":  # which cannot open a folder
        descriptor = os.open(folder, os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
