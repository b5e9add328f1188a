"""Many runs, each in a process of its own, so that its memory and time are its own.

Finished ones are not run again, and interrupted ones go on.
"""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any

from rich.console import Console

from fptt.experiments.configs.config import TrainConfig
from fptt.experiments.process.errors import UserError
from fptt.experiments.training.folder import RunFolder

INTERRUPTED = 130


def run_all(
    runs: Mapping[Path, TrainConfig], console: Console, num_jobs: int = 1, *, overwrite: bool = False
) -> list[dict[str, Any]]:
    """Bring every run to its end, several at a time, and return their summaries in order.

    Args:
        runs: Folder and config of each run. A folder with a finished run of the same config is kept.
        console: Where progress is told.
        num_jobs: Processes at a time, ≥ 1; the cores are shared out where a config does not say how many threads.
        overwrite: Replace finished runs of other configs.

    Raises:
        UserError: If a run fails, after all others have been made; or a finished run of another config would be lost.
        KeyboardInterrupt: On Ctrl-C, after the runs under way have completed their folders.
    """
    waiting = {path: config for path, config in runs.items() if not _is_finished(path, config, overwrite)}
    done = len(runs) - len(waiting)
    told = f", {done} of them are finished already" if done else ""
    console.print(f"{len(runs)} runs{told}; {min(num_jobs, max(len(waiting), 1))} at a time", highlight=False)
    environment = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // num_jobs)), **os.environ}
    children = _Children(environment)
    executor = ThreadPoolExecutor(num_jobs)
    try:
        jobs = [
            executor.submit(_run, path, config, console, children, overwrite=overwrite)
            for path, config in waiting.items()
        ]
        failures = [error for error in (_failure(job) for job in jobs) if error is not None]
    finally:
        children.stop()
        executor.shutdown(wait=True, cancel_futures=True)
    if failures:
        raise failures[0]
    return [RunFolder(path).read_summary() for path in runs]


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
        self._processes: list[subprocess.Popen[bytes]] = []

    def run(self, command: Sequence[str], log: IO[str]) -> int:
        """Run a command to its end and return its exit code."""
        with self._lock:
            if self.is_stopping:
                return INTERRUPTED
            process = subprocess.Popen(
                command, stdout=log, stderr=subprocess.STDOUT, env=self.environment, process_group=0
            )
            self._processes.append(process)
        return process.wait()

    def stop(self) -> None:
        """Ask all of them to end, once, and start no more."""
        with self._lock:
            if not self.is_stopping:
                self.is_stopping = True
                for process in self._processes:
                    process.send_signal(signal.SIGINT)  # does nothing to one that has ended


def _failure(job: Future[None]) -> UserError | None:
    """Wait for a run; return why it failed, if it did."""
    try:
        job.result()
    except UserError as error:
        return error
    return None


def _is_finished(path: Path, config: TrainConfig, overwrite: bool) -> bool:
    try:
        return RunFolder(path).is_finished(config)
    except UserError:
        if overwrite:
            return False
        raise


def _run(
    path: Path,
    config: TrainConfig,
    console: Console,
    children: "_Children",
    *,
    overwrite: bool,
) -> None:
    config_file, log_file = (path.with_name(path.name + ending) for ending in (".yaml", ".log"))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        config_file.write_text(config.to_yaml(), encoding="utf-8")
    except OSError as error:
        raise UserError(f"out {path.parent} cannot be written: {error}.") from error
    if children.is_stopping:
        return
    console.print(f"{path}: started; its progress is in {log_file.name}", highlight=False, soft_wrap=True)
    goes_on = not overwrite and RunFolder(path).can_resume(config)
    start = ["--resume"] if goes_on else ["--config", str(config_file), "--overwrite"]
    command = [sys.executable, "-m", "fptt", "train", "--out", str(path), *start]
    with log_file.open("w", encoding="utf-8") as log:
        code = children.run(command, log)
    if code == INTERRUPTED:
        children.stop()
        raise KeyboardInterrupt
    if code != 0:
        last = log_file.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1:]
        raise UserError(f"run {path} failed with exit code {code}: {' '.join(last)} (see {log_file}).")
    config_file.unlink()
    summary = RunFolder(path).read_summary()
    figure = next(f"{name} {value:.4f}" for name, value in summary.items() if name.startswith("test_"))
    console.print(
        f"{path}: {figure}, {summary['updates']:,} updates, {summary['seconds']:.1f} s", highlight=False, soft_wrap=True
    )
