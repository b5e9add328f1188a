"""Comma-separated options: lists of whole numbers and of names."""

from collections.abc import Sequence

from fptt.experiments.process.errors import UserError


def parse_names(option: str, text: str, known: Sequence[str]) -> tuple[str, ...]:
    """Return the names of a list.

    Raises:
        UserError: If one is unknown or repeated.
    """
    names = _split(option, text)
    for name in names:
        if name not in known:
            raise UserError(f"{option} must be of {', '.join(known)}, got {name!r}.")
    return names


def parse_numbers(option: str, text: str) -> tuple[int, ...]:
    """Return the whole numbers of a list.

    Raises:
        UserError: If one is no positive whole number, or repeated.
    """
    return tuple(_number(option, item) for item in _split(option, text))


def parse_chunks(option: str, text: str) -> tuple[int | None, ...]:
    """Return numbers of chunks, with None for `T`, one chunk a time step.

    Raises:
        UserError: If one is neither `T` nor a positive whole number, or repeated.
    """
    return tuple(None if item in ("T", "t") else _number(option, item) for item in _split(option, text))


def _split(option: str, text: str) -> tuple[str, ...]:
    items = tuple(item.strip() for item in text.split(","))
    if len(set(items)) < len(items):
        raise UserError(f"{option} must not repeat, got {text}.")
    return items


def _number(option: str, item: str) -> int:
    if not item.isdecimal() or int(item) < 1:
        raise UserError(f"{option} must be positive whole numbers, got {item!r}.")
    return int(item)
