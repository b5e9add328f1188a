from pathlib import Path

import pytest
import torch

from fptt.experiments.process import machine
from fptt.experiments.process.machine import MemoryMeter


def test_memory_is_measured_where_the_peak_cannot_be_reset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a sandbox whose /proc is read-only; here it is a folder, which nobody can write to as to a file."""
    monkeypatch.setattr(machine, "RESET_PEAK", tmp_path)
    meter = MemoryMeter(torch.device("cpu"))
    meter.start()
    meter.stop()
    assert meter.sizes()["peak_memory_bytes"] > 0
