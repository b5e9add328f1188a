"""The parts of a run, and what it has done so far."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import fptt
from fptt.experiments.configs.config import TrainConfig
from fptt.experiments.process.machine import Clock, MemoryMeter, environment, prepare_process
from fptt.experiments.tasks.batches import Samples
from fptt.experiments.tasks.registry import load_task
from fptt.experiments.tasks.task import Task
from fptt.experiments.training.build import (
    check_chunks,
    check_precision,
    make_fabric,
    make_method,
    make_model,
    make_optimizer,
)
from fptt.experiments.training.evaluation import in_precision_of
from fptt.experiments.training.folder import Weights
from fptt.experiments.training.replicas import Ranks
from fptt.experiments.training.schedule import Budget, Schedule


@dataclass
class Best:
    """The weights of the epoch with the best validation metric, the later one of equals."""

    metric: float | None = None
    epoch: int = 0
    weights: Weights = field(default_factory=dict)
    averages: Weights = field(default_factory=dict)


class Totals:
    """What the epoch under way has added up so far, on the device, so that nothing waits for it.

    Attributes:
        sums: Of loss, penalty and gradient norm, (3,).
        batches: How many.
    """

    NAMES = ("train_loss", "penalty", "gradient_norm")

    def __init__(self, device: torch.device) -> None:
        self.sums = torch.zeros(len(self.NAMES), device=device)
        self.batches = 0

    def add(self, result: fptt.BatchResult) -> None:
        """Add one batch."""
        self.sums = self.sums + torch.stack([result.loss, result.penalty, result.gradient_norm])
        self.batches += 1

    def means(self) -> dict[str, float]:
        """Return the means over the batches."""
        return dict(zip(self.NAMES, (self.sums / max(self.batches, 1)).tolist(), strict=True))

    def clear(self) -> None:
        """Begin a new epoch."""
        self.sums, self.batches = torch.zeros_like(self.sums), 0


class Run:
    """The parts of a run, and what it has done so far.

    Attributes:
        judged: The model that is validated and tested: the trained one, or the moving average of its weights.
        state: The recurrent state that the next batch of a stream begins with.
        rows: Rows of metrics so far.
        metric: Of the last validation.
        fraction: The part of the budget that is spent, the same in all processes.
    """

    def __init__(self, config: TrainConfig) -> None:
        prepare_process(config.threads, deterministic=config.deterministic)
        self.config = config
        self.fabric = make_fabric(config.accelerator, config.precision, config.devices, config.num_nodes)
        torch.manual_seed(config.seed)
        self.task: Task = load_task(config, config.seed)
        self.model: nn.Module = make_model(config, self.task)
        self.optimizer = make_optimizer(config, self.model)
        check_chunks(config, self.task)
        check_precision(config)
        self.ranks = Ranks(self.fabric, config)  # starts the others; what is wrong was told before, once
        prepare_process(config.threads, deterministic=config.deterministic)
        self.fabric.strategy.precision.convert_module(self.model).to(self.fabric.device)
        parallel = self.ranks.parallel()
        self.method = make_method(config, self.task, self.model, self.optimizer, fabric=self.fabric, parallel=parallel)
        self.ranks.seed()
        average = get_ema_multi_avg_fn(config.ema_decay)
        self.average = AveragedModel(self.model, multi_avg_fn=average) if config.ema_decay else None
        self.batches = self.task.training_batches(config.batch_size, config.seed)
        self.budget, self.schedule = Budget(config), Schedule(config)
        self.best, self.totals = Best(), Totals(self.fabric.device)
        self.state: Any = None
        self.metric: float | None = None
        self.epoch = self.rows = 0
        self.seconds = self.fraction = 0.0
        self.environment = environment(self.fabric.device)
        self.clock = Clock(self.fabric.device, is_alone=self.ranks.size == 1)
        self.memory = MemoryMeter(self.fabric.device)

    @property
    def judged(self) -> nn.Module:
        """The model that is validated and tested."""
        return self.model if self.average is None else self.average.get_submodule("module")

    @property
    def epochs(self) -> float:
        """Passes over the training data so far."""
        return self.method.batches / len(self.batches)

    @property
    def is_over(self) -> bool:
        """Whether the budget is spent."""
        return self.fraction >= 1.0

    def count(self, *, is_asked: bool = False, is_due: bool = False) -> tuple[bool, bool]:
        """Agree with the other processes on the part of the budget that is spent, and on what comes next.

        Args:
            is_asked: Whether this process is asked to stop.
            is_due: Whether it is time for a checkpoint.

        Returns:
            Whether any is asked to stop, and whether it is time in the first one.
        """
        spent = self.budget.fraction(self.epochs, self.method.updates + self.method.skipped, self.seconds)
        self.fraction, is_asked, is_due = self.ranks.agree(spent, is_asked=is_asked, is_due=is_due)
        return is_asked, is_due

    def train_batch(self, batch: Samples) -> None:
        """Train on this process's part of a batch."""
        inputs, targets = self.ranks.part(
            *(in_precision_of(self.model, part) for part in self.task.sequences(self.fabric.to_device(batch))),
            per_step=self.task.has_step_targets,
        )
        if self.batches.position == 1:
            self.state = self.first_state(inputs)
        start = self.clock.now()
        result = self.method.train_batch(inputs, targets, self.state)
        if self.average is not None:
            self.average.update_parameters(self.model)
        self.seconds += self.clock.now() - start
        self.state = result.state if self.batches.carries_state else None
        self.totals.add(result)

    def averages(self) -> Weights:
        """Return a copy of FPTT's averages W̄, if the method keeps some."""
        if self.method.regularizer is None:
            return {}
        with self.method.regularizer.averaged():
            return copy_weights(self.model)

    def first_state(self, inputs: Tensor) -> Any:
        """Return the state that a stream begins with; independent sequences leave it to the model."""
        return self.model.initial_state(inputs) if self.batches.carries_state else None  # pyright: ignore


def copy_weights(model: nn.Module) -> Weights:
    """Return a copy of all weights on the processor."""
    return {name: tensor.detach().cpu().clone() for name, tensor in model.state_dict().items()}
