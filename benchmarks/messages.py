"""Count what two processes send each other for an update, by `sync_every`, and print it as a table.

    python benchmarks/messages.py

FPTT with eight chunks, LSTM-128, Adam, on random batches of two times 32 sequences of 64 steps; gloo on this machine.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import median
from typing import Any, NamedTuple
from unittest import mock

import torch
import torch.distributed as dist
from torch import Tensor, multiprocessing

import fptt

NUM_CHUNKS, NUM_BATCHES = 8, 8


class Traffic(NamedTuple):
    """The cost of an update for one process.

    Attributes:
        messages: Sums and rows that it sends.
        size: Their bytes.
        seconds: Of the whole update.
    """

    messages: float
    size: float
    seconds: float


def main() -> None:
    """Measure every value in turn, in fresh processes, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sync-every", type=int, nargs="+", default=[1, 2, 4, 8, 16], help="updates between two syncs")
    values = parser.parse_args().sync_every
    print("| sync_every | messages an update | kilobytes an update | of those with 1 | ms an update |")
    print("| --- | --- | --- | --- | --- |")
    first = None
    for value in values:
        found = measure(value)
        first = first or found
        share, seconds = found.size / first.size, 1000 * found.seconds
        print(f"| {value} | {found.messages:.2f} | {found.size / 1000:.1f} | {share:.2f} | {seconds:.2f} |", flush=True)


def measure(sync_every: int) -> Traffic:
    """Train in two processes; return the traffic of the first one."""
    with tempfile.TemporaryDirectory() as folder:
        multiprocessing.spawn(train, (folder, sync_every), nprocs=2)  # pyright: ignore[reportPrivateImportUsage]
        return Traffic(*torch.load(f"{folder}/traffic.pt", weights_only=True))


def train(number: int, folder: str, sync_every: int) -> None:
    """Train in one of the two processes; the first saves its traffic."""
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=number, world_size=2)
    model = fptt.nn.LSTM(1, 128, 10, last_only=True)
    method = fptt.FPTT(
        model,
        torch.optim.Adam(model.parameters(), 1e-3),
        fptt.TerminalLoss(torch.nn.functional.cross_entropy),
        num_chunks=NUM_CHUNKS,
        parallel=fptt.DataParallel(sync_every=sync_every),
    )
    batch = torch.randn(64, 32, 1), torch.randint(10, (32,))
    method.train_batch(*batch)  # threads, memory, W̄ and λ
    seconds = []
    with counted() as sizes:
        for _ in range(NUM_BATCHES):
            start = time.perf_counter()
            method.train_batch(*batch)
            seconds.append(time.perf_counter() - start)
    updates = NUM_CHUNKS * NUM_BATCHES
    if number == 0:
        torch.save([len(sizes) / updates, sum(sizes) / updates, median(seconds) / NUM_CHUNKS], f"{folder}/traffic.pt")
    dist.destroy_process_group()


@contextmanager
def counted() -> Iterator[list[int]]:
    """Yield a list that gets the bytes of every message."""
    sizes: list[int] = []
    add_up, gather = dist.all_reduce, dist.all_gather

    def all_reduce(tensor: Tensor, *arguments: Any, **options: Any) -> Any:
        sizes.append(tensor.nbytes)
        return add_up(tensor, *arguments, **options)

    def all_gather(tensors: list[Tensor], tensor: Tensor, *arguments: Any, **options: Any) -> Any:
        sizes.append(tensor.nbytes)
        return gather(tensors, tensor, *arguments, **options)

    with mock.patch.object(dist, "all_reduce", all_reduce), mock.patch.object(dist, "all_gather", all_gather):
        yield sizes


if __name__ == "__main__":
    main()
