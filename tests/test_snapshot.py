"""The public names of the library and the help of the command line, as they are written in tests/snapshot.

FPTT_UPDATE_SNAPSHOTS=1 pytest tests/test_snapshot.py     writes them anew
"""

import inspect
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import fptt
from fptt.__main__ import main

FOLDER = Path(__file__).parent / "snapshot"
UPDATE = os.environ.get("FPTT_UPDATE_SNAPSHOTS") == "1"
COMMANDS = (
    "train",
    "evaluate",
    "predict",
    "export",
    "push",
    "pull",
    "sample",
    "stream",
    "data",
    "recipes",
    "compare",
    "ablate",
    "report",
    "bench",
)
HELP = (
    (),
    *((name,) for name in COMMANDS),
    ("bench", "speed"),
    ("bench", "spiking"),
    ("bench", "memory"),
    ("bench", "convergence"),
)


def check(name: str, text: str) -> None:
    """Compare a text with the file of that name, or write it."""
    text = "".join(f"{line.rstrip()}\n" for line in text.strip().splitlines())
    file = FOLDER / f"{name}.txt"
    if UPDATE:
        FOLDER.mkdir(exist_ok=True)
        file.write_text(text, encoding="utf-8")
    assert text == file.read_text(encoding="utf-8"), (
        f"{file.name} is not what it was; if that is meant: FPTT_UPDATE_SNAPSHOTS=1"
    )


# -- names -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("module", [fptt, fptt.nn, fptt.nn.spiking], ids=lambda module: module.__name__)
def test_public_names(module: ModuleType) -> None:
    check(module.__name__, "\n".join(describe(module)))


def describe(module: ModuleType) -> Iterator[str]:
    for name, value in sorted(vars(module).items()):
        if name.startswith("_") or (inspect.ismodule(value) and name != "nn"):
            continue  # other modules are there only if something has imported them
        yield f"{kind(value)} {module.__name__}.{name}{signature(value)}"
        if inspect.isclass(value):
            yield from (f"    {line}" for line in describe_members(value))


def describe_members(cls: type) -> Iterator[str]:
    """Describe what a class has of this library's own; not what it has of torch."""
    own = [base for base in cls.__mro__ if base.__module__.partition(".")[0] == "fptt"]
    for name in sorted({name for base in own for name in vars(base) if not name.startswith("_")}):
        value = inspect.getattr_static(cls, name)
        if isinstance(value, classmethod | staticmethod):
            yield f"{type(value).__name__} {name}{signature(getattr(cls, name))}"
        else:
            yield f"{kind(value)} {name}{signature(value)}"


def kind(value: Any) -> str:
    kinds = {"module": inspect.ismodule, "class": inspect.isclass, "function": inspect.isfunction}
    kinds["property"] = lambda value: isinstance(value, property) or inspect.isdatadescriptor(value)
    return next((name for name, is_one in kinds.items() if is_one(value)), "value")


def signature(value: Any) -> str:
    """Return the parameters, or what an alias stands for; without modules, which are private, and addresses."""
    if inspect.ismodule(value) or not callable(value):
        return ""
    if not (inspect.isclass(value) or inspect.isroutine(value)):
        return f" = {without_places(str(value))}"
    try:
        text = without_places(str(inspect.signature(value)))
    except (TypeError, ValueError):
        return ""
    return text


def without_places(text: str) -> str:
    return re.sub(r"\b(?:[A-Za-z_]\w*\.)+(?=[A-Za-z_])| at 0x[0-9a-f]+", "", text)


# -- help --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", HELP, ids="-".join)
def test_help(arguments: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    monkeypatch.setattr(sys, "argv", ["fptt", *arguments, "--help"])
    try:
        code = main()
    except SystemExit as end:
        code = end.code
    assert not code
    check("-".join(("help", *arguments)), capsys.readouterr().out.replace(fptt.__version__, "VERSION"))


def test_every_command_has_its_help_here(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["fptt", "--help"])
    main()
    assert re.findall(r"^  fptt (\w+)   ", capsys.readouterr().out, re.M) == list(COMMANDS)
