"""What is told on the console: lines of the commands, and what the library logs, such as how long compiling took."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console


def say(console: Console, text: str) -> None:
    """Print a line as it is: no wrapping, no colors, no markup."""
    console.print(text, highlight=False, soft_wrap=True, markup=False)


class ConsoleHandler(logging.Handler):
    """Prints records above the progress bar."""

    def __init__(self, console: Console) -> None:
        super().__init__(logging.INFO)
        self.console = console

    def emit(self, record: logging.LogRecord) -> None:
        """Print one record."""
        say(self.console, f"fptt: {record.getMessage()}")


@contextmanager
def announcements_on(console: Console) -> Iterator[None]:
    """Show what the logger `fptt` has to say, for a while."""
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
