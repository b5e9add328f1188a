"""Streams that are stopped, and end as those that are not."""

import json
import os
import signal
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from fptt.experiments.streams.folder import StreamFolder
from fptt.experiments.streams.stream import Streaming

STEPS_A_ROW = 200
"""Of these streams, which are a fifth as long as they would have to be with a row for every thousand steps."""
TIMES = ("seconds", "steps_per_second", "warm_memory_bytes", "peak_memory_bytes", "memory_growth_percent")


def call_at(pause: int, act: Callable[[Streaming], object], monkeypatch: pytest.MonkeyPatch) -> None:
    """Do something at a pause, between a row and what is saved after it, numbered from 0."""
    watch_memory, seen = Streaming._watch_memory, []

    def acting(self: Streaming) -> None:
        seen.append(pause)
        if len(seen) == pause + 1:
            act(self)
        watch_memory(self)

    monkeypatch.setattr(Streaming, "_watch_memory", acting)


def press_ctrl_c(_: Any) -> None:
    os.kill(os.getpid(), signal.SIGINT)


def tensors(nest: Any) -> Iterator[Any]:
    """Yield everything in a nest of dicts and lists, with its keys."""
    if isinstance(nest, dict):
        for key, value in nest.items():
            yield key
            yield from tensors(value)
    elif isinstance(nest, list | tuple):
        for value in nest:
            yield from tensors(value)
    else:
        yield nest


def assert_same_end(one: StreamFolder, other: StreamFolder) -> None:
    assert one.rolling_file.read_text() == other.rolling_file.read_text()
    ends = [{k: v for k, v in json.loads(it.summary_file.read_text()).items() if k not in TIMES} for it in (one, other)]
    assert ends[0] == ends[1]
    assert ends[0]["status"] == "finished"
    learners = [list(tensors(torch.load(it.learner_file, weights_only=True))) for it in (one, other)]
    assert len(learners[0]) == len(learners[1]) > 50
    for own, its in zip(*learners, strict=True):
        assert torch.equal(own, its) if isinstance(own, Tensor) else own == its
    for it in (one, other):
        assert not it.checkpoints.files()
