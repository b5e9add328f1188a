"""Timing: a stopwatch, turns, and an allocator that does not disturb them."""

import ctypes
import time
from collections.abc import Callable, Sequence

import torch

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
"""Of mallopt(3)."""


class Stopwatch:
    """Seconds of wall time on the processor, and of the device's own clock on CUDA."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def seconds(self, function: Callable[[], object]) -> float:
        """Call a function and return the seconds until the device has done all of its work."""
        return self._cuda_seconds(function) if self.device.type == "cuda" else _wall_seconds(function)

    def _cuda_seconds(self, function: Callable[[], object]) -> float:
        with torch.cuda.device(self.device):
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            torch.cuda.synchronize()
            start.record()
            function()
            end.record()
            end.synchronize()
        return start.elapsed_time(end) / 1000


def _wall_seconds(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def take_turns(functions: Sequence[Callable[[], float]], num_rounds: int) -> list[list[float]]:
    """Call functions that time themselves one after the other, round by round, and return the seconds of each.

    Whatever disturbs the machine for a while then disturbs all of them.
    """
    rounds = [[function() for function in functions] for _ in range(num_rounds)]
    return [list(seconds) for seconds in zip(*rounds, strict=True)]


def keep_freed_memory() -> bool:
    """Let the process keep all memory that it frees; return whether the C library can: glibc does.

    By default glibc returns large blocks, and the top of the heap, to the system, which has to find pages for the next
    ones. How often depends on what lies where, so on what ran before, and it can take BPTT about as long as its
    arithmetic.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    return bool(mallopt(M_TRIM_THRESHOLD, -1) and mallopt(M_MMAP_MAX, 0))
