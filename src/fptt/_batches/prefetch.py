"""Chunks pulled ahead, in a thread beside training."""

import copy
import threading
from collections.abc import Iterable, Iterator
from queue import SimpleQueue
from typing import Any, Generic, NamedTuple, TypeVar

from fptt._checks import check_count, check_iterable

Item = TypeVar("Item")

_END = object()


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
        self._pulled: SimpleQueue[_Pulled] = SimpleQueue()
        self._slots, self._stop, self._is_over = threading.Semaphore(size), threading.Event(), False
        # the thread must not hold self: it would never be collected, and never closed
        arguments = (source, iter(source), self._pulled, self._slots, self._stop)
        self._thread = threading.Thread(target=_pull, args=arguments, name="fptt.prefetch", daemon=True)
        self._thread.start()

    def __next__(self) -> Item:
        """Return the next item; raise what the source raised, when all items before are out."""
        if self._is_over:
            raise StopIteration
        pulled = self._pulled.get()
        self._slots.release()
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
        self._stop.set()
        self._slots.release()
        self._pulled.put(_Pulled(_END, self._position))  # for whoever waits in another thread

    def __del__(self) -> None:
        if hasattr(self, "_thread"):
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
    return copy.deepcopy(source.state_dict()) if hasattr(source, "state_dict") else None


def _pull(
    source: Any,
    items: Iterator[Any],
    pulled: "SimpleQueue[_Pulled]",
    slots: threading.Semaphore,
    stop: threading.Event,
) -> None:
    """Put items into the queue, each into a slot of its own, until the source ends or nobody wants more."""
    try:
        while slots.acquire() and not stop.is_set():
            item = next(items, _END)
            pulled.put(_Pulled(item, _position(source)))
            if item is _END:
                return
            del item
    except BaseException as error:  # whatever it is, it belongs to the consumer
        pulled.put(_Pulled(_END, None, error))
