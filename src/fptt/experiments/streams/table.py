"""Rows of a table, read one after another: of a CSV or Parquet file, or of standard input, which may have no end."""

import csv
import hashlib
import math
import sys
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, closing, nullcontext
from datetime import UTC, date, datetime, time
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import torch

from fptt.experiments.configs.config import StreamConfig
from fptt.experiments.configs.lists import split_list
from fptt.experiments.process.errors import UnreadableError, UserError, one_line
from fptt.experiments.streams.source import Kind, Piece
from fptt.experiments.tasks.cells import (
    are_measurements,
    as_number,
    check_named,
    check_once,
    check_separator,
    is_index,
    is_missing,
    label_of,
    shown_names,
)
from fptt.experiments.tasks.scores import IGNORED

STANDARD_INPUT = "-"
SUFFIXES = (".csv", ".parquet")
LOOKED_AT = 1000
"""Rows at the beginning that tell whether the target is a class or a number."""


LARGEST = torch.finfo(torch.float32).max
"""Number that models, which compute in float32, can hold."""
TRUTHS = {"False": 0.0, "false": 0.0, "FALSE": 0.0, "True": 1.0, "true": 1.0, "TRUE": 1.0}
"""Numbers that the truth values of Parquet are, as CSV spells them: as pandas, by which sequences are read."""


class Table:
    """The rows of a table as a stream that is one recording: each is read when it is needed, and forgotten.

    Classes are numbered as they come: what comes later is not known. A number that is missing among the inputs is a
    gap; a target that is missing, or the class -100, is no label.

    Args:
        config: Its data, columns, `missing`, kind and limit.
        place: Where to begin: after a piece of an earlier process. None for the first row.
        next_rows: The data have only what comes after that place, and not the rows before it again.

    Raises:
        UserError: If it cannot be read, has no rows, or lacks a column.
    """

    num_steps = None

    def __init__(self, config: StreamConfig, place: dict[str, Any] | None = None, *, next_rows: bool = False) -> None:
        if config.data is None:
            raise UserError(
                f"a table needs data: give --data FILE ({' or '.join(SUFFIXES)}), or - for rows of CSV from standard "
                "input."
            )
        self.config, self.next_rows = config, next_rows
        self.source = "standard input" if config.data == STANDARD_INPUT else repr(config.data)
        self.opened: Rows | None = None
        if place is None:
            rows = _rows(config.data, self.source)
            if config.data == STANDARD_INPUT:  # which comes once
                place, looked_at = self._begun(rows)
                self.opened = rows._replace(values=_continued(looked_at, rows.values))
            else:
                with closing(rows.values):
                    place, _ = self._begun(rows)
        self.start = place
        self.kind: Kind = place["kind"]
        self.num_inputs = len(place["columns"]["inputs"])
        self.num_outputs = config.max_classes if self.kind == "classes" else 1
        self.classes = () if self.kind == "classes" else None  # none is known from the start

    @property
    def about(self) -> str:
        """Which columns are read, and as what."""
        columns = self.start["columns"]
        order = "" if columns["time"] is None else f" in the order of {columns['time']}"
        targets = f"{columns['target']}, {'classes' if self.kind == 'classes' else 'numbers'}"
        return f"table: D = {self.num_inputs}{shown_names(columns['inputs'])}{order}; target {targets}"

    def _begun(self, rows: "Rows") -> tuple[dict[str, Any], list[Sequence[Any]]]:
        """Return the place before the first row, and the rows that were looked at to tell it."""
        columns = self._columns(rows.names)
        looked_at = list(islice(rows.values, 1 if self.config.kind else LOOKED_AT))
        if not looked_at:
            raise UserError(f"data {self.source} must have rows, got none.")
        where = rows.names.index(columns["target"])
        kind = self.config.kind or self._kind([row[where] for row in looked_at if len(row) > where], columns["target"])
        place = {
            "rows": 0,
            "digest": "",
            "columns": columns,
            "kind": kind,
            "labels": [],
            "held": [math.nan] * len(columns["inputs"]),
            "time": -math.inf,
            "gaps": 0,
            "skipped": 0,
            "steps": 0,
        }
        return place, looked_at

    def figures(self, place: dict[str, Any]) -> dict[str, Any]:
        """Return the columns, the numbers of rows and gaps, and the classes in the order in which they came."""
        columns = {**place["columns"], "inputs": ",".join(place["columns"]["inputs"])}  # as the options name them
        classes = {"classes": [str(label) for label in place["labels"]]} if self.kind == "classes" else {}
        return {**columns, "rows": place["rows"], "gaps": place["gaps"], "skipped_rows": place["skipped"], **classes}

    # -- columns -----------------------------------------------------------------------------------------------------

    def _columns(self, names: list[str]) -> dict[str, Any]:
        """Return the names of the inputs, a list, of the target and of the time, which may be None."""
        config = self.config
        check_separator(names, self.source)
        target = config.target or "target"
        given = None if config.inputs is None else list(split_list("inputs", config.inputs))
        if given is None:
            check_named(names, self.source)
        is_free = "time" in names and "time" not in (target, *(given or ()))
        times = config.time or ("time" if is_free else None)
        inputs = given or [name for name in names if name not in (target, times) and not is_index(name)]
        columns = {"inputs": inputs, "target": target, "time": times}
        self._check_columns(names, columns)
        if not inputs:
            raise UserError(f"{self.source} must have a column of inputs beside {', '.join(map(repr, names))}.")
        if target in inputs:
            raise UserError(f"the target {target!r} of {self.source} must not be one of the inputs.")
        return columns

    def _check_columns(self, names: list[str], columns: dict[str, Any]) -> None:
        check_once(names, (*columns["inputs"], columns["target"], columns["time"]), self.source)

    def _kind(self, targets: list[Any], column: str) -> Kind:
        """Return what the first targets are: numbers with fractions, or classes."""
        values = [value for value in targets if not is_missing(value)]
        if not values:
            raise UserError(
                f"{self.source} must have a value of {column!r} in one of its first {LOOKED_AT:,} rows, got none: say "
                "by --kind whether they are classes or regression."
            )
        return "regression" if are_measurements(values) else "classes"

    # -- rows --------------------------------------------------------------------------------------------------------

    def pieces(self, length: int) -> Generator[Piece, None, None]:
        """Return the pieces from `start` on; see `Source`."""
        rows = self.opened or _rows(str(self.config.data), self.source)
        with ExitStack() as stack:
            stack.enter_context(closing(rows.values))
            self._check_columns(rows.names, self.start["columns"])
            digest = self._digest(rows)
            stack.pop_all()  # they are not read yet
        return self._parsed(rows, digest, length)

    def _digest(self, rows: "Rows") -> Any:
        """Read the rows before `start`, and return their digest, to which those that follow are added."""
        start, count, digest = self.start, 0, hashlib.sha256()
        if self.next_rows:
            digest.update(start["digest"].encode())  # other rows than those of the place: no replay of them fits
        elif start["rows"]:
            for row in islice(rows.values, start["rows"]):
                digest.update(repr(row).encode())
                count += 1
            if digest.hexdigest() != start["digest"]:
                raise UserError(
                    f"the first {start['rows']:,} rows of {self.source} must be those that the stream began with, got "
                    + (f"{count:,} rows." if count < start["rows"] else "others.")
                )
        return digest

    def _parsed(self, rows: "Rows", digest: Any, length: int) -> Generator[Piece, None, None]:
        """Yield the pieces of the rows that are left."""
        number = 0 if self.next_rows else self.start["rows"]
        place, limit = dict(self.start), self.config.limit
        columns = place["columns"]
        where = [rows.names.index(name) for name in columns["inputs"]]
        target_at = rows.names.index(columns["target"])
        time_at = None if columns["time"] is None else rows.names.index(columns["time"])
        numbers = {label: count for count, label in enumerate(place["labels"])}
        is_first, signal, targets, has_ended = place["steps"] == 0, [], [], False

        def piece(*, is_last: bool) -> Piece:
            kept = {**place, "digest": digest.hexdigest(), "labels": list(numbers), "held": list(place["held"])}
            return Piece(
                torch.tensor(signal, dtype=torch.float64).view(-1, self.num_inputs),
                torch.tensor(targets, dtype=torch.float64 if self.kind == "regression" else torch.long),
                list(numbers),
                is_first,
                is_last,
                kept,
                max(rows.progress(), place["steps"] / limit if limit else 0.0),
            )

        with closing(rows.values):
            while limit is None or place["steps"] < limit:
                row = next(rows.values, None)
                if row is None:
                    has_ended = True
                    break
                number += 1
                digest.update(repr(row).encode())
                place["rows"] += 1
                if len(row) != len(rows.names):
                    raise UnreadableError(
                        f"{self.source} must have {len(rows.names)} values in every row, as in its first line, got "
                        f"{len(row)} in row {number}."
                    )
                if time_at is not None:
                    now = self._time(row[time_at], number)
                    if now < place["time"]:
                        raise UnreadableError(
                            f"{self.source} must have rows in the order of {columns['time']!r}, got {row[time_at]!r} "
                            f"after a later one in row {number}."
                        )
                    place["time"] = now
                values = self._filled([self._number(row[at], number, rows.names[at]) for at in where], number, place)
                if values is None:
                    place["skipped"] += 1
                    continue
                targets.append(self._target(row[target_at], number, numbers))
                signal.append(values)
                place["steps"] += 1
                if len(signal) == length:
                    yield piece(is_last=False)
                    is_first, signal, targets = False, [], []
            # of no steps, if a chunk was just full: the last labels are known only now
            yield piece(is_last=True)
            if has_ended:
                self._check_learnable(place, list(numbers))

    def _filled(self, values: list[float], row: int, place: dict[str, Any]) -> list[float] | None:
        """Return the inputs of a row, gaps filled by what `place` holds; None if the row is to be skipped."""
        gaps = [at for at, value in enumerate(values) if math.isnan(value)]
        if gaps and self.config.missing == "error":
            column = place["columns"]["inputs"][gaps[0]]
            raise UnreadableError(
                f"{self.source} must hold numbers in column {column!r}, got none in row {row}; a new stream takes "
                "gaps by --missing hold or skip."
            )
        for at in gaps:
            values[at] = place["held"][at]
        place["gaps"] += len(gaps)
        place["held"] = values
        # before the first value of a column there is nothing to hold
        is_skipped = gaps and (self.config.missing == "skip" or any(map(math.isnan, values)))
        return None if is_skipped else values

    def _check_learnable(self, place: dict[str, Any], labels: list[Any]) -> None:
        """Raise UserError if no row of the whole table could be learned, or nothing could be told apart."""
        columns, count = place["columns"], f"{place['rows']:,} rows"
        if place["skipped"] and not place["steps"]:
            held = zip(columns["inputs"], place["held"], strict=True)
            empty = ", ".join(repr(name) for name, value in held if math.isnan(value))
            if empty:
                raise UserError(
                    f"{self.source} must hold a number in every column of inputs, got none in {empty} in {count}."
                )
            raise UserError(
                f"{self.source} must hold a row without a gap, got a gap in each of {count}; --missing hold takes them."
            )
        if self.kind == "classes" and len(labels) < 2:
            raise UserError(
                f"{self.source} must hold at least two classes in column {columns['target']!r}, got "
                f"{', '.join(map(str, labels)) or 'none'} alone in {count}."
            )

    def _number(self, value: Any, row: int, column: str) -> float:
        """Return an input, NaN for a gap."""
        number = math.nan if is_missing(value) else as_number(value)
        if number is None and isinstance(value, str):
            number = TRUTHS.get(value)
        if number is None or abs(number) > LARGEST:
            bound = "" if number is None else f" up to {LARGEST:.2g}"
            raise UnreadableError(
                f"{self.source} must hold numbers{bound} in column {column!r}, got {value!r:.60} in row {row}."
            )
        return number

    def _time(self, value: Any, row: int) -> float:
        """Return a number, or a date as seconds."""
        number = None if is_missing(value) else as_number(value)
        if number is None or not math.isfinite(number):
            number = _seconds(value)
        if number is None:
            got = "none" if is_missing(value) else f"{value!r:.60}"
            raise UnreadableError(
                f"{self.source} must hold numbers or dates as 2026-01-31 in column {self.start['columns']['time']!r}, "
                f"got {got} in row {row}."
            )
        return number

    def _target(self, value: Any, row: int, numbers: dict[Any, int]) -> float | int:
        """Return a number, or that of a class, which a new one is given; IGNORED of no label."""
        column = self.start["columns"]["target"]
        if self.kind == "regression":
            return self._number(value, row, column)
        if is_missing(value):
            return IGNORED
        label = label_of(value)
        if label is None:
            raise UnreadableError(
                f"{self.source} must hold classes, text or whole numbers, in column {column!r}, got {value!r:.60} in "
                f"row {row}; a new stream takes numbers by --kind regression."
            )
        if isinstance(label, str) and "\n" in label:
            raise UnreadableError(
                f"{self.source} must hold classes of one line in column {column!r}, got {value!r:.60} in row {row}: is "
                "a quote not closed?"
            )
        if label == IGNORED:
            return IGNORED
        if label not in numbers and len(numbers) == self.num_outputs:
            raise UnreadableError(
                f"{self.source} must hold at most {self.num_outputs} classes (--max-classes) in column {column!r}, got "
                f"another, {value!r:.60}, in row {row}; a new stream takes numbers by --kind regression."
            )
        return numbers.setdefault(label, len(numbers))


# -- values -----------------------------------------------------------------------------------------------------------


def _seconds(value: Any) -> float | None:
    """Return a date, or its text in the form of ISO 8601, as seconds; without a zone it is in UTC."""
    try:
        moment = datetime.fromisoformat(value) if isinstance(value, str) else value
    except ValueError:
        return None
    if isinstance(moment, date) and not isinstance(moment, datetime):
        moment = datetime.combine(moment, time())
    if not isinstance(moment, datetime):
        return None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


# -- files ------------------------------------------------------------------------------------------------------------


class Rows(NamedTuple):
    """The rows of a table, each read when it is asked for.

    Attributes:
        names: Of the columns.
        values: The values of each row.
        progress: Returns the part that has been read; 0 without a known end.
    """

    names: list[str]
    values: Generator[Sequence[Any], None, None]
    progress: Callable[[], float]


def _rows(data: str, source: str) -> Rows:
    """Open a table.

    Raises:
        UserError: If it is none.
    """
    path = Path(data).expanduser()
    if data == STANDARD_INPUT:
        if sys.stdin is None:
            raise UserError("standard input must be open to read rows from it, got it closed.")
        return _csv_rows(nullcontext(sys.stdin.buffer), 0, source)
    if not path.exists():
        raise UserError(f"data {source} does not exist.")
    if not path.is_file() or path.suffix.lower() not in SUFFIXES:
        got = "a folder" if path.is_dir() else repr(path.suffix)
        raise UserError(f"data {source} must be a file of the kinds {', '.join(SUFFIXES)}, or - for CSV, got {got}.")
    size = path.stat().st_size
    if not size:
        raise UserError(f"data {source} is empty.")
    if path.suffix.lower() == ".parquet":
        return _parquet_rows(path, source)
    try:
        opened = path.open("rb")
    except OSError as error:
        raise UserError(f"data {source} cannot be read: {error.strerror}.") from error
    return _csv_rows(opened, size, source)


def _continued(first: Iterable[Sequence[Any]], values: Iterable[Sequence[Any]]) -> Generator[Sequence[Any], None, None]:
    """Yield the first rows, which have been read already, and then those that follow."""
    yield from first
    yield from values


def _csv_rows(opened: AbstractContextManager[Iterable[bytes]], size: int, source: str) -> Rows:
    """Return the rows of CSV with a header; empty lines are none."""
    num_bytes = number = 0

    def texts(lines: Iterable[bytes]) -> Iterator[str]:
        nonlocal num_bytes
        for line in lines:
            text = line.decode("utf-8" if num_bytes else "utf-8-sig")
            num_bytes += len(line)
            yield text

    def values() -> Generator[list[str], None, None]:
        nonlocal number
        try:
            with opened as lines:
                # strict: a quote that is never closed would take all rows after it as one value
                for row in csv.reader(texts(lines), skipinitialspace=True, strict=True):
                    if row:
                        yield row
                        number += 1  # the header is row 0
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            where = f"after row {number - 1}" if number > 1 else "at its beginning"
            reason = "it is no text" if isinstance(error, UnicodeDecodeError) else one_line(error).rstrip(".")
            raise UnreadableError(f"data {source} cannot be read {where}: {reason}.") from error

    rows = values()
    names = next(rows, None)  # an error ends it, and closes the file
    if names is None:
        raise UserError(f"data {source} must have a line with the names of its columns, got nothing.")
    return Rows(names, rows, lambda: num_bytes / size if size else 0.0)


def _parquet_rows(path: Path, source: str) -> Rows:
    """Return the rows of a Parquet file, a thousand in memory at a time."""
    import pyarrow as pa
    from pyarrow import parquet

    number = 0

    def values() -> Generator[tuple[Any, ...], None, None]:
        nonlocal number
        try:
            with file:
                for batch in file.iter_batches(batch_size=1000):
                    for row in zip(*(column.to_pylist() for column in batch.columns), strict=True):
                        number += 1
                        yield row
        except (OSError, ValueError, pa.ArrowException) as error:
            raise UnreadableError(f"data {source} cannot be read after row {number}: {one_line(error)}.") from error

    try:
        file = parquet.ParquetFile(path)
    except (OSError, ValueError, pa.ArrowException) as error:
        raise UserError(f"data {source} cannot be read: {one_line(error).rstrip('.')}.") from error
    num_rows = max(file.metadata.num_rows, 1)
    return Rows(list(file.schema_arrow.names), values(), lambda: number / num_rows)
