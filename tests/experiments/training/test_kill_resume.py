"""The short version of benchmarks/kill_resume.py."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[3] / "benchmarks" / "kill_resume.py"


def kill(num_kills: int, *options: str) -> list[str]:
    """Return what the script tells of each kill; all runs have ended as the undisturbed one."""
    command = [sys.executable, str(SCRIPT), "--kills", str(num_kills), *options]
    killed = subprocess.run(command, capture_output=True, text=True, check=False)
    assert killed.returncode == 0, killed.stdout + killed.stderr
    *lines, last = killed.stdout.splitlines()
    assert last == f"{num_kills} of {num_kills} identical"
    assert all("; identical" in line and "killed" in line for line in lines)
    return lines


def test_killed_runs_end_as_an_undisturbed_one() -> None:
    """The second is killed again after it was resumed, the third in a write."""
    assert len(kill(3)) == 3


@pytest.mark.slow
@pytest.mark.xdist_group("devices")
def test_one_of_two_processes_is_killed() -> None:
    assert all("killed process" in line for line in kill(2, "--devices", "2"))
