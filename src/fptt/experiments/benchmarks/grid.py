"""The grid of `fptt bench speed`: workloads, each with rows that take turns, read from comma-separated options."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

from fptt import chunk_lengths
from fptt.experiments.configs.lists import split_list
from fptt.experiments.process.errors import UserError

INPUT_SIZE = 1
HIDDEN_SIZE = 128
READOUT_SIZE = 256
NUM_CLASSES = 10

NUM_GATES = {"lstm": 4, "gru": 3}
"""The cells, and how many gates each has."""

ENGINES = ("eager", "compiled")

PRECISIONS = ("float32", "bfloat16")
"""Of the products; bfloat16 by autocast, with weights in float32."""


class Workload(NamedTuple):
    """A cell and the shape of its data: rows of one workload are compared."""

    cell: str
    sequence_length: int
    batch_size: int
    precision: str = "float32"

    def __str__(self) -> str:
        return f"{self.cell}, T = {self.sequence_length}, batch {self.batch_size}, {self.precision}"


class Spec(NamedTuple):
    """One row of a workload.

    Attributes:
        method: bptt, tbptt, fptt or literal.
        engine: eager or compiled; None for the literal loop, which is not the library's.
        num_chunks: K; 1 for BPTT.
        layers: The recurrent layers: fused, the fastest that the library has, or torch, those of `torch.nn`.
    """

    method: str
    engine: str | None
    num_chunks: int
    layers: Literal["fused", "torch"] = "fused"

    def __str__(self) -> str:
        chunks = "" if self.method == "bptt" else f"-{self.num_chunks}"
        engine = f" {self.engine}" if self.method in ("tbptt", "fptt") else ""
        layers = ", torch.nn" if self.layers == "torch" and self.method != "literal" else ""
        return (self.method if self.method == "literal" else self.method.upper()) + chunks + engine + layers


@dataclass(frozen=True, kw_only=True)
class Grid:
    """All workloads.

    Attributes:
        cells: Of `NUM_GATES`.
        batch_sizes: Sequences a batch.
        sequence_lengths: T.
        num_chunks: K, with None for T.
        engines: Of `ENGINES`.
        precisions: Of `PRECISIONS`.
        longest_compiled: Longest chunk, in time steps, for which there is a compiled row; None for no limit.

    Raises:
        UserError: If there are more chunks than time steps.
    """

    cells: tuple[str, ...]
    batch_sizes: tuple[int, ...]
    sequence_lengths: tuple[int, ...]
    num_chunks: tuple[int | None, ...]
    engines: tuple[str, ...]
    precisions: tuple[str, ...] = ("float32",)
    longest_compiled: int | None

    def __post_init__(self) -> None:
        """Check that every sequence has a step for each chunk."""
        shortest = min(self.sequence_lengths)
        for count in self.num_chunks:
            if count is not None and count > shortest:
                raise UserError(f"num_chunks must be at most the sequence length {shortest}, got {count}.")

    def workloads(self) -> Iterator[Workload]:
        """Yield every workload."""
        for cell in self.cells:
            for length in self.sequence_lengths:
                for batch_size in self.batch_sizes:
                    for precision in self.precisions:
                        yield Workload(cell, length, batch_size, precision)

    def specs(self, sequence_length: int) -> list[Spec]:
        """Return the rows for sequences of this length."""
        specs = [Spec("bptt", "eager", 1), Spec("bptt", "eager", 1, "torch")]
        for count in self._counts(sequence_length):
            engines = [engine for engine in self.engines if engine == "eager" or self._compiles(sequence_length, count)]
            specs += [Spec(method, engine, count) for method in ("tbptt", "fptt") for engine in engines]
            if "eager" in self.engines:
                specs.append(Spec("fptt", "eager", count, "torch"))
            specs.append(Spec("literal", None, count, "torch"))
        return specs

    def notes(self) -> list[str]:
        """Return which compiled rows are left out, and why."""
        if "compiled" not in self.engines:
            return ["no compiled rows were asked for"]
        return [
            f"no compiled rows for K = {count} at T = {length}: chunks of {max(chunk_lengths(length, count))} steps, "
            f"more than {self.longest_compiled}; their steps are unrolled, and compiling takes too long for this bench"
            for length in self.sequence_lengths
            for count in self._counts(length)
            if not self._compiles(length, count)
        ]

    def _counts(self, sequence_length: int) -> list[int]:
        return list(dict.fromkeys(count or sequence_length for count in self.num_chunks))

    def _compiles(self, sequence_length: int, num_chunks: int) -> bool:
        longest = self.longest_compiled
        return longest is None or max(chunk_lengths(sequence_length, num_chunks)) <= longest


# -- options ---------------------------------------------------------------------------------------------------------


def parse_numbers(option: str, text: str) -> tuple[int, ...]:
    """Return the whole numbers of a list.

    Raises:
        UserError: If one is no positive whole number, or repeated.
    """
    return tuple(_number(option, item) for item in split_list(option, text))


def parse_chunks(option: str, text: str) -> tuple[int | None, ...]:
    """Return numbers of chunks, with None for `T`, one chunk a time step.

    Raises:
        UserError: If one is neither `T` nor a positive whole number, or repeated.
    """
    return tuple(None if item in ("T", "t") else _number(option, item) for item in split_list(option, text))


def _number(option: str, item: str) -> int:
    if not item.isdecimal() or int(item) < 1:
        raise UserError(f"{option} must be positive whole numbers, got {item!r}.")
    return int(item)
