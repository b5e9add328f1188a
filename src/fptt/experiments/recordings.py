"""Continuous recordings (HAPT), read one at a time, as long as there are any."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from fptt.experiments.errors import UserError
from fptt.experiments.tasks.hapt import NUM_CLASSES, step_targets
from fptt.experiments.tasks.loading import check_columns, floats, load_splits

SPLITS = {"all": ("train", "test"), "train": ("train",), "test": ("test",)}


class Recording(NamedTuple):
    """Signals (T, 6), and the class 0 … 11 of every step, (T,), or IGNORED where there is none."""

    signal: Tensor
    classes: Tensor


class Recordings:
    """The recordings of a data set, one after another; going through them again reads them again.

    Args:
        source: Hub id, or a local folder of Parquet files, with the columns signal and label.
        split: Which of them: train, test, or all, train first.
        limit: Stop after so many steps.

    Raises:
        UserError: If the data cannot be read.
    """

    num_inputs, num_classes = 6, NUM_CLASSES

    def __init__(self, source: str | None, split: str, limit: int | None) -> None:
        if source is None:
            raise UserError(
                "the stream needs data: give --data FOLDER, Parquet files whose columns are signal (T × 6 numbers) and "
                "label (T numbers, 0 for none or 1 to 12)."
            )
        self.splits: dict[str, Any] = load_splits(source, SPLITS[split], streaming=True)
        self.limit = limit
        for name, rows in self.splits.items():
            if rows.column_names is not None:  # some kinds of files do not tell
                check_columns(rows, name, ("signal", "label"))

    def num_steps(self) -> int:
        """Count the steps, by the labels alone."""
        total = sum(len(row["label"]) for rows in self.splits.values() for row in rows.select_columns(["label"]))
        return total if self.limit is None else min(total, self.limit)

    def __iter__(self) -> Iterator[Recording]:
        """Read the next recording when it is asked for."""
        left = self.limit
        for name, rows in self.splits.items():
            for row in rows.with_format("numpy"):
                recording = _recording(row, name)
                if left is not None:
                    recording = Recording(*(part[:left] for part in recording))
                    left -= len(recording.signal)
                yield recording
                if left == 0:
                    return


def _recording(row: dict[str, Any], name: str) -> Recording:
    (signal,) = floats({"signal": [row["signal"]]}, name, "signal", (None, 6))
    return Recording(signal, step_targets(np.asarray(row["label"]), name, len(signal)))
