"""Functions run in several processes that can talk to each other."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import multiprocessing

from tests.forks import CONTEXT


def run_in_processes(function: Callable[[int], Any], folder: Path, size: int = 2) -> list[Any]:
    """Return what a function of a module gives in each process; it is called with the number of the process."""
    multiprocessing.start_processes(_run, (function, str(folder), size), size, start_method=CONTEXT.get_start_method())
    return [torch.load(folder / f"result-{number}.pt", weights_only=False) for number in range(size)]


def _run(number: int, function: Callable[[int], Any], folder: str, size: int) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=number, world_size=size)
    torch.save(function(number), Path(folder) / f"result-{number}.pt")
    dist.destroy_process_group()
