import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from fptt.experiments.commands.cli import INTERRUPTED, run
from fptt.experiments.process.console import OutputConsole, say
from fptt.experiments.process.errors import UnwritableError
from fptt.experiments.training.folder import RunFolder
from tests import forks

FPTT = [sys.executable, "-m", "fptt"]
QUICK = ["train", "--limit", "64", "--hidden-size", "4", "--threads", "1", "--epochs", "1"]
ASCII = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": ""}


def test_a_run_whose_reader_has_gone_goes_on_to_its_end(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [*FPTT, *QUICK, "--out", str(tmp_path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline().startswith("FPTT on digits")
    process.stdout.close()
    _, errors = process.communicate(timeout=120)
    assert (process.returncode, errors) == (0, "")
    assert RunFolder(tmp_path).read_summary()["status"] == "finished"


def test_a_help_whose_reader_has_gone_ends_without_a_word() -> None:
    """Whether it is longer than what a pipe holds or not."""
    for arguments in (["train", "--help"], ["evaluate", "--help"]):
        process = subprocess.Popen([*FPTT, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert process.stdout is not None
        process.stdout.close()
        _, errors = process.communicate(timeout=120)
        assert (process.returncode, errors) == (0, "")


def has_rows(metrics: Path) -> bool:
    return metrics.exists() and metrics.read_text().count("\n") > 1


@pytest.mark.parametrize("command", ["train", "compare"])
def test_a_run_whose_terminal_is_closed_can_be_resumed(command: str, tmp_path: Path) -> None:
    """Nothing can be written there any more; the runs of a comparison, which are not told, are asked to end."""
    pty = pytest.importorskip("pty")
    runs, options = {
        "train": (tmp_path, []),
        "compare": (tmp_path / "equal-epochs" / "fptt-seed-0", ["--methods", "fptt", "--budgets", "epochs"]),
    }[command]
    folder, arguments = RunFolder(runs), [command, *QUICK[1:-1], "100000", *options, "--out", str(tmp_path)]
    master, terminal = pty.openpty()
    told = partial(signal.signal, signal.SIGHUP, signal.SIG_DFL)  # these tests may run under nohup
    process = forks.Fork([*FPTT, *arguments], stdout=terminal, stderr=terminal, before=told)
    os.close(terminal)
    deadline = time.monotonic() + 120
    while not has_rows(folder.metrics_file) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    os.close(master)
    os.kill(process.pid, signal.SIGHUP)  # as the shell does, or the kernel
    assert process.wait(120) == INTERRUPTED
    assert folder.read_summary()["status"] == "interrupted"
    assert folder.can_resume(folder.read_config())


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_output_that_cannot_be_written_is_one_clear_line(tmp_path: Path) -> None:
    """The first in a process of its own, the others forked."""
    for arguments in (["--help"], ["recipes"], [*QUICK, "--out", str(tmp_path)]):
        start: Any = subprocess.run if arguments == ["--help"] else forks.run
        with open("/dev/full", "w") as full:
            ended = start([*FPTT, *arguments], stdout=full, stderr=subprocess.PIPE, text=True)
        assert ended.returncode == 2
        assert ended.stderr == "fptt: the output cannot be written: No space left on device.\n"


def test_a_console_is_quiet_once_it_cannot_write(tmp_path: Path) -> None:
    with open("/dev/full", "w") as full:
        console = OutputConsole(file=full)
        with pytest.raises(UnwritableError, match="No space left"):
            say(console, "one")
        say(console, "two")
        assert console.quiet


EACH = """
import sys
from fptt.__main__ import main
for arguments in {commands}:
    sys.argv[1:] = arguments
    try:
        code = main()
    except SystemExit as end:  # of a help
        code = end.code
    if code:
        sys.exit(f"{{arguments}} ended with {{code}}")
"""
"""The command line, for one command after the other; Python sets up the output of a process when it starts."""


def test_locales_that_lack_characters_lose_nothing_else(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("déjà vu, ça va? σ(x) ↦ y\n" * 40, encoding="utf-8")
    options = ["--task", "text", "--data", str(text), "--length", "10", "--num-chunks", "2", "--batch-size", "4"]
    small = ["--hidden-size", "4", "--embedding-size", "4", "--epochs", "1", "--threads", "1"]
    out = tmp_path / "out"
    train, sample = ["train", *options, *small, "--out", str(out)], ["sample", str(out)]
    each = EACH.format(commands=[["recipes"], ["train", "--help"], train, sample])
    for command in ([*FPTT, "--help"], [sys.executable, "-c", each]):
        ended = subprocess.run(command, env=ASCII, capture_output=True, text=True, check=False)
        assert (ended.returncode, ended.stderr) == (0, "")
        assert ended.stdout.isascii()
    assert "σ" in (RunFolder(out).read_vocabulary() or [])


def test_names_of_folders_and_data_that_no_system_has_are_one_clear_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(["train", "--config", f"{'x' * 300}/config.yaml"]) == 2
    assert capsys.readouterr().err.startswith("fptt: ")
    for command in (["train"], ["train", "--resume"], ["stream"], ["compare"]):
        assert run([*command, "--out", "x" * 300]) == 2
        assert "cannot be a folder: " in capsys.readouterr().err
    for data in ("x" * 300, "a\0b", "~nobody-of-that-name/x"):
        assert run(["train", "--task", "text", "--data", data]) == 2
        message = capsys.readouterr().err
        assert message.startswith("fptt: ")
        assert message.count("\n") == 1
    assert not list(tmp_path.rglob("config.yaml"))


@pytest.mark.parametrize(
    "command",
    [
        ["predict", "--data", "new.csv", "--out", "predictions.csv"],
        ["evaluate"],
        ["sample"],
        ["report", "--results"],
    ],
)
def test_a_folder_of_a_name_that_no_system_has_does_not_exist(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("x" * 300, "a\0b"):
        assert run([*command, name]) == 2
        told = capsys.readouterr().err
        assert told.endswith(f"{name} does not exist.\n")
        assert told.count("\n") == 1


def test_more_processes_than_cores_are_not_started(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([*QUICK, "--devices", "1024", "--out", str(tmp_path / "run")]) == 2
    assert f"devices must be at most the {os.cpu_count()} cores of this machine, got 1024." in capsys.readouterr().err
