"""Errors that a user can mend."""


class UserError(Exception):
    """A message for the user: shown on one line, without a traceback, with exit code 2."""


class ReportedError(UserError):
    """An error of a run of several processes that its leader reports, raised in the others."""


class UnwritableError(UserError):
    """A file of a run cannot be written: the disk is full, or the folder does not allow it."""


class UnreadableFileError(UserError):
    """A file is missing or damaged: the message names the path and the reason."""


class UnreadableError(UserError):
    """The data of a run, which could be read at its start, cannot be read any more."""


def reason(error: BaseException) -> str:
    """Return why something failed, without a full stop; of an error of the system without its path, perhaps long."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else one_line(error)
    return text.rstrip(".")


def one_line(error: BaseException) -> str:
    """Return the message of an error on one line."""
    return " ".join(str(error).split())
