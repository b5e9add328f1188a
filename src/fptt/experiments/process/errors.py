"""Errors that a user can mend."""

from pathlib import Path


class UserError(Exception):
    """A message for the user: shown on one line, without a traceback, with exit code 2."""


class ReportedError(UserError):
    """An error of a run of several processes that its leader reports, raised in the others."""


class UnwritableError(UserError):
    """A file of a run cannot be written: the disk is full, or the folder does not allow it."""


class UnreadableFileError(UserError):
    """A file is missing or damaged.

    Args:
        path: The file.
        reason: Why it cannot be read, without its path and without a full stop.
    """

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{path} cannot be read: {reason}.")
        self.reason = reason


class UnreadableError(UserError):
    """The data of a run, which could be read at its start, cannot be read any more."""


def reason(error: BaseException) -> str:
    """Return why something failed, without a full stop; of an error of the system without its path, perhaps long."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else one_line(error)
    return text.rstrip(".")


def one_line(error: BaseException) -> str:
    """Return the message of an error on one line."""
    return " ".join(str(error).split())
