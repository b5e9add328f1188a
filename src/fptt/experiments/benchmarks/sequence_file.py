"""A sequence too long for memory, in a file, and read slice by slice."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

PERIOD = 50.0
NOISE = 0.1
STEPS_AT_A_TIME = 100_000


class SequenceFile:
    """Noisy sines, each sample with a phase of its own, to be predicted one step ahead.

    The file holds T + 1 steps of B numbers: the inputs are all but the last, the targets all but the first.

    Args:
        path: The file.
        length: T.
        batch_size: B.
    """

    def __init__(self, path: Path, length: int, batch_size: int) -> None:
        self.path, self.length, self.batch_size = path, length, batch_size

    def write(self, seed: int) -> None:
        """Make the sequence, a part at a time."""
        generator = np.random.default_rng(seed)
        phases = generator.uniform(0, 2 * np.pi, self.batch_size)
        with self.path.open("wb") as file:
            for start in range(0, self.length + 1, STEPS_AT_A_TIME):
                steps = np.arange(start, min(start + STEPS_AT_A_TIME, self.length + 1))[:, None]
                noise = NOISE * generator.standard_normal((len(steps), self.batch_size))
                file.write((np.sin(2 * np.pi * steps / PERIOD + phases) + noise).astype(np.float32).tobytes())

    def slices(self, length: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield inputs and targets, (S, B, 1) each, of consecutive slices of S ≤ `length` steps."""
        for start in range(0, self.length, length):
            steps = self._read(start, min(length, self.length - start) + 1)
            yield steps[:-1], steps[1:]

    def _read(self, start: int, num_steps: int) -> Tensor:
        # a map of its own for every slice: what one map for all has read stays in the memory of the process
        offset = start * self.batch_size * np.dtype(np.float32).itemsize
        mapped = np.memmap(self.path, np.float32, "r", offset, (num_steps, self.batch_size, 1))
        return torch.from_numpy(np.array(mapped))
