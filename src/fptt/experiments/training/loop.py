"""The training loop: train a config into a run folder, select by validation, test; resume an interrupted run."""

import time
from collections.abc import Sequence
from contextlib import closing, nullcontext
from typing import Any

from rich.console import Console

import fptt
from fptt.experiments.configs.config import TrainConfig
from fptt.experiments.process.console import Display, make_display, say
from fptt.experiments.process.errors import UnwritableError, UserError, one_line
from fptt.experiments.process.signals import Interruption
from fptt.experiments.tasks.batches import Samples
from fptt.experiments.tasks.registry import OPTIONS, check_interface
from fptt.experiments.tasks.scores import metric_form
from fptt.experiments.training.card import model_card
from fptt.experiments.training.checkpoints import SECONDS_BETWEEN_CHECKPOINTS
from fptt.experiments.training.evaluation import measure
from fptt.experiments.training.folder import RunFolder, locked
from fptt.experiments.training.loggers import Log, make_log
from fptt.experiments.training.processes import launch
from fptt.experiments.training.run import Run
from fptt.nn.spiking.surrogates import count_spikes

SECONDS_BETWEEN_STATUS = 0.2


def on_event(name: str, run: Run, batch: Samples | fptt.Batch | None = None) -> None:
    """Do nothing: tests put another function here, to observe, disturb or end a run at a known point.

    Args:
        name: `batch` before a batch is trained on and `trained` after it, `validate` before a validation and
            `validated` between its weights and its row, `finish` before the folder is completed.
        run: The run.
        batch: That of `batch`.
    """


def train(
    config: TrainConfig,
    folder: RunFolder,
    console: Console,
    *,
    resume: bool = False,
    overwrite: bool = False,
    loggers: Sequence[str] = (),
) -> dict[str, Any]:
    """Train a config into a folder, and return the summary; nothing is written before everything else is ready.

    Ctrl-C ends the run after the current batch: a checkpoint is saved, the folder is completed with what there is, the
    status is `interrupted`, and KeyboardInterrupt is raised.

    Args:
        config: The config of the run.
        folder: Its folder.
        console: Prints the progress.
        resume: Continue from the checkpoint in the folder.
        overwrite: Replace what an earlier run has left in the folder.
        loggers: Names of `LOGGERS`, which get what metrics.csv gets.

    Returns:
        The summary; empty in the processes that do not lead.

    Raises:
        UserError: If data, device, settings, folder or checkpoint are not usable, or the training diverges.
    """
    try:
        run = Run(config, launch(config))
    except (ValueError, RuntimeError) as error:  # a process that was lost too
        raise UserError(one_line(error)) from error
    with folder.hinting_at_resuming(), locked(folder.path) if run.processes.is_leader else nullcontext():
        if run.processes.is_leader and not (resume or overwrite):
            folder.check_free()  # another run may have begun, and ended, while the data were loaded
        return _train(run, folder, console, resume=resume, loggers=loggers)


def _train(run: Run, folder: RunFolder, console: Console, *, resume: bool, loggers: Sequence[str]) -> dict[str, Any]:
    """Train to the end, or until something is wrong, and complete the folder."""
    if run.task.about is not None:
        chunks = "" if run.config.method == "bptt" else f"; K = {run.config.num_chunks}"
        say(console, run.task.about + chunks)
    _begin(run, folder, console, resume=resume)
    log = make_log(loggers if run.processes.is_leader else (), run.config, folder.path, start=run.method.updates)
    interruption = Interruption()
    try:
        with closing(make_display(console)) as display, interruption:
            while not run.is_over:
                try:
                    with run.measuring_memory():
                        _train_epoch(run, folder, display, interruption)
                    _validate(run, folder, display, log)
                except FloatingPointError as error:
                    _roll_back(run, folder, console, error)
        _save(run, folder)  # with the last validation, so that a run interrupted in its test need not train again
    except (UnwritableError, fptt.LostProcessError):
        log.close("failed")
        raise  # the folder cannot be completed, or what was trained since the last checkpoint is not whole
    except KeyboardInterrupt:
        if run.method.updates:
            say(console, f"interrupted; completing {folder.path} (again to stop at once)")
            _say_how_to_resume(folder, console)
        _finish(run, folder, "interrupted", log)
        raise
    except (fptt.CompilationError, FloatingPointError) as error:
        _finish(run, folder, "failed", log)
        is_divergence = isinstance(error, FloatingPointError)
        hint = f" Try a smaller lr or max_norm; what was trained so far is in {folder.path}." if is_divergence else ""
        raise UserError(f"{error}{hint}") from error
    except BaseException:
        _finish(run, folder, "failed", log)
        raise
    try:
        return _finish(run, folder, "finished", log)
    except KeyboardInterrupt:  # trained to its end: only the test is left
        _say_how_to_resume(folder, console)
        raise


def _begin(run: Run, folder: RunFolder, console: Console, *, resume: bool) -> None:
    """Make the folder, or resume the run in it, perhaps on another machine."""
    if resume:
        _restore(run, folder, console)
        if run.processes.is_leader:
            folder.write_config(run.config)
    else:
        if run.processes.is_leader:
            folder.create(run.config, run.task.vocabulary, run.task.interface)
        _save(run, folder)  # so that a run killed in its first batch can be resumed too


def _say_how_to_resume(folder: RunFolder, console: Console) -> None:
    """Print the command that resumes, if there is a checkpoint."""
    if folder.checkpoints.files():
        say(console, f"to resume: {folder.resume_command}")


def _train_epoch(run: Run, folder: RunFolder, display: Display, interruption: Interruption) -> None:
    """Train on what is left of the epoch, up to the end of the budget.

    Raises:
        KeyboardInterrupt: After a batch and with a checkpoint, if any process is asked to stop.
    """
    shown_at = 0.0
    for batch in run.batches:
        if run.fraction >= 1.0:  # also on resuming a run that was killed in its last validation
            break
        on_event("batch", run, batch)
        run.train_batch(batch)
        on_event("trained", run)

        run.fraction, is_asked, is_due = run.processes.agree(
            run.spent(), is_asked=interruption.is_asked, is_due=_needs_checkpoint(run)
        )
        if is_due or is_asked:
            run.note_memory()
            _save(run, folder, only_to_resume=run.config.on_bad_number == "rollback" and not _is_scheduled(run))
        if is_asked:
            raise KeyboardInterrupt
        # some times a second at most: to read the loss is to wait for the device
        if time.monotonic() - shown_at >= SECONDS_BETWEEN_STATUS:
            shown_at = time.monotonic()
            display.show(run.fraction, _status(run))
    else:
        run.state = None  # the next epoch starts from the initial state; with the budget spent there is none
    run.progress.epoch += 1


def _validate(run: Run, folder: RunFolder, display: Display, log: Log) -> None:
    """Validate, keep the weights if none before were better, and add a row of metrics."""
    on_event("validate", run)
    task, progress, is_leader = run.task, run.progress, run.processes.is_leader
    run.sync()  # with local updates the leader would else judge its own weights
    own = measure(run.evaluated_model, task, task.validation, run.fabric.device) if is_leader else {}
    metrics = run.processes.from_leader(own)  # all of them schedule by it
    is_best = run.select(metrics[task.metric])
    progress.metric = metrics[task.metric]
    if is_leader and is_best:
        folder.write_weights(run.best.weights, run.best.averages, _about(run))
    on_event("validated", run)
    if is_leader:
        row = {
            "epoch": round(run.epochs, 4),
            "batches": run.method.batches,
            "updates": run.method.updates,
            "timesteps": run.method.timesteps,
            "seconds": round(progress.seconds, 3),
            "lr": run.optimizer.param_groups[0]["lr"],
            **run.totals.means(),
            **{f"validation_{name}": value for name, value in metrics.items()},
        }
        folder.append_metrics(row)
        log.add(row, step=run.method.updates)
    progress.rows += 1
    display.epoch(run.fraction, _status(run))
    run.totals.clear()


def _status(run: Run) -> str:
    """Return a line about where the run stands; reads the loss, and so waits for the device."""
    progress, method, seconds = run.progress, run.method, max(run.progress.seconds, 1e-9)
    name, value = run.task.metric, progress.metric
    metric = "" if value is None else f"{name} {format(value, metric_form(name, value))}  "
    skipped = f"{method.skipped} skipped  " if method.skipped else ""
    return (
        f"epoch {progress.epoch}  {skipped}loss {run.totals.means()['train_loss']:.3f}  {metric}"
        f"{method.updates / seconds:,.0f} updates/s  {method.timesteps / seconds / 1000:,.0f}k steps/s"
    )


def _needs_checkpoint(run: Run) -> bool:
    """Return whether the last checkpoint is too many updates ago, or too many minutes."""
    is_old = time.monotonic() - run.saved_time >= SECONDS_BETWEEN_CHECKPOINTS
    return _is_scheduled(run) or (is_old and run.config.checkpoint_updates is not None)


def _is_scheduled(run: Run) -> bool:
    """Return whether the last checkpoint is too many updates ago."""
    every = run.config.checkpoint_updates
    return every is not None and run.method.updates - run.progress.saved_at >= every


def _save(run: Run, folder: RunFolder, *, only_to_resume: bool = False) -> None:
    """Write a checkpoint, between two batches.

    What a rollback goes back to must depend neither on the clock nor on whether the run was interrupted: a checkpoint
    that is only to resume from leaves the others where they would be without it.
    """
    run.saved_time = time.monotonic()
    if not only_to_resume:
        run.progress.saved_at = run.method.updates
    state = run.state_dict()
    if run.processes.is_leader:
        folder.checkpoints.write(state, only_to_resume=only_to_resume)


def _restore(run: Run, folder: RunFolder, console: Console, *, to_roll_back: bool = False) -> None:
    """Restore the last checkpoint in the folder, or the one before it; to roll back none that is only to resume from.

    Raises:
        UserError: If there is none, both are damaged, or it belongs to another config or other data.
    """
    for is_turn_of_leader in (True, False):  # it sets damaged ones aside before the others look
        if run.processes.is_leader is is_turn_of_leader:
            folder.checkpoints.restore(run.load_state_dict, lambda text: say(console, text), to_roll_back=to_roll_back)
        run.processes.from_leader(None)
    check_interface(folder.read_interface(), run.task)  # of units and names the checkpoint does not tell
    run.fraction, *_ = run.processes.agree(run.spent(), is_asked=False, is_due=False)
    if run.processes.is_leader:
        folder.keep_metrics(run.progress.rows)  # those after the checkpoint come again


def _roll_back(run: Run, folder: RunFolder, console: Console, error: FloatingPointError) -> None:
    """Restore the last checkpoint, with a smaller learning rate from there on; raise the error if that is not allowed.

    The checkpoint is saved once more with the new count, so that a resumed run does not begin to count again.
    """
    config, rollbacks = run.config, run.progress.rollbacks + 1
    if config.on_bad_number != "rollback" or rollbacks > config.max_rollbacks:
        raise error
    seconds = run.progress.seconds
    _restore(run, folder, console, to_roll_back=True)
    run.progress.rollbacks, run.progress.seconds = rollbacks, seconds  # what is lost has been spent all the same
    run.fraction, *_ = run.processes.agree(run.spent(), is_asked=False, is_due=False)
    _save(run, folder)
    batches, factor = run.method.batches, config.rollback_factor**rollbacks
    say(console, f"{error} Rollback {rollbacks}: on from batch {batches} with the learning rate × {factor:g}.")


def _finish(run: Run, folder: RunFolder, status: str, log: Log) -> dict[str, Any]:
    """Write summary and plot, test the selected weights, complete the summary, remove the checkpoints of a whole run.

    Does nothing in processes that do not lead, and without a single update, when there is nothing to keep.

    Raises:
        UserError: If the run came to its end without an update.
    """
    if not run.processes.is_leader:
        return {}
    if not run.method.updates:
        is_idle = status == "finished"
        log.close("failed" if is_idle else status)
        if is_idle:
            raise UserError(
                f"nothing was learned: all {run.method.skipped:,} chunks were skipped, for their numbers were not "
                "finite. Try a smaller lr or max_norm, or look for such numbers in the data."
            )
        return {}
    on_event("finish", run)
    task, device = run.task, run.fabric.device
    if run.best.metric is None:  # ended within the first epoch; without the other processes, which may be gone
        run.select(measure(run.evaluated_model, task, task.validation, device)[task.metric])
        folder.write_weights(run.best.weights, run.best.averages, _about(run))
    folder.write_summary(_summary(run, "interrupted", {task.metric: None}))  # stays if the test is interrupted
    if run.progress.rows:
        from fptt.experiments.training.plots import draw_curves  # seconds of loading, and only here

        draw_curves(folder, run.config, task.metric)
    # with a moving average these are its weights, which the model itself then has for the test
    run.model.load_state_dict(run.best.weights)
    with count_spikes() as count:
        test = measure(run.model, task, task.test, device)
    summary = _summary(run, status, test, count.spikes / count.possible if count.possible else None)
    folder.write_summary(summary)
    figures = {name: value for name, value in summary.items() if name.startswith("test_")}
    folder.write_weights(run.best.weights, run.best.averages, {**_about(run), **figures})
    log.add(figures, step=run.method.updates)
    log.close(status)
    folder.write_card(model_card(run.config, summary, task.interface, task.about))
    if status == "finished":
        folder.checkpoints.remove()
    return summary


def _about(run: Run) -> dict[str, Any]:
    """Return what the files of weights say about them: no times, so that a resumed run leaves the same bytes."""
    metric = f"validation_{run.task.metric}"
    names = ("task", "method", "seed")
    about = {name: getattr(run.config, name) for name in names} | {"fptt": run.environment["fptt"]}
    return {**about, "epoch": run.best.epoch, metric: run.best.metric}


def _summary(
    run: Run, status: str, test: dict[str, float] | dict[str, None], firing_rate: float | None = None
) -> dict[str, Any]:
    """Return the figures of a run; `firing_rate` are the spikes of a unit a step in the test, padding included."""
    config, task, method, progress = run.config, run.task, run.method, run.progress
    clocks = {one["seconds_clock"] for one in (*run.earlier_environments, run.environment)}
    return {
        "task": task.name,
        "permuted": config.permuted,
        "standardization": config.standardization if task.name in OPTIONS["standardization"] else None,
        "limit": config.limit,
        "data": task.fingerprint,
        "method": config.method,
        "form": config.value("form"),
        "coupling": config.value("coupling"),
        "num_chunks": config.chunk_losses,
        "lanes": config.value("lanes"),
        "horizon": config.value("horizon"),
        "batch_size": config.batch_size,
        "lr": config.lr,
        "alpha": config.value("alpha"),
        "engine": method.engine,
        "seed": config.seed,
        "metric": task.metric,
        **{f"test_{name}": value for name, value in test.items()},
        f"validation_{task.metric}": run.best.metric,
        "chance": task.chance,
        "firing_rate": firing_rate,
        "best_epoch": run.best.epoch,
        "status": status,
        "epochs": round(run.epochs, 4),
        "batches": method.batches,
        "updates": method.updates,
        "timesteps": method.timesteps,
        "seconds": round(progress.seconds, 3),
        "peak_memory_bytes": progress.peak_memory_bytes,
        "training_memory_bytes": progress.training_memory_bytes,
        "processes": run.processes.size,
        "skipped": method.skipped,
        "rollbacks": progress.rollbacks,
        "sync_every": config.sync_every if run.processes.size > 1 else None,
        "num_parameters": sum(param.numel() for param in run.model.parameters()),
        "num_test": len(task.test),  # pyright: ignore[reportArgumentType]
        **run.environment,
        "seconds_clock": clocks.pop() if len(clocks) == 1 else "mixed",
        "earlier_environments": run.earlier_environments,
    }
