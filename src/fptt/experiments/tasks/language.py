"""The base of the text tasks: tokens of a text, their vocabulary, streams of tokens."""

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor, from_numpy

from fptt.experiments.configs.config import Setting
from fptt.experiments.process.errors import UserError
from fptt.experiments.tasks.batches import TokenStream
from fptt.experiments.tasks.scores import TokenScore
from fptt.experiments.tasks.task import Task

PARTS = ("train", "validation", "test")
END_OF_SENTENCE = "<eos>"
UNKNOWN = "<unk>"

EVALUATION_COLUMNS = 10
"""Columns in which validation and test are read, at most."""
TOKENS_PER_COLUMN = 1000
"""A column of evaluation holds so many tokens at least, unless there is only one."""


@dataclass(frozen=True)
class Level:
    """A kind of tokens.

    Attributes:
        token: Its name.
        metric: The metric of models of such tokens.
        split: Cuts a text into tokens.
        join: Puts tokens together to a text.
    """

    token: str
    metric: str
    split: Callable[[str], list[str]]
    join: Callable[[Sequence[str]], str]


def _split_words(text: str) -> list[str]:
    return text.replace("\n", f" {END_OF_SENTENCE} ").split()


def _join_words(tokens: Sequence[str]) -> str:
    return re.sub(f" ?{END_OF_SENTENCE} ?", "\n", " ".join(tokens))


WORDS = Level("word", "perplexity", _split_words, _join_words)
"""Separated by blanks; the end of a line is a token too."""

CHARACTERS = Level("character", "bits_per_character", list, "".join)

UNDERSCORED = Level(
    "character",
    "bits_per_character",
    lambda text: list(text.replace(" ", "_")),
    lambda tokens: "".join(tokens).replace("_", " "),
)
"""Characters with an underscore for the blank."""


def make_vocabulary(tokens: Iterable[str]) -> tuple[str, ...]:
    """Return the tokens that occur, the most frequent first, equals in the order of their characters."""
    counts = Counter(tokens)
    return tuple(sorted(counts, key=lambda token: (-counts[token], token)))


def encode(tokens: Sequence[str], vocabulary: Sequence[str], level: Level, place: str) -> Tensor:
    """Return the numbers of tokens, (N,); that of `<unk>`, if the vocabulary has it, for those that it lacks.

    Args:
        tokens: The tokens.
        vocabulary: Its tokens in the order of their numbers.
        level: The kind of tokens.
        place: Where the tokens come from, for the error.

    Raises:
        UserError: If the vocabulary lacks a token and has no `<unk>`; names both.
    """
    numbers = {token: number for number, token in enumerate(vocabulary)}
    lacking = next((token for token in tokens if token not in numbers), None)
    if lacking is not None and UNKNOWN not in numbers:
        raise UserError(f"{place} has the {level.token} {lacking!r}, which does not occur in the training text.")
    unknown = numbers.get(UNKNOWN, -1)
    # no list in between: a training text has millions of tokens
    return from_numpy(np.fromiter((numbers.get(token, unknown) for token in tokens), np.int64, len(tokens)))


def make_task(
    setting: Setting,
    parts: Mapping[str, Sequence[str]],
    level: Level,
    *,
    length: int,
    vocabulary: tuple[str, ...] | None = None,
) -> Task:
    """Return the task of predicting the next token of a text.

    Training reads `batch_size` columns of the text side by side, and carries the state down the columns. Validation
    and test are read in 10 columns, or fewer where a column would have less than 1,000 tokens. The first token of a
    column, and the remainder that does not fill a row of all columns, are not predicted: 20 tokens of 10,000 at most.
    The limit cuts the tokens of every part, after the vocabulary is known.

    Args:
        setting: Of the run; its length comes before the task's.
        parts: Tokens of `PARTS`.
        level: The kind of tokens.
        length: Steps of a window, T, if the setting has none.
        vocabulary: That of the training tokens by default.

    Raises:
        UserError: If a part is too short, or has a token that the vocabulary lacks.
    """
    vocabulary = make_vocabulary(parts["train"]) if vocabulary is None else vocabulary
    tokens = {name: _encoded_part(setting, parts[name], vocabulary, level, name) for name in PARTS}
    length = length if setting.length is None else setting.length
    _check_training(len(tokens["train"]), setting.batch_size, length, level)
    # of the uniform distribution over the vocabulary
    chance = len(vocabulary) if level.metric == "perplexity" else math.log2(len(vocabulary))
    return Task(
        name=setting.task,
        kind="classes",
        has_step_targets=True,
        train=TokenStream(tokens["train"], setting.batch_size, length),
        validation=TokenStream(tokens["validation"], num_columns(len(tokens["validation"])), length),
        test=TokenStream(tokens["test"], num_columns(len(tokens["test"])), length),
        input_size=len(vocabulary),
        output_size=len(vocabulary),
        vocabulary=vocabulary,
        score=lambda: TokenScore(level.metric),
        chance=chance,
    )


def num_columns(num_tokens: int) -> int:
    """Return the columns in which so many tokens are evaluated."""
    return min(max(num_tokens // TOKENS_PER_COLUMN, 1), EVALUATION_COLUMNS)


def _encoded_part(
    setting: Setting, tokens: Sequence[str], vocabulary: Sequence[str], level: Level, name: str
) -> Tensor:
    kept = tokens[: setting.limit]
    if len(kept) < 2:
        raise UserError(
            f"the {name} text must have at least 2 {level.token}s, got {len(kept)}"
            f"{'' if len(kept) == len(tokens) else f' with limit {setting.limit}'}."
        )
    return encode(kept, vocabulary, level, f"the {name} text")


def _check_training(num_tokens: int, batch_size: int, length: int, level: Level) -> None:
    num_steps = num_tokens // batch_size - 1
    described = f"{num_tokens} training {level.token}s"
    if num_steps < 1:
        raise UserError(f"batch_size must be at most {num_tokens // 2}, half of {described}, got {batch_size}.")
    if num_steps < length:
        raise UserError(
            f"length must be at most {num_steps}, the steps of {described} in {batch_size} columns (batch_size), "
            f"got {length}."
        )
