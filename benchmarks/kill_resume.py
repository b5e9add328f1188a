"""Kill a training with SIGKILL at random moments, resume it, and compare its weights with those of an undisturbed one.

    python benchmarks/kill_resume.py --kills 50

The moments are spread over the run by its checkpoints, not by the clock, so that a busy machine does not move them: a
kill falls up to one interval after a checkpoint drawn from all. Every third waits for a file that is being written; in
every second trial the resumed run is killed again. A trial whose run is over before the kill is made again. Ends with
`50 of 50 identical`, or with exit code 1.
"""

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from fptt.experiments.run_folder import RunFolder

SETTING = ("--limit", "128", "--hidden-size", "16", "--batch-size", "16", "--epochs", "5", "--threads", "1")
"""About a second of training on the digits, with a checkpoint every few batches."""
EVERY = ("--checkpoint-updates", "24")
POLL = 0.0005
"""Seconds."""


class Trial:
    """One run that is killed, perhaps more than once.

    Attributes:
        kills: What is told of each kill.
        outcome: What was there to go on from in the end.
    """

    def __init__(self, folder: Path, options: list[str]) -> None:
        self.folder, self.options = RunFolder(folder), options
        self.kills: list[str] = []
        self.outcome = ""

    def start(self, *, resume: bool = False) -> "subprocess.Popen[bytes]":
        """Start the training, or go on with it, in a process group of its own."""
        how = ["--resume"] if resume else ["--overwrite", *self.options]
        command = [sys.executable, "-m", "fptt", "train", *how, "--out", str(self.folder.path)]
        log = self.folder.path.with_suffix(".log").open("ab")
        with log:
            return subprocess.Popen(command, stdout=log, stderr=log, process_group=0)

    def wait_for_training(self, process: "subprocess.Popen[bytes]") -> None:
        """Return when the first checkpoint is there."""
        self.wait_for_checkpoint(process, 1)

    def wait_for_checkpoint(self, process: "subprocess.Popen[bytes]", number: int) -> None:
        """Return when so many checkpoints have been written since the beginning, or the process is over."""
        while process.poll() is None and self.num_checkpoints < number:
            time.sleep(POLL)

    @property
    def num_checkpoints(self) -> int:
        """How many have been written since the beginning, as the name of the newest tells; 0 without any."""
        files = self.folder.checkpoints.files()
        return int(files[0].name.split("-")[1]) if files else 0

    def kill(self, process: "subprocess.Popen[bytes]", number: int, after: float, *, in_write: bool) -> None:
        """Kill all that was started, some seconds after a checkpoint and, if asked, when a file is being written."""
        self.wait_for_checkpoint(process, number)
        moment = time.monotonic() + after
        while process.poll() is None and time.monotonic() < moment:
            time.sleep(POLL)
        while in_write and process.poll() is None and not self._unfinished():
            pass  # a write takes less than a millisecond
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        was_killed = process.wait() == -signal.SIGKILL
        writing = ", in a write" if self._unfinished() else ""
        if was_killed:
            self.kills.append(f"killed {after:.3f} s after checkpoint {number}{writing}")

    def _unfinished(self) -> list[str]:
        return [name for name in os.listdir(self.folder.path) if name.endswith(".new")]

    @property
    def is_over(self) -> bool:
        """Whether the run came to its end, so that there is nothing to go on from."""
        return not self.folder.checkpoints.files()

    def finish(self) -> None:
        """Go on to the end, from the checkpoint or, if there is none yet, from the beginning."""
        if not self.folder.checkpoints.files() and self._is_finished():
            self.outcome = "had finished"
            return
        can_resume = bool(self.folder.checkpoints.files())
        self.outcome = self.folder.checkpoints.files()[0].name[:17] if can_resume else "no checkpoint yet"
        process = self.start(resume=can_resume)
        if process.wait() != 0:
            sys.exit(f"the run could not go on:\n{self.folder.path.with_suffix('.log').read_text()[-2000:]}")

    def _is_finished(self) -> bool:
        return self.folder.summary_file.exists() and self.folder.read_summary()["status"] == "finished"

    def result(self) -> tuple[bytes, bytes, list[dict[str, float]]]:
        """Return weights and averages as they lie on the disk, and the metrics but for the seconds."""
        averages = self.folder.averages_file
        rows = [{name: value for name, value in row.items() if name != "seconds"} for row in self.folder.read_metrics()]
        return self.folder.weights_file.read_bytes(), averages.read_bytes() if averages.exists() else b"", rows


def undisturbed(run: Trial) -> tuple[int, float]:
    """Make a run, and return the number of its last checkpoint and the seconds from one to the next."""
    process = run.start()
    run.wait_for_training(process)
    begin, last = time.monotonic(), 1
    while process.poll() is None:
        last = max(last, run.num_checkpoints)
        time.sleep(POLL)
    if process.returncode != 0:
        sys.exit(run.folder.path.with_suffix(".log").read_text()[-2000:])
    return last, (time.monotonic() - begin) / last


def main() -> int:
    """Kill, resume, compare, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("options", nargs="*", help="more options of fptt train, after --")
    arguments = parser.parse_args()
    moments = random.Random(arguments.seed)
    options = [*SETTING, *EVERY, *arguments.options]
    with tempfile.TemporaryDirectory() as root:
        whole = Trial(Path(root) / "whole", options)
        last, interval = undisturbed(whole)
        identical = 0
        for number in range(arguments.kills):
            trial = Trial(Path(root) / f"trial-{number}", options)
            while not trial.kills:
                begin = moments.randint(1, last)
                trial.kill(trial.start(), begin, moments.uniform(0, interval), in_write=number % 3 == 2)
            if number % 2 and not trial.is_over:
                again = moments.randint(min(trial.num_checkpoints + 1, last), last)
                process = trial.start(resume=True)
                trial.kill(process, again, moments.uniform(0, interval), in_write=number % 3 == 1)
            trial.finish()
            is_same = trial.result() == whole.result()
            identical += is_same
            told = "; ".join([*trial.kills, trial.outcome, "identical" if is_same else "DIFFERENT"])
            print(f"{number + 1:3d}  {told}", flush=True)
            shutil.rmtree(trial.folder.path)
    print(f"{identical} of {arguments.kills} identical")
    return int(identical < arguments.kills)


if __name__ == "__main__":
    sys.exit(main())
