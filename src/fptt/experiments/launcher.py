"""Many runs, each in a process of its own, so that its memory and time are its own; finished ones are not run again."""

import os
import subprocess
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import repeat
from pathlib import Path
from typing import Any

from rich.console import Console

from fptt.experiments.config import TrainConfig
from fptt.experiments.errors import UserError
from fptt.experiments.run_folder import RunFolder

INTERRUPTED = 130


def run_all(runs: Mapping[Path, TrainConfig], console: Console, num_jobs: int = 1) -> list[dict[str, Any]]:
    """Bring every run to its end, several at a time, and return their summaries in order.

    Args:
        runs: Folder and config of each run. A folder with a finished run of the same config is kept.
        console: Where progress is told.
        num_jobs: Processes at a time, ≥ 1; the cores are shared out where a config does not say how many threads.

    Raises:
        UserError: If a run fails; the others are kept.
        KeyboardInterrupt: On Ctrl-C, after the runs under way have completed their folders.
    """
    threads = max(1, (os.cpu_count() or 1) // num_jobs)
    configs = {path: config if config.threads else replace(config, threads=threads) for path, config in runs.items()}
    waiting = {path: config for path, config in configs.items() if not RunFolder(path).is_finished(config)}
    if len(waiting) < len(runs):
        console.print(f"{len(runs) - len(waiting)} of {len(runs)} runs are finished already.")
    executor = ThreadPoolExecutor(num_jobs)
    try:
        list(executor.map(_run, waiting, waiting.values(), repeat(console)))
    finally:
        executor.shutdown(wait=True, cancel_futures=True)
    return [RunFolder(path).read_summary() for path in runs]


def _run(path: Path, config: TrainConfig, console: Console) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    config_file, log_file = (path.with_name(path.name + ending) for ending in (".yaml", ".log"))
    config_file.write_text(config.to_yaml())
    command = [sys.executable, "-m", "fptt", "train", "--config", str(config_file), "--out", str(path), "--overwrite"]
    with log_file.open("w") as log:
        code = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT).wait()
    if code == INTERRUPTED:
        raise KeyboardInterrupt
    if code != 0:
        last = log_file.read_text().strip().splitlines()[-1:]
        raise UserError(f"run {path} failed with exit code {code}: {' '.join(last)} (see {log_file}).")
    config_file.unlink()
    summary = RunFolder(path).read_summary()
    figure = next(f"{name} {value:.4f}" for name, value in summary.items() if name.startswith("test_"))
    console.print(
        f"{path}: {figure}, {summary['updates']:,} updates, {summary['seconds']:.1f} s", highlight=False, soft_wrap=True
    )
