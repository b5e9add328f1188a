"""The console: lines of the commands, and the library's log."""

import io
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType

from rich.console import Console

from fptt.experiments.process.errors import UnwritableError


def say(console: Console, text: str) -> None:
    """Print a line as it is: no wrapping, no colors, no markup."""
    console.print(text, highlight=False, soft_wrap=True, markup=False)


class OutputConsole(Console):
    """A console whose reader may go away, as `head` does: a run that takes hours goes on quietly.

    Raises:
        UnwritableError: If the output cannot be written for another reason, such as a full disk.
    """

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Write what was printed; rich's bars and tables come through here too."""
        try:
            super().__exit__(kind, error, traceback)
        except OSError as write_error:
            self.on_broken_pipe()
            raise UnwritableError(f"the output cannot be written: {write_error.strerror}.") from write_error

    def on_broken_pipe(self) -> None:
        """Print nothing more; rich would end the process."""
        self.quiet = True
        # Python flushes the stream once more when it ends, and would fail again
        os.dup2(os.open(os.devnull, os.O_WRONLY), self.file.fileno())


def replace_unencodable() -> None:
    """Let the standard streams print "?" for what the locale cannot encode, instead of raising UnicodeEncodeError."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # None without a console; tests capture by other types
            stream.reconfigure(errors="replace")


class ConsoleHandler(logging.Handler):
    """Prints records above the progress bar, each on one line; rich's own handler folds them at the console's width."""

    def __init__(self, console: Console) -> None:
        super().__init__(logging.INFO)
        self.console = console

    def emit(self, record: logging.LogRecord) -> None:
        """Print one record."""
        say(self.console, f"fptt: {record.getMessage()}")


@contextmanager
def logging_to(console: Console) -> Iterator[None]:
    """Print the log of the logger `fptt` on a console, for a while."""
    logger, handler = logging.getLogger("fptt"), ConsoleHandler(console)
    level, propagate = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        logger.propagate = propagate
