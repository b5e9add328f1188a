"""Chunks pulled ahead, in a thread beside training."""

import atexit
import copy
import threading
import time
from collections.abc import Iterable, Iterator
from queue import SimpleQueue
from typing import Any, Generic, NamedTuple, TypeVar

from fptt._checks import check_count, check_iterable

Item = TypeVar("Item")

_END = object()

LONGEST_WAIT = 5.0
"""Seconds that the end of a process waits for pulls under way."""


class _Pulled(NamedTuple):
    """An item and the position of the source after it; or the end, and the error that made it, if one did."""

    item: Any
    position: Any
    error: BaseException | None = None


class Prefetched(Iterator[Item], Generic[Item]):
    """The items of a source in order, pulled ahead by `prefetch`.

    Examples:
        >>> ahead = fptt.prefetch(fptt.ArrayChunks(torch.zeros(9), torch.zeros(9), chunk_length=3), size=3)
        >>> taken = next(ahead)
        >>> ahead.state_dict()["chunk"]
        1
    """

    def __init__(self, source: Iterable[Item], size: int) -> None:
        self._position = _position(source)
        self._is_over = False
        self._puller = _Puller(source, size)
        self._puller.start()

    def __next__(self) -> Item:
        """Return the next item; raise what the source raised, when all items before are out."""
        if self._is_over:
            raise StopIteration
        pulled = self._puller.pulled.get()
        self._puller.slots.release()
        if pulled.error is None:
            self._position = pulled.position
        if pulled.item is not _END:
            return pulled.item
        self.close()
        try:
            raise StopIteration if pulled.error is None else pulled.error
        finally:
            del pulled  # the traceback holds this frame, which would hold the error

    def state_dict(self) -> Any:
        """Return the `state_dict()` that the source had after the last item that was taken here.

        Raises:
            TypeError: If the source has none.
        """
        if self._position is None:
            raise TypeError("source must have a state_dict() for a prefetched one, as ArrayChunks has.")
        return self._position

    def close(self) -> None:
        """End the thread: it pulls no more, and is over when the pull that it is in returns."""
        self._is_over = True
        self._puller.end()
        self._puller.pulled.put(_Pulled(_END, self._position))  # for whoever waits in another thread

    def __del__(self) -> None:
        if hasattr(self, "_puller"):
            self.close()


def prefetch(source: Iterable[Item], size: int = 2) -> Prefetched[Item]:
    """Pull from any iterable in a background thread, up to `size` items ahead of the consumer.

    The thread begins at once and ends with the source, with `close()`, or when nobody holds the iterator any more. A
    source that draws random numbers needs a generator of its own: it runs beside training. `state_dict()` is that of
    the items taken, whatever was pulled ahead; to continue after `close()`, load it into the source first.

    Args:
        source: Any iterable; it is iterated over in the thread, by nobody else meanwhile.
        size: Items pulled and not yet taken, ≥ 1: that many are in memory beside the one in use.

    Returns:
        An iterator of the same items.

    Raises:
        ValueError: If `size` is out of range.
        TypeError: If the source is not iterable.

    Examples:
        >>> list(fptt.prefetch(range(5), size=2))
        [0, 1, 2, 3, 4]
    """
    check_iterable("source", source)
    check_count("size", size)
    return Prefetched(source, size)


def _position(source: Any) -> Any:
    if isinstance(source, Prefetched):  # which has a state_dict(), but a position only if its own source has one
        return source._position
    return copy.deepcopy(source.state_dict()) if hasattr(source, "state_dict") else None


class _Puller(threading.Thread):
    """The thread. It does not hold its `Prefetched`, which would never be collected, and so never closed.

    Attributes:
        pulled: Items in the order of the source.
        slots: As many as items may still be pulled ahead.
    """

    def __init__(self, source: Any, size: int) -> None:
        super().__init__(name="fptt.prefetch", daemon=True)
        self.pulled: SimpleQueue[_Pulled] = SimpleQueue()
        self.slots = threading.Semaphore(size)
        self._source, self._items = source, iter(source)
        self._is_ending = threading.Event()

    def run(self) -> None:
        """Put items into the queue, each into a slot of its own, until the source ends or nobody wants more."""
        try:
            while self.slots.acquire() and not self._is_ending.is_set():
                item = next(self._items, _END)
                self.pulled.put(_Pulled(item, _position(self._source)))
                if item is _END:
                    return
                del item
        except BaseException as error:  # whatever it is, it belongs to the consumer
            self.pulled.put(_Pulled(_END, None, error))

    def end(self) -> None:
        """Pull no more."""
        self._is_ending.set()
        self.slots.release()


@atexit.register
def _end_all() -> None:
    """End all threads before Python does: in the middle of an operation of torch that would abort the process."""
    deadline = time.monotonic() + LONGEST_WAIT
    pullers = [thread for thread in threading.enumerate() if isinstance(thread, _Puller)]
    for puller in pullers:
        puller.end()
    for puller in pullers:
        puller.join(max(0.0, deadline - time.monotonic()))
