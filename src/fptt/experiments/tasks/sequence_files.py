"""Files of sequences: arrays in an .npz file, or rows of a table in a CSV or Parquet file."""

import math
import warnings
import zipfile
import zlib
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd

from fptt.experiments.process.errors import UserError, one_line
from fptt.experiments.tasks.cells import (
    are_measurements,
    check_named,
    check_once,
    check_separator,
    is_index,
    is_missing,
    label_of,
)

SUFFIXES = (".npz", ".csv", ".parquet")

Targets = Literal["any", "numbers"]
"""What targets may be: text and numbers, or numbers alone."""


class Columns(NamedTuple):
    """The names of the columns of a table, or of the arrays of an .npz file; None for those of the defaults.

    Attributes:
        id: Of the sequence that a row belongs to: `id` by default; in an .npz file the number of the sequence.
        time: Of the order of the rows of a sequence: `time` by default, if there is one that is neither id, target nor
            group, nor named among the inputs, else that of the file.
        inputs: All that are left by default; in an .npz file the array `inputs`.
        target: `target`, in an .npz file `targets`, by default.
        group: Of what sequences have in common, a subject or a machine, which no two parts of the data share.
    """

    id: str | None = None
    time: str | None = None
    inputs: tuple[str, ...] | None = None
    target: str | None = None
    group: str | None = None


class Sequences(NamedTuple):
    """Sequences of N lengths T_i, their steps one after another.

    Attributes:
        inputs: (ΣT_i, D), float64.
        lengths: (N,).
        ids: (N,), of numbers or text.
        targets: (N,), or (ΣT_i,) if there is one a step: int64, float64 or text. None if they were not asked for.
        groups: (N,), by number, or None.
        group_names: (N,), their names as text, or None.
        rows: (ΣT_i,), the row of the table that each step is; None of an .npz file.
        times: (ΣT_i,), numbers in the order of the times; None where steps are in the order of the file.
        input_names: Names of the D columns; None in an .npz file.
        time_name: Name of the column by which steps are ordered; None where they are in the order of the file.
    """

    inputs: np.ndarray
    lengths: np.ndarray
    ids: np.ndarray
    targets: np.ndarray | None = None
    groups: np.ndarray | None = None
    group_names: np.ndarray | None = None
    rows: np.ndarray | None = None
    times: np.ndarray | None = None
    input_names: tuple[str, ...] | None = None
    time_name: str | None = None

    @property
    def has_step_targets(self) -> bool:
        """Whether every step has a target of its own."""
        return self.targets is not None and len(self.targets) == len(self.inputs) != len(self.lengths)

    def steps_of(self, chosen: np.ndarray) -> np.ndarray:
        """Return the rows of the steps of some sequences, in their order."""
        lengths = self.lengths[chosen]
        shifts = _first_steps(self.lengths)[chosen] - _first_steps(lengths)
        return np.arange(lengths.sum()) + np.repeat(shifts, lengths)

    def subset(self, chosen: np.ndarray) -> "Sequences":
        """Return some of the sequences, by their numbers."""
        steps = self.steps_of(chosen)
        of_steps = self.has_step_targets
        return self._replace(
            inputs=self.inputs[steps],
            lengths=self.lengths[chosen],
            ids=self.ids[chosen],
            targets=None if self.targets is None else self.targets[steps if of_steps else chosen],
            groups=None if self.groups is None else self.groups[chosen],
            group_names=None if self.group_names is None else self.group_names[chosen],
            rows=None if self.rows is None else self.rows[steps],
            times=None if self.times is None else self.times[steps],
        )

    def first_equal_times(self) -> np.ndarray:
        """Return, of every sequence that has one, the first step at the time of the step before it."""
        if self.times is None:
            return np.array([], np.int64)
        is_equal = np.append(False, self.times[1:] == self.times[:-1])
        is_equal[_first_steps(self.lengths)] = False
        steps = np.flatnonzero(is_equal)
        numbers = np.searchsorted(self.lengths.cumsum(), steps, side="right")
        return steps[np.unique(numbers, return_index=True)[1]]

    def with_step_targets(self) -> "Sequences":
        """Return the same sequences with the target of each at all of its steps."""
        if self.targets is None or self.has_step_targets:
            return self
        return self._replace(targets=np.repeat(self.targets, self.lengths))


def _first_steps(lengths: np.ndarray) -> np.ndarray:
    """Return where each sequence begins among the steps of all, (N,)."""
    return lengths.cumsum() - lengths


def read_sequences(path: Path, columns: Columns, targets: Targets | None = "any") -> Sequences:
    """Return the sequences of one file.

    Args:
        path: An .npz, .csv or .parquet file.
        columns: The names in it.
        targets: Kind of the targets; None to read neither targets nor groups.

    Raises:
        UserError: If it cannot be read, or does not hold such sequences: names file, column and row.
    """
    if not path.exists():
        raise UserError(f"data {str(path)!r} does not exist.")
    if not path.is_file() or suffix_of(path) not in SUFFIXES:
        got = repr(path.suffix) if path.is_file() else "a folder"
        raise UserError(f"data {str(path)!r} must be a file of the kinds {', '.join(SUFFIXES)}, got {got}.")
    if not path.stat().st_size:
        raise UserError(f"data {str(path)!r} is empty.")
    if suffix_of(path) == ".npz":
        return _read_arrays(path, columns, targets)
    labels = [] if targets is None else [columns.target or "target", columns.group]
    return table_sequences(_read_table(path, [columns.id or "id", *labels]), str(path), columns, targets)


def suffix_of(path: Path) -> str:
    """Return by which kind a file is read: DATA.CSV as data.csv."""
    return path.suffix.lower()


# -- tables -----------------------------------------------------------------------------------------------------------


def _read_table(path: Path, labels: Sequence[str | None]) -> pd.DataFrame:
    """Return the rows of a CSV or Parquet file; of CSV, ids, targets and groups by their labels."""
    try:
        if suffix_of(path) == ".parquet":
            return _with_index(pd.read_parquet(path))
        with warnings.catch_warnings():
            warnings.simplefilter("error", pd.errors.ParserWarning)
            options: dict[str, Any] = {
                "keep_default_na": False,  # a class may be called NA
                "skipinitialspace": True,
                "low_memory": False,
                "encoding": "utf-8-sig",
            }
            names = pd.read_csv(path, header=None, nrows=1, dtype=str, **options).iloc[0].tolist()
            table = pd.read_csv(
                path,
                index_col=False,  # else the first column would be one where the rows have an entry too many
                na_values=[""],
                dtype={name: str for name in labels if name is not None},  # as a number 01 would be 1
                **options,
            )
        for name in labels:
            if name in table:
                table[name] = _labeled(pd.Series(table[name]))
        return table.set_axis(names, axis=1)  # where one is lacking, or there twice, pandas has made up another
    except pd.errors.ParserWarning:
        with path.open(encoding="utf-8-sig") as file:
            check_separator([file.readline().strip()], repr(str(path)))
        raise UserError(f"data {str(path)!r} must have a name for every column in its first line, got fewer.") from None
    except Exception as error:  # the readers raise many kinds, all of them about the file
        reason = one_line(error).removeprefix("Error tokenizing data. C error: ").rstrip(".")
        raise UserError(f"data {str(path)!r} cannot be read: {reason}.") from error


def _with_index(table: pd.DataFrame) -> pd.DataFrame:
    """Return a table of Parquet, the columns of which pandas made an index, by name, columns again."""
    names = [name for name in table.index.names if name is not None and name not in table]
    # a range is no column of the file
    return table if isinstance(table.index, pd.RangeIndex) or not names else table.reset_index(names)


def _labeled(column: pd.Series) -> pd.Series:
    """Return a column of text, or of decimals, by its labels: as int64 if all are whole numbers, else as text."""
    numbers, values = pd.factorize(column)  # -1 where a value is missing
    labels = [label_of(value) for value in values]
    if (numbers >= 0).all() and all(isinstance(label, int) and -(2**63) <= label < 2**63 for label in labels):
        own = np.array(labels, np.int64)
    else:
        texts = [str(value) if label is None else str(label) for label, value in zip(labels, values, strict=True)]
        own = np.array([*texts, None], object)
    return pd.Series(own[numbers], column.index, name=column.name)


def table_sequences(table: pd.DataFrame, source: str, columns: Columns, targets: Targets | None = "any") -> Sequences:
    """Return the sequences of a table in long form: a row a step, in any order.

    A target that is the same in all rows of every sequence is one a sequence.

    Args:
        table: The rows.
        source: The name of the table in errors.
        columns: The names of its columns.
        targets: Kind of the targets; None to read neither targets nor groups.

    Raises:
        UserError: If a column is missing, or a value: names column and row, counted from 1 without the header.
    """
    names = list(map(str, table.columns))
    check_separator(names, repr(source))
    if columns.inputs is None:
        check_named(names, repr(source))
    found = {str(name): column for name, column in table.items()}
    id_name, target_name = columns.id or "id", columns.target or "target"
    others = (id_name, columns.group, target_name)
    is_free = "time" in found and "time" not in (*others, *(columns.inputs or ()))
    time_name = columns.time or ("time" if is_free else None)
    input_names = columns.inputs or tuple(
        name for name in found if name not in (*others, time_name) and not is_index(name)
    )
    labels = [] if targets is None else [target_name, columns.group]
    check_once(names, (id_name, time_name, *input_names, *labels), repr(source))
    if not input_names:
        raise UserError(f"{source!r} must have a column of inputs beside {', '.join(map(repr, found))}.")
    if targets is not None and target_name in (*input_names, id_name, time_name, columns.group):
        what = "one of the inputs" if target_name in input_names else "the id, the time or the group"
        raise UserError(f"the target {target_name!r} of {source!r} must not be {what}.")
    if table.empty:
        raise UserError(f"{source!r} has no rows.")
    for name in (id_name, *labels):
        if name is not None and pd.api.types.infer_dtype(found[name]) == "decimal":  # 1.00 is the class 1, as in CSV
            found[name] = _labeled(found[name])

    numbers, ids = _numbered(found[id_name], source)
    times = None if time_name is None else _times(found[time_name], source)
    order = np.lexsort((numbers,) if times is None else (times, numbers))  # stable: equal times stay as they are
    lengths = np.bincount(numbers)
    own = groups = group_names = None
    if targets is not None:
        if columns.group is not None:
            groups = _groups(found[columns.group], source, ids, order, lengths)
            group_names = _texts(found[columns.group].to_numpy())[order][_first_steps(lengths)]
        own = _one_a_sequence(_labels(found[target_name], source, targets)[order], lengths)
    inputs = np.stack([_numbers(found[name], source)[order] for name in input_names], axis=1)
    return Sequences(
        inputs,
        lengths,
        np.asarray(ids),
        targets=own,
        groups=groups,
        group_names=group_names,
        rows=order,
        times=None if times is None else times[order],
        input_names=tuple(input_names),
        time_name=time_name,
    )


def _groups(column: pd.Series, source: str, ids: Any, order: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Return the group of every sequence.

    Raises:
        UserError: If a sequence has more than one.
    """
    numbers = _numbered(column, source)[0][order]
    own = numbers[_first_steps(lengths)]
    others = np.flatnonzero(np.repeat(own, lengths) != numbers)
    if len(others):
        name = str(ids[_sequence_of(others[0], lengths)])
        raise UserError(
            f"{source!r} must have one {column.name!r} a sequence, got another at row {order[others[0]] + 1} of "
            f"{name!r}."
        )
    return own


def _numbered(column: pd.Series, source: str) -> tuple[np.ndarray, Any]:
    """Return the number of the value in each row, and the values, in the order of their first rows.

    Raises:
        UserError: If a value is missing, or neither a number nor text.
    """
    column = _complete(column, source)
    try:
        return pd.factorize(column, sort=False)
    except TypeError:  # lists, of which Parquet knows columns too
        raise UserError(
            f"{source!r} must hold numbers or text in column {column.name!r}, got {str(column.iloc[0])[:60]} in row 1."
        ) from None


def _texts(values: np.ndarray) -> np.ndarray:
    """Return values as text: 1.0, of a column that once had a gap, as 1."""
    if values.dtype.kind == "f" and (values % 1 == 0).all():
        values = values.astype(np.int64)
    return values.astype(np.str_)


def _one_a_sequence(targets: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Return the target of each sequence, (N,), if its steps agree, and else those of the steps."""
    own = targets[_first_steps(lengths)]
    return own if (np.repeat(own, lengths) == targets).all() else targets


def _complete(column: pd.Series, source: str, hint: str = "") -> pd.Series:
    """Return a column.

    Args:
        column: Of any values.
        source: The name of the table in errors.
        hint: What may be there instead.

    Raises:
        UserError: If it lacks a value.
    """
    missing = np.flatnonzero(column.isna())
    if len(missing):
        raise UserError(
            f"{source!r} must have a value in every row of column {column.name!r}, got none in row {missing[0] + 1}"
            f"{hint}."
        )
    return column


def _numbers(column: pd.Series, source: str) -> np.ndarray:
    """Return a column as float64.

    Raises:
        UserError: If a value is missing, text, or not finite.
    """
    try:
        numbers = pd.Series(pd.to_numeric(column, errors="coerce")).to_numpy(np.float64, na_value=math.nan)
    except (TypeError, ValueError):  # of lists and the like
        numbers = np.full(len(column), math.nan)
    is_time = column.dtype.kind in "mM"
    bad = np.flatnonzero(~np.isfinite(numbers) | is_time)
    if len(bad):
        value = column.iloc[bad[0]]
        is_missing = column.isna().iloc[bad[0]]
        described = "none" if is_missing else repr(value.item() if isinstance(value, np.generic) else value)[:60]
        raise UserError(f"{source!r} must hold numbers in column {column.name!r}, got {described} in row {bad[0] + 1}.")
    return numbers


def _labels(column: pd.Series, source: str, targets: Targets) -> np.ndarray:
    """Return a column of targets as int64, float64 or text.

    Raises:
        UserError: If a value is missing, not finite, or text among numbers.
    """
    kind = column.dtype.kind
    if kind == "O":
        column = column.mask([is_missing(value) for value in column])  # also the text nan
    column = _complete(column, source, "; steps of the class -100 do not count")
    if kind in "iu" and column.max() < 2**63:
        return column.to_numpy(np.int64)
    if kind == "f" or targets == "numbers" or (kind not in "bu" and are_measurements(column.tolist())):
        return _numbers(column, source)
    return np.asarray(column.astype(str), np.str_)


def _times(column: pd.Series, source: str) -> np.ndarray:
    """Return a column of numbers or dates as numbers in their order.

    Raises:
        UserError: If a value is missing, or neither.
    """
    column = _complete(column, source)
    if column.dtype.kind in "iu":  # as floats those above 2⁵³, such as nanoseconds, would lose their order
        return column.to_numpy()
    if column.dtype.kind != "M" and pd.Series(pd.to_numeric(column, errors="coerce")).notna().any():
        exact = [_exact(value) for value in column] if column.dtype.kind == "O" else [None]
        if None not in exact:
            return pd.factorize(np.array(exact, object), sort=True)[0]
        return _numbers(column, source)
    dates = pd.to_datetime(column, errors="coerce", format="ISO8601", utc=True)
    bad = np.flatnonzero(dates.isna())
    if len(bad):
        raise UserError(
            f"{source!r} must hold numbers or dates as 2026-01-31 in column {column.name!r}, got "
            f"{column.iloc[bad[0]]!r} in row {bad[0] + 1}."
        )
    return pd.factorize(dates, sort=True)[0]  # their order alone: in nanoseconds the year 9999 does not fit an integer


def _exact(value: Any) -> int | Decimal | None:
    """Return a whole number, or a decimal, with all its digits, of which a float has 15 alone; None of another."""
    if isinstance(value, Decimal) and value.is_finite():
        return value
    label = label_of(value)
    return label if isinstance(label, int) else None


# -- arrays -----------------------------------------------------------------------------------------------------------

FLAT = "np.savez(FILE, inputs=np.concatenate(sequences), lengths=[len(x) for x in sequences], targets=targets)"


def _read_arrays(path: Path, columns: Columns, targets: Targets | None) -> Sequences:
    """Return the sequences of an .npz file.

    Inputs are (N, T, D), or (N, T) for D = 1, with `lengths` (N,) where they are padded at their ends; or
    (ΣT_i, D), one sequence after another, with `lengths`. Arrays of objects are refused: NumPy stores them as a
    pickle, which may run any code when it is read.
    """
    source = str(path)
    arrays = _load(path)
    if columns.time is not None or (columns.inputs is not None and len(columns.inputs) > 1):
        raise UserError(f"{source!r} holds arrays: inputs must name one of them, and time none.")
    input_name = columns.inputs[0] if columns.inputs else "inputs"
    target_name = columns.target or "targets"
    labels = [] if targets is None else [target_name, columns.group]
    for name in (input_name, columns.id, *labels):
        if name is not None and name not in arrays:
            raise UserError(f"{source!r} must have the array {name!r}, got {', '.join(arrays) or 'none'}.")
    if targets is not None and target_name in (input_name, columns.id, columns.group):
        what = "one of the inputs" if target_name == input_name else "the id or the group"
        raise UserError(f"the target {target_name!r} of {source!r} must not be {what}.")
    inputs, lengths = _flat(arrays[input_name], arrays.get("lengths"), source, input_name)
    count, is_flat = len(lengths), arrays[input_name].ndim == 2 and "lengths" in arrays
    padded = () if is_flat else arrays[input_name].shape[:2]
    groups = None if targets is None or columns.group is None else arrays[columns.group]
    ids = np.arange(count) if columns.id is None else arrays[columns.id]
    for name, values in ((columns.group, groups), (columns.id, ids)):
        if values is not None and values.shape != (count,):
            raise UserError(f"{source!r} must have one value a sequence, {count}, in {name!r}, got {values.shape}.")
        if values is not None and values.dtype.kind == "f" and not np.isfinite(values).all():
            number = int(np.flatnonzero(~np.isfinite(values))[0])
            raise UserError(f"{source!r} must have a value for every sequence in {name!r}, got none for {number}.")
    found, counts = np.unique(ids, return_counts=True)
    if len(found) < count:
        twice = found[counts > 1][0].item()
        raise UserError(
            f"{source!r} must have another value for every sequence in {columns.id!r}, got {twice!r} twice."
        )
    if targets is None:
        return Sequences(inputs, lengths, ids)
    own = _array_targets(arrays[target_name], lengths, padded, source, target_name)
    if targets == "numbers" and own.dtype.kind == "U":
        raise UserError(f"{source!r} must hold numbers in {target_name!r}, got {own[0].item()!r}.")
    return Sequences(inputs, lengths, ids, own, groups, None if groups is None else _texts(groups))


def array_sequences(inputs: np.ndarray, lengths: np.ndarray | None, source: str) -> Sequences:
    """Return the sequences of an array (N, T, D), (N, T), or (ΣT_i, D) with lengths (N,).

    Raises:
        UserError: If it has another shape, or holds something else than finite numbers.
    """
    flat, lengths = _flat(inputs, lengths, source, "inputs")
    return Sequences(flat, lengths, np.arange(len(lengths)))


def _load(path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as file:  # of an .npy file, whatever its name, an array
            return {name: file[name] for name in file.files}
    except (OSError, ValueError, EOFError, AttributeError, TypeError, zipfile.BadZipFile, zlib.error) as error:
        if "allow_pickle" in str(error) and zipfile.is_zipfile(path):
            raise UserError(
                f"data {str(path)!r} has an array of objects, which could run any code when it is read: store ragged "
                f"sequences one after another, {FLAT}."
            ) from error
        is_other = isinstance(error, TypeError | AttributeError) or "allow_pickle" in str(error)
        reason = "it is no .npz file" if is_other else one_line(error).rstrip(".")
        raise UserError(f"data {str(path)!r} cannot be read: {reason}.") from error


def _flat(inputs: np.ndarray, lengths: np.ndarray | None, source: str, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Return inputs as (ΣT_i, D) and the lengths, (N,)."""
    if inputs.dtype.kind not in "biuf":
        raise UserError(f"{source!r} must hold numbers in {name!r}, got {inputs.dtype}.")
    if lengths is not None and (lengths.ndim != 1 or lengths.dtype.kind not in "iu" or (lengths < 1).any()):
        raise UserError(
            f"{source!r} must hold one positive whole number a sequence in 'lengths', got "
            f"{lengths.dtype} of shape {lengths.shape}."
        )
    if inputs.ndim == 2 and lengths is None:
        inputs = inputs[..., None]
    if 0 in inputs.shape or inputs.ndim not in (2, 3):
        raise UserError(
            f"{source!r} must hold sequences (N, T, D), or (ΣT, D) beside 'lengths', in {name!r}, got shape "
            f"{inputs.shape}."
        )
    if inputs.ndim == 3:
        lengths = np.full(len(inputs), inputs.shape[1]) if lengths is None else lengths.astype(np.int64)
        if len(lengths) != len(inputs) or lengths.max() > inputs.shape[1]:
            raise UserError(
                f"{source!r} must hold in 'lengths' a number up to T = {inputs.shape[1]} for each of {len(inputs)} "
                f"sequences, got {len(lengths)} up to {lengths.max()}."
            )
        inputs = inputs[np.arange(inputs.shape[1]) < lengths[:, None]]
    assert lengths is not None
    if lengths.sum() != len(inputs):
        raise UserError(
            f"{source!r} must hold in 'lengths' numbers that sum to the {len(inputs):,} steps of {name!r}, "
            f"got {lengths.sum():,}."
        )
    lengths = lengths.astype(np.int64)
    flat = inputs.astype(np.float64)
    bad = np.argwhere(~np.isfinite(flat))
    if len(bad):
        step, column = bad[0].tolist()
        place = _place(step, lengths)
        raise UserError(
            f"{source!r} must hold finite numbers in {name!r}, got {flat[step, column]} at {place}, column {column}."
        )
    return flat, lengths


def _array_targets(
    targets: np.ndarray, lengths: np.ndarray, padded: Sequence[int], source: str, name: str
) -> np.ndarray:
    """Return targets, one a sequence (N,) or one a step (ΣT_i,)."""
    count, total = len(lengths), int(lengths.sum())
    if targets.ndim > 1 and targets.shape in ((count, 1), (total, 1), (*padded, 1)):
        targets = targets[..., 0]
    if padded and targets.shape == tuple(padded):
        targets = targets[np.arange(padded[1]) < lengths[:, None]]  # what stands at padding does not matter
    if targets.shape not in ((count,), (total,)):
        raise UserError(
            f"{source!r} must hold one target a sequence, ({count},), or a step, ({total},) or (N, T), in {name!r}, "
            f"got shape {targets.shape}."
        )
    if targets.dtype.kind == "f":
        bad = np.flatnonzero(~np.isfinite(targets))
        if len(bad):
            place = f"sequence {bad[0]}" if len(targets) == count else _place(int(bad[0]), lengths)
            raise UserError(f"{source!r} must hold finite numbers in {name!r}, got {targets[bad[0]]} at {place}.")
        return targets.astype(np.float64)
    if targets.dtype.kind not in "biuU":
        raise UserError(f"{source!r} must hold numbers or text in {name!r}, got {targets.dtype}.")
    is_whole = targets.dtype.kind in "iu" and targets.max() < 2**63
    return targets.astype(np.int64 if is_whole else np.str_)


def place_of(step: int, sequences: Sequences) -> str:
    """Return where a step was read: a row of the table, counted from 1, or a step of a sequence, from 0."""
    return _place(step, sequences.lengths) if sequences.rows is None else f"row {sequences.rows[step] + 1}"


def _place(step: int, lengths: np.ndarray) -> str:
    """Return which step of which sequence a row is, both counted from 0."""
    number = _sequence_of(step, lengths)
    return f"sequence {number}, step {step - int(_first_steps(lengths)[number])}"


def _sequence_of(step: int, lengths: np.ndarray) -> int:
    """Return the number of the sequence that a row belongs to."""
    return int(np.searchsorted(lengths.cumsum(), step, side="right"))
