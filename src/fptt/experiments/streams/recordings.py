"""Continuous recordings (HAPT), read one at a time, as long as there are any."""

import hashlib
from collections.abc import Generator, Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np

from fptt.experiments.configs.config import StreamConfig
from fptt.experiments.process.errors import UnreadableError, UserError
from fptt.experiments.streams.source import Kind, Piece
from fptt.experiments.tasks.hapt import NUM_CLASSES, Recording, step_targets
from fptt.experiments.tasks.loading import check_columns, floats, load_splits, reasons

SPLITS = {"all": ("train", "test"), "train": ("train",), "test": ("test",)}


class Survey(NamedTuple):
    """The number of steps, and a digest of all labels, by which the data are recognized."""

    num_steps: int
    digest: str


class Recordings:
    """The recordings of a data set, one after another; going through them again reads them again.

    Args:
        config: Its data, hub id or a local folder of Parquet files with the columns signal and label; its split,
            train, test, or all, train first; and its limit of steps.
        place: Where to begin: after a piece of an earlier process. None for the first recording.

    Raises:
        UserError: If the data cannot be read, or are not those of the place.
    """

    kind: Kind = "classes"
    num_inputs, num_outputs, classes = 6, NUM_CLASSES, range(NUM_CLASSES)

    def __init__(self, config: StreamConfig, place: dict[str, Any] | None = None) -> None:
        if config.data is None:
            raise UserError(
                "the stream needs data: give --data FOLDER, Parquet files whose columns are signal (T × 6 numbers) and "
                "label (T numbers, 0 for none or 1 to 12)."
            )
        self.splits: dict[str, Any] = load_splits(config.data, SPLITS[config.split], streaming=True)
        self.limit = config.limit
        for name, rows in self.splits.items():
            if rows.column_names is not None:  # some kinds of files do not name them
                check_columns(rows, name, ("signal", "label"))
        self.num_steps, digest = self.survey()
        self.about = f"recordings: {self.num_steps:,} steps, D = {self.num_inputs}; {self.num_outputs} classes"
        self.start = {"recordings": 0, "start": 0, "steps": 0, "digest": digest} if place is None else place
        if self.start["digest"] != digest:
            raise UserError(f"the labels in {config.data} are not those that the stream began with.")

    def survey(self) -> Survey:
        """Count the steps, by the labels alone.

        Raises:
            UnreadableError: If a file cannot be read.
        """
        total, digest = 0, hashlib.sha256()
        for name, rows in self.splits.items():
            for row in _readable(rows.select_columns(["label"]), name):
                total += len(row["label"])
                digest.update(repr(row["label"]).encode())
        return Survey(total if self.limit is None else min(total, self.limit), digest.hexdigest())

    def __iter__(self) -> Iterator[Recording]:
        """Yield the recordings, each read when it is needed.

        Raises:
            UnreadableError: If a file cannot be read any more.
        """
        left = self.limit
        for name, rows in self.splits.items():
            for row in _readable(rows.with_format("numpy"), name):
                recording = _recording(row, name)
                if left is not None:
                    recording = Recording(*(part[:left] for part in recording))
                    left -= len(recording.signal)
                yield recording
                if left == 0:
                    return

    def pieces(self, length: int) -> Generator[Piece, None, None]:
        """Return the pieces from `start` on; see `Source`."""
        begin, steps = int(self.start["start"]), int(self.start["steps"])
        for number, (signal, classes) in enumerate(self):
            if number < self.start["recordings"]:
                continue
            for first in range(begin, len(signal), length):
                part = slice(first, first + length)
                is_last = part.stop >= len(signal)
                steps += len(classes[part])
                place = {
                    "recordings": number + is_last,
                    "start": 0 if is_last else part.stop,
                    "steps": steps,
                    "digest": self.start["digest"],
                }
                progress = steps / self.num_steps
                yield Piece(signal[part], classes[part], self.classes, first == 0, is_last, place, progress)
            begin = 0

    def figures(self, place: dict[str, Any]) -> dict[str, Any]:
        """Return the number of recordings that are complete."""
        return {"recordings": place["recordings"]}


def _readable(rows: Iterable[dict[str, Any]], name: str) -> Iterator[dict[str, Any]]:
    """Yield the rows of a split; raise UnreadableError if one cannot be read."""
    try:
        yield from rows
    except Exception as error:  # the reader raises many kinds, all of them about the data
        raise UnreadableError(f"the {name} split cannot be read any more: {reasons(error)}.") from error


def _recording(row: dict[str, Any], name: str) -> Recording:
    (signal,) = floats({"signal": [row["signal"]]}, name, "signal", (None, 6))
    return Recording(signal, step_targets(np.asarray(row["label"]), name, len(signal)))
