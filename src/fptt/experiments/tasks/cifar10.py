"""CIFAR-10 pixel by pixel, row by row: 1,024 steps of three colors."""

import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from fptt.experiments.configs.config import Setting
from fptt.experiments.process.errors import UserError
from fptt.experiments.tasks.loading import labeled_images, load_splits
from fptt.experiments.tasks.registry import CHANCE
from fptt.experiments.tasks.task import Task

HUB_ID = "uoft-cs/cifar10"
NUM_TEST = 10_000
NUM_HELD_OUT = 5000
CONSTANTS = {
    "published": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "data": ((0.49140, 0.48216, 0.44653), (0.24703, 0.24349, 0.26159)),
    "none": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
}
"""Mean and deviation of the colors, in [0, 1]: of the published settings, and of the training split."""


def load(setting: Setting, seed: int) -> Task:  # noqa: ARG001
    """Load CIFAR-10: 45,000 to train, the last 5,000 of its training split to validate, 10,000 to test.

    Where the test split is not whole, it is not used: then the last 5,000 of the training split are the test data, the
    5,000 before them validate, and 40,000 are left to train. With a limit, all parts are cut to the same number.
    """
    splits = load_splits(setting.data or HUB_ID)
    num_train, num_test = len(splits["train"]), len(splits["test"])
    is_whole = num_test >= NUM_TEST
    num_held_out = (1 if is_whole else 2) * NUM_HELD_OUT
    num_fit = num_train - num_held_out
    if num_fit < 1:
        raise UserError(f"the train split must have more than {num_held_out} samples, got {num_train}.")
    mean, deviation = (torch.tensor(values) for values in CONSTANTS[setting.standardization])

    def to_sequences(batch: Tensor) -> Tensor:
        """Return bytes, (B, 32, 32, 3), as sequences of colors, (1024, B, 3)."""
        colors = batch.float().view(len(batch), 1024, 3).transpose(0, 1) / 255
        return (colors - mean.to(batch.device)) / deviation.to(batch.device)

    def part(name: str, rows: range) -> TensorDataset:
        return labeled_images(splits[name], name, "img", (32, 32, 3), rows[: setting.limit])

    return Task(
        name="cifar10",
        kind="classes",
        train=part("train", range(num_fit)),
        validation=part("train", range(num_fit, num_fit + NUM_HELD_OUT)),
        test=part("test", range(num_test)) if is_whole else part("train", range(num_train)[-NUM_HELD_OUT:]),
        to_sequences=to_sequences,
        input_size=3,
        output_size=10,
        chance=CHANCE["cifar10", "accuracy"],
    )
