"""The short version of benchmarks/kill_resume.py."""

import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "kill_resume.py"


def test_killed_runs_end_as_an_undisturbed_one() -> None:
    """The second is killed again after it was resumed, the third in a write."""
    command = [sys.executable, str(SCRIPT), "--kills", "3"]
    killed = subprocess.run(command, capture_output=True, text=True, check=False)
    assert killed.returncode == 0, killed.stdout + killed.stderr
    assert killed.stdout.splitlines()[-1] == "3 of 3 identical"
    assert all("; identical" in line and "killed" in line for line in killed.stdout.splitlines()[:3])
