"""Processes for many runs, one each, so that the memory and time that a run measures are its own.

Finished runs are not repeated, interrupted ones are resumed.
"""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import fields, replace
from pathlib import Path
from typing import IO, Any

from rich.console import Console

from fptt.experiments.configs.config import DataSetting, Setting, TrainConfig
from fptt.experiments.process.console import duration, say
from fptt.experiments.process.errors import UserError
from fptt.experiments.process.signals import ASK_TO_END, INTERRUPTED
from fptt.experiments.studies.finished_run import read_run
from fptt.experiments.tasks.interface import Interface
from fptt.experiments.tasks.registry import check_interface, load_task
from fptt.experiments.tasks.scores import metric_form
from fptt.experiments.training.folder import RunFolder, are_same_data, fingerprint_of
from fptt.experiments.training.run import check_origin

# Ctrl-C in the terminal is for this process alone, which asks each of the others to end
if sys.platform == "win32":
    OWN_GROUP: dict[str, Any] = {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP}
else:
    OWN_GROUP: dict[str, Any] = {"process_group": 0}


def run_all(
    runs: Mapping[Path, TrainConfig],
    console: Console,
    num_jobs: int = 1,
    *,
    overwrite: bool = False,
    replaceable: Sequence[str] = (),
) -> None:
    """Bring every run to its end, several at a time.

    Args:
        runs: Folder and config of each run. A folder with a finished run of the same config is kept.
        console: Where progress is printed.
        num_jobs: Processes at a time, ≥ 1; the cores are shared out where a config sets no threads.
        overwrite: Replace runs of other configs or data.
        replaceable: Fields of the config; a run that differs in these alone is replaced too.

    Raises:
        UserError: If a run fails, after all others have been made; or a finished run of another config, or of other
            data, would be lost.
        KeyboardInterrupt: On Ctrl-C, after the runs under way have completed their folders.
    """
    data: dict[Setting, tuple[str, Interface]] = {}
    waiting = {
        path: config
        for path, config in runs.items()
        if not _is_finished(path, config, console, data, replaceable, overwrite=overwrite)
    }
    done = len(runs) - len(waiting)
    already = f", {done} of them are finished already" if done else ""
    say(console, f"{len(runs)} runs{already}; {min(num_jobs, max(len(waiting), 1))} at a time")
    # torch reads it when it is imported; a config with threads overrides it
    environment = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // num_jobs)), **os.environ}
    children = _Children(environment)
    executor = ThreadPoolExecutor(num_jobs)
    failures: list[UserError] = []
    begin = time.monotonic()
    try:
        jobs = [
            executor.submit(
                _run, path, config, console, children, resume=_can_resume(path, config, console, overwrite=overwrite)
            )
            for path, config in waiting.items()
        ]
        for number, job in enumerate(as_completed(jobs), 1):
            try:
                job.result()
            except UserError as error:  # the others are made all the same
                failures.append(error)
            if number < len(jobs):
                left = (time.monotonic() - begin) / number * (len(jobs) - number)
                say(console, f"{done + number} of {len(runs)} runs have ended, about {duration(left)} left")
    finally:
        children.stop()
        executor.shutdown(wait=True, cancel_futures=True)
    if failures:
        raise failures[0]


class _Children:
    """The processes under way.

    Each leads a group of its own: Ctrl-C in the terminal is then sent to it once, by `stop`, and not twice, which would
    end it at once.

    Attributes:
        is_stopping: Whether no more of them are started.
    """

    def __init__(self, environment: dict[str, str]) -> None:
        self.environment = environment
        self.is_stopping = False
        self._lock = threading.Lock()
        self._processes: list[subprocess.Popen[Any]] = []

    def run(self, command: Sequence[str], log: IO[str]) -> int:
        """Run a command to its end and return its exit code."""
        with self._lock:
            if self.is_stopping:
                return INTERRUPTED
            process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=self.environment, **OWN_GROUP)
            self._processes.append(process)
        return process.wait()

    def stop(self) -> None:
        """Ask all of them to end, once, and start no more."""
        with self._lock:
            if not self.is_stopping:  # a second SIGINT would end a run before its checkpoint
                self.is_stopping = True
                for process in self._processes:
                    process.send_signal(ASK_TO_END)  # does nothing to one that has ended


def _is_finished(
    path: Path,
    config: TrainConfig,
    console: Console,
    data: dict[Setting, tuple[str, Interface]],
    replaceable: Sequence[str],
    *,
    overwrite: bool,
) -> bool:
    """Return whether a folder holds a finished, undamaged run of a config and its data, with possible results.

    Raises:
        UserError: If it holds a run of another config, or of other data, that may not be replaced.
    """
    folder = RunFolder(path)
    try:
        found = folder.read_config()
    except UserError:
        return False
    if changes := _changes(replaceable, found, config):
        say(console, f"{path} is run again: {', '.join(changes)}.")
        return False
    is_finished = folder.has_finished()
    moved = replace(found, data=config.data)  # wherever its data lay
    try:
        if is_finished:
            _check_same(path, moved, config, "a finished")
            _check_data(folder, found, config, data)
        elif folder.checkpoints.files():
            _check_same(path, moved, config, "an interrupted")
    except UserError:
        if overwrite:
            return False
        raise
    if not is_finished:
        return False
    try:
        read_run(path)
    except UserError as error:
        say(console, f"{path} is run again: {error}")
        return False
    return True


def _changes(names: Sequence[str], found: TrainConfig, config: TrainConfig) -> list[str]:
    """Return in which of some fields a run differs from a config, as phrases; none if it does in any other field."""
    differences = [name for name in names if getattr(found, name) != getattr(config, name)]
    others = {name: getattr(config, name) for name in (*differences, "data")}  # wherever the data lay
    if replace(found, **others) != config:
        return []
    return [f"{name} is {getattr(config, name)} now, not {getattr(found, name)}" for name in differences]


def _check_same(path: Path, found: TrainConfig, config: TrainConfig, kind: str) -> None:
    """Raise UserError if a run, which would be lost, is of another config."""
    names = [field.name for field in fields(config)]
    other = next((name for name in names if getattr(found, name) != getattr(config, name)), None)
    if other is not None:
        raise UserError(
            f"{path} holds {kind} run with {other} {getattr(found, other)!r}, not {getattr(config, other)!r}: give "
            "another folder, or --overwrite."
        )


def _check_data(
    folder: RunFolder, found: TrainConfig, config: TrainConfig, known: dict[Setting, tuple[str, Interface]]
) -> None:
    """Raise UserError if a finished run is of other data than its config names today; older runs do not tell.

    Args:
        folder: The folder of the run.
        found: The config of the run.
        config: The config that names the data.
        known: The fingerprints and interfaces of data that have been read, by their setting; takes new ones.
    """
    trained_on = fingerprint_of(folder.read_summary())
    # what comes with a library, is generated, or is named by its place on the hub, is the same as before
    is_local = config.data is not None and Path(config.data).exists()
    if trained_on is None or (not is_local and found.data == config.data):
        return
    names = [field.name for field in fields(DataSetting)]
    setting = Setting(batch_size=config.batch_size, **{name: getattr(config, name) for name in names})
    if setting not in known:
        task = load_task(setting, config.seed)
        known[setting] = task.fingerprint, task.interface
    (fingerprint, interface), saved = known[setting], folder.read_interface()
    is_other = saved is not None and saved.other_field(interface) is not None
    if is_other or not are_same_data(fingerprint, trained_on):
        raise UserError(
            f"{folder.path} holds a finished run of other data than {config.data or 'those of the task'} now: give "
            "another folder, or --overwrite."
        )


def _can_resume(path: Path, config: TrainConfig, console: Console, *, overwrite: bool) -> bool:
    """Return whether a folder holds an interrupted run of a config, and with `overwrite`, one that can go on.

    Without it a run that cannot, since its data have changed, says so itself.
    """
    folder = RunFolder(path)
    if not (overwrite and folder.can_resume(config)):
        return folder.can_resume(config)
    try:
        task = load_task(config, config.seed)
        folder.checkpoints.restore(lambda state: check_origin(state, config, task), lambda text: say(console, text))
        check_interface(folder.read_interface(), task)
    except UserError as error:
        say(console, f"{path} is run again: {error}")
        return False
    return True


def _run(path: Path, config: TrainConfig, console: Console, children: _Children, *, resume: bool) -> None:
    config_file, log_file = (path.with_name(path.name + ending) for ending in (".yaml", ".log"))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        config_file.write_text(config.to_yaml(), encoding="utf-8")
    except OSError as error:
        raise UserError(f"out {path.parent} cannot be written: {error}.") from error
    if children.is_stopping:
        return
    say(console, f"{path}: started; its progress is in {log_file.name}")
    data = [] if config.data is None else ["--data", config.data]
    start = ["--resume", *data] if resume else ["--config", str(config_file), "--overwrite"]
    command = [sys.executable, "-m", "fptt", "train", "--out", str(path), *start]
    with log_file.open("w", encoding="utf-8") as log:
        code = children.run(command, log)
    # somebody has interrupted this one run: that is taken for all
    if code in (INTERRUPTED, -ASK_TO_END):  # the latter from a run that was about to start processes
        children.stop()
        raise KeyboardInterrupt
    if code != 0:
        last = log_file.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1:]
        raise UserError(f"run {path} failed with exit code {code}: {' '.join(last)} (see {log_file}).")
    config_file.unlink()
    summary = RunFolder(path).read_summary()
    metric = f"test_{summary['metric']}"
    shown = format(summary[metric], metric_form(metric, summary[metric]))
    say(console, f"{path}: {metric} {shown}, {summary['updates']:,} updates, {summary['seconds']:.1f} s")
