"""The files of the library that one `train_batch` passes through: whoever follows it must not have to open many."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch
from torch.nn import functional

import fptt

ROOT = f"{Path(fptt.__file__).parent}/"


class Walk:
    """The files that were entered and their functions, in the order of their first call."""

    def __init__(self) -> None:
        self.files: dict[str, dict[str, int]] = {}

    @contextmanager
    def watching(self) -> Iterator[None]:
        previous = sys.getprofile()
        sys.setprofile(self._note)
        try:
            yield
        finally:
            sys.setprofile(previous)

    def _note(self, frame: FrameType, event: str, _: Any) -> None:
        """Note a call, as a profiler of `sys.setprofile`; comprehensions are part of their functions."""
        code = frame.f_code
        if event == "call" and code.co_filename.startswith(ROOT) and code.co_name[-5:] not in ("comp>", "expr>"):
            calls = self.files.setdefault(code.co_filename.removeprefix(ROOT), {})
            calls[code.co_qualname] = calls.get(code.co_qualname, 0) + 1

    def __str__(self) -> str:
        lines = [f"{name:<32} {sum(calls.values()):>5} calls  {', '.join(calls)}" for name, calls in self.files.items()]
        return "\n".join([f"{len(self.files)} files:", *lines])


@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize(("engine", "most"), [("eager", 14), ("compiled", 19)])
def test_a_batch_touches_few_files(engine: Any, most: int) -> None:
    """The second batch, for which a compiled step is there already."""
    model = fptt.nn.LSTM(1, 8, 10, readout_sizes=[16], last_only=True)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    loss = fptt.TerminalLoss(functional.cross_entropy, divergence="uniform")
    method = fptt.FPTT(model, optimizer, loss, num_chunks=4, engine=engine, max_norm=1.0)
    inputs, targets = torch.randn(16, 3, 1), torch.randint(10, (3,))
    method.train_batch(inputs, targets)
    walk = Walk()
    with walk.watching():
        method.train_batch(inputs, targets)
    assert 0 < len(walk.files) <= most, str(walk)
