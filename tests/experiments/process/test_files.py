import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fptt.experiments.process.errors import UnreadableFileError
from fptt.experiments.process.files import parse_yaml, read_csv, read_json, read_text, read_yaml, replace_text

ALIASES = "".join(f"x{n}: &x{n} [{', '.join([f'*x{n - 1}' if n else '1'] * 9)}]\n" for n in range(9))
"""A list of 9⁹ entries, when it is expanded."""


@pytest.mark.parametrize(
    ("read", "content", "reason"),
    [
        (read_yaml, "seed: !!int abc", "tags are not supported"),
        (read_yaml, "permuted: !!bool abc", "tags are not supported"),
        (read_yaml, "seed: " + "7" * 5000, "an integer has 5,000 digits"),
        (read_yaml, "seed: " + "7" * 50, "an integer is beyond 64 bits: 777"),
        (read_yaml, "seed: 0x" + "7" * 5000, "an integer has 5,002 digits"),
        (read_yaml, "seed: 1" + ":1" * 5000, "an integer has 10,001 digits"),
        (read_yaml, "task: " + "[" * 20_000 + "]" * 20_000, "nested too deeply"),
        (read_yaml, "task: " + "{a: " * 20_000 + "}" * 20_000, "nested too deeply"),
        (read_yaml, ALIASES, "aliases are not supported"),
        (read_yaml, "a: [", "expected the node content"),
        (read_yaml, "lr: 0.1\nseed: 1\nlr: 0.2\n", "the key 'lr' stands there twice in .*, line 3, column 1"),
        (read_json, "[" * 100_000 + "]" * 100_000, "recursion"),
        (read_json, '{"test_accuracy": 1' + "0" * 400 + "}", "an integer has 401 digits"),
        (read_json, '{"test_accuracy": 1' + "0" * 30 + "}", "an integer is beyond 64 bits"),
        (read_json, "{", "Expecting property name"),
        (read_csv, "a,b\n1," + "2" * 200_000 + "\n", "field larger than field limit"),
        (read_csv, "a,b\n1\n", "zip"),
    ],
    ids=lambda value: value.__name__ if callable(value) else str(value)[:40],
)
def test_damage_is_one_error_at_once(read: Callable[[Path], Any], content: str, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text(content)
    start = time.process_time()
    with pytest.raises(UnreadableFileError, match=f"{path} cannot be read: .*{reason}") as error:
        read(path)
    assert time.process_time() - start < 2
    assert len(str(error.value)) < 1000


def test_what_is_no_file_of_text_is_named(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    (tmp_path / "large").write_bytes(b" " * 101)
    for name, reason in (
        ("fifo", "not a regular file"),
        ("binary", "can't decode"),
        ("large", "more than 100 bytes"),
        ("missing", "No such file"),
        (".", "not a regular file"),
        ("n" * 300, "name too long"),
        ("n\0", "null"),
    ):
        with pytest.raises(UnreadableFileError, match=reason):
            read_text(tmp_path / name, max_bytes=100)


def test_yaml_is_what_people_write() -> None:
    text = "data: 2020-13-45\nwhen: 2020-01-01\nlr: 0.5\nrate: 1e-3\nnone:\nyes: [1, -2, 0x10]\n"
    expected = {"data": "2020-13-45", "when": "2020-01-01", "lr": 0.5, "rate": "1e-3", "none": None, True: [1, -2, 16]}
    assert parse_yaml(text) == expected
    assert parse_yaml("") is None


def test_rows_are_read_by_name(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    replace_text(path, "epoch,loss\n1,0.5\n2,0.25\n")
    assert read_csv(path) == [{"epoch": "1", "loss": "0.5"}, {"epoch": "2", "loss": "0.25"}]
    path.write_text("")
    assert read_csv(path) == []
