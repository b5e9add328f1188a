"""Cells of a table: numbers and labels of classes, whether the file has types, as Parquet, or text alone, as CSV."""

import math
import re
from collections.abc import Iterable, Sequence
from typing import Any

from fptt.experiments.process.errors import UserError

LARGEST_WHOLE = 2**53
"""Up to it a float tells whole numbers apart."""
SHOWN_NAMES = 8
_WHOLE = re.compile(r"\s*-?(0|[1-9][0-9]*)(\.0*)?\s*")
_INDEX = re.compile(r"__index_level_\d+__")


def as_number(value: Any) -> float | None:
    """Return the number that a value is, or that its text says; NaN and infinities are among them. None of another."""
    if isinstance(value, bytes) or (isinstance(value, str) and "_" in value):  # Python reads "1_000" as 1000
        return None
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return None


def is_missing(value: Any) -> bool:
    """Return whether a cell holds nothing: is empty, or says NaN, which other programs write there."""
    number = None if value is None else as_number(value)
    return value is None or (isinstance(value, str) and not value) or (number is not None and math.isnan(number))


def label_of(value: Any) -> str | int | None:
    """Return the class that a value names: a whole number, or text; None of a number with a fraction.

    Text is a whole number only where it is written as one, as 12 or 12.0: 012, 1_2 and 12e0 are other classes.
    """
    number = None if isinstance(value, bool) else as_number(value)
    if number is None or not math.isfinite(number):
        return str(value)
    if not isinstance(value, str):
        return None if value % 1 else int(value)  # of the value, which may have more digits than a float
    if _WHOLE.fullmatch(value):
        return int(value.partition(".")[0])
    return None if number % 1 else value


def are_measurements(values: Sequence[Any]) -> bool:
    """Return whether most values are numbers, and one has a fraction: then what is no number is a slip, and no class.

    So is a text such as 1e18, of a whole number that a float does not tell from those beside it.
    """
    numbers = [(number, value) for value in values if (number := as_number(value)) is not None]
    finite = [(number, value) for number, value in numbers if math.isfinite(number)]
    return 2 * len(finite) > len(values) and any(
        number % 1 or (abs(number) > LARGEST_WHOLE and isinstance(label_of(value), str)) for number, value in finite
    )


def is_index(name: str) -> bool:
    """Return whether a column is what pandas writes into Parquet of an index without a name: no input by itself."""
    return _INDEX.fullmatch(name) is not None


def shown_names(names: Sequence[str | int] | None) -> str:
    """Return the first names, of columns or classes, in parentheses after a space; nothing for None."""
    if names is None:
        return ""
    more = ["…"] if len(names) > SHOWN_NAMES else []
    return f" ({', '.join([*map(str, names[:SHOWN_NAMES]), *more])})"


def check_named(names: Sequence[str], source: str) -> None:
    """Raise UserError if a column that would be an input has no name."""
    if "" in names:
        raise UserError(
            f"{source} must have a name for every column, got none for column {names.index('') + 1} (an index of "
            "pandas? write it with index=False, or give --inputs)."
        )


def check_once(names: Sequence[str], needed: Iterable[str | None], source: str) -> None:
    """Raise UserError if a column that is needed, by its name, is not there, or there is another of that name."""
    for name in needed:
        if name is not None and names.count(name) != 1:
            got = "two of them" if name in names else ", ".join(map(str, names)) or "none"
            raise UserError(f"{source} must have the column {name!r}, got {got}.")


def check_separator(names: Sequence[str], source: str) -> None:
    """Raise UserError if the only name of a column looks like several with something else than a comma between."""
    separator = next((mark for mark in ";\t|" if mark in names[0]), None) if len(names) == 1 else None
    if separator is not None and "," not in names[0]:
        raise UserError(f"{source} must have commas between its columns, got {separator!r} in its first line.")
