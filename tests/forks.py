"""Processes forked from one that has imported everything already, in the place of `subprocess.Popen` and `run`.

An import of PyTorch, Fabric and all the rest takes a processor seconds, a fork nothing. A fork has signals, limits,
output and an exit code of its own. What a test must not ask of it is what an interpreter does at its start (the locale)
and at its end.
"""

import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import connection, reduction
from multiprocessing.util import Finalize
from pathlib import Path
from typing import IO, Any, NamedTuple
from weakref import WeakSet

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    [
        *("__main__", "tests.forks", "fptt.experiments.training.loop", "fptt.experiments.streams.stream"),
        *("fptt.experiments.commands.runs", "fptt.experiments.commands.stream", "fptt.experiments.commands.studies"),
        *("fptt.experiments.studies.plots", "fptt.experiments.tasks.digits", "torch.distributed"),
    ]
)

_LOCK = threading.Lock()
"""Held where `multiprocessing` reads exit codes, which it must not do in two threads at once."""


class Fork:
    """A process, with what the tests need of `subprocess.Popen`; its output is text.

    Args:
        command: `[sys.executable, "-m", module, …]`, `[sys.executable, "-c", code, …]` or `[sys.executable, file, …]`.
        stdout: A file, or `subprocess.PIPE`.
        stderr: A file, `subprocess.PIPE` or `subprocess.STDOUT`.
        env: The environment; that of this process by default.
        cwd: The folder; that of this process by default.
        process_group: 0 to lead a group of its own.
        before: Called in the process before the command; a function that can be pickled.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        stdout: IO[Any] | int | None = None,
        stderr: IO[Any] | int | None = None,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        process_group: int | None = None,
        before: Callable[[], Any] | None = None,
        text: bool = True,
    ) -> None:
        self.args, self.returncode = command, None
        output, self.stdout = _ends(stdout, 1)
        errors, self.stderr = (output, None) if stderr == subprocess.STDOUT else _ends(stderr, 2)
        order = _Order(
            output=_Descriptor(output),
            errors=_Descriptor(errors),
            command=list(command),
            environment=dict(os.environ if env is None else env),
            folder=cwd or Path.cwd(),
            group=process_group,
            before=before,
        )
        with _LOCK:
            self._process = CONTEXT.Process(target=_live, args=(order,))
            self._process.start()
            _ALIVE.add(self._process)
        for descriptor, pipe in ((output, self.stdout), (errors, self.stderr)):
            if pipe is not None:
                os.close(descriptor)
        assert self._process.pid is not None
        self.pid: int = self._process.pid

    def poll(self) -> int | None:
        """Return the exit code, or None while it runs."""
        with _LOCK:
            self.returncode = self._process.exitcode
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Return the exit code when it has ended."""
        connection.wait([self._process.sentinel], timeout)
        code = self.poll()
        if code is None:
            raise subprocess.TimeoutExpired(self.args, timeout or 0)
        return code

    def communicate(self, timeout: float = 300) -> tuple[str, str]:
        """Return what it has written to its pipes when it has ended; kill it after so many seconds."""
        killer = threading.Timer(timeout, self.kill)
        killer.start()
        with ThreadPoolExecutor(2) as pool:
            output, errors = pool.map(_read, (self.stdout, self.stderr))
        self.wait()
        killer.cancel()
        return output, errors

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def run(command: Sequence[str], **options: Any) -> subprocess.CompletedProcess[str]:
    """Return what comes of a command, as `subprocess.run` with captured output."""
    process = Fork(command, **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options})
    output, errors = process.communicate()
    assert process.returncode is not None
    return subprocess.CompletedProcess(list(command), process.returncode, output, errors)


class _Descriptor:
    """A descriptor of a file, which is pickled by handing over the file."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __reduce__(self) -> tuple[Any, ...]:
        return _received, (reduction.DupFd(self.number),)


def _received(duplicate: Any) -> _Descriptor:
    return _Descriptor(duplicate.detach())


def _read(pipe: IO[str] | None) -> str:
    """Return what is in a pipe up to its end, and close it."""
    if pipe is None:
        return ""
    with pipe:
        return pipe.read()


def _ends(file: IO[Any] | int | None, inherited: int) -> tuple[int, IO[str] | None]:
    """Return the descriptor to write to, and the end of a pipe to read from."""
    if file == subprocess.PIPE:
        read, write = os.pipe()
        return write, os.fdopen(read, encoding="utf-8")
    if file is None:
        return inherited, None
    return (file if isinstance(file, int) else file.fileno()), None


class _Order(NamedTuple):
    """What a fork is to do."""

    output: _Descriptor
    errors: _Descriptor
    command: list[str]
    environment: dict[str, str]
    folder: Path
    group: int | None
    before: Callable[[], Any] | None


def _live(order: _Order) -> None:
    """Become what `subprocess.Popen` would have started."""
    os.dup2(order.output.number, 1)
    os.dup2(order.errors.number, 2)
    for descriptor in {order.output.number, order.errors.number}:
        os.close(descriptor)
    sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", encoding="utf-8", closefd=False, buffering=1)  # noqa: SIM115
    if order.group is not None:
        os.setpgid(0, order.group)
    os.environ.clear()
    os.environ.update(order.environment)
    os.chdir(order.folder)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell makes what runs in its background ignore Ctrl-C
    if order.before is not None:
        order.before()
    _, how, *rest = order.command
    if how == "-c":
        sys.argv = ["-c", *rest[1:]]
        exec(compile(rest[0], "<string>", "exec"), {"__name__": "__main__"})
    elif how == "-m":
        sys.argv = rest
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    else:
        sys.argv = [how, *rest]
        sys.path.insert(0, str(Path(how).parent))
        runpy.run_path(how, run_name="__main__")


_ALIVE: WeakSet[Any] = WeakSet()


def _end_all() -> None:
    """Kill what a failed test has left: `multiprocessing` would wait for it."""
    for process in _ALIVE:
        if process.exitcode is None:
            process.kill()


# before it waits, and at the end of a fork too, where `atexit` is not asked: tests/faults.py runs pytest in one
Finalize(None, _end_all, exitpriority=100)
