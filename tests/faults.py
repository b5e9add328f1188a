"""Planted faults: each must turn the tests red, else the tests do not test. Run by `make faults`.

`faults.toml` is the table. Every fault replaces one piece of text in one function of a copy of the source; the test
that it names, or all tests of the folder that mirrors its file, then run on the copy.
"""

import argparse
import ast
import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "fptt"


class Fault(NamedTuple):
    """What is wrong, where, the text that stands there now and with the fault, and the test that is to see it."""

    name: str
    file: str
    function: str
    old: str
    new: str
    test: str = ""


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


def tests_for(fault: Fault) -> str:
    """Return the test that is to see a fault, or the folder that mirrors its file."""
    if fault.test:
        return fault.test
    folder = ROOT / "tests" / str(Path(fault.file).parent).lstrip("_")
    while not list(folder.glob("test_*.py")):
        folder = folder.parent
    return str(folder.relative_to(ROOT))


def run_tests(fault: Fault | None, tests: list[str]) -> subprocess.CompletedProcess[str]:
    """Run tests on a copy of the source with a fault in it, or with none."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "src"
        shutil.copytree(ROOT / "src", source)
        if fault is not None:
            file = source / "fptt" / fault.file
            file.write_text(planted(fault, file.read_text()))
        chosen = "not slow" if fault is not None and fault.test else "not slow and not machine_code"
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "-m", chosen, *tests]
        environment = {**os.environ, "PYTHONPATH": str(source)}
        result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    if result.returncode not in (0, 1):
        name = "no fault" if fault is None else f"fault {fault.name!r}"
        sys.exit(f"{name}: pytest could not run\n{result.stdout}{result.stderr}")
    return result


def main() -> int:
    """Plant faults in turn, print which ones the tests miss, and return their number."""
    parser = argparse.ArgumentParser(description="Plant faults in copies of the source; every one must turn tests red.")
    parser.add_argument("part", nargs="?", default="", help="plant those only that have this in their names")
    part = parser.parse_args().part
    faults = [fault for fault in FAULTS if part in fault.name]
    if misplaced():
        sys.exit("these faults no longer fit the source:\n" + "\n".join(misplaced()))
    if run_tests(None, sorted({tests_for(fault) for fault in faults})).returncode:
        sys.exit("the tests are red without any fault: mend them first")
    caught = []
    with ThreadPoolExecutor(os.cpu_count()) as executor:
        results = executor.map(lambda fault: run_tests(fault, [tests_for(fault)]), faults)
        for fault, result in zip(faults, results, strict=True):
            caught.append(result.returncode == 1)
            print(f"{'caught' if caught[-1] else 'MISSED'}  {fault.name}", flush=True)
    print(f"{sum(caught)} of {len(faults)} planted faults turn the tests red")
    return len(faults) - sum(caught)


if __name__ == "__main__":
    sys.exit(main())
