"""Any text: the next character or word."""

import itertools
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from fptt.experiments.configs.config import Setting
from fptt.experiments.process.errors import UserError
from fptt.experiments.tasks.language import CHARACTERS, PARTS, UNKNOWN, WORDS, make_task, make_vocabulary
from fptt.experiments.tasks.loading import load_splits, texts
from fptt.experiments.tasks.task import Task

LENGTH = 100
HELD_OUT_PERCENT = 5


def load(setting: Setting, seed: int) -> Task:  # noqa: ARG001
    """Load a text file, or a data set with a column text.

    A part that is lacking, as validation and test are in a file, is cut from the end of training, 5 % each. At the
    level of words, those that occur once in training are one token, `<unk>`, as are words and characters that do not
    occur there at all.

    Raises:
        UserError: If no data are given, or they cannot be read as text.
    """
    if setting.data is None:
        raise UserError("data must be given for the task 'text': a text file, a folder of Parquet files or a hub id.")
    level = WORDS if setting.level == "word" else CHARACTERS
    parts = cut_lacking({name: level.split(text) for name, text in _read(setting.data).items()})
    vocabulary = frequent_words(parts["train"]) if setting.level == "word" else all_characters(parts)
    return make_task(setting, parts, level, length=LENGTH, vocabulary=vocabulary)


def cut_lacking(parts: dict[str, list[str]]) -> dict[str, list[str]]:
    """Return training, validation and test tokens; those that lack are taken from the end of training, in order."""
    train = parts["train"]
    lacking = [name for name in PARTS[1:] if name not in parts]
    ends = [len(train) * (100 - HELD_OUT_PERCENT * count) // 100 for count in range(len(lacking), -1, -1)]
    cut = {name: train[start:end] for name, (start, end) in zip(lacking, itertools.pairwise(ends), strict=True)}
    return {**parts, **cut, "train": train[: ends[0]]}


def frequent_words(tokens: Sequence[str]) -> tuple[str, ...]:
    """Return the vocabulary of the words that occur more than once, and `<unk>`."""
    counts = Counter(tokens)
    found = make_vocabulary(token if counts[token] > 1 else UNKNOWN for token in tokens)
    return found if UNKNOWN in found else (*found, UNKNOWN)


def all_characters(parts: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
    """Return the vocabulary of the characters of training, and `<unk>` if validation or test have others."""
    found = make_vocabulary(parts["train"])
    has_others = any(not set(parts[name]) <= set(found) for name in PARTS[1:])
    return (*found, UNKNOWN) if has_others else found


def _read(source: str) -> dict[str, str]:
    """Return the text of each part that there is."""
    path = Path(source).expanduser()
    if path.is_file():
        return {"train": _read_file(path)}
    if _names_file(source) and not path.exists():
        raise UserError(f"data {source!r} does not exist: give a text file, a folder of Parquet files or a hub id.")
    splits = load_splits(source, PARTS[:1], PARTS[1:])
    return {name: _join_rows(texts(split, name, "text")) for name, split in splits.items()}


def _names_file(source: str) -> bool:
    """Return whether this cannot be the name of a data set on the hub."""
    return source.startswith((".", "/", "~")) or source.count("/") > 1 or bool(re.search(r"\.(txt|md)$", source))


def _read_file(path: Path) -> str:
    try:
        text = path.read_text(encoding="utf-8-sig")  # without the mark at the beginning that some editors write
    except UnicodeDecodeError as error:
        raise UserError(f"text file {str(path)!r} must be UTF-8: {error}.") from error
    except OSError as error:
        raise UserError(f"text file {str(path)!r} cannot be read: {error}.") from error
    if not text:
        raise UserError(f"text file {str(path)!r} is empty.")
    return text


def _join_rows(rows: Sequence[str]) -> str:
    """Return the rows one after the other, each on lines of its own."""
    return "".join(row if row.endswith("\n") else row + "\n" for row in rows[:-1]) + "".join(rows[-1:])
