"""MNIST pixel by pixel (S-MNIST), in one fixed random order (PS-MNIST), or row by row."""

import datasets
import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from fptt.experiments.configs.config import Setting
from fptt.experiments.process.errors import UserError
from fptt.experiments.tasks.loading import check_columns, images, load_splits, whole_numbers
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
    train, test = splits["train"], splits["test"]
    if len(train) <= NUM_VALIDATION:
        raise UserError(f"the train split must have more than {NUM_VALIDATION} samples, got {len(train)}.")
    num_fit = len(train) - NUM_VALIDATION
    # one order for all seeds: another one would be another task
    order = torch.randperm(784, generator=torch.Generator().manual_seed(PERMUTATION_SEED)) if setting.permuted else None
    width = NUM_PIXELS[setting.by]

    def to_sequences(batch: Tensor) -> Tensor:
        ordered = batch if order is None else batch[:, order.to(batch.device)]
        pixels = ordered.float() / 255
        if setting.standardization != "none":
            pixels = (pixels - MEAN) / DEVIATION
        return pixels.view(len(batch), -1, width).transpose(0, 1)

    def part(split: datasets.Dataset, name: str, start: int, stop: int) -> TensorDataset:
        """Decode only the images that the limit leaves."""
        stop = stop if setting.limit is None else min(stop, start + setting.limit)
        check_columns(split, name, ("image", "label"))
        chosen = split.select(range(start, stop))
        return TensorDataset(images(chosen, name, "image", (784,)), whole_numbers(chosen, name, "label", 9))

    return Task(
        name="mnist",
        kind="classes",
        train=part(train, "train", 0, num_fit),
        validation=part(train, "train", num_fit, len(train)),
        test=part(test, "test", 0, len(test)),
        to_sequences=to_sequences,
        input_size=width,
        output_size=10,
        chance=0.1,
    )
