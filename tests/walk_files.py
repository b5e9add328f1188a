"""The files of the library that one `train_batch` passes through, eager and compiled: `python tests/walk_files.py`."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch.nn import functional

import fptt

ROOT = f"{Path(fptt.__file__).parent}/"


class Walk:
    """The files that were entered and their functions, in the order of their first call."""

    def __init__(self) -> None:
        self.files: dict[str, dict[str, int]] = {}

    def note(self, frame: FrameType, event: str, _: Any) -> None:
        """Note a call, as a profiler of `sys.setprofile`; comprehensions are part of their functions."""
        code = frame.f_code
        if event == "call" and code.co_filename.startswith(ROOT) and code.co_name[-5:] not in ("comp>", "expr>"):
            calls = self.files.setdefault(code.co_filename.removeprefix(ROOT), {})
            calls[code.co_qualname] = calls.get(code.co_qualname, 0) + 1

    @contextmanager
    def watching(self) -> Iterator[None]:
        sys.setprofile(self.note)
        try:
            yield
        finally:
            sys.setprofile(None)

    def tell(self, title: str) -> None:
        functions = sum(map(len, self.files.values()))
        total = sum(sum(calls.values()) for calls in self.files.values())
        print(f"{title}: {len(self.files)} files, {functions} functions, {total} calls")
        for name, calls in self.files.items():
            print(f"  {name:<28} {sum(calls.values()):>5} calls  {', '.join(calls)}")


def make_step(engine: Any) -> Callable[[], Any]:
    torch.manual_seed(0)
    model = fptt.nn.LSTM(1, 8, 10, readout_sizes=[16], last_only=True)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    loss = fptt.TerminalLoss(functional.cross_entropy, divergence="uniform")
    method = fptt.FPTT(model, optimizer, loss, num_chunks=4, engine=engine, max_norm=1.0)
    inputs, targets = torch.randn(16, 3, 1), torch.randint(10, (3,))
    return lambda: method.train_batch(inputs, targets)


def main() -> None:
    torch.set_num_threads(1)
    for engine in ("eager", "compiled"):
        step = make_step(engine)
        for title in ("first batch", "second batch"):
            walk = Walk()
            with walk.watching():
                step()
            walk.tell(f"{engine}, {title}")


if __name__ == "__main__":
    main()
