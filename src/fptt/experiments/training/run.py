"""One training run: its parts, its progress, and all of that as a state from which it resumes bitwise."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import fptt
from fptt._parallel.collectives import average_
from fptt._random_state import RandomState
from fptt._sequence import flatten_state, refill_state
from fptt.experiments.configs.config import TrainConfig, is_config_of
from fptt.experiments.process.errors import UserError
from fptt.experiments.process.machine import Clock, MemoryMeter, environment, prepare_process
from fptt.experiments.tasks.batches import Samples, StaggeredBatches
from fptt.experiments.tasks.registry import check_vocabulary, load_task
from fptt.experiments.tasks.task import Task
from fptt.experiments.training.build import check_chunks, make_loss, make_method, make_model, make_optimizer
from fptt.experiments.training.checkpoints import load_field
from fptt.experiments.training.evaluation import in_precision_of
from fptt.experiments.training.folder import Weights, are_same_data
from fptt.experiments.training.processes import Processes
from fptt.experiments.training.schedule import Schedule, spent_fraction

CHECKPOINT_VERSION = 4

PER_PROCESS = ("state", "random")
"""Fields that differ between the processes of a run, because their sequences do."""
PER_PROCESS_WITH_LOCAL_UPDATES = ("model", "optimizer", "method", "average")
"""Fields that differ too between two synchronizations, where `sync_every` is above 1."""


@dataclass
class Counters:
    """Counters of a run that neither method nor schedule has.

    Attributes:
        epoch: Epochs that have ended.
        rows: Rows of metrics so far.
        seconds: Of training so far.
        metric: Of the last validation.
        saved_at: Updates at the last checkpoint to which a rollback may go back.
        rollbacks: How often the run went back to a checkpoint; each made the learning rate smaller.
        peak_memory_bytes: The peak of all processes of the run so far; 0 in older checkpoints.
        training_memory_bytes: How far a peak was above the memory before training, likewise.
    """

    epoch: int = 0
    rows: int = 0
    seconds: float = 0.0
    metric: float | None = None
    saved_at: int = 0
    rollbacks: int = 0
    peak_memory_bytes: int = 0
    training_memory_bytes: int = 0

    @classmethod
    def load(cls, saved: dict[str, Any]) -> "Counters":
        """Return the counters of `asdict`, checked to be numbers."""
        kinds = {"seconds": float, "metric": lambda value: None if value is None else float(value)}
        return cls(**{name: kinds.get(name, int)(value) for name, value in saved.items()})


@dataclass
class Best:
    """The weights of the epoch with the best validation metric, the later one of equals."""

    metric: float | None = None
    epoch: int = 0
    weights: Weights = field(default_factory=dict)
    averages: Weights = field(default_factory=dict)


@dataclass
class EpochTotals:
    """Sums over the batches of the current epoch, kept on the device, so that nothing waits for it.

    Attributes:
        sums: Of loss, per lane that is not idle, penalty and gradient norm, (3,).
        batches: The number of batches with a target.
        skipped: How many of them were skipped whole, and are not in the sums.
    """

    sums: Tensor
    batches: int = 0
    skipped: int = 0

    def add(self, result: fptt.BatchResult, progress: fptt.Progress | None) -> None:
        """Add one batch, unless it has no target at all.

        With staggered lanes `progress` is where they stand: idle ones count 0 in the loss of the batch.
        """
        if not result.updates:  # its loss is NaN
            self.skipped += result.skipped > 0
            self.batches += result.skipped > 0
            return
        loss = result.loss
        if progress is not None:
            is_busy = progress.position > 0
            loss = loss * (is_busy.numel() / is_busy.sum()).to(loss.dtype)
        self.sums = self.sums + torch.stack([loss, result.penalty, result.gradient_norm])
        self.batches += 1

    def means(self) -> dict[str, float]:
        """Return the means over the batches, by their column in metrics.csv; NaN of none."""
        names = ("train_loss", "penalty", "gradient_norm")
        return dict(zip(names, (self.sums / (self.batches - self.skipped)).tolist(), strict=True))

    def clear(self) -> None:
        """Begin a new epoch."""
        self.sums, self.batches, self.skipped = torch.zeros_like(self.sums), 0, 0


class Run:
    """The parts and the progress of one training run.

    Attributes:
        state: The recurrent state with which the next batch of a stream begins; None at the start of an epoch.
        fraction: The part of the budget that is spent, the same in all processes.
        saved_time: When this process last saved a checkpoint, or began, by `time.monotonic`.
        environment: Where it is trained now: device, versions, commit, threads, and what its seconds are.
        earlier_environments: Those before it was resumed in another one.
    """

    def __init__(self, config: TrainConfig, processes: Processes) -> None:
        # after the launch, which sets the threads of a process too, and before any arithmetic: worker threads inherit
        # how denormal numbers are treated
        prepare_process(config.threads, deterministic=config.deterministic)
        self.config, self.processes, self.fabric = config, processes, processes.fabric
        torch.manual_seed(config.seed)
        with processes.reporting():
            self.task = load_task(config, config.seed)
            check_chunks(config, self.task)
            self.model: nn.Module = make_model(config, self.task)
            self.optimizer = make_optimizer(config, self.model)
            loss = make_loss(config, self.task)
        self.fabric.strategy.precision.convert_module(self.model).to(self.fabric.device)
        self.method = make_method(
            config, self.model, self.optimizer, loss, fabric=self.fabric, parallel=processes.parallel(config)
        )
        if processes.rank:
            # numbers of its own from here on, as for dropout; the leader's are those of a run of one process
            torch.manual_seed(config.seed + 2**31 * processes.rank)
        average = get_ema_multi_avg_fn(config.ema_decay)
        self.average = AveragedModel(self.model, multi_avg_fn=average) if config.ema_decay else None
        self.is_staggered = config.lanes == "staggered" and config.method != "bptt"
        staggered = config.num_chunks if self.is_staggered else None
        self.batches = self.task.training_batches(config.batch_size, config.seed, staggered=staggered)
        self.schedule = Schedule(config)
        self.progress, self.best = Counters(), Best()
        self.totals = EpochTotals(torch.zeros(3, device=self.fabric.device))
        self.state: Any = None
        self.fraction = 0.0
        self.saved_time = time.monotonic()
        self.clock = Clock(self.fabric.device, is_alone=processes.size == 1)
        self.environment = {**environment(self.fabric.device), "seconds_clock": self.clock.kind}
        self.earlier_environments: list[dict[str, Any]] = []
        self.memory = MemoryMeter(self.fabric.device)

    @property
    def evaluated_model(self) -> nn.Module:
        """The model that is validated and tested: the trained one, or the moving average of its weights."""
        return self.model if self.average is None else self.average.get_submodule("module")

    @property
    def epochs(self) -> float:
        """Passes over the training data so far."""
        return self.method.batches / len(self.batches)

    @property
    def is_over(self) -> bool:
        """Whether the budget is spent or validation has not improved for too long; an epoch under way is completed."""
        return not self.totals.batches and (self.fraction >= 1.0 or self.schedule.is_stopped_early)

    def spent(self) -> float:
        """Return the part of the budget that this process has spent."""
        updates = self.method.updates + self.method.skipped
        return spent_fraction(self.config, self.epochs, updates, self.progress.seconds)

    # -- training ----------------------------------------------------------------------------------------------------

    def train_batch(self, batch: Samples | fptt.Batch) -> None:
        """Train on this process's part of a batch, at the learning rate of this part of the run."""
        rate = self.schedule.rate(self.fraction, self.progress.rollbacks)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        batch = self.fabric.to_device(batch)
        if not self.is_staggered:
            batch = self.task.batch(batch)
        assert isinstance(batch, fptt.Batch)
        own = self.processes.part(batch, per_step=self.task.has_step_targets)
        inputs, targets = (in_precision_of(self.model, part) for part in own[:2])
        if self.state is None:
            self.state = self._first_state(inputs)
        start = self.clock.now()
        if self.is_staggered:  # where each lane stands comes with the batches of a stream only
            result = next(self.method.train_stream([own._replace(inputs=inputs, targets=targets)], self.state))
        else:
            result = self.method.train_batch(inputs, targets, self.state, mask=own.mask)
        if self.average is not None:
            self.average.update_parameters(self.model)
        self.progress.seconds += self.clock.now() - start
        self.state = result.state if self.carries_state else None
        self.totals.add(result, batch.progress)

    def sync(self) -> None:
        """Make the weights, and all averages of them, the same in all processes; local updates let them differ."""
        self.method.sync()
        if self.average is not None and self.processes.size > 1 and self.config.sync_every > 1:
            average_([param.detach() for param in self.average.parameters()], None)

    @contextmanager
    def measuring_memory(self) -> Iterator[None]:
        """Measure the memory of what is done inside, however that ends."""
        self.memory.start()
        try:
            yield
        finally:
            self.note_memory()

    def note_memory(self) -> None:
        """Note the peak since the measuring began, if none before was higher, also in a run that was resumed."""
        self.memory.stop()
        for name, size in self.memory.sizes().items():
            setattr(self.progress, name, max(getattr(self.progress, name), size))

    @property
    def carries_state(self) -> bool:
        """Whether sequences go on from one batch to the next."""
        return self.task.is_stream or self.is_staggered

    def _first_state(self, inputs: Tensor) -> Any:
        """Return the state with which an epoch begins, explicitly, so that no step is compiled for None besides.

        Sequences that begin and end with their batch leave it to the model.
        """
        return self.model.initial_state(inputs) if self.carries_state else None  # pyright: ignore[reportCallIssue]

    def select(self, metric: float) -> bool:
        """Note the validation metric of an epoch; keep the weights and return True if none before was better."""
        best, task = self.best.metric, self.task
        # an equal metric replaces the weights, which were trained longer; plateaus and early stopping do not count it
        self.schedule.observe(is_better=best is None or not task.is_at_least_as_good(best, metric))
        if best is not None and not task.is_at_least_as_good(metric, best):
            return False
        averages: Weights = {}
        if self.method.regularizer is not None:
            with self.method.regularizer.averaged():
                averages = _copied_weights(self.model)
        self.best = Best(metric, self.progress.epoch, _copied_weights(self.evaluated_model), averages)
        return True

    # -- checkpoints -------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return everything that training depends on: tensors, plain values, lists and dicts of them only.

        Every process must call it; the leader's has what differs in the other processes in its field `others`.
        """
        state = {
            "version": CHECKPOINT_VERSION,
            "config": self.config.to_yaml(),
            "data": self.task.fingerprint,
            "vocabulary": None if self.task.vocabulary is None else list(self.task.vocabulary),
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "method": self.method.state_dict(),
            "precision": self.fabric.strategy.precision.state_dict(),
            "average": None if self.average is None else self.average.state_dict(),
            "batches": self.batches.state_dict(),
            # without its structure, such as a NamedTuple, which `weights_only` would refuse; the model knows it
            "state": None if self.state is None else flatten_state(self.state),
            "schedule": self.schedule.state_dict(),
            "best": asdict(self.best),
            "totals": {name: getattr(self.totals, name) for name in ("sums", "batches", "skipped")},
            "progress": asdict(self.progress),
            "environments": [*self.earlier_environments, self.environment],
            "random": RandomState.capture(self.fabric.device, include_others=True).state_dict(),
        }
        names = PER_PROCESS if self.config.sync_every == 1 else (*PER_PROCESS, *PER_PROCESS_WITH_LOCAL_UPDATES)
        _, *others = self.processes.gather({name: state[name] for name in names}) or [None]
        return {**state, "others": others}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned.

        Raises:
            UserError: If it is of another version, another config, or other data.
            DamagedCheckpointError: If a field is missing or does not fit; load another state, or drop the run.
        """
        check_origin(state, self.config, self.task)
        own = load_field(state, "others", lambda others: self._own_state(state, others))
        load_field(own, "model", self.model.load_state_dict)
        load_field(own, "optimizer", self._load_optimizer)
        load_field(own, "method", self.method.load_state_dict)
        load_field(own, "precision", self.fabric.strategy.precision.load_state_dict)
        if self.average is not None:
            load_field(own, "average", self.average.load_state_dict)
        load_field(own, "batches", self.batches.load_state_dict)
        load_field(own, "schedule", self.schedule.load_state_dict)
        self.state = load_field(own, "state", self._unflattened_state)
        self.best = load_field(own, "best", self._checked_best)
        self.totals = load_field(own, "totals", self._checked_totals)
        self.progress = load_field(own, "progress", Counters.load)
        own = {"environments": []} | own  # which earlier versions did not save
        environments = load_field(own, "environments", lambda saved: [dict(one) for one in saved])
        self.earlier_environments = [one for one in environments if one != self.environment]
        # last: what comes before may draw numbers
        load_field(own, "random", lambda saved: RandomState.from_state_dict(saved, self.fabric.device).restore())

    def _own_state(self, state: dict[str, Any], others: list[dict[str, Any]]) -> dict[str, Any]:
        """Return the state of this process."""
        size, rank = self.processes.size, self.processes.rank
        if len(others) != size - 1:
            raise UserError(
                f"the checkpoint is of {len(others) + 1} processes, of which its field 'others' has {len(others)}, and "
                f"now there are {size}."
            )
        return {**state, **others[rank - 1]} if rank else state

    def _load_optimizer(self, saved: dict[str, Any]) -> None:
        self.optimizer.load_state_dict(saved)  # which checks no shapes
        for param, entries in self.optimizer.state.items():
            for name, value in entries.items():
                if isinstance(value, Tensor) and value.dim() and value.shape != param.shape:
                    raise ValueError(f"{name} has shape {tuple(value.shape)}, its parameter {tuple(param.shape)}")

    def _unflattened_state(self, tensors: list[Tensor] | None) -> Any:
        """Return the tensors of a recurrent state in the structure that the model gives them."""
        if tensors is None:
            return None
        inputs = in_precision_of(self.model, self.fabric.to_device(self.task.sample_inputs()))
        if isinstance(self.batches, StaggeredBatches):
            inputs = inputs[:, :1].expand(-1, self.batches.num_lanes, *[-1] * (inputs.dim() - 2))
        inputs = self.processes.part(fptt.Batch(inputs, inputs), per_step=True).inputs
        own = self._first_state(inputs)
        if [saved.shape for saved in tensors] != [like.shape for like in flatten_state(own)]:
            raise ValueError(f"its tensors have the shapes {[tuple(saved.shape) for saved in tensors]}")
        return refill_state(own, tensors)

    def _checked_best(self, saved: dict[str, Any]) -> Best:
        best, own = Best(**saved), _described(self.model.state_dict())
        if any(weights and _described(weights) != own for weights in (best.weights, best.averages)):
            raise ValueError("the weights do not fit the model")
        if (best.metric is None) != (not best.weights):
            raise ValueError("there are weights if and only if there is a metric")
        return best

    def _checked_totals(self, saved: dict[str, Any]) -> EpochTotals:
        own = self.totals.sums  # whose dtype is that of the losses from the first batch on
        sums, skipped = saved["sums"].to(own.device).reshape(own.shape), saved.get("skipped", 0)  # earlier: not saved
        return EpochTotals(sums, int(saved["batches"]), int(skipped))


def check_origin(state: dict[str, Any], config: TrainConfig, task: Task) -> None:
    """Check of what run a checkpoint is.

    Raises:
        UserError: If it is of another version or config, or of other data than those of the task.
        DamagedCheckpointError: If it does not tell its data.
    """
    if state.get("version") != CHECKPOINT_VERSION:
        raise UserError(f"the checkpoint must have version {CHECKPOINT_VERSION}, got {state.get('version')!r}.")
    if not is_config_of(state.get("config"), config):
        raise UserError("the checkpoint is of another config than the folder's config.yaml.")
    load_field(state, "vocabulary", lambda saved: check_vocabulary(saved, task))
    if not are_same_data(load_field(state, "data", str), task.fingerprint):
        raise UserError(f"the data of the task {task.name!r} are not those that the run was trained on.")


def _copied_weights(model: nn.Module) -> Weights:
    """Return a copy of all weights on the CPU."""
    # on a GPU they would take memory of training
    return {name: tensor.detach().cpu().clone() for name, tensor in model.state_dict().items()}


def _described(weights: Weights) -> dict[str, Any]:
    return {name: (tensor.shape, tensor.dtype) for name, tensor in weights.items()}
