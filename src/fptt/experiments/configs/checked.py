"""Dataclasses whose fields are checked when they are made, and the types of their fields."""

import reprlib
from typing import Annotated, Any, Self

from pydantic import BeforeValidator, ConfigDict, Field, ModelWrapValidatorHandler, ValidationError, model_validator
from pydantic.dataclasses import dataclass
from pydantic_core import ArgsKwargs, ErrorDetails

from fptt.experiments.process.errors import UserError


def _number(value: Any) -> Any:
    """Return text that is a number as one: YAML 1.1 reads 1e-3 as text."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def as_tuple(value: Any) -> Any:
    """Return a list as a tuple: YAML and JSON have lists only."""
    return tuple(value) if isinstance(value, list) else value


# The upper bounds keep a slip of the finger, or a forged file, from building layers or starting processes for ever.
Count = Annotated[int, Field(gt=0, le=10**12)]
Natural = Annotated[int, Field(ge=0, le=10**12)]
Width = Annotated[int, Field(gt=0, le=2**16)]
NumClasses = Annotated[int, Field(gt=0, le=1000)]
Depth = Annotated[int, Field(gt=0, le=100)]
Workers = Annotated[int, Field(gt=0, le=1024)]
Name = Annotated[str, Field(max_length=100)]
Address = Annotated[str, Field(max_length=4096)]  # the longest path of Linux
Seed = Annotated[int, Field(ge=0, lt=2**31)]  # every generator takes 31 bits
Number = Annotated[float, BeforeValidator(_number), Field(allow_inf_nan=False)]
Bounded = Annotated[Number, Field(ge=-1e30, le=1e30)]  # float32 ends at 3e38
Positive = Annotated[Number, Field(gt=0, le=1e30)]
NonNegative = Annotated[Number, Field(ge=0, le=1e30)]
Part = Annotated[Number, Field(ge=0, lt=1)]
InnerPart = Annotated[Number, Field(gt=0, lt=1)]
Weight = Annotated[Number, Field(gt=0, le=1)]
Widths = Annotated[tuple[Width, ...], BeforeValidator(as_tuple), Field(max_length=100)]
InnerParts = Annotated[tuple[InnerPart, ...], BeforeValidator(as_tuple), Field(max_length=100)]

STRICT = ConfigDict(strict=True, extra="forbid")  # no 2.0 or True for an integer, no "5" either


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Checked:
    """Base of the checked dataclasses: a value that does not fit is a UserError that names field and value."""

    @model_validator(mode="wrap")
    @classmethod
    def _as_user_error(cls, values: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        try:
            return handler(values)
        except ValidationError as error:
            details = error.errors()
        missing = {str(detail["loc"][0]): _Nothing() for detail in details if detail["type"] == "missing"}
        if missing and isinstance(values, ArgsKwargs):
            given: dict[str, Any] = {**(values.kwargs or {}), **missing}
            try:  # pydantic says what a field must be of a value only
                handler(ArgsKwargs(values.args, given))
            except ValidationError as error:
                details = error.errors()
        raise UserError("; ".join(map(_message, details[:3])) + ".")


class _Nothing:
    """The value of a missing field, in messages."""

    def __repr__(self) -> str:
        return "nothing"


def _message(error: ErrorDetails) -> str:
    """Return one error of pydantic in our words; long values are shortened."""
    field, *entry = error["loc"]
    kind, context = error["type"], error.get("ctx", {})
    match kind:
        case "greater_than" if context["gt"] == 0:
            expected = "must be positive"
        case "greater_than_equal" if context["ge"] == 0:
            expected = "must not be negative"
        case "greater_than_equal":
            expected = f"must be at least {context['ge']:,}"
        case "less_than":
            expected = f"must be less than {context['lt']:,}"
        case "less_than_equal":
            expected = f"must be at most {context['le']:,}"
        case "tuple_type":
            expected = "must be a list"
        case "unexpected_keyword_argument":
            expected = "is unknown"
        case _:
            expected = "must " + error["msg"].partition(" should ")[2]
    return f"{'an entry of ' if entry else ''}{field} {expected}, got {reprlib.repr(error['input'])}"
