"""Conversion of original archives of data sets to the Parquet files that the tasks read."""

import hashlib
import io
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple, Self

import numpy as np
import pyarrow as pa
from pyarrow import parquet

from fptt.experiments.process.errors import UserError, one_line
from fptt.experiments.process.files import replaced

PARTS = ("train", "test")
SIGNALS = tuple(f"{kind}_{axis}" for kind in ("body_acc", "body_gyro", "total_acc") for axis in "xyz")
WINDOW = 128

HAR_COUNTS = {
    "train": "7,352 windows of 21 persons: 1226, 1073, 986, 1286, 1374, 1407 of the six activities",
    "test": "2,947 windows of 9 persons: 496, 471, 420, 491, 532, 537 of the six activities",
}
"""Of the original: its labels and subjects as published (Anguita et al. 2013)."""

HAPT_COUNTS = {
    "train": "42 recordings of 21 persons: 797,484 steps, 578,145 of them with a label",
    "test": "19 recordings of 9 persons: 325,288 steps, 237,469 of them with a label",
}
"""Of version 2.1."""

PTB_DIGESTS = {
    "ptb.train.txt": "04d78dc94771b5c04adc40b3be08bd8c82942e7f",
    "ptb.valid.txt": "7b3d9d9fd705825715695328b2de872ffbc14a84",
    "ptb.test.txt": "8079cdf342f8d103e5647e1160a8fe3b58a213d5",
    "ptb.char.train.txt": "84b890a87aed6ad2989aa12d03f1129c41d727b2",
    "ptb.char.valid.txt": "940c7ea52db925f46874bc9e1ea37424beec6c98",
    "ptb.char.test.txt": "4e866a8573cdd7d0ce6af45c034055adecc3bbd4",
}
"""The original files, by the SHA-1 that git gives them, `git hash-object FILE`."""


class Part(NamedTuple):
    """A Parquet file of a data set.

    Attributes:
        path: Its folder below that of the data set, and the name of its part.
        table: Its rows.
        found: What it holds, for comparison with the original.
        is_original: Whether that is what the original holds.
    """

    path: str
    table: pa.Table
    found: str
    is_original: bool


# -- archives ---------------------------------------------------------------------------------------------------------


class Archive:
    """The files in a zip or tar archive, or in an archive within it, by the ends of their names.

    Args:
        path: The archive.

    Raises:
        UserError: If it cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if not path.is_file():
            raise UserError(f"archive {str(path)!r} does not exist.")
        self.readers: dict[str, Callable[[], bytes]] = {}
        with ExitStack() as stack, self._reading():
            self._add(stack.enter_context(path.open("rb")), stack)
            self.opened = stack.pop_all()

    def __enter__(self) -> Self:
        """Return the archive, to be closed at the end."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the archive."""
        self.opened.close()

    def _add(self, file: IO[bytes], stack: ExitStack) -> None:
        if zipfile.is_zipfile(file):
            archive = stack.enter_context(zipfile.ZipFile(file))
            for name in archive.namelist():
                if name.endswith(".zip"):  # UCI packs the archive into another one
                    self._add(io.BytesIO(archive.read(name)), stack)
                elif not name.startswith("__MACOSX"):
                    self.readers[name] = lambda name=name: archive.read(name)
            return
        file.seek(0)
        tar = stack.enter_context(tarfile.open(fileobj=file))  # noqa: SIM115 (it knows `with` alone)
        for member in tar.getmembers():
            try:
                content = tar.extractfile(member)
            except (KeyError, RecursionError):  # a link to what the archive lacks, or in a circle
                continue
            if content is not None:
                self.readers[member.name] = content.read

    @contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            yield
        except (OSError, EOFError, RuntimeError, zlib.error, zipfile.BadZipFile, tarfile.TarError) as error:
            reason = "it is no zip or tar archive" if isinstance(error, tarfile.ReadError) else one_line(error)
            raise UserError(f"archive {str(self.path)!r} cannot be read: {reason.rstrip('.')}.") from error

    def digest(self) -> str:
        """Return the SHA-256 of the archive."""
        with self._reading(), self.path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def names(self, start: str) -> list[str]:
        """Return the files in a folder whose names begin so, `FOLDER/START`."""
        found = {name.rpartition("/")[2]: name for name in self.readers if f"/{start}" in f"/{name}"}
        return [start.rpartition("/")[0] + "/" + name for name in sorted(found)]

    def read(self, end: str) -> bytes:
        """Return the file whose path ends so.

        Raises:
            UserError: If there is none, or more than one, or it cannot be read.
        """
        found = [name for name in self.readers if f"/{name}".endswith(f"/{end}")]
        if len(found) != 1:
            raise UserError(f"archive {str(self.path)!r} must have one file {end!r}, got {len(found)}.")
        with self._reading():
            return self.readers[found[0]]()

    def numbers(self, end: str, width: int) -> np.ndarray:
        """Return the numbers in a text file, (N, width).

        Raises:
            UserError: If it holds something else.
        """
        content = self.read(end)
        try:
            if not content.strip():
                raise ValueError("it is empty")
            array = np.loadtxt(io.BytesIO(content), ndmin=2)
            if array.shape[1] != width or not np.isfinite(array).all():
                raise ValueError(f"got {array.shape[1]} columns" if array.shape[1] != width else "a number is missing")
        except ValueError as error:
            reason = one_line(error).rstrip(".")
            raise UserError(
                f"{end!r} in the archive {str(self.path)!r} must hold {width} numbers a line: {reason}."
            ) from error
        return array


# -- data sets --------------------------------------------------------------------------------------------------------


def har(archive: Archive) -> list[Part]:
    """Return the windows of UCI HAR, (128, 9) each, with label 0 to 5 and subject."""
    parts = []
    for name in PARTS:
        signals = [archive.numbers(f"{name}/Inertial Signals/{signal}_{name}.txt", WINDOW) for signal in SIGNALS]
        labels = archive.numbers(f"{name}/y_{name}.txt", 1)[:, 0].astype(np.int64) - 1
        subjects = archive.numbers(f"{name}/subject_{name}.txt", 1)[:, 0].astype(np.int32)
        lengths = {len(column) for column in (*signals, labels, subjects)}
        if len(lengths) != 1 or not set(labels.tolist()) <= set(range(6)):
            raise UserError(
                f"archive {str(archive.path)!r} must have as many windows, labels from 1 to 6 and subjects in its part "
                f"{name!r}, got {sorted(lengths)} with labels {sorted(set((labels + 1).tolist()))}."
            )
        windows = np.stack(signals, axis=2).astype(np.float32)
        counts = ", ".join(str((labels == label).sum()) for label in range(6))
        found = f"{len(labels):,} windows of {len(set(subjects.tolist()))} persons: {counts} of the six activities"
        columns = {"inertial": nested(list(windows)), "label": labels, "subject": subjects}
        parts.append(Part(name, pa.table(columns), found, found == HAR_COUNTS[name]))
    return parts


def hapt(archive: Archive) -> list[Part]:
    """Return the recordings of HAPT, (T, 6) each, with a label 0 to 12 a step, subject and experiment.

    In `RawData/labels.txt` an activity lasts from one step to another, both counted from 1 and belonging to it. What
    persons are tested says `Test/subject_id_test.txt`.
    """
    labels = archive.numbers("RawData/labels.txt", 5).astype(np.int64)
    tested = set(archive.numbers("Test/subject_id_test.txt", 1)[:, 0].astype(int).tolist())
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in PARTS}
    files = archive.names("RawData/acc_exp")
    if not files:
        raise UserError(f"archive {str(archive.path)!r} must have files 'RawData/acc_exp…_user….txt', got none.")
    for file in files:
        experiment, subject = _numbers_in(file)
        acc, gyro = (archive.numbers(name, 3) for name in (file, file.replace("acc_exp", "gyro_exp")))
        if len(acc) != len(gyro):
            raise UserError(
                f"archive {str(archive.path)!r} must have as many steps in {file!r} as in its gyro_exp file, got "
                f"{len(acc)} and {len(gyro)}."
            )
        signal = np.concatenate([acc, gyro], axis=1)
        steps = np.zeros(len(signal), dtype=np.int8)
        for _, _, activity, first, last in labels[labels[:, 0] == experiment]:
            if not (1 <= activity <= 12 and 1 <= first <= last <= len(signal)):
                raise UserError(
                    f"'RawData/labels.txt' in the archive {str(archive.path)!r} must have an activity from 1 to 12 and "
                    f"steps from 1 to {len(signal)} of experiment {experiment}, got {activity}, {first} to {last}."
                )
            steps[first - 1 : last] = activity
        rows["test" if subject in tested else "train"].append(
            {"signal": signal.astype(np.float32), "label": steps, "subject": subject, "experiment": experiment}
        )
    parts = []
    for name, own in rows.items():
        columns = {column: [row[column] for row in own] for column in ("signal", "label", "subject", "experiment")}
        found = (
            f"{len(own)} recordings of {len(set(columns['subject']))} persons: "
            f"{sum(map(len, columns['label'])):,} steps, {sum((row > 0).sum() for row in columns['label']):,} of them "
            "with a label"
        )
        table = {
            "signal": nested(columns["signal"]),
            "label": pa.array(columns["label"], pa.list_(pa.int8())),
            "subject": pa.array(columns["subject"], pa.int32()),
            "experiment": pa.array(columns["experiment"], pa.int32()),
        }
        parts.append(Part(name, pa.table(table), found, found == HAPT_COUNTS[name]))
    return parts


def _numbers_in(file: str) -> tuple[int, int]:
    """Return experiment and person of `acc_exp01_user02.txt`."""
    try:
        experiment, subject = file.rpartition("/")[2].removeprefix("acc_exp").removesuffix(".txt").split("_user")
        return int(experiment), int(subject)
    except ValueError as error:
        raise UserError(f"{file!r} must have a name such as 'acc_exp01_user02.txt'.") from error


def ptb(archive: Archive) -> list[Part]:
    """Return the lines of the Penn Treebank in Mikolov's preparation, of words and of characters."""
    parts = []
    for folder, prefix in zip(FOLDERS["ptb"], ("ptb", "ptb.char"), strict=True):
        for name, short in (("train", "train"), ("validation", "valid"), ("test", "test")):
            file = f"{prefix}.{short}.txt"
            content = archive.read(f"data/{file}")
            try:
                lines = [line.strip() for line in content.decode("ascii").splitlines()]
            except UnicodeDecodeError as error:
                raise UserError(f"{file!r} in the archive {str(archive.path)!r} must be ASCII text.") from error
            if lines and not lines[-1]:
                del lines[-1]  # those of characters end in a line of one blank
            digest = hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
            found = f"{len(lines):,} lines, git's SHA-1 {digest}"
            parts.append(Part(f"{folder}/{name}", pa.table({"sentence": lines}), found, digest == PTB_DIGESTS[file]))
    return parts


DATA_SETS: Mapping[str, Callable[[Archive], list[Part]]] = {"har": har, "hapt": hapt, "ptb": ptb}
DataSet = Literal["har", "hapt", "ptb"]

FOLDERS: Mapping[DataSet, tuple[str, ...]] = {"har": ("",), "hapt": ("",), "ptb": ("ptb-word", "ptb-char")}
"""The folders of a data set below that of the command: one for each task that reads it."""


def nested(rows: Sequence[np.ndarray]) -> pa.Array:
    """Return a column of signals, (T_i, D) each, as lists of lists."""
    width = rows[0].shape[1] if rows else 1
    flat = np.concatenate([row.reshape(-1) for row in rows]) if rows else np.zeros(0, np.float32)
    steps = pa.ListArray.from_arrays(pa.array(np.arange(0, len(flat) + 1, width, dtype=np.int32)), pa.array(flat))
    ends = np.cumsum([0, *map(len, rows)], dtype=np.int32)
    return pa.ListArray.from_arrays(pa.array(ends), steps)


def convert(name: DataSet, archive: Archive, folder: Path) -> list[Part]:
    """Write the Parquet files of a data set, and return what is in them.

    Raises:
        UserError: If the archive does not hold it, or a folder that the files go into is not empty.
        UnwritableError: If they cannot be written.
    """
    for own in (folder / below for below in FOLDERS[name]):
        if own.exists() and (not own.is_dir() or any(own.iterdir())):
            raise UserError(f"out {str(own)!r} must be a new or an empty folder.")
    parts = DATA_SETS[name](archive)
    for part in parts:
        file = folder / f"{part.path}-00000-of-00001.parquet"
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"out {str(folder)!r} cannot be written: {error.strerror}.") from error
        with replaced(file) as temporary:
            parquet.write_table(part.table, temporary, compression="zstd")
    return parts
