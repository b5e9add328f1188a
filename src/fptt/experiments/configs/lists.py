"""Options that are lists, with commas between their parts."""

from collections.abc import Sequence

from fptt.experiments.process.errors import UserError


def split_list(option: str, text: str) -> tuple[str, ...]:
    """Return the parts of a list, without blanks around them.

    Raises:
        UserError: If one is repeated.

    Examples:
        >>> split_list("methods", "tbptt, fptt")
        ('tbptt', 'fptt')
    """
    parts = tuple(part.strip() for part in text.split(","))
    if len(set(parts)) < len(parts):
        raise UserError(f"{option} must not repeat, got {text}.")
    return parts


def parse_names(option: str, text: str, known: Sequence[str]) -> tuple[str, ...]:
    """Return the names of a list.

    Raises:
        UserError: If one is unknown or repeated.
    """
    names = split_list(option, text)
    for name in names:
        if name not in known:
            raise UserError(f"{option} must be one of {', '.join(known)}, got {name!r}.")
    return names
