"""Spiking Heidelberg Digits: spoken digits in two languages as the spikes of 700 channels of an artificial cochlea."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from fptt.experiments.configs.config import Setting
from fptt.experiments.process.errors import UserError, one_line
from fptt.experiments.tasks.batches import Samples
from fptt.experiments.tasks.loading import check_whole, spread
from fptt.experiments.tasks.task import Task

NUM_UNITS, NUM_CLASSES = 700, 20
DURATION = 1.4
"""Seconds that are read of every word, as in Cramer et al. (2020); the longest takes 1.37."""
VALIDATION_PART = 0.1
SPLIT_SEED = 0


class Words(Dataset[Samples]):
    """Words as lists of spikes, counted in T equal bins when they are read: dense, they would take gigabytes.

    Args:
        cells: Of each word (spikes,), the number of a spike's bin times the number of units, plus that of its unit.
        labels: (N,).
        num_steps: T.
    """

    def __init__(self, cells: Sequence[Tensor], labels: Tensor, num_steps: int) -> None:
        self.cells, self.labels, self.num_steps = cells, labels, num_steps

    def __len__(self) -> int:
        """Return the words."""
        return len(self.labels)

    def __getitem__(self, index: Sequence[int]) -> Samples:
        """Return counts of spikes, (B, T, 700), and labels, (B,)."""
        size = self.num_steps * NUM_UNITS
        counted = [torch.bincount(self.cells[number], minlength=size) for number in index]
        return torch.stack(counted).view(-1, self.num_steps, NUM_UNITS).float(), self.labels[index]


def load(setting: Setting, seed: int) -> Task:  # noqa: ARG001
    """Load the words of `shd_train.h5` and `shd_test.h5`: a tenth of the former validates, the same for every seed.

    With a limit, every part is cut to that many words, evenly spaced.
    """
    if setting.data is None:
        raise UserError(
            "shd has no data of its own: give --data FOLDER with shd_train.h5 and shd_test.h5 (zenkelab.org, Cramer et "
            "al. 2020)."
        )
    folder, num_steps = Path(setting.data).expanduser(), setting.length or 100
    if not folder.is_dir():
        raise UserError(f"data folder {setting.data!r} does not exist.")
    order = np.random.default_rng(SPLIT_SEED)
    train, test = (read_words(folder / f"shd_{name}.h5", num_steps) for name in ("train", "test"))
    shuffled = order.permutation(len(train))
    num_validation = round(VALIDATION_PART * len(train))
    if not 0 < num_validation < len(train):
        raise UserError(f"{folder / 'shd_train.h5'} must have words to train and to validate, got {len(train)}.")
    validation, fit = np.sort(shuffled[:num_validation]), np.sort(shuffled[num_validation:])
    return Task(
        name="shd",
        kind="classes",
        train=_part(train, fit, setting.limit),
        validation=_part(train, validation, setting.limit),
        test=_part(test, np.arange(len(test)), setting.limit),
        to_sequences=lambda batch: batch.transpose(0, 1),
        input_size=NUM_UNITS,
        output_size=NUM_CLASSES,
        chance=1 / NUM_CLASSES,
    )


def _part(words: Words, rows: np.ndarray, limit: int | None) -> Words:
    chosen = rows[spread(len(rows), limit)].tolist()
    return Words([words.cells[number] for number in chosen], words.labels[chosen], words.num_steps)


def read_words(path: Path, num_steps: int) -> Words:
    """Read a file of words, counted in T bins: `spikes/times` in seconds, `spikes/units` and `labels`.

    Spikes after 1.4 s are left out.

    Raises:
        UserError: If h5py is not installed, or the file is missing, no HDF5, lacks a field or has something else in it.
    """
    try:
        import h5py  # pyright: ignore[reportMissingImports]
    except ModuleNotFoundError as error:
        raise UserError("the task shd needs h5py: pip install 'fptt[shd]'.") from error
    try:
        with h5py.File(path, "r") as file:
            times, units, labels = (_field(file, path, name) for name in ("spikes/times", "spikes/units", "labels"))
    except OSError as error:
        raise UserError(f"{path} cannot be read: {one_line(error)}.") from error
    if not len(times) == len(units) == len(labels):
        raise UserError(
            f"{path} must have as many entries in spikes/times as in spikes/units and labels, got {len(times)}, "
            f"{len(units)} and {len(labels)}."
        )
    check_whole(labels, NUM_CLASSES - 1, f"{path} must hold", "labels")
    cells = []
    for number, (at, unit) in enumerate(zip(times, units, strict=True)):
        where = f"word {number} of {path} must have"
        at, unit = np.asarray(at), np.asarray(unit)  # noqa: PLW2901
        if at.shape != unit.shape or at.ndim != 1:
            raise UserError(
                f"{where} a time for each unit, got {at.shape} in spikes/times, {unit.shape} in spikes/units."
            )
        # half precision is what the files have: seconds to a millisecond
        at = at.astype(np.float64)  # noqa: PLW2901
        if not (np.isfinite(at) & (at >= 0)).all():
            raise UserError(f"{where} times from 0 on in spikes/times, got {at.min():g} … {at.max():g}.")
        check_whole(unit, NUM_UNITS - 1, where, "spikes/units")
        heard = at < DURATION
        bins = (at[heard] * (num_steps / DURATION)).astype(np.int32)
        cells.append(torch.from_numpy(bins * NUM_UNITS + unit[heard].astype(np.int32)))
    return Words(cells, torch.from_numpy(labels.astype(np.int64)), num_steps)


def _field(file: Any, path: Path, name: str) -> np.ndarray:
    """Return what a file has under a name.

    Raises:
        UserError: If there is nothing, or a folder.
    """
    import h5py  # pyright: ignore[reportMissingImports]

    found = file.get(name)
    if not isinstance(found, h5py.Dataset) or found.ndim != 1:
        has = "nothing" if found is None else "something else"
        raise UserError(f"{path} must have a list in the field {name}, as shd_*.h5 have it, got {has}.")
    return found[:]
