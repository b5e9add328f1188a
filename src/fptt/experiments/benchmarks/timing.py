"""How long something takes, and several things in turns."""

import time
from collections.abc import Callable, Sequence

import torch


class Stopwatch:
    """Seconds of wall time on the processor, and of the device's own clock on CUDA."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def seconds(self, function: Callable[[], object]) -> float:
        """Call a function and return how long it took, with all that it left to the device."""
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
    """Call functions that time themselves one after the other, round by round, and return the figures of each.

    Whatever disturbs the machine for a while then disturbs all of them.
    """
    rounds = [[function() for function in functions] for _ in range(num_rounds)]
    return [list(figures) for figures in zip(*rounds, strict=True)]
