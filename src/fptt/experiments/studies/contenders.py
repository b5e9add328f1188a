"""What a comparison compares: the methods, and controls that have a part of what FPTT has."""

from dataclasses import dataclass
from typing import Any

from fptt.experiments.configs.config import MethodName, Setting, TrainConfig
from fptt.experiments.configs.lists import parse_names, split_list
from fptt.experiments.process.errors import UserError
from fptt.experiments.tasks.batches import samples_an_epoch
from fptt.experiments.tasks.registry import GENERATED


@dataclass(frozen=True, kw_only=True)
class Contender:
    """A method, with what a comparison changes in the setting for it.

    Attributes:
        name: On the command line and in the names of its folders.
        method: The method.
        rate: Part of the setting's learning rate, in (0, 1].
        has_chunk_losses: For BPTT, whether there is a loss at the end of every chunk.
        has_small_batches: Whether the batches are smaller by the number of chunks: one update a batch is then as many
            updates an epoch as FPTT makes.
    """

    name: str
    method: MethodName
    rate: float = 1.0
    has_chunk_losses: bool = False
    has_small_batches: bool = False

    @property
    def is_control(self) -> bool:
        """Whether it differs from its method in what makes it comparable with FPTT alone."""
        return self.rate != 1 or self.has_small_batches

    def config(self, setting: Setting, seed: int, **limits: Any) -> TrainConfig:
        """Return the config of a run, with other limits than the setting's where some are given."""
        changes: dict[str, Any] = {"method": self.method, "seed": seed}
        if self.rate != 1:
            changes["lr"] = float(f"{self.rate * setting.lr:.12g}")  # 0.9 · 0.002 is 0.0018000000000000002
        if self.has_chunk_losses:
            changes["bptt_losses"] = setting.num_chunks
        if self.has_small_batches:
            if setting.task in GENERATED:  # there an epoch is so many batches: as many samples as the others have
                changes["limit"] = samples_an_epoch(setting)
            changes["batch_size"] = max(1, _nearest(setting.batch_size, setting.num_chunks))
        return TrainConfig.of(setting, **changes, **limits)

    def check(self, setting: Setting) -> None:
        """Raise UserError if the setting makes this contender another one."""
        batch_size, num_chunks = setting.batch_size, setting.num_chunks
        if self.has_small_batches:
            if self.config(setting, 0).batch_size == batch_size:
                raise UserError(
                    f"{self.name} needs num_chunks and batch_size above 1, got num_chunks {num_chunks} and batch_size "
                    f"{batch_size}: its batches would not be smaller."
                )
        elif self.has_chunk_losses and num_chunks == setting.bptt_losses:
            raise UserError(f"{self.name} is the same as bptt, which has {setting.bptt_losses} chunk losses already.")


def _nearest(size: int, divisor: int) -> int:
    """Return the whole number nearest to a quotient, the larger of two."""
    return (2 * size + divisor) // (2 * divisor)


METHODS_AND_LOSSES = {
    contender.name: contender
    for contender in (
        Contender(name="bptt", method="bptt"),
        Contender(name="tbptt", method="tbptt"),
        Contender(name="fptt", method="fptt"),
        Contender(name="bptt-losses", method="bptt", has_chunk_losses=True),
    )
}
"""Each method itself, and BPTT with a loss at the end of each of `num_chunks` chunks.

The latter has FPTT's chunk losses but one update a sequence: the control that separates the effect of more losses from
that of more updates.
"""

SMALL_BATCHES = Contender(name="bptt-small-batches", method="bptt", has_chunk_losses=True, has_small_batches=True)
"""BPTT with FPTT's chunk losses *and* its number of updates in the same epochs: what is left is the uncut gradient."""


def at_rate(text: str) -> Contender:
    """Return TBPTT at a part of the learning rate: what FPTT would be if its regularizer only made steps shorter.

    Raises:
        UserError: If the part is not a number in (0, 1).
    """
    try:
        rate = float(text)
    except ValueError:
        rate = 0.0
    if not 0 < rate < 1:
        raise UserError(f"a rate of controls must be a part of the learning rate, in (0, 1), got {text!r}.")
    return Contender(name=f"tbptt-rate-{rate!r}", method="tbptt", rate=rate)


def parse_methods(text: str) -> list[Contender]:
    """Return the contenders of a comma-separated list.

    Raises:
        UserError: If one is unknown or repeated; lists those that exist.
    """
    return [METHODS_AND_LOSSES[name] for name in parse_names("methods", text, tuple(METHODS_AND_LOSSES))]


def parse_controls(text: str) -> list[Contender]:
    """Return the controls of a comma-separated list, in which numbers after `rate=` are rates too.

    Raises:
        UserError: If one is unknown or repeated, or a rate is not a part; lists those that exist.

    Examples:
        >>> [control.name for control in parse_controls("rate=0.9,0.5,bptt-small-batches")]
        ['tbptt-rate-0.9', 'tbptt-rate-0.5', 'bptt-small-batches']
    """
    controls: list[Contender] = []
    for entry in split_list("controls", text):
        name, is_assigned, value = entry.partition("=")
        follows_rate = bool(controls) and controls[-1] is not SMALL_BATCHES
        if name == "rate":
            if not is_assigned:
                raise UserError("the control rate needs parts of the learning rate, as in rate=0.9,0.8,0.5.")
            controls.append(at_rate(value))
        elif entry == SMALL_BATCHES.name:
            controls.append(SMALL_BATCHES)
        elif follows_rate and _is_number(entry):
            controls.append(at_rate(entry))
        else:
            raise UserError(f"unknown control {entry!r}; there are rate=PART,PART,… and {SMALL_BATCHES.name}.")
    if len(set(controls)) < len(controls):
        raise UserError(f"controls must not repeat, got {text}.")
    return controls


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
