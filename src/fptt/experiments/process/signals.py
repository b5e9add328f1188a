"""Signals: Ctrl-C and SIGTERM, handled where a run can stop without losing anything."""

import signal
import sys
import threading
from types import TracebackType
from typing import Any, Self

if sys.platform == "win32":  # where no other signal reaches a process group of its own
    SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGBREAK)
    ASK_TO_END = signal.CTRL_BREAK_EVENT
else:
    SIGNALS = (signal.SIGINT, signal.SIGTERM)
    ASK_TO_END = signal.SIGINT
INTERRUPTED = 130
"""The exit code of a command that was interrupted, 128 + SIGINT as in shells."""


class Interruption:
    """Remembers the first SIGINT or SIGTERM, so that the run ends after the batch; the second one ends it at once.

    Attributes:
        is_asked: Whether there was one.
    """

    def __init__(self) -> None:
        self.is_asked = False
        self.before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        """Install the handlers of the signals."""
        # Python allows it in the main thread only; elsewhere, as in a notebook's worker, signals stay as they are
        if threading.current_thread() is threading.main_thread():
            self.before = {number: signal.signal(number, self._take) for number in SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Restore the earlier handlers."""
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _take(self, *_: Any) -> None:
        if self.is_asked:
            raise KeyboardInterrupt
        self.is_asked = True
