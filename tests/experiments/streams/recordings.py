"""Recordings and their files, made up."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from fptt.experiments.tasks.hapt import Recording
from fptt.experiments.tasks.scores import IGNORED
from tests.experiments.data_sets import write_splits


def recording(seed: int, length: int) -> Recording:
    """Return a recording whose labels last for four steps; some have none."""
    generator = torch.Generator().manual_seed(seed)
    classes = torch.randint(-2, 12, (length // 4 + 1,), generator=generator).repeat_interleave(4)[:length]
    return Recording(torch.randn(length, 6, generator=generator), torch.where(classes < 0, IGNORED, classes))


def write_recordings(folder: Path, lengths: Mapping[str, Sequence[int]]) -> str:
    """Write a Parquet file for each split, the seed of each recording being its length, and return the folder."""
    splits = {}
    for name, own in lengths.items():
        parts = [recording(length, length) for length in own]
        splits[name] = {
            "signal": [part.signal.numpy() for part in parts],
            "label": [torch.where(part.classes == IGNORED, 0, part.classes + 1).tolist() for part in parts],
        }
    return write_splits(folder, splits)
