"""Data sets: folders of Parquet files that are made up, the real ones, and how they are divided."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, Features

from fptt.experiments.tasks.batches import num_samples
from fptt.experiments.tasks.task import Task

REAL = Path(os.environ.get("FPTT_DATA", ""))
needs_data = pytest.mark.skipif(
    "FPTT_DATA" not in os.environ, reason="FPTT_DATA, the folder of the real data sets, is not set"
)


def write_splits(folder: Path, splits: Mapping[str, Mapping[str, Sequence[Any]]], kinds: Features | None = None) -> str:
    """Write a Parquet file for the columns of each split, and return the folder."""
    folder.mkdir(exist_ok=True)
    for name, columns in splits.items():
        Dataset.from_dict(dict(columns), kinds).to_parquet(folder / f"{name}-00000-of-00001.parquet")
    return str(folder)


def sizes(task: Task) -> list[int]:
    """Return the samples to train, to validate and to test."""
    return [num_samples(part) for part in (task.train, task.validation, task.test)]
