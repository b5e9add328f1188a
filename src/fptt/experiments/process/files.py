"""Files: read with every kind of damage as one error, written whole or not at all."""

import csv
import json
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import safetensors
import yaml
from yaml.composer import ComposerError
from yaml.constructor import ConstructorError

from fptt.experiments.process.errors import UnreadableFileError, UnwritableError, one_line, reason

MAX_BYTES = 2**27  # metrics of a million rows have some 100 MB, a vocabulary of a million words 10 MB
MAX_DEPTH = 50  # of lists and mappings in one another; ours have three
MAX_DIGITS = 64  # Python refuses 4,300 and takes quadratic time below
LARGEST_INTEGER = 2**63 - 1


def read_text(path: Path, max_bytes: int = MAX_BYTES) -> str:
    """Return the text of a regular file.

    Raises:
        UnreadableFileError: If it is missing, not a file, too large, or not UTF-8.
    """
    with reading(path):
        if not stat.S_ISREG(path.stat().st_mode):  # to open a FIFO would wait for a writer
            raise ValueError("it is not a regular file")
        with path.open("rb") as file:
            content = file.read(max_bytes + 1)
        if len(content) > max_bytes:
            raise ValueError(f"it has more than {max_bytes:,} bytes")
        return content.decode("utf-8")


def read_json(path: Path) -> Any:
    """Return the value in a JSON file; NaN and infinities are read as Python writes them.

    Raises:
        UnreadableFileError: If it is missing, not JSON, nested too deeply, or has an integer beyond 64 bits.
    """
    text = read_text(path)
    with reading(path):
        return json.loads(text, parse_int=_integer)


def read_yaml(path: Path, max_bytes: int = MAX_BYTES) -> Any:
    """Return the value in a YAML file, as `parse_yaml` reads it.

    Raises:
        UnreadableFileError: If it is missing, not such YAML, nested too deeply, or has an integer beyond 64 bits.
    """
    text = read_text(path, max_bytes)
    with reading(path):
        return parse_yaml(text)


def read_csv(path: Path) -> list[dict[str, str]]:
    """Return the rows of a CSV file, by the names in its first line.

    Raises:
        UnreadableFileError: If it is missing, has a field of more than 128 KiB, or a row of another length.
    """
    text = read_text(path)
    with reading(path):
        names, *rows = list(csv.reader(text.splitlines(keepends=True))) or [[]]
        return [dict(zip(names, row, strict=True)) for row in rows]


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Raise UnreadableFileError, with the path and the reason, for what goes wrong while a file is read and parsed."""
    try:
        yield
    except (OSError, ValueError, RecursionError, csv.Error) as error:
        raise UnreadableFileError(path, reason(error)) from error


def parse_yaml(text: str) -> Any:
    """Return the value of a YAML text: null, booleans, numbers, text, lists and mappings; dates stay text.

    Tags and aliases are refused: with aliases, nine short lines make a value of 10⁹ entries.

    Raises:
        ValueError: If it is not such YAML, has a key twice, is nested too deeply, or has an integer beyond 64 bits.
    """
    try:
        return yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        raise ValueError(one_line(error)) from error


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, without what makes it slow, or raise errors of another kind than its own."""

    yaml_implicit_resolvers: ClassVar = {
        first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event = self.peek_event()
        if isinstance(event, yaml.AliasEvent) or event.tag not in (None, "!"):
            kind = "aliases" if isinstance(event, yaml.AliasEvent) else "tags"
            raise ComposerError(None, None, f"{kind} are not supported", event.start_mark)
        if self.depth >= MAX_DEPTH:  # the scanner takes quadratic time for what is deeper
            raise ComposerError(None, None, "it is nested too deeply", event.start_mark)
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        mapping = super().construct_mapping(node, deep)
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node)
            if key in seen:  # PyYAML would take the last one
                raise ConstructorError(None, None, f"the key {key!r:.40} stands there twice", key_node.start_mark)
            seen.add(key)
        return mapping

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        if len(node.value) > MAX_DIGITS:
            raise ValueError(f"an integer has {len(node.value):,} digits")
        return _within_64_bits(super().construct_yaml_int(node))


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_yaml_int)


def _integer(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise ValueError(f"an integer has {len(digits):,} digits")
    return _within_64_bits(int(digits))


def _within_64_bits(number: int) -> int:
    if abs(number) > LARGEST_INTEGER:
        raise ValueError(f"an integer is beyond 64 bits: {number}")
    return number


def replace_text(path: Path, text: str) -> None:
    """Replace a file in one step, so that nobody reads half of it.

    Raises:
        UnwritableError: If it cannot be written.
    """
    with replaced(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


@contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """Give another name to write under, which takes the place of the file at the end.

    Raises:
        UnwritableError: If it cannot be written.
    """
    temporary = path.with_name(path.name + ".new")
    with writing(path):
        temporary.unlink(missing_ok=True)  # a planted link would be written through
        yield temporary
        os.replace(temporary, path)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Raise UnwritableError, with the path, for a full disk or a folder that cannot be written."""
    try:
        yield
    except (OSError, safetensors.SafetensorError) as error:
        raise UnwritableError(f"{path} cannot be written: {one_line(error).rstrip('.')}.") from error
