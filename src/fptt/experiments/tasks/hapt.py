"""Activities and postural transitions in continuous recordings (HAPT, Reyes-Ortiz et al. 2016), step by step."""

from collections.abc import Iterable
from typing import NamedTuple

import datasets
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.data import TensorDataset

from fptt.experiments.configs.config import Setting
from fptt.experiments.process.errors import UserError
from fptt.experiments.tasks.loading import (
    channel_statistics,
    check_columns,
    check_range,
    floats,
    last_subjects,
    load_splits,
    spread,
)
from fptt.experiments.tasks.scores import IGNORED
from fptt.experiments.tasks.task import Task

NUM_VALIDATION_SUBJECTS = 3
NUM_CLASSES = 12


class Recording(NamedTuple):
    """Signals (T, 6), and the class 0 … 11 of every step, (T,), or IGNORED where there is none."""

    signal: Tensor
    classes: Tensor


def load(setting: Setting, seed: int) -> Task:  # noqa: ARG001
    """Load the recordings, cut into consecutive segments of T = `setting.length` or 1,000 steps.

    Training, validation (the last three subjects of the training split) and test are cut alike, and every segment is a
    sample of its own; those without any labeled step are left out. Every signal has zero mean and unit variance over
    the training recordings. With a limit, every part is cut to that many segments, evenly spaced.
    """
    if setting.data is None:
        raise UserError(
            "hapt has no data of its own: give --data FOLDER, Parquet files with the splits train and test, whose "
            "columns are signal (T × 6 numbers), label (T numbers, 0 for none or 1 to 12) and subject (a number)."
        )
    splits = load_splits(setting.data)
    train, test = (recordings(splits[name], name) for name in ("train", "test"))
    length = setting.length or 1000
    longest = max(len(signal) for signal, _ in train + test)
    if length > longest:
        raise UserError(f"length must be at most {longest}, the longest recording, got {length}.")
    is_validation = last_subjects(splits["train"], "train", NUM_VALIDATION_SUBJECTS).tolist()
    assigned = list(zip(train, is_validation, strict=True))
    fit = [recording for recording, is_held_out in assigned if not is_held_out]
    validation = [recording for recording, is_held_out in assigned if is_held_out]
    mean, deviation = channel_statistics(torch.cat([signal for signal, _ in fit]))

    def part(chosen: list[Recording], name: str) -> TensorDataset:
        standardized = [Recording((signal - mean) / deviation, targets) for signal, targets in chosen]
        inputs, targets = segments(standardized, length)
        if not len(inputs):
            raise UserError(
                f"the {name} recordings must have labels from 1 to {NUM_CLASSES} in column label, got none."
            )
        kept = spread(len(inputs), setting.limit)
        return TensorDataset(inputs[kept], targets[kept])

    return Task(
        name="hapt",
        kind="classes",
        train=part(fit, "training"),
        validation=part(validation, "validation"),
        test=part(test, "test"),
        to_sequences=lambda batch: batch.transpose(0, 1),
        input_size=6,
        output_size=NUM_CLASSES,
        has_step_targets=True,
    )


def recordings(split: datasets.Dataset, name: str) -> list[Recording]:
    """Return the recordings of a split."""
    check_columns(split, name, ("signal", "label", "subject"))
    signals = floats(split, name, "signal", (None, 6))
    labels = [np.asarray(row) for row in split["label"]]
    return [
        Recording(signal, step_targets(row, name, len(signal))) for signal, row in zip(signals, labels, strict=True)
    ]


def step_targets(labels: np.ndarray, name: str, num_steps: int) -> Tensor:
    """Return the classes 0 … 11 of the labels 1 … 12 of a recording, and IGNORED where there is none (0)."""
    if labels.shape != (num_steps,):
        raise UserError(
            f"the {name} split must hold one label for every step in column label, "
            f"got labels of shape {labels.shape} for a recording of {num_steps} steps."
        )
    check_range(labels, name, "label", NUM_CLASSES)
    classes = torch.from_numpy(labels.astype(np.int64)) - 1
    return torch.where(classes < 0, IGNORED, classes)


def segments(recordings: Iterable[Recording], length: int) -> tuple[Tensor, Tensor]:
    """Return inputs (N, length, 6) and targets (N, length) of all segments with a labeled step.

    The last segment of a recording is padded with zeros, and there the targets are ignored.
    """
    inputs, targets = [], []
    for signal, classes in recordings:
        padding = -len(signal) % length
        inputs.append(functional.pad(signal, (0, 0, 0, padding)).view(-1, length, 6))
        targets.append(functional.pad(classes, (0, padding), value=IGNORED).view(-1, length))
    all_inputs, all_targets = torch.cat(inputs), torch.cat(targets)
    has_labels = (all_targets != IGNORED).any(1)
    return all_inputs[has_labels], all_targets[has_labels]
