"""The console: lines of the commands, the library's log, and the progress of a run."""

import errno
import io
import logging
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from fptt.experiments.process.errors import UnwritableError


def say(console: Console, text: str) -> None:
    """Print a line as it is: no wrapping, no colors, no markup."""
    console.print(text, highlight=False, soft_wrap=True, markup=False)


class OutputConsole(Console):
    """A console whose reader may go away, as `head` does or a terminal that is closed: a run continues, quietly.

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
            if write_error.errno == errno.EIO:  # of a terminal that is no more
                return
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


def duration(seconds: float) -> str:
    """Return a time as hours, minutes and seconds, such as 1:02:05, or 2:05.

    Examples:
        >>> duration(125.4), duration(3725)
        ('2:05', '1:02:05')
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


# -- progress ---------------------------------------------------------------------------------------------------------

SECONDS_BETWEEN_LINES = 10.0


class Display(Protocol):
    """A place that shows the progress of a run."""

    def show(self, fraction: float, text: str) -> None:
        """Show the fraction of the run that is done, from 0 to 1, and its metrics."""

    def epoch(self, fraction: float, text: str) -> None:
        """Show the metrics at the end of an epoch."""

    def close(self) -> None:
        """Stop showing."""


def make_display(console: Console) -> Display:
    """Return a bar if the console is a terminal, else plain lines."""
    return Bar(console) if console.is_terminal else Lines(console)


class Bar:
    """A bar with the time left and the metrics beside it; the epochs gone by stand above it."""

    def __init__(self, console: Console) -> None:
        percentage, left = TextColumn("{task.percentage:3.0f}%"), TimeRemainingColumn(compact=True)
        self.progress = Progress(percentage, BarColumn(8), left, TextColumn("{task.description}"), console=console)
        self.bar = self.progress.add_task("", total=1.0)
        self.progress.start()

    def show(self, fraction: float, text: str) -> None:
        """Move the bar."""
        self.progress.update(self.bar, completed=fraction, description=text)

    def epoch(self, fraction: float, text: str) -> None:
        """Move the bar, and print a line above it."""
        self.show(fraction, text)
        say(self.progress.console, f"{100 * fraction:3.0f}%  {text}")

    def close(self) -> None:
        """Leave the bar as it is."""
        self.progress.stop()


class Lines:
    """A line at the end of an epoch, and now and then within a long one."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.last = time.monotonic()
        self.begin: tuple[float, float] | None = None  # time and fraction of the first call, as of a resumed run

    def show(self, fraction: float, text: str) -> None:
        """Print a line if the last one is some seconds old."""
        self.begin = self.begin or (time.monotonic(), fraction)
        if time.monotonic() - self.last >= SECONDS_BETWEEN_LINES:
            self.epoch(fraction, text)

    def epoch(self, fraction: float, text: str) -> None:
        """Print a line, with the time left if the run has gone far enough to tell."""
        self.last = now = time.monotonic()
        start, done = self.begin = self.begin or (now, fraction)
        left = ""
        if done < fraction < 1:
            left = f"  {duration((now - start) * (1 - fraction) / (fraction - done))} left"
        say(self.console, f"{100 * fraction:3.0f}%  {text}{left}")

    def close(self) -> None:
        """Do nothing."""
