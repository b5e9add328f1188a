"""The lock of a run folder: one process at a time writes there."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from fptt.experiments.process.errors import UserError
from fptt.experiments.process.files import unwritable_told

NAME = "lock"


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder, which is made if need be; the system releases it however the process ends.

    Raises:
        UnwritableError: If folder or lock file cannot be made.
        UserError: If another process holds the lock.
    """
    path = folder / NAME
    with unwritable_told(path):
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = _open(path)
    try:
        yield
    finally:
        with suppress(OSError):  # while it is still held, so that nobody else can have locked this very file
            path.unlink()
        os.close(descriptor)


def _open(path: Path) -> int:
    """Return a descriptor of the lock file that holds its lock."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # between open and flock the holder before may have removed the file: then this lock is of no path
            if os.path.samestat(os.fstat(descriptor), path.stat()):
                return descriptor
        except BlockingIOError:
            os.close(descriptor)
            raise UserError(
                f"another process is training in {path.parent}: wait until it has ended, or give another folder."
            ) from None
        except FileNotFoundError:
            pass
        except OSError:
            return descriptor  # file systems without locks; they cannot tell
        os.close(descriptor)
