"""Kill a training with SIGKILL at random moments, resume it, and compare its weights with those of an undisturbed one.

    python benchmarks/kill_resume.py --kills 50

The moments are spread evenly over the run, from its first checkpoint to the end of its process. Every third kill waits
for a file that is being written. In every second trial the resumed run is killed again, once it has saved something of
its own. Ends with `50 of 50 identical`, or with exit code 1.
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
        """Return when the process has written its first checkpoint."""
        before = self.folder.checkpoints.files()
        while process.poll() is None and self.folder.checkpoints.files() in (before, []):
            time.sleep(POLL)

    def kill(self, process: "subprocess.Popen[bytes]", after: float, *, in_write: bool) -> None:
        """Kill everything that was started, after some seconds and, if asked, when a file is being written."""
        moment = time.monotonic() + after
        while process.poll() is None and time.monotonic() < moment:
            time.sleep(POLL)
        while in_write and process.poll() is None and not self._unfinished():
            pass  # a write takes less than a millisecond
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        was_killed = process.wait() == -signal.SIGKILL
        writing = ", in a write" if self._unfinished() else ""
        self.kills.append(f"killed after {after:.3f} s{writing}" if was_killed else "over before it was killed")

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
        process = whole.start()
        whole.wait_for_training(process)
        begin = time.monotonic()
        if process.wait() != 0:
            sys.exit(whole.folder.path.with_suffix(".log").read_text()[-2000:])
        seconds = time.monotonic() - begin
        identical = 0
        for number in range(arguments.kills):
            trial = Trial(Path(root) / f"trial-{number}", options)
            process = trial.start()
            trial.wait_for_training(process)
            after = moments.uniform(0, seconds)
            trial.kill(process, after, in_write=number % 3 == 2)
            if number % 2 and not trial.is_over:
                process = trial.start(resume=True)
                trial.wait_for_training(process)
                trial.kill(process, moments.uniform(0, max(seconds - after, 0.0)), in_write=number % 3 == 1)
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
