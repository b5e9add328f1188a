"""MNIST pixel by pixel (S-MNIST), or in one fixed random order (PS-MNIST): 784 steps of one number."""

import logging
import sys
from pathlib import Path

import datasets
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from fptt.experiments.config import Setting
from fptt.experiments.errors import UserError
from fptt.experiments.tasks.task import Task

HUB_ID = "ylecun/mnist"
NUM_VALIDATION = 5000
PERMUTATION_SEED = 0


def load(setting: Setting, seed: int) -> Task:  # noqa: ARG001
    """Load MNIST: 55,000 to train, the last 5,000 of its training split to validate, 10,000 to test.

    With a limit, validation and test are cut to the same number, so that a trial is quick.
    """
    train, test = _read(setting.data or HUB_ID)
    if len(train) <= NUM_VALIDATION:
        raise UserError(f"the train split must have more than {NUM_VALIDATION} samples, got {len(train)}.")
    num_fit = len(train) - NUM_VALIDATION
    order = torch.randperm(784, generator=torch.Generator().manual_seed(PERMUTATION_SEED)) if setting.permuted else None

    def to_sequences(batch: Tensor) -> Tensor:
        ordered = batch if order is None else batch[:, order]
        return (ordered.float() / 255).T.unsqueeze(-1)

    def part(split: datasets.Dataset, name: str, start: int, stop: int) -> TensorDataset:
        """Decode only the images that the limit leaves."""
        stop = stop if setting.limit is None else min(stop, start + setting.limit)
        return TensorDataset(*_tensors(split.select(range(start, stop)), name))

    return Task(
        name="mnist",
        kind="classes",
        train=part(train, "train", 0, num_fit),
        validation=part(train, "train", num_fit, len(train)),
        test=part(test, "test", 0, len(test)),
        to_sequences=to_sequences,
        input_size=1,
        output_size=10,
    )


def _read(source: str) -> tuple[datasets.Dataset, datasets.Dataset]:
    looks_local = source.startswith((".", "/", "~")) or Path(source).exists()
    path = Path(source).expanduser()
    if looks_local and not path.is_dir():
        raise UserError(f"data folder {source!r} does not exist.")
    datasets.logging.set_verbosity(logging.CRITICAL)  # what goes wrong is told by the error below
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    try:
        splits = datasets.load_dataset(str(path) if looks_local else source)
    except Exception as error:  # the loader raises many kinds, all of them about the data
        hint = "" if looks_local else " Without a connection, give a local folder of Parquet files by --data."
        raise UserError(f"data set {source!r} cannot be loaded: {' '.join(str(error).split())[:300]}.{hint}") from error
    missing = {"train", "test"} - set(splits)
    if missing:
        raise UserError(f"data set {source!r} must have the splits train and test, got {', '.join(map(str, splits))}.")
    return splits["train"], splits["test"]  # pyright: ignore


def _tensors(split: datasets.Dataset, name: str) -> tuple[Tensor, Tensor]:
    """Return images as bytes, (N, 784), and labels, (N,)."""
    if not {"image", "label"} <= set(split.column_names):
        raise UserError(f"the {name} split must have the columns image and label, got {', '.join(split.column_names)}.")
    try:
        images = np.stack([np.asarray(image) for image in split["image"]]).reshape(len(split), 784)
        labels = np.asarray(split["label"])
    except (ValueError, TypeError, OSError) as error:
        raise UserError(f"the {name} split must hold grey images of 28 × 28 and labels: {error}.") from error
    for column, array, largest in (("image", images, 255), ("label", labels, 9)):
        if array.dtype.kind not in "iu" or array.min() < 0 or array.max() > largest:
            raise UserError(
                f"the {name} split must hold whole numbers from 0 to {largest} in column {column}, "
                f"got {array.dtype} from {array.min()} to {array.max()}."
            )
    return torch.from_numpy(images.astype(np.uint8)), torch.from_numpy(labels.astype(np.int64))
