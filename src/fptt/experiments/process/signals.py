"""Signals: Ctrl-C, SIGTERM and a terminal that is closed, handled where a run can stop without losing anything."""

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any, Self

if sys.platform == "win32":  # where no other signal reaches a process group of its own
    SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGBREAK)
    HANGUP = None
    ASK_TO_END = signal.CTRL_BREAK_EVENT
else:
    SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    HANGUP = signal.SIGHUP
    ASK_TO_END = signal.SIGINT
INTERRUPTED = 130
"""The exit code of a command that was interrupted, 128 + SIGINT as in shells."""

Handler = Callable[[int, FrameType | None], Any]


def handle_signals(handler: Handler) -> dict[signal.Signals, Any]:
    """Let a handler take the signals that end a run, and return the earlier handlers, for `restore_signals`.

    Where a hangup is ignored, as under `nohup`, it stays so. Outside the main thread, as in a notebook's worker, where
    Python allows no handlers, all signals stay as they are.
    """
    return {number: signal.signal(number, _once(handler) if number == HANGUP else handler) for number in _taken()}


def restore_signals(before: dict[signal.Signals, Any]) -> None:
    """Restore the earlier handlers, but that of a hangup that has come, which is not heard again."""
    for number, handler in before.items():
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, handler)


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """Let the signals end the process at once, where Python would not hear them: in a call that waits for another."""
    before = {number: signal.signal(number, signal.SIG_DFL) for number in _taken()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _taken() -> list[signal.Signals]:
    """Return the signals that handlers may be given."""
    if threading.current_thread() is not threading.main_thread():
        return []
    return [number for number in SIGNALS if number != HANGUP or signal.getsignal(number) is not signal.SIG_IGN]


def _once(handler: Handler) -> Handler:
    """Return a handler that ignores its signal from then on.

    Of a closed terminal both the shell and the kernel may tell, and nobody is there who would end the run at once.
    """

    def take(number: int, frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_IGN)
        handler(number, frame)

    return take


class Interruption:
    """Remembers the first of the signals, so that the run ends after the batch; the second one ends it at once.

    Attributes:
        is_asked: Whether there was one.
    """

    def __init__(self) -> None:
        self.is_asked = self.is_waiting = False
        self.before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        """Install the handlers of the signals."""
        self.before = handle_signals(self._take)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Restore the earlier handlers."""
        restore_signals(self.before)

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Let the first signal raise KeyboardInterrupt too, while the run waits for data that may never come."""
        self.is_waiting = True
        try:
            if self.is_asked:
                raise KeyboardInterrupt
            yield
        finally:
            self.is_waiting = False

    def _take(self, *_: Any) -> None:
        is_second, self.is_asked = self.is_asked, True
        if is_second or self.is_waiting:
            raise KeyboardInterrupt
