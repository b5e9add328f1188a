"""The short version of benchmarks/kill_resume.py."""

import subprocess
import sys
from importlib import util
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.forks import Fork

SCRIPT = Path(__file__).parents[3] / "benchmarks" / "kill_resume.py"


def kills(output: str, num_kills: int) -> list[str]:
    """Return what the script tells of each kill; all runs have ended as the undisturbed one."""
    *lines, last = output.splitlines()
    assert last == f"{num_kills} of {num_kills} identical"
    assert all("; identical" in line and "killed" in line for line in lines)
    return lines


def test_killed_runs_end_as_an_undisturbed_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The second is killed again after it was resumed, the third in a write; all of them are forked."""
    spec = util.spec_from_file_location("kill_resume", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    script = util.module_from_spec(spec)
    spec.loader.exec_module(script)
    monkeypatch.setattr(script, "subprocess", SimpleNamespace(Popen=Fork))
    monkeypatch.setattr(script, "adopt_orphans", lambda: None)  # a run of one process leaves none
    monkeypatch.setattr(script, "POLL", 0.002)
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), "--kills", "3"])
    code = script.main()
    output = capsys.readouterr().out
    assert code == 0, output
    assert len(kills(output, 3)) == 3


@pytest.mark.slow
@pytest.mark.xdist_group("devices")
def test_one_of_two_processes_is_killed() -> None:
    command = [sys.executable, str(SCRIPT), "--kills", "2", "--devices", "2"]
    killed = subprocess.run(command, capture_output=True, text=True, check=False)
    assert killed.returncode == 0, killed.stdout + killed.stderr
    assert all("killed process" in line for line in kills(killed.stdout, 2))
