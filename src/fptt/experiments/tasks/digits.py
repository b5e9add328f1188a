"""Digits of scikit-learn, pixel by pixel or row by row: 1,797 images of 8 × 8, real data that ship with the program."""

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor
from torch.utils.data import TensorDataset

from fptt.experiments.configs.config import Setting
from fptt.experiments.tasks.registry import CHANCE
from fptt.experiments.tasks.task import Task

SPLIT_SEED = 0
NUM_PIXELS = {"pixel": 1, "row": 8}
"""The pixels of a time step."""


def load(setting: Setting, seed: int) -> Task:  # noqa: ARG001
    """Load the digits: 1,257 to train, 180 to validate, 360 to test, stratified, the same for every seed."""
    images, labels = (np.asarray(array) for array in load_digits(return_X_y=True))
    inputs, targets = torch.from_numpy(images).float(), torch.from_numpy(labels).long()
    rest, test = train_test_split(np.arange(len(labels)), test_size=360, random_state=SPLIT_SEED, stratify=labels)
    train, validation = train_test_split(rest, test_size=180, random_state=SPLIT_SEED, stratify=labels[rest])
    width = NUM_PIXELS[setting.by]

    def to_sequences(batch: Tensor) -> Tensor:
        """Return intensities 0 … 16, (B, 64), as sequences of numbers in [0, 1], (64, B, 1) or (8, B, 8)."""
        return (batch / 16).view(len(batch), -1, width).transpose(0, 1)

    return Task(
        name="digits",
        kind="classes",
        train=TensorDataset(inputs[train[: setting.limit]], targets[train[: setting.limit]]),
        validation=TensorDataset(inputs[validation], targets[validation]),
        test=TensorDataset(inputs[test], targets[test]),
        to_sequences=to_sequences,
        input_size=width,
        output_size=10,
        chance=CHANCE["digits", "accuracy"],
    )
