"""The parts of a run, what it has done so far, and all of that as one state from which it goes on bit for bit."""

from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import fptt
from fptt._sequence import flatten_state, map_state
from fptt.experiments.building import check_chunks, make_fabric, make_method, make_model, make_optimizer
from fptt.experiments.config import TrainConfig
from fptt.experiments.environment import Clock, MemoryMeter, environment, prepare_process
from fptt.experiments.errors import UserError
from fptt.experiments.run_folder import Weights
from fptt.experiments.schedule import Budget, Schedule
from fptt.experiments.tasks import Task, check_vocabulary, load_task
from fptt.experiments.tasks.batches import Batch

CHECKPOINT_VERSION = 1


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
        prepare_process(config.threads)
        self.config = config
        self.fabric = make_fabric(config.accelerator)
        torch.manual_seed(config.seed)
        self.task: Task = load_task(config, config.seed)
        self.model: nn.Module = make_model(config, self.task)
        self.optimizer = make_optimizer(config, self.model)
        check_chunks(config, self.task)
        wrapped = self.fabric.setup(self.model, self.optimizer)
        is_bare = config.engine == "compiled" and config.method != "bptt"
        model, optimizer = (self.model, self.optimizer) if is_bare else wrapped
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
        inputs, targets = self.task.sequences(self.fabric.to_device(batch))
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
            "vocabulary": None if self.task.vocabulary is None else list(self.task.vocabulary),
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "method": self.method.state_dict(),
            "average": None if self.average is None else self.average.state_dict(),
            "batches": self.batches.state_dict(),
            "state": _flat_state(self.state),
            "schedule": self.schedule.state_dict(),
            "best": asdict(self.best),
            "totals": {"sums": self.totals.sums, "batches": self.totals.batches},
            "counters": {name: getattr(self, name) for name in ("epoch", "rows", "seconds", "metric")},
            "random": _random_state(self.fabric.device),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go back to what `state_dict` returned.

        Raises:
            UserError: If it is of another version, or of a text with another vocabulary.
            KeyError: If something is missing.
        """
        if state["version"] != CHECKPOINT_VERSION:
            raise UserError(f"the checkpoint must have version {CHECKPOINT_VERSION}, got {state['version']}.")
        check_vocabulary(state["vocabulary"], self.task)
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.method.load_state_dict(state["method"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        self.batches.load_state_dict(state["batches"])
        self.schedule.load_state_dict(state["schedule"])
        self.state = self._nested_state(state["state"])
        self.best = Best(**state["best"])
        self.totals.sums = state["totals"]["sums"].to(self.fabric.device)
        self.totals.batches = state["totals"]["batches"]
        for name, value in state["counters"].items():
            setattr(self, name, value)
        _set_random_state(state["random"], self.fabric.device)

    def _nested_state(self, tensors: list[Tensor] | None) -> Any:
        """Return the tensors of a recurrent state in the nest that the model gives them."""
        if tensors is None:
            return None
        inputs, _ = self.task.sequences(self.fabric.to_device(self.task.train[0]))
        following = iter(tensors)
        return map_state(lambda _: next(following).to(self.fabric.device), self._first_state(inputs))

    def _first_state(self, inputs: Tensor) -> Any:
        """Return the state that a stream begins with; independent sequences leave it to the model."""
        return self.model.initial_state(inputs) if self.batches.carries_state else None  # pyright: ignore


def _flat_state(state: Any) -> list[Tensor] | None:
    return None if state is None else flatten_state(state)


def _random_state(device: torch.device) -> list[Tensor]:
    states = [torch.get_rng_state()]
    return [*states, torch.cuda.get_rng_state(device)] if device.type == "cuda" else states


def _set_random_state(states: list[Tensor], device: torch.device) -> None:
    torch.set_rng_state(states[0].cpu())
    if device.type == "cuda":
        torch.cuda.set_rng_state(states[1].cpu(), device)


def copy_weights(model: nn.Module) -> Weights:
    """Return a copy of all weights on the processor."""
    return {name: tensor.detach().cpu().clone() for name, tensor in model.state_dict().items()}
