"""What goes into the model of a task, and what comes out: all that its weights are used with, without any data."""

from typing import Annotated, Any, Literal, Self

import numpy as np
from pydantic import BeforeValidator, Field
from pydantic.dataclasses import dataclass

from fptt.experiments.configs.checked import STRICT, Checked, Count, Number, as_tuple
from fptt.experiments.process.errors import UserError

Texts = Annotated[tuple[str, ...], BeforeValidator(as_tuple)]
Names = Annotated[tuple[str | int, ...], BeforeValidator(as_tuple)]
Numbers = Annotated[tuple[Number, ...], BeforeValidator(as_tuple)]
Deviation = Annotated[Number, Field(gt=0)]
Deviations = Annotated[tuple[Deviation, ...], BeforeValidator(as_tuple)]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Interface(Checked):
    """What goes into the model of a task, and what comes out; stored in the folder of a run.

    Attributes:
        kind: Whether the outputs are scores of classes or numbers.
        input_size: D, or the number of tokens.
        output_size: Classes, or width of the target.
        has_step_targets: Whether every step has a target.
        class_names: Of the outputs, text or numbers, where the data have names.
        input_names: Of the inputs, where the data have names.
        time_name: Of the column by which steps are ordered, where the data have one.
        input_mean, input_deviation: The model sees (x − mean) / deviation of each input; none where inputs are prepared
            in another way.
        target_mean, target_deviation: A regression's output is (y − mean) / deviation.
    """

    kind: Literal["classes", "regression"]
    input_size: Count
    output_size: Count
    has_step_targets: bool
    class_names: Names | None = None
    input_names: Texts | None = None
    time_name: str | None = None
    input_mean: Numbers | None = None
    input_deviation: Deviations | None = None
    target_mean: Number = 0.0
    target_deviation: Deviation = 1.0

    def __post_init__(self) -> None:
        """Check what concerns several fields."""
        sizes = {
            "class_names": self.output_size,
            "input_names": self.input_size,
            "input_mean": self.input_size,
            "input_deviation": self.input_size,
        }
        for name, size in sizes.items():
            values = getattr(self, name)
            if values is not None and len(values) != size:
                raise UserError(f"{name} must have {size} entries, got {len(values)}.")
        if (self.input_mean is None) != (self.input_deviation is None):
            raise UserError("input_mean and input_deviation must be given together.")

    def other_field(self, now: Self) -> str | None:
        """Return the first field, by name, in which the interface of data differs now, if there is one.

        Without a time it may be that of a run that is older than the field, and was sorted by one all the same.
        """
        known = {name: value for name, value in vars(self).items() if (name, value) != ("time_name", None)}
        return next((name for name, value in known.items() if not self._is_same(name, value, getattr(now, name))), None)

    def _is_same(self, name: str, own: Any, now: Any) -> bool:
        part, _, figure = name.rpartition("_")
        if figure not in ("mean", "deviation") or own is None or now is None:
            return own == now
        mean, deviation = (np.asarray(getattr(self, f"{part}_{figure}")) for figure in ("mean", "deviation"))
        # the last digits are those of the order of a sum, which the number of threads decides
        return bool((np.abs(np.subtract(own, now)) <= 1e-10 * (np.abs(mean) + deviation)).all())
