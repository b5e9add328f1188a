"""MNIST pixel by pixel (S-MNIST), in one fixed random order (PS-MNIST), or row by row."""

import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from fptt.experiments.configs.config import Setting
from fptt.experiments.process.errors import UserError
from fptt.experiments.tasks.loading import labeled_images, load_splits
from fptt.experiments.tasks.registry import CHANCE
from fptt.experiments.tasks.task import Task

HUB_ID = "ylecun/mnist"
NUM_VALIDATION = 5000
PERMUTATION_SEED = 0
MEAN, DEVIATION = 0.1307, 0.3081
"""Of the pixels of the training split, in [0, 1]; the published settings have these same digits."""
NUM_PIXELS = {"pixel": 1, "row": 28}
"""The pixels of a time step."""


def load(setting: Setting, seed: int) -> Task:  # noqa: ARG001
    """Load MNIST: 55,000 to train, the last 5,000 of its training split to validate, 10,000 to test.

    With a limit, validation and test are cut to the same number, so that a trial is quick.
    """
    splits = load_splits(setting.data or HUB_ID)
    num_train = len(splits["train"])
    num_fit = num_train - NUM_VALIDATION
    if num_fit < 1:
        raise UserError(f"the train split must have more than {NUM_VALIDATION} samples, got {num_train}.")
    # one order for all seeds: another one would be another task
    order = torch.randperm(784, generator=torch.Generator().manual_seed(PERMUTATION_SEED)) if setting.permuted else None
    width = NUM_PIXELS[setting.by]

    def to_sequences(batch: Tensor) -> Tensor:
        ordered = batch if order is None else batch[:, order.to(batch.device)]
        pixels = ordered.float() / 255
        if setting.standardization != "none":
            pixels = (pixels - MEAN) / DEVIATION
        return pixels.view(len(batch), -1, width).transpose(0, 1)

    def part(name: str, rows: range) -> TensorDataset:
        return labeled_images(splits[name], name, "image", (784,), rows[: setting.limit])

    return Task(
        name="mnist",
        kind="classes",
        train=part("train", range(num_fit)),
        validation=part("train", range(num_fit, num_train)),
        test=part("test", range(len(splits["test"]))),
        to_sequences=to_sequences,
        input_size=width,
        output_size=10,
        chance=CHANCE["mnist", "accuracy"],
    )
