"""Planted faults: each must turn the tests red, else the tests do not test. Run by `make faults`.

`faults.toml` is the table. Every fault replaces one piece of text in one function of a copy of the source; the test
that it names then runs on the copy, in a process forked from this one, which has imported PyTorch already.
"""

import argparse
import ast
import importlib
import multiprocessing
import os
import shutil
import sys
import tempfile
import tomllib
from collections.abc import Iterator, Sequence
from itertools import groupby
from multiprocessing import connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "fptt"
IMPORTED = ("torch", "torch._dynamo", "torch._inductor.compile_fx", "pandas", "sklearn.model_selection", "pytest")
"""What takes long to import and is not under test; nothing that keeps files, whose place tests/conftest.py decides."""
CONTEXT = multiprocessing.get_context("fork")
GREEN, RED, NOT_RUN = 0, 10, 11
"""Exit codes of a process; an exception of its own would end it with 1, the code of pytest for red tests."""


class Fault(NamedTuple):
    """What is wrong, where, the text that stands there now and with the fault, and the test that is to see it."""

    name: str
    file: str
    function: str
    old: str
    new: str
    test: str


class MisplacedError(ValueError):
    """A fault no longer fits the source."""


FAULTS = [Fault(**entry) for entry in tomllib.loads((ROOT / "tests" / "faults.toml").read_text())["fault"]]


def planted(fault: Fault, text: str) -> str:
    """Return the text of a file with a fault in it.

    Raises:
        MisplacedError: If the function does not exist, or the text does not stand in it exactly once.
    """
    start, end = _extent(fault, text)
    body = text[start:end]
    if body.count(fault.old) != 1:
        place = f"{fault.function or 'the module'} of {fault.file}"
        raise MisplacedError(f"{fault.name!r}: {fault.old!r} stands {body.count(fault.old)} times in {place}.")
    return text[:start] + body.replace(fault.old, fault.new) + text[end:]


def _extent(fault: Fault, text: str) -> tuple[int, int]:
    """Return where the function of a fault begins and ends in its file."""
    if not fault.function:
        return 0, len(text)
    node: ast.AST = ast.parse(text)
    for name in fault.function.split("."):
        found = [
            child
            for child in ast.walk(node)
            if isinstance(child, ast.FunctionDef | ast.ClassDef) and child.name == name and child is not node
        ]
        if not found:
            raise MisplacedError(f"{fault.name!r}: {fault.file} has no {fault.function}.")
        node = found[0]
    assert isinstance(node, ast.FunctionDef | ast.ClassDef)
    assert node.end_lineno is not None
    lines = text.splitlines(keepends=True)
    first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)]) - 1
    return sum(map(len, lines[:first])), sum(map(len, lines[: node.end_lineno]))


def misplaced() -> list[str]:
    """Return why faults no longer fit the source."""
    reasons = []
    for fault in FAULTS:
        file = SOURCE / fault.file
        try:
            if not file.is_file():
                raise MisplacedError(f"{fault.name!r}: there is no {fault.file}.")
            planted(fault, file.read_text())
        except MisplacedError as error:
            reasons.append(str(error))
    return reasons


class Task(NamedTuple):
    """Tests to run on a copy of the source, with a fault in it or with none."""

    fault: Fault | None
    tests: list[str]


class Ended(NamedTuple):
    """What came of a task."""

    task: Task
    code: int | None
    output: str


def run_tests(tasks: Sequence[Task], num_jobs: int) -> Iterator[Ended]:
    """Yield what comes of tasks, several at a time, in the order of their ends."""
    waiting = list(reversed(tasks))
    running: dict[int, tuple[BaseProcess, Task, Path]] = {}
    with tempfile.TemporaryDirectory() as root:
        while waiting or running:
            while waiting and len(running) < num_jobs:
                task = waiting.pop()
                folder = Path(tempfile.mkdtemp(dir=root))
                process = CONTEXT.Process(target=_test, args=(task, folder))
                process.start()
                running[process.sentinel] = process, task, folder
            for sentinel in connection.wait(list(running)):
                assert isinstance(sentinel, int)
                process, task, folder = running.pop(sentinel)
                process.join()
                yield Ended(task, process.exitcode, (folder / "output").read_text(errors="replace"))
                shutil.rmtree(folder)


def _test(task: Task, folder: Path) -> None:
    """Plant the fault and run the tests, as `python -m pytest` would with the copy in its path; ends the process."""
    with (folder / "output").open("w") as output:
        for descriptor in (1, 2):
            os.dup2(output.fileno(), descriptor)
    source = folder / "src"
    shutil.copytree(ROOT / "src", source)
    if task.fault is not None:
        file = source / "fptt" / task.fault.file
        file.write_text(planted(task.fault, file.read_text()))
    os.environ["PYTHONPATH"] = str(source)  # of its own processes
    sys.path[:] = [str(source), str(ROOT), *(path for path in sys.path if path != str(ROOT / "tests"))]
    os.chdir(ROOT)
    pytest = importlib.import_module("pytest")
    # what a red test leaves open is no matter here, and would end pytest with an exception
    plugins = ["-p", "no:cacheprovider", "-p", "no:unraisableexception"]
    code = pytest.main(["-x", "-q", *plugins, "-m", "not slow", *task.tests])
    loaded = Path(sys.modules["fptt"].__file__ or "")
    if not loaded.is_relative_to(source):
        print(f"the tests have run on {loaded}")
    sys.exit({0: GREEN, 1: RED}.get(code, NOT_RUN) if loaded.is_relative_to(source) else NOT_RUN)


def passed(ended: Ended) -> bool:
    """Return whether all tests are green; exit if they could not run."""
    crashed = ended.task.fault is not None and ended.code is not None and ended.code < 0
    if crashed:  # by a signal, as machine code with a fault in it may: red as well
        return False
    if ended.code not in (GREEN, RED):
        name = "no fault" if ended.task.fault is None else f"fault {ended.task.fault.name!r}"
        sys.exit(f"{name}: pytest could not run {' '.join(ended.task.tests)}\n{ended.output}")
    return ended.code == GREEN


def main() -> int:
    """Plant faults in turn, print which ones the tests miss, and return their number."""
    parser = argparse.ArgumentParser(description="Plant faults in copies of the source; every one must turn tests red.")
    parser.add_argument("part", nargs="?", default="", help="plant those only that have this in their names")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes at a time")
    arguments = parser.parse_args()
    faults = [fault for fault in FAULTS if arguments.part in fault.name]
    if misplaced():
        sys.exit("these faults no longer fit the source:\n" + "\n".join(misplaced()))
    os.environ["OMP_NUM_THREADS"] = "1"  # a fork has no threads but its own
    for module in IMPORTED:
        importlib.import_module(module)
    tests = sorted({fault.test for fault in faults})
    files = [list(group) for _, group in groupby(tests, lambda test: test.split("::")[0])]
    tasks = [*(Task(None, file) for file in files), *(Task(fault, [fault.test]) for fault in faults)]
    missed = 0
    for ended in run_tests(tasks, arguments.jobs):
        is_green = passed(ended)
        if ended.task.fault is not None:
            missed += is_green
            print(f"{'MISSED' if is_green else 'caught'}  {ended.task.fault.name}", flush=True)
        elif is_green:
            print(f"green   {ended.task.tests[0].split('::')[0]} without a fault", flush=True)
        else:
            sys.exit(f"the tests are red without any fault: mend them first\n{ended.output}")
    print(f"{len(tests)} tests are green without a fault")
    print(f"{len(faults) - missed} of {len(faults)} planted faults turn the tests red")
    return missed


if __name__ == "__main__":
    sys.exit(main())
