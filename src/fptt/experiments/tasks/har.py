"""Human activity from windows of smartphone sensors (UCI HAR, Anguita et al. 2013): 128 steps of nine signals."""

import datasets
import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from fptt.experiments.configs.config import Setting
from fptt.experiments.process.errors import UserError
from fptt.experiments.tasks.loading import (
    channel_statistics,
    check_columns,
    floats,
    last_subjects,
    load_splits,
    spread,
    whole_numbers,
)
from fptt.experiments.tasks.registry import CHANCE
from fptt.experiments.tasks.task import Task

NUM_VALIDATION_SUBJECTS = 3
SHAPE = (128, 9)


def load(setting: Setting, seed: int) -> Task:  # noqa: ARG001
    """Load the windows: the last three subjects of the training split, about 15 %, validate; the test split tests.

    Every signal has zero mean and unit variance over the training windows. With a limit, every part is cut to that many
    windows, evenly spaced, because they are stored subject by subject.
    """
    if setting.data is None:
        raise UserError(
            "har has no data of its own: give --data FOLDER, Parquet files with the splits train and test, whose "
            "columns are inertial (128 × 9 numbers), label (0 to 5) and subject (a number)."
        )
    splits = load_splits(setting.data)
    train, test = splits["train"], splits["test"]
    inputs, targets = windows(train, "train")
    # by subject: neighboring windows of one person overlap by half
    is_validation = last_subjects(train, "train", NUM_VALIDATION_SUBJECTS)
    mean, deviation = channel_statistics(inputs[~is_validation])

    def part(inputs: Tensor, targets: Tensor) -> TensorDataset:
        chosen = spread(len(inputs), setting.limit)
        return TensorDataset((inputs[chosen] - mean) / deviation, targets[chosen])

    return Task(
        name="har",
        kind="classes",
        train=part(inputs[~is_validation], targets[~is_validation]),
        validation=part(inputs[is_validation], targets[is_validation]),
        test=part(*windows(test, "test")),
        to_sequences=lambda batch: batch.transpose(0, 1),
        input_size=SHAPE[1],
        output_size=6,
        chance=CHANCE["har", "accuracy"],
    )


def windows(split: datasets.Dataset, name: str) -> tuple[Tensor, Tensor]:
    """Return the windows of a split, (N, 128, 9), and their activities, (N,)."""
    check_columns(split, name, ("inertial", "label", "subject"))
    return torch.stack(floats(split, name, "inertial", SHAPE)), whole_numbers(split, name, "label", 5)
