"""The processes of a run: started, synchronized, and given their parts of every batch."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from lightning_fabric import Fabric
from lightning_fabric.strategies.launchers.subprocess_script import _SubprocessScriptLauncher
from torch import Tensor
from torch.utils._pytree import tree_map_only

import fptt
from fptt._parallel.collectives import reporting_lost_processes
from fptt.experiments.configs.config import TrainConfig
from fptt.experiments.process.errors import ReportedError, UserError, one_line
from fptt.experiments.process.signals import ended_by_signals
from fptt.experiments.training.build import check_precision, make_fabric

STARTED = "WORLD_SIZE"
"""Set by torchrun, `fabric run` and Fabric itself in every process of a run: their number."""

BATCH_DIM = 1
"""Of inputs and of targets of steps; labels of sequences have the batch in dim 0."""


def launch(config: TrainConfig) -> "Processes":
    """Start the processes of a run, unless somebody has, and return them as each of them sees them.

    Fabric starts the others by running the same command once more in each, up to this very call: whatever comes before
    it in the program is done in all of them, and what comes after finds them all there.

    Raises:
        UserError: If device or precision cannot be used, or another number of processes was started.
    """
    size = config.devices * config.num_nodes
    started = os.environ.get(STARTED)
    if started is not None and int(started) != size:
        raise UserError(f"devices times num_nodes must be the {started} processes that were started, got {size}.")
    check_precision(config)
    fabric = make_fabric(config.accelerator, config.precision, config.devices, config.num_nodes)
    if size > 1 and "LT_CLI_USED" not in os.environ:  # `fabric run` has started them, and refuses a second launch
        # each waits for the others, half an hour for one that an early Ctrl-C has ended, in a call that hears no signal
        with ended_by_signals():
            fabric.launch()
        # Fabric kills the first process when another has ended, but the first has to report that and save what there
        # is. On CPUs gloo notices a lost process by itself; NCCL would wait for it, so there Fabric keeps watching.
        if fabric.device.type == "cpu" and isinstance(fabric.strategy.launcher, _SubprocessScriptLauncher):
            fabric.strategy.launcher.procs.clear()
    return Processes(fabric)


class Processes:
    """The processes that train one model together, each on its part of every batch; a single one is its own leader.

    Attributes:
        fabric: Device, precision and communication of this process.
        size: The number of processes.
        rank: The number of this one, from 0.
    """

    def __init__(self, fabric: Fabric) -> None:
        self.fabric = fabric
        self.size, self.rank = fabric.world_size, fabric.global_rank

    @property
    def is_leader(self) -> bool:
        """Whether this process writes and prints."""
        return self.fabric.is_global_zero

    def parallel(self, config: TrainConfig) -> fptt.DataParallel | None:
        """Return how a method shares its updates; None for one process."""
        return None if self.size == 1 else fptt.DataParallel(sync_every=config.sync_every, check=config.check_sync)

    def part(self, batch: fptt.Batch, *, per_step: bool) -> fptt.Batch:
        """Return every `size`-th sequence of a batch; a batch with fewer of them than processes goes to all of them."""
        if self.size == 1 or batch.inputs.shape[BATCH_DIM] < self.size:
            return batch
        own = slice(self.rank, None, self.size)
        if per_step or batch.progress is not None:
            return tree_map_only(Tensor, lambda tensor: tensor[:, own], batch)  # all have the lanes there
        mask = None if batch.mask is None else batch.mask[:, own]
        return fptt.Batch(batch.inputs[:, own], batch.targets[own], mask)

    def agree(self, spent: float, *, is_asked: bool, is_due: bool) -> tuple[float, bool, bool]:
        """Return what the leader has spent, whether any process is asked to stop, and whether the leader is due.

        Seconds and signals differ between processes; decisions taken on them must not, or collectives would not match.
        """
        if self.size == 1:
            return spent, is_asked, is_due
        own = (spent * self.is_leader, is_asked, is_due and self.is_leader)
        sums = torch.tensor(own, dtype=torch.float64, device=self.fabric.device)
        with reporting_lost_processes():
            dist.all_reduce(sums)
        return float(sums[0]), bool(sums[1]), bool(sums[2])

    def from_leader(self, value: Any) -> Any:
        """Return the leader's value."""
        with reporting_lost_processes():
            return self.fabric.broadcast(value)

    def gather(self, value: Any) -> list[Any]:
        """Return the values of all processes, in the leader; nothing in the others."""
        if self.size == 1:
            return [value]
        values: list[Any] | None = [None] * self.size if self.is_leader else None
        with reporting_lost_processes():
            dist.gather_object(value, values)
        return values or []

    @contextmanager
    def reporting(self) -> Iterator[None]:
        """Raise an error of one process in all of them, reported by the leader alone; nothing inside may communicate.

        Raises:
            UserError: If something inside is wrong, here or in another process.
        """
        if self.size == 1:
            yield
            return
        error: Exception | None = None
        try:
            yield
        except (UserError, ValueError, RuntimeError) as raised:
            error = raised
        messages: list[str | None] = [None] * self.size
        with reporting_lost_processes():
            dist.all_gather_object(messages, None if error is None else one_line(error))
        rank, message = next(((rank, text) for rank, text in enumerate(messages) if text is not None), (0, None))
        if message is None:
            return
        where = f"process {rank}: " if rank else ""  # that all processes have it, the leader too, is the usual case
        kind = UserError if self.is_leader else ReportedError
        raise kind(where + message) from error
