"""The parts of a run, what it has done so far, and all of that as one state from which it goes on bit for bit."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import fptt
from fptt._sequence import flatten_state, refill_state
from fptt.experiments.building import check_chunks, is_bare, make_fabric, make_method, make_model, make_optimizer
from fptt.experiments.checkpoints import load_field
from fptt.experiments.config import TrainConfig
from fptt.experiments.environment import Clock, MemoryMeter, environment, prepare_process
from fptt.experiments.errors import UserError
from fptt.experiments.evaluation import in_precision_of
from fptt.experiments.random_state import random_state, set_random_state
from fptt.experiments.run_folder import Weights
from fptt.experiments.schedule import Budget, Schedule
from fptt.experiments.tasks import Task, check_vocabulary, load_task
from fptt.experiments.tasks.batches import Batch

CHECKPOINT_VERSION = 2


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
    """

    def __init__(self, config: TrainConfig) -> None:
        prepare_process(config.threads, deterministic=config.deterministic)
        self.config = config
        self.fabric = make_fabric(config.accelerator, config.precision)
        torch.manual_seed(config.seed)
        self.task: Task = load_task(config, config.seed)
        self.model: nn.Module = make_model(config, self.task)
        self.optimizer = make_optimizer(config, self.model)
        check_chunks(config, self.task)
        wrapped = self.fabric.setup(self.model, self.optimizer)
        model, optimizer = (self.model, self.optimizer) if is_bare(config) else wrapped
        self.method = make_method(config, self.task, model, optimizer, self.fabric)
        average = get_ema_multi_avg_fn(config.ema_decay)
        self.average = AveragedModel(self.model, multi_avg_fn=average) if config.ema_decay else None
        self.batches = self.task.training_batches(config.batch_size, config.seed)
        self.budget, self.schedule = Budget(config), Schedule(config)
        self.best, self.totals = Best(), Totals(self.fabric.device)
        self.state: Any = None
        self.metric: float | None = None
        self.epoch = self.rows = 0
        self.seconds = 0.0
        self.environment = environment(self.fabric.device)
        self.clock, self.memory = Clock(self.fabric.device), MemoryMeter(self.fabric.device)

    @property
    def judged(self) -> nn.Module:
        """The model that is validated and tested."""
        return self.model if self.average is None else self.average.get_submodule("module")

    @property
    def epochs(self) -> float:
        """Passes over the training data so far."""
        return self.method.batches / len(self.batches)

    @property
    def fraction(self) -> float:
        """The part of the budget that is spent."""
        return self.budget.fraction(self.epochs, self.method.updates, self.seconds)

    @property
    def is_over(self) -> bool:
        """Whether the budget is spent."""
        return self.fraction >= 1.0

    def train_batch(self, batch: Batch) -> None:
        """Train on a batch, and count."""
        inputs, targets = (
            in_precision_of(self.model, part) for part in self.task.sequences(self.fabric.to_device(batch))
        )
        if self.batches.position == 1:
            self.state = self._first_state(inputs)
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

    def state_dict(self) -> dict[str, Any]:
        """Return everything that training depends on: tensors, plain values, lists and dicts of them only."""
        return {
            "version": CHECKPOINT_VERSION,
            "data": self.task.fingerprint,
            "vocabulary": None if self.task.vocabulary is None else list(self.task.vocabulary),
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "method": self.method.state_dict(),
            "precision": self.fabric.strategy.precision.state_dict(),
            "average": None if self.average is None else self.average.state_dict(),
            "batches": self.batches.state_dict(),
            "state": _flat_state(self.state),
            "schedule": self.schedule.state_dict(),
            "best": asdict(self.best),
            "totals": {"sums": self.totals.sums, "batches": self.totals.batches},
            "counters": {name: getattr(self, name) for name in ("epoch", "rows", "seconds", "metric")},
            "random": random_state(self.fabric.device),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go back to what `state_dict` returned.

        Raises:
            UserError: If it is of another version, or of other data.
            DamagedCheckpointError: If a field is missing or does not fit; load another state, or drop the run.
        """
        if state.get("version") != CHECKPOINT_VERSION:
            raise UserError(f"the checkpoint must have version {CHECKPOINT_VERSION}, got {state.get('version')!r}.")
        check_vocabulary(load_field(state, "vocabulary", lambda value: value), self.task)
        if load_field(state, "data", str) != self.task.fingerprint:
            raise UserError(f"the data of the task {self.task.name!r} are not those that the run was trained on.")
        for name, load in self._loaders().items():
            load_field(state, name, load)

    def _loaders(self) -> dict[str, Callable[[Any], None]]:
        """Return what takes each field of a state."""
        loaders: dict[str, Callable[[Any], None]] = {
            "model": self.model.load_state_dict,  # pyright: ignore[reportAssignmentType]
            "optimizer": self._load_optimizer,
            "method": self.method.load_state_dict,
            "precision": self.fabric.strategy.precision.load_state_dict,
            "batches": self.batches.load_state_dict,
            "schedule": self.schedule.load_state_dict,
            "state": self._load_state,
            "best": self._load_best,
            "totals": self._load_totals,
            "counters": self._load_counters,
            "random": lambda states: set_random_state(states, self.fabric.device),
        }
        if self.average is not None:
            loaders["average"] = self.average.load_state_dict  # pyright: ignore[reportArgumentType]
        return loaders

    def _load_optimizer(self, saved: dict[str, Any]) -> None:
        self.optimizer.load_state_dict(saved)
        for param, entries in self.optimizer.state.items():
            for name, value in entries.items():
                if isinstance(value, Tensor) and value.dim() and value.shape != param.shape:
                    raise ValueError(f"{name} has shape {tuple(value.shape)}, its parameter {tuple(param.shape)}")

    def _load_state(self, tensors: list[Tensor] | None) -> None:
        self.state = self._nested_state(tensors)

    def _load_best(self, saved: dict[str, Any]) -> None:
        best = Best(**saved)
        for weights in (best.weights, best.averages):
            if weights and not _fit(weights, self.model.state_dict()):
                raise ValueError("the weights do not fit the model")
        if (best.metric is None) != (not best.weights):
            raise ValueError("there are weights if and only if there is a metric")
        self.best = best

    def _load_totals(self, saved: dict[str, Any]) -> None:
        self.totals.sums = saved["sums"].to(self.totals.sums).reshape(len(Totals.NAMES))
        self.totals.batches = int(saved["batches"])

    def _load_counters(self, saved: dict[str, Any]) -> None:
        self.epoch, self.rows, self.seconds = int(saved["epoch"]), int(saved["rows"]), float(saved["seconds"])
        self.metric = None if saved["metric"] is None else float(saved["metric"])

    def _nested_state(self, tensors: list[Tensor] | None) -> Any:
        """Return the tensors of a recurrent state in the nest that the model gives them."""
        if tensors is None:
            return None
        inputs, _ = self.task.sequences(self.fabric.to_device(self.task.train[0]))
        return refill_state(self._first_state(inputs), tensors)

    def _first_state(self, inputs: Tensor) -> Any:
        """Return the state that a stream begins with; independent sequences leave it to the model."""
        return self.model.initial_state(inputs) if self.batches.carries_state else None  # pyright: ignore


def _flat_state(state: Any) -> list[Tensor] | None:
    return None if state is None else flatten_state(state)


def _fit(weights: Weights, own: Weights) -> bool:
    """Tell whether tensors have the names, shapes and types of others."""
    described = [{name: (tensor.shape, tensor.dtype) for name, tensor in found.items()} for found in (weights, own)]
    return described[0] == described[1]


def copy_weights(model: nn.Module) -> Weights:
    """Return a copy of all weights on the processor."""
    return {name: tensor.detach().cpu().clone() for name, tensor in model.state_dict().items()}
