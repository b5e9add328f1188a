"""The processes of a run: which of them leads, how a batch is shared out, and what they tell each other."""

import os
from typing import Any

import torch
import torch.distributed as dist
from lightning_fabric import Fabric
from lightning_fabric.strategies.launchers.subprocess_script import _SubprocessScriptLauncher
from torch import Tensor

import fptt
from fptt._parallel.collectives import lost_processes_told
from fptt.experiments.configs.config import TrainConfig
from fptt.experiments.process.errors import UserError

STARTED = "WORLD_SIZE"
"""Tells the processes of a run, whoever has started them, how many they are."""

BATCH_DIM = 1
"""Of inputs and of targets of steps; labels of sequences have the batch in dim 0."""


class Ranks:
    """The processes that share a run, started if there are several and nobody has started them.

    Attributes:
        size: How many.
        number: Of this one, from 0; 0 leads.
    """

    def __init__(self, fabric: Fabric, config: TrainConfig) -> None:
        self.fabric, self.config = fabric, config
        _check_started(config.devices * config.num_nodes)
        if config.devices * config.num_nodes > 1 and "LT_CLI_USED" not in os.environ:  # `fabric run` has started them
            fabric.launch()
            _take_off_watch(fabric)
        self.size, self.number = fabric.world_size, fabric.global_rank

    @property
    def leads(self) -> bool:
        """Whether this process writes and speaks."""
        return self.number == 0

    def parallel(self) -> fptt.DataParallel | None:
        """Return how the method shares its updates; None for one process."""
        if self.size == 1:
            return None
        return fptt.DataParallel(sync_every=self.config.sync_every, check=self.config.check_sync)

    def seed(self) -> None:
        """Give every process random numbers of its own from here on, as for dropout; the first keeps those it has."""
        if self.number:
            torch.manual_seed(self.config.seed + 2**31 * self.number)

    def part(self, inputs: Tensor, targets: Tensor, *, per_step: bool) -> tuple[Tensor, Tensor]:
        """Return every `size`-th sequence of a batch; each takes a batch with fewer of them than processes whole."""
        if inputs.shape[BATCH_DIM] < self.size:
            return inputs, targets
        own = slice(self.number, None, self.size)
        return inputs[:, own], targets[:, own] if per_step else targets[own]

    def agree(self, spent: float, *, is_asked: bool, is_due: bool) -> tuple[float, bool, bool]:
        """Return what the first process has spent, whether any is asked to stop, and whether the first is due."""
        if self.size == 1:
            return spent, is_asked, is_due
        own = (spent * self.leads, is_asked, is_due and self.leads)
        told = torch.tensor(own, dtype=torch.float64, device=self.fabric.device)
        with lost_processes_told():
            dist.all_reduce(told)
        return float(told[0]), bool(told[1]), bool(told[2])

    def from_leader(self, value: Any) -> Any:
        """Return what the first process has."""
        if self.size == 1:
            return value
        values = [value]
        with lost_processes_told():
            dist.broadcast_object_list(values, 0)
        return values[0]

    def gather(self, value: Any) -> list[Any]:
        """Return what the processes have, in the first one; nothing in the others."""
        if self.size == 1:
            return [value]
        values: list[Any] | None = [None] * self.size if self.leads else None
        with lost_processes_told():
            dist.gather_object(value, values)
        return values or []


def _take_off_watch(fabric: Fabric) -> None:
    """Keep Fabric from killing the first process when another has ended: gloo notices it, and the run has to say so.

    Nccl would wait for the lost one.
    """
    if fabric.device.type == "cpu" and isinstance(fabric.strategy.launcher, _SubprocessScriptLauncher):
        fabric.strategy.launcher.procs.clear()  # those that are watched


def _check_started(size: int) -> None:
    """Raise UserError if somebody has started another number of processes."""
    started = os.environ.get(STARTED)
    if started is not None and int(started) != size:
        raise UserError(f"devices times num_nodes must be the {started} processes that were started, got {size}.")
