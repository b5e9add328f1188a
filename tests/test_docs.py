"""The documents against the code: what they let one type is what there is, and the README's Python code runs."""

import re
import shlex
from collections.abc import Callable, Iterator
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest

from fptt.experiments.commands.cli import COMMANDS
from fptt.experiments.process.errors import UserError
from fptt.experiments.studies.ablation import parse_axes
from fptt.experiments.studies.contenders import parse_controls, parse_methods

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r"```(\w*)$")
FILE = re.compile(r"\b((?:runs|benchmarks|tests|examples)/[\w./-]*\w\.(?:sh|py|txt|md|json))\b")
TARGETS = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M))


class Line(NamedTuple):
    """A line of a document, the language of the block it stands in (None outside of blocks), and where it is."""

    place: str
    language: str | None
    text: str


def lines() -> Iterator[Line]:
    for document in DOCUMENTS:
        language: str | None = None
        for number, text in enumerate(document.read_text(encoding="utf-8").splitlines(), 1):
            if fence := FENCE.match(text):
                language = fence[1] if language is None else None
            else:
                yield Line(f"{document.relative_to(ROOT)}:{number}", language, text)


LINES = list(lines())
SHELL = [line for line in LINES if line.language in ("", "bash", "sh", "console")]
COMMAND = re.compile(r"(?:(?:^|/|-m )fptt|\"\$\(which fptt\)\" --) +(\w+)([^)]*)")
OPTIONS = re.compile(r" ?(?:-|out/|FOLDER|(?:speed|memory)\b)")


def arguments(text: str) -> Iterator[list[str]]:
    """Return name and arguments of each `fptt …` in a line, without the column that says what it is for."""
    text = re.sub(r"\$\{\w+:\+(.*?)\}|^\w+=\(", r"\1", text)  # what bash puts in if FPTT_DATA is set; a list
    for part in text.split(" then: "):
        for name, rest in COMMAND.findall(part):
            first, *others = re.split(r" {2,}", rest)
            yield [name, *shlex.split(" ".join([first, *filter(OPTIONS.match, others)]), comments=True)]


@pytest.mark.parametrize("line", [line for line in SHELL if list(arguments(line.text))], ids=lambda line: line.place)
def test_a_command_is_one_of_the_command_line(
    line: Line, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    # sequences of a user's own are read for their length, and those of the documents are not there
    data = SimpleNamespace(training_length=lambda: 100)
    monkeypatch.setattr("fptt.experiments.tasks.registry.load_task", lambda *_: data)
    for name, *options in arguments(line.text):
        assert name in COMMANDS, f"{line.place}: there is no command {name!r}"
        parse: Callable[..., Any] = import_module(f"fptt.experiments.commands.{COMMANDS[name]}").parse
        try:
            command = parse(name, [option.replace("$method", "fptt") for option in options])
            if name == "ablate":
                parse_axes(command.over)
            if name == "compare":
                parse_methods(command.methods)
                if command.controls is not None:
                    parse_controls(command.controls)
        except (SystemExit, UserError) as error:
            pytest.fail(f"{line.place}: fptt {name} does not take {options}: {error} {capsys.readouterr().err}")


def test_targets_of_make_and_files_are_there() -> None:
    wrong = [
        f"{line.place}: no target {target!r} in the Makefile"
        for line in LINES
        for target in re.findall(r"^make ([\w-]+)" if line.language is not None else r"`make ([\w-]+)`", line.text)
        if target not in TARGETS
    ]
    wrong += [
        f"{line.place}: there is no file {name}"
        for line in LINES
        for name in FILE.findall(line.text)
        if not (ROOT / name).exists()
    ]
    assert not wrong, "\n".join(wrong)


def test_what_belongs_to_an_item_of_a_list_is_indented_as_the_site_needs_it() -> None:
    """By four spaces after an empty line; with fewer, code ends the list, and the items after it are one paragraph."""
    wrong = [
        line.place
        for before, line in pairwise(LINES)
        if line.place.startswith("docs/") and line.language is None
        if not before.text.strip() and re.match(r" {1,3}\S", line.text)
    ]
    assert not wrong, f"indented by less than four: {', '.join(wrong)}"


def test_the_code_of_the_readme_runs() -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.S)
    assert len(blocks) >= 3
    names: dict[str, object] = {}
    for block in blocks:
        exec(block, names)
