"""One run: build everything from a config, train, select by validation, test, and leave a run folder."""

from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import fptt
from fptt.experiments.building import check_chunks, make_fabric, make_method, make_model, make_optimizer
from fptt.experiments.config import TrainConfig
from fptt.experiments.environment import Clock, MemoryMeter, environment, prepare_process
from fptt.experiments.errors import UserError
from fptt.experiments.evaluation import measure
from fptt.experiments.progress import Display, make_display
from fptt.experiments.run_folder import RunFolder, Weights
from fptt.experiments.schedule import Budget
from fptt.experiments.tasks import Task, load_task
from fptt.experiments.tasks.task import training_batches


@dataclass
class Best:
    """The weights of the epoch with the best validation metric, the later one of equals."""

    metric: float | None = None
    epoch: int = 0
    weights: Weights = field(default_factory=dict)
    averages: Weights = field(default_factory=dict)


@dataclass
class Totals:
    """What one epoch has added up so far; tensors, so that nothing waits for the device."""

    loss: Tensor
    penalty: Tensor
    gradient_norm: Tensor
    batches: int = 0

    def add(self, result: fptt.BatchResult) -> None:
        """Add one batch."""
        self.loss = self.loss + result.loss
        self.penalty = self.penalty + result.penalty
        self.gradient_norm = self.gradient_norm + result.gradient_norm
        self.batches += 1

    def means(self) -> dict[str, float]:
        """Return the means over the batches."""
        count = max(self.batches, 1)
        return {
            "train_loss": self.loss.item() / count,
            "penalty": self.penalty.item() / count,
            "gradient_norm": self.gradient_norm.item() / count,
        }


def train(config: TrainConfig, folder: RunFolder, console: Console) -> dict[str, Any]:
    """Train a config into a folder, and return its summary; the folder is made when everything else is ready.

    Ctrl-C ends the run early: the folder is completed with what there is, its status is `interrupted`, and the
    KeyboardInterrupt goes on to the caller.

    Raises:
        UserError: If data, device or settings are not usable, or the training diverges.
    """
    try:
        run = Run(config, folder, console)
    except (ValueError, RuntimeError) as error:
        raise UserError(" ".join(str(error).split())) from error
    folder.create(config)
    status = "failed"
    try:
        run.loop()
        status = "finished"
    except KeyboardInterrupt:
        status = "interrupted"
        if run.can_finish:
            console.print(f"interrupted; completing {folder.path} (again to stop at once)", highlight=False)
        raise
    except fptt.CompilationError as error:
        raise UserError(str(error)) from error
    except FloatingPointError as error:
        raise UserError(
            f"{error} Try a smaller lr or max_norm; what was trained so far is in {folder.path}."
        ) from error
    finally:
        summary = run.finish(status) if run.can_finish else {}
    return summary


class Run:
    """The parts of a run, and what it has done so far."""

    def __init__(self, config: TrainConfig, folder: RunFolder, console: Console) -> None:
        prepare_process(config.threads)
        self.config, self.folder, self.console = config, folder, console
        self.fabric = make_fabric(config.accelerator)
        torch.manual_seed(config.seed)
        self.task: Task = load_task(config, config.seed)
        model = make_model(config, self.task)
        optimizer = make_optimizer(config, model)
        self.model: nn.Module = model
        average = get_ema_multi_avg_fn(config.ema_decay)
        self.average = AveragedModel(model, multi_avg_fn=average) if config.ema_decay else None
        self.wrapped, self.optimizer = self.fabric.setup(model, optimizer)
        check_chunks(config, self.task)
        loader = training_batches(self.task, config.batch_size, torch.Generator().manual_seed(config.seed))
        self.loader = self.fabric.setup_dataloaders(loader, use_distributed_sampler=False)
        self.budget = Budget(config)
        is_bare = config.engine == "compiled" and config.method != "bptt"
        trained = (model, optimizer) if is_bare else (self.wrapped, self.optimizer)
        self.method = make_method(config, self.task, *trained, self.fabric)
        self.best = Best()
        self.metric: float | None = None
        self.epoch = 0
        self.seconds = 0.0
        self.environment = environment(self.fabric.device)
        self.clock, self.memory = Clock(self.fabric.device), MemoryMeter(self.fabric.device)

    @property
    def can_finish(self) -> bool:
        """Whether an update has been made, so that there is something to keep."""
        return self.method.updates > 0

    def loop(self) -> None:
        """Train until the budget is spent."""
        with closing(make_display(self.console)) as display:
            while not self.budget.is_spent(self.epochs, self.method.updates, self.seconds):
                self.memory.start()
                totals = self._train_epoch(display)
                self.memory.stop()
                self.epoch += 1
                self._validate(totals, display)

    @property
    def epochs(self) -> float:
        """Passes over the training data so far."""
        return self.method.batches / len(self.loader)

    def _train_epoch(self, display: Display) -> Totals:
        zero = torch.zeros((), device=self.fabric.device)
        totals = Totals(zero, zero, zero)
        for inputs, targets in self.loader:
            fraction = self.budget.fraction(self.epochs, self.method.updates, self.seconds)
            if fraction >= 1:
                break
            self.budget.set_rate(self.optimizer, fraction)
            start = self.clock.now()
            totals.add(self.method.train_batch(self.task.to_sequences(inputs), targets))
            if self.average is not None:
                self.average.update_parameters(self.model)
            self.seconds += self.clock.now() - start
            display.show(fraction, self._figures(totals))
        return totals

    def _figures(self, totals: Totals) -> str:
        seconds = max(self.seconds, 1e-9)
        metric = "" if self.metric is None else f"{self.task.metric} {self.metric:.4f}  "
        return (
            f"epoch {self.epoch}  loss {totals.means()['train_loss']:.3f}  {metric}"
            f"{self.method.updates / seconds:,.0f} updates/s  {self.method.timesteps / seconds / 1000:,.0f}k steps/s"
        )

    def _validate(self, totals: Totals, display: Display) -> None:
        self.metric = self._select()
        row = {
            "epoch": round(self.epochs, 4),
            "batches": self.method.batches,
            "updates": self.method.updates,
            "timesteps": self.method.timesteps,
            "seconds": round(self.seconds, 3),
            "lr": self.optimizer.param_groups[0]["lr"],
            **totals.means(),
            f"validation_{self.task.metric}": self.metric,
        }
        self.folder.append_metrics(row)
        display.epoch(self.budget.fraction(self.epochs, self.method.updates, self.seconds), self._figures(totals))

    def _select(self) -> float:
        """Validate, keep the weights if they are the best, and return the metric."""
        judged: nn.Module = self.model if self.average is None else self.average.module
        metric = measure(judged, self.task, self.task.validation, self.fabric.device)
        if self.best.metric is None or self.task.is_better(metric, self.best.metric):
            self.best = Best(metric, self.epoch, _copy(judged), self._averages())
            self.folder.write_weights(self.best.weights, self.best.averages)
        return metric

    def _averages(self) -> Weights:
        if self.method.regularizer is None:
            return {}
        with self.method.regularizer.averaged():
            return _copy(self.model)

    def finish(self, status: str) -> dict[str, Any]:
        """Test the selected weights and write everything that the folder still lacks."""
        if self.best.metric is None:
            self._select()
        self.folder.write_summary(self._summary("interrupted", None))  # in case the test is
        if self.epoch:
            from fptt.experiments.report import draw_curves  # matplotlib loads when there is something to draw

            draw_curves(self.folder, self.config, self.task.metric)
        self.model.load_state_dict(self.best.weights)
        test = measure(self.model, self.task, self.task.test, self.fabric.device)
        summary = self._summary(status, test)
        self.folder.write_summary(summary)
        return summary

    def _summary(self, status: str, test: float | None) -> dict[str, Any]:
        config, task, method = self.config, self.task, self.method
        is_fptt = config.method == "fptt"
        return {
            "task": task.name,
            "permuted": config.permuted,
            "limit": config.limit,
            "method": config.method,
            "form": config.form if is_fptt else None,
            "coupling": config.coupling if is_fptt else None,
            "num_chunks": config.bptt_losses if config.method == "bptt" else config.num_chunks,
            "alpha": config.alpha if is_fptt else None,
            "engine": getattr(method, "engine", "eager"),
            "seed": config.seed,
            f"test_{task.metric}": test,
            f"validation_{task.metric}": self.best.metric,
            "best_epoch": self.best.epoch,
            "status": status,
            "epochs": round(self.epochs, 4),
            "batches": method.batches,
            "updates": method.updates,
            "timesteps": method.timesteps,
            "seconds": round(self.seconds, 3),
            "seconds_clock": self.clock.kind,
            **self.memory.figures(),
            "num_parameters": sum(param.numel() for param in self.model.parameters()),
            "num_test": len(task.test),  # pyright: ignore[reportArgumentType]
            **self.environment,
        }


def _copy(model: nn.Module) -> Weights:
    return {name: tensor.detach().cpu().clone() for name, tensor in model.state_dict().items()}
