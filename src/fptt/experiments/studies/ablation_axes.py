"""What an ablation varies: the fields of a setting that are a choice or a number, and their values."""

import math
from types import NoneType
from typing import Any, get_args, get_type_hints

from fptt.experiments.configs.config import Setting
from fptt.experiments.process.errors import UserError

_FACTORS = {"num_chunks": (1 / 4, 1 / 2, 1, 2, 4), "lr": (1 / 3, 1, 3), "hidden_size": (1 / 2, 1, 2)}
_VALUES = {
    "alpha": (0.01, 0.1, 0.5),
    "beta": (0.5, 0.7),
    "optimizer": ("adam", "sgd", "rmsprop"),
    "precision": ("32-true", "bf16-mixed"),
}
_OF_A_STUDY = {"method": "every ablation has all methods", "seed": "--seeds says how many there are"}


def parse_axes(text: str) -> dict[str, list[Any]]:
    """Return the fields of a list like `num_chunks=4:8:16,alpha,form`, and the values of those that have some.

    Raises:
        UserError: If a field is unknown or repeated, or a value is not of its type; lists what there is.

    Examples:
        >>> parse_axes("num_chunks=4:8,alpha,max_norm=1:none")
        {'num_chunks': [4, 8], 'alpha': [], 'max_norm': [1.0, None]}
    """
    axes: dict[str, list[Any]] = {}
    for entry in text.split(","):
        field, has_values, values = entry.strip().partition("=")
        check_field(field)
        if field in axes:
            raise UserError(f"fields must not repeat, got {field} twice.")
        parsed = [_parsed(field, value.strip()) for value in values.split(":")] if has_values else []
        axes[field] = list(dict.fromkeys(parsed))
    return axes


def check_field(field: str) -> None:
    """Raise UserError if a field cannot vary."""
    if field in FIELDS:
        return
    if field in _OF_A_STUDY:
        raise UserError(f"the field {field} cannot vary: {_OF_A_STUDY[field]}.")
    if field in _HINTS:
        raise UserError(f"the field {field} cannot vary: it is neither a choice nor a number.")
    raise UserError(f"unknown field {field!r}; there are {', '.join(FIELDS)}.")


def default_values(setting: Setting, field: str) -> list[Any]:
    """Return the values of a field that comes without any; setting's own stays as it is.

    Raises:
        UserError: If there are no usual ones.
    """
    if field == "num_duals":
        return [1, setting.num_chunks]
    if field in _VALUES:
        return list(_VALUES[field])
    if field in _FACTORS:
        own = getattr(setting, field)
        tidy = _three_digits if field == "lr" else _whole
        return list(dict.fromkeys(own if factor == 1 else tidy(own * factor) for factor in _FACTORS[field]))
    if choices := _choices(field):
        return list(choices.values())
    raise UserError(f"{field} has no usual values: give some, as in {field}=A:B.")


def told(value: Any) -> Any:
    """Return a value as tables have it, in which None is a field that makes no difference."""
    return "none" if value is None else value


_HINTS = get_type_hints(Setting)


def _choices(field: str) -> dict[str, Any]:
    """Return the values that a field may have, by their names; empty if it is no choice."""
    if _HINTS[field] is bool:
        return {"false": False, "true": True}
    return {name: name for name in get_args(_HINTS[field]) if isinstance(name, str)}


def _number(field: str) -> type[int] | type[float] | None:
    """Return the type of a field that is a number, or a number or None."""
    kinds = get_args(_HINTS[field]) if _may_be_none(field) else (_HINTS[field],)
    return next((kind for kind in (int, float) if kind in kinds), None)


def _may_be_none(field: str) -> bool:
    return NoneType in get_args(_HINTS[field])


FIELDS = tuple(field for field in _HINTS if _choices(field) or _number(field))
"""Fields that may vary."""


def _parsed(field: str, text: str) -> Any:
    """Return a value in the type of its field."""
    choices = _choices(field)
    if choices:
        if text not in choices:
            raise UserError(f"{field} must be one of {', '.join(choices)}, got {text!r}.")
        return choices[text]
    if _may_be_none(field) and text == "none":
        return None
    kind = _number(field) or float
    try:
        value = kind(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        expected = ("a whole number" if kind is int else "a number") + (" or none" if _may_be_none(field) else "")
        raise UserError(f"{field} must be {expected}, got {text!r}.")
    return value


def _three_digits(value: float) -> float:
    return float(f"{value:.3g}")


def _whole(value: float) -> int:
    return max(1, round(value))
