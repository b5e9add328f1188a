"""One run: train a config, select by validation, test, and leave a run folder; go on with one that was interrupted."""

import time
from contextlib import closing
from typing import Any

from rich.console import Console

import fptt
from fptt.experiments.configs.config import TrainConfig, is_config_of
from fptt.experiments.process.console import say
from fptt.experiments.process.errors import UnwritableError, UserError, one_line
from fptt.experiments.process.progress import Display, make_display
from fptt.experiments.process.signals import Interruption
from fptt.experiments.tasks.registry import OPTIONS
from fptt.experiments.training.evaluation import measure
from fptt.experiments.training.folder import RunFolder
from fptt.experiments.training.run import Best, Run, copy_weights
from fptt.experiments.training.run_state import load_state, state_of

SECONDS_BETWEEN_FIGURES = 0.2


def train(config: TrainConfig, folder: RunFolder, console: Console, *, resume: bool = False) -> dict[str, Any]:
    """Train a config into a folder, and return its summary; the folder is made when everything else is ready.

    Ctrl-C ends the run after the batch: a checkpoint is saved, the folder is completed with what there is, its status
    is `interrupted`, and the KeyboardInterrupt goes on to the caller.

    Args:
        config: What to train.
        folder: Where.
        console: Where progress is told.
        resume: Go on from the checkpoint in the folder.

    Raises:
        UserError: If data, device, settings or checkpoint are not usable, or the training diverges.
    """
    try:
        return _train_to_the_end(_prepare(config, folder, console, resume=resume))
    except (UnwritableError, fptt.LostProcessError) as error:
        path = folder.path
        hint = f"To go on when that is mended: fptt train --resume --out {path}." if folder.checkpoints.files() else ""
        raise UserError(f"{error} {hint}".strip()) from error


def _prepare(config: TrainConfig, folder: RunFolder, console: Console, *, resume: bool) -> "Training":
    """Return what is ready to train, with a checkpoint to go on from already now."""
    try:
        training = Training(config, folder, console)
        if resume:
            training.restore()
        else:
            folder.create(config, training.run.task.vocabulary)
            training.save()
    except (ValueError, RuntimeError) as error:
        raise UserError(one_line(error)) from error
    return training


def _train_to_the_end(training: "Training") -> dict[str, Any]:
    """Train, test, and complete the folder whatever happens, as long as it can be written."""
    status, can_write = "failed", True
    try:
        training.loop()
        training.save()  # the last validation is behind, the test may still be interrupted
        status = "finished"
    except fptt.LostProcessError:
        can_write = False  # what it has done since the last checkpoint is lost
        raise
    except KeyboardInterrupt:
        status = "interrupted"
        training.tell_interruption()
        raise
    except UnwritableError:
        can_write = False
        raise
    except fptt.CompilationError as error:
        raise UserError(str(error)) from error
    except FloatingPointError as error:
        raise UserError(
            f"{error} Try a smaller lr or max_norm; what was trained so far is in {training.folder.path}."
        ) from error
    finally:
        summary = training.finish(status) if training.can_finish and can_write and training.run.ranks.leads else {}
    return summary


class Training:
    """Trains a run and writes what it leaves."""

    def __init__(self, config: TrainConfig, folder: RunFolder, console: Console) -> None:
        self.config, self.folder, self.console = config, folder, console
        self.run = Run(config)
        self.interruption = Interruption()
        self.saved_at = 0
        self.shown_at = 0.0

    @property
    def can_finish(self) -> bool:
        """Whether an update has been made, so that there is something to keep."""
        return self.run.method.updates > 0

    # -- the loop ----------------------------------------------------------------------------------------------------

    def loop(self) -> None:
        """Train until the budget is spent or patience is at its end, over rollbacks if need be."""
        while True:
            try:
                self._loop()
                return
            except FloatingPointError as error:
                self._roll_back(error)

    def _roll_back(self, error: FloatingPointError) -> None:
        """Go back to the last checkpoint, with a smaller learning rate from there on; or raise the error, at last."""
        config, rollbacks = self.config, self.run.schedule.rollbacks + 1
        if config.on_bad_number != "rollback" or rollbacks > config.max_rollbacks:
            raise error
        self.restore()
        self.run.schedule.rollbacks = rollbacks
        self.save()
        batches, factor = self.run.method.batches, config.rollback_factor**rollbacks
        say(self.console, f"{error} Rollback {rollbacks}: on from batch {batches} with the learning rate × {factor:g}.")

    def _loop(self) -> None:
        run = self.run
        with closing(make_display(self.console)) as display, self.interruption:
            while run.totals.batches or not (run.is_over or run.schedule.has_given_up):  # an epoch is always validated
                run.memory.start()
                self._train_epoch(display)
                run.memory.stop()
                run.epoch += 1
                self._validate(display)

    def _train_epoch(self, display: Display) -> None:
        run = self.run
        for batch in run.batches:
            if run.is_over:
                break
            run.schedule.set_rate(run.optimizer, run.fraction)
            run.train_batch(batch)
            self._count()
            self._show(display)

    def _show(self, display: Display) -> None:
        """Show the figures, some times a second at most: to read them is to wait for the device."""
        now = time.monotonic()
        if now - self.shown_at >= SECONDS_BETWEEN_FIGURES:
            self.shown_at = now
            display.show(self.run.fraction, self._figures())

    def _count(self) -> None:
        """Count a batch; save if it is time, and stop if that is asked."""
        every, asked = self.config.checkpoint_updates, self.interruption
        is_due = every is not None and self.run.method.updates - self.saved_at >= every
        asked.is_asked, is_due = self.run.count(is_asked=asked.is_asked, is_due=is_due)
        if is_due or asked.is_asked:
            self.save()
        asked.check()

    def _figures(self) -> str:
        run, seconds = self.run, max(self.run.seconds, 1e-9)
        metric = "" if run.metric is None else f"{run.task.metric} {run.metric:.4f}  "
        skipped = f"{run.method.skipped} skipped  " if run.method.skipped else ""
        return (
            f"epoch {run.epoch}  {skipped}loss {run.totals.means()['train_loss']:.3f}  {metric}"
            f"{run.method.updates / seconds:,.0f} updates/s  {run.method.timesteps / seconds / 1000:,.0f}k steps/s"
        )

    def _validate(self, display: Display) -> None:
        run, task = self.run, self.run.task
        figures = self._select()
        row = {
            "epoch": round(run.epochs, 4),
            "batches": run.method.batches,
            "updates": run.method.updates,
            "timesteps": run.method.timesteps,
            "seconds": round(run.seconds, 3),
            "lr": run.optimizer.param_groups[0]["lr"],
            **run.totals.means(),
            **{f"validation_{name}": value for name, value in figures.items()},
        }
        self.folder.append_metrics(row)
        run.rows += 1
        run.metric = figures[task.metric]
        display.epoch(run.fraction, self._figures())
        run.totals.clear()

    def _select(self) -> dict[str, float]:
        """Validate, keep the weights if they are the best, and return the figures."""
        run, task = self.run, self.run.task
        run.method.sync()
        figures = run.ranks.from_leader(
            measure(run.judged, task, task.validation, run.fabric.device) if run.ranks.leads else {}
        )
        metric = figures[task.metric]
        run.schedule.observe(is_better=run.best.metric is None or task.is_improved(metric, run.best.metric))
        if run.best.metric is None or task.is_better(metric, run.best.metric):
            run.best = Best(metric, run.epoch, copy_weights(run.judged), run.averages())
            self.folder.write_weights(run.best.weights, run.best.averages)
        return figures

    # -- checkpoints -------------------------------------------------------------------------------------------------

    def save(self) -> None:
        """Write a checkpoint between two batches."""
        state = {"config": self.config.to_yaml(), **state_of(self.run)}
        if self.run.ranks.leads:
            self.folder.checkpoints.write(state)
        self.saved_at = self.run.method.updates

    def restore(self) -> None:
        """Go back to the checkpoint in the folder.

        Raises:
            UserError: If there is none, it is damaged, or it belongs to another config or other data.
        """
        if self.run.ranks.leads:
            self._read_checkpoint()
        self.run.ranks.from_leader(None)  # a damaged one is set aside before the others look
        if not self.run.ranks.leads:
            self._read_checkpoint()
        self.run.count()
        self.saved_at = self.run.method.updates
        self.folder.keep_metrics(self.run.rows)

    def _read_checkpoint(self) -> None:
        self.folder.checkpoints.restore(self._load, lambda text: say(self.console, text))

    def _load(self, state: dict[str, Any]) -> None:
        if not is_config_of(state.get("config"), self.config):
            raise UserError(f"the checkpoint in {self.folder.path} is of another config than the folder's config.yaml.")
        load_state(self.run, state)

    def tell_interruption(self) -> None:
        """Say what happens now, and how to go on."""
        if self.can_finish:
            path = self.folder.path
            self.console.print(f"interrupted; completing {path} (again to stop at once)", highlight=False)
            if self.folder.checkpoints.files():
                self.console.print(f"to go on: fptt train --resume --out {path}", highlight=False, soft_wrap=True)

    # -- the end -----------------------------------------------------------------------------------------------------

    def finish(self, status: str) -> dict[str, Any]:
        """Test the selected weights and write everything that the folder still lacks."""
        run, task = self.run, self.run.task
        if run.best.metric is None:
            self._select()
        self.folder.write_summary(self._summary("interrupted", {task.metric: None}))  # in case the test is
        if run.rows:
            from fptt.experiments.training.plots import draw_curves  # matplotlib loads when there is something to draw

            draw_curves(self.folder, self.config, task.metric)
        run.model.load_state_dict(run.best.weights)
        summary = self._summary(status, measure(run.model, task, task.test, run.fabric.device))
        self.folder.write_summary(summary)
        if status == "finished":
            self.folder.checkpoints.remove()
        return summary

    def _summary(self, status: str, test: dict[str, Any]) -> dict[str, Any]:
        config, run, method = self.config, self.run, self.run.method
        is_fptt = config.method == "fptt"
        return {
            "task": run.task.name,
            "permuted": config.permuted,
            "standardization": config.standardization if run.task.name in OPTIONS["standardization"] else None,
            "limit": config.limit,
            "method": config.method,
            "form": config.form if is_fptt else None,
            "coupling": config.coupling if is_fptt else None,
            "num_chunks": config.bptt_losses if config.method == "bptt" else config.num_chunks,
            "alpha": config.alpha if is_fptt else None,
            "engine": getattr(method, "engine", "eager"),
            "seed": config.seed,
            **{f"test_{name}": value for name, value in test.items()},
            f"validation_{run.task.metric}": run.best.metric,
            "chance": run.task.chance,
            "best_epoch": run.best.epoch,
            "status": status,
            "epochs": round(run.epochs, 4),
            "batches": method.batches,
            "updates": method.updates,
            "timesteps": method.timesteps,
            "seconds": round(run.seconds, 3),
            "seconds_clock": run.clock.kind,
            **run.memory.figures(),
            "processes": run.ranks.size,
            "skipped": method.skipped,
            "rollbacks": run.schedule.rollbacks,
            "sync_every": config.sync_every if run.ranks.size > 1 else None,
            "num_parameters": sum(param.numel() for param in run.model.parameters()),
            "num_test": len(run.task.test),  # pyright: ignore[reportArgumentType]
            **run.environment,
        }
