"""Progress of a run: a bar in a terminal, plain lines elsewhere."""

import time
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from fptt.experiments.process.console import say

SECONDS_BETWEEN_LINES = 10.0


class Display(Protocol):
    """What the training loop shows its progress on."""

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
    """A bar with the metrics beside it."""

    def __init__(self, console: Console) -> None:
        columns = (TextColumn("{task.percentage:3.0f}%"), BarColumn(8), TextColumn("{task.description}"))
        self.progress = Progress(*columns, console=console)
        self.bar = self.progress.add_task("", total=1.0)
        self.progress.start()

    def show(self, fraction: float, text: str) -> None:
        """Move the bar."""
        self.progress.update(self.bar, completed=fraction, description=text)

    def epoch(self, fraction: float, text: str) -> None:
        """Move the bar."""
        self.show(fraction, text)

    def close(self) -> None:
        """Leave the bar as it is."""
        self.progress.stop()


class Lines:
    """A line at the end of an epoch, and now and then within a long one."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.last = time.monotonic()

    def show(self, fraction: float, text: str) -> None:
        """Print a line if the last one is some seconds old."""
        if time.monotonic() - self.last >= SECONDS_BETWEEN_LINES:
            self.epoch(fraction, text)

    def epoch(self, fraction: float, text: str) -> None:
        """Print a line."""
        self.last = time.monotonic()
        say(self.console, f"{100 * fraction:3.0f}%  {text}")

    def close(self) -> None:
        """Do nothing."""
