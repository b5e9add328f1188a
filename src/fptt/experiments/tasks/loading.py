"""Real data sets, from the hub or from a local folder of Parquet files, by the same call."""

import logging
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from torch import Tensor, from_numpy, std_mean
from torch.utils.data import TensorDataset

from fptt.experiments.process.errors import UserError, one_line


def load_splits(
    source: str, names: Sequence[str] = ("train", "test"), optional: Sequence[str] = (), *, streaming: bool = False
) -> dict[str, datasets.Dataset]:
    """Return the splits of a data set.

    Args:
        source: Hub id, or a local folder that `datasets.load_dataset` can read.
        names: The splits that it must have.
        optional: Splits that are returned too if it has them.
        streaming: Read rows one after another, whenever a split is gone through, instead of all at once.

    Raises:
        UserError: If it cannot be read, or a split is missing; the message gives a way without a connection.
    """
    looks_local = source.startswith((".", "/", "~")) or Path(source).exists()
    path = Path(source).expanduser()
    if looks_local and path.is_file():
        raise UserError(
            f"data {source!r} must be a folder of Parquet files with the splits {' and '.join(names)}, got a file; one "
            "of your own is for the tasks 'sequences' and 'text'."
        )
    if looks_local and not path.is_dir():
        raise UserError(f"data folder {source!r} does not exist.")
    datasets.logging.set_verbosity(logging.CRITICAL)  # the error below has the reason
    logging.getLogger("huggingface_hub").setLevel(logging.CRITICAL)
    if not sys.stderr.isatty():
        # a log file would keep every state of a bar
        datasets.disable_progress_bars()
    try:
        splits = datasets.load_dataset(str(path) if looks_local else source, streaming=streaming)
    except Exception as error:  # the loader raises many kinds, all of them about the data
        hint = "" if looks_local else " Without a connection, give a local folder of Parquet files by --data."
        raise UserError(f"data set {source!r} cannot be loaded: {reasons(error)}.{hint}") from error
    if set(names) - set(splits):
        raise UserError(
            f"data set {source!r} must have the splits {' and '.join(names)}, got {', '.join(map(str, splits))}."
        )
    found = [*names, *(name for name in optional if name in splits)]
    return {name: splits[name] for name in found}  # pyright: ignore


def reasons(error: BaseException | None) -> str:
    """Return the messages of an error and of its causes, of which the last is often the clearest."""
    found: list[str] = []
    while error is not None:
        found.append(one_line(error)[:300].rstrip("."))
        error = error.__cause__
    return "; ".join(dict.fromkeys(found))


def check_columns(split: datasets.Dataset, name: str, columns: Iterable[str]) -> None:
    """Raise UserError unless a split has these columns."""
    if not set(columns) <= set(split.column_names):
        raise UserError(
            f"the {name} split must have the columns {' and '.join(columns)}, got {', '.join(split.column_names)}."
        )


def texts(split: datasets.Dataset, name: str, column: str) -> list[str]:
    """Return a column of text."""
    check_columns(split, name, (column,))
    values = list(split[column])
    strange = [value for value in values if not isinstance(value, str)]
    if strange:
        raise UserError(f"the {name} split must hold text in column {column}, got {strange[0]!r}.")
    return values


def whole_numbers(split: datasets.Dataset, name: str, column: str, largest: int) -> Tensor:
    """Return a column of labels from 0 to `largest`, (N,)."""
    try:
        array = np.asarray(split[column])
    except (ValueError, TypeError) as error:
        raise UserError(f"the {name} split must hold numbers in column {column}: {error}.") from error
    check_range(array, name, column, largest)
    return from_numpy(array.astype(np.int64))


def labeled_images(
    split: datasets.Dataset, name: str, column: str, shape: tuple[int, ...], rows: range
) -> TensorDataset:
    """Return images as bytes, (N, …) with the shape of one image, and labels from 0 to 9 of some rows, read alone."""
    check_columns(split, name, (column, "label"))
    chosen = split.select(rows)
    try:
        array = np.stack([np.asarray(image) for image in chosen[column]]).reshape(len(chosen), *shape)
    except (ValueError, TypeError, OSError) as error:
        described = " × ".join(map(str, shape))
        raise UserError(f"the {name} split must hold images of {described} in column {column}: {error}.") from error
    check_range(array, name, column, 255)
    return TensorDataset(from_numpy(array.astype(np.uint8)), whole_numbers(chosen, name, "label", 9))


def floats(
    split: datasets.Dataset | Mapping[str, Any], name: str, column: str, shape: tuple[int | None, ...]
) -> list[Tensor]:
    """Return a column of signals, one tensor a row, of a shape in which None stands for any length."""
    expected = " × ".join("T" if size is None else str(size) for size in shape)
    try:
        rows = [np.asarray(row) for row in split[column]]
    except ValueError as error:
        raise UserError(f"the {name} split must hold {expected} numbers in column {column}: {error}.") from error
    for row in rows:
        fits = row.ndim == len(shape) and all(size in (None, got) for size, got in zip(shape, row.shape, strict=True))
        if not fits or row.dtype.kind not in "iuf":
            got = f"{row.dtype} of shape {row.shape}"
        elif not (np.abs(row, dtype=np.float64) <= np.finfo(np.float32).max).all():
            got = "NaN, infinity or a number that is one in float32"
        else:
            continue
        raise UserError(f"the {name} split must hold {expected} numbers in column {column}, got {got}.")
    return [from_numpy(row.astype(np.float32)) for row in rows]


def last_subjects(split: datasets.Dataset, name: str, count: int) -> Tensor:
    """Tell which rows are of the `count` subjects with the largest numbers, (N,).

    Raises:
        UserError: If there are no more subjects than that.
    """
    subjects = whole_numbers(split, name, "subject", 2**31 - 1)
    numbers = subjects.unique()
    if len(numbers) <= count:
        raise UserError(f"the {name} split must have more than {count} subjects, got {len(numbers)}.")
    return subjects >= numbers[-count]


def channel_statistics(signals: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and deviation of every channel of signals (…, D), (D,) both; that of a constant one is 1."""
    flat = signals.flatten(0, -2)
    deviation, mean = std_mean(flat, dim=0, correction=0)
    mean = torch.where((flat == flat[0]).all(0), flat[0], mean)  # of equal numbers, without a rounding error
    return mean, divisors(flat, mean, deviation)


def divisors(flat: Tensor, mean: Tensor, deviation: Tensor) -> Tensor:
    """Return the deviations of channels (N, D) by which to divide: 1 where nothing but rounding differs.

    A constant channel becomes 0 so, not NaN, and its value in other data is not blown up; how small the numbers are
    does not matter.
    """
    # the mean of equal numbers has a rounding error, which is no deviation; n ε |mean| would hide real ones in float32
    rounding = len(flat) * torch.finfo(torch.float64).eps * mean.abs()
    is_constant = (flat == flat[0]).all(0) | (deviation <= rounding)
    return deviation.masked_fill(is_constant, 1.0)


def spread(count: int, limit: int | None) -> list[int]:
    """Return which of `count` samples a limit leaves: evenly spaced ones."""
    kept = count if limit is None else min(limit, count)
    return [number * count // kept for number in range(kept)]


def check_range(array: np.ndarray, name: str, column: str, largest: int) -> None:
    """Raise UserError unless an array holds whole numbers from 0 to `largest`."""
    check_whole(array, largest, f"the {name} split must hold", f"column {column}")


def check_whole(array: np.ndarray, largest: int, subject: str, place: str) -> None:
    """Raise UserError, "SUBJECT whole numbers … in PLACE", unless an array holds whole numbers from 0 to `largest`."""
    if array.dtype.kind not in "iu" or (array.size and not 0 <= array.min() <= array.max() <= largest):
        has_range = array.size and array.dtype.kind in "iuf"  # texts have no minimum
        got = f"{array.dtype} from {array.min()} to {array.max()}" if has_range else f"{array.dtype}"
        raise UserError(f"{subject} whole numbers from 0 to {largest} in {place}, got {got}.")
