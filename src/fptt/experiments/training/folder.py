"""The folder of one run: the only place that knows its file names; and what it has in common with that of a stream."""

import csv
import json
import os
import shlex
import sys
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import safetensors
import torch
from safetensors.torch import load_file, save
from torch import Tensor

from fptt._parallel.collectives import LostProcessError
from fptt.experiments.configs.config import TrainConfig
from fptt.experiments.configs.recipes import read_config
from fptt.experiments.process.errors import (
    UnreadableError,
    UnreadableFileError,
    UnwritableError,
    UserError,
    one_line,
)
from fptt.experiments.process.files import read_csv, read_json, read_text, reading, replace_text, replaced, writing
from fptt.experiments.tasks.interface import Interface
from fptt.experiments.training.checkpoints import Checkpoints

ONLY = {"train": ("config.yaml", "model.safetensors"), "stream": ("learner.pt", "rolling.csv")}
"""Files that only one command leaves in its folder."""
LOCK = "lock"
CHECKSUM = "crc32"
"""Name of the checksum of the weights in the metadata of their file."""

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

Weights = dict[str, Tensor]


class DamagedRunError(UserError):
    """A file of a run is damaged.

    Args:
        folder: The folder of the run.
        damage: Which file, and why, without the folder.
    """

    def __init__(self, folder: Path, damage: str) -> None:
        super().__init__(f"run folder {folder} is damaged: {damage}")
        self.damage = damage


class OutFolder(ABC):
    """The folder into which a command writes a run or stream, with checkpoints from which it can be resumed."""

    command: ClassVar[Literal["train", "stream"]]

    def __init__(self, path: Path) -> None:
        self.path = path
        self.summary_file = path / "summary.json"
        self.checkpoints = Checkpoints(path)

    @abstractmethod
    def files(self) -> list[Path]:
        """Return every file that the command, and those after it, may leave, without checkpoints."""

    @property
    def resume_command(self) -> str:
        """The command that resumes what was interrupted, as a shell takes it."""
        return f"fptt {self.command} --resume --out {shlex.quote(self.path.as_posix())}"

    @contextmanager
    def hinting_at_resuming(self) -> Iterator[None]:
        """Add the command that resumes, if there is a checkpoint, to errors about what the user can mend."""
        try:
            yield
        except (UnreadableError, UnwritableError, LostProcessError) as error:
            hint = f"To resume when that is mended: {self.resume_command}" if self.checkpoints.files() else ""
            raise UserError(f"{error} {hint}".strip()) from error

    def check_free(self, *, can_overwrite: bool = True) -> None:
        """Raise UserError if the folder holds something beside a lock, which whoever takes it checks.

        Args:
            can_overwrite: Whether the command has --overwrite, which the message then names.
        """
        _check_no_file(self.path)
        if self.path.is_dir() and any(file.name != LOCK for file in self.path.iterdir()):
            hint = ", or --overwrite" if can_overwrite else ""
            raise UserError(f"out {self.path} is not empty: give another folder{hint}.")

    def check_replaceable(self) -> None:
        """Raise UserError if the folder holds something that the command may not replace, though it was asked to.

        That is what the other command left, which would stay beside the files of this one, and what the user has
        written: files of the same names in a folder without a sign of an earlier run or stream.
        """
        check_not_of(self.path, "stream" if self.command == "train" else "train")
        own = next((file for file in self.files() if os.path.lexists(file)), None)
        if own is not None and not _has_sign_of_a_run(self.path):
            raise UserError(
                f"out {self.path} has a file {own.name}, which would be replaced, but no config, summary or checkpoint "
                f"of `fptt {self.command}`: give another folder, or move the file."
            )

    def clear(self) -> None:
        """Make the folder, and remove an earlier run or stream from it, but not the lock of the process that does so.

        Raises:
            UserError: If it holds what may not be replaced, see `check_replaceable`, or cannot be written.
        """
        self.check_replaceable()
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            for file in self.files():
                file.unlink(missing_ok=True)
            self.checkpoints.remove()
        except OSError as error:
            raise UserError(f"out {self.path} cannot be written: {error}.") from error


class RunFolder(OutFolder):
    """Config, metrics, summary, weights, averages and plot of one run."""

    command = "train"

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.config_file = path / "config.yaml"
        self.metrics_file = path / "metrics.csv"
        self.weights_file = path / "model.safetensors"
        self.averages_file = path / "averages.safetensors"
        self.curves_file = path / "curves.png"
        self.vocabulary_file = path / "vocabulary.json"
        self.interface_file = path / "interface.json"
        self.card_file = path / "README.md"
        self.program_files = [path / "model.pt2", path / "model.onnx"]  # as `fptt export` leaves them there

    # -- writing: by the leader of a run alone -----------------------------------------------------------------------

    def create(
        self, config: TrainConfig, vocabulary: Sequence[str] | None = None, interface: Interface | None = None
    ) -> None:
        """Clear the folder, write config, interface and, of a text, vocabulary.

        Raises:
            UserError: If it holds a stream, or files that no run has left, or cannot be written.
        """
        self.clear()
        self.write_config(config)
        if interface is not None:
            replace_text(self.interface_file, json.dumps(asdict(interface), indent=2, ensure_ascii=False) + "\n")
        if vocabulary is not None:
            replace_text(self.vocabulary_file, json.dumps(vocabulary, ensure_ascii=False) + "\n")

    def write_config(self, config: TrainConfig) -> None:
        """Write the config, also of a run that is resumed elsewhere, so that its data are found there."""
        replace_text(self.config_file, config.to_yaml())

    def files(self) -> list[Path]:
        """Return every file that a whole run may have, exported programs too, without checkpoints."""
        files = [self.config_file, self.metrics_file, self.summary_file, self.curves_file]
        files += [self.weights_file, self.averages_file, self.vocabulary_file, self.interface_file, self.card_file]
        return [*files, *self.program_files]

    def append_metrics(self, row: Mapping[str, Any]) -> None:
        """Add one row, for good; the first one writes the names of the columns."""
        is_new = not self.metrics_file.exists()
        with writing(self.metrics_file), self.metrics_file.open("a", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(row))
            if is_new:
                writer.writeheader()
            writer.writerow(row)
            file.flush()
            os.fsync(file.fileno())  # the next checkpoint, which survives a power cut, counts the row

    def keep_metrics(self, num_rows: int) -> None:
        """Keep the first rows only, those that a checkpoint includes.

        Raises:
            UserError: If the file does not begin with as many whole rows.
            UnwritableError: If the others cannot be removed.
        """
        if not num_rows:
            with writing(self.metrics_file):
                self.metrics_file.unlink(missing_ok=True)
            return
        with self._reading(self.metrics_file):
            lines = read_text(self.metrics_file).splitlines(keepends=True)[: num_rows + 1]
            # the last line of a file that was cut short has no end, and the next row would be written onto it
            num_whole = sum(line.endswith("\n") for line in lines[1:])
            if num_whole < num_rows:
                raise ValueError(f"it must have the {num_rows} whole rows of the checkpoint, got {num_whole}")
            if len({len(cells) for cells in csv.reader(lines)}) > 1:
                raise ValueError("its rows must have as many cells as there are names of columns")
        replace_text(self.metrics_file, "".join(lines))

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Write the summary, whole or not at all."""
        replace_text(self.summary_file, json.dumps(summary, indent=2) + "\n")

    def write_card(self, text: str) -> None:
        """Write the model card, whole or not at all."""
        replace_text(self.card_file, text)

    def write_weights(self, weights: Weights, averages: Weights, about: Mapping[str, Any] | None = None) -> None:
        """Write the weights W and, if there are any, the averages W̄, with values about them as JSON in the metadata.

        Programs that were exported from the weights before are removed.
        """
        for file in self.program_files:
            with writing(file):
                file.unlink(missing_ok=True)
        values = {name: value for name, value in (about or {}).items() if value is not None}
        for tensors, file in ((weights, self.weights_file), (averages, self.averages_file)):
            if tensors:
                # a single entry: safetensors writes several in no fixed order, and the same run must leave the same
                # bytes
                metadata = {"fptt": json.dumps({**values, CHECKSUM: _checksum(tensors)}, ensure_ascii=False)}
                with replaced(file) as temporary:
                    # safetensors refuses other strides, and would itself make a file that no other user can read
                    content = save({name: tensor.contiguous() for name, tensor in tensors.items()}, metadata)
                    temporary.write_bytes(content)

    # -- reading -----------------------------------------------------------------------------------------------------

    def read_config(self) -> TrainConfig:
        """Read the config."""
        self._check_exists()
        learned = _left_by("stream", self.path)
        if learned is not None and not self.config_file.exists():
            raise UserError(
                f"run folder {self.path} must be one of `fptt train`, got that of a stream, with {learned}."
            )
        return read_config(self.config_file, of_a_run=True)

    def read_vocabulary(self) -> list[str] | None:
        """Read the vocabulary; None if the run has no text."""
        if not self.vocabulary_file.exists():
            return None
        with self._reading(self.vocabulary_file):
            tokens = read_json(self.vocabulary_file)
            if not isinstance(tokens, list) or not all(isinstance(token, str) for token in tokens):
                raise ValueError("it does not hold a list of tokens")
        return tokens

    def read_interface(self) -> Interface | None:
        """Read the interface of the model; None if the run is of a version before there was one."""
        if not self.interface_file.exists():
            return None
        with self._reading(self.interface_file):
            values = read_json(self.interface_file)
            if not isinstance(values, dict):
                raise ValueError("it does not hold an object")
            try:
                return Interface(**values)
            except UserError as error:
                raise ValueError(one_line(error)) from error

    def read_metrics(self) -> list[dict[str, float]]:
        """Read the rows of the metrics, as numbers."""
        with self._reading(self.metrics_file):
            rows = read_csv(self.metrics_file)
            return [{name: float(value) for name, value in row.items()} for row in rows]

    def read_summary(self) -> dict[str, Any]:
        """Read the summary."""
        self._check_exists()
        with self._reading(self.summary_file):
            summary = read_json(self.summary_file)
            if not isinstance(summary, dict):
                raise ValueError("it does not hold an object")
        return summary

    def read_weights(self, *, averages: bool = False) -> Weights:
        """Read the weights, or the averages."""
        self._check_exists()
        file = self.averages_file if averages else self.weights_file
        if averages and not file.exists():
            raise UserError(f"run folder {self.path} has no averages: its method keeps none.")
        with self._reading(file):
            if file.exists() and not file.is_file():  # to open a FIFO would wait for a writer
                raise ValueError("it is not a regular file")
            with reading(file), safetensors.safe_open(file, "pt") as opened:
                about = json.loads((opened.metadata() or {}).get("fptt", "{}"))
            weights = load_file(file)
            expected = about.get(CHECKSUM) if isinstance(about, dict) else None  # older files have none
            # the format itself has none either: a flipped bit would be another weight
            if expected is not None and _checksum(weights) != expected:
                raise ValueError("its weights are not those that were written")
        return weights

    def has_finished(self, config: TrainConfig | None = None) -> bool:
        """Return whether the folder holds a run that came to its end, with its figures.

        Args:
            config: If given, whether it is a run of this config, wherever its data lay.
        """
        try:
            if config is not None and replace(self.read_config(), data=config.data) != config:
                return False
            return self.read_summary().get("status") == "finished" and bool(self.read_metrics())
        except UserError:
            return False

    def can_resume(self, config: TrainConfig) -> bool:
        """Return whether the folder holds an interrupted run of this config, wherever its data lay."""
        try:
            return bool(self.checkpoints.files()) and replace(self.read_config(), data=config.data) == config
        except UserError:
            return False

    def _check_exists(self) -> None:
        if not os.path.isdir(self.path):  # Path.is_dir raises an error where no system has such a name
            raise UserError(f"run folder {self.path} does not exist.")

    @contextmanager
    def _reading(self, file: Path) -> Iterator[None]:
        """Raise DamagedRunError, with folder and file, for what goes wrong while the file is read."""
        try:
            yield
        except (UnreadableFileError, OSError, ValueError, safetensors.SafetensorError) as error:
            reason = error.reason if isinstance(error, UnreadableFileError) else one_line(error).rstrip(".")
            raise DamagedRunError(self.path, f"{file.name} cannot be read ({reason}).") from error


def _checksum(tensors: Weights) -> str:
    """Return the CRC-32 of the bytes of tensors, in the order of their names."""
    checksum = 0
    for _, tensor in sorted(tensors.items()):
        content = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
        checksum = zlib.crc32(content.tobytes(), checksum)
    return f"{checksum:08x}"


def fingerprint_of(summary: Mapping[str, Any]) -> str | None:
    """Return the fingerprint of a run's data; None where its summary is older than that."""
    found = summary.get("data")
    return found if isinstance(found, str) else None


def are_same_data(one: str, other: str) -> bool:
    """Return whether two fingerprints agree in the parts that both have: older ones lack that of validation."""
    return all(own == others for own, others in zip(one.split("-"), other.split("-"), strict=False))


def _left_by(command: Literal["train", "stream"], folder: Path) -> str | None:
    """Return the name of a file in a folder that only this command leaves; None if there is none."""
    return next((name for name in ONLY[command] if (folder / name).exists()), None)


def check_not_of(folder: Path, command: Literal["train", "stream"]) -> None:
    """Raise UserError if a folder holds what only this command leaves."""
    found = _left_by(command, folder)
    if found is not None:
        raise UserError(
            f"out {folder} must not be a folder of `fptt {command}`, got one with {found}: give another folder."
        )


def check_has_no_run(folder: Path) -> None:
    """Raise UserError if a folder is that of one run or stream, where a study would replace the plot.

    A config alone is no run: it may be that of the study.
    """
    _check_no_file(folder)
    run = RunFolder(folder)
    files = [run.weights_file, run.summary_file, run.metrics_file, *(folder / name for name in ONLY["stream"])]
    found = next((file.name for file in [*files, *run.checkpoints.files()] if file.exists()), None)
    if found is not None:
        raise UserError(
            f"out {folder} must be a new folder or that of a study, got the folder of a run or stream, with {found}: "
            "give another folder."
        )


def _check_no_file(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise UserError(f"out {folder} is a file, not a folder.")


def _has_sign_of_a_run(folder: Path) -> bool:
    """Return whether a folder has a checkpoint, perhaps damaged, a summary of a run or stream, or a config of a run."""
    checkpoints = Checkpoints(folder)
    if checkpoints.files() or checkpoints.set_aside():
        return True
    try:
        return bool(RunFolder(folder).read_summary().get("status"))
    except UserError:
        pass
    try:
        return bool(RunFolder(folder).read_config())
    except UserError:
        return False


# -- the lock ---------------------------------------------------------------------------------------------------------


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder, which is made if need be; the system releases it however the process ends.

    Raises:
        UnwritableError: If folder or lock file cannot be made.
        UserError: If another process holds the lock.
    """
    path = folder / LOCK
    with writing(path):
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = _locked_file(path)
    try:
        yield
    finally:
        with suppress(OSError):  # while it is still held, so that nobody else can have locked this very file
            path.unlink()
        os.close(descriptor)


def _locked_file(path: Path) -> int:
    """Return a descriptor of the lock file that holds its lock."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o666)
        try:
            _lock(descriptor)
            # between open and flock the holder before may have removed the file: then this lock is of no path
            if os.path.samestat(os.fstat(descriptor), path.stat()):
                return descriptor
        except BlockingIOError:
            os.close(descriptor)
            raise UserError(
                f"another process is writing to {path.parent}: wait until it has ended, or give another folder."
            ) from None
        except FileNotFoundError:
            pass
        except OSError:
            return descriptor  # a file system without locks: two processes are the lesser evil
        os.close(descriptor)


def _lock(descriptor: int) -> None:
    """Lock a file for this process.

    Raises:
        BlockingIOError: If another process holds its lock.
        OSError: If the file system has no locks.
    """
    if sys.platform == "win32":
        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        except PermissionError as error:
            raise BlockingIOError(str(error)) from None
    else:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
