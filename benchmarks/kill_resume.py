"""Kill a training with SIGKILL at random moments, resume it, and compare its weights with those of an undisturbed one.

    python benchmarks/kill_resume.py --kills 50
    python benchmarks/kill_resume.py --kills 10 --devices 2

The moments are spread over the run by its checkpoints, not by the clock, so that a busy machine does not move them: a
kill falls up to one interval after a checkpoint drawn from all. Every third waits for a file that is being written; in
every second trial the resumed run is killed again. A trial whose run is over before the kill is made again. With
`--devices 2` each kill takes one of two processes, drawn too; the other must report it and end by itself with exit
code 2. Ends with `50 of 50 identical`, or with exit code 1.
"""

import argparse
import ctypes
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from fptt.experiments.training.folder import RunFolder

SETTING = ("--limit", "128", "--hidden-size", "16", "--batch-size", "16", "--epochs", "5", "--threads", "1")
"""About a second of training on the digits, with a checkpoint every few batches."""
EVERY = ("--checkpoint-updates", "24")
POLL = 0.0005
"""Seconds."""
PATIENCE = 60.0
"""Seconds in which a process must have noticed that it is left alone."""
LEFT_ALONE = "another process has ended, or cannot be reached"
SET_CHILD_SUBREAPER = 36
"""Of Linux's prctl."""

Process = subprocess.Popen[bytes]


class Trial:
    """One run that is killed, perhaps more than once.

    Args:
        folder: Of the run.
        options: Of `fptt train`.
        last: The number of the last checkpoint of an undisturbed run.

    Attributes:
        kills: A description of each kill.
        outcome: What the run was resumed from in the end.
    """

    def __init__(self, folder: Path, options: list[str], last: int = 0) -> None:
        self.folder, self.options, self.last = RunFolder(folder), options, last
        self.log = folder.with_suffix(".log")
        self.kills: list[str] = []
        self.outcome = ""

    def start(self, *, resume: bool = False) -> Process:
        """Start the training, or resume it, in a process group of its own."""
        how = ["--resume"] if resume else ["--overwrite", *self.options]
        command = [sys.executable, "-m", "fptt", "train", *how, "--out", str(self.folder.path)]
        with self.log.open("wb") as log:
            return subprocess.Popen(command, stdout=log, stderr=log, process_group=0)

    def wait_for_checkpoint(self, process: Process, number: int) -> None:
        """Return when so many checkpoints have been written since the beginning, or the process is over."""
        while process.poll() is None and self.num_checkpoints < number:
            time.sleep(POLL)

    @property
    def num_checkpoints(self) -> int:
        """Number of checkpoints written since the beginning, from the name of the newest; 0 without any."""
        files = self.folder.checkpoints.files()
        return int(files[0].stem.split("-")[1]) if files else 0

    def kill(self, process: Process, number: int, after: float, *, in_write: bool, rank: int | None) -> None:
        """Kill what was started some seconds after a checkpoint and, if asked, when a file is being written.

        Args:
            process: The first process of the run.
            number: Of the checkpoint.
            after: Seconds.
            in_write: Whether to wait for a file.
            rank: Which of two processes; None for all there are.
        """
        self.wait_for_checkpoint(process, number)
        moment = time.monotonic() + after
        while process.poll() is None and time.monotonic() < moment:
            time.sleep(POLL)
        while in_write and process.poll() is None and not self._unfinished():
            pass  # a write takes less than a millisecond
        was_killed = self._kill_all(process) if rank is None else self._kill_one(process, rank)
        whom = "" if rank is None else f" process {rank}"
        writing = ", in a write" if self._unfinished() else ""
        if was_killed:
            self.kills.append(f"killed{whom} {after:.3f} s after checkpoint {number}{writing}")

    def _unfinished(self) -> list[str]:
        return [name for name in os.listdir(self.folder.path) if name.endswith(".new")]

    def _kill_all(self, process: Process) -> bool:
        """Return whether the run was not over yet."""
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        self._check(process.wait() in (0, -signal.SIGKILL), process.returncode)
        return process.returncode == -signal.SIGKILL

    def _kill_one(self, first: Process, rank: int) -> bool:
        """Return whether the run was not over yet; the other process has ended as it should."""
        follower, is_done = follower_of(first), self.num_checkpoints >= self.last or self.is_over
        victim = follower if rank else first.pid
        if victim is not None and first.poll() is None:
            os.kill(victim, signal.SIGKILL)
        code = first.wait(PATIENCE)
        if not rank and follower is not None:
            code = exit_code(follower)
        was_left_alone = code == 2 and LEFT_ALONE in self.log.read_text()
        self._check(was_left_alone or (is_done and code in (0, -signal.SIGKILL)), code)
        return was_left_alone or first.returncode == -signal.SIGKILL

    def _check(self, is_right: bool, code: int) -> None:
        if not is_right:
            sys.exit(f"{'; '.join(self.kills)}: a process ended with {code}:\n{self.log.read_text()[-2000:]}")

    @property
    def is_over(self) -> bool:
        """Whether the run came to its end, so that there is nothing to resume from."""
        return not self.folder.checkpoints.files()

    def finish(self) -> None:
        """Train to the end, from the checkpoint or, if there is none yet, from the beginning."""
        if self.is_over and self._is_finished():
            self.outcome = "had finished"
            return
        self.outcome = "no checkpoint yet" if self.is_over else self.folder.checkpoints.files()[0].name[:17]
        if self.start(resume=not self.is_over).wait() != 0:
            sys.exit(f"the run could not be resumed:\n{self.log.read_text()[-2000:]}")

    def _is_finished(self) -> bool:
        return self.folder.summary_file.exists() and self.folder.read_summary()["status"] == "finished"

    def result(self) -> tuple[bytes, bytes, list[dict[str, float]]]:
        """Return weights and averages as they lie on the disk, and the metrics but for the seconds."""
        averages = self.folder.averages_file
        rows = [{name: value for name, value in row.items() if name != "seconds"} for row in self.folder.read_metrics()]
        return self.folder.weights_file.read_bytes(), averages.read_bytes() if averages.exists() else b"", rows


def follower_of(first: Process) -> int | None:
    """Return the second process of a run; None if it has ended."""
    try:
        children = Path(f"/proc/{first.pid}/task/{first.pid}/children").read_text().split()
        living = [child for child in children if "\nState:\tZ" not in Path(f"/proc/{child}/status").read_text()]
    except OSError:  # one has ended meanwhile
        return None
    return int(living[0]) if living else None


def adopt_orphans() -> None:
    """Become the parent of the processes whose own one is killed, so that their exit codes can be had."""
    ctypes.CDLL(None).prctl(SET_CHILD_SUBREAPER, 1)


def exit_code(orphan: int) -> int:
    """Return the exit code of an adopted process, when it has ended."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        number, status = os.waitpid(orphan, os.WNOHANG)
        if number:
            return os.waitstatus_to_exitcode(status)
        time.sleep(POLL)
    sys.exit(f"process {orphan} has not noticed that it is left alone.")


class Killer:
    """Draws when a run is killed, and of several processes which.

    Args:
        seed: Of what is drawn.
        devices: How many processes a run has.
        last: The number of the last checkpoint.
        interval: Seconds from one checkpoint to the next.
    """

    def __init__(self, seed: int, devices: int, last: int, interval: float) -> None:
        self.random, self.devices, self.last, self.interval = random.Random(seed), devices, last, interval

    def kill(self, trial: Trial, process: Process, *, in_write: bool) -> None:
        """Kill a run that has been started, after a checkpoint that it has still to write."""
        number = self.random.randint(min(trial.num_checkpoints + 1, self.last), self.last)
        after = self.random.uniform(0, self.interval)
        rank = self.random.randrange(self.devices) if self.devices > 1 else None
        trial.kill(process, number, after, in_write=in_write, rank=rank)

    def disturb(self, trial: Trial, number: int) -> None:
        """Kill the run of a trial until it has not been over before, and in every second trial once more."""
        while not trial.kills:
            self.kill(trial, trial.start(), in_write=number % 3 == 2)
        if number % 2 and not trial.is_over:
            self.kill(trial, trial.start(resume=True), in_write=number % 3 == 1)


def undisturbed(run: Trial) -> tuple[int, float]:
    """Make a run, and return the number of its last checkpoint and the seconds from one to the next."""
    process = run.start()
    run.wait_for_checkpoint(process, 1)
    begin, last = time.monotonic(), 1
    while process.poll() is None:
        last = max(last, run.num_checkpoints)
        time.sleep(POLL)
    if process.returncode != 0:
        sys.exit(run.log.read_text()[-2000:])
    return last, (time.monotonic() - begin) / last


def main() -> int:
    """Kill, resume, compare, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--devices", type=int, choices=(1, 2), default=1, help="processes, of which one is killed")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("options", nargs="*", help="more options of fptt train, after --")
    arguments = parser.parse_args()
    options = [*SETTING, *EVERY, "--devices", str(arguments.devices), *arguments.options]
    adopt_orphans()
    with tempfile.TemporaryDirectory() as root:
        whole = Trial(Path(root) / "whole", options)
        last, interval = undisturbed(whole)
        killer = Killer(arguments.seed, arguments.devices, last, interval)
        identical = 0
        for number in range(arguments.kills):
            trial = Trial(Path(root) / f"trial-{number}", options, last)
            killer.disturb(trial, number)
            trial.finish()
            is_same = trial.result() == whole.result()
            identical += is_same
            line = "; ".join([*trial.kills, trial.outcome, "identical" if is_same else "DIFFERENT"])
            print(f"{number + 1:3d}  {line}", flush=True)
            shutil.rmtree(trial.folder.path)
    print(f"{identical} of {arguments.kills} identical")
    return int(identical < arguments.kills)


if __name__ == "__main__":
    sys.exit(main())
